"""What must hold of every run: random machines, users and events, each rule checked on the record of the run.

Every checker is also shown a run of a scheduler with a fault planted in it, and must report it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import count
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from policies.bounded_wait import Band
from policies.calendar import MAINTENANCE, RESERVATION
from policies.catalogue import make_policy
from policies.decide import FairShare
from policies.group_credit import GroupCredit, GroupCredits
from policies.headroom import Shortage, shortage
from policies.ladder import LoadLadder
from policies.lanes import Cell, Lane
from policies.maintenance import clear_hosts
from policies.model import HOUR_MS, WHOLE_M, Action, Allocation, Decision, Node, Shape, State
from policies.order import FairQueue, FairSnapshot
from policies.params import Params
from policies.placement import Cluster
from policies.reclaim import Reclaim
from policies.rights import Held, Right, Rights
from policies.snapshot import Policy, Snapshot, WaitingQueue
from policies.standing import standing
from policies.usage import NEVER_MS, DecayClock
from policies.wide import Wide, gather
from scheduler import events as ev
from scheduler.core import Core, CoreError, Step
from scheduler.hosts import Hosts
from scheduler.wakes import Wakes
from tests.policies.checkers import (
    CHECKERS,
    check_i1,
    check_i3,
    check_i5,
    check_i9,
    check_i12,
    check_no_wake_missed,
    check_order,
)
from tests.policies.harness import Machine, Record, cycles_of, make_params, replay

EXAMPLES = (300, 500)
"""Random examples of each test on every change, and in CI."""

MANY = (1000, 1000)
QUICK = settings(
    max_examples=EXAMPLES[os.environ.get("CI") == "true"],
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
LONG = settings(QUICK, max_examples=MANY[0])

# -- random runs -----------------------------------------------------------------------------------------------------

PAUSES_S = (0, 0, 0.001, 1, 7, 60, 300, 301, 600, 900, 1800, 2400, 3600, 7200)
LOADS = (None, 0.0, 0.2, 0.9, 1.0)
FRACTIONS_M = (250, 300, 500, 1000)
STALE_S, LOST_S = 900, 3600
MOST = 3000
"""Entries on record of a run that ends; the longest has about 1000."""


class Family(NamedTuple):
    """What a set of random runs is about."""

    baselines: tuple[float | None, ...]
    rotations: tuple[float | None, ...]
    headrooms: tuple[int, ...] = (0, 0, 1, 3)
    fractions: bool = False
    reporting: bool = False
    group_baselines: tuple[float | None, ...] = (None,)
    rights: bool = False
    max_waits_s: tuple[float, ...] = (7200, 1800)
    reserves_s: tuple[float, ...] = (900, 300, 1e9)
    gpus: tuple[int, ...] = (1, 1, 1, 2, 2, 3, 4, 11)


FAMILIES = {
    "credit": Family((0.05, 0.25, 1.0), (None,)),
    "rotation": Family((0.0, 0.0, 0.05), (0.1, 0.5), (0, 0, 1)),
    "shared GPUs": Family((0.0, 0.05, 0.25), (None, None, 0.25), fractions=True),
    "hosts that fall silent": Family((0.0, 0.05, 0.25), (None, 0.25), reporting=True),
    "credit shared by groups": Family((0.05, 0.25, 1.0), (None,), group_baselines=(0.1, 0.4, 0.25)),
    "automatic baselines": Family((None,), (None, 0.5)),
    "rights": Family((0.0, 0.05, 0.25, 1.0), (None, None, 0.25), rights=True),
    "wide sessions": Family(
        (0.05, 1.0, 4.0),
        (None,),
        group_baselines=(None, 1.0, None),
        max_waits_s=(3600, 1200),
        reserves_s=(300, 60, 0),
        gpus=(1, 2, 2, 3, 4, 4, 6, 8),
    ),
}


class Act(NamedTuple):
    """One thing that happens after a pause; `a`, `b`, `c` choose whom and what."""

    pause_s: float
    kind: str
    a: int
    b: int
    c: int


KINDS = (
    *("submit",) * 18,
    *("end",) * 2,
    *("load",) * 2,
    *("usage",) * 3,
    *("cancel", "abandon", "hold", "unhold", "unhold", "save", "acknowledge", "drain", "resume", "resume"),
    *("poll",) * 3,
)


RIGHTS_KINDS = (*KINDS, *("submit",) * 6, *("reserve",) * 8, *("maintain", "cancel entry", "move"))
GUARANTEES = ({"lab": 1.0, "pro": 2.0}, {"lab": 2.0, "pro": 0.0}, {"lab": 0.5, "pro": 4.0}, {"lab": 0.0, "pro": 0.0})
TIERS = ("free", "lab", "pro")
AHEAD_S = (0, 0, 60, 600, 1200, 2400, 3600, 7200)
LONG_S = (300, 1800, 3600, 10_000)


class Scenario(NamedTuple):
    """A machine, its users and what happens to them."""

    params: Params
    hosts: tuple[tuple[str, int], ...]
    shares: tuple[int, ...]
    load: float | None
    fractions: bool
    reporting: bool
    rights: bool
    gpus: tuple[int, ...]
    acts: tuple[Act, ...]


def decode(number: int, kinds: tuple[str, ...] = KINDS) -> Act:
    """An act from one number: drawing one number for each act is what keeps these runs quick."""
    number, pause = divmod(number, len(PAUSES_S))
    number, kind = divmod(number, len(kinds))
    number, a = divmod(number, 16)
    b, c = divmod(number, 16)
    return Act(PAUSES_S[pause], kinds[kind], a, b, c)


ACTS = st.integers(0, len(PAUSES_S) * len(KINDS) * 16**3 - 1).map(decode)
RIGHTS_ACTS = st.integers(0, len(PAUSES_S) * len(RIGHTS_KINDS) * 16**3 - 1).map(lambda n: decode(n, RIGHTS_KINDS))


@st.composite
def scenarios(draw: st.DrawFn, family: Family, most: int = 50) -> Scenario:
    """Random runs of a family."""
    pick = draw(st.tuples(*[st.integers(0, 11)] * 9))
    half_life_h = (24.0, 2.0, 24.0)[pick[0] % 3]
    params = make_params(
        half_life_h=half_life_h,
        baseline=family.baselines[pick[1] % len(family.baselines)],
        rotate_delta=family.rotations[pick[2] % len(family.rotations)],
        headroom=family.headrooms[pick[3] % len(family.headrooms)],
        max_fraction=(1.0, 0.25)[pick[4] % 2],
        warn_s=(0, 300, 60)[pick[5] % 3],
        grace_s=(0, 300, 45)[pick[6] % 3],
        min_run_s=(1800, 600)[pick[7] % 2],
        contention_s=(0, 0, 0, 120)[pick[8] % 4],
        stale_s=STALE_S if family.reporting else 30,
        lost_s=LOST_S if family.reporting else 45,
        group_baseline=family.group_baselines[pick[1] // 3 % len(family.group_baselines)],
        max_wait_s=family.max_waits_s[pick[8] // 4 % len(family.max_waits_s)],
        reserve_after_s=family.reserves_s[pick[7] // 2 % len(family.reserves_s)],
        guaranteed=draw(st.sampled_from(GUARANTEES)) if family.rights else None,
    )
    sizes = draw(st.lists(st.sampled_from((2, 2, 3, 4, 8)), min_size=1, max_size=3))
    return Scenario(
        params,
        tuple((f"host{number}", size) for number, size in enumerate(sizes)),
        tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))),
        LOADS[draw(st.integers(0, len(LOADS) - 1))],
        family.fractions or (family.rights and pick[2] == 1),
        family.reporting,
        family.rights,
        family.gpus,
        tuple(draw(st.lists(RIGHTS_ACTS if family.rights else ACTS, min_size=10, max_size=most))),
    )


class Play:
    """One run of a scenario; `machine` has the record."""

    def __init__(self, scenario: Scenario, machine: Machine | None = None) -> None:
        self.scenario = scenario
        self.machine = machine or Machine(scenario.params, (), load=scenario.load, validate=True, most=MOST)
        self.submitted = 0
        for host, gpus in scenario.hosts:
            self.machine.apply(ev.HostJoined(0, host, gpus, heartbeat=scenario.reporting))
        for number, shares in enumerate(scenario.shares):
            self.machine.apply(ev.GroupSet(0, f"g{number}", shares))

    def run(self) -> Machine:
        """All acts, then a quiet hour."""
        for act in self.scenario.acts:
            self._pause(round(act.pause_s * 1000), act.c)
            self._do(act)
            self.machine.cycle()
        self._pause(HOUR_MS, 0)
        return self.machine

    def _pause(self, pause_ms: int, missing: int) -> None:
        """Time passes; hosts report each 10 min and at the end, but for one that may be silent now."""
        machine, until_ms = self.machine, self.machine.now_ms + pause_ms
        while machine.now_ms < until_ms:
            machine.run_until(min(until_ms, machine.now_ms + 600_000) if self.scenario.reporting else until_ms)
            if self.scenario.reporting:
                for number, (host, _) in enumerate(self.scenario.hosts):
                    if missing != number + 1:
                        machine.apply(ev.HostReported(machine.now_ms, host))
                machine.cycle()

    def _do(self, act: Act) -> None:
        machine, now = self.machine, self.machine.now_ms
        if act.kind == "submit":
            user, group = act.a % 6, act.a % len(self.scenario.shares)
            fraction_m = FRACTIONS_M[act.c % 4] if self.scenario.fractions else 1000
            gpus = 1 if fraction_m < 1000 else self.scenario.gpus[act.b % len(self.scenario.gpus)]
            self.submitted += 1
            tier = self._tier(f"u{user}") if self.scenario.rights else "free"
            machine.submit(f"s{self.submitted}", f"u{user}", gpus, f"g{group}", fraction_m, tier)
        elif act.kind == "usage":
            users = sorted(machine.core.ledger.users)
            if users:
                machine.apply(ev.UsageSet(now, users[act.a % len(users)], (0, 0.1, 1, 8, 8, 30)[act.b % 6]))
        elif act.kind in ("drain", "resume"):
            host = self.scenario.hosts[act.a % len(self.scenario.hosts)][0]
            machine.apply(ev.HostDrained(now, host) if act.kind == "drain" else ev.HostResumed(now, host))
        elif act.kind in ("reserve", "maintain", "cancel entry", "move"):
            self._agree(act, now)
        elif act.kind != "poll":
            self._to_session(act, now)

    def _agree(self, act: Act, now: int) -> None:
        """Something changes in the calendar, or a user goes to another tier; what conflicts is refused."""
        begin = now + AHEAD_S[act.a % 8] * 1000
        entry, until = f"e{len(self.machine.record.entries)}", begin + LONG_S[act.b % 4] * 1000
        agreed, events = sorted(self.machine.core.view.calendar.entries), []
        if act.kind == "reserve":
            group, gpus_m = f"g{act.a % len(self.scenario.shares)}", (1000, 1000, 2000, 3000, 500)[act.c % 5]
            events.append(ev.CalendarEntryAdded(now, entry, RESERVATION, begin, until, gpus_m, group))
        elif act.kind == "maintain":
            host = ("", *(name for name, _ in self.scenario.hosts))[act.c % (1 + len(self.scenario.hosts))]
            drain_ms = (0, 600_000, 3_600_000)[act.b % 3]
            events.append(ev.CalendarEntryAdded(now, entry, MAINTENANCE, begin, until, hosts=host, drain_ms=drain_ms))
        elif act.kind == "cancel entry" and agreed:
            events.append(ev.CalendarEntryRemoved(now, agreed[act.a % len(agreed)]))
        elif act.kind == "move" and f"u{act.a % 6}" in self.machine.core.ledger.users:
            user = self.machine.core.ledger.users[f"u{act.a % 6}"]
            events.append(ev.UserSet(now, user.name, user.group.name, TIERS[act.b % 3]))
        with suppress(CoreError):
            self.machine.apply(*events)

    def _tier(self, user: str) -> str:
        """The tier that a user has, or the one that it begins with."""
        known = self.machine.core.ledger.users.get(user)
        return TIERS[int(user[1:]) % 3] if known is None else known.tier

    def _to_session(self, act: Act, now: int) -> None:
        states, make = SESSION_ACTS[act.kind]
        found = [sid for sid, session in self.machine.core.sessions.items() if session.state in states]
        if found:
            self.machine.apply(make(now, found[act.a % len(found)], LOADS[act.b % len(LOADS)]))


HELD = (State.RUNNING, State.STARTING, State.STOPPING)
SESSION_ACTS: dict[str, tuple[tuple[State, ...], Callable[[int, str, float | None], ev.Event]]] = {
    "end": (HELD, lambda now, sid, _: ev.SessionEnded(now, sid)),
    "load": (HELD, ev.LoadReported),
    "cancel": ((State.RUNNING, State.STARTING, State.QUEUED), lambda now, sid, _: ev.SessionCancelled(now, sid)),
    "abandon": ((State.QUEUED,), lambda now, sid, _: ev.SessionAbandoned(now, sid)),
    "hold": ((State.QUEUED,), lambda now, sid, _: ev.SessionHeld(now, sid)),
    "unhold": ((State.HELD,), lambda now, sid, _: ev.SessionUnheld(now, sid)),
    "save": (HELD, lambda now, sid, _: ev.SessionSaved(now, sid)),
    "acknowledge": (HELD, lambda now, sid, _: ev.SessionSaved(now, sid, acknowledged=True)),
}


def findings(scenario: Scenario) -> dict[str, list[str]]:
    """What the checkers have to say about one run, and about its replay."""
    record = Play(scenario).run().record
    found = {name: check(record) for name, check in CHECKERS.items()}
    found["I12"] = check_i12(record, replay(record))
    if scenario.rights:
        found["restored"] = check_i12(record, replay(record, restore_every=1 + len(scenario.acts) % 9))
    return {name: what for name, what in found.items() if what}


def check_all(family: str, limits: settings) -> None:
    @settings(limits)
    @given(scenarios(FAMILIES[family]))
    def runs(scenario: Scenario) -> None:
        assert findings(scenario) == {}

    runs()


@pytest.mark.shows(*CHECKERS, "I12", examples=EXAMPLES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_rule_holds_in_random_runs(family: str) -> None:
    """Random runs of each family pass every checker, and the core's own check after every event."""
    check_all(family, QUICK)


