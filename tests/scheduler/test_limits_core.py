"""Hard limits in the core: who is blocked, why, and when it is let go, without anybody watching the clock."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import limits as limits_module
from policies.catalogue import make_policy
from policies.limits import Block, Limits
from policies.model import HOUR_MS, WHOLE_M, Action, Decision, Session, State
from policies.order import FairQueue
from policies.params import LadderParams, OrderParams, Params, TierParams
from policies.places import places
from policies.quota import DAY_MS, WEEK_MS, Holdings, Window
from scheduler import checkpoint
from scheduler import events as ev
from scheduler.core import CoreError
from scheduler.why_waiting import waiting_reasons
from scheduler.why_words import utc
from tests.scheduler.site import Site as BaseSite
from tests.scheduler.site import check_replay, did, dumped, started

MINUTE_MS = 60_000
QUICK = LadderParams(min_run_ms=0, warn_ms=0, grace_ms=5 * MINUTE_MS)
"""Whoever is out of credit is in grace as soon as somebody in credit waits."""


def params_of(
    *, lab: TierParams | None = None, ladder: LadderParams = QUICK, by: str = "standing", **free: Any
) -> Params:
    tiers = {"free": TierParams(**{"baseline_gpus": 0.5, **free})}
    if lab is not None:
        tiers["lab"] = lab
    return Params(tiers=tiers, ladder=ladder, order=OrderParams(by=by))


class Site(BaseSite):
    """A site that is asked why somebody waits."""

    def why(self, sid: str) -> dict[str, Any]:
        """The first of the reasons why it waits."""
        found: dict[str, Any] = waiting_reasons(self.core, self.core.sessions[sid], None, self.core.now_ms)[0]
        assert "None" not in found["text"]
        return found

    def told(self, sid: str) -> tuple[Any, ...]:
        why = self.why(sid)
        return why["code"], why["rule"], why["value"], why["threshold"], why["until"]

    def places(self) -> list[str]:
        return [session.id for session in places(self.core.view)]

    def twin(self) -> Site:
        """Another site, whose core is restored from a checkpoint of this one's."""
        other = Site(self.core.params)
        other.core = checkpoint.restore(dumped(self.core), self.core.policy)
        assert dumped(other.core) == dumped(self.core)
        other.now, other.deadline, other.lines, other.made = self.now, other.core.next_deadline_ms(), [], []
        assert other.deadline == self.core.next_deadline_ms()
        return other

    @property
    def asked_m(self) -> int:
        assert isinstance(self.core.queue, FairQueue)
        return self.core.queue.asked_m


def when_started(decisions: list[Decision], sid: str) -> int:
    return next(d.at_ms for d in decisions if d.action is Action.START and d.session == sid)


# -- sessions and GPUs -----------------------------------------------------------------------------------------------


def test_a_user_runs_so_many_sessions_at_once() -> None:
    """Two of three start though the GPUs are free; the third when one ends, and others are not kept by it."""
    site = Site(params_of(sessions_per_user=2), ev.HostJoined(0, "h", 4))
    for number in range(3):
        site.submit(f"a{number}", "ann")
    assert started(site.cycle()) == ["a0", "a1"]
    assert site.told("a2") == ("UserLimit", "limit.sessions-per-user", 2, 2, None)
    assert site.why("a2")["change"] == "end-another"
    site.submit("b0", "bob")
    assert started(site.cycle()) == ["b0"]
    assert site.pass_until(HOUR_MS) == []
    site.end("a0")
    assert started(site.cycle()) == ["a2"]


def test_a_session_that_is_being_stopped_still_counts() -> None:
    """Its GPUs are held until the host says that it is gone."""
    site = Site(params_of(sessions_per_user=1), ev.HostJoined(0, "h", 2))
    site.submit("a0", "ann")
    site.submit("a1", "ann")
    site.cycle()
    site.apply(ev.SessionCancelled(site.now, "a0"))
    assert started(site.cycle()) == []
    site.end("a0")
    assert started(site.cycle()) == ["a1"]


def test_a_user_holds_so_many_gpus_at_once() -> None:
    """What would pass the limit waits, what is smaller starts; exactly the limit is allowed, of parts too."""
    site = Site(params_of(gpus_per_user=2.3), ev.HostJoined(0, "h", 6))
    site.submit("a0", "ann", gpus=2)
    site.submit("a1", "ann")
    site.submit("a2", "ann", fraction_m=100)
    site.submit("a3", "ann", fraction_m=200)
    site.submit("a4", "ann", fraction_m=1)
    assert started(site.cycle()) == ["a0", "a2", "a3"]
    assert site.told("a1") == ("UserLimit", "limit.gpus-per-user", 2.3, 2.3, None)
    site.end("a3")
    assert started(site.cycle()) == ["a4"]
    site.end("a0")
    assert started(site.cycle()) == ["a1"]


def test_a_group_holds_so_many_gpus_at_once() -> None:
    """Summed over its users; another group, and another tier of the same group, have their own count."""
    site = Site(
        params_of(gpus_per_group=2, lab=TierParams(baseline_gpus=0.5, gpus_per_group=1)), ev.HostJoined(0, "h", 9)
    )
    for number in range(3):
        site.submit(f"g{number}", f"u{number}", group="g")
        site.submit(f"l{number}", f"v{number}", group="g", tier="lab")
        site.submit(f"e{number}", f"w{number}", group="e")
    assert sorted(started(site.cycle())) == ["e0", "e1", "g0", "g1", "l0"]
    assert site.told("g2") == ("GroupLimit", "limit.gpus-per-group", 2.0, 2, None)
    assert site.told("l1") == ("GroupLimit", "limit.gpus-per-group", 1.0, 1, None)
    site.end("g0")
    assert started(site.cycle()) == ["g2"]
    site.apply(ev.UserSet(site.now, "v1", "g", "free"))
    assert site.told("l1") == ("GroupLimit", "limit.gpus-per-group", 2.0, 2, None)
    site.apply(
        ev.UserSet(site.now, "u1", "g", "other")
    )  # a tier that is not listed: the limits of free, a count of its own
    assert started(site.cycle()) == ["l1"]


