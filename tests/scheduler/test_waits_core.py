"""Waiting is bounded: who starts by the band and when, what is kept for wide sessions, and how long saving takes."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import pytest

from policies.bounded_wait import EVERY
from policies.decide import FairShare
from policies.headroom import lead_time_ms
from policies.model import WHOLE_M, Action, Allocation, Kind, Shape
from policies.order import FairQueue
from policies.params import HeadroomParams, LadderParams, OrderParams, Params, TierParams
from policies.placement import Cluster, HostSpec
from policies.save_times import FEWEST, KEPT, SaveTimes
from policies.wide import Wide, gather
from scheduler import events as ev
from tests.scheduler.test_tracks_core import MINUTE_MS, Said, Site

CALM = LadderParams(contention_ms=10**12, notice_credit_fraction=0.0, notice_ahead_ms=0)
"""The ladder never moves."""

MAX_WAIT, RESERVE_AFTER = 100, 15
"""Minutes."""


def params_of(
    baseline: float = 0.0, headroom: float = 0, ladder: LadderParams = CALM, max_wait: float = MAX_WAIT, **tier: Any
) -> Params:
    """With baseline 0 nobody is in credit."""
    return Params(
        tiers={"free": TierParams(baseline_gpus=baseline, **tier)},
        order=OrderParams(max_wait_ms=round(max_wait * MINUTE_MS), reserve_after_ms=RESERVE_AFTER * MINUTE_MS),
        headroom=HeadroomParams(fixed_gpus=headroom, max_fraction=1.0),
        ladder=ladder,
    )


def hosts(*sizes: int, model: str | None = None) -> list[ev.HostJoined]:
    return [ev.HostJoined(0, f"h{number}", size, model) for number, size in enumerate(sizes)]


def site_of(*sizes: int, **more: Any) -> Site:
    return Site(params_of(**more), *hosts(*sizes))


def ask(sid: str, user: str, **asked: Any) -> ev.SessionSubmitted:
    return ev.SessionSubmitted(0, sid, user, **asked)


def end(sid: str) -> ev.SessionEnded:
    return ev.SessionEnded(0, sid)


def starts(made: list[Said]) -> list[tuple[str, str]]:
    return [(sid, rule) for _, sid, action, rule in made if action == Action.START]


def kept(site: Site) -> dict[str, dict[str, int]]:
    """GPUs kept for each wide session with a reservation, by host."""
    found: dict[str, dict[str, int]] = {}
    for claim in site.core.view.claims.values():
        if claim.waiter is not None and claim.kind is Kind.WIDE:
            hosts = found[claim.waiter.id] = {}
            for allocation in claim.set_aside:
                for host, gpus in allocation.parts:
                    hosts[host] = hosts.get(host, 0) + len(gpus)
    return found


def by_host(site: Site) -> dict[str, list[str]]:
    """Sessions that run on each host."""
    found: dict[str, list[str]] = {}
    for sid, session in site.core.view.holders.items():
        for host in session.allocation.hosts if session.allocation is not None else ():
            found.setdefault(host, []).append(sid)
    return found


def full(site: Site, count: int) -> None:
    """So many sessions of one GPU run: r0, r1, ..."""
    for number in range(count):
        site.run(f"r{number}", f"holder{number}")


OLD, FRESH = ("order.waited-long", "order.out-of-credit")


def crowded(*waiters: ev.SessionSubmitted, gpus: int = 1, headroom: int = 0) -> Site:
    """Every GPU but the headroom is held, the waiters asked at minute 0, and their users have used much."""
    site = site_of(gpus, headroom=headroom)
    full(site, gpus - headroom)
    site.apply(*waiters)
    for user in dict.fromkeys(waiter.user for waiter in waiters):
        site.apply(ev.UsageSet(0, user, 50.0))
    site.cycle()
    return site


def fresh(*numbers: int) -> list[ev.SessionSubmitted]:
    return [ask(f"f{number}", f"fresh{number}") for number in numbers]


# -- the band ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("late_ms", "first"), [(-1, ("f0", FRESH)), (0, ("old", OLD)), (1, ("old", OLD))])
def test_the_band_begins_at_max_wait_to_the_millisecond(late_ms: int, first: tuple[str, str]) -> None:
    """The GPU comes free 1 ms before old has waited for `max_wait`, then, or after: standing counts only before."""
    site = crowded(ask("old", "ann"))
    site.at(50, *fresh(0))
    made = site.at(MAX_WAIT + late_ms / MINUTE_MS, end("r0"))
    assert starts(made) == [first]


def test_the_band_needs_no_event_to_begin() -> None:
    """A free GPU is not enough for old, who asks for two: the core asks for the instant from which it is kept."""
    site = crowded(ask("old", "ann", gpus=2), gpus=2)
    site.at(20, end("r0"))
    site.until(MAX_WAIT - 1 / MINUTE_MS)
    assert site.deadline == MAX_WAIT * MINUTE_MS
    assert kept(site) == {}
    site.until(MAX_WAIT)
    assert kept(site) == {"old": {"h0": 1}}


def test_the_oldest_of_each_user_goes_oldest_first() -> None:
    """Of two users with two sessions each, all in the band: each user's older one, the oldest first, one of four."""
    site = crowded(ask("b1", "bob"), ask("b2", "bob"), gpus=8)
    site.at(1, ask("a1", "ann"), ask("a2", "ann"))
    site.apply(ev.UsageSet(site.now, "ann", 90.0))
    site.at(50, *fresh(0, 1, 2, 3, 4, 5))
    made = site.at(150, *[end(f"r{number}") for number in range(8)])
    assert [sid for sid, rule in starts(made) if rule == OLD] == ["b1", "a1"]
    assert [sid for sid, _ in starts(made)] == ["b1", "f0", "f1", "f2", "a1", "f3", "f4", "f5"]


