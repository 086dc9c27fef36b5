"""Lifetime and idle in the core: who is told and ended at which instant, and that nobody has to watch the clock."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import tracks as tracks_module
from policies.ladder import LoadLadder
from policies.model import Action, Decision, Session, State
from policies.params import IdleParams, LadderParams, Params, TierParams
from policies.tracks import Tracks
from scheduler import checkpoint
from scheduler import events as ev
from scheduler.core import Core, CoreError
from scheduler.journal import replay
from tests.scheduler.site import Site as BaseSite

MINUTE_MS = 60_000
NEVER_PATIENT = LadderParams(patience_ms=10**12)
IDLE = IdleParams(warn_ms=120 * MINUTE_MS, release_ms=180 * MINUTE_MS)
Said = tuple[float, str, str, str]
"""(minute, session, action, rule)"""


class Site(BaseSite):
    """A site whose times are minutes."""

    def until(self, minute: float) -> list[Said]:
        """Cycle at every deadline that the core asks for up to that minute, and at no other instant."""
        return said(self.pass_until(round(minute * MINUTE_MS)))

    def at(self, minute: float, *events: ev.Event) -> list[Said]:
        """Go there, then let it happen (times of the events are ignored) and decide."""
        made = self.until(minute)
        self.apply(*(event._replace(at_ms=self.now) for event in events))
        return made + said(self.cycle())

    def run(self, sid: str = "s", user: str = "ann", load: float | None = None, **asked: Any) -> None:
        """A session starts now, with a load that is known or not."""
        self.apply(ev.SessionSubmitted(self.now, sid, user, **asked))
        self.cycle()
        assert self.core.sessions[sid].state is State.RUNNING
        if load is not None:
            self.apply(ev.LoadReported(self.now, sid, load))
            self.cycle()


def said(decisions: list[Decision]) -> list[Said]:
    return [(d.at_ms / MINUTE_MS, d.session, d.action.value, d.reason.rule) for d in decisions]


def params_of(
    lifetime: int | None = None,
    longest: int | None = None,
    *,
    idle: IdleParams | None = None,
    ladder: LadderParams = NEVER_PATIENT,
    baseline: float = 0.5,
) -> Params:
    """Minutes."""
    tier = TierParams(
        baseline_gpus=baseline,
        lifetime_ms=None if lifetime is None else lifetime * MINUTE_MS,
        longest_ms=None if longest is None else longest * MINUTE_MS,
    )
    return Params(tiers={"free": tier}, idle=idle or IdleParams(), ladder=ladder)


def asks(sid: str = "w", user: str = "bob") -> ev.SessionSubmitted:
    return ev.SessionSubmitted(0, sid, user)


# -- lifetime ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [0, 7])
@pytest.mark.parametrize("waits", [False, True])
def test_told_twice_and_ended_to_the_millisecond(start: int, waits: bool) -> None:
    """30 and 10 min ahead, then the end, whether somebody waits or not; a waiter starts in that very instant."""
    site = Site(params_of(120))
    site.at(start)
    site.run()
    if waits:
        site.at(start + 5, asks())
    made = site.until(start + 500)
    mine = [
        (start + 90, "s", "notice", "lifetime.warn"),
        (start + 110, "s", "notice", "lifetime.warn"),
        (start + 120, "s", "evict", "lifetime.end"),
    ]
    assert [one for one in made if one[1] == "s"] == mine
    starts = [one for one in made if one[2] == "start"]
    assert starts == ([(start + 120, "w", "start", "order.in-credit")] if waits else [])
    told = [d for d in site.made if d.session == "s" and d.action is Action.NOTICE]
    assert [(d.reason.until_ms, d.reason.change, d.ladder) for d in told] == [
        ((start + 120) * MINUTE_MS, "save-now", None)
    ] * 2
    end = next(d.reason for d in site.made if d.session == "s" and d.action is Action.EVICT)
    assert (end.value, end.threshold, end.unit, end.until_ms) == (2.0, 2.0, "h", None)


@pytest.mark.parametrize("start", [0, 3, 1000])
@pytest.mark.parametrize(
    ("lifetime", "told"), [(5, [0]), (10, [0]), (20, [0, 10]), (30, [0, 20]), (31, [1, 21]), (45, [15, 35])]
)
def test_a_short_lifetime_is_told_of_from_the_start(start: int, lifetime: int, told: list[int]) -> None:
    """What would have to be said before the start is said at the start, once, at whatever time the clock began."""
    site = Site(params_of(lifetime))
    site.at(start)
    site.run()
    site.until(start + 100)
    assert [one for one in said(site.made) if one[2] != "start"] == [
        *[(start + at, "s", "notice", "lifetime.warn") for at in told],
        (start + lifetime, "s", "evict", "lifetime.end"),
    ]


def test_an_extension_moves_the_end_and_the_warnings_up_to_the_longest() -> None:
    """Each extension begins a new lifetime; beyond `longest` nothing helps, and the notice says so."""
    site = Site(params_of(120, 300))
    site.run()
    assert site.at(100, ev.SessionExtended(0, "s")) == [(90, "s", "notice", "lifetime.warn")]
    assert site.at(215, ev.SessionExtended(0, "s")) == [
        (190, "s", "notice", "lifetime.warn"),
        (210, "s", "notice", "lifetime.warn"),
    ]
    made = site.at(280, ev.SessionExtended(0, "s")) + site.until(400)
    assert made == [
        (270, "s", "notice", "lifetime.warn"),
        (290, "s", "notice", "lifetime.warn"),
        (300, "s", "evict", "lifetime.end"),
    ]
    told = [(d.reason.until_ms, d.reason.change) for d in site.made if d.action is Action.NOTICE]
    ends = [(120, "extend"), (220, "extend"), (220, "extend"), (300, "save-now"), (300, "save-now")]
    assert told == [(minute * MINUTE_MS, change) for minute, change in ends]


def test_an_extension_at_the_last_instant_still_counts() -> None:
    """Said in the millisecond before the end, it runs for another lifetime."""
    site = Site(params_of(60, 600))
    site.run()
    site.until(60 - 1 / MINUTE_MS)
    site.apply(ev.SessionExtended(site.now, "s"))
    assert site.cycle() == []
    made = [one for one in site.until(200) if one[2] == "evict"]
    assert made == [(120 - 1 / MINUTE_MS, "s", "evict", "lifetime.end")]


def test_a_short_lifetime_is_told_of_again_after_an_extension() -> None:
    """Eight minutes, extended after one: the new end is told at once, though it is less than 10 min ahead."""
    site = Site(params_of(8, 100))
    site.run()
    made = site.at(1, ev.SessionExtended(0, "s")) + site.until(50)
    assert made == [(1, "s", "notice", "lifetime.warn"), (9, "s", "evict", "lifetime.end")]
    assert site.made[2].reason.until_ms == 9 * MINUTE_MS


def test_without_longest_an_extension_changes_nothing() -> None:
    """No word of when extensions end means that there are none."""
    site = Site(params_of(120))
    site.run()
    made = site.at(100, ev.SessionExtended(0, "s")) + site.until(300)
    assert [one[0] for one in made] == [90, 110, 120]
    assert {d.reason.change for d in site.made if d.action is Action.NOTICE} == {"save-now"}


def test_only_the_tiers_with_a_lifetime_have_one() -> None:
    """Another tier runs on; a tier that is not listed is treated as free."""
    params = params_of(60)
    site = Site(
        dataclasses.replace(params, tiers={**params.tiers, "lab": TierParams(baseline_gpus=5.0)}),
        ev.HostJoined(0, "h", 3),
    )
    site.run("s", "ann")
    site.run("t", "bob", tier="lab")
    site.run("u", "cem", tier="unlisted")
    site.until(1000)
    assert [one[:2] for one in said(site.made) if one[2] == "evict"] == [(60, "s"), (60, "u")]
    assert list(site.core.sessions) == ["t"]


def test_who_outlived_its_time_cools_down_from_nothing() -> None:
    """It may ask again at once, in credit as before."""
    site = Site(params_of(60))
    site.run()
    site.until(60)
    assert "s" not in site.core.sessions
    assert site.core.ledger.users["ann"].cooldown_until_ms == 0
    assert site.at(60, asks("t", "ann")) == [(60, "t", "start", "order.in-credit")]


def test_a_session_that_is_being_stopped_is_left_alone() -> None:
    """Cancelled before its first warning, and its host takes its time: nothing more is said, and it is ended once."""
    site = Site(params_of(60), ev.HostJoined(0, "h", 2))
    site.run()
    site.run("t", "bob")
    site.at(20, ev.SessionCancelled(0, "s"), ev.EvictionOrdered(0, "t"))
    assert site.until(500) == []
    with pytest.raises(CoreError, match="extended"):
        site.core.apply(ev.SessionExtended(site.now, "s"))


def poor_in_grace_at(minute: int, params: Params) -> Site:
    """ann is far out of credit; her session `s` is in grace for `w` of bob from that minute on, for five."""
    ladder = LadderParams(min_run_ms=minute * MINUTE_MS, patience_ms=10**12)
    site = Site(dataclasses.replace(params, ladder=ladder))
    site.apply(ev.UserSet(0, "ann"), ev.UsageSet(0, "ann", 1000.0))
    site.run(load=0.0)
    site.apply(asks())
    site.cycle()
    return site


def test_a_lifetime_that_ends_in_grace_ends_it_and_the_gpu_is_the_nominated_waiters() -> None:
    """The claim of the ladder stands: its waiter gets the GPU, not whoever else asks; and no cooldown begins."""
    site = poor_in_grace_at(58, params_of(60))
    site.at(59, asks("late", "cem"))
    made = site.until(60)
    assert made == [(60, "s", "evict", "lifetime.end"), (60, "w", "start", "order.nominated")]
    assert site.core.view.claims == {}
    assert site.core.ledger.users["ann"].cooldown_until_ms == 0


def test_one_of_two_victims_outlives_its_time_and_the_other_gives_way_still() -> None:
    """The claim waits until the first has left, then goes on with the second."""
    ladder = LadderParams(min_run_ms=0, warn_ms=0, patience_ms=10**12)
    site = Site(params_of(60, 600, ladder=ladder), ev.HostJoined(0, "h", 2))
    site.apply(ev.UserSet(0, "ann"), ev.UsageSet(0, "ann", 1000.0))
    site.run("s")
    site.run("t")
    site.at(30, ev.SessionExtended(0, "t"))
    made = site.at(58, ev.SessionSubmitted(0, "w", "bob", gpus=2))
    assert {one[1] for one in made if one[2] == "grace"} == {"s", "t"}
    made = [one for one in site.until(100) if one[2] in ("evict", "start")]
    assert made == [
        (60, "s", "evict", "lifetime.end"),
        (63, "t", "evict", "ladder.evict"),
        (63, "w", "start", "order.nominated"),
    ]


def test_a_lifetime_ends_on_a_silent_host_too() -> None:
    """It needs no telemetry: a host that is stale and not yet lost does not put it off."""
    site = Site(params_of(60), ev.HostJoined(0, "beat", 1, heartbeat=True))
    site.run()
    for second in range(20, 60 * 60 - 30, 10):
        site.at(second / 60, ev.HostReported(0, "beat"))
    assert site.until(60) == [(60, "s", "evict", "lifetime.end")]
    assert site.core.view.stale_hosts == {"beat"}  # its last report is 40 s old
    assert site.core.view.lost_hosts == set()


# -- idle ----------------------------------------------------------------------------------------------------------


def test_idle_is_told_and_ended_under_contention() -> None:
    """Somebody waits all the time: told after two hours, ended after three, and the GPU is the waiter's."""
    site = Site(params_of(idle=IDLE))
    site.run(load=0.0)
    made = site.at(5, asks()) + site.until(1000)
    assert made[:3] == [
        (120, "s", "notice", "idle.warn"),
        (180, "s", "evict", "idle.end"),
        (180, "w", "start", "order.waited-long"),
    ]
    told, ended = (d.reason for d in site.made if d.reason.rule.startswith("idle"))
    assert (told.value, told.threshold, told.until_ms, told.change) == (120, 120, 180 * MINUTE_MS, "use-or-extend")
    assert (ended.value, ended.threshold, ended.until_ms, ended.change) == (180, 180, None, "resubmit-idle")
    assert site.core.ledger.users["ann"].cooldown_until_ms == 0


