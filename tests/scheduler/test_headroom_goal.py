"""Headroom by goal in the core: what it learns from, when it is set, and what it keeps free."""

from __future__ import annotations

import dataclasses
import json
import random
from typing import Any

import pytest

from policies import headroom as headroom_module
from policies.catalogue import make_policy
from policies.demand import Demand, stock_gpus
from policies.headroom import STOCK_EVERY_MS, lead_time_ms, stock_m
from policies.model import HOUR_MS, WHOLE_M, Action
from policies.order import FairQueue
from policies.params import HeadroomParams, LadderParams, Params, TierParams
from policies.save_times import SaveTimes
from scheduler import checkpoint
from scheduler import events as ev
from scheduler.journal import replay
from tests.scheduler.site import Site as BaseSite

MINUTE_MS = 60_000
GOAL = HeadroomParams(confidence=0.95, max_fraction=0.5, prior_per_h=6.0, prior_dispersion=2.0)
NEVER_PATIENT = LadderParams(patience_ms=10**12)


def params_of(headroom: HeadroomParams = GOAL, ladder: LadderParams = NEVER_PATIENT, **tier: Any) -> Params:
    return Params(tiers={"free": TierParams(**{"baseline_gpus": 5.0, **tier})}, headroom=headroom, ladder=ladder)


class Site(BaseSite):
    """A site with one host, that is asked about its headroom."""

    def __init__(self, params: Params, gpus: int = 20) -> None:
        super().__init__(params, ev.HostJoined(0, "h", gpus))

    @property
    def demand(self) -> Demand:
        assert isinstance(self.core.queue, FairQueue)
        return self.core.queue.demand

    @property
    def goal_gpus(self) -> float | None:
        """The stock by goal, uncapped; None = there is no goal."""
        goal_m = self.core.view.memory.stock_m
        return None if goal_m is None else goal_m / WHOLE_M

    @property
    def stock_gpus(self) -> float:
        return stock_m(self.core.view, self.core.params) / WHOLE_M

    def ask(self, sid: str, user: str, **asked: Any) -> list[str]:
        """What starts when a user asks now."""
        self.apply(ev.SessionSubmitted(self.now, sid, user, **asked))
        return [d.session for d in self.cycle() if d.action is Action.START]

    def use(self, user: str, gpu_h: float = 10_000.0) -> None:
        self.apply(ev.UserSet(self.now, user), ev.UsageSet(self.now, user, gpu_h))

    def counted(self) -> dict[str, int]:
        """Thousandths of a GPU that count of each user in the hour that runs."""
        return dict(self.demand.counts.by_user)

    def departed(self) -> float:
        return self.demand.hazard.departed_gpus


# -- when it is set, and to what -----------------------------------------------------------------------------------


def test_cold_it_follows_the_prior() -> None:
    """Before anything is learned: the quantile of the prior's negative binomial over warning and grace."""
    site = Site(params_of())
    site.cycle()
    hours = lead_time_ms(site.core.params, SaveTimes()) / HOUR_MS
    assert hours == 10 / 60
    shape = 6.0 / (2.0 - 1.0)  # variance / mean of one hour = 1 + mean / k
    assert site.goal_gpus == stock_gpus(6.0 * hours, shape, 0.0, 0.95)
    assert 0 < site.goal_gpus < 10


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.99])
def test_a_higher_goal_keeps_more(confidence: float) -> None:
    """More confidence never keeps less, and a longer way to refill neither."""
    stocks = []
    for grace in (0, 300_000, 3_600_000):
        ladder = dataclasses.replace(NEVER_PATIENT, grace_ms=grace)
        for goal in (confidence, 0.999):
            site = Site(params_of(dataclasses.replace(GOAL, confidence=goal), ladder))
            site.cycle()
            stocks.append(site.goal_gpus or 0)
    short, short_sure, middle, middle_sure, long, long_sure = stocks
    assert short <= middle <= long
    assert short <= short_sure
    assert middle < middle_sure
    assert long < long_sure


@pytest.mark.parametrize(("gpus", "fraction", "most"), [(20, 0.25, 5), (3, 0.25, 0), (20, 0.0, 0), (7, 0.5, 3)])
def test_it_is_never_more_than_the_part_of_the_pool(gpus: int, fraction: float, most: int) -> None:
    """Whole GPUs, however much the goal would ask for; and the part follows the pool when a host is drained."""
    greedy = dataclasses.replace(GOAL, prior_per_h=600.0, max_fraction=fraction)
    site = Site(params_of(greedy), gpus)
    site.cycle()
    assert (site.goal_gpus or 0) > gpus
    assert site.stock_gpus == most
    site.apply(ev.HostDrained(0, "h"))
    site.cycle()
    assert site.stock_gpus == 0