@pytest.mark.slow
@pytest.mark.shows(*CHECKERS, "I12", examples=MANY)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_rule_holds_in_many_random_runs(family: str) -> None:
    """The same with 1,000 runs."""
    check_all(family, LONG)


# -- rules about more than one run -----------------------------------------------------------------------------------

USAGES = st.lists(st.sampled_from((0.0, 0.1, 0.1, 0.5, 1.0, 2.5, 7.0, 7.000001, 20.0)), min_size=2, max_size=8)


def closed(gpus: int, baseline: float) -> Machine:
    """A machine on which nothing starts yet, because its only host is drained."""
    machine = Machine(make_params(baseline=baseline), [("host", gpus)])
    machine.apply(ev.HostDrained(0, "host"))
    return machine


def order_after(machine: Machine) -> list[str]:
    """The order in which everybody starts once the host is back."""
    machine.apply(ev.HostResumed(machine.now_ms, "host"))
    machine.cycle()
    return [session for _, session in machine.starts]


def order_at(usages: Sequence[float], baseline: float, wait_h: float, *, one_group: bool) -> list[str]:
    """The order in which users with these usages start `wait_h` after they asked."""
    machine = closed(8, baseline)
    for number, usage in enumerate(usages):
        machine.submit(f"s{number}", f"u{number}", 1, "all" if one_group else f"g{number}")
        machine.set_usage(**{f"u{number}": usage})
    machine.cycle()
    machine.run_h(wait_h)
    return order_after(machine)