def test_without_contention_nobody_idle_is_touched_and_who_is_told_late_has_the_full_time() -> None:
    """Idle for five hours when somebody comes: told then, and ended an hour later, not at once."""
    site = Site(params_of(idle=IDLE))
    site.run(load=0.0)
    assert site.until(300) == []
    made = site.at(300, asks()) + site.until(400)
    assert made == [
        (300, "s", "notice", "idle.warn"),
        (360, "s", "evict", "idle.end"),
        (360, "w", "start", "order.in-credit"),
    ]
    assert site.made[1].reason.until_ms == 360 * MINUTE_MS


def test_always_means_without_contention_too() -> None:
    """`when = "always"`: nobody waits, and it is told and ended all the same."""
    site = Site(params_of(idle=dataclasses.replace(IDLE, when="always")))
    site.run(load=0.0)
    assert site.until(400) == [(120, "s", "notice", "idle.warn"), (180, "s", "evict", "idle.end")]


@pytest.mark.parametrize("when", ["contention", "always"])
@pytest.mark.parametrize("load", [None, 0.001, 1.0])
def test_unknown_load_and_the_least_load_are_not_idle(load: float | None, when: str) -> None:
    """A load never reported, reported as unknown, or just above nothing: it runs on."""
    site = Site(params_of(idle=dataclasses.replace(IDLE, when=when)))
    site.run()
    site.at(1, asks())
    if load is not None:
        site.apply(ev.LoadReported(site.now, "s", load))
        site.cycle()
    assert site.until(1000) == []


