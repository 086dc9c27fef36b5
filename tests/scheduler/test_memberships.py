"""Tiers that end by themselves, at their instant, over restarts; and the calendar with restarts at any moment."""

from __future__ import annotations

import contextlib
import json
import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policies.catalogue import make_policy
from policies.model import State
from policies.params import HeadroomParams, Params, TierParams
from scheduler import checkpoint
from scheduler import core as core_module
from scheduler import events as ev
from scheduler.core import Core
from scheduler.errors import CoreError
from scheduler.journal import begin, cycle_line, event_line, head_line, read_event
from scheduler.memberships import Membership, Memberships
from tests.scheduler.test_checkpoint import FAIR, Pair, restored

MINUTE_MS, HOUR_MS = 60_000, 3_600_000
LIMITED = Params(
    tiers={
        "free": TierParams(baseline_gpus=0.3, gpus_per_user=1),
        "pro": TierParams(baseline_gpus=0.6, gpus_per_user=3),
    },
    headroom=HeadroomParams(fixed_gpus=1),
)
TIERS = ("free", "pro", "lab")
OPS = ("submit", "submit", "submit", "end", "load", "usage", "wait", "tier", "tier", "reserve", "maintain", "remove")
OP = st.tuples(st.sampled_from(OPS), st.integers(0, 40), st.integers(0, 40))


# -- examples --------------------------------------------------------------------------------------------------------


def running(core: Core) -> list[str]:
    return sorted(sid for sid, session in core.sessions.items() if session.allocation is not None)


def test_a_tier_ends_at_its_instant_and_not_a_millisecond_before() -> None:
    """Two sessions of ann wait for a third GPU of her limit; from the end on her tier's limit is 1."""
    core = Core(make_policy(LIMITED))
    core.apply(ev.HostJoined(0, "h", 8))
    core.apply(ev.UserSet(0, "ann", tier="pro", until_ms=HOUR_MS, then_tier="free"))
    assert core.cycle(0).next_deadline_ms is not None
    for number in range(4):
        core.apply(ev.SessionSubmitted(0, f"s{number}", "ann"))
    core.cycle(0)
    assert len(running(core)) == 3
    core.apply(ev.SessionEnded(HOUR_MS - 1, "s0"))
    assert [d.session for d in core.cycle(HOUR_MS - 1).decisions] == ["s3"]
    assert core.next_deadline_ms() == HOUR_MS
    core.apply(ev.SessionSubmitted(HOUR_MS, "late", "ann"))
    core.apply(ev.SessionEnded(HOUR_MS, "s1"))
    assert core.cycle(HOUR_MS).decisions == []
    assert (core.ledger.users["ann"].tier, core.lapsed) == ("free", ("ann",))
    assert core.sessions["late"].state is State.QUEUED
    assert core.cycle(HOUR_MS + 1).decisions == []
    assert core.lapsed == ()
    core.validate()


def test_setting_a_tier_anew_ends_or_moves_the_end() -> None:
    """Without an end the tier stays; with another one it ends then."""
    core = Core(make_policy(LIMITED))
    core.apply(ev.UserSet(0, "ann", tier="pro", until_ms=10, then_tier="free"))
    core.apply(ev.UserSet(1, "ann", tier="pro"))
    core.cycle(10)
    assert core.ledger.users["ann"].tier == "pro"
    core.apply(ev.UserSet(11, "ann", tier="pro", until_ms=30, then_tier="lab"))
    core.apply(ev.UserSet(12, "bob", tier="pro", until_ms=20, then_tier="free"))
    core.cycle(20)
    assert {name: user.tier for name, user in core.ledger.users.items()} == {"ann": "pro", "bob": "free"}
    core.cycle(500)
    assert core.ledger.users["ann"].tier == "lab"


@pytest.mark.parametrize("until_ms", [0, 5, 10**15 + 1])
def test_an_end_that_makes_no_sense_changes_nothing(until_ms: int) -> None:
    core = Core(make_policy(LIMITED))
    core.cycle(5)
    before = checkpoint.dump(core)
    with pytest.raises(CoreError, match="cannot be of tier pro until"):
        core.apply(ev.UserSet(5, "ann", tier="pro", until_ms=until_ms, then_tier="free"))
    with pytest.raises(CoreError, match="then of ''"):
        core.apply(ev.UserSet(5, "ann", tier="pro", until_ms=50))
    assert checkpoint.dump(core) == before