def orders_over_time(usages: Sequence[float], baseline: float, *, one_group: bool) -> list[list[str]]:
    """The order at once, after a day, after five days."""
    return [order_at(usages, baseline, wait_h, one_group=one_group) for wait_h in (0, 24, 120)]


@pytest.mark.shows("I1", examples=EXAMPLES)
@settings(QUICK)
@given(USAGES, st.sampled_from((0.0, 0.05, 0.25)), st.booleans())
def test_i1_order_does_not_change_while_time_passes(usages: list[float], baseline: float, one_group: bool) -> None:
    """I1: users with nothing running start in the same order today, tomorrow and in five days; ties by submit time."""
    orders = orders_over_time(usages, baseline, one_group=one_group)
    assert check_i1(orders) == []
    expected = sorted(range(len(usages)), key=lambda number: (usages[number], number))
    assert orders[0] == [f"s{number}" for number in expected]


class Crowd(NamedTuple):
    """Users who wait: (group, usage, GPUs) each, shares of the groups, baseline."""

    users: list[tuple[int, float, int]]
    shares: list[int]
    baseline: float


CROWDS = st.builds(
    Crowd,
    st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from((0.0, 0.2, 0.5, 1.0, 3.0, 9.0)), st.integers(1, 4)),
        min_size=2,
        max_size=8,
    ),
    st.lists(st.integers(1, 4), min_size=3, max_size=3),
    st.sampled_from((0.0, 0.05, 0.25)),
)