# -- at submission ---------------------------------------------------------------------------------------------------


def test_more_requests_than_may_wait_are_rejected() -> None:
    """Counted when they are submitted: those that wait, not those that run."""
    site = Site(params_of(queued_per_user=2))
    site.submit("a0", "ann")
    site.cycle()
    for number in range(1, 5):
        site.submit(f"a{number}", "ann")
    made = site.cycle()
    assert did(made, Action.REJECT) == ["a3", "a4"]
    for decision in made:
        reason = decision.reason
        assert (reason.rule, reason.value, reason.threshold) == ("limit.queued-per-user", 2, 2)
        assert reason.change == "fewer-waiting"
    site.submit("b1", "bob")
    site.end("a0")
    assert did(site.cycle(), Action.REJECT) == []
    site.submit("a5", "ann")
    assert did(site.cycle(), Action.REJECT) == []


@pytest.mark.parametrize("limit", ["gpus_per_user", "gpus_per_group"])
def test_more_gpus_than_may_ever_be_held_are_rejected(limit: str) -> None:
    """The cluster could serve it, the tier never allows it."""
    only: dict[str, Any] = {limit: 2}
    site = Site(params_of(**only), ev.HostJoined(0, "h", 8))
    site.submit("a", "ann", gpus=3)
    site.submit("b", "ann", gpus=2)
    made = site.cycle()
    assert [(d.action, d.session) for d in made] == [(Action.REJECT, "a"), (Action.START, "b")]
    assert (made[0].reason.rule, made[0].reason.value) == ("limit." + limit.replace("_", "-"), 3.0)


def test_models_that_a_tier_may_use() -> None:
    """Another one is refused; where none is named the tier's first is meant, and its host chosen."""
    hosts = (ev.HostJoined(0, "a", 1, "A100"), ev.HostJoined(0, "t", 2, "T4"), ev.HostJoined(0, "l", 2, "L4"))
    site = Site(params_of(gpu_models=("T4", "L4"), lab=TierParams(baseline_gpus=0.5)), *hosts)
    site.submit("big", "ann", gpu_type="A100")
    made = site.cycle()
    assert [(d.action, d.reason.rule) for d in made] == [(Action.REJECT, "limit.model")]
    for number in range(3):
        site.submit(f"s{number}", f"u{number}")
    site.submit("l", "bob", gpu_type="L4")
    site.submit("any", "lea", tier="lab", gpu_type="A100")
    assert set(started(site.cycle())) == {"s0", "s1", "l", "any"}
    assert [site.host_of(sid) for sid in ("s0", "s1", "l", "any")] == [("t",), ("t",), ("l",), ("a",)]
    assert site.core.sessions["s2"].shape.gpu_type == "T4"
    assert site.why("s2")["code"] == "NoMatchingGpu"  # an L4 is free, and was not asked for


# -- quotas ----------------------------------------------------------------------------------------------------------


def test_a_rolling_quota_ends_softly_and_comes_back_by_itself() -> None:
    """What runs goes on; the next session waits, and starts with the first cycle that the core asks for."""
    site = Site(params_of(quota_gpu_h=1.0, quota_window="2h"), ev.HostJoined(0, "h", 2))
    site.submit("a0", "ann")
    site.cycle()
    site.pass_until(90 * MINUTE_MS)
    assert site.core.sessions["a0"].state is State.RUNNING
    site.submit("a1", "ann")
    assert started(site.cycle()) == []
    assert site.told("a1") == ("QuotaExhausted", "limit.quota", 1.5, 1.0, None)
    site.end("a0")
    back = 150 * MINUTE_MS + 1
    assert site.told("a1") == ("QuotaExhausted", "limit.quota", 1.5, 1.0, utc(back))
    assert site.cycle() == []
    assert site.deadline == back
    assert when_started(site.pass_until(WEEK_MS), "a1") == back


def test_a_daily_quota_comes_back_at_midnight() -> None:
    """Although the session that used it up runs on."""
    site = Site(params_of(quota_gpu_h=1.0, quota_window="daily"), ev.HostJoined(0, "h", 2))
    site.pass_until(22 * HOUR_MS)
    site.submit("a0", "ann")
    site.cycle()
    site.pass_until(DAY_MS - 30 * MINUTE_MS)
    site.submit("a1", "ann")
    assert started(site.cycle()) == []
    assert site.told("a1") == ("QuotaExhausted", "limit.quota", 1.5, 1.0, utc(DAY_MS))
    assert site.deadline == DAY_MS
    assert when_started(site.pass_until(2 * DAY_MS), "a1") == DAY_MS
    assert "a0" in site.core.sessions


def test_a_session_that_waits_is_blocked_when_the_quota_runs_out() -> None:
    """The core asks for a cycle at that instant; a GPU that is free a millisecond earlier is still taken."""
    for early_ms, blocked in ((1, False), (0, True)):
        site = Site(params_of(quota_gpu_h=1.0, quota_window="24h"), ev.HostJoined(0, "h", 2))
        site.submit("a0", "ann")
        site.submit("b0", "bob")
        site.cycle()
        site.submit("a1", "ann")
        site.cycle()
        assert site.told("a1")[0] == "NoFreeGpu"
        site.pass_until(HOUR_MS - early_ms)
        site.end("b0")
        assert started(site.cycle()) == ([] if blocked else ["a1"])
        assert HOUR_MS in site.cycled or not blocked