@pytest.mark.parametrize("load", [None, 0.001, 1.0])
@pytest.mark.parametrize("minute", [60, 150, 179])
def test_any_load_and_an_unknown_one_begin_it_anew(minute: int, load: float | None) -> None:
    """Also when it had been told already: it is told again before it is ended."""
    site = Site(params_of(idle=IDLE))
    site.run(load=0.0)
    site.at(0, asks())
    site.at(minute, ev.LoadReported(0, "s", load))
    made = site.at(minute + 1, ev.LoadReported(0, "s", 0.0)) + site.until(500)
    assert made[:2] == [(minute + 121, "s", "notice", "idle.warn"), (minute + 181, "s", "evict", "idle.end")]


@pytest.mark.parametrize("minute", [60, 120, 150, 179])
def test_an_extension_counts_as_activity(minute: int) -> None:
    """Also in the millisecond in which it is told: a new spell has its own warning."""
    site = Site(params_of(idle=IDLE))
    site.run(load=0.0)
    site.at(0, asks())
    site.at(minute, ev.SessionExtended(0, "s"))
    made = site.until(500)
    assert made[:2] == [(minute + 120, "s", "notice", "idle.warn"), (minute + 180, "s", "evict", "idle.end")]


def test_reports_of_nothing_again_and_again_change_nothing() -> None:
    """Load 0 every minute is one spell, and each host's report is no activity."""
    site = Site(params_of(idle=IDLE))
    site.run(load=0.0)
    site.at(0, asks())
    made: list[Said] = []
    for minute in range(1, 180):
        made += site.at(minute, ev.LoadReported(0, "s", 0.0))
    assert made + site.until(180) == [
        (120, "s", "notice", "idle.warn"),
        (180, "s", "evict", "idle.end"),
        (180, "w", "start", "order.waited-long"),
    ]