def order_of(crowd: Crowd) -> list[str]:
    """The order in which a crowd starts on a machine with room for all."""
    machine = closed(32, crowd.baseline)
    for number, shares in enumerate(crowd.shares):
        machine.apply(ev.GroupSet(0, f"g{number}", shares))
    for number, (group, usage, gpus) in enumerate(crowd.users):
        machine.submit(f"s{number}", f"u{number}", gpus, f"g{group}")
        machine.set_usage(**{f"u{number}": usage})
    return order_after(machine)


def with_more(crowd: Crowd, index: int, more: float) -> Crowd:
    """The same crowd, one of whose users has used more."""
    users = list(crowd.users)
    group, usage, gpus = users[index]
    users[index] = group, usage + more, gpus
    return crowd._replace(users=users)


@pytest.mark.shows("I3", examples=EXAMPLES)
@settings(QUICK)
@given(CROWDS, st.integers(0, 7), st.sampled_from((0.01, 0.3, 2.0, 15.0)))
def test_i3_more_use_never_improves_a_place(crowd: Crowd, index: int, more: float) -> None:
    """I3: had one user used more, its session would start no earlier among those of others, in groups of any shares."""
    index %= len(crowd.users)
    assert check_i3(order_of(crowd), order_of(with_more(crowd, index, more)), f"s{index}") == []


class Turns(NamedTuple):
    """Fresh users for few GPUs, by rotation."""

    gpus: int
    waiters: int
    params: Params


TURNS = st.builds(
    lambda gpus, waiters, delta, warn, grace, min_run: Turns(
        gpus,
        waiters,
        make_params(rotate_delta=delta, warn_s=warn, grace_s=grace, min_run_s=min_run),
    ),
    st.integers(1, 4),
    st.integers(1, 10),
    st.sampled_from((0.05, 0.25, 0.5, 1.0)),
    st.sampled_from((0, 60, 300, 1200)),
    st.sampled_from((0, 45, 300)),
    st.sampled_from((600, 1800)),
)


