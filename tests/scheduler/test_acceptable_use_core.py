"""Acceptable use in the core: which step at which instant, what it needs, and that nothing else happens."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import acceptable_use_track as track
from policies.acceptable_use import Match, Rule, RuleStep
from policies.limits import FOR_EVER_MS
from policies.model import Action, Decision, Session, Sighting
from policies.params import LadderParams, Params, TierParams
from scheduler import events as ev
from scheduler.core import CoreError
from scheduler.journal import replay
from scheduler.sightings import seen as note
from tests.scheduler.test_tracks_core import MINUTE_MS, NEVER_PATIENT, Site

DAY = 24 * 60
Done = tuple[float, str, str]
"""(minute, action, change)"""


def rule(name: str = "r", *steps: tuple[object, ...], **given_: object) -> Rule:
    """A rule with steps (action, minute[, length in minutes or what an eviction needs])."""
    made = [
        RuleStep(
            action=str(action),
            after_ms=int(str(after)) * MINUTE_MS,
            for_ms=more[0] * MINUTE_MS if more and isinstance(more[0], int) else None,
            confirm=more[0] if more and isinstance(more[0], str) else "",
        )
        for action, after, *more in steps
    ]
    whole: dict[str, object] = {"title": "A title", "category": "c", "signal": "name", "message": "Words."}
    whole |= {"positive": ("x",), "negative": ("y",), "match": Match(programs=("x",)), **given_}
    return Rule(id=name, steps=tuple(made), **whole)  # type: ignore[arg-type]


def policy(*rules: Rule, ladder: LadderParams = NEVER_PATIENT) -> Params:
    tier = TierParams(baseline_gpus=5.0)
    return Params(tiers={"free": tier, "pro": tier}, rules=rules, ladder=ladder)


def seen(name: str = "r", sid: str = "s") -> ev.RuleMatched:
    return ev.RuleMatched(0, sid, name)


def gone(name: str = "r", sid: str = "s") -> ev.RuleEnded:
    return ev.RuleEnded(0, sid, name)


def done(site: Site, sid: str = "s") -> list[Done]:
    """What the rules did to a session so far."""
    return [
        (d.at_ms / MINUTE_MS, d.action.value, d.reason.change)
        for d in site.made
        if d.session == sid and d.reason.rule.startswith("use.")
    ]


def started(*rules: Rule, fraction_m: int = 1000, tier: str = "free", load: float | None = None) -> Site:
    """A session that runs since minute 0."""
    site = Site(policy(*rules))
    site.run("s", "ann", load, fraction_m=fraction_m, tier=tier)
    return site


ALL = rule("r", ("observe", 0), ("warn", 0), ("throttle", 5), ("evict", 10, "second-signal"), ("restrict", 20, DAY))


# -- steps ---------------------------------------------------------------------------------------------------------


def test_each_step_at_its_minute_whoever_waits() -> None:
    """From the first sighting on, with nobody else there; then nothing more, for as long as the session runs."""
    site = started(ALL)
    site.at(7, seen())
    site.until(DAY)
    assert done(site) == [
        (7, "observe", "use-observed"),
        (7, "notice", "use-stop"),
        (12, "observe", "use-whole-gpu"),
        (17, "observe", "use-waits"),
        (27, "restrict", "appeal"),
    ]
    assert site.core.ledger.users["ann"].restricted_until_ms == (27 + DAY) * MINUTE_MS
    assert site.core.sessions["s"].allocation is not None


def test_telling_it_twice_changes_nothing() -> None:
    site = started(ALL)
    for minute in (7, 8, 9, 40):
        site.at(minute, seen())
    assert [minute for minute, *_ in done(site)] == [7, 7, 12, 17, 27]


def test_what_a_warning_says() -> None:
    """What was seen, in the words of the file, what follows, when, and how to object."""
    site = started(ALL)
    site.at(7, seen())
    warning = next(d for d in site.made if d.action is Action.NOTICE)
    assert warning.reason.until_ms == 12 * MINUTE_MS
    assert warning.reason.text == "A title. Words."
    assert dict(warning.reason.numbers) == {"step": 2.0, "next": 2.0, "for_h": 0.0}


def test_without_rules_nothing_is_looked_at() -> None:
    """A host that still reports a rule of yesterday's policy costs nothing and changes nothing."""
    site = Site(policy())
    site.run()
    site.at(5, seen())
    assert not site.core.view.looks
    assert done(site) == []