def test_a_tier_without_a_quota_remembers_for_one_that_has_it() -> None:
    """A user moved to another tier has used there what it held before."""
    site = Site(
        params_of(lab=TierParams(baseline_gpus=0.5, quota_gpu_h=1.0, quota_window="24h")), ev.HostJoined(0, "h", 2)
    )
    site.submit("a0", "ann")
    site.cycle()
    site.pass_until(2 * HOUR_MS)
    site.apply(ev.UserSet(site.now, "ann", "default", "lab"))
    site.submit("a1", "ann")
    assert started(site.cycle()) == []
    assert site.told("a1") == ("QuotaExhausted", "limit.quota", 2.0, 1.0, None)


def test_what_is_held_under_a_policy_without_quotas_is_not_made_up_later() -> None:
    """A session held while quotas are off, and ended meanwhile, does not count on for ever when they are on again."""
    with_quota = params_of(quota_gpu_h=1.0, quota_window="24h")
    site = Site(with_quota)
    site.submit("a0", "ann")
    site.cycle()
    site.pass_until(MINUTE_MS)
    site.core = checkpoint.under(site.core, make_policy(params_of()))
    site.end("a0")
    site.core = checkpoint.under(site.core, make_policy(with_quota))
    site.now = 10 * HOUR_MS
    site.submit("a1", "ann")
    assert started(site.cycle()) == ["a1"]


# -- restrictions ----------------------------------------------------------------------------------------------------


def test_a_restriction_ends_at_its_instant() -> None:
    """Nothing new starts until then, what runs goes on, and the core asks to be called then."""
    site = Site(params_of(), ev.HostJoined(0, "h", 2))
    site.submit("a0", "ann")
    site.cycle()
    site.apply(ev.UserRestricted(0, "ann", HOUR_MS))
    site.submit("a1", "ann")
    assert started(site.cycle()) == []
    assert site.told("a1") == ("Restricted", "limit.restricted", None, None, utc(HOUR_MS))
    assert when_started(site.pass_until(WEEK_MS), "a1") == HOUR_MS
    assert site.core.sessions["a0"].state is State.RUNNING


def test_a_restriction_for_ever_ends_with_a_pardon() -> None:
    """It names no instant; a later restriction takes the place of an earlier one."""
    site = Site(params_of())
    site.submit("a", "ann")
    site.apply(ev.UserRestricted(0, "ann", HOUR_MS), ev.UserRestricted(0, "ann"))
    assert site.pass_until(WEEK_MS) == []
    assert site.cycle() == []
    assert site.told("a") == ("Restricted", "limit.restricted", None, None, None)
    site.apply(ev.UserPardoned(site.now, "ann"))
    assert started(site.cycle()) == ["a"]
    site.apply(ev.UserPardoned(site.now, "ann"))  # once more does no harm


def test_a_pardon_ends_a_cooldown() -> None:
    """An evicted user's waiters count as before."""
    site = in_grace()
    site.pass_until(HOUR_MS)
    ann = site.core.ledger.users["ann"]
    assert ann.cooldown_until_ms > site.core.now_ms
    site.apply(ev.UserPardoned(site.now, "ann"))
    assert ann.cooldown_until_ms <= site.now


@pytest.mark.parametrize(("user", "until_ms"), [("nobody", None), ("ann", 5), ("ann", 4), ("ann", 10**15 + 1)])
def test_restrictions_that_make_no_sense_change_nothing(user: str, until_ms: int | None) -> None:
    """An unknown user, an instant that is not later, one beyond all time."""
    site = Site(params_of())
    site.apply(ev.UserSet(5, "ann"))
    before = dumped(site.core)
    with pytest.raises(CoreError):
        site.core.apply(ev.UserRestricted(5, user, until_ms))
    assert dumped(site.core) == before


def in_grace() -> Site:
    """ann, out of credit, is in grace for bob's session `w`."""
    site = Site(params_of(baseline_gpus=0.05))
    site.use("ann", 10.0)
    site.submit("v", "ann")
    site.cycle()
    site.now = 1000
    site.submit("w", "bob")
    assert did(site.cycle(), Action.GRACE) == ["v"]
    return site


def test_a_restricted_users_waiter_loses_its_claim_and_the_victim_stays() -> None:
    """Nobody is evicted for somebody who may not start; after the pardon the ladder begins again."""
    site = in_grace()
    site.apply(ev.UserRestricted(2000, "bob"))
    waiter = site.core.sessions["w"]
    assert (waiter.claim, site.core.view.claimed_m, site.core.ledger.users["bob"].committed_n) == (None, 0, 0)
    assert site.told("w")[0] == "Restricted"
    assert site.asked_m == 0
    made = [*site.cycle(), *site.pass_until(HOUR_MS)]
    assert did(made, Action.EVICT) == did(made, Action.GRACE) == []
    assert site.core.sessions["v"].state is State.RUNNING
    assert site.core.view.claims == {}
    site.apply(ev.UserPardoned(site.now, "bob"))
    made = [*site.cycle(), *site.pass_until(2 * HOUR_MS)]
    assert did(made, Action.EVICT) == ["v"]
    assert started(made) == ["w"]


def test_a_waiter_restricted_after_the_eviction_gives_back_what_was_promised() -> None:
    """Its victim is being stopped: what that frees is for all."""
    site = in_grace()
    site.apply(ev.SessionCancelled(2000, "v"))
    site.apply(ev.UserRestricted(2000, "bob", HOUR_MS))
    site.submit("c", "cem")
    site.cycle()
    site.end("v")
    assert started(site.cycle()) == ["c"]
    assert site.told("w")[0] == "Restricted"