def test_contention_that_comes_and_goes() -> None:
    """Told while somebody waits; who waited gives up, so nothing happens; the next to come is served at once."""
    site = Site(params_of(idle=IDLE))
    site.run(load=0.0)
    site.at(0, asks())
    assert site.at(150, ev.SessionAbandoned(0, "w")) == [(120, "s", "notice", "idle.warn")]
    assert site.until(400) == []
    assert site.at(400, asks("x")) == [(400, "s", "evict", "idle.end"), (400, "x", "start", "order.in-credit")]


def test_told_after_the_time_was_over_and_calm_again() -> None:
    """Told late, then calm: whoever comes before the time between the two is over has to wait for its rest."""
    site = Site(params_of(idle=IDLE))
    site.run(load=0.0)
    assert site.at(300, asks()) == [(300, "s", "notice", "idle.warn")]
    assert site.at(301, ev.SessionAbandoned(0, "w")) == []
    assert site.at(330, asks("x")) == []
    assert site.until(400) == [(360, "s", "evict", "idle.end"), (360, "x", "start", "order.in-credit")]


def test_a_waiter_out_of_credit_makes_no_contention() -> None:
    """An idle GPU is not taken for somebody who may not make others give way."""
    site = Site(params_of(idle=IDLE))
    site.apply(ev.UserSet(0, "bob"), ev.UsageSet(0, "bob", 1000.0))
    site.run(load=0.0)
    site.at(0, asks())
    assert site.until(400) == []


def test_contention_must_last_as_the_ladder_says() -> None:
    """`contention` = 10 min: the idle are told ten minutes after somebody began to wait."""
    ladder = LadderParams(contention_ms=10 * MINUTE_MS, patience_ms=10**12)
    site = Site(params_of(idle=IDLE, ladder=ladder))
    site.run(load=0.0)
    assert site.at(200, asks()) == []
    assert site.until(210) == [(210, "s", "notice", "idle.warn")]