def test_a_rule_that_the_policy_does_not_have_does_nothing() -> None:
    site = started(ALL)
    site.at(7, seen("other"))
    site.until(DAY)
    assert done(site) == []
    assert list(site.core.sessions["s"].uses or {}) == ["other"]


def test_a_rule_of_another_tier_does_nothing_until_the_user_is_of_its_tier() -> None:
    site = started(dataclasses.replace(ALL, tiers=("free",)), tier="pro")
    site.at(7, seen())
    site.until(30)
    assert done(site) == []
    site.at(40, ev.UserSet(0, "ann", tier="free"))
    assert [entry[:2] for entry in done(site)] == [(40, "observe"), (40, "notice")]


def test_whoever_stops_is_left_alone_and_whoever_comes_back_is_not() -> None:
    """Delays count from the first sighting, but the time between two steps is always given."""
    site = started(rule("r", ("warn", 0), ("restrict", 10, DAY)))
    site.at(5, seen())
    site.at(9, gone())
    site.until(100)
    assert done(site) == [(5, "notice", "use-stop")]
    site.at(100, seen())
    assert done(site)[1:] == [(100, "restrict", "appeal")]


def test_whoever_is_told_late_still_has_the_time_between_two_steps() -> None:
    """The allowance ends long after every delay: the warning comes first, the restriction ten minutes later."""
    site = started(rule("r", ("warn", 0), ("restrict", 10, DAY)))
    site.apply(ev.RuleAllowed(0, "ann", "r", 300 * MINUTE_MS))
    site.at(5, seen())
    site.until(DAY)
    assert done(site) == [(5, "observe", "use-allowed"), (300, "notice", "use-stop"), (310, "restrict", "appeal")]


@pytest.mark.parametrize(("name", "expected"), [("", True), ("r", True), ("q", False)])
def test_an_allowance_is_for_one_rule_or_for_all(name: str, expected: bool) -> None:
    site = started(rule("r", ("warn", 0)))
    site.apply(ev.RuleAllowed(0, "ann", name, FOR_EVER_MS))
    site.at(5, seen())
    assert done(site) == [(5, "observe", "use-allowed") if expected else (5, "notice", "appeal")]


def test_an_allowance_can_be_ended() -> None:
    site = started(rule("r", ("warn", 0)))
    site.apply(ev.RuleAllowed(0, "ann", "r", FOR_EVER_MS))
    site.at(5, seen())
    site.at(9, ev.RuleAllowed(0, "ann", "r", 0))
    assert done(site)[1:] == [(9, "notice", "appeal")]
    assert site.core.ledger.users["ann"].allowances is None


def test_shadow_does_nothing_and_says_what_it_would_have_done() -> None:
    site = started(dataclasses.replace(ALL, shadow=True), fraction_m=500)
    site.at(7, seen())
    site.until(DAY)
    assert {(d.action, d.reason.change) for d in site.made if d.reason.rule == "use.r"} == {
        (Action.OBSERVE, "use-observed"),
        (Action.OBSERVE, "use-shadow"),
    }
    would = [dict(d.reason.numbers).get("would") for d in site.made if d.reason.change == "use-shadow"]
    assert would == [1.0, 2.0, 3.0, 4.0]
    assert site.core.sessions["s"].granted_m == 500
    assert site.core.ledger.users["ann"].restricted_until_ms == 0


# -- throttle ------------------------------------------------------------------------------------------------------

CURB = rule("r", ("warn", 0), ("throttle", 5))