# -- blocked sessions: the same things hold whatever blocks them -----------------------------------------------------

LAB: dict[str, dict[str, Any]] = {
    "restricted": {},
    "restricted for ever": {},
    "sessions of the user": {"sessions_per_user": 1},
    "GPUs of the user": {"gpus_per_user": 1.0},
    "GPUs of the group": {"gpus_per_group": 2.0},
    "rolling quota": {"quota_gpu_h": 1.0, "quota_window": "7d"},
    "daily quota": {"quota_gpu_h": 1.0, "quota_window": "daily"},
}
TOLD: dict[str, tuple[Any, ...]] = {
    "restricted": ("Restricted", "limit.restricted", None, None, utc(10 * HOUR_MS)),
    "restricted for ever": ("Restricted", "limit.restricted", None, None, None),
    "sessions of the user": ("UserLimit", "limit.sessions-per-user", 1, 1, None),
    "GPUs of the user": ("UserLimit", "limit.gpus-per-user", 1.0, 1.0, None),
    "GPUs of the group": ("GroupLimit", "limit.gpus-per-group", 2.0, 2.0, None),
    "rolling quota": ("QuotaExhausted", "limit.quota", 2.0, 1.0, None),
    "daily quota": ("QuotaExhausted", "limit.quota", 2.0, 1.0, utc(DAY_MS)),
}
"""Code, rule, value, threshold and end of the reason that each of them gives for `b2`."""

KINDS = pytest.mark.parametrize("kind", LAB)


def blocked(kind: str) -> Site:
    """Two hours in, the GPUs are full: two of ann's, out of credit, one of bob's, one of cem's; bob's `b2` waits."""
    lab = TierParams(baseline_gpus=1.0, **LAB.get(kind, {}))
    site = Site(params_of(baseline_gpus=0.05, lab=lab), ev.HostJoined(0, "h", 4))
    site.use("ann", 10.0)
    site.submit("v0", "ann")
    site.submit("v1", "ann")
    site.submit("b1", "bob", tier="lab")
    site.submit("c1", "cem", tier="lab")
    assert len(started(site.cycle())) == 4
    site.pass_until(2 * HOUR_MS)
    if kind.startswith("restricted"):
        site.apply(ev.UserRestricted(site.now, "bob", None if kind.endswith("ever") else 10 * HOUR_MS))
    site.submit("b2", "bob", tier="lab")
    return site


def let_go(kind: str, site: Site) -> list[Decision]:
    """Do, or wait for, what ends the block (and leave a GPU free where time alone does it)."""
    if kind == "restricted for ever":
        site.apply(ev.UserPardoned(site.now, "bob"))
    if kind in ("sessions of the user", "GPUs of the user", "rolling quota"):
        site.end("b1")
    elif kind == "GPUs of the group":
        site.end("c1")
    else:
        site.end("v0")
    return [*site.cycle(), *site.pass_until(2 * WEEK_MS)]


FREE_AT_MS = {
    "restricted": 10 * HOUR_MS,
    "rolling quota": WEEK_MS + HOUR_MS + 1,
    "daily quota": DAY_MS,
}
"""When `b2` starts, where time has to pass."""


def check_nobody_gives_way(site: Site) -> None:
    """Neither asked for nor in the order, and its presence moves nobody for hours."""
    assert site.asked_m == 0
    made = [*site.cycle(), *site.pass_until(site.now + 6 * HOUR_MS)]
    assert not {d.action for d in made} - {Action.NOTICE}
    assert set(site.core.sessions) == {"v0", "v1", "b1", "c1", "b2"}


@KINDS
def test_blocked_sessions_make_nobody_give_way(kind: str) -> None:
    """Though its user is in credit and others are not."""
    check_nobody_gives_way(blocked(kind))


def test_the_same_session_without_a_limit_makes_somebody_give_way() -> None:
    """Else the test above would show nothing."""
    site = blocked("none of them")
    assert site.asked_m == WHOLE_M
    assert len(did(site.cycle(), Action.GRACE)) == 1


@KINDS
def test_blocked_sessions_have_no_position(kind: str) -> None:
    """Those that may start are counted as if it did not wait; it has its place again once it is let go."""
    site = blocked(kind)
    assert site.places() == []
    site.submit("d1", "dan")
    site.submit("d2", "dan")
    assert site.places() == ["d1", "d2"]


@KINDS
def test_the_reason_names_the_limit(kind: str) -> None:
    """Code, rule, what was measured, the limit, and until when."""
    assert blocked(kind).told("b2") == TOLD[kind]


@KINDS
def test_blocked_sessions_start_when_they_are_let_go(kind: str) -> None:
    """Exactly then: with the event, or at the deadline that the core asked for."""
    site = blocked(kind)
    site.cycle()
    begun = site.now
    made = let_go(kind, site)
    assert when_started(made, "b2") == FREE_AT_MS.get(kind, begun)
    check_replay(site.lines)


@KINDS
def test_a_restored_core_goes_on_with_blocked_sessions(kind: str) -> None:
    """The same checkpoint, deadline, reason and decisions, before a cycle and after one, and the same in the end."""
    for cycled in (False, True):
        site = blocked(kind)
        if cycled:
            site.cycle()
        twin = site.twin()
        assert twin.told("b2") == site.told("b2")
        before = len(site.made)
        assert let_go(kind, twin) == let_go(kind, site)
        assert twin.made == site.made[before:]
        assert dumped(twin.core) == dumped(site.core)