def test_without_a_goal_the_fixed_number_stands() -> None:
    """`confidence` absent: nothing that is learned moves it, and nobody is woken for it."""
    site = Site(params_of(HeadroomParams(fixed_gpus=3)))
    for number in range(10):
        site.ask(f"s{number}", f"u{number}")
    site.pass_until(5 * HOUR_MS)
    assert site.goal_gpus is None
    assert site.stock_gpus == 3
    assert not any(at % STOCK_EVERY_MS == 0 for at in site.core.pending_wakes())


def test_a_goal_takes_the_place_of_the_fixed_number() -> None:
    """Also when it says nothing need be kept."""
    site = Site(params_of(dataclasses.replace(GOAL, fixed_gpus=7, prior_per_h=0.0, prior_dispersion=1.0)))
    site.cycle()
    assert site.goal_gpus == site.stock_gpus == 0


def test_it_is_set_anew_every_quarter_of_an_hour_and_not_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    """On its grid by itself while somebody waits; other cycles do not compute it."""
    set_at: list[int] = []

    def seen(self: Demand, now_ms: int, *rest: Any) -> int:
        set_at.append(now_ms)
        return len(set_at)

    monkeypatch.setattr(Demand, "goal_stock_gpus", seen)
    site = Site(params_of())
    site.cycle()
    site.now = 2 * MINUTE_MS
    pool = int(site.core.cluster.total_m / WHOLE_M)
    site.ask("s", "u")
    site.ask("w", "v", gpus=pool)
    for minute in (3, 4, 7, 11, 12, 16, 20):
        site.pass_until(minute * MINUTE_MS)
        site.cycle()
    site.pass_until(46 * MINUTE_MS)
    assert set_at == [minute * MINUTE_MS for minute in (0, 15, 30, 45)]
    assert site.goal_gpus == len(set_at)


def test_when_nobody_is_there_nobody_is_woken_and_the_next_request_finds_it_set() -> None:
    """An empty cluster sleeps; hours later the first cycle sets the stock before it admits anybody."""
    site = Site(params_of())
    site.ask("s", "u")
    site.end("s")
    site.cycle()
    site.pass_until(10 * HOUR_MS)
    assert site.deadline is None
    site.ask("t", "u")
    assert site.core.view.memory.stock_due_ms == 10 * HOUR_MS + STOCK_EVERY_MS


def test_it_is_kept_from_those_out_of_credit_and_given_to_those_in_credit() -> None:
    """Out of credit everything but the stock; in credit the stock as well."""
    site = Site(params_of(), 10)
    site.use("poor")
    kept = 0
    for number in range(10):
        kept += not site.ask(f"p{number}", "poor")
    assert kept == site.stock_gpus == 3
    assert [site.ask(f"r{number}", f"rich{number}") for number in range(3)] == [["r0"], ["r1"], ["r2"]]


# -- what it learns from -------------------------------------------------------------------------------------------


def test_requests_in_credit_count_with_their_size_whether_they_wait_or_not() -> None:
    """GPUs and parts of one; also when nothing is free."""
    site = Site(params_of(), 2)
    site.ask("a", "ann")
    site.ask("b", "bob", fraction_m=300)
    site.ask("c", "cem", gpus=2)
    site.ask("d", "ann")
    assert site.counted() == {"ann": 2000, "bob": 300, "cem": 2000}


def test_what_could_not_start_in_credit_does_not_count() -> None:
    """Out of credit, cooling down, restricted, above a limit, refused, never fitting: none is demand to be met."""
    site = Site(params_of(gpus_per_user=2, queued_per_user=1, gpu_models=None))
    site.use("poor")
    site.ask("poor", "poor")
    site.apply(ev.UserSet(0, "bad"), ev.UserRestricted(0, "bad"))
    site.ask("bad", "bad")
    site.ask("wide", "ann", gpus=50)
    site.ask("three", "ann", gpus=3)
    assert site.counted() == {}
    site.ask("two", "ann", gpus=2)
    assert site.counted() == {"ann": 2000}
    site.now = HOUR_MS
    site.ask("blocked", "ann")  # holds as many as it may
    site.ask("refused", "ann")  # one waits already
    assert site.counted() == {}


def test_who_cools_down_does_not_count() -> None:
    """Its waiters count as out of credit."""
    site = Site(params_of())
    site.apply(ev.UserSet(0, "ann"))
    site.core.queue.cool_down(site.core.ledger.users["ann"], HOUR_MS)
    site.ask("s", "ann")
    assert site.counted() == {}