def test_a_shared_gpu_is_throttled_to_the_smallest_step_and_given_back_when_it_stops() -> None:
    site = started(CURB, fraction_m=800)
    site.at(1, seen())
    site.until(60)
    assert site.core.sessions["s"].granted_m == 200
    site.at(61, gone())
    assert site.core.sessions["s"].granted_m == 800
    site.at(70, seen())
    assert site.core.sessions["s"].granted_m == 200
    assert [entry[1] for entry in done(site)] == ["notice", "throttle", "recover", "throttle"]


def test_two_rules_hold_it_until_neither_is_seen() -> None:
    site = started(CURB, dataclasses.replace(CURB, id="q"), fraction_m=800)
    site.at(1, seen(), seen("q"))
    site.until(10)
    site.at(11, gone())
    assert site.core.sessions["s"].granted_m == 200
    site.at(12, gone("q"))
    assert site.core.sessions["s"].granted_m == 800


def test_the_ladder_does_not_give_back_what_a_rule_took() -> None:
    """Without contention the ladder takes its own throttle back step by step; not while a rule holds the session."""
    ladder = LadderParams(min_run_ms=0, warn_ms=MINUTE_MS, throttle_step_ms=MINUTE_MS, recover_ms=MINUTE_MS)
    tier = TierParams(baseline_gpus=0.01)
    params = Params(tiers={"free": tier}, rules=(CURB,), ladder=ladder)
    site = Site(params)
    site.run("s", "ann", 1.0, fraction_m=800)
    site.until(200)
    site.at(200, ev.SessionSubmitted(0, "w", "bob", fraction_m=250))
    site.until(201)
    assert site.core.sessions["s"].ladder != "ok"
    site.at(202, seen())
    site.until(212)
    assert site.core.sessions["s"].granted_m == 200
    site.at(213, ev.SessionEnded(0, "w") if "w" in site.core.sessions else seen())
    site.until(300)
    assert site.core.sessions["s"].granted_m == 200


# -- the end of a session --------------------------------------------------------------------------------------------

END = rule("r", ("warn", 0), ("evict", 10, "second-signal"))
OTHER = rule("q", ("observe", 0), signal="address")


def test_one_match_alone_never_ends_a_session() -> None:
    """Nor do two rules that go by the same thing."""
    site = started(END, dataclasses.replace(OTHER, signal="name"))
    site.at(1, seen(), seen("q"))
    site.until(DAY)
    assert (11, "observe", "use-waits") in done(site)
    assert "s" in site.core.sessions


def test_two_signals_end_it_after_a_grace() -> None:
    site = started(END, OTHER)
    site.at(1, seen(), seen("q"))
    site.until(DAY)
    assert done(site)[-2:] == [(11, "notice", "use-ends"), (16, "evict", "appeal")]
    assert "s" not in site.core.sessions
    assert site.core.ledger.users["ann"].cooldown_until_ms == 0


def test_a_second_signal_may_come_later() -> None:
    site = started(END, OTHER)
    site.at(1, seen())
    site.at(200, seen("q"))
    site.until(DAY)
    assert done(site)[1:] == [
        (11, "observe", "use-waits"),
        (200, "notice", "use-ends"),
        (200, "observe", "use-observed"),
        (205, "evict", "appeal"),
    ]


@pytest.mark.parametrize(("load", "ends"), [(0.95, True), (0.3, False), (None, False)])
def test_sustained_load_is_a_second_signal(load: float | None, ends: bool) -> None:
    site = started(dataclasses.replace(END, steps=rule("r", ("evict", 40, "second-signal")).steps), load=load)
    site.at(1, seen())
    site.until(DAY)
    assert ("s" not in site.core.sessions) is ends


def test_load_that_falls_in_grace_keeps_the_session() -> None:
    """The signals are counted at the end of grace once more."""
    ladder = dataclasses.replace(NEVER_PATIENT, grace_ms=20 * MINUTE_MS)
    site = Site(policy(rule("r", ("evict", 40, "second-signal")), ladder=ladder))
    site.run("s", "ann", 0.95)
    site.at(1, seen())
    site.at(42, ev.LoadReported(0, "s", 0.1))
    site.until(DAY)
    assert done(site) == [(41, "notice", "use-ends"), (61, "notice", "use-waits")]
    assert "s" in site.core.sessions