def test_a_checkpoint_long_after_the_last_change_is_the_same_again() -> None:
    """Restoring forgets nothing that the original still has on record."""
    site = Site(params_of(quota_gpu_h=50.0, quota_window="1h"))
    site.submit("a", "ann")
    site.cycle()
    site.now = 1000
    site.end("a")
    site.submit("b", "bob")
    site.cycle()
    site.submit("a2", "ann")
    site.cycle()
    site.pass_until(3 * HOUR_MS)
    site.cycle()
    site.twin()


# -- by arrival ------------------------------------------------------------------------------------------------------


def first_come(site: Site) -> list[str]:
    """Four users wait, who came first used most; the order in which they start on one GPU."""
    site.submit("run", "zoe")
    site.cycle()
    for number in range(4):
        site.use(f"u{number}", 8.0 - 2 * number)
    for number in range(4):
        site.now += 1000
        site.submit(f"s{number}", f"u{number}")
    order: list[str] = []
    for _ in range(4):
        site.end(*site.core.view.holders)
        order += started(site.cycle())
    return order


def test_by_arrival_who_came_first_starts_first() -> None:
    """All are in credit: past use decides by standing, and says nothing by arrival."""
    assert first_come(Site(params_of(by="arrival"))) == ["s0", "s1", "s2", "s3"]
    assert first_come(Site(params_of())) == ["s3", "s2", "s1", "s0"]


def test_by_arrival_limits_hold() -> None:
    """Whoever came first is passed over while a limit blocks it, and is first again afterwards."""
    site = Site(params_of(by="arrival", sessions_per_user=1), ev.HostJoined(0, "h", 2))
    site.submit("a0", "ann")
    site.submit("z0", "zoe")
    site.cycle()
    for number, user in enumerate(("ann", "bob", "ann", "cem"), start=1):
        site.now += 1000
        site.submit(f"{user}{number}", user)
    site.end("z0")
    assert started(site.cycle()) == ["bob2"]
    site.end("a0")
    assert started(site.cycle()) == ["ann1"]


def test_by_arrival_a_rebase_keeps_the_order() -> None:
    """After 64 half-lives every account is rescaled."""
    site = Site(params_of(by="arrival"), ev.HostJoined(0, "h", 1))
    site.submit("run", "zoe")
    site.cycle()
    for number in range(3):
        site.use(f"u{number}", 8.0 - 2 * number)
        site.now += 1000
        site.submit(f"s{number}", f"u{number}")
    site.now = 70 * 48 * HOUR_MS
    site.end("run")
    assert started(site.cycle()) == ["s0"]


# -- once wrong -------------------------------------------------------------------------------------------------------


def test_a_restored_core_counts_a_group_before_it_starts_anybody() -> None:
    """ann's session is blocked by what bob holds, who waits as well; restored, it is as blocked as before."""
    site = Site(params_of(gpus_per_group=2), ev.HostJoined(0, "h", 4))
    site.submit("b0", "bob")
    site.cycle()
    site.submit("a0", "ann", gpus=2)
    site.submit("b1", "bob", gpus=2)
    assert started(site.cycle()) == []
    assert started(site.twin().cycle()) == []


def test_by_arrival_credit_says_nothing() -> None:
    """ann came first, out of credit; the headroom is nothing."""
    site = Site(params_of(by="arrival", baseline_gpus=0.05))
    site.submit("run", "zoe")
    site.cycle()
    site.use("ann", 10.0)
    site.now += 1000
    site.submit("a", "ann")
    site.now += 1000
    site.submit("b", "bob")
    site.end("run")
    assert started(site.cycle()) == ["a"]


def test_by_arrival_positions_are_those_of_the_starts() -> None:
    """All in credit."""
    site = Site(params_of(by="arrival"))
    site.submit("run", "zoe")
    site.cycle()
    for number in range(3):
        site.use(f"u{number}", 8.0 - 2 * number)
        site.now += 1000
        site.submit(f"s{number}", f"u{number}")
    assert site.places() == ["s0", "s1", "s2"]


def test_a_refused_session_is_not_told_that_it_could_never_run() -> None:
    """The session that made it one too many is abandoned before the next cycle."""
    site = Site(params_of(queued_per_user=1))
    site.submit("run", "zoe")
    site.cycle()
    site.submit("a0", "ann")
    site.submit("a1", "ann")
    site.apply(ev.SessionAbandoned(0, "a0"))
    assert [d.reason.rule for d in site.cycle() if d.action is Action.REJECT] in ([], ["limit.queued-per-user"])


def test_a_session_about_to_be_refused_is_told_the_limit() -> None:
    """Between its submission and the next cycle."""
    site = Site(params_of(queued_per_user=1))
    site.submit("run", "zoe")
    site.cycle()
    site.submit("a0", "ann")
    site.submit("a1", "ann")
    assert site.told("a1")[:2] == ("UserLimit", "limit.queued-per-user")


def test_sessions_beyond_their_users_limit_make_nobody_give_way() -> None:
    """bob may run one: that he waits with six throttles no more of ann's sessions than one of his would."""
    throttled = []
    for waiting in (1, 6):
        lab = TierParams(baseline_gpus=1.0, sessions_per_user=1)
        site = Site(params_of(baseline_gpus=0.05, lab=lab), ev.HostJoined(0, "h", 4))
        site.use("ann", 10.0)
        for number in range(8):
            site.submit(f"v{number}", "ann", fraction_m=500)
        site.cycle()
        for number in range(waiting):
            site.submit(f"b{number}", "bob", tier="lab", fraction_m=100)
        throttled.append(did(site.cycle(), Action.THROTTLE))
    assert throttled[0] == throttled[1]