def test_the_minimum_run_does_not_protect_an_idle_session() -> None:
    """It is for those who work."""
    site = Site(params_of(idle=IDLE, ladder=LadderParams(min_run_ms=600 * MINUTE_MS, patience_ms=10**12)))
    site.run(load=0.0)
    site.at(0, asks())
    assert (180, "s", "evict", "idle.end") in site.until(200)


@pytest.mark.parametrize("when", ["contention", "always"])
@pytest.mark.parametrize(
    ("warn", "release", "expected"),
    [
        (120, None, [(120, "notice")]),
        (None, 180, [(180, "evict")]),
        (60, 60, [(60, "notice"), (60 + 1 / MINUTE_MS, "evict")]),
        (None, None, []),
    ],
)
def test_one_of_the_two_steps_may_be_off(
    warn: int | None, release: int | None, expected: list[tuple[float, str]], when: str
) -> None:
    """Told only, ended only, told and ended in one go (told before), neither."""
    warn_ms, release_ms = (None if minutes is None else minutes * MINUTE_MS for minutes in (warn, release))
    site = Site(params_of(idle=IdleParams(warn_ms=warn_ms, release_ms=release_ms, when=when)))
    site.run(load=0.0)
    site.at(0, asks())
    made = [(one[0], one[2]) for one in site.until(500) if one[1] == "s"]
    assert made == expected


@pytest.mark.parametrize("when", ["contention", "always"])
def test_a_host_that_fell_silent_ends_nobody(when: str) -> None:
    """What was last heard was `load 0`; nobody is told or ended on a stale host, and its next report goes on."""
    idle = IdleParams(warn_ms=20_000, release_ms=40_000, when=when)
    site = Site(params_of(idle=idle), ev.HostJoined(0, "beat", 1, heartbeat=True))
    site.run(load=0.0)
    site.at(0, asks())
    assert site.until(0.5) == [(20 / 60, "s", "notice", "idle.warn")]
    assert site.until(0.74) == []  # stale after 30 s; it would have ended at 40 s
    assert site.core.view.stale_hosts == {"beat"}
    made = site.at(0.74, ev.HostReported(0, "beat"))
    assert made == [(0.74, "s", "evict", "idle.end"), (0.74, "w", "start", "order.in-credit")]


def test_a_lost_host_loses_its_idle_session_and_nothing_else_is_said() -> None:
    """Lost, not ended: the rule that speaks is the host's."""
    idle = IdleParams(warn_ms=35_000, release_ms=40_000)
    site = Site(params_of(idle=idle), ev.HostJoined(0, "beat", 1, heartbeat=True))
    site.run(load=0.0)
    site.at(0, asks())
    assert [one[1:] for one in site.until(10)] == [("s", "lose", "host.lost")]
    assert site.core.view.idlers == {}


def test_idle_ends_in_grace_and_the_gpu_is_the_nominated_waiters() -> None:
    """Out of credit and idle: whichever of the two tracks is first ends it, once; the claim's waiter is served."""
    site = poor_in_grace_at(178, params_of(idle=IDLE))
    site.at(179, asks("late", "cem"))
    made = site.until(180)
    assert made == [(180, "s", "evict", "idle.end"), (180, "w", "start", "order.nominated")]
    assert [d.reason.rule for d in site.made if d.action is Action.EVICT] == ["idle.end"]
    assert site.core.view.claims == {}
    assert site.core.ledger.users["ann"].cooldown_until_ms == 0


def test_the_ladder_is_first_when_its_grace_is_over_first() -> None:
    """The same the other way round: evicted by the ladder, with its cooldown, and idle never speaks again."""
    site = poor_in_grace_at(170, params_of(idle=IDLE))
    made = [one for one in site.until(400) if one[1] == "s"]
    assert made[-1:] == [(175, "s", "evict", "ladder.evict")]
    assert site.core.ledger.users["ann"].cooldown_until_ms > 175 * MINUTE_MS


def test_lifetime_and_idle_in_the_same_instant_end_a_session_once() -> None:
    """Lifetime speaks first."""
    site = Site(params_of(180, idle=dataclasses.replace(IDLE, when="always")))
    site.run(load=0.0)
    site.at(0, asks())
    ends = [one for one in site.until(200) if one[2] == "evict"]
    assert ends == [(180, "s", "evict", "lifetime.end")]


# -- order and size ------------------------------------------------------------------------------------------------