def test_stopping_in_grace_keeps_the_session() -> None:
    site = started(END, OTHER)
    site.at(1, seen(), seen("q"))
    site.at(13, gone())
    site.until(DAY)
    assert done(site)[-1] == (13, "notice", "use-stays")
    assert "s" in site.core.sessions


def test_what_needs_a_person_waits_for_one() -> None:
    site = started(rule("r", ("evict", 10, "person")), OTHER)
    site.at(1, seen(), seen("q"))
    site.until(DAY)
    assert (11, "observe", "use-person") in done(site)
    assert "s" in site.core.sessions
    site.at(DAY, ev.EvictionOrdered(0, "s"))
    assert site.core.sessions["s"].state == "stopping"


@pytest.mark.parametrize("what", ["shadow", "tier", "allowed", "gone"])
def test_what_does_not_count_as_a_second_signal(what: str) -> None:
    """A rule on trial, a rule of another tier, a rule that lets the user alone, and what is over."""
    other = dataclasses.replace(OTHER, shadow=what == "shadow", tiers=("pro",) if what == "tier" else None)
    site = started(END, other)
    if what == "allowed":
        site.apply(ev.RuleAllowed(0, "ann", "q", FOR_EVER_MS))
    site.at(1, seen(), seen("q"))
    if what == "gone":
        site.at(2, gone("q"))
    site.until(DAY)
    assert "s" in site.core.sessions


# -- restriction -----------------------------------------------------------------------------------------------------


def test_a_restriction_ends_no_session_and_lets_nothing_new_start() -> None:
    site = Site(policy(rule("r", ("restrict", 0, 60))), ev.HostJoined(0, "h", 2))
    site.run("s", "ann")
    site.at(1, seen())
    site.at(2, ev.SessionSubmitted(0, "t", "ann"))
    assert site.core.sessions["t"].allocation is None
    assert site.core.sessions["s"].allocation is not None
    assert site.core.ledger.users["ann"].restricted_rule == "use.r"
    site.until(62)
    assert site.core.sessions["t"].start_ms == 61 * MINUTE_MS


@pytest.mark.parametrize(("before", "after"), [(30, 61), (600, 600), (None, None)])
def test_the_longer_restriction_counts(before: int | None, after: int | None) -> None:
    site = started(rule("r", ("restrict", 0, 60)))
    until = None if before is None else before * MINUTE_MS
    site.apply(ev.UserRestricted(0, "ann", until))
    site.at(1, seen())
    expected = FOR_EVER_MS if after is None else after * MINUTE_MS
    assert site.core.ledger.users["ann"].restricted_until_ms == expected


def test_a_pardon_ends_it() -> None:
    site = started(rule("r", ("restrict", 0, 60)))
    site.at(1, seen())
    site.at(2, ev.UserPardoned(0, "ann"))
    user = site.core.ledger.users["ann"]
    assert (user.restricted_until_ms, user.restricted_rule) == (0, "")


# -- telemetry, and events that do not fit -----------------------------------------------------------------------------


def test_old_telemetry_escalates_nothing() -> None:
    """A host that is silent when a step is due: the step comes with its next report, if it comes."""
    site = Site(policy(rule("r", ("observe", 1), ("warn", 1))), ev.HostJoined(0, "h", 1, heartbeat=True))
    site.run()
    site.at(0.1, ev.HostReported(0, "h"), seen())
    site.at(0.2, ev.HostReported(0, "h"))
    made = site.until(0.2 + 31 / 60)
    assert made == []
    assert site.core.view.stale_hosts == {"h"}


