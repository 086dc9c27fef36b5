"""A restored core goes on as the original would have: the same decisions, and the same checkpoint after."""

from __future__ import annotations

import copy
import dataclasses
import json
import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policies.catalogue import make_policy
from policies.model import HOUR_MS, Action, Ladder, State
from policies.params import HeadroomParams, LadderParams, OrderParams, Params, TierParams, UsageParams
from scheduler import checkpoint
from scheduler import events as ev
from scheduler.core import Core
from scheduler.journal import cycle_line

MINUTE_MS = 60_000
FAIR = Params(
    usage=UsageParams(half_life_h=2.0),
    gpu_weight={"A100": 2.0},
    tiers={"free": TierParams(baseline_gpus=0.3)},
    headroom=HeadroomParams(fixed_gpus=1),
    ladder=LadderParams(min_run_ms=600_000, patience_ms=300_000),
)
POLICIES = {
    "fair-share": FAIR,
    "auto": dataclasses.replace(FAIR, tiers={"free": TierParams()}),
    "rotating": dataclasses.replace(FAIR, ladder=LadderParams(min_run_ms=600_000, rotate_delta_gpu_h=0.25)),
    "shared credit": dataclasses.replace(FAIR, tiers={"free": TierParams(baseline_gpus=0.3, group_baseline_gpus=0.4)}),
    "long waits": dataclasses.replace(FAIR, order=OrderParams(max_wait_ms=3_600_000, reserve_after_ms=600_000)),
    "fifo": Params(policy="fifo"),
    "fifo-skip": Params(policy="fifo-skip"),
    "sjf": Params(policy="sjf"),
}
SHAPES: list[dict[str, Any]] = [
    {},
    {"gpus": 2},
    {"gpus": 3},
    {"gpus": 6},
    {"fraction_m": 500},
    {"fraction_m": 300, "memory_mib": 4000},
    {"gpu_type": "A100"},
    {"gpus": 50},
]
Op = tuple[str, int, int]
OPS = (
    "submit",
    "submit",
    "submit",
    "end",
    "hold",
    "unhold",
    "leave",
    "cancel",
    "load",
    "saved",
    "host",
    "usage",
    "wait",
)
OP = st.tuples(st.sampled_from(OPS), st.integers(0, 40), st.integers(0, 40))


def through_json(core: Core) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(json.dumps(checkpoint.dump(core), allow_nan=False))
    return data


def restored(core: Core) -> Core:
    return checkpoint.restore(through_json(core), core.policy)