def test_a_journal_from_before_there_were_such_tiers_is_read() -> None:
    """Neither the event nor the checkpoint has the new members; without such tiers a checkpoint is as it was."""
    old = '{"event":"UserSet","at_ms":0,"user":"ann","group":"default","tier":"pro","shares":1.0}'
    event = read_event(json.loads(old))
    assert event == ev.UserSet(0, "ann", "default", "pro", 1.0)
    core = Core(make_policy(LIMITED))
    core.apply(event)
    head = json.loads(head_line(core))
    assert "memberships" not in head["checkpoint"]
    assert begin(head, None).ledger.users["ann"].tier == "pro"


# -- as if an operator had set it -------------------------------------------------------------------------------------


class ByHand(Pair):
    """Two cores: to the first a tier is given with its end, to the second it is set back by hand at that instant."""

    def __init__(self) -> None:
        super().__init__(LIMITED)
        other = Core(make_policy(LIMITED), shared_limit=3)
        for event in (
            ev.HostJoined(0, "a", 2, "A100", 16_000),
            ev.HostJoined(0, "b", 4, "T4", 16_000, heartbeat=True),
            ev.GroupSet(0, "lab", 3.0),
            ev.GroupSet(0, "vision", 2.0, "lab"),
        ):
            other.apply(event)
        self.cores = [self.core, other]
        self.ends: dict[str, Membership] = {}

    def set_tier(self, name: str, tier: str, then: str, until_ms: int) -> None:
        if name not in self.core.ledger.users:
            return
        group = self.core.ledger.users[name].group.name
        self.cores[0].apply(ev.UserSet(self.now, name, group, tier, until_ms=until_ms, then_tier=then))
        self.cores[1].apply(ev.UserSet(self.now, name, group, tier))
        self.ends[name] = Membership(until_ms, then)

    def cycle(self) -> None:
        """First what the operator would do."""
        for name, ends in sorted(self.ends.items(), key=lambda item: (item[1].until_ms, item[0])):
            if ends.until_ms <= self.now:
                user = self.cores[1].ledger.users[name]
                self.cores[1].apply(ev.UserSet(self.now, name, user.group.name, ends.then_tier))
                del self.ends[name]
        steps = [core.cycle(self.now) for core in self.cores]
        again = bool(steps[0].decisions)
        self.check()
        assert cycle_line(steps[0], self.now) == cycle_line(steps[1], self.now)
        for decision in steps[0].decisions:
            if decision.action == "start":
                self.apply(ev.SessionStarted(self.now, decision.session))
                self.apply(ev.LoadReported(self.now, decision.session, 1.0))
            elif decision.action == "evict":
                self.apply(ev.SessionEnded(self.now, decision.session, "evicted"))
        self.deadline = steps[0].next_deadline_ms
        if again:
            self.cycle()

    def check(self) -> None:
        """The same state, but for the number of events and the ends to come."""
        dumps = [checkpoint.dump(core) for core in self.cores]
        for dump in dumps:
            dump.pop("memberships", None)
            del dump["revision"]
        assert dumps[0] == dumps[1]