def test_one_session_of_the_band_for_each_user() -> None:
    """While ann's first one runs her second waits, however long; when that ends the second has its turn."""
    site = crowded(ask("a1", "ann"), ask("a2", "ann"), gpus=2)
    assert starts(site.at(150, end("r0"))) == [("a1", OLD)]
    site.at(151, *fresh(0, 1, 2, 3, 4, 5))
    for number in range(4):  # the turn of four starts would be over
        assert starts(site.at(160 + number, end(f"f{number - 1}" if number else "r1"))) == [(f"f{number}", FRESH)]
    assert starts(site.at(170, end("a1"))) == [("a2", OLD)]


def test_one_of_any_four_starts() -> None:
    """After one of the band three others start, over hours and however old the rest of the band is."""
    site = crowded(*[ask(f"o{number}", f"old{number}") for number in range(3)], gpus=1)
    site.at(50, *fresh(*range(9)))
    order = []
    running = "r0"
    for number in range(9):
        ((sid, rule),) = starts(site.at(200 + 60 * number, end(running)))
        order.append(rule)
        running = sid
    assert order == [OLD, FRESH, FRESH, FRESH, OLD, FRESH, FRESH, FRESH, OLD]
    assert EVERY == 4


def test_the_band_never_takes_from_the_headroom_out_of_credit() -> None:
    """One GPU is headroom: the first to come free stays so, the second is the band's."""
    site = crowded(ask("old", "ann"), gpus=3, headroom=1)
    assert sorted(site.core.view.holders) == ["r0", "r1"]
    assert starts(site.at(150)) == []
    assert starts(site.at(151, end("r0"))) == [("old", OLD)]


def test_the_band_never_takes_from_the_headroom_in_credit_neither() -> None:
    """In credit, with the worse standing: while only headroom is free the better standing has it; above it the band."""
    site = Site(params_of(5.0, headroom=1), *hosts(2))
    full(site, 2)
    site.apply(ask("old", "ann"), ev.UsageSet(0, "ann", 9.0))
    site.cycle()
    site.at(50, ask("f0", "fresh0"), ask("f1", "fresh1"))
    assert starts(site.at(150, end("r0"))) == [("f0", "order.in-credit")]
    made = site.at(151, end("r1"), end("f0"))
    assert starts(made) == [("old", OLD), ("f1", "order.in-credit")]


def test_a_blocked_session_is_not_in_the_band() -> None:
    """Restricted at the right time: f0 starts; pardoned, the session is in the band at once."""
    site = crowded(ask("old", "ann"))
    site.at(50, *fresh(0, 1, 2, 3))
    site.at(60, ev.UserRestricted(0, "ann"))
    assert starts(site.at(120, end("r0"))) == [("f0", FRESH)]
    site.at(125, ev.UserPardoned(0, "ann"))
    assert starts(site.at(130, end("f0"))) == [("old", OLD)]