def test_a_step_that_waited_for_telemetry_comes_with_the_next_report() -> None:
    params = dataclasses.replace(policy(rule("r", ("observe", 1), ("warn", 1))))
    telemetry = dataclasses.replace(params.telemetry, stale_ms=30_000, lost_ms=600_000)
    site = Site(dataclasses.replace(params, telemetry=telemetry), ev.HostJoined(0, "h", 1, heartbeat=True))
    site.run()
    site.apply(ev.HostReported(0, "h"))
    site.at(0.25, seen())
    site.until(4)
    assert done(site) == [(1.25, "observe", "use-observed")]
    site.fork()
    site.at(4, ev.HostReported(0, "h"))
    assert done(site)[1:] == [(4, "notice", "appeal")]


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (ev.RuleMatched(60_000, "nobody", "r"), "not known"),
        (ev.RuleMatched(60_000, "w", "r"), "queued"),
        (ev.RuleMatched(60_000, "s", "No Name"), "no name"),
        (ev.RuleAllowed(60_000, "nobody", "", 9), "not known"),
        (ev.RuleAllowed(60_000, "ann", "No Name", 9), "no name"),
    ],
)
def test_events_that_do_not_fit_are_refused(event: ev.Event, words: str) -> None:
    site = started(ALL)
    site.apply(ev.SessionSubmitted(60_000, "w", "bob"))
    with pytest.raises(CoreError, match=words):
        site.core.apply(event)
    site.core.validate()


def test_no_more_than_so_many_rules_of_one_session_are_kept() -> None:
    site = started(ALL)
    for number in range(200):
        site.core.apply(ev.RuleMatched(0, "s", f"x{number}"))
    with pytest.raises(CoreError, match="no more are kept"):
        site.core.apply(seen())
    site.core.apply(seen("x7"))


# -- against a referee -------------------------------------------------------------------------------------------------


class Told(NamedTuple):
    """One event of a random history, at a whole minute."""

    minute: int
    kind: str
    rule: str
    until: int = 0


NAMES = ("a", "b", "c")
SIGNAL = st.sampled_from(["name", "structure"])
STEP = st.tuples(st.sampled_from(["observe", "warn", "throttle", "evict", "restrict"]), st.integers(0, 12))
ORDER = ("observe", "warn", "throttle", "evict", "restrict")


@st.composite
def rule_of(draw: st.DrawFn, name: str) -> Rule:
    """A valid rule with up to five steps."""
    drawn = sorted(draw(st.lists(STEP, min_size=1, max_size=5)), key=lambda step: ORDER.index(step[0]))
    at, steps = 0, []
    for action, gap in drawn:
        at += gap
        more: tuple[object, ...] = ()
        if action == "evict":
            more = (draw(st.sampled_from(["second-signal", "person"])),)
        elif action == "restrict":
            more = (draw(st.integers(1, 40)),)
        steps.append((action, at, *more))
    shadow = draw(st.sampled_from([False, False, False, True]))
    return rule(name, *steps, signal=draw(SIGNAL), shadow=shadow)


TOLD = st.builds(
    Told,
    st.integers(1, 60),
    st.sampled_from(["seen", "seen", "seen", "gone", "allow"]),
    st.sampled_from(NAMES),
    st.integers(0, 60),
)
HISTORY = st.lists(TOLD, min_size=1, max_size=14).map(lambda told: sorted(told, key=lambda one: one.minute))
END_MINUTE, GRACE = 140, 5


