"""Credit shared by a group: who loses and regains it at which instant, at what cost, and what a restore keeps of it."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from typing import Any

import pytest

from policies.group_credit import GroupCredit, GroupCredits
from policies.model import HOUR_MS, Action
from policies.order import FairQueue
from policies.params import LadderParams, Params, TierParams
from policies.places import places
from policies.usage import NEVER_MS, credit_gone_h, retry_after_h
from scheduler import events as ev
from tests.scheduler.test_tracks_core import MINUTE_MS, Site

HALF_LIFE_H = 48.0
STEADY = HALF_LIFE_H / math.log(2)
CALM = LadderParams(contention_ms=10**12, notice_credit_fraction=0.0, notice_ahead_ms=0)
"""The ladder never moves: what is looked at is credit."""

C = 0.5
"""GPU-h that one session of one GPU commits: half an hour."""


def params_of(cap_gpu_h: float, ladder: LadderParams = CALM, own_gpus: float = 5.0, **tiers: TierParams) -> Params:
    """Tier `free` with so much credit for each group, and more than enough for each user."""
    free = TierParams(baseline_gpus=own_gpus, group_baseline_gpus=cap_gpu_h / STEADY)
    return Params(tiers={"free": free, **tiers}, ladder=ladder)


def site_of(cap_gpu_h: float = 4.0, gpus: int = 1, **more: Any) -> Site:
    return Site(params_of(cap_gpu_h, **more), ev.HostJoined(0, "h", gpus))


def queue_of(site: Site) -> FairQueue:
    assert isinstance(site.core.queue, FairQueue)
    return site.core.queue


def ask(site: Site, sid: str, user: str, group: str = "g", tier: str = "free", **asked: Any) -> None:
    """Somebody asks now."""
    site.apply(ev.SessionSubmitted(site.now, sid, user, group, tier, **asked))
    site.cycle()


def in_credit(site: Site, *sids: str) -> list[bool]:
    """Of sessions that wait, the same by their index as by looking; of sessions that run, as their user."""
    found = []
    for sid in sids:
        session = site.core.sessions[sid]
        if session.allocation is not None:
            found.append(session.user.in_credit)
            continue
        cell, queue = session.user.cells[session.shape], queue_of(site)
        assert cell.in_credit is not queue.out_of_credit(session.user, cell.committed_n)
        found.append(cell.in_credit)
    return found


def to(site: Site, when_ms: int) -> None:
    """Up to and including that instant, cycling only at deadlines the core asks for."""
    while site.deadline is not None and site.deadline <= when_ms:
        assert site.deadline > site.now
        site.cycle(site.deadline)
    site.now = when_ms


def gone_ms(level_gpu_h: float) -> int:
    """When a charge rate of 1 from nothing has passed a level."""
    hours = credit_gone_h(level_gpu_h, 1.0, HALF_LIFE_H)
    assert hours is not None
    return math.ceil(hours * HOUR_MS)


# -- gone and back -------------------------------------------------------------------------------------------------


def test_one_account_uses_up_the_credit_of_all_to_the_millisecond() -> None:
    """Ann computes; bob, who never did, is out of credit once her usage passes 4 - her .5 - his .5, and not before."""
    site = site_of(4.0)
    site.run("a", "ann", load=1.0, group="g")
    ask(site, "b", "bob")
    due = gone_ms(4.0 - 2 * C)
    to(site, due - 1)
    assert in_credit(site, "a", "b") == [True, True]
    assert site.deadline == due
    to(site, due)
    assert in_credit(site, "a", "b") == [True, False]
    to(site, gone_ms(4.0) - 1)
    assert in_credit(site, "a") == [True]
    to(site, gone_ms(4.0))
    assert in_credit(site, "a") == [False]


def test_it_comes_back_to_the_millisecond() -> None:
    """Ann's 20 GPU-h fade: bob's session is in credit again once 20 has become 4 - .5, by the closed form."""
    site = site_of(4.0)
    site.apply(ev.HostDrained(0, "h"))
    ask(site, "a", "ann")
    ask(site, "b", "bob")
    site.apply(ev.UsageSet(0, "ann", 20.0))
    site.cycle()
    assert in_credit(site, "a", "b") == [False, False]
    due = math.ceil(retry_after_h(20.0, 4.0 - C, HALF_LIFE_H) * HOUR_MS)
    to(site, due - 1)
    assert in_credit(site, "b") == [False]
    assert site.deadline == due
    to(site, due)
    assert in_credit(site, "b") == [True]
    assert in_credit(site, "a") == [True]  # a bound of the group's: by her own account she has credit


def test_holders_of_the_group_are_warned_together() -> None:
    """Dan of the group has used nothing, and gives way all the same; fay of another group, who used more, does not."""
    ladder = LadderParams(warn_ms=0, grace_ms=0, min_run_ms=600_000, notice_credit_fraction=0.0, notice_ahead_ms=0)
    site = site_of(4.0, gpus=3, ladder=ladder)
    for sid, user, group in (("a", "ann", "g"), ("d", "dan", "g"), ("f", "fay", "other")):
        site.run(sid, user, group=group)
    site.apply(ev.UsageSet(0, "fay", 3.0))
    site.cycle()
    site.until(20)
    assert site.made[3:] == []
    site.apply(ev.UsageSet(site.now, "ann", 30.0))
    assert site.cycle() == []
    assert in_credit(site, "a", "d", "f") == [False, False, True]
    ask(site, "w1", "will", "third")
    ask(site, "w2", "will", "third")
    assert [d.session for d in site.made if d.action is Action.EVICT] == ["a", "d"]
    assert "w2" in site.core.view.holders


def test_other_groups_and_other_tiers_of_the_group_are_left_alone() -> None:
    """The group's 30 GPU-h count against its free users only; lab users of the same group have no such bound."""
    site = site_of(4.0, lab=TierParams(baseline_gpus=5.0))
    site.run("r", "zed", group="other")
    for sid, user, group, tier in (
        ("a", "ann", "g", "free"),
        ("b", "bob", "g", "free"),
        ("l", "lea", "g", "lab"),
        ("o", "oda", "other", "free"),
    ):
        ask(site, sid, user, group, tier)
    site.apply(ev.UsageSet(0, "ann", 30.0))
    site.cycle()
    assert in_credit(site, "a", "b", "l", "o") == [False, False, True, True]