def test_quota_keeps_a_session_out_of_the_band() -> None:
    """Ann has held her GPU-hour of the day: her session waits, the next oldest of the band starts."""
    site = Site(params_of(quota_gpu_h=1.0, quota_window="24h"), *hosts(1))
    site.run("a0", "ann")
    site.apply(ask("a1", "ann"))
    site.cycle()
    site.at(10, ask("b1", "bob"))
    site.apply(ev.UsageSet(site.now, "bob", 50.0))
    site.at(20, *fresh(0))
    assert starts(site.at(130, end("a0"))) == [("b1", OLD)]


def test_a_held_session_leaves_the_band_and_returns_with_its_age() -> None:
    """What counts is when it was submitted."""
    site = crowded(ask("old", "ann"))
    site.at(50, *fresh(0, 1))
    site.at(110, ev.SessionHeld(0, "old"))
    assert starts(site.at(120, end("r0"))) == [("f0", FRESH)]
    site.at(125, ev.SessionUnheld(0, "old"))
    assert starts(site.at(130, end("f0"))) == [("old", OLD)]


def test_the_band_survives_a_restore() -> None:
    """Forked before it begins, after its first start and within the four: the copy does the same."""
    for fork_at in (20, 120, 201, 321):
        site = crowded(*[ask(f"o{number}", f"old{number}") for number in range(2)], gpus=1)
        site.at(10, *fresh(*range(9)))
        running, order = "r0", []
        for number in range(6):
            minute = 200 + 60 * number
            if minute - 60 < fork_at <= minute or (not number and fork_at < minute):
                site.until(min(fork_at, minute - 1))
                site.fork()
            ((sid, rule),) = starts(site.at(minute, end(running)))
            order.append(rule)
            running = sid
        assert order == [OLD, FRESH, FRESH, FRESH, OLD, FRESH]
        assert len(site.cores) == 2


# -- wide sessions -------------------------------------------------------------------------------------------------


def wide_site(*sizes: int, gpus: int, headroom: float = 0, baseline: float = 5.0, **more: Any) -> Site:
    """Every GPU that may be is held by a session of one GPU, and wide asks for several at minute 0."""
    site = site_of(*sizes, headroom=headroom, baseline=baseline, **more)
    full(site, sum(sizes) - int(headroom))
    site.apply(ask("wide", "will", gpus=gpus))
    site.cycle()
    return site


@pytest.mark.parametrize(
    ("late_ms", "after"), [(-1, {}), (0, {"wide": {"h0": 1}})], ids=["a millisecond early", "in time"]
)
def test_a_reservation_begins_at_reserve_after_to_the_millisecond(late_ms: int, after: dict[str, Any]) -> None:
    """What comes free 1 ms before goes to whoever fits; from then on it is kept."""
    site = wide_site(4, gpus=2)
    site.at(1, *fresh(0))
    made = site.at(RESERVE_AFTER + late_ms / MINUTE_MS, end("r0"))
    assert kept(site) == after
    assert [sid for sid, _ in starts(made)] == ([] if after else ["f0"])


def test_a_reservation_needs_no_event_to_begin() -> None:
    """A free GPU that nobody uses: the core asks for the instant at which it is to be kept."""
    site = wide_site(4, gpus=2)
    site.at(1, end("r0"))
    site.until(RESERVE_AFTER - 1 / MINUTE_MS)
    assert site.deadline == RESERVE_AFTER * MINUTE_MS
    site.until(RESERVE_AFTER)
    assert kept(site) == {"wide": {"h0": 1}}


def test_gpus_that_come_free_one_by_one_are_kept() -> None:
    """Three GPUs come free over an hour while small sessions keep asking: nobody else starts on what is kept."""
    site = wide_site(4, gpus=3)
    site.at(20, *fresh(0, 1, 2, 3, 4))
    for number in range(2):
        assert starts(site.at(30 + 10 * number, end(f"r{number}"))) == []
        assert kept(site) == {"wide": {"h0": number + 1}}
    site.fork()
    assert starts(site.at(60, end("r2"))) == [("wide", "order.nominated")]
    assert site.core.view.set_aside_m == site.core.view.claimed_m == 0
    assert starts(site.at(61, end("r3"))) == [("f0", "order.in-credit")]


