"""Small sites with a random past: a core that was given requests, ends, loads, corrections, holds and drains.

`site_of(params, acts_of(seed))` plays one act for each number and leaves the core where nothing more is decided at its
instant. `copy_of` is the core restored from its checkpoint.
"""

from __future__ import annotations

import dataclasses
import json
import random
from typing import Any

from policies.catalogue import make_policy
from policies.model import Action, Decision, State
from policies.params import HeadroomParams, LadderParams, OrderParams, Params, TierParams, UsageParams
from scheduler import checkpoint
from scheduler import events as ev
from scheduler.core import Core

FAIR = Params(
    usage=UsageParams(half_life_h=24.0),
    tiers={"free": TierParams(baseline_gpus=0.05), "lab": TierParams(baseline_gpus=0.3)},
    headroom=HeadroomParams(fixed_gpus=1),
    ladder=LadderParams(rotate_delta_gpu_h=0.1, warn_ms=0, min_run_ms=600_000, grace_ms=600_000),
)
POLICIES = {
    "fair-share": FAIR,
    "automatic baseline": Params(headroom=HeadroomParams(fixed_gpus=2)),
    "long waits": dataclasses.replace(FAIR, order=OrderParams(max_wait_ms=900_000, reserve_after_ms=300_000)),
    "shared credit": dataclasses.replace(
        FAIR,
        tiers={
            "free": TierParams(baseline_gpus=0.05, group_baseline_gpus=0.08),
            "lab": TierParams(baseline_gpus=0.3, group_baseline_gpus=0.2),
        },
    ),
    "fifo": Params(policy="fifo"),
    "fifo-skip": Params(policy="fifo-skip"),
    "sjf": Params(policy="sjf"),
}
USERS = (
    ("ann", "", "free"),
    ("bob", "", "free"),
    ("cid", "left", "lab"),
    ("dan", "left", "free"),
    ("eve", "x", "free"),
)
SHAPES: tuple[dict[str, Any], ...] = (
    {},
    {},
    {"gpus": 2},
    {"gpus": 3},
    {"gpus": 6},
    {"fraction_m": 500},
    {"fraction_m": 300, "memory_mib": 6000},
    {"fraction_m": 900},
    {"gpu_type": "A100"},
    {"gpu_type": "A100", "gpus": 2},
    {"memory_mib": 30_000},
    {"gpus": 50},
)
KINDS = ("submit",) * 9 + (
    "end",
    "end",
    "hold",
    "unhold",
    "cancel",
    "load",
    "usage",
    "drain",
    "resume",
    "pause",
    "pause",
)
PAUSES_MS = (1, 60_000, 600_000, 3_600_000)


def acts_of(seed: int) -> list[int]:
    """The acts of one random past, 5 to 80 of them; the seed decides."""
    chance = random.Random(seed)
    return [chance.randrange(len(KINDS) * 400) for _ in range(chance.randrange(5, 80))]


def copy_of(core: Core) -> Core:
    """Another core in the same state."""
    return checkpoint.restore(json.loads(json.dumps(checkpoint.dump(core))), core.policy)


def settle(core: Core, seen: list[Decision] | None = None) -> None:
    """Cycle, and play hosts that obey at once, until nothing more is decided at this instant.

    Args:
        seen: is given every decision.
    """
    while True:
        step = core.cycle(core.now_ms)
        if seen is not None:
            seen += step.decisions
        if not step.decisions:
            return
        for decision in step.decisions:
            if decision.action is Action.START:
                core.apply(ev.SessionStarted(core.now_ms, decision.session))
            elif decision.action is Action.EVICT:
                core.apply(ev.SessionEnded(core.now_ms, decision.session, "evicted"))


def site_of(params: Params, numbers: list[int], seen: list[Decision] | None = None) -> Core:
    """A core on four hosts of three sorts, to which one thing has happened for each number."""
    core = Core(make_policy(params))
    for host, gpus, model, memory in (
        ("a", 2, "A100", 40_000),
        ("b", 2, "A100", 40_000),
        ("t", 3, "T4", 16_000),
        ("u", 1, None, None),
    ):
        core.apply(ev.HostJoined(0, host, gpus, model, memory))
    core.apply(ev.GroupSet(0, "org"))
    core.apply(ev.GroupSet(0, "left", 2.0, "org"))
    core.apply(ev.GroupSet(0, "right", 1.0, "org"))
    for name, group, tier in USERS:
        core.apply(ev.UserSet(0, name, group or "right", tier))
    for number in numbers:
        play(core, number, seen)
    return core


def play(core: Core, number: int, seen: list[Decision] | None = None) -> None:
    """One act, and what follows from it at once."""
    _act(core, KINDS[number % len(KINDS)], *divmod(number // len(KINDS), 20), seen)
    settle(core, seen)


def pause(core: Core, until_ms: int, seen: list[Decision] | None = None) -> None:
    """Let time pass, with a cycle whenever one is due and one at the end."""
    now = core.now_ms
    while now < until_ms:
        due = core.next_deadline_ms()
        now = until_ms if due is None else min(max(due, now + 1), until_ms)
        core.apply(ev.GroupSet(now, "org"))  # moves the clock alone: `settle` does the deciding
        settle(core, seen)


def _act(core: Core, kind: str, a: int, b: int, seen: list[Decision] | None) -> None:
    now = core.now_ms
    if kind == "submit":
        name, group, tier = USERS[a % len(USERS)]
        expected = None if b % 3 else (b + 1) * 60_000
        asked = SHAPES[b % len(SHAPES)] | {"expected_ms": expected}
        core.apply(ev.SessionSubmitted(now, f"s{core.arrivals}", name, group or "right", tier, **asked))
    elif kind == "pause":
        pause(core, now + PAUSES_MS[a % 4], seen)
    elif kind == "usage":
        core.apply(ev.UsageSet(now, USERS[a % len(USERS)][0], b / 2))
    elif kind in ("drain", "resume"):
        made = ev.HostDrained if kind == "drain" else ev.HostResumed
        core.apply(made(now, "abtu"[a % 4]))
    else:
        _act_on_session(core, kind, a, b)


def _act_on_session(core: Core, kind: str, a: int, b: int) -> None:
    now, states = core.now_ms, {"hold": State.QUEUED, "unhold": State.HELD, "end": State.RUNNING, "load": State.RUNNING}
    if kind == "cancel":
        fit = [s for s in core.sessions.values() if s.state in (State.QUEUED, State.HELD)]
    else:
        fit = [s for s in core.sessions.values() if s.state is states[kind]]
    if not fit:
        return
    sid = fit[a % len(fit)].id
    made: dict[str, ev.Event] = {
        "hold": ev.SessionHeld(now, sid),
        "unhold": ev.SessionUnheld(now, sid),
        "cancel": ev.SessionCancelled(now, sid),
        "end": ev.SessionEnded(now, sid),
        "load": ev.LoadReported(now, sid, (b % 5) / 4),
    }
    core.apply(made[kind])
