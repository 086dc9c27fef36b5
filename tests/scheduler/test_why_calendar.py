"""Reservations, guarantees, maintenance: people are told in the right words, and what is said to start does start."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import random
from typing import Any

import pytest

from policies import instead as instead_module
from policies import places as places_module
from policies.instead import starts_now
from policies.model import Action, Ladder, State
from policies.params import Params
from policies.places import places
from scheduler import events as ev
from scheduler.core import Core
from scheduler.errors import CoreError
from scheduler.why_words import utc
from tests.policies.random_sites import FAIR, SHAPES, acts_of, copy_of, play, settle, site_of
from tests.policies.test_places import started_on_a_copy
from tests.scheduler.test_why import MINUTE_MS, PLAIN, RICH, Site, check_changes

HOUR_MS = 60 * MINUTE_MS
GUARANTEED = dataclasses.replace(
    FAIR, tiers={**FAIR.tiers, "lab": dataclasses.replace(FAIR.tiers["lab"], guaranteed_gpus=2)}
)
POLICIES = {
    "standing": GUARANTEED,
    "arrival": dataclasses.replace(GUARANTEED, order=dataclasses.replace(GUARANTEED.order, by="arrival")),
}


def reserve(site: Site, name: str, group: str, gpus: int, from_ms: int, until_ms: int, text: str = "") -> None:
    """So many GPUs for a group."""
    site.apply(ev.CalendarEntryAdded(site.now, name, "reservation", from_ms, until_ms, gpus * 1000, group, text=text))
    site.settle()


def maintain(site: Site, name: str, hosts: str, from_ms: int, until_ms: int, drain_ms: int = 0, text: str = "") -> None:
    """Work on hosts."""
    entry = ev.CalendarEntryAdded(
        site.now, name, "maintenance", from_ms, until_ms, hosts=hosts, drain_ms=drain_ms, text=text
    )
    site.apply(entry)
    site.settle()


# -- waiting ---------------------------------------------------------------------------------------------------------


def test_gpus_kept_for_a_reservation_are_counted_and_named() -> None:
    """Of 4 free GPUs 3 are kept: who asks for 2 is told for whom, until when and why, and that 1 would start now."""
    site = Site(RICH)
    site.apply(ev.GroupSet(0, "x"))
    reserve(site, "course-x", "x", 3, 0, 2 * HOUR_MS, "Lecture 7.")
    site.submit("s", gpus=2)
    [reason, place] = site.reasons("s")
    until = utc(2 * HOUR_MS)
    assert f"3 of 4 free GPUs are kept for course-x (group x) until {until}: Lecture 7." in reason["text"]
    assert (reason["code"], reason["rule"], reason["until"]) == ("NoFreeGpu", "order.right", until)
    assert (reason["value"], reason["threshold"], reason["change"]) == (2, 1, "--gpus 1")
    assert "goes first" not in place["text"]
    assert check_changes(site.core) == 1
    site.until(2 * HOUR_MS)
    assert site.core.sessions["s"].state is State.RUNNING


def test_who_has_the_right_goes_first_and_is_told_so() -> None:
    """All GPUs are in use: the group's session is number 1 although its user has used more, and it says why."""
    site = Site(RICH)
    site.apply(ev.GroupSet(0, "x"), ev.UserSet(0, "eve", "x"))
    site.submit("long", "bob", gpus=4)
    site.use("ann", 0.0)
    site.apply(ev.UsageSet(0, "eve", 5.0))
    site.submit("other", "ann")
    site.submit("own", "eve", group="x", gpus=2)
    reserve(site, "course-x", "x", 3, 0, 2 * HOUR_MS, "Lecture")
    place = site.why("own")["reasons"][-1]
    assert site.why("own")["position"] == 1
    assert site.why("other")["position"] == 2
    words = (
        f"It goes first: course-x keeps 3 GPUs for group x until {utc(2 * HOUR_MS)}, of which 0 are in use: Lecture."
    )
    assert words in place["text"]
    site.submit("more", "eve", group="x", gpus=4)
    assert "It does not go first" in site.why("more")["reasons"][-1]["text"]