def two_idle_in_another_order() -> Site:
    """`a` came first, `b` was idle and was extended first: in what order are they told?"""
    site = Site(params_of(400, 1000, idle=IDLE), ev.HostJoined(0, "h", 2))
    site.run("a", "ann")
    site.run("b", "bob")
    site.at(0, ev.LoadReported(0, "b", 0.0))
    site.at(1, ev.LoadReported(0, "a", 0.0))
    site.at(200, ev.SessionExtended(0, "b"), ev.SessionExtended(0, "a"))
    site.until(550)
    return site


def told_in_order(site: Site) -> list[str]:
    return [one[1] for one in [*site.at(560, asks("w", "cem")), *site.until(580)] if one[2] == "notice"]


def test_sessions_of_one_instant_are_told_in_order_of_arrival_also_after_a_restore() -> None:
    """Who became idle first, and who was extended first, is not in a checkpoint: it must not order decisions."""
    site = two_idle_in_another_order()
    site.fork()
    assert told_in_order(site) == ["a", "b", "a", "b"]


def test_what_is_planned_ahead_does_not_pile_up() -> None:
    """A load that comes and goes every ten seconds for a day: what is planned for one session stays small."""
    site = Site(params_of(10_000, 20_000, idle=IDLE))
    site.run()
    core, most = site.core, 0
    for number in range(1, 8640):
        core.apply(ev.LoadReported(number * 10_000, "s", float(number % 2)))
        core.cycle(number * 10_000)
        most = max(most, len(core.view.looks))
    assert most <= tracks_module.SPARE_LOOKS + 16
    site.now = core.now_ms
    site.deadline = core.next_deadline_ms()
    assert (10_000, "s", "evict", "lifetime.end") in site.until(10_001)


# -- random histories ----------------------------------------------------------------------------------------------

LIFETIMES = {"free": (60, 150), "lab": (20, None), "open": (None, None)}
"""Lifetime and longest of each tier, minutes."""
WARN, RELEASE = 20, 35
Op = tuple[str, int, int]
OPS = ("submit", "submit", "load", "load", "load", "extend", "end", "abandon", "wait", "wait", "wait")
OP = st.tuples(st.sampled_from(OPS), st.integers(0, 11), st.integers(0, 40))


def random_params(when: str) -> Params:
    tiers = {
        name: TierParams(
            baseline_gpus=20.0,
            lifetime_ms=None if lifetime is None else lifetime * MINUTE_MS,
            longest_ms=None if longest is None else longest * MINUTE_MS,
        )
        for name, (lifetime, longest) in LIFETIMES.items()
    }
    idle = IdleParams(warn_ms=WARN * MINUTE_MS, release_ms=RELEASE * MINUTE_MS, when=when)
    return Params(tiers=tiers, idle=idle, ladder=NEVER_PATIENT)


def play(ops: list[Op], when: str, forks: tuple[int, ...] = ()) -> Site:
    """A site with three GPUs and a random history, in whole minutes; then two hours in which nothing is done."""
    site = Site(random_params(when), ev.HostJoined(0, "h", 3))
    for number, (kind, x, y) in enumerate(ops):
        if number in forks:
            site.fork()
        if kind == "wait":
            site.cycle()
            site.until(site.now / MINUTE_MS + y)
            continue
        sessions = site.core.sessions
        holding = kind in ("load", "extend", "end")
        found = [sid for sid, session in sessions.items() if (session.allocation is not None) == holding]
        if kind == "submit":
            tier = list(LIFETIMES)[y % 3]
            site.apply(ev.SessionSubmitted(site.now, f"s{number}", f"{tier}{x % 4}", tier=tier))
        elif not found:
            continue
        else:
            sid = found[x % len(found)]
            made: dict[str, ev.Event] = {
                "load": ev.LoadReported(site.now, sid, (0.0, 0.0, 0.0, 0.5, None)[y % 5]),
                "extend": ev.SessionExtended(site.now, sid),
                "end": ev.SessionEnded(site.now, sid),
                "abandon": ev.SessionAbandoned(site.now, sid),
            }
            site.apply(made[kind])
        if y % 4:  # now and then several things happen before the next cycle
            site.cycle()
    site.cycle()
    site.until(site.now / MINUTE_MS + 240)
    return site