def test_what_other_tiers_of_the_group_use_counts() -> None:
    """The account that counts is the group's: a lab user of it uses up the credit of its free users."""
    site = site_of(4.0, lab=TierParams(baseline_gpus=50.0))
    site.run("r", "lea", group="g", tier="lab")
    ask(site, "a", "ann")
    site.apply(ev.UsageSet(0, "lea", 30.0))
    site.cycle()
    assert in_credit(site, "r", "a") == [True, False]


def test_a_group_below_another_has_a_bound_of_its_own_and_counts_for_the_one_above() -> None:
    """30 GPU-h below `inner` put its own users out of credit, and those of `outer`; those of `side` keep theirs."""
    site = site_of(4.0)
    site.apply(ev.GroupSet(0, "outer"), ev.GroupSet(0, "inner", 1.0, "outer"), ev.GroupSet(0, "side", 1.0, "outer"))
    site.run("r", "zed", group="else")
    for sid, user, group in (("i", "ida", "inner"), ("o", "ole", "outer"), ("s", "sue", "side")):
        ask(site, sid, user, group)
    site.apply(ev.UsageSet(0, "ida", 30.0))
    site.cycle()
    assert in_credit(site, "i", "o", "s") == [False, False, True]
    site.apply(ev.UsageSet(0, "ida", 0.0), ev.UsageSet(0, "ole", 30.0))
    site.cycle()
    assert in_credit(site, "i", "o", "s") == [True, False, True]


def test_a_nominated_member_counts_for_the_others() -> None:
    """Of two members who wait with room for one more session's charge, the second is out of credit once the first is
    nominated."""
    ladder = LadderParams(warn_ms=0, grace_ms=600_000, min_run_ms=1_800_000)
    site = site_of(0.9, ladder=ladder)
    site.run("z", "zed", group="other", load=1.0)
    site.until(40)
    site.apply(ev.UsageSet(site.now, "zed", 30.0))
    site.cycle()
    ask(site, "a", "ann")
    ask(site, "b", "bob")
    assert site.core.sessions["a"].claim is not None
    assert in_credit(site, "b") == [False]


