"""What the core costs: ledger updates, admissions from long queues, memory of waiting sessions."""

from __future__ import annotations

import gc
import time
import tracemalloc

from benchmarks.figure import Figure
from policies.catalogue import make_policy
from scheduler import events as ev
from scheduler.core import Core
from scheduler.policy_files import read_policy

SHORT, LONG, ADMISSIONS = 1_000, 100_000, 400


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
    core = _queued(count)
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