def test_what_is_of_no_use_to_it_is_given_to_others() -> None:
    """Wide asks for 3 of a host of 4; a GPU of the host not begun with is anybody's."""
    site = wide_site(4, 4, gpus=3)
    site.at(20, *fresh(0, 1))
    site.at(30, end("r0"))
    assert kept(site) == {"wide": {"h0": 1}}
    assert starts(site.at(31, end("r4"))) == [("f0", "order.in-credit")]
    site.at(32, end("r1"))
    assert starts(site.at(33, end("r2"))) == [("wide", "order.nominated")]


def test_eight_over_two_hosts_of_four() -> None:
    """Both hosts are kept GPU by GPU until all eight are there."""
    site = wide_site(4, 4, gpus=8)
    order = [0, 4, 1, 5, 6, 7, 2]
    for done, number in enumerate(order, 1):
        assert starts(site.at(20 + done, end(f"r{number}"), *fresh(done))) == []
        assert sum(kept(site)["wide"].values()) == done
    assert starts(site.at(40, end("r3")))[0] == ("wide", "order.nominated")
    assert by_host(site) == {"h0": ["wide"], "h1": ["wide"]}


def test_one_host_is_preferred_to_several() -> None:
    """Asked for 4 with hosts of 2, 4 and 2: of GPUs that come free on all of them those of the one are kept."""
    site = wide_site(2, 4, 2, gpus=4)
    on = by_host(site)
    site.at(20, *[end(on[host][0]) for host in ("h0", "h1", "h2")])
    assert kept(site) == {"wide": {"h1": 1}}


def test_the_kind_of_host_that_could_never_hold_it_is_left_alone() -> None:
    """Asked for 8: one host of 6 holds 6 of them free for ever and never 8; the two hosts of 4 do."""
    site = Site(params_of(5.0), *hosts(4, 4, 6))
    full(site, 14)
    site.apply(ask("wide", "will", gpus=8))
    site.cycle()
    on = by_host(site)
    site.at(20, *map(end, on["h2"]))
    assert kept(site) == {}
    site.at(21, end(on["h0"][0]))
    assert kept(site) == {"wide": {"h0": 1}}
    site.at(22, *map(end, on["h0"][1:] + on["h1"][1:]), *fresh(*range(9)))
    assert kept(site) == {"wide": {"h0": 4, "h1": 3}}
    assert starts(site.at(23, end(on["h1"][0])))[0] == ("wide", "order.nominated")


def test_only_hosts_of_the_model_that_was_asked_for() -> None:
    """A wide request for A100s takes no notice of T4s that come free."""
    site = Site(params_of(5.0), ev.HostJoined(0, "t", 4, "T4"), ev.HostJoined(0, "a", 4, "A100"))
    for number in range(8):
        site.run(f"r{number}", f"holder{number}", gpu_type="T4" if number < 4 else "A100")
    site.apply(ask("wide", "will", gpus=2, gpu_type="A100"))
    site.cycle()
    site.at(20, end("r0"), end("r1"), end("r2"))
    assert kept(site) == {}
    site.at(21, end("r4"))
    assert kept(site) == {"wide": {"a": 1}}


def test_never_more_than_the_hosts_it_needs() -> None:
    """Six over hosts of four: what is begun with stays, 4 + 2, and the third host is left alone."""
    cluster = Cluster((HostSpec(name="a", gpus=4), HostSpec(name="b", gpus=4), HostSpec(name="c", gpus=4)))
    shape = Shape(6, WHOLE_M, None, None)
    held = [Allocation((("a", (0, 1)),), WHOLE_M, 0), Allocation((("b", (0,)),), WHOLE_M, 0)]
    held += [Allocation((("c", (0, 1, 2)),), WHOLE_M, 0)]
    for allocation in held:
        cluster.take(allocation)
    aside: list[Allocation] = []
    for release in held[1], held[2]:
        for allocation in gather(cluster, shape, aside, 12):
            cluster.take(allocation)
            aside.append(allocation)
        cluster.release(release)
    has = Counter(dict.fromkeys("abc", 0))
    for allocation in (*aside, *gather(cluster, shape, aside, 12)):
        has.update({allocation.hosts[0]: len(allocation.parts[0][1])})
    assert has == {"a": 2, "b": 4, "c": 0}


# -- wide sessions: given up ---------------------------------------------------------------------------------------