# -- cost ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("members", [10, 10_000])
def test_a_crossing_moves_benches_not_members(members: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sorts of sessions wait: losing the credit, and regaining it, moves two benches, however many members wait."""
    done: Counter[str] = Counter()
    for name in ("_move_bench", "_file", "_unfile", "_candidate"):
        real = getattr(FairQueue, name)

        def counted(self: FairQueue, *args: Any, real: Any = real, name: str = name) -> Any:
            done[name] += 1
            return real(self, *args)

        monkeypatch.setattr(FairQueue, name, counted)
    site = site_of(400.0, gpus=2, own_gpus=50.0)
    site.run("r", "zed", group="g", load=1.0, gpus=2)
    core, now = site.core, site.now
    for number in range(members):
        core.apply(ev.SessionSubmitted(now, f"s{number}", f"u{number}", "g", gpus=1 + number % 2))
    core.cycle(now)
    queue = queue_of(site)
    for usage, asked_m in ((500.0, 0), (0.0, 1500 * members)):
        done.clear()
        user = core.ledger.users["zed"]
        core.ledger.set_usage(user, usage)
        queue.user_changed(user)
        core.cycle(now)
        assert queue.asked_m == asked_m
        assert done["_move_bench"] == 2
        assert done["_file"] == done["_unfile"] == 0
        assert done["_candidate"] <= 8
    core.validate()


def test_time_alone_moves_benches_not_members(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same where the crossing is waited for: 1,000 members, one due instant, no user of them looked at."""
    site = site_of(4.0)
    site.run("a", "ann", load=1.0, group="g")
    core = site.core
    for number in range(1000):
        core.apply(ev.SessionSubmitted(0, f"s{number}", f"u{number}", "g"))
    site.deadline = core.cycle(0).next_deadline_ms
    files: list[object] = []
    real = FairQueue._file
    monkeypatch.setattr(FairQueue, "_file", lambda self, cell: (files.append(cell), real(self, cell))[1])
    assert queue_of(site).asked_m == 1_000_000
    to(site, gone_ms(4.0 - 2 * C))
    assert queue_of(site).asked_m == 0
    assert files == []


# -- events between a crossing and the cycle that notes it -----------------------------------------------------------


def test_a_member_who_comes_at_the_crossing_does_not_hide_it() -> None:
    """The crossing is due, and before the next cycle cid comes: bob is out of credit after it, like cid."""
    site = site_of(4.0)
    site.run("a", "ann", load=1.0, group="g")
    ask(site, "b", "bob")
    due = gone_ms(4.0 - 2 * C)
    to(site, due - 1)
    site.apply(ev.SessionSubmitted(due + 60_000, "c", "cid", "g"))
    site.cycle()
    assert in_credit(site, "b", "c") == [False, False]
    assert [(lane.in_credit, lane.count) for lane in queue_of(site).lanes.values() if lane.cells] == [(False, 2)]
    site.apply(ev.UsageSet(site.now, "ann", 0.0))
    site.cycle()
    assert in_credit(site, "b", "c") == [True, True]


def test_a_user_who_changes_tier_while_it_waits_leaves_the_bound() -> None:
    """Bob is out of credit with his group; once he is of a tier without such a bound he is in credit at once."""
    site = site_of(4.0, lab=TierParams(baseline_gpus=5.0))
    site.run("r", "zed", group="other")
    ask(site, "a", "ann")
    ask(site, "b", "bob")
    site.apply(ev.UsageSet(0, "ann", 30.0))
    site.cycle()
    assert in_credit(site, "a", "b") == [False, False]
    site.apply(ev.UserSet(0, "bob", "g", "lab"))
    site.cycle()
    site.fork()
    assert in_credit(site, "a", "b") == [False, True]
    site.apply(ev.UserSet(0, "bob", "g", "free"))
    site.cycle()
    assert in_credit(site, "a", "b") == [False, False]


# -- restored ------------------------------------------------------------------------------------------------------


def test_a_restore_in_the_middle_keeps_the_instants() -> None:
    """Forked at odd instants on the way, the copy asks for the same calls and decides the same, to the millisecond."""
    ladder = LadderParams(warn_ms=60_000, grace_ms=60_000, min_run_ms=600_000)
    for minute in (1, 33.3337, 100.01, 150, 250):
        site = site_of(4.0, gpus=2, ladder=ladder)
        site.run("a", "ann", load=1.0, group="g")
        site.run("d", "dan", load=0.3, group="g")
        ask(site, "b", "bob")
        ask(site, "o", "oda", "other")
        site.until(minute)
        site.fork()
        assert site.cores[1].queue.shared_dues() == site.core.queue.shared_dues() != []
        site.until(3000)


def test_an_instant_at_which_nothing_would_change_is_not_asked_for() -> None:
    """Once nobody of the group waits or holds, its crossings matter to nobody: neither to the copy."""
    site = site_of(4.0)
    site.run("r", "zed", group="other")
    ask(site, "b", "bob")
    site.apply(ev.UsageSet(0, "bob", 20.0))
    site.cycle()
    assert [group for group, _, _ in site.core.queue.shared_dues()] == ["g", "other"]
    site.apply(ev.SessionCancelled(site.now, "b"))
    site.cycle()
    assert [group for group, _, _ in site.core.queue.shared_dues()] == ["other"]
    site.fork()
    site.until(8000)
    ask(site, "b2", "bob")
    assert in_credit(site, "b2") == [True]


def test_holders_are_told_in_the_same_order_after_a_restore() -> None:
    """Two notices and the group's crossing fall due in one late cycle: the order does not depend on who held first."""
    ladder = dataclasses.replace(CALM, notice_credit_fraction=0.25)
    site = Site(params_of(1.0, ladder=ladder, own_gpus=1.2 / STEADY), ev.HostJoined(0, "h", 2))
    site.apply(ev.UserSet(0, "ann", "g"), ev.UserSet(0, "bob", "g"))
    for user in ("bob", "ann"):
        site.run(f"s-{user}", user, load=1.0, group="g")
    site.fork()
    made = site.cycle(20 * HOUR_MS)
    assert [d.session for d in made if d.action is Action.NOTICE] == ["s-ann", "s-bob"]


# -- places --------------------------------------------------------------------------------------------------------


def test_places_stop_at_the_credit_of_the_group() -> None:
    """1.2 GPU-h hold two of the group's sessions in credit: the third comes after all who are in credit still."""
    site = site_of(1.2)
    site.run("z", "zed", group="other", load=1.0)
    for number in range(4):
        ask(site, f"g{number}", f"u{number}", "g")
    for number in range(3):
        ask(site, f"o{number}", f"v{number}", f"alone{number}")
    for number in range(3):
        site.apply(ev.UsageSet(0, f"v{number}", 0.6))
    site.cycle()
    order = [session.id for session in places(site.core.view)]
    site.apply(ev.HostJoined(0, "many", 20))
    assert [d.session for d in site.cycle() if d.action is Action.START] == order
    assert order == ["g0", "g1", "o0", "o1", "o2", "g2", "g3"]


# -- the longest wait in credit --------------------------------------------------------------------------------------


def test_who_waited_while_the_group_had_no_credit_has_waited() -> None:
    """Bob has waited for 20 min when the group's credit comes back: he is the longest wait in credit, as restored."""
    site = site_of(4.0)
    site.run("a", "ann", group="g")
    ask(site, "b", "bob")
    site.apply(ev.UsageSet(0, "ann", 30.0))
    site.cycle()
    assert queue_of(site).oldest_in_credit_ms() is None
    site.until(20)
    site.apply(ev.UsageSet(20 * MINUTE_MS, "ann", 0.0))
    site.cycle()
    site.fork()
    assert in_credit(site, "b") == [True]
    oldest = [core.queue.oldest_in_credit_ms() for core in site.cores if isinstance(core.queue, FairQueue)]
    assert oldest == [0, 0]


# -- the index -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("covers", lambda self, credit, committed_n: credit.covers(self._clock, committed_n)),
        ("advance", lambda self: None),
        ("changed", lambda self, user: None),
    ],
    ids=["a due crossing is overlooked", "time is overlooked", "charges are overlooked"],
)
def test_planted_faults_are_caught(name: str, fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index that overlooks a crossing is found out by one of the tests above."""
    monkeypatch.setattr(GroupCredits, name, fault)
    with pytest.raises(AssertionError):  # noqa: PT012 - whichever of them
        test_one_account_uses_up_the_credit_of_all_to_the_millisecond()
        test_a_member_who_comes_at_the_crossing_does_not_hide_it()


def test_levels_that_are_never_reached_ask_for_no_call() -> None:
    """A charge rate whose steady level lies below every level needs no timer."""
    site = site_of(4.0)
    site.run("a", "ann", group="g", fraction_m=40, load=1.0)
    assert site.core.queue.shared_dues() == []
    credit = queue_of(site).group_credits.of(site.core.ledger.users["ann"])
    assert isinstance(credit, GroupCredit)
    assert credit.next_ms(site.core.view.clock) == NEVER_MS
