"""What the core costs: ledger updates, quiet cycles, answers to `why`, admissions from long queues, memory."""

from __future__ import annotations

import gc
import resource
import time
import tracemalloc
from pathlib import Path
from statistics import median

from benchmarks.figure import Figure
from policies.catalogue import make_policy
from policies.model import Action
from scheduler import events as ev
from scheduler.core import Core
from scheduler.policy_files import read_policy
from scheduler.why import Positions, why
from simulations.metrics import percentile

SHORT, LONG, ADMISSIONS = 1_000, 100_000, 400
USERS, RUNNING, WAITING = 10_000, 1_000, 1_000
"""A large site: users known, sessions that run and that wait; eight GPUs a host."""

LARGE_USERS, LARGE_HOSTS = 20_000, 5_000
"""The largest: `LONG` sessions wait for the full hosts."""

CYCLES, QUESTIONS = 2_000, 1_000


def measure() -> list[Figure]:
    """All figures."""
    short = min(_admission_us(SHORT) for _ in range(3))
    long = min(_admission_us(LONG) for _ in range(2))
    return [
        Figure(figure="ledger update, mean", value=_update_us(), unit="us", bound=20, at_most=True),
        Figure(
            figure="admission with 100,000 queued / with 1,000",
            value=long,
            unit="us",
            bound=2,
            at_most=True,
            yardstick=short,
        ),
        Figure(figure="memory of a queued session", value=_bytes_queued(), unit="bytes", bound=2048, at_most=True),
        *_large_site(),
        *_largest_site(),
    ]


def _core(gpus: int) -> Core:
    core = Core(make_policy(read_policy("research-first")))
    core.apply(ev.HostJoined(0, "pool", gpus))
    return core


def _submit(core: Core, at_ms: int, number: int) -> None:
    """One session of one of many users, four sessions a user, of one of three widths."""
    user = f"u{number // 4}"
    core.apply(ev.SessionSubmitted(at_ms, f"s{number}", user, f"g{number // 4 % 20}", "free", (1, 1, 2, 4)[number % 4]))