def test_no_model_is_suggested_that_the_tier_may_not_use() -> None:
    """An A100 is free; asking for it would be refused."""
    site = Site(params_of(gpu_models=("T4",)), ev.HostJoined(0, "t", 1, "T4"), ev.HostJoined(0, "a", 1, "A100"))
    site.submit("s", "ann")
    site.cycle()
    site.submit("w", "bob")
    site.cycle()
    assert site.why("w")["change"] != "--gpu-type A100"


def test_the_reason_names_what_is_used_of_the_quota_by_now() -> None:
    """A session runs on for hours after the quota was used up."""
    site = Site(params_of(quota_gpu_h=1.0, quota_window="7d"), ev.HostJoined(0, "h", 2))
    site.submit("a", "ann")
    site.cycle()
    site.pass_until(HOUR_MS)
    site.submit("b", "ann")
    site.cycle()
    site.pass_until(5 * HOUR_MS)
    site.cycle()
    assert site.told("b")[2] == 5.0


# -- any history -----------------------------------------------------------------------------------------------------

FREE = TierParams(
    baseline_gpus=0.1,
    sessions_per_user=2,
    queued_per_user=3,
    gpus_per_user=2.3,
    gpus_per_group=2.5,
    gpu_models=("T4",),
    quota_gpu_h=2.0,
    quota_window="3h",
)
RESEARCH = TierParams(
    baseline_gpus=0.6,
    sessions_per_user=3,
    queued_per_user=5,
    gpus_per_user=4,
    gpus_per_group=4.5,
    quota_gpu_h=5.0,
    quota_window="daily",
)
ALL_LIMITS = Params(
    tiers={"free": FREE, "lab": RESEARCH},
    ladder=LadderParams(min_run_ms=10 * MINUTE_MS, warn_ms=0, throttle_step_ms=MINUTE_MS, grace_ms=2 * MINUTE_MS),
)
MOST = {"free": (2, 2300, 2500), "lab": (3, 4000, 4500)}
"""Of each tier: sessions of a user, thousandths of a GPU of a user, and of a group."""
HOSTS = (ev.HostJoined(0, "t", 4, "T4"), ev.HostJoined(0, "a", 3, "A100"))
USERS = (("u0", "g", "free"), ("u1", "g", "free"), ("u2", "g", "lab"), ("u3", "g", "lab"), ("u4", "h", "free"))
ASKED: tuple[dict[str, Any], ...] = (
    {},
    {},
    {"gpus": 2},
    {"gpus": 3},
    {"fraction_m": 300},
    {"fraction_m": 700},
    {"gpu_type": "A100"},
)
ACTS: tuple[str, ...] = ("submit",) * 6 + (
    "end",
    "end",
    "wait",
    "wait",
    "wait",
    "restrict",
    "pardon",
    "cancel",
    "hold",
    "unhold",
)
ACTS += ("use", "load", "tier")
ACTS_RESTORED = (*ACTS, "restore", "restore", "restore")
PAUSES_MS = (1, 7 * MINUTE_MS, 40 * MINUTE_MS, 3 * HOUR_MS, 13 * HOUR_MS)
Act = tuple[str, int, int]


class Piece:
    """What one session held for some time; `until_ms` None = still."""

    def __init__(self, user: str, from_ms: int, amount_m: int) -> None:
        self.user = user
        self.from_ms = from_ms
        self.until_ms: int | None = None
        self.amount_m = amount_m