def play(pair: Pair, kind: str, x: int, y: int) -> None:
    """One act on both cores."""
    now = pair.now
    if kind == "tier" and isinstance(pair, ByHand):
        pair.set_tier(f"u{x % 6}", TIERS[y % 3], TIERS[(y // 3) % 3], now + 1 + (y * 7 % 40) * MINUTE_MS)
        pair.cycle()
    elif kind == "tier":
        name = f"u{x % 6}"
        if name in pair.core.ledger.users:
            group, until_ms = pair.core.ledger.users[name].group.name, now + 1 + (y * 7 % 40) * MINUTE_MS
            pair.apply(ev.UserSet(now, name, group, TIERS[y % 3], until_ms=until_ms, then_tier=TIERS[y // 3 % 3]))
        pair.cycle()
    elif kind in ("reserve", "maintain", "remove"):
        event = _calendar_event(pair.core, kind, x, y)
        if event is not None:
            with contextlib.suppress(CoreError):
                for core in pair.cores:
                    core.apply(event)
        pair.cycle()
    else:
        pair.play((kind, x, y))


def _calendar_event(core: Core, kind: str, x: int, y: int) -> ev.Event | None:
    now, entries = core.now_ms, list(core.view.calendar.entries)
    if kind == "remove":
        return ev.CalendarEntryRemoved(now, entries[x % len(entries)]) if entries else None
    begin_ms = now + (x % 5) * 15 * MINUTE_MS
    end_ms = begin_ms + 1 + (y % 7) * 20 * MINUTE_MS
    name = f"c{x % 4}"
    if kind == "reserve":
        group = ("default", "vision", "lab")[y % 3]
        return ev.CalendarEntryAdded(now, name, "reservation", begin_ms, end_ms, (x % 4 + 1) * 1000, group)
    return ev.CalendarEntryAdded(now, name, "maintenance", begin_ms, end_ms, hosts="ab"[y % 2], drain_ms=600_000)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ops=st.lists(OP, min_size=10, max_size=40))
def test_a_tier_that_ends_is_one_that_an_operator_sets_back_at_that_instant(ops: list[Any]) -> None:
    """Whatever else happens: the same decisions in every cycle, and the same state."""
    pair = ByHand()
    for op in ops:
        play(pair, *op)
    pair.wait(3 * HOUR_MS)
    pair.check()
    pair.core.validate()


@pytest.mark.parametrize("fault", ["a minute late", "not at all"])
def test_planted_faults_are_caught(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """A tier that ends late, or never, differs from one set back by hand."""
    honest = Memberships.over

    def faulty(self: Memberships, now_ms: int) -> list[tuple[str, str]]:
        if fault == "not at all":
            return [(user, "pro") for user, _ in honest(self, now_ms)]
        return honest(self, now_ms - MINUTE_MS)

    monkeypatch.setattr(core_module.Memberships, "over", faulty)
    draw = random.Random(1)
    with pytest.raises((AssertionError, ValueError)):
        _many(draw)


def _many(draw: random.Random) -> None:
    for _ in range(40):
        pair = ByHand()
        for _ in range(30):
            play(pair, draw.choice(OPS), draw.randrange(41), draw.randrange(41))


# -- restarts at any moment -------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(history=st.lists(OP, min_size=5, max_size=30), future=st.lists(OP, min_size=5, max_size=20))
def test_with_calendar_and_ending_tiers_a_restored_core_goes_on_as_the_original(
    history: list[Any], future: list[Any]
) -> None:
    """Restored at a random instant, before, within or after what is agreed: one decision log, one state."""
    pair = Pair(FAIR)
    for op in history:
        play(pair, *op)
    pair.fork()
    for op in future:
        play(pair, *op)
        assert checkpoint.dump(pair.cores[1]) == checkpoint.dump(pair.cores[0])
    pair.wait(3 * HOUR_MS)
    assert checkpoint.dump(pair.cores[1]) == checkpoint.dump(pair.cores[0])
    pair.core.validate()


def test_an_entry_that_is_over_is_forgotten_with_the_next_one() -> None:
    """Its name is free again; a restart in between changes nothing."""
    core = Core(make_policy(FAIR))
    core.apply(ev.HostJoined(0, "h", 4))
    core.apply(ev.CalendarEntryAdded(0, "disks", "maintenance", 10, 20))
    with pytest.raises(CoreError, match="one of that name"):
        core.apply(ev.CalendarEntryAdded(19, "disks", "maintenance", 30, 40))
    again = restored(core)
    for one in (core, again):
        one.apply(ev.CalendarEntryAdded(20, "disks", "maintenance", 30, 40))
        assert [entry.from_ms for entry in one.view.calendar.entries.values()] == [30]
    assert event_line(ev.CalendarEntryRemoved(0, "x"))