def test_hosts_closed_by_maintenance_are_named_with_until_and_why() -> None:
    """One host of two drains for its window: who needs it is told, and that it ends by itself."""
    site = Site(RICH, ev.HostJoined(0, "a", 4), ev.HostJoined(0, "b", 1))
    maintain(site, "disks", "a", HOUR_MS, 3 * HOUR_MS, HOUR_MS, "new disks")
    site.submit("s", gpus=2)
    [reason, _] = site.reasons("s")
    until = utc(3 * HOUR_MS)
    assert f"a gets nothing new until {until}, for maintenance disks: new disks." in reason["text"]
    assert (reason["code"], reason["rule"], reason["until"]) == ("Draining", "admin.plan", until)
    assert reason["change"] == "--gpus 1"
    site.submit("t", "bob")
    site.submit("u", "bob")
    [reason, _] = site.reasons("u")
    assert reason["code"] == "NoFreeGpu"
    assert "for maintenance disks" in reason["text"]
    site.apply(ev.HostDrained(site.now, "a"))
    assert "a is drained" in site.reasons("s")[0]["text"]
    site.apply(ev.HostResumed(site.now, "a"))
    site.until(3 * HOUR_MS)
    assert site.core.sessions["s"].state is State.RUNNING


# -- running ---------------------------------------------------------------------------------------------------------


def test_a_session_on_a_host_to_be_worked_on_is_told_when_it_ends() -> None:
    """From the day the window is agreed on, not only 30 min before."""
    site = Site(RICH)
    site.submit("s")
    maintain(site, "disks", "", 5 * HOUR_MS, 6 * HOUR_MS, text="new disks")
    found = next(reason for reason in site.reasons("s") if reason["code"] == "Maintenance")
    assert found["until"] == utc(5 * HOUR_MS)
    assert f"h is worked on from then until {utc(6 * HOUR_MS)} (disks: new disks)" in found["text"]
    site.until(5 * HOUR_MS)
    assert "s" not in site.core.sessions


def test_who_is_ended_for_maintenance_does_not_cool_down() -> None:
    """It did nothing wrong: it waits in credit, and starts as before when the host is back."""
    site = Site(RICH)
    site.submit("s")
    maintain(site, "disks", "", HOUR_MS, 2 * HOUR_MS)
    site.until(HOUR_MS)
    site.submit("again")
    assert [reason["code"] for reason in site.reasons("again")] == ["Draining", "Position"]
    assert "is in credit" in site.reasons("again")[1]["text"]


def test_a_session_that_gives_back_what_it_was_lent_is_told_that_credit_does_not_help() -> None:
    """Warned by reclaim, in credit: from when it gives way, and no word of staying for its credit."""
    site = Site(dataclasses.replace(PLAIN, tiers=RICH.tiers))
    site.submit("s", gpus=3)
    site.apply(ev.GroupSet(0, "x"))
    site.until(HOUR_MS)
    assert "or others ask for GPUs" not in site.reasons("s")[0]["text"]
    reserve(site, "course-x", "x", 4, HOUR_MS, 2 * HOUR_MS)
    assert site.core.sessions["s"].ladder is Ladder.WARN
    [warned, credit] = site.reasons("s")
    assert (warned["code"], warned["rule"]) == ("Warned", "reclaim.warn")
    assert warned["until"] == utc(HOUR_MS + PLAIN.ladder.warn_ms)
    assert f"from {warned['until']} on" in warned["text"]
    assert credit["code"] == "InCredit"
    assert "Credit does not protect" in credit["text"]
    assert "need not give way" not in credit["text"]


# -- what is said is what happens --------------------------------------------------------------------------------------


def random_site(params: Params, seed: int) -> Core:
    """A site with a random past in which reservations and maintenance were agreed on and taken back."""
    draw = random.Random(seed)
    core = site_of(params, [])
    for number in acts_of(seed):
        if draw.random() < 0.12:
            with contextlib.suppress(CoreError):
                core.apply(_entry(draw, core))
                settle(core)
        if core.view.calendar.entries and draw.random() < 0.02:
            core.apply(ev.CalendarEntryRemoved(core.now_ms, next(iter(core.view.calendar.entries))))
            settle(core)
        play(core, number)
    core.validate()
    return core