class Run:
    """One session as the referee sees it; minutes."""

    def __init__(self, sid: str, tier: str) -> None:
        self.sid = sid
        self.lifetime, self.longest = LIFETIMES[tier]
        self.start: int | None = None
        self.extended: int | None = None
        self.idle: int | None = None
        self.told_of_end: list[int] = []
        self.told_idle: int | None = None

    def ends(self) -> int | None:
        if self.lifetime is None or self.start is None:
            return None
        if self.extended is None or self.longest is None:
            return self.start + self.lifetime
        return min(self.extended + self.lifetime, self.start + self.longest)

    def of_lifetime(self, minute: int) -> tuple[str, str, int | None] | None:
        ends = self.ends()
        if ends is None or self.lifetime is None:
            return None
        if minute >= ends:
            return self.sid, "lifetime.end", None
        marks = [mark for mark in (ends - 30, ends - 10) if mark <= minute]
        if marks and not any(told >= max(marks[-1], ends - self.lifetime) for told in self.told_of_end):
            return self.sid, "lifetime.warn", ends
        return None

    def of_idle(self, minute: int) -> tuple[str, str, int | None] | None:
        if self.idle is None or minute < self.idle + WARN:
            return None
        if self.told_idle is None:
            return self.sid, "idle.warn", max(self.idle + RELEASE, minute + RELEASE - WARN)
        if minute >= max(self.idle + RELEASE, self.told_idle + RELEASE - WARN):
            return self.sid, "idle.end", None
        return None