def take_turns(turns: Turns) -> Record:
    """Everybody asks at once, nobody comes back."""
    machine = Machine(turns.params, [("host", turns.gpus)])
    for number in range(turns.gpus + turns.waiters):
        machine.submit(f"s{number:02}", f"u{number:02}")
    machine.cycle()
    machine.run_h(2.0 * (turns.waiters // turns.gpus + 1))
    return machine.record


@pytest.mark.shows("I9", examples=EXAMPLES)
@settings(QUICK)
@given(TURNS)
def test_i9_waits_by_rotation_are_bounded(turns: Turns) -> None:
    """I9: the j-th of several fresh waiters waits at most ceil(j / G) x (max(min_run, t_delta + warn) + grace)."""
    assert check_i9(take_turns(turns), turns.gpus) == []


@pytest.mark.shows("I14")
def test_i14_a_policy_cannot_ask_to_be_called_now() -> None:
    """I14: asking for a call at the present instant is refused, one millisecond later is accepted."""
    view = Core(FairShare(make_params())).view
    with pytest.raises(ValueError, match="not later than now"):
        view.wake(0)
    view.wake(1)


# -- small machines on which a rule is easily broken ---------------------------------------------------------------


def test_what_a_user_starts_counts_for_its_next_session_in_the_same_cycle() -> None:
    """Order: b1 (standing .5), then b2 (1.0) start before ann's session of 3 (1.5), which then no longer fits."""
    machine = Machine(make_params(baseline=0.25), [("host", 4)])
    machine.submit("a", "ann", 3)
    machine.submit("b1", "bob")
    machine.submit("b2", "bob")
    machine.cycle()
    assert [session for _, session in machine.starts] == ["b1", "b2"]


def giving_way(hosts: Sequence[tuple[str, int]], asked: int) -> Machine:
    """Ann's two GPUs are in grace (5 min) for will, who asks for some, since a minute."""
    machine = Machine(make_params(baseline=0.25, grace_s=300, min_run_s=600), hosts)
    machine.submit("a", "ann", 2)
    machine.submit("b", "bob", 2)
    machine.cycle()
    machine.run_h(0.5)
    machine.set_usage(ann=20)
    if asked > 2:
        machine.end("b")
    machine.submit("w", "will", asked)
    machine.cycle()
    assert "ladder.grace" in [decision.reason.rule for decision in machine.record.decisions]
    machine.tick(60)
    return machine


@pytest.mark.shows("I5")
def test_i5_nobody_is_evicted_for_a_waiter_whose_room_was_taken_meanwhile() -> None:
    """I5: 2 of the 4 GPUs that will asks for were free; if cid gets them during ann's grace, ann's eviction is vain."""
    machine = giving_way([("host", 4)], 4)
    machine.submit("c", "cid", 2)
    machine.cycle()
    machine.run_h(1)
    assert check_i5(machine.record) == []


@pytest.mark.shows("I5")
def test_i5_nobody_is_evicted_from_a_host_that_was_drained_meanwhile() -> None:
    """I5: ann's host is drained during her grace, so her eviction makes no room for will."""
    machine = giving_way([("host1", 2), ("host2", 2)], 2)
    machine.apply(ev.HostDrained(machine.now_ms, "host1"))
    machine.cycle()
    machine.run_h(1)
    assert check_i5(machine.record) == []


@pytest.mark.parametrize("seconds", [True, False])
def test_a_nominated_waiter_out_of_credit_leaves_the_headroom_alone(*, seconds: bool) -> None:
    """Order: bob, out of credit, must not start on the one GPU kept free while ann is still in grace for him."""
    machine = Machine(make_params(rotate_delta=0.5, grace_s=300, min_run_s=600, headroom=1), [("host", 2)])
    machine.submit("a", "ann")
    machine.submit("b", "bob")
    machine.cycle()
    if seconds:
        machine.tick(3600)
    else:
        machine.run_h(1)
    assert [session for _, session in machine.starts] == ["a", "b"]
    assert check_order(machine.record) == []
    assert check_i5(machine.record) == []


def test_a_warned_session_on_a_shared_gpu_is_throttled_in_time() -> None:
    """No wake missed: after a rotation's warning (warn 0) the first throttle step is due, and the core asks for it."""
    machine = Machine(make_params(rotate_delta=0.5, min_run_s=600), [("host", 1)])
    machine.submit("a1", "ann", fraction_m=500)
    machine.submit("a2", "ann", fraction_m=500)
    machine.cycle()
    machine.submit("b", "bob", fraction_m=500)
    machine.cycle()
    machine.run_h(4)
    assert check_no_wake_missed(machine.record) == []
    first = {decision.action: decision.at_ms for decision in reversed(machine.record.decisions)}
    assert Action.THROTTLE in first, "warned, and never throttled"
    assert first[Action.THROTTLE] - first[Action.WARN] <= 1000


def test_automatic_baselines_move_each_hour_although_nobody_was_there_at_first() -> None:
    """No wake missed: the first cycle sees nobody, users come a minute later, the core asks for the full hour."""
    machine = Machine(make_params(baseline=None), [("host", 2)])
    machine.cycle()
    machine.now_ms = 60_000
    for user in ("ann", "bob", "cid", "dan", "eve"):
        machine.submit(f"s-{user}", user)
    machine.cycle()
    machine.run_h(2)
    assert HOUR_MS in [cycle.at_ms for cycle in cycles_of(machine.record.entries)]
    assert machine.core.view.memory.baselines == {"free": pytest.approx(0.4)}


def test_a_user_who_stands_at_a_level_exactly_is_looked_at_again() -> None:
    """No wake missed: at the very ms at which usage equals the notice level the next crossing is armed all the same."""
    machine = Machine(make_params(half_life_h=2, baseline=1.0, min_run_s=600), [("host", 2)])
    machine.now_ms = 600_000
    machine.submit("s1", "ann")
    machine.cycle()
    machine.apply(ev.HostDrained(machine.now_ms, "host"))
    machine.submit("s2", "ann")
    machine.cycle()
    machine.run_until(15_000_000)
    ann = machine.core.ledger.users["ann"]
    assert isinstance(machine.core.queue, FairQueue)
    assert machine.usage("ann") == machine.core.queue.notice_levels(ann)[0]
    machine.run_until(15_000_001)
    assert machine.deadline_ms == 23_018_848  # out of credit with what waits


# -- planted faults --------------------------------------------------------------------------------------------------

Plant = Callable[[pytest.MonkeyPatch], None]


def believing(**changes: dict[str, float]) -> Plant:
    """A fault: the policy goes by other parameters than those on record; {table: {field: value}}."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        def broken(params: Params) -> Policy:
            tables = {name: replace(getattr(params, name), **fields) for name, fields in changes.items()}
            return make_policy(replace(params, **tables))  # type: ignore[arg-type]

        patch.setattr("tests.policies.harness.make_policy", broken)

    return plant


def method(owner: type, name: str, broken: Callable[..., Any]) -> Plant:
    """A fault: a method or property answers something else; `broken` is given the real one first."""
    real = owner.__dict__[name]

    def plant(patch: pytest.MonkeyPatch) -> None:
        if isinstance(real, property):
            patch.setattr(owner, name, property(lambda self: broken(real.fget, self)))
        else:
            patch.setattr(owner, name, lambda *args, **names: broken(real, *args, **names))

    return plant


def function(target: str, broken: object) -> Plant:
    """A fault: a function or constant of a module is another one."""
    return lambda patch: patch.setattr(target, broken)


def both(*plants: Plant) -> Plant:
    """Several at once."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        for one in plants:
            one(patch)

    return plant


def nothing(*_: object, **__: object) -> None:
    """Does nothing."""


def always_the_first_gpu(real: Callable[..., Allocation | None], cluster: Cluster, shape: Shape) -> Allocation | None:
    found = real(cluster, shape)
    return found and found._replace(parts=tuple((host, tuple(range(len(gpus)))) for host, gpus in found.parts))


def without_own_charge(node: Node, clock: DecayClock, extra_n: int = 0) -> float:
    return standing(node, clock)


def due_now(real: Callable[[Core, int], Step], core: Core, now_ms: int) -> Step:
    return real(core, now_ms)._replace(next_deadline_ms=now_ms)


def forget(_: object, __: Wakes, instants: set[int]) -> None:
    instants.clear()


def youngest(real: Callable[[Band], Iterator[Cell]], band: Band) -> Iterator[Cell]:
    return iter(list(real(band))[::-1])


def headroom_too(
    _: object, __: FairShare, view: FairSnapshot, in_credit: list[Lane], others: list[Lane]
) -> Cell | None:
    band = view.queue.band
    return None if view.memory.since_band else band.first([*in_credit, *others])


def as_of_now(_: object, known: GroupCredits, credit: GroupCredit, committed_n: int) -> bool:
    return credit.covers(known._clock, committed_n)


def at_no_time(*_: object) -> int:
    return NEVER_MS


def always(*_: object) -> bool:
    return True


def no_amount(*_: object) -> int:
    return 0


def none_at_all(*_: object) -> Iterator[Decision]:
    return iter(())


def for_everybody(_: object, wide: Wide, view: FairSnapshot) -> Iterator[Decision]:
    made = -1
    while len(view.claims) > made and (cell := wide._first(view)) is not None:
        made = len(view.claims)
        yield from wide._gather(view, cell.head(), ())


def all_there_is(cluster: Cluster, *_: object) -> tuple[Allocation, ...]:
    hosts = [(name, host) for name, host in cluster.hosts.items() if host.available and host.free]
    return tuple(Allocation(((name, tuple(host.free[::-1])),), WHOLE_M, 0) for name, host in hosts)


def two_more(real: Callable[[Shortage], int], short: Shortage) -> int:
    return real(short) + 2000


def one_more(real: Callable[[Rights, Held], int], rights: Rights, own: Held) -> int:
    return real(rights, own) + 1000


def twice(real: Callable[[Right], int], right: Right) -> int:
    return 2 * real(right) + right.left_m


def with_more_reserved(view: FairSnapshot, params: Params) -> Shortage:
    short = shortage(view, params)
    return short._replace(reserved_m=short.reserved_m + 2000 * bool(short.reserved_m))


def end_everybody(view: FairSnapshot) -> Iterator[Decision]:
    for decision in clear_hosts(view):
        reason = decision.reason._replace(rule="maintenance.end")
        yield decision._replace(action=Action.EVICT, reason=reason)


NO_WARNING, NO_GRACE, NO_MIN_RUN, GREEDY = (
    believing(ladder={field: value})
    for field, value in (("warn_ms", 0), ("grace_ms", 0), ("min_run_ms", 0), ("rotate_delta_gpu_h", 0.001))
)
ALL_HEAVY = believing(ladder={"heavy_load": 0.0, "heavy_known_fraction": 0.0, "patience_ms": 0})
TOO_FEW = both(
    function("policies.ladder.room_for", lambda _, ready, *__: ready[:1] or None),
    method(LoadLadder, "_claim_stands", lambda *_: True),  # which would find it out when grace ends
)
ONE_GPU_TWICE = both(
    method(Cluster, "place", always_the_first_gpu),
    method(Cluster, "take", nothing),
    method(Cluster, "release", nothing),
)
SEVERAL = both(
    method(Wide, "begin", for_everybody),
    function("policies.wide.gather", lambda cluster, shape, aside, most: gather(cluster, shape, aside, min(most, 1))),
)

NOT_COOL = method(FairQueue, "cool_down", nothing)
UNPROTECTED = both(
    method(Rights, "spare", lambda _real, _self, sessions, *_, **__: sessions),
    method(Rights, "unprotected", lambda _real, _self, queue: queue.over),
)
TOO_MUCH_RESERVED = both(
    function("policies.reclaim.shortage", with_more_reserved),
    function("policies.ladder.still_due", lambda *_: True),
)

FAULTS: tuple[tuple[str, str, str, Plant], ...] = (
    ("I2", "an idle GPU costs more than it should", "credit", believing(usage={"idle_charge": 0.6})),
    ("I5", "too few give way", "credit", TOO_FEW),
    ("I5", "too many refill the headroom", "credit", method(Shortage, "headroom_deficit_m", two_more)),
    ("I6", "the warning is cut short", "credit", NO_WARNING),
    ("I6", "grace is cut short", "rotation", NO_GRACE),
    ("I6", "the minimum run is cut short", "credit", NO_MIN_RUN),
    (
        "I7",
        "evictions without a minimum run",
        "rotation",
        believing(ladder={"min_run_ms": 0, "rotate_delta_gpu_h": 0.001, "warn_ms": 0, "grace_ms": 0}),
    ),
    ("I7", "no cooldown", "rotation", both(GREEDY, method(FairQueue, "cool_down", nothing))),
    ("I8", "more is kept free than it should be", "credit", believing(headroom={"fixed_gpus": 5, "max_fraction": 1})),
    ("I11", "silence is not noticed", "hosts that fall silent", method(Snapshot, "fresh", lambda *_: True)),
    ("I11", "everybody counts as heavy", "credit", ALL_HEAVY),
    ("I14", "a call for now", "credit", method(Core, "cycle", due_now)),
    ("order", "a session's own charge is left out", "credit", function("policies.order.standing", without_own_charge)),
    ("order", "committed charge counts for nothing", "credit", NO_MIN_RUN),
    ("order", "the headroom is spent on anybody", "credit", believing(headroom={"fixed_gpus": 0})),
    ("who gives way", "a small gap in standing will do", "rotation", GREEDY),
    ("who gives way", "cooldown is ignored", "rotation", method(FairQueue, "cooling", lambda *_: False)),
    ("band", "every start is the band's", "credit", function("policies.decide.EVERY", 1)),
    (
        "order",
        "one user has several turns of the band",
        "credit",
        function("policies.bounded_wait.has_turn", lambda _: False),
    ),
    ("order", "the band spends headroom", "credit", method(FairShare, "_by_band", headroom_too)),
    ("order", "the credit of the group is ignored", "credit shared by groups", method(GroupCredits, "of", nothing)),
    (
        "order",
        "the credit of the group is noticed late",
        "credit shared by groups",
        both(
            method(GroupCredits, "advance", nothing),
            method(GroupCredits, "covers", as_of_now),
            method(GroupCredits, "next_ms", at_no_time),
        ),
    ),
    ("no wake missed", "no timer for groups", "credit shared by groups", method(GroupCredits, "next_ms", at_no_time)),
    ("reservations", "nothing is kept for wide sessions", "wide sessions", method(Wide, "begin", none_at_all)),
    ("reservations", "a reservation is never given up", "wide sessions", method(Wide, "_entitled", always)),
    ("reservations", "GPUs are kept on closed hosts", "wide sessions", function("policies.wide._open", always)),
    ("reservations", "several have reservations", "wide sessions", SEVERAL),
    ("reservations", "what is kept is the headroom", "wide sessions", function("policies.wide.keep_m", no_amount)),
    ("reservations", "all that is free is kept", "wide sessions", function("policies.wide.gather", all_there_is)),
    ("order", "nobody has to wait for the band", "credit", believing(order={"max_wait_ms": 0})),
    ("order", "the youngest of the band starts", "credit", method(Band, "oldest", youngest)),
    ("contention", "more headroom than was asked for", "credit", believing(headroom={"fixed_gpus": 9})),
    ("no wake missed", "wake-ups are forgotten", "credit", method(Wakes, "add", forget)),
    ("no GPU double-booked", "always the first GPU", "credit", ONE_GPU_TWICE),
    ("I5", "what is reserved takes more than is missing", "rights", TOO_MUCH_RESERVED),
    ("I5", "maintenance before its time", "rights", function("policies.decide.clear_hosts", end_everybody)),
    ("I6", "a reclaim does not wait for its warnings", "rights", method(Reclaim, "_ready", lambda *_: True)),
    ("I7", "who is within a right is taken in circles", "rights", both(GREEDY, NOT_COOL, UNPROTECTED)),
    ("I8", "more is kept than is reserved", "rights", method(Rights, "kept_m", one_more)),
    ("I11", "maintenance closes no host", "rights", method(Hosts, "follow_calendar", nothing)),
    ("order", "rights put nobody first", "rights", method(Rights, "first", lambda *_: None)),
    ("order", "what is reserved is not kept", "rights", method(Rights, "kept_m", lambda *_: 0)),
    ("who gives way", "rights do not protect", "rights", UNPROTECTED),
    ("who gives way", "reclaim beyond the right", "rights", method(Right, "covers", lambda *_: False)),
    ("who gives way", "cooldown is ignored by reclaim", "rights", method(FairQueue, "cooling", lambda *_: False)),
    ("contention", "what is reserved counts long before", "rights", method(Right, "missing_m", twice)),
    ("no wake missed", "reservations wake nobody", "rights", method(Rights, "next_ms", lambda *_: NEVER_MS)),
    ("conservation", "GPUs are not given back", "credit", method(Cluster, "release", nothing)),
)


class Reported(Exception):
    """A checker has noticed a planted fault; ends the search."""


def record_of(scenario: Scenario) -> Record:
    """The record of a run, or of its part before a fault broke it off."""
    machine = Machine(scenario.params, (), load=scenario.load, most=MOST)
    with suppress(Exception):
        Play(scenario, machine).run()
    return machine.record


@pytest.mark.parametrize(("rule", "fault", "family", "plant"), FAULTS, ids=[f"{f[0]}: {f[1]}" for f in FAULTS])
def test_a_planted_fault_is_reported(
    rule: str, fault: str, family: str, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each checker reports a scheduler that breaks its rule, in a run where it has nothing to say of the real one."""
    check = CHECKERS[rule]

    @settings(QUICK, max_examples=8000, phases=[Phase.generate])
    @given(scenarios(FAMILIES[family]))
    def runs(scenario: Scenario) -> None:
        with monkeypatch.context() as patch:
            plant(patch)
            found = check(record_of(scenario))
        if found and check(record_of(scenario)) == []:
            raise Reported

    with pytest.raises(Reported):
        runs()


def test_every_checker_of_random_runs_is_shown_to_fail() -> None:
    """No checker of a run is without a planted fault."""
    assert {rule for rule, *_ in FAULTS} == set(CHECKERS)


@pytest.mark.plants("I1", "usage that fades by a fixed amount an hour")
def test_i1_reports_an_order_that_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    """I1: usage that fades by a fixed amount an hour is reported."""

    def fading(node: Node, clock: DecayClock, extra_n: int = 0) -> float:
        return standing(node, clock, extra_n) * (1 if node.name in ("u0", "g0") else 2.0 ** (-clock.now_ms / HOUR_MS))

    monkeypatch.setattr("policies.order.standing", fading)
    assert check_i1(orders_over_time([0.5, 1.0, 0.1], 0.0, one_group=False)) != []


@pytest.mark.plants("I3", "more use goes first")
def test_i3_reports_an_order_that_rewards_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """I3: an order in which more use goes first is reported."""
    monkeypatch.setattr("policies.order.standing", lambda node, clock, extra_n=0: -standing(node, clock, extra_n))
    crowd = Crowd([(0, 1.0, 1), (0, 2.0, 1)], [1, 1, 1], 0.0)
    orders = [order_of(crowd), order_of(with_more(crowd, 0, 9.0))]
    assert check_i3(*orders, "s0") + check_i3(*reversed(orders), "s0") != []


@pytest.mark.parametrize(
    ("rule", "fault", "plant"),
    [
        ("I9", "a rotation that never comes", believing(ladder={"rotate_delta_gpu_h": 20.0})),
        ("I9", "a rotation that comes a minute late", believing(ladder={"min_run_ms": 1_860_000})),
    ],
)
def test_i9_reports_waits_that_are_too_long(
    rule: str, fault: str, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I9: a rotation that never comes, and one that comes a minute late, are reported."""
    plant(monkeypatch)
    assert check_i9(take_turns(Turns(2, 5, make_params(rotate_delta=0.25, grace_s=45))), 2) != []


class Forgetful:
    """A policy that depends on something outside the core: how many decisions were ever made."""

    made = count()

    def __init__(self, params: Params) -> None:
        self.params = params
        self.tracked = False
        self._real = FairShare(params)

    def make_queue(self, clock: DecayClock) -> FairQueue:
        """The real one."""
        return self._real.make_queue(clock)

    def decide(self, view: Snapshot[WaitingQueue]) -> Iterator[Decision]:
        """The real decisions, each with a number that no replay will see again."""
        for decision in self._real.decide(view):
            yield decision._replace(reason=decision.reason._replace(value=float(next(self.made))))


@pytest.mark.plants("I12", "a policy with a memory of its own")
@pytest.mark.plants("I12", "a decision on record is changed")
def test_i12_reports_a_replay_that_differs() -> None:
    """I12: a policy with a memory of its own is reported, and so is a record with a decision changed."""
    params = make_params()
    policy: Policy = Forgetful(params)
    machine = Machine(params, policy=policy)
    machine.submit("s", "ann")
    machine.cycle()
    assert check_i12(machine.record, replay(machine.record, Forgetful(params))) != []
    honest = Machine(params)
    honest.submit("s", "ann")
    honest.cycle()
    assert check_i12(honest.record, replay(honest.record)) == []
    again = replay(honest.record)
    again[0] = again[0]._replace(decisions=())
    assert check_i12(honest.record, again) != []