OVER = "order.reservation-over"


def begun(*sizes: int, gpus: int = 2, **more: Any) -> Site:
    """Wide has a reservation, and one GPU of h0 is kept for it; a fresh user waits."""
    site = wide_site(*(sizes or (2,)), gpus=gpus, **more)
    site.at(20, end("r0"), *fresh(0))
    assert kept(site) == {"wide": {"h0": 1}}
    return site


def rules(made: list[Said], sid: str = "wide") -> list[str]:
    return [rule for _, session, _, rule in made if session == sid]


def test_given_up_out_of_credit() -> None:
    """Wide is out of credit now: what was kept starts the next in order, at once, and wide waits in its place."""
    site = begun()
    made = site.at(30, ev.UsageSet(0, "will", 900.0))
    assert rules(made) == [OVER]
    assert starts(made) == [("f0", "order.in-credit")]
    assert kept(site) == {}
    assert site.core.view.set_aside_m == site.core.view.claimed_m == 0
    assert site.core.sessions["wide"].claim is None


def test_given_up_and_begun_anew_when_its_host_is_drained() -> None:
    """The GPU on h0 is of no use now: given up, and one on h1 kept instead, once."""
    site = wide_site(2, 2, gpus=2)
    site.at(20, end("r0"))
    site.at(21, end("r2"), *fresh(0))
    made = site.at(30, ev.HostDrained(0, "h0"))
    assert [rule for rule in rules(made) if rule == OVER] == [OVER]
    assert kept(site) in ({}, {"wide": {"h1": 1}})
    assert site.at(31) == []


def test_given_up_when_too_few_hosts_are_left() -> None:
    """Eight over two hosts of four: with one of them drained it can never fit, so the other is not kept idle."""
    site = wide_site(4, 4, gpus=8)
    site.at(20, *[end(f"r{number}") for number in range(4)], *fresh(0))
    assert kept(site) == {"wide": {"h0": 4}}
    made = site.at(30, ev.HostDrained(0, "h1"))
    assert rules(made) == [OVER]
    assert starts(made) == [("f0", "order.in-credit")]
    site.at(40, ev.HostResumed(0, "h1"))
    assert kept(site) == {"wide": {"h0": 3}}


@pytest.mark.parametrize(
    "event",
    [ev.UserRestricted(0, "will"), ev.SessionCancelled(0, "wide"), ev.SessionHeld(0, "wide")],
    ids=["restricted", "cancelled", "held"],
)
def test_given_up_when_it_may_not_or_will_not_start(event: ev.Event) -> None:
    """What was kept is free at once."""
    site = begun()
    made = site.at(30, event)
    assert starts(made) == [("f0", "order.in-credit")]
    assert kept(site) == {}


def test_given_up_when_its_quota_is_used_up() -> None:
    """Will runs another session: when that has used up the quota nothing is kept for the next."""
    site = Site(params_of(5.0, quota_gpu_h=1.0, quota_window="24h"), *hosts(3))
    site.run("w0", "will")
    full(site, 2)
    site.apply(ask("wide", "will", gpus=2))
    site.cycle()
    site.at(20, end("r0"), *fresh(0))
    assert kept(site) == {"wide": {"h0": 1}}
    made = site.until(60)
    assert rules(made) == [OVER]
    assert starts(made) == [("f0", "order.in-credit")]


def test_nothing_is_taken_and_given_up_for_ever() -> None:
    """At every one of these instants the core comes to rest after few cycles, with or without a reservation."""
    for event in (
        ev.UsageSet(0, "will", 900.0),
        ev.HostDrained(0, "h0"),
        ev.HostDrained(0, "h1"),
        ev.UserRestricted(0, "will"),
        ev.SessionHeld(0, "wide"),
    ):
        site = wide_site(2, 2, gpus=3)
        site.at(20, end("r0"))
        site.at(21, end("r2"))
        made = len(site.made)
        site.at(30, event)
        site.until(600)
        assert len(site.made) - made <= 6


# -- wide sessions: who gives way, and the band ----------------------------------------------------------------------