class Watched(Site):
    """A site with books of its own, kept from events and decisions alone, to hold the core's limits against."""

    def __init__(self, params: Params = ALL_LIMITS) -> None:
        self.tier_of = {user: tier for user, _, tier in USERS}
        self.group_of = {user: group for user, group, _ in USERS}
        self.asks: dict[str, tuple[str, int]] = {}
        self.running: dict[str, Piece] = {}
        self.pieces: list[Piece] = []
        self.restricted: dict[str, int | None] = {}
        self.moved = False  # a user of another tier now may have more than that allows: what runs goes on
        self.count = 0
        super().__init__(params, *HOSTS)
        for user, group, tier in USERS:
            self.apply(ev.UserSet(0, user, group, tier))

    # -- books -------------------------------------------------------------------------------------------------------

    def turn(self, sid: str, amount_m: int | None) -> None:
        """A session holds so much from now on; None = nothing."""
        before = self.running.pop(sid, None)
        if before is not None:
            before.until_ms = self.now
        if amount_m is not None:
            self.running[sid] = Piece(self.asks[sid][0], self.now, amount_m)
            self.pieces.append(self.running[sid])

    def apply(self, *events: ev.Event) -> None:
        for event in events:
            super().apply(event)
            if isinstance(event, ev.SessionEnded):
                self.turn(event.session, None)
            elif isinstance(event, ev.UserRestricted):
                self.restricted[event.user] = event.until_ms
            elif isinstance(event, ev.UserPardoned):
                self.restricted.pop(event.user, None)
            elif isinstance(event, ev.SessionSubmitted):
                self.asks[event.session] = (event.user, event.gpus * event.fraction_m)

    def obey(self, decision: Decision) -> None:
        sid = decision.session
        if decision.action is Action.START:
            user = self.asks[sid][0]
            assert not self.is_restricted(user, self.now)
            self.turn(sid, self.asks[sid][1])
            if decision.reason.rule != "order.nominated":  # chosen while its limits allowed it: it keeps its claim
                assert self.used(user, self.now) < self.quota(user)
                self.check_running(user)
        elif decision.granted_m is not None:
            self.turn(sid, decision.granted_m)  # on shared GPUs only, so on one
        super().obey(decision)

    def is_restricted(self, user: str, at_ms: int) -> bool:
        until_ms = self.restricted.get(user, 0)
        return until_ms is None or until_ms > at_ms

    def quota(self, user: str) -> int:
        return round({"free": 2.0, "lab": 5.0}[self.tier_of[user]] * HOUR_MS * WHOLE_M)

    def used(self, user: str, at_ms: int) -> int:
        """Thousandths of a GPU times milliseconds within the window of the user's tier."""
        start = at_ms - 3 * HOUR_MS if self.tier_of[user] == "free" else at_ms - at_ms % DAY_MS
        total = 0
        for piece in self.pieces:
            if piece.user == user:
                until = at_ms if piece.until_ms is None else piece.until_ms
                total += piece.amount_m * max(0, until - max(start, piece.from_ms))
        return total

    def nominated(self) -> list[str]:
        return [claim.waiter.id for claim in self.core.view.claims.values() if claim.waiter is not None]

    def taken(self, users: list[str]) -> tuple[int, int]:
        """(sessions, thousandths of a GPU) that these users run or are nominated for."""
        sids = [sid for sid in (*self.running, *self.nominated()) if self.asks[sid][0] in users]
        return len(sids), sum(self.asks[sid][1] for sid in sids)

    def pool_of(self, user: str) -> list[str]:
        return [
            other
            for other in self.tier_of
            if (self.group_of[other], self.tier_of[other]) == (self.group_of[user], self.tier_of[user])
        ]

    # -- what is checked ---------------------------------------------------------------------------------------------

    def check_running(self, user: str) -> None:
        """Those that hold GPUs are within the limits of the user's present tier."""
        most_sessions, most_m, most_pool_m = MOST[self.tier_of[user]]
        amounts = [self.asks[sid][1] for sid in self.running if self.asks[sid][0] == user]
        assert len(amounts) <= most_sessions
        assert sum(amounts) <= most_m
        assert sum(self.asks[sid][1] for sid in self.running if self.asks[sid][0] in self.pool_of(user)) <= most_pool_m

    def check_limits(self) -> None:
        """No user and no group has more than it may, those nominated included."""
        if self.moved:
            return
        for user, tier_name in self.tier_of.items():
            sessions, gpus_m = self.taken([user])
            _, pool_m = self.taken(self.pool_of(user))
            most_sessions, most_m, most_pool_m = MOST[tier_name]
            assert sessions <= most_sessions
            assert gpus_m <= most_m
            assert pool_m <= most_pool_m

    def expected(self, sid: str, at_ms: int) -> str | None:
        """The rule that blocks a waiting session; None = nothing does."""
        user, amount_m = self.asks[sid]
        sessions, gpus_m = self.taken([user])
        _, pool_m = self.taken(self.pool_of(user))
        most_sessions, most_m, most_pool_m = MOST[self.tier_of[user]]
        if self.is_restricted(user, at_ms):
            return "limit.restricted"
        if self.used(user, at_ms) >= self.quota(user):
            return "limit.quota"
        if sessions >= most_sessions:
            return "limit.sessions-per-user"
        if gpus_m + amount_m > most_m:
            return "limit.gpus-per-user"
        return "limit.gpus-per-group" if pool_m + amount_m > most_pool_m else None

    def waiting(self) -> list[Session]:
        return [s for s in self.core.sessions.values() if s.state is State.QUEUED and s.claim is None]

    def check_waiting(self, at_ms: int) -> None:
        """At an instant at which the core asks for no cycle: whoever waits is blocked as expected, or does not fit."""
        for session in self.waiting():
            rule = self.expected(session.id, at_ms)
            block = session.user.cells[session.shape].block
            assert (None if block is None else block.rule) == rule
            assert rule is not None or not self.core.cluster.fits(session.shape)
        assert not self.core.view.unplaceable

    def cycle(self, now: int | None = None) -> list[Decision]:
        made = super().cycle(now)
        self.check_limits()
        self.check_waiting(self.now)
        return made

    # -- acts --------------------------------------------------------------------------------------------------------

    def play(self, act: Act) -> None:
        kind, x, y = act
        user = USERS[x % len(USERS)][0]
        if kind == "submit":
            self.ask(user, ASKED[y % len(ASKED)])
        elif kind == "wait":
            self.pause(PAUSES_MS[x % len(PAUSES_MS)])
        elif kind == "restrict":
            self.apply(ev.UserRestricted(self.now, user, None if y % 3 == 0 else self.now + (y + 1) * 10 * MINUTE_MS))
        elif kind == "pardon":
            self.apply(ev.UserPardoned(self.now, user))
        elif kind == "use":
            self.apply(ev.UsageSet(self.now, user, float(y)))
        elif kind == "tier":
            self.tier_of[user], self.moved = ("free", "lab")[y % 2], True
            self.apply(ev.UserSet(self.now, user, self.group_of[user], self.tier_of[user]))
        elif kind == "restore":
            self.core = self.twin().core
        else:
            self.move(kind, x, y)
        self.cycle()

    def twin(self) -> Site:
        return Site.twin(self)

    def move(self, kind: str, x: int, y: int) -> None:
        """Something happens to one of the sessions."""
        states = {
            "end": (State.RUNNING, State.STOPPING),
            "load": (State.RUNNING,),
            "hold": (State.QUEUED,),
            "unhold": (State.HELD,),
            "cancel": (State.QUEUED, State.HELD, State.RUNNING),
        }[kind]
        sids = [sid for sid, session in self.core.sessions.items() if session.state in states]
        if not sids:
            return
        sid = sids[x % len(sids)]
        if kind == "load":
            self.apply(ev.LoadReported(self.now, sid, (y % 5) / 4))
        else:
            event: dict[str, Callable[[int, str], ev.Event]] = {
                "end": ev.SessionEnded,
                "hold": ev.SessionHeld,
                "unhold": ev.SessionUnheld,
                "cancel": ev.SessionCancelled,
            }
            self.apply(event[kind](self.now, sid))

    def ask(self, user: str, asked: dict[str, Any]) -> None:
        """Submit, with the refusal that is to be expected."""
        self.count += 1
        sid = f"s{self.count}"
        amount_m = asked.get("gpus", 1) * asked.get("fraction_m", WHOLE_M)
        queued = sum(1 for s in self.core.sessions.values() if s.state is State.QUEUED and s.user.name == user)
        rule = None
        if self.tier_of[user] == "free":
            if asked.get("gpu_type", "T4") != "T4":
                rule = "limit.model"
            elif queued >= 3:
                rule = "limit.queued-per-user"
            elif amount_m > 2300:
                rule = "limit.gpus-per-user"
        elif queued >= 5:
            rule = "limit.queued-per-user"
        self.submit(sid, user, **asked)
        made = self.cycle()
        refused = [d.reason.rule for d in made if d.action is Action.REJECT]
        assert refused == ([] if rule is None else [rule])
        if self.tier_of[user] == "free" and rule is None:
            assert set(self.host_of(sid)) <= {"t"}

    def pause(self, span_ms: int) -> None:
        """Cycle when the core asks for it, and see that it does not ask too late: nothing was due just before."""
        end = self.now + span_ms
        for _ in range(200):
            if self.deadline is None or self.deadline > end:
                break
            assert self.deadline > self.now
            if self.deadline - 1 > self.now:
                self.check_waiting(self.deadline - 1)
            self.cycle(self.deadline)
        else:
            end = self.now
        self.check_waiting(end)
        self.now = end