class Referee:
    """What ought to happen, worked out minute by minute from the definition, with no plan of when to look."""

    def __init__(self, rules: list[Rule]) -> None:
        self.rules = {one.id: one for one in rules}
        self.first: dict[str, int] = {}
        self.live: set[str] = set()
        self.allowed: dict[str, int] = {}
        self.taken: dict[str, list[int]] = {}
        self.noted: set[str] = set()
        self.ends: dict[str, int] = {}
        self.log: list[Done] = []
        self.restricted = 0
        self.small = False
        self.ended = False

    def active(self, name: str, minute: int) -> bool:
        return name in self.live and self.allowed.get(name, 0) <= minute

    def two(self, minute: int) -> bool:
        kinds = {self.rules[n].signal for n in self.first if self.active(n, minute) and not self.rules[n].shadow}
        return len(kinds) > 1

    def say(self, minute: int, action: str, change: str) -> None:
        self.log.append((minute, action, change))

    def minute(self, minute: int, told: list[Told]) -> None:
        for one in told:
            if one.kind == "allow":
                self.allowed[one.rule] = one.until
            elif one.kind == "seen":
                self.first.setdefault(one.rule, minute)
                self.live.add(one.rule)
            else:
                self.live.discard(one.rule)
        for name in self.first:
            if not self.ended:
                self.one(name, minute)
        if not self.ended:
            self.grant(minute)

    def one(self, name: str, minute: int) -> None:
        mine, taken = self.rules[name], self.taken.setdefault(name, [])
        if name in self.ends and not self.active(name, minute):
            del self.ends[name]
            self.say(minute, "notice", "use-stays")
        elif self.ends.get(name) == minute:
            del self.ends[name]
            if self.two(minute):
                self.say(minute, "evict", "appeal")
                self.ended = True
                return
            self.say(minute, "notice", "use-waits")
        if name in self.live and not self.active(name, minute) and name not in self.noted:
            self.noted.add(name)
            self.say(minute, "observe", "use-allowed")
        while self.active(name, minute) and len(taken) < len(mine.steps):
            step = mine.steps[len(taken)]
            before = mine.steps[len(taken) - 1].after_ms if taken else 0
            earliest = self.first[name] + step.after_ms // MINUTE_MS
            if taken:
                earliest = max(earliest, taken[-1] + (step.after_ms - before) // MINUTE_MS)
            if minute < earliest:
                break
            taken.append(minute)
            self.do(name, step, minute)
        waits = any(s.confirm == "second-signal" for s in mine.steps[: len(taken)]) and not mine.shadow
        if self.active(name, minute) and waits and name not in self.ends and self.two(minute):
            self.ends[name] = minute + GRACE
            self.say(minute, "notice", "use-ends")

    def do(self, name: str, step: RuleStep, minute: int) -> None:
        mine = self.rules[name]
        later = [s for s in mine.steps[len(self.taken[name]) :] if s.action not in ("observe", "warn")]
        if step.action == "observe":
            self.say(minute, "observe", "use-observed")
        elif mine.shadow:
            self.say(minute, "observe", "use-shadow")
        elif step.action == "warn":
            soon = not later or (
                later[0].after_ms == step.after_ms and self.first[name] + step.after_ms // MINUTE_MS <= minute
            )
            self.say(minute, "notice", "appeal" if soon else "use-stop")
        elif step.action == "throttle":
            self.small = True
            self.say(minute, "throttle", "appeal")
        elif step.action == "restrict":
            assert step.for_ms is not None
            self.restricted = max(self.restricted, minute + step.for_ms // MINUTE_MS)
            self.say(minute, "restrict", "appeal")
        elif step.confirm == "person":
            self.say(minute, "observe", "use-person")
        elif self.two(minute):
            self.ends[name] = minute + GRACE
            self.say(minute, "notice", "use-ends")
        else:
            self.say(minute, "observe", "use-waits")

    def grant(self, minute: int) -> None:
        wanted = any(
            self.active(n, minute)
            and not self.rules[n].shadow
            and any(s.action == "throttle" for s in self.rules[n].steps[: len(self.taken[n])])
            for n in self.first
        )
        if wanted is not self.small:
            self.small = wanted
            self.say(minute, "throttle" if wanted else "recover", "appeal" if wanted else "use-over")


def check_history(rules: list[Rule], history: list[Told], fork: int) -> None:
    """The core, asked only when it wants to be, does at each minute what the referee says; so does a restored one."""
    site = started(*rules, fraction_m=800)
    referee = Referee(rules)
    minutes = sorted({one.minute for one in history})
    for minute in range(1, END_MINUTE):
        told = [one for one in history if one.minute == minute]
        if "s" not in site.core.sessions or referee.ended:
            break
        if minute == fork:
            site.until(minute - 0.5)
            if "s" not in site.core.sessions:
                break
            site.fork()
        if minute in minutes:
            tell(site, minute, told)
        referee.minute(minute, told)
    site.until(END_MINUTE)
    expected = [entry for entry in referee.log if entry[0] < END_MINUTE]
    assert [entry for entry in done(site) if entry[0] < END_MINUTE] == expected
    assert site.core.ledger.users["ann"].restricted_until_ms == referee.restricted * MINUTE_MS
    assert ("s" in site.core.sessions) is not referee.ended
    if not referee.ended:
        assert site.core.sessions["s"].granted_m == (200 if referee.small else 800)
    assert all(isinstance(step, int) for step in replay(site.lines, "journal"))


def tell(site: Site, minute: int, told: list[Told]) -> None:
    """As the service does: what comes at an instant is noted before anything is decided at it."""
    site.until(minute - 1 / MINUTE_MS)
    site.now = minute * MINUTE_MS
    site.apply(*(event_of(one)._replace(at_ms=site.now) for one in told))
    site.cycle()


def event_of(told: Told) -> ev.RuleAllowed | ev.RuleMatched | ev.RuleEnded:
    if told.kind == "allow":
        return ev.RuleAllowed(0, "ann", told.rule, told.until * MINUTE_MS)
    return seen(told.rule) if told.kind == "seen" else gone(told.rule)


RULES = st.tuples(*(rule_of(name) for name in NAMES)).map(list)


@settings(max_examples=400, deadline=None)
@given(RULES, HISTORY, st.integers(1, 70))
def test_every_step_when_the_referee_says(rules: list[Rule], history: list[Told], fork: int) -> None:
    """Random rules, sightings, pauses and allowances; the journal of it all replays byte for byte."""
    check_history(rules, history, fork)


@pytest.mark.parametrize("fault", ["delay", "gone", "allowed", "signals", "shadow", "memory"])
def test_planted_faults_are_caught(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A track that forgets one condition does something else than the referee says."""
    first = rule("a", ("warn", 0), ("throttle", 5), ("evict", 10, "second-signal"), ("restrict", 20, 30))
    rules = [first, rule("b", ("observe", 0), signal="structure"), rule("c", ("warn", 2), shadow=True)]
    history = [Told(1, "seen", "a"), Told(3, "gone", "a"), Told(30, "seen", "a"), Told(31, "seen", "c")]
    history += [Told(40, "seen", "b"), Told(42, "gone", "a"), Told(50, "allow", "a", 60), Told(51, "seen", "a")]
    history += [Told(55, "gone", "b")]
    check_history(rules, history, 35)
    if fault == "delay":
        monkeypatch.setattr(track, "due_ms", _first_due)
    elif fault == "gone":
        monkeypatch.setattr("scheduler.sightings.seen", _never_gone)
    elif fault == "allowed":
        monkeypatch.setattr(track, "allowed_until_ms", lambda *_: None)
    elif fault == "signals":
        monkeypatch.setattr(track._Look, "two_signals", lambda _: True)
    elif fault == "shadow":
        rules[2] = dataclasses.replace(rules[2], shadow=False)
        monkeypatch.setattr(Referee, "__init__", _with_shadow(Referee.__init__))
    else:
        monkeypatch.setattr("scheduler.core.carried_out", _forgets)
    with pytest.raises(AssertionError):
        check_history(rules, history, 35)


def _first_due(rule_: Rule, sighting: Sighting) -> int | None:
    if sighting.step >= len(rule_.steps):
        return None
    return sighting.since_ms + rule_.steps[sighting.step].after_ms


def _never_gone(session: Session, event: ev.RuleMatched | ev.RuleEnded) -> bool:
    return isinstance(event, ev.RuleMatched) and note(session, event)


def _with_shadow(init: object) -> object:
    def made(self: Referee, rules: list[Rule]) -> None:
        init(self, rules)  # type: ignore[operator]
        self.rules["c"] = dataclasses.replace(self.rules["c"], shadow=True)

    return made


def _forgets(session: object, decision: Decision) -> None:
    if decision.reason.change != "use-allowed":
        track.carried_out(session, decision)  # type: ignore[arg-type]