def test_who_gives_way_by_the_ladder_joins_the_claim() -> None:
    """One GPU is kept; ann, out of credit, gives way for the other: one claim, and wide starts on both."""
    ladder = LadderParams(warn_ms=0, grace_ms=600_000, min_run_ms=1_800_000)
    site = wide_site(3, gpus=2, ladder=ladder)
    site.at(20, end("r0"))
    assert kept(site) == {"wide": {"h0": 1}}
    site.at(40, ev.UsageSet(0, "holder1", 900.0))
    (claim,) = site.core.view.claims.values()
    assert [victim.id for victim in claim.victims] == ["r1"]
    assert len(claim.set_aside) == 1
    made = site.until(60)
    assert ("wide", "order.nominated") in starts(made)
    assert [sid for _, sid, action, _ in made if action == Action.EVICT] == ["r1"]


def test_one_reservation_at_a_time() -> None:
    """Two wide sessions wait: the first in order has what comes free; the other follows when that has started."""
    site = wide_site(4, gpus=2)
    site.at(1, ask("wide2", "wanda", gpus=2))
    site.at(20, end("r0"))
    assert kept(site) == {"wide": {"h0": 1}}
    site.at(21, end("r1"))
    assert kept(site) == {}
    site.at(22, end("r2"))
    assert kept(site) == {"wide2": {"h0": 1}}


def test_out_of_credit_nothing_is_reserved_before_max_wait_and_the_headroom_stays() -> None:
    """Will is out of credit: at 15 min nothing is kept; in the band, what is free above one GPU of headroom is."""
    site = wide_site(4, gpus=2, headroom=1, baseline=0.0)
    assert sorted(site.core.view.holders) == ["r0", "r1", "r2"]
    site.at(50, end("r0"))
    assert kept(site) == {}
    site.until(MAX_WAIT)
    assert kept(site) == {"wide": {"h0": 1}}
    assert site.core.cluster.free_m == WHOLE_M


def test_out_of_credit_it_starts_only_with_the_headroom_left() -> None:
    """Of the band, 2 of 3 GPUs with one of headroom: kept one, then the second; never the third."""
    site = site_of(4, baseline=0.0, headroom=1)
    full(site, 3)
    site.apply(ask("wide", "will", gpus=3), ev.UsageSet(0, "will", 9.0))
    site.cycle()
    site.until(MAX_WAIT)
    assert kept(site) == {}
    site.at(110, end("r0"), *fresh(0))
    assert kept(site) == {"wide": {"h0": 1}}
    assert site.core.cluster.free_m == WHOLE_M
    site.at(111, end("r1"))
    assert kept(site) == {"wide": {"h0": 2}}
    assert site.core.cluster.free_m == WHOLE_M
    assert starts(site.at(112, end("r2")))[0] == ("wide", "order.nominated")
    assert site.core.cluster.free_m == WHOLE_M


def test_of_the_band_nothing_is_reserved_before_reserve_after_neither() -> None:
    """With `max_wait_s` below `reserve_after_s` both have to be over, and the core asks for the instant."""
    order = OrderParams(max_wait_ms=MAX_WAIT * MINUTE_MS, reserve_after_ms=2 * MAX_WAIT * MINUTE_MS)
    site = Site(dataclasses.replace(params_of(), order=order), *hosts(2))
    full(site, 2)
    site.apply(ask("wide", "will", gpus=2))
    site.cycle()
    site.at(20, end("r0"))
    site.until(2 * MAX_WAIT - 1 / MINUTE_MS)
    assert kept(site) == {}
    assert site.deadline == 2 * MAX_WAIT * MINUTE_MS
    site.until(2 * MAX_WAIT)
    assert kept(site) == {"wide": {"h0": 1}}


def test_a_reservation_of_the_band_is_a_turn_of_the_band() -> None:
    """Will is out of credit with two wide sessions in the band: while the first runs nothing is kept for the second."""
    site = site_of(2, 2, baseline=0.0)
    full(site, 4)
    site.apply(ask("w1", "will", gpus=2), ask("w2", "will", gpus=2), ev.UsageSet(0, "will", 50.0))
    site.cycle()
    site.at(10, *fresh(*range(4)))
    site.at(MAX_WAIT + 10, end("r0"))
    site.at(MAX_WAIT + 11, end("r1"))
    assert site.core.sessions["w1"].allocation is not None
    site.at(MAX_WAIT + 12, end("r2"))
    assert kept(site) == {}