def _queued(count: int) -> Core:
    """A full pool with `count` sessions waiting, their users with different pasts."""
    core = _core(64)
    for number in range(64):
        core.apply(ev.SessionSubmitted(0, f"held{number}", f"h{number}"))
    core.cycle(0)
    for number in range(count):
        _submit(core, 1 + number // 100, number)
    return core


def _admission_us(count: int) -> float:
    """A running session ends, the next one starts: mean microseconds of the end, the cycle and the start."""
    return _one_by_one_us(_queued(count))


def _one_by_one_us(core: Core) -> float:
    now = 10_000
    core.cycle(now)
    running = list(core.view.holders)
    gc.collect()
    gc.disable()
    began = time.perf_counter()
    started = 0
    while started < ADMISSIONS:
        now += 1_000
        core.apply(ev.SessionEnded(now, running.pop(0)))
        step = core.cycle(now)
        for decision in step.decisions:
            if decision.allocation is not None:
                core.apply(ev.SessionStarted(now, decision.session))
                running.append(decision.session)
                started += 1
    spent = time.perf_counter() - began
    gc.enable()
    return spent / started * 1e6


def _update_us() -> float:
    """A load report changes a session's charge rate, with its user's waiting sessions refiled: mean microseconds."""
    core = _core(1_000)
    for number in range(1_000):
        core.apply(ev.SessionSubmitted(0, f"s{number}", f"u{number}", f"g{number % 20}"))
    core.cycle(0)
    reports = [ev.LoadReported(1 + i, f"s{i % 1_000}", (i * 37 % 101) / 100) for i in range(50_000)]
    gc.collect()
    began = time.perf_counter()
    for report in reports:
        core.apply(report)
    return (time.perf_counter() - began) / len(reports) * 1e6


def _bytes_queued() -> float:
    """Bytes for each of 20,000 more waiting sessions, users and indexes included."""
    core = _queued(0)
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for number in range(20_000):
        _submit(core, 1, number)
    gc.collect()
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return (after - before) / 20_000


# -- a large site --


def _site(users: int, hosts: int, waiting: int, gpus: int = 8, *, room: int = 0) -> Core:
    """Hosts of eight GPUs, held by sessions of `gpus` but for `room` hosts; `waiting` more; users with different pasts.

    Every tenth of those who hold GPUs waits as well.
    """
    core = Core(make_policy(read_policy("research-first")))
    for number in range(hosts + room):
        core.apply(ev.HostJoined(0, f"host-{number:04}", 8, "A100", 81_920))
    holders = hosts * 8 // gpus
    for number in range(users):  # straight into the ledger: nobody is there yet who would have to be looked at
        user = core.ledger.set_user(f"u{number}", f"g{number % 50}", "free")
        if number < users // 2 and (number % 10 or number >= holders):
            core.ledger.set_usage(user, number % 17 * 0.7)
    for number in range(holders):
        name = users - 1 - number if number % 10 else number
        core.apply(ev.SessionSubmitted(0, f"held{number}", f"u{name}", f"g{name % 50}", "free", gpus))
        if number % 50 == 49:
            _start_all(core)
    _start_all(core)
    for number in range(waiting):
        name = number % (users // 2)
        core.apply(ev.SessionSubmitted(1, f"s{number}", f"u{name}", f"g{name % 50}", "free", (1, 1, 2, 4)[number % 4]))
    return core


def _start_all(core: Core) -> None:
    for decision in core.cycle(0).decisions:
        if decision.action is Action.START:
            core.apply(ev.SessionStarted(0, decision.session))


def _large_site() -> list[Figure]:
    """Cycles in which nothing is to be done, then `why` of each session with as many waiting as there run."""
    quiet = _site(USERS, RUNNING // 8, 0, gpus=1, room=40)
    full = _site(USERS, RUNNING // 8, WAITING, gpus=1)
    for core in (quiet, full):
        core.cycle(1)
        assert len(core.view.holders) == RUNNING, len(core.view.holders)
    assert full.view.queue.waiting == WAITING
    running = [_why_ms(full, f"held{number}") for number in range(QUESTIONS)]
    at = Positions().of(full)
    waits = [_why_ms(full, f"s{number}", at) for number in range(WAITING)]
    firsts = [_why_ms(full, f"s{number}") for number in range(0, WAITING, 5)]
    text = f"{USERS:,} users, {RUNNING:,} running"
    return [
        Figure(figure=f"{text}: quiet cycle", value=_quiet_us(quiet), unit="us", bound=100, at_most=True),
        Figure(figure=f"{text}: why of one, p99", value=_p99(running), unit="ms", bound=10, at_most=True),
        Figure(figure=f"{text}, {WAITING:,} waiting: why, p99", value=_p99(waits), unit="ms", bound=10, at_most=True),
        Figure(figure=f"{text}, {WAITING:,} waiting: why, first of a state, p50", value=median(firsts), unit="ms"),
    ]


def _quiet_us(core: Core) -> float:
    """Mean microseconds of cycles a second apart, those among them at which something fell due left out."""
    now, spent, counted = 1_000, 0.0, 0
    gc.collect()
    for _ in range(CYCLES):
        now += 1_000
        began = time.perf_counter()
        step = core.cycle(now)
        took = time.perf_counter() - began
        if not step.decisions:
            spent, counted = spent + took, counted + 1
    return spent / counted * 1e6


def _why_ms(core: Core, sid: str, at: dict[str, int] | None = None) -> float:
    row = {"session": sid, "state": core.sessions[sid].state.value}
    began = time.perf_counter()
    why(core, row, [], core.now_ms, at)
    return (time.perf_counter() - began) * 1e3


def _p99(values: list[float]) -> float:
    return percentile(sorted(values), 0.99) or 0.0


def _largest_site() -> list[Figure]:
    gc.collect()
    before = _resident_mib()
    core = _site(LARGE_USERS, LARGE_HOSTS, LONG)
    assert (len(core.view.holders), core.view.queue.waiting) == (LARGE_HOSTS, LONG)
    grown = _resident_mib() - before
    text = f"{LONG:,} queued of {LARGE_USERS:,} users, {LARGE_HOSTS:,} hosts"
    return [
        Figure(figure=f"{text}: admission, mean", value=_one_by_one_us(core), unit="us", bound=400, at_most=True),
        Figure(figure=f"{text}: memory", value=grown, unit="MiB", bound=400, at_most=True),
    ]


def _resident_mib() -> float:
    """Resident memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20