class Pair:
    """A core and, after `fork`, the one restored from its checkpoint: both get the same and must say the same."""

    def __init__(self, params: Params) -> None:
        self.cores = [Core(make_policy(params), shared_limit=3)]
        self.now = 0
        self.deadline: int | None = None
        self.count = 0
        self.apply(ev.HostJoined(0, "a", 2, "A100", 16_000))
        self.apply(ev.HostJoined(0, "b", 4, "T4", 16_000, heartbeat=True))
        self.apply(ev.GroupSet(0, "lab", 3.0))
        self.apply(ev.GroupSet(0, "vision", 2.0, "lab"))

    @property
    def core(self) -> Core:
        return self.cores[0]

    def fork(self) -> None:
        self.cores = [self.core, restored(self.core)]

    def apply(self, event: ev.Event) -> None:
        for core in self.cores:
            core.apply(event)

    def cycle(self) -> None:
        """Decide and obey until nothing more is decided."""
        again = True
        while again:
            steps = [core.cycle(self.now) for core in self.cores]
            lines = [cycle_line(step, self.now) for step in steps]
            assert lines[-1] == lines[0]
            assert steps[-1].next_deadline_ms == steps[0].next_deadline_ms
            again = False
            for decision in steps[0].decisions:
                if decision.action is Action.START:
                    again = True
                    self.apply(ev.SessionStarted(self.now, decision.session))
                    self.apply(ev.LoadReported(self.now, decision.session, (len(decision.session) * 3 % 5) / 4))
                elif decision.action is Action.EVICT:
                    again = True
                    self.apply(ev.SessionEnded(self.now, decision.session, "evicted"))
            self.deadline = steps[0].next_deadline_ms

    def wait(self, span_ms: int) -> None:
        """Let time pass, with a cycle whenever one is due (at most 40)."""
        until = self.now + span_ms
        for _ in range(40):
            if self.deadline is None or self.deadline >= until:
                break
            self.now = self.deadline
            self.apply(ev.HostReported(self.now, "b"))
            self.cycle()
        self.now = until
        self.apply(ev.HostReported(self.now, "b"))
        self.cycle()

    def pick(self, states: tuple[State, ...], number: int) -> str | None:
        found = [sid for sid, session in self.core.sessions.items() if session.state in states]
        return found[number % len(found)] if found else None

    def play(self, op: Op) -> None:
        kind, x, y = op
        now = self.now
        if kind == "submit":
            self.count += 1
            group = ("default", "vision", "lab")[x % 3]
            shape = SHAPES[y % len(SHAPES)]
            self.apply(ev.SessionSubmitted(now, f"s{self.count}", f"u{x % 6}", group, expected_ms=y or None, **shape))
        elif kind == "host":
            self.apply((ev.HostDrained, ev.HostResumed)[x % 2](now, "ab"[y % 2]))
        elif kind == "usage":
            name = f"u{x % 6}"
            if name in self.core.ledger.users:
                self.apply(ev.UsageSet(now, name, y / 4))
        elif kind == "wait":
            self.wait((x + 1) * (y + 1) * MINUTE_MS // 4)
            return
        else:
            self.play_session(kind, x, y)
        self.cycle()

    def play_session(self, kind: str, x: int, y: int) -> None:
        waiting, holding = (State.QUEUED, State.HELD), (State.STARTING, State.RUNNING, State.STOPPING)
        states = {
            "end": holding,
            "hold": (State.QUEUED,),
            "unhold": (State.HELD,),
            "leave": waiting,
            "cancel": (*waiting, State.RUNNING),
            "load": holding,
            "saved": holding,
        }[kind]
        sid = self.pick(states, x)
        if sid is None:
            return
        makers = {
            "end": ev.SessionEnded(self.now, sid),
            "hold": ev.SessionHeld(self.now, sid),
            "unhold": ev.SessionUnheld(self.now, sid),
            "leave": ev.SessionAbandoned(self.now, sid),
            "cancel": ev.SessionCancelled(self.now, sid),
            "load": ev.LoadReported(self.now, sid, None if y == 0 else y / 40),
            "saved": ev.SessionSaved(self.now, sid, y % 2 == 0),
        }
        self.apply(makers[kind])


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(history=st.lists(OP, min_size=15, max_size=40), future=st.lists(OP, min_size=8, max_size=20))
def test_a_restored_core_goes_on_as_the_original(policy: str, history: list[Op], future: list[Op]) -> None:
    """Random history, through JSON and back, then a random future for both: one decision log, one state."""
    pair = Pair(POLICIES[policy])
    for op in history:
        pair.play(op)
    pair.fork()
    original, copied = pair.cores
    assert checkpoint.dump(copied) == checkpoint.dump(original)
    copied.validate()
    for op in future:
        pair.play(op)
        assert checkpoint.dump(copied) == checkpoint.dump(original)
    pair.wait(3 * HOUR_MS)
    assert checkpoint.dump(copied) == checkpoint.dump(original)
    copied.validate()
    original.validate()


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
def test_long_histories_restored_anywhere_go_on_as_the_original(policy: str) -> None:
    """1,500 random histories for each policy, restored at a random point of each."""
    for seed in range(1500):
        draw = random.Random(f"{policy} {seed}")
        ops = [(draw.choice(OPS), draw.randrange(41), draw.randrange(41)) for _ in range(draw.randint(5, 60))]
        at, pair = draw.randrange(len(ops)), Pair(POLICIES[policy])
        for number, op in enumerate(ops):
            if number == at:
                pair.fork()
            pair.play(op)
        original, copied = pair.cores
        assert checkpoint.dump(copied) == checkpoint.dump(original), f"seed {seed}"
        copied.validate()


def rich_core() -> Core:
    """A state with everything in it: claims with something set aside, throttles, holds, hosts down, wakes."""
    params = dataclasses.replace(
        FAIR, headroom=HeadroomParams(), ladder=LadderParams(min_run_ms=0, warn_ms=0, grace_ms=600_000)
    )
    pair = Pair(dataclasses.replace(params, tiers={"free": TierParams(baseline_gpus=0.2)}))
    for user in ("poor", "rich"):
        pair.apply(ev.UserSet(0, user, "vision"))
    pair.apply(ev.UsageSet(0, "poor", 5.0))
    for number in range(4):
        pair.apply(ev.SessionSubmitted(0, f"v{number}", "poor", "vision"))
    pair.apply(ev.SessionSubmitted(0, "part", "poor", "vision", fraction_m=800, gpu_type="A100"))
    pair.apply(ev.SessionSubmitted(0, "half", "mia", fraction_m=200, memory_mib=500, gpu_type="A100"))
    pair.cycle()
    pair.apply(ev.SessionSubmitted(0, "held", "rich", "vision"))
    pair.apply(ev.SessionHeld(0, "held"))
    pair.wait(MINUTE_MS)
    pair.apply(ev.SessionSubmitted(pair.now, "wide", "rich", "vision", gpus=4, gpu_type="T4"))
    pair.cycle()
    pair.apply(ev.SessionSubmitted(pair.now, "never", "rich", "vision", gpus=99))
    pair.apply(ev.SessionSubmitted(pair.now, "line", "mia"))
    victim = next(sid for sid, session in pair.core.sessions.items() if session.claim and session.allocation)
    pair.apply(ev.SessionSaved(pair.now, victim, acknowledged=True))
    pair.apply(ev.SessionEnded(pair.now, victim))
    pair.apply(ev.HostDrained(pair.now, "a"))
    core = pair.core
    data = checkpoint.dump(core)
    assert data["claims"][0]["set_aside"]
    assert data["claims"][0]["victims"]
    assert data["unplaceable"] == ["never"]
    assert data["wakes"]
    assert any(host["shared"] for host in data["hosts"])
    core.validate()
    return core


def test_every_part_of_the_state_survives() -> None:
    """Claims, set-aside GPUs, shared GPUs, holds, rejects to come and timers are all there again."""
    core = rich_core()
    again = restored(core)
    again.validate()
    assert checkpoint.dump(again) == checkpoint.dump(core)
    assert again.cycle(core.now_ms) == core.cycle(core.now_ms)


def test_a_member_left_out_is_missed() -> None:
    """Whatever member of a checkpoint is lost, restoring says so (a planted fault for each)."""
    data = through_json(rich_core())
    policy = rich_core().policy
    for name in data:
        rest = {key: value for key, value in data.items() if key != name}
        with pytest.raises(KeyError, match=name):
            checkpoint.restore(rest, policy)
    for table in ("groups", "users", "hosts", "sessions", "claims"):
        for name in data[table][0]:
            broken = copy.deepcopy(data)
            del broken[table][0][name]
            with pytest.raises(KeyError, match=name):
                checkpoint.restore(broken, policy)


def test_notices_come_in_the_same_order_after_a_restore() -> None:
    """The order in which users first asked is state too: it decides the order of notices when caps move."""
    pair = Pair(Params())
    for user in ("u2", "u1"):
        pair.apply(ev.UserSet(0, user))
    for user in ("u1", "u2"):
        pair.apply(ev.SessionSubmitted(0, f"s-{user}", user))
    pair.cycle()
    for user in ("u1", "u2"):
        pair.apply(ev.UsageSet(0, user, 3.2))  # far below the cap of two users, above that of eighty-two
    for number in range(80):
        pair.apply(ev.UserSet(0, f"x{number}"))
    pair.cycle()
    pair.fork()
    pair.wait(3 * HOUR_MS)
    assert {session.ladder for session in pair.core.sessions.values()} == {Ladder.NOTICE}


def test_two_who_cross_at_one_instant_are_told_in_the_same_order_after_a_restore() -> None:
    """Credit that runs low for two users in the same millisecond: who is told first does not depend on the restore."""
    pair = Pair(FAIR)
    for user in ("u2", "u1"):
        pair.apply(ev.UserSet(0, user))
    for user in ("u1", "u2"):
        pair.apply(ev.SessionSubmitted(0, f"s-{user}", user, fraction_m=500))
        pair.cycle()
    pair.fork()
    pair.wait(3 * HOUR_MS)
    assert {session.ladder for session in pair.core.sessions.values()} == {Ladder.NOTICE}


# -- damage --------------------------------------------------------------------------------------------------------

JUNK = st.sampled_from(
    [None, True, -1, 0, 10**6, 10**400, 0.5, float("nan"), float("inf"), "", "x", "queued", [], [[]], {}, {"x": 1}]
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in nested data, as the keys that lead there."""
    found = [path] if path else []
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        found += places(child, (*path, key))
    return found


RICH_CORE = rich_core()
RICH = through_json(RICH_CORE)
PLACES = places(RICH)


def restored_or_refused(data: Any) -> None:
    try:
        checkpoint.restore(data, RICH_CORE.policy)
    except (KeyError, TypeError, ValueError):
        return


@settings(max_examples=600, deadline=None)
@given(at=st.sampled_from(PLACES), junk=JUNK)
def test_damage_is_refused_by_the_errors_that_readers_expect(at: tuple[Any, ...], junk: Any) -> None:
    """Any one value replaced by any other: restored all the same, or KeyError, TypeError or ValueError."""
    data = copy.deepcopy(RICH)
    holder: Any = data
    for key in at[:-1]:
        holder = holder[key]
    holder[at[-1]] = junk
    restored_or_refused(data)


@pytest.mark.parametrize("data", [None, 5, "x", [], {}, [1], {"now_ms": 0}], ids=repr)
def test_what_is_no_checkpoint_at_all_is_refused(data: Any) -> None:
    """Not even an object, or an empty one."""
    with pytest.raises((KeyError, TypeError, ValueError)):
        checkpoint.restore(data, RICH_CORE.policy)


@pytest.mark.parametrize(
    ("table", "name", "value"),
    [
        (None, "memory", 5),
        (None, "memory", {"no_such": 1}),
        (None, "memory", {"baselines": 5}),
        (None, "now_ms", 10**400),
        ("hosts", "gpus", 0),
        ("hosts", "free", [0, 0, 0, 0, 0, 0]),
        ("hosts", "free", [99]),
        ("sessions", "allocation", {"parts": [["nowhere", [0]]], "fraction_m": 1000, "memory_mib": 0}),
        ("users", "shares", 0),
        ("users", "group", "nowhere"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_a_checkpoint_that_contradicts_itself_is_refused(table: str | None, name: str, value: Any) -> None:
    """Known ways to be damaged, each refused by KeyError, TypeError or ValueError, or harmless to the audit."""
    data = copy.deepcopy(RICH)
    (data if table is None else data[table][0])[name] = value
    try:
        core = checkpoint.restore(data, RICH_CORE.policy)
    except (KeyError, TypeError, ValueError):
        return
    core.validate()