def test_a_reservation_survives_a_restore() -> None:
    """Forked with one of two GPUs kept: the copy keeps it, gathers the second and starts the same."""
    site = begun()
    site.fork()
    assert starts(site.at(30, end("r1"))) == [("wide", "order.nominated")]


# -- how long saving takes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [FEWEST, 11, 19, 20, 21, 37, 99, KEPT])
def test_nine_of_ten_saves_by_nearest_rank(count: int) -> None:
    """The smallest time within which at least nine of ten were done, for any number of them."""
    saves = SaveTimes()
    for number in reversed(range(1, count + 1)):
        saves.took(number)
    expected = saves.expected_ms(10**9)
    assert expected * 10 >= 9 * count > (expected - 1) * 10


def test_fewer_than_ten_saves_say_nothing() -> None:
    """Nine count as none: the whole grace is expected."""
    saves = SaveTimes([1] * (FEWEST - 1))
    assert saves.expected_ms(300_000) == 300_000
    saves.took(1)
    assert saves.expected_ms(300_000) == 1


def test_saves_longer_than_the_grace_count_as_the_grace() -> None:
    """It ends without an acknowledgement."""
    assert SaveTimes([500_000] * 20).expected_ms(300_000) == 300_000


def test_only_the_last_hundred_saves_count() -> None:
    """A hundred quick ones after a hundred slow ones, and the dump has just those."""
    saves = SaveTimes([200_000] * 100)
    for _ in range(100):
        saves.took(1_000)
    assert saves.expected_ms(300_000) == 1_000
    assert saves.dump() == [1_000] * 100


def test_what_counts_is_the_time_from_the_grace_to_its_acknowledgement() -> None:
    """Twelve sessions, one after the other, give way and answer after 7 s each; who ends unasked says nothing."""
    site = Site(params_of(5.0, ladder=LadderParams(warn_ms=0, grace_ms=300_000, min_run_ms=60_000)), *hosts(1))
    for number in range(12):
        site.run(f"v{number}", f"over{number}")
        site.apply(ev.UsageSet(site.now, f"over{number}", 900.0))
        minute = site.now // MINUTE_MS + 2
        site.at(minute, ask(f"w{number}", f"fresh{number}"))
        if number == 5:
            site.fork()
        site.at(minute + 7 / 60, ev.SessionSaved(0, f"v{number}", acknowledged=True))
        site.at(minute + 1, end(f"w{number}"))
    for core in site.cores:
        assert isinstance(core.queue, FairQueue)
        assert core.queue.saves.dump() == [7_000] * 12
        assert lead_time_ms(core.params, core.queue.saves) == 7_000


def test_quick_saves_make_the_stock_smaller_from_the_next_quarter_of_an_hour_on() -> None:
    """Refilling takes 7 s instead of the grace of 5 min: fewer GPUs have to be kept for the requests of that time."""
    ladder = dataclasses.replace(CALM, warn_ms=0)
    params = dataclasses.replace(params_of(5.0, ladder=ladder), headroom=HeadroomParams(confidence=0.98))
    stocks = []
    for save_ms in (None, 7_000, 290_000):
        site = Site(params, *hosts(40))
        full(site, 1)
        site.until(1)
        before = site.core.view.memory.stock_m
        for _ in range(FEWEST if save_ms else 0):
            site.core.queue.saved(save_ms or 0)
        site.at(2, ev.GroupSet(0, "any"))
        assert site.core.view.memory.stock_m == before
        site.fork()
        site.at(16, ev.GroupSet(0, "any"))
        stocks.append(site.core.view.memory.stock_m or 0)
    assert stocks[1] < stocks[2] <= stocks[0]


# -- planted faults ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("owner", "name", "fault", "test"),
    [
        (Wide, "_entitled", lambda *_: True, test_given_up_out_of_credit),
        (Wide, "keep", lambda *_: iter(()), test_gpus_that_come_free_one_by_one_are_kept),
        (FairShare, "_by_band", lambda *_: None, test_the_oldest_of_each_user_goes_oldest_first),
        (FairShare, "_count_start", staticmethod(lambda _: None), test_one_of_any_four_starts),
    ],
    ids=["never given up", "nothing is added", "no band", "starts are not counted"],
)
def test_planted_faults_are_caught(
    owner: type, name: str, fault: Any, test: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them fails the test that is about it."""
    monkeypatch.setattr(owner, name, fault)
    with pytest.raises((AssertionError, ValueError)):
        test()