@pytest.mark.parametrize("limits", [{"gpus_per_user": 2}, {"sessions_per_user": 2}])
def test_one_user_counts_at_most_its_limit_an_hour(limits: dict[str, Any]) -> None:
    """Who asks and ends twenty times within an hour is no crowd; the next hour it counts again, and others too."""
    site = Site(params_of(**limits))
    for number in range(20):
        site.now = number * MINUTE_MS
        site.ask(f"s{number}", "ann")
        site.end(f"s{number}")
    site.ask("t", "bob")
    assert site.counted() == {"ann": 2000, "bob": 1000}
    site.now = HOUR_MS
    site.ask("u", "ann")
    assert site.counted() == {"ann": 1000}


def test_without_a_limit_all_of_it_counts() -> None:
    """Twenty GPUs asked for are twenty GPUs of demand."""
    site = Site(params_of())
    for number in range(20):
        site.ask(f"s{number}", "ann")
        site.end(f"s{number}")
    assert site.counted() == {"ann": 20_000}


@pytest.mark.parametrize(
    ("outcome", "departed"), [("completed", 2.0), ("failed", 2.0), ("cancelled", 2.0), ("evicted", 0.0)]
)
def test_departures_by_themselves_count_and_evictions_do_not(outcome: str, departed: float) -> None:
    """What the policy takes is no sign of what comes back by itself; what is held falls either way."""
    site = Site(params_of())
    site.ask("s", "ann", gpus=2)
    assert site.demand.hazard.held_m == 2000
    site.end("s", outcome=outcome)
    assert site.departed() == departed
    assert site.demand.hazard.held_m == 0


def test_a_lost_session_is_no_departure() -> None:
    """Its host fell silent."""
    site = Site(params_of())
    site.apply(ev.HostJoined(0, "beat", 30, heartbeat=True))
    site.ask("s", "ann", gpus=25)
    site.pass_until(HOUR_MS)
    assert [d.action for d in site.made] == [Action.START, Action.LOSE]
    assert site.departed() == 0.0
    assert site.demand.hazard.held_m == 0


def test_departures_expected_lower_the_stock() -> None:
    """Sessions of six minutes come back in time: with twelve held less must be kept than with none."""
    site = Site(params_of(dataclasses.replace(GOAL, prior_per_h=30.0)), 40)
    for number in range(600):
        site.pass_until(number * MINUTE_MS)
        site.cycle()
        site.ask(f"s{number}", f"u{number % 7}")
        if number >= 6:
            site.end(f"s{number - 6}")
    busy = site.goal_gpus
    demand, now = site.demand, site.now
    lead = lead_time_ms(site.core.params, SaveTimes())
    assert busy is not None
    assert demand.hazard.per_hour(now) > 2
    assert busy < demand.goal_stock_gpus(now, lead, 0, 0.95)


# -- days ----------------------------------------------------------------------------------------------------------


def ask_all_day(site: Site, days: int, seed: int = 1) -> None:
    """At 12..17 h UTC a request every 4 min or so, else one in three hours; each runs for half an hour."""
    draw = random.Random(seed)
    running: list[tuple[int, str]] = []
    for minute in range(days * 24 * 60):
        noon = 12 <= minute // 60 % 24 < 18
        at_ms = minute * MINUTE_MS
        while running and running[0][0] <= at_ms:
            site.pass_until(running[0][0])
            site.end(running.pop(0)[1])
            site.cycle()
        if draw.random() < (0.25 if noon else 1 / 180):
            site.pass_until(at_ms)
            site.ask(f"s{minute}", f"u{draw.randrange(40)}")
            running.append((at_ms + 30 * MINUTE_MS, f"s{minute}"))
    site.pass_until(days * 24 * HOUR_MS)


def through_the_day(site: Site) -> dict[int, float]:
    """The goal at half past each hour of the day to come."""
    begin, goals = site.now, {}
    for hour in range(24):
        site.pass_until(begin + hour * HOUR_MS + 30 * MINUTE_MS)
        site.cycle()
        goals[hour] = site.goal_gpus or 0
    return goals


def test_after_some_days_a_quiet_night_keeps_less_than_a_busy_noon() -> None:
    """Six days of busy afternoons: the stock of the next day follows them; at first the prior was all it knew."""
    site = Site(params_of(), 40)
    ask_all_day(site, 6)
    goals = through_the_day(site)
    night, noon = [goals[hour] for hour in range(1, 10)], [goals[hour] for hour in range(13, 17)]
    assert max(night) < min(noon)
    assert site.stock_gpus <= 20