def play(acts: list[Act]) -> Watched:
    site = Watched()
    for act in acts:
        site.play(act)
    check_replay(site.lines)
    return site


@given(st.lists(st.tuples(st.sampled_from(ACTS), st.integers(0, 20), st.integers(0, 20)), max_size=50))
@settings(max_examples=200)
def test_limits_hold_in_any_history(acts: list[Act]) -> None:
    """Nobody has more than allowed, nobody who may start waits beside GPUs that it fits, and a replay says the same."""
    play(acts)


def acts_of(seed: int, kinds: tuple[str, ...] = ACTS) -> list[Act]:
    draw = random.Random(seed)
    return [(draw.choice(kinds), draw.randrange(21), draw.randrange(21)) for _ in range(60)]


def play_seeds(number: int, kinds: tuple[str, ...] = ACTS) -> None:
    """So many random histories, the same each time."""
    for seed in range(number):
        play(acts_of(seed, kinds))


def test_limits_hold_in_long_histories_with_restarts() -> None:
    """The core is replaced by a restored one again and again, and a replay by one core alone says the same."""
    play_seeds(60, ACTS_RESTORED)


def test_long_histories_meet_every_limit() -> None:
    """Of the tests above it is known that they look at something: each rule blocks or refuses, and people give way."""
    rules: set[str] = set()
    actions: set[Action] = set()
    for seed in range(60):
        site = Watched()
        for act in acts_of(seed):
            site.play(act)
            rules |= {rule for s in site.waiting() if (rule := site.expected(s.id, site.now)) is not None}
        rules |= {d.reason.rule for d in site.made}
        actions |= {d.action for d in site.made}
        check_replay(site.lines)
    assert set(limits_module.CODE_OF) <= rules
    assert {Action.GRACE, Action.EVICT, Action.THROTTLE} <= actions
    assert "order.nominated" in rules


# -- planted faults --------------------------------------------------------------------------------------------------

honest_against, honest_turns = Limits.against, Holdings.turns_ms
BLOCKING = (
    "limit.restricted",
    "limit.quota",
    "limit.sessions-per-user",
    "limit.gpus-per-user",
    "limit.gpus-per-group",
)


def without(rule: str) -> Callable[..., Block | None]:
    def against(self: Limits, user: Any, shape: Any, now_ms: int) -> Block | None:
        block = honest_against(self, user, shape, now_ms)
        return None if block is not None and block.rule == rule else block

    return against


def late(self: Holdings, limit: int, counted: Window, now_ms: int) -> int | None:
    found = honest_turns(self, limit, counted, now_ms)
    return None if found is None else found + 1


FAULTS: dict[str, tuple[object, str, Any]] = {
    **{f"no {rule}": (Limits, "against", without(rule)) for rule in BLOCKING},
    "nothing is refused": (Limits, "refusal", lambda self, user, shape, waiting: None),
    "no deadline": (Limits, "next_ms", lambda self, user, now_ms: 1 << 62),
    "a millisecond late": (Holdings, "turns_ms", late),
    "the group is not told": (Limits, "_count", lambda self, user: []),
    "the nominated do not count": (
        limits_module,
        "occupied_m",
        lambda user: sum(session.shape.amount_m for session in user.held.values()),
    ),
    "holdings are not kept": (Limits, "_keep", lambda self, user, now_ms: None),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_caught(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of these mistakes is found within some random histories."""
    owner, name, wrong = FAULTS[fault]
    monkeypatch.setattr(owner, name, wrong)
    with pytest.raises(AssertionError):
        play_seeds(60)


@KINDS
def test_a_core_without_the_limit_fails_the_test_of_blocked_sessions(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is shown above for each limit is shown by that limit."""
    monkeypatch.setattr(Limits, "against", lambda self, user, shape, now_ms: None)
    monkeypatch.setattr(Limits, "within", lambda self, user, shape, count: count)
    with pytest.raises(AssertionError):
        check_nobody_gives_way(blocked(kind))