def _entry(draw: random.Random, core: Core) -> ev.CalendarEntryAdded:
    begin = core.now_ms + draw.choice((0, 10 * MINUTE_MS, HOUR_MS))
    end = begin + draw.choice((10 * MINUTE_MS, HOUR_MS, 2 * HOUR_MS))
    name, now = f"c{core.revision}", core.now_ms
    if draw.random() < 0.7:
        gpus_m, group = draw.choice((1, 2, 3, 5)) * 1000, draw.choice(("left", "x", "right", "org"))
        return ev.CalendarEntryAdded(now, name, "reservation", begin, end, gpus_m, group)
    return ev.CalendarEntryAdded(now, name, "maintenance", begin, end, hosts=draw.choice("abtu"), drain_ms=600_000)


def check_starts(core: Core) -> int:
    """Whoever waits, whatever it asked for instead: it starts exactly if that is said; how many do."""
    starting = 0
    for session in [s for s in core.sessions.values() if s.state is State.QUEUED and s.claim is None]:
        for asked in SHAPES[1:]:
            copy, user = copy_of(core), session.user
            copy.apply(ev.SessionCancelled(core.now_ms, session.id))
            copy.apply(ev.SessionSubmitted(core.now_ms, "again", user.name, user.group.name, user.tier, **asked))
            again = copy.sessions["again"]
            said = again not in copy.view.unplaceable and starts_now(copy.view, copy.params, again.user, again.shape)
            early = itertools.takewhile(
                lambda d: d.action in (Action.START, Action.REJECT), copy.cycle(core.now_ms).decisions
            )
            starts = any(d.session == "again" and d.action is Action.START for d in early)
            assert starts == said, f"{session.id} as {asked}: said {said}"
            starting += starts
    return starting


def check_random_site(params: Params, seed: int) -> tuple[int, int]:
    """(changes suggested, right holders that wait): everything that is said of starting holds on a copy."""
    core = random_site(params, seed)
    found = [session.id for session in places(core.view)]
    assert found == started_on_a_copy(core), f"seed {seed}: the order of those who wait"
    owners = sum(bool(core.queue.rights.of(core.sessions[sid].user)) for sid in found)
    return check_changes(core) + (check_starts(core) if seed % 5 == 0 else 0), owners


@pytest.mark.parametrize("policy", POLICIES)
def test_with_rights_the_order_and_every_suggestion_hold(policy: str) -> None:
    """Random reservations, guarantees and maintenance: positions and `would start now` are what the next cycle does."""
    counts = [check_random_site(POLICIES[policy], seed) for seed in range(60)]
    suggested, owners = map(sum, zip(*counts, strict=True))
    assert suggested >= 100  # or the test shows little
    assert owners >= 50


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
def test_with_rights_the_order_and_every_suggestion_hold_in_many_sites(policy: str) -> None:
    """The same, 1,500 times."""
    for seed in range(60, 1560):
        check_random_site(POLICIES[policy], seed)


def _no_rights(*_: Any) -> bool:
    return False


@pytest.mark.parametrize("fault", ["kept", "first", "right"])
def test_planted_faults_are_caught(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """Suggestions without regard to reservations, without the right to go first, and an order without rights."""
    if fault == "right":
        monkeypatch.setattr(places_module._Asks, "by_right", _no_rights)
    else:
        honest = instead_module._may_start

        def faulty(view: Any, params: Any, shape: Any, rights: Any, *, credit: bool) -> bool:
            if fault == "kept":
                left_m = view.cluster.free_m - shape.amount_m
                needed_m = 0 if credit else instead_module.keep_m(view, params, shape.amount_m)
                return left_m >= needed_m and bool(view.cluster.fits(shape))
            return honest(view, params, shape, (), credit=credit)

        monkeypatch.setattr(instead_module, "_may_start", faulty)
    with pytest.raises(AssertionError):
        [check_random_site(GUARANTEED, seed) for seed in range(60)]


def test_the_record_of_evictions_for_maintenance_says_until_when() -> None:
    """The decision itself: ended, until when its host is worked on."""
    site = Site(RICH)
    site.submit("s")
    maintain(site, "disks", "", HOUR_MS, 2 * HOUR_MS)
    site.until(HOUR_MS)
    [end] = [decision for decision in site.seen if decision.action is Action.EVICT]
    assert (end.reason.rule, end.reason.until_ms) == ("maintenance.end", 2 * HOUR_MS)