def learned_site() -> Site:
    site = Site(params_of(sessions_per_user=3), 12)
    ask_all_day(site, 2, seed=5)
    site.ask("last", "ann")
    return site


def test_what_was_learned_survives_a_checkpoint() -> None:
    """Restored in the middle of an hour and between two settings: the same stocks, deadlines and decisions after."""
    site = learned_site()
    site.pass_until(site.now + 7 * MINUTE_MS)
    site.apply(ev.SessionSubmitted(site.now, "more", "bob", gpus=2))
    data = json.loads(json.dumps(checkpoint.dump(site.core), allow_nan=False))
    again = Site(site.core.params)
    again.core, again.now = checkpoint.restore(data, site.core.policy), site.now
    assert checkpoint.dump(again.core) == checkpoint.dump(site.core)
    for number in range(300):
        for one in (site, again):
            one.ask(f"n{number}", f"u{number % 9}")
            one.end(f"n{number}") if f"n{number}" in one.core.view.holders else None
            one.pass_until(one.now + 4 * MINUTE_MS)
        assert (again.goal_gpus, again.deadline) == (site.goal_gpus, site.deadline)
    assert again.lines[-600:] == site.lines[-600:]
    assert checkpoint.dump(again.core) == checkpoint.dump(site.core)


def test_the_journal_replays_without_a_difference() -> None:
    """The stock is computed from what the journal holds, and from nothing else."""
    site = learned_site()
    results = list(replay([f"{line}\n" for line in site.lines], "j.jsonl"))
    assert results == [number for number, line in enumerate(site.lines, 1) if line.startswith('{"cycle"')]


def test_another_policy_begins_with_what_was_learned() -> None:
    """A new goal is a new stock at once; what was learned of requests stays."""
    site = learned_site()
    before = site.demand.dump()
    stricter = dataclasses.replace(site.core.params, headroom=dataclasses.replace(GOAL, confidence=0.999))
    core = checkpoint.under(site.core, make_policy(stricter))
    core.cycle(core.now_ms)
    assert isinstance(core.queue, FairQueue)
    assert core.queue.demand.dump()["sums"] == before["sums"]
    assert (core.view.memory.stock_m or 0) > (site.goal_gpus or 0) * WHOLE_M
    fixed = checkpoint.under(core, make_policy(params_of(HeadroomParams(fixed_gpus=1))))
    fixed.cycle(fixed.now_ms)
    assert fixed.view.memory.stock_m is None


def test_from_a_policy_that_learns_nothing_it_begins_with_what_is_held() -> None:
    """What was started under another policy ends under this one, and counts as a departure from what is held."""
    before = Site(Params(policy="fifo"))
    before.ask("s", "ann", gpus=2)
    site = Site(params_of())
    site.core = checkpoint.under(before.core, make_policy(params_of()))
    site.cycle()
    assert site.demand.hazard.held_m == 2000
    site.end("s")
    assert (site.demand.hazard.held_m, site.departed()) == (0, 2.0)


# -- planted faults ------------------------------------------------------------------------------------------------


def _all_requests(self: FairQueue, session: Any) -> None:
    self.demand.requested(self.clock.now_ms, session.user.name, session.shape.amount_m, None)


def _all_departures(self: FairQueue, amount_m: int, *, by_itself: bool) -> None:
    self.demand.departed(self.clock.now_ms, amount_m)
    self.took(-amount_m)


@pytest.mark.parametrize(
    ("owner", "name", "wrong", "check"),
    [
        (FairQueue, "requested", _all_requests, test_what_could_not_start_in_credit_does_not_count),
        (
            FairQueue,
            "requested",
            _all_requests,
            lambda: test_one_user_counts_at_most_its_limit_an_hour({"gpus_per_user": 2}),
        ),
        (
            FairQueue,
            "gave_back",
            _all_departures,
            lambda: test_departures_by_themselves_count_and_evictions_do_not("evicted", 0.0),
        ),
        (FairQueue, "learned", lambda self: None, test_what_was_learned_survives_a_checkpoint),
        (
            headroom_module,
            "STOCK_EVERY_MS",
            600_000,
            test_when_nobody_is_there_nobody_is_woken_and_the_next_request_finds_it_set,
        ),
    ],
    ids=["all-requests", "no-limit", "all-departures", "not-in-checkpoints", "every-ten-minutes"],
)
def test_planted_faults_are_caught(
    owner: object, name: str, wrong: Any, check: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of these breaks a rule, and a test above sees it."""
    monkeypatch.setattr(owner, name, wrong)
    with pytest.raises((AssertionError, ValueError)):
        check()