class Referee:
    """Says from the events alone, minute by minute, what the two tracks must decide; the core never polls."""

    def __init__(self, when: str) -> None:
        self.always = when == "always"
        self.runs: dict[str, Run] = {}
        self.minute = 0

    def judge(self, site: Site) -> None:
        """AssertionError at the first thing said too much, too little, too early, too late or in another order."""
        for at_ms, entry in site.log:
            self.pass_to(at_ms // MINUTE_MS)
            if isinstance(entry, list):
                self.cycle(entry)
            else:
                self.take(entry)
        self.pass_to(site.now // MINUTE_MS)

    def pass_to(self, minute: int) -> None:
        """In the minutes between two entries nothing may be due."""
        for between in range(self.minute + 1, minute):
            assert self.due(between, contended=self.waits()) == [], f"missed at minute {between}"
        self.minute = minute

    def waits(self) -> bool:
        return any(run.start is None for run in self.runs.values())

    def due(self, minute: int, *, contended: bool) -> list[tuple[str, str, int | None]]:
        running = [run for run in self.runs.values() if run.start is not None]
        lifetime = [one for run in running if (one := run.of_lifetime(minute))]
        over = {sid for sid, rule, _ in lifetime if rule == "lifetime.end"}
        idle = [one for run in running if run.sid not in over and (one := run.of_idle(minute))]
        return lifetime + (idle if contended or self.always else [])

    def cycle(self, decisions: list[Decision]) -> None:
        starts = [d.session for d in decisions if d.action is Action.START]
        others = [run.sid for run in self.runs.values() if run.start is None and run.sid not in starts]
        expected = self.due(self.minute, contended=bool(others))
        made = [d for d in decisions if d.action is not Action.START]
        until = [None if d.reason.until_ms is None else d.reason.until_ms // MINUTE_MS for d in made]
        actual = [(d.session, d.reason.rule, minute) for d, minute in zip(made, until, strict=True)]
        assert sorted(actual, key=str) == sorted(expected, key=str), f"minute {self.minute}"
        for sid in starts:
            self.runs[sid].start = self.minute
        for decision in made:
            if decision.reason.rule == "lifetime.warn":
                self.runs[decision.session].told_of_end.append(self.minute)
            elif decision.reason.rule == "idle.warn":
                self.runs[decision.session].told_idle = self.minute

    def take(self, event: ev.Event) -> None:
        if isinstance(event, ev.SessionSubmitted):
            self.runs[event.session] = Run(event.session, event.tier)
        elif isinstance(event, ev.SessionEnded | ev.SessionAbandoned):
            del self.runs[event.session]
        elif isinstance(event, ev.LoadReported):
            run = self.runs[event.session]
            if event.load != 0:
                run.idle = run.told_idle = None
            elif run.idle is None:
                run.idle = self.minute
        elif isinstance(event, ev.SessionExtended):
            run = self.runs[event.session]
            run.extended = self.minute
            if run.idle is not None:
                run.idle, run.told_idle = self.minute, None


WHENS = pytest.mark.parametrize("when", ["contention", "always"])


@WHENS
@settings(max_examples=200)
@given(ops=st.lists(OP, min_size=10, max_size=60))
def test_the_tracks_decide_what_a_referee_who_looks_every_minute_decides(when: str, ops: list[Op]) -> None:
    """Exactly the same, at the same instants: nobody outlives its time, nobody idle is forgotten or ended untold."""
    Referee(when).judge(play(ops, when))


@WHENS
@settings(max_examples=200)
@given(ops=st.lists(OP, min_size=10, max_size=50), fork_at=st.integers(0, 49))
def test_restored_at_any_moment_it_goes_on_the_same_and_replays(when: str, ops: list[Op], fork_at: int) -> None:
    """A core from a checkpoint says the same at the same deadlines; the journal replays byte for byte."""
    site = play(ops, when, (min(fork_at, len(ops) - 1),))
    original, copied = site.cores
    assert checkpoint.dump(copied) == checkpoint.dump(original)
    results = list(replay([f"{line}\n" for line in site.lines], "j.jsonl"))
    assert results == [number for number, line in enumerate(site.lines, 1) if line.startswith('{"cycle"')]


def random_history(seed: int) -> list[Op]:
    draw = random.Random(seed)
    return [(draw.choice(OPS), draw.randrange(12), draw.randrange(41)) for _ in range(60)]


def judge_some(*, fork: bool = False) -> None:
    """Ten fixed histories of each kind, restored now and then if so asked."""
    for seed in range(10):
        for when in ("contention", "always"):
            Referee(when).judge(play(random_history(seed), when, (10, 20, 30, 40, 50, 59) if fork else ()))


def test_the_fixed_histories_are_worth_judging() -> None:
    """They hold every rule of the two tracks, and the referee agrees with all of it."""
    judge_some(fork=True)
    rules = {d.reason.rule for seed in range(10) for d in play(random_history(seed), "contention").made}
    assert rules >= {"lifetime.warn", "lifetime.end", "idle.warn", "idle.end"}


def _no_extension(self: Tracks, session: Session) -> int | None:
    return None if session.idle_since_ms < 0 else session.idle_since_ms


FAULTS: dict[str, tuple[object, str, Any]] = {
    "a lifetime a minute too long": (
        Tracks,
        "ends_ms",
        lambda self, session, right=Tracks.ends_ms: (
            None if (ends := right(self, session)) is None else ends + MINUTE_MS
        ),
    ),
    "told five minutes ahead": (tracks_module, "TOLD_AHEAD_MS", (1_800_000, 300_000)),
    "an extension is no activity": (Tracks, "_idle_from_ms", _no_extension),
    "told when it is too late": (Tracks, "_first_ms", lambda self: self.idle.release_ms),
    "no deadline asked for": (tracks_module, "_look_again", lambda view, session, at_ms: view.look(session, at_ms)),
    "looked at once only": (tracks_module, "_look_again", lambda view, session, at_ms: view.wake(at_ms)),
    "the core forgets to have it looked at": (Core, "_look", lambda self, session: None),
    "contention is always": (LoadLadder, "contended", lambda self, view, short, *, rotating: True),
    "contention is never": (LoadLadder, "contended", lambda self, view, short, *, rotating: False),
    "not remembered that it was told of being idle": (Core, "_tell", Core._move),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_caught(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of these breaks a rule, and the referee sees it in the fixed histories."""
    owner, name, wrong = FAULTS[fault]
    monkeypatch.setattr(owner, name, wrong)
    if fault == "not remembered that it was told of being idle":
        monkeypatch.setattr(Site, "cycle", _once)
    with pytest.raises(AssertionError):
        judge_some()


def _once(self: Site, now: int | None = None) -> list[Decision]:
    """One cycle only: a decision made again and again would never end."""
    self.now = self.now if now is None else now
    step = self.core.cycle(self.now)
    self.log.append((self.now, step.decisions))
    for decision in step.decisions:
        self.obey(decision)
    self.deadline = step.next_deadline_ms
    self.made += step.decisions
    return step.decisions


@pytest.mark.parametrize("name", ["extended_ms", "idle_since_ms", "told_ms", "idle_told_ms"])
def test_a_checkpoint_without_one_of_the_times_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the tracks remember of a session matters to what they decide after a restore."""
    rest = tuple(other for other in checkpoint._SESSION_TRACKS if other != name)
    monkeypatch.setattr(checkpoint, "_SESSION_TRACKS", rest)
    with pytest.raises(AssertionError):
        judge_some(fork=True)


def test_an_order_by_the_past_is_caught_after_a_restore(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the order of arrival the restored core tells them in another order."""
    monkeypatch.setattr(tracks_module, "_in_order", lambda session: 0)
    site = two_idle_in_another_order()
    site.fork()
    with pytest.raises(AssertionError):
        told_in_order(site)
