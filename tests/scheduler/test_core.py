"""The core: hosts that come, go and fall silent; places kept; refusals that change nothing; throttles."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from policies.model import NANO, WHOLE_M, Action, Decision, Ladder, State
from policies.params import HeadroomParams, LadderParams, Params, TelemetryParams, TierParams
from policies.usage import charge_rate_n
from scheduler import checkpoint
from scheduler import events as ev
from scheduler.core import CoreError
from scheduler.lifecycle import IllegalMove
from tests.scheduler.site import Site as BaseSite
from tests.scheduler.site import did, started

MINUTE_MS = 60_000
RICH = Params(tiers={"free": TierParams(baseline_gpus=0.5)})
"""Everybody is in credit for a long time."""
POOR = Params(tiers={"free": TierParams(baseline_gpus=0.05)})
"""A cap of 3.46 GPU-h: `use` above it and a user is out of credit."""
FIFO = Params(policy="fifo")
SKIP = Params(policy="fifo-skip")


class Site(BaseSite):
    """A site on which time passes with a cycle at the end."""

    def until(self, when: int) -> list[Decision]:
        """Cycle at every deadline that the core asks for, up to and at `when`."""
        made: list[Decision] = []
        while self.now < when:
            due = when if self.deadline is None else min(when, max(self.deadline, self.now + 1))
            assert due > self.now
            made += self.cycle(due)
        return made


ALL = pytest.mark.parametrize("params", [RICH, FIFO, SKIP], ids=["fair-share", "fifo", "fifo-skip"])

# -- hosts: join, drain, resume ------------------------------------------------------------------------------------


@ALL
def test_a_host_that_joins_takes_waiting_sessions(params: Params) -> None:
    """Its GPUs count from the event on, and the next cycle fills them."""
    site = Site(params, ev.HostJoined(0, "a", 1))
    for number in range(3):
        site.submit(f"s{number}", f"u{number}")
    assert started(site.cycle()) == ["s0"]
    site.apply(ev.HostJoined(5, "b", 2))
    assert site.core.cluster.total_m == 3 * WHOLE_M
    assert started(site.cycle()) == ["s1", "s2"]
    assert {site.host_of("s1"), site.host_of("s2")} == {("b",)}


@ALL
def test_a_drained_host_keeps_what_runs_and_gets_nothing_new(params: Params) -> None:
    """Draining is for newcomers only; GPUs freed there stay empty until the host is resumed."""
    site = Site(params, ev.HostJoined(0, "a", 2))
    site.submit("s0", "u0")
    site.cycle()
    site.apply(ev.HostDrained(1, "a"))
    assert (site.core.cluster.total_m, site.core.cluster.free_m) == (0, 0)
    site.submit("s1", "u1")
    assert started(site.cycle()) == []
    assert site.core.sessions["s0"].state is State.RUNNING
    site.end("s0")
    assert started(site.cycle()) == []
    site.apply(ev.HostDrained(2, "a"))  # twice is as good as once
    site.apply(ev.HostResumed(3, "a"))
    assert site.core.cluster.total_m == site.core.cluster.free_m == 2 * WHOLE_M
    assert started(site.cycle()) == ["s1"]
    site.apply(ev.HostResumed(4, "a"))


def test_a_drained_host_with_shared_gpus_takes_no_further_fraction() -> None:
    """A shared GPU on a drained host is closed too, and its room comes back with the host."""
    site = Site(RICH, ev.HostJoined(0, "a", 1), shared=None)
    site.submit("s0", "u0", fraction_m=400)
    site.cycle()
    site.apply(ev.HostDrained(1, "a"))
    site.submit("s1", "u1", fraction_m=400)
    assert started(site.cycle()) == []
    site.apply(ev.HostResumed(2, "a"))
    assert started(site.cycle()) == ["s1"]
    assert site.core.cluster.free_m == 200


# -- hosts: silence ------------------------------------------------------------------------------------------------

BEAT = ev.HostJoined(0, "beat", 1, heartbeat=True)
STALE_MS, LOST_MS = TelemetryParams().stale_ms, TelemetryParams().lost_ms


@ALL
def test_nothing_new_is_placed_on_a_silent_host(params: Params) -> None:
    """At `stale` it is still trusted, a millisecond later it is not; the core asks to be called then by itself."""
    site = Site(params, BEAT)
    site.cycle(STALE_MS)
    assert site.deadline == STALE_MS + 1
    assert site.core.view.stale_hosts == set()
    site.cycle(STALE_MS + 1)
    assert site.core.view.stale_hosts == {"beat"}
    site.submit("s", "u")
    assert started(site.cycle()) == []
    assert site.core.cluster.total_m == 0
    site.apply(ev.HostReported(site.now + 1, "beat"))
    assert started(site.cycle()) == ["s"]
    assert site.core.view.stale_hosts == set()


@ALL
def test_sessions_are_lost_with_their_host_and_its_gpus_come_back_with_it(params: Params) -> None:
    """Silent for `lost`: not yet; a millisecond more: the session is lost, and charged no longer. The host returns."""
    site = Site(params, BEAT)
    site.submit("s", "u")
    assert started(site.cycle()) == ["s"]
    assert did(site.until(LOST_MS), Action.LOSE) == []
    assert site.core.sessions["s"].state is State.RUNNING
    made = site.until(LOST_MS + 1)
    assert did(made, Action.LOSE) == ["s"]
    assert made[-1].reason.rule == "host.lost"
    assert "s" not in site.core.sessions
    assert site.core.ledger.users["u"].rate_n == 0
    assert site.core.view.lost_hosts == {"beat"}
    site.submit("t", "u")
    assert started(site.cycle()) == []
    site.apply(ev.HostReported(site.now + 5, "beat"))
    assert site.core.view.lost_hosts == set()
    assert site.core.cluster.free_m == WHOLE_M
    assert started(site.cycle()) == ["t"]


@ALL
def test_reports_in_time_keep_a_host_open(params: Params) -> None:
    """A report every ten seconds for an hour: never stale, and the session runs on."""
    site = Site(params, BEAT)
    site.submit("s", "u")
    site.cycle()
    for at_ms in range(10_000, 3_600_000, 10_000):
        site.until(at_ms)
        site.apply(ev.HostReported(at_ms, "beat"))
        assert site.core.view.stale_hosts == set()
    assert site.core.sessions["s"].state is State.RUNNING


def test_hosts_without_heartbeat_are_never_missed() -> None:
    """Only hosts that owe reports fall silent, and only those may report."""
    site = Site(RICH, ev.HostJoined(0, "quiet", 1), BEAT._replace(gpus=2))
    site.submit("s", "u", gpus=1)
    site.submit("t", "u", gpus=2)
    site.cycle()
    assert (site.host_of("s"), site.host_of("t")) == (("quiet",), ("beat",))
    made = site.until(10 * LOST_MS)
    assert did(made, Action.LOSE) == ["t"]
    assert site.core.sessions["s"].state is State.RUNNING
    with pytest.raises(CoreError, match="quiet"):
        site.core.apply(ev.HostReported(site.now, "quiet"))


def test_a_session_on_two_hosts_is_lost_with_either() -> None:
    """A wide session does not outlive one of its hosts; the other host's GPUs are free at once."""
    site = Site(RICH, BEAT._replace(gpus=2), BEAT._replace(host="also", gpus=2))
    site.submit("wide", "u", gpus=4)
    assert started(site.cycle()) == ["wide"]
    site.until(20_000)
    site.apply(ev.HostReported(20_000, "also"))
    site.until(40_000)
    site.apply(ev.HostReported(40_000, "also"))
    assert did(site.until(LOST_MS + 1), Action.LOSE) == ["wide"]
    assert site.core.cluster.free_m == 2 * WHOLE_M


def test_a_silent_drained_host_stays_closed_when_it_reports() -> None:
    """A report ends the silence, not the drain."""
    site = Site(RICH, BEAT)
    site.apply(ev.HostDrained(0, "beat"))
    site.cycle(STALE_MS + 1)
    site.apply(ev.HostReported(site.now, "beat"))
    site.submit("s", "u")
    assert started(site.cycle()) == []
    site.apply(ev.HostResumed(site.now, "beat"))
    assert started(site.cycle()) == ["s"]


def test_a_nominated_waiter_gets_nothing_on_a_host_that_is_lost() -> None:
    """The victim's host falls silent during its grace: nobody is evicted, the victim is lost, and the claim is over.

    The waiter waits on in the queue and starts when the host is back.
    """
    params = dataclasses.replace(POOR, ladder=LadderParams(min_run_ms=0, warn_ms=0, grace_ms=40_000))
    site = Site(params, BEAT)
    site.use("ann", 10.0)
    site.submit("v", "ann")
    site.cycle()
    site.submit("w", "bob")
    assert did(site.cycle(), Action.GRACE) == ["v"]
    made = site.until(4 * LOST_MS)
    assert [(d.at_ms, d.action, d.session) for d in made] == [
        (LOST_MS + 1, Action.LOSE, "v"),
        (LOST_MS + 1, Action.WITHDRAW, "w"),
    ]
    assert site.core.sessions["w"].state is State.QUEUED
    assert site.core.sessions["w"].claim is None
    site.apply(ev.HostReported(site.now, "beat"))
    assert started(site.cycle()) == ["w"]
    assert site.core.view.claims == {}


# -- places in the queue -------------------------------------------------------------------------------------------


@ALL
def test_a_held_session_does_not_start_and_keeps_its_place(params: Params) -> None:
    """Passed over while held, first again once unheld: its submit time counts, not the time it was unheld."""
    site = Site(params)
    site.submit("run", "runner")
    site.cycle()
    for number in range(3):
        site.now += 1000
        site.submit(f"s{number}", f"u{number}")
    site.cycle()
    site.apply(ev.SessionHeld(site.now, "s0"))
    site.end("run")
    assert started(site.cycle()) == ["s1"]
    site.now += 1000
    site.apply(ev.SessionUnheld(site.now, "s0"))
    site.end("s1")
    assert started(site.cycle()) == ["s0"]


@ALL
def test_held_and_unheld_again_is_as_if_nothing_had_happened(params: Params) -> None:
    """Many holds of the same session start it once, and in its place."""
    site = Site(params)
    site.submit("run", "runner")
    site.cycle()
    site.now = 1000
    site.submit("s0", "u0")
    site.now = 2000
    site.submit("s1", "u1")
    for _ in range(5):
        site.apply(ev.SessionHeld(site.now, "s0"), ev.SessionUnheld(site.now, "s0"))
        site.cycle()
    order = []
    for _ in range(2):
        site.end(*site.core.view.holders)
        order += started(site.cycle())
    assert order == ["s0", "s1"]


# -- cancelling ----------------------------------------------------------------------------------------------------


@ALL
def test_cancelled_while_it_waits_it_is_gone_at_once(params: Params) -> None:
    """Queued or held: nothing is left of it, and the next in line moves up."""
    site = Site(params)
    site.submit("run", "runner")
    site.cycle()
    site.submit("s0", "u0")
    site.submit("s1", "u1")
    site.submit("s2", "u2")
    site.apply(ev.SessionHeld(0, "s1"))
    site.apply(ev.SessionCancelled(0, "s0"), ev.SessionCancelled(0, "s1"))
    assert set(site.core.sessions) == {"run", "s2"}
    site.end("run")
    assert started(site.cycle()) == ["s2"]


@ALL
def test_cancelled_while_it_runs_it_stops_first(params: Params) -> None:
    """Its GPUs are free, and its charge ends, only when the host says that it is gone."""
    site = Site(params)
    site.submit("s0", "u0")
    site.cycle()
    site.submit("s1", "u1")
    site.apply(ev.SessionCancelled(0, "s0"))
    assert site.core.sessions["s0"].state is State.STOPPING
    assert site.core.view.leaving_m == WHOLE_M
    assert started(site.cycle()) == []
    assert site.core.ledger.users["u0"].rate_n > 0
    site.apply(ev.SessionEnded(1, "s0", "cancelled"))
    assert site.core.view.leaving_m == 0
    assert started(site.cycle()) == ["s1"]


QUICK = LadderParams(min_run_ms=0, warn_ms=0, grace_ms=5 * MINUTE_MS)


def in_grace(*, others: int = 0) -> Site:
    """ann, out of credit, is in grace for bob's session `w`; so many others of ann's run beside it."""
    params = dataclasses.replace(POOR, ladder=QUICK)
    site = Site(params, ev.HostJoined(0, "h", 1 + others))
    site.use("ann", 10.0)
    for number in range(1 + others):
        site.submit(f"v{number}", "ann")
    site.cycle()
    site.now = 1000
    site.submit("w", "bob")
    assert len(did(site.cycle(), Action.GRACE)) == 1
    assert site.core.sessions["w"].claim is not None
    return site


def test_cancelled_in_grace_its_gpu_goes_to_the_nominated_waiter() -> None:
    """The session stops, is not evicted as well, and what it frees is the waiter's, though another comes first."""
    site = in_grace()
    site.apply(ev.SessionCancelled(2000, "v0"))
    assert site.core.sessions["v0"].state is State.STOPPING
    site.submit("late", "cem")
    assert site.until(20 * MINUTE_MS) == []
    site.apply(ev.SessionEnded(site.now, "v0", "cancelled"))
    made = site.cycle()
    assert started(made) == ["w"]
    assert made[0].reason.rule == "order.nominated"
    assert site.core.view.claims == {}


def test_when_the_nominated_waiter_is_cancelled_its_victim_stays() -> None:
    """Nobody needs the GPU any more: the grace ends without an eviction and its claim is closed."""
    site = in_grace()
    site.apply(ev.SessionCancelled(2000, "w"))
    assert "w" not in site.core.sessions
    assert site.core.view.claimed_m == 0
    assert site.core.ledger.users["bob"].committed_n == 0
    made = site.until(20 * MINUTE_MS)
    assert did(made, Action.EVICT) == []
    assert "v0" in site.core.sessions
    assert site.core.view.claims == {}
    assert site.core.sessions["v0"].ladder in (Ladder.OK, Ladder.NOTICE)


@pytest.mark.parametrize("leave", [ev.SessionHeld, ev.SessionAbandoned, ev.SessionCancelled])
def test_what_was_set_aside_for_a_waiter_that_leaves_is_free_for_all(leave: Callable[[int, str], ev.Event]) -> None:
    """A waiter of two GPUs has one set aside when it leaves: somebody else gets that one at once."""
    params = dataclasses.replace(POOR, ladder=QUICK)
    site = Site(params, ev.HostJoined(0, "h", 2))
    site.use("ann", 10.0)
    site.submit("v0", "ann")
    site.submit("v1", "ann")
    site.cycle()
    site.now = 1000
    site.submit("w", "bob", gpus=2)
    assert len(did(site.cycle(), Action.GRACE)) == 2
    site.end("v0")
    assert site.core.view.set_aside_m == WHOLE_M
    assert started(site.cycle()) == []
    site.submit("one", "cem")
    assert started(site.cycle()) == []
    site.apply(leave(2000, "w"))
    assert site.core.view.set_aside_m == 0
    assert started(site.cycle(2000)) == ["one"]


def test_a_free_gpu_is_counted_on_for_one_nominated_waiter_only() -> None:
    """bob asks twice for 2 GPUs; with one free and one of ann's that may go, only one of his sessions is nominated."""
    site = Site(dataclasses.replace(POOR, ladder=QUICK), ev.HostJoined(0, "h", 3))
    site.use("ann", 10.0)
    site.submit("v0", "ann")
    site.submit("v1", "ann")
    site.cycle()
    site.now = 1000
    site.submit("w0", "bob", gpus=2)
    site.submit("w1", "bob", gpus=2)
    graces = did(site.cycle(), Action.GRACE)
    assert len(graces) == 1
    assert site.core.sessions["w1"].claim is None
    assert started(site.until(20 * MINUTE_MS)) == ["w0"]
    assert did(site.made, Action.EVICT) == graces


def test_what_a_nominated_waiter_needs_of_the_free_gpus_is_kept_while_its_victims_leave() -> None:
    """Two GPUs are free and two are being given up: while the evicted leave, nobody else gets the free ones."""
    site = Site(dataclasses.replace(POOR, ladder=QUICK), ev.HostJoined(0, "h", 2), ev.HostJoined(0, "i", 2))
    site.use("ann", 10.0)
    site.submit("v", "ann", gpus=2)
    site.cycle()
    site.now = 1000
    site.submit("w", "bob", gpus=4)
    assert did(site.cycle(), Action.GRACE) == ["v"]
    step = site.core.cycle(1000 + QUICK.grace_ms)
    assert did(step.decisions, Action.EVICT) == ["v"]
    site.core.validate()
    assert site.core.cluster.free_m == 0
    assert site.core.view.set_aside_m == 2 * WHOLE_M
    site.now = site.core.now_ms
    site.submit("late", "cem")
    assert started(site.cycle()) == []
    site.apply(ev.SessionEnded(site.now, "v", "evicted"))
    assert started(site.cycle()) == ["w"]


def test_a_nominated_waiter_that_was_held_waits_again_in_its_place() -> None:
    """Held, it loses the claim; unheld, it is first in line again and is nominated anew."""
    site = in_grace()
    site.apply(ev.SessionHeld(2000, "w"))
    assert site.core.sessions["w"].claim is None
    site.submit("late", "cem")
    site.apply(ev.SessionUnheld(2000, "w"))
    site.until(30 * MINUTE_MS)
    assert started(site.made)[-1] == "w"


# -- never fits ----------------------------------------------------------------------------------------------------

T4 = ev.HostJoined(0, "t", 4, "T4", 16_384)


@pytest.mark.parametrize(
    ("asked", "shared", "value"),
    [
        ({"gpus": 9}, None, 9.0),
        ({"gpu_type": "H100"}, None, 1.0),
        ({"memory_mib": 16_385}, None, 1.0),
        ({"fraction_m": 500, "memory_mib": 16_385}, None, 0.5),
        ({"fraction_m": 500, "gpu_type": "H100"}, None, 0.5),
        ({"fraction_m": 500}, 0, 0.5),
    ],
    ids=["too-many", "no-such-model", "memory", "memory-of-a-part", "model-of-a-part", "nothing-shared"],
)
@ALL
def test_what_could_never_run_is_refused_with_the_reason(
    params: Params, asked: dict[str, Any], shared: int | None, value: float
) -> None:
    """Refused in the next cycle even while the cluster is full, with what it asked for and what there is."""
    site = Site(params, T4, T4._replace(host="u"), shared=shared)
    site.submit("full", "olga", gpus=8)
    site.cycle()
    site.submit("never", "ann", **asked)
    (decision,) = site.cycle()
    assert (decision.action, decision.session, decision.user) == (Action.REJECT, "never", "ann")
    assert decision.reason.rule == "never-fits"
    assert (decision.reason.value, decision.reason.threshold, decision.reason.unit) == (value, 8.0, "gpu")
    assert decision.reason.change == "ask-for-less"
    assert "never" not in site.core.sessions


@ALL
def test_what_only_has_to_wait_is_not_refused(params: Params) -> None:
    """The largest request that fits an empty cluster waits, also for drained hosts."""
    site = Site(params, T4, T4._replace(host="u"))
    site.submit("full", "olga")
    site.cycle()
    site.submit("big", "ann", gpus=8, gpu_type="T4", memory_mib=16_384)
    assert site.cycle() == []
    site.apply(ev.HostDrained(0, "u"))
    site.submit("bigger", "ann", gpus=8)
    assert site.cycle() == []
    site.apply(ev.HostResumed(0, "u"))
    site.end("full")
    assert started(site.cycle()) == ["big"]


@ALL
def test_a_hold_does_not_save_what_can_never_run(params: Params) -> None:
    """Held before its first cycle and unheld later, it is refused then instead of waiting for ever."""
    site = Site(params)
    site.submit("never", "ann", gpus=2)
    site.apply(ev.SessionHeld(0, "never"))
    assert site.cycle() == []
    site.apply(ev.SessionUnheld(1, "never"))
    assert did(site.cycle(), Action.REJECT) == ["never"]


@ALL
def test_a_host_that_joins_in_time_saves_what_could_not_have_run(params: Params) -> None:
    """Asked for before the large host joined, in the same batch: it fits by the time the core decides, so it starts."""
    site = Site(params)
    site.submit("big", "ann", gpus=2)
    site.apply(ev.HostJoined(0, "large", 2))
    assert started(site.cycle()) == ["big"]


# -- what is refused changes nothing -------------------------------------------------------------------------------


def busy() -> Site:
    """A site with a bit of everything in it, one minute old."""
    site = Site(POOR, T4, BEAT)
    site.apply(ev.GroupSet(0, "lab", 2.0), ev.GroupSet(0, "vision", 1.0, "lab"))
    site.apply(ev.UserSet(0, "ann", "vision", "free", 2.0))
    site.submit("run", "ann", group="vision", gpus=4)
    site.cycle()
    site.load(0.5)
    site.submit("wait", "bob", gpus=4)
    site.submit("held", "bob")
    site.apply(ev.SessionHeld(0, "held"))
    site.submit("part", "cem", fraction_m=500)
    site.cycle()
    site.apply(ev.HostReported(MINUTE_MS, "beat"))
    site.cycle(MINUTE_MS)
    return site


NOW = MINUTE_MS
REFUSED: dict[str, ev.Event] = {
    "time backwards": ev.SessionSubmitted(NOW - 1, "new", "ann"),
    "duplicate session, queued": ev.SessionSubmitted(NOW, "wait", "ann"),
    "duplicate session, running": ev.SessionSubmitted(NOW, "run", "ann"),
    "duplicate session, held": ev.SessionSubmitted(NOW, "held", "zoe"),
    "duplicate host": ev.HostJoined(NOW, "t", 4),
    "unknown host reports": ev.HostReported(NOW, "x"),
    "host without heartbeat reports": ev.HostReported(NOW, "t"),
    "unknown host drained": ev.HostDrained(NOW, "x"),
    "unknown host resumed": ev.HostResumed(NOW, "x"),
    "host without GPUs": ev.HostJoined(NOW, "x", 0),
    "host with negative GPUs": ev.HostJoined(NOW, "x", -1),
    "unknown parent": ev.GroupSet(NOW, "arts", 1.0, "x"),
    "another parent": ev.GroupSet(NOW, "vision", 1.0, "default"),
    "its own parent": ev.GroupSet(NOW, "lab", 1.0, "vision"),
    "new group of no shares": ev.GroupSet(NOW, "arts", 0.0),
    "group of no shares": ev.GroupSet(NOW, "lab", 0.0),
    "group of negative shares": ev.GroupSet(NOW, "lab", -1.0),
    "group of NaN shares": ev.GroupSet(NOW, "lab", math.nan),
    "group of infinite shares": ev.GroupSet(NOW, "lab", math.inf),
    "another group": ev.UserSet(NOW, "ann", "default"),
    "new user of no shares": ev.UserSet(NOW, "zoe", "arts", "free", 0.0),
    "user of no shares": ev.UserSet(NOW, "ann", "vision", "paid", 0.0),
    "user of NaN shares": ev.UserSet(NOW, "ann", "vision", "paid", math.nan),
    "usage of an unknown user": ev.UsageSet(NOW, "zoe", 1.0),
    "negative usage": ev.UsageSet(NOW, "ann", -1.0),
    "NaN usage": ev.UsageSet(NOW, "ann", math.nan),
    "infinite usage": ev.UsageSet(NOW, "ann", math.inf),
    "no GPU": ev.SessionSubmitted(NOW, "new", "ann", gpus=0),
    "negative GPUs": ev.SessionSubmitted(NOW, "new", "ann", gpus=-1),
    "no part": ev.SessionSubmitted(NOW, "new", "ann", fraction_m=0),
    "more than whole": ev.SessionSubmitted(NOW, "new", "ann", fraction_m=1001),
    "parts of two": ev.SessionSubmitted(NOW, "new", "ann", gpus=2, fraction_m=500),
    "negative memory": ev.SessionSubmitted(NOW, "new", "ann", memory_mib=-1),
    "unknown session held": ev.SessionHeld(NOW, "x"),
    "unknown session unheld": ev.SessionUnheld(NOW, "x"),
    "unknown session abandoned": ev.SessionAbandoned(NOW, "x"),
    "unknown session cancelled": ev.SessionCancelled(NOW, "x"),
    "unknown session started": ev.SessionStarted(NOW, "x"),
    "unknown session's load": ev.LoadReported(NOW, "x", 0.5),
    "unknown session saved": ev.SessionSaved(NOW, "x"),
    "unknown session ended": ev.SessionEnded(NOW, "x"),
    "running session held": ev.SessionHeld(NOW, "run"),
    "queued session unheld": ev.SessionUnheld(NOW, "wait"),
    "running session abandoned": ev.SessionAbandoned(NOW, "run"),
    "queued session ended": ev.SessionEnded(NOW, "wait"),
    "running session started": ev.SessionStarted(NOW, "run"),
    "load of a queued session": ev.LoadReported(NOW, "wait", 0.5),
    "load above 1": ev.LoadReported(NOW, "run", 1.01),
    "load below 0": ev.LoadReported(NOW, "run", -0.01),
    "load NaN": ev.LoadReported(NOW, "run", math.nan),
    "no such outcome": ev.SessionEnded(NOW, "run", "vanished"),
}


@pytest.mark.parametrize("event", REFUSED.values(), ids=REFUSED)
def test_a_refused_event_changes_nothing(event: ev.Event) -> None:
    """Refused as `CoreError` or `IllegalMove`; before and after are one and the same checkpoint, and life goes on."""
    site = busy()
    before = checkpoint.dump(site.core)
    with pytest.raises(Exception) as caught:
        site.core.apply(event)
    assert checkpoint.dump(site.core) == before
    site.core.validate()
    assert isinstance(caught.value, CoreError | IllegalMove), f"{type(caught.value).__name__}: {caught.value}"
    site.end("run")
    assert started(site.cycle()) == ["wait"]


def test_a_cycle_does_not_run_backwards_either() -> None:
    """A cycle earlier than what was seen is refused, and the clock stays."""
    site = busy()
    with pytest.raises(CoreError, match="backwards"):
        site.core.cycle(NOW - 1)
    assert site.core.now_ms == NOW


def test_an_id_is_free_again_when_its_session_has_ended() -> None:
    """Ids are unique among live sessions; the core forgets the rest."""
    site = Site(RICH)
    site.submit("s", "ann")
    site.cycle()
    site.end("s")
    site.submit("s", "ann")
    assert started(site.cycle()) == ["s"]


# -- administration while sessions wait ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "event",
    [
        ev.UserSet(1000, "bob", shares=2.0),
        ev.UserSet(1000, "bob", tier="paid"),
        ev.UserSet(1000, "ann", shares=2.0),
        ev.GroupSet(1000, "default", 5.0),
        ev.UsageSet(1000, "bob", 3.0),
        ev.UsageSet(1000, "bob", 100.0),
        ev.UsageSet(1000, "ann", 0.0),
    ],
    ids=repr,
)
def test_shares_tiers_and_usage_may_be_set_while_sessions_wait(event: ev.Event) -> None:
    """Whatever an administrator sets for waiters and holders, the queue goes on and everybody is served."""
    site = Site(RICH)
    site.submit("run", "ann")
    site.cycle()
    site.submit("w0", "bob")
    site.submit("w1", "cem")
    site.submit("w2", "bob", gpus=1, gpu_type="T4")
    site.cycle()
    site.apply(event)
    site.cycle()
    order: list[str] = []
    for _ in range(3):
        site.end(*site.core.view.holders)
        order += started(site.cycle())
    assert sorted(order) == ["w0", "w1", "w2"]


def test_more_shares_move_a_waiting_user_up() -> None:
    """bob has used more than cem; with four times the shares he stands better, and comes first from then on."""
    site = Site(RICH)
    site.submit("run", "ann")
    site.cycle()
    site.use("bob", 2.0)
    site.use("cem", 1.0)
    site.submit("b", "bob")
    site.submit("c", "cem")
    site.cycle()
    site.apply(ev.UserSet(site.now, "bob", shares=4.0))
    site.end("run")
    assert started(site.cycle()) == ["b"]


# -- charging ------------------------------------------------------------------------------------------------------


def test_the_weight_is_that_of_the_gpu_given() -> None:
    """Any model asked for, an A100 given: it is charged as an A100."""
    params = dataclasses.replace(RICH, gpu_weight={"A100": 4.0, "T4": 1.0})
    site = Site(params, ev.HostJoined(0, "a", 2, "A100"))
    site.submit("s", "ann", gpus=2)
    site.cycle()
    site.load(0.5)
    assert site.core.ledger.users["ann"].rate_n == charge_rate_n(2, 4.0, WHOLE_M, 0.5, 0.5) == 6 * NANO


# -- throttles on shared GPUs --------------------------------------------------------------------------------------

SHARED = dataclasses.replace(
    POOR,
    headroom=HeadroomParams(fixed_gpus=0),
    ladder=LadderParams(min_run_ms=0, warn_ms=MINUTE_MS, throttle_step_ms=5 * MINUTE_MS, grace_ms=5 * MINUTE_MS),
)


def shared_site(*waiting: int, fraction_m: int = 800) -> Site:
    """One GPU, `fraction_m` of it held by ann out of credit; in-credit waiters ask for the given parts at minute 1."""
    site = Site(SHARED)
    site.use("ann", 10.0)
    site.submit("a", "ann", fraction_m=fraction_m)
    assert started(site.cycle()) == ["a"]
    site.now = MINUTE_MS
    for number, part in enumerate(waiting):
        site.submit(f"w{number}", f"u{number}", fraction_m=part)
    return site


def test_a_throttle_goes_down_in_quarters_of_what_was_asked() -> None:
    """800 thousandths asked: 600, 400, 200, five minutes each, then grace; the charge follows each step."""
    site = shared_site(1000 - 1)
    site.cycle()
    site.until(40 * MINUTE_MS)
    steps = [(d.at_ms // MINUTE_MS, d.granted_m) for d in site.made if d.action is Action.THROTTLE]
    assert steps == [(2, 600), (7, 400), (12, 200)]
    grace = [d.at_ms // MINUTE_MS for d in site.made if d.action is Action.GRACE]
    evicted = [d.at_ms // MINUTE_MS for d in site.made if d.action is Action.EVICT]
    assert (grace, evicted) == ([17], [22])
    assert started(site.made)[-1] == "w0"


def test_the_charge_follows_the_throttle() -> None:
    """At 75 % of its fraction a session is charged, and committed, 75 % of it."""
    site = shared_site(300)
    site.cycle()
    site.load(1.0)
    rate, committed = site.core.ledger.users["ann"].rate_n, site.core.ledger.users["ann"].committed_n
    site.until(2 * MINUTE_MS)
    ann = site.core.ledger.users["ann"]
    assert ann.rate_n == rate * 3 // 4 == round(0.6 * NANO)
    assert ann.committed_n == committed * 3 // 4


@pytest.mark.parametrize(("asked", "granted", "minute"), [(350, 600, 2), (550, 400, 7), (750, 200, 12)])
def test_what_a_step_frees_is_given_out_in_the_same_cycle(asked: int, granted: int, minute: int) -> None:
    """The waiter starts at the very instant at which enough is free; nobody is thrown out for it."""
    site = shared_site(asked)
    site.cycle()
    made = site.until(30 * MINUTE_MS)
    assert [(d.at_ms // MINUTE_MS, d.session) for d in made if d.action is Action.START] == [(minute, "w0")]
    assert min(d.granted_m for d in made if d.action is Action.THROTTLE if d.granted_m) == granted
    assert did(made, Action.EVICT) == []
    assert site.core.sessions["a"].granted_m == granted


def test_a_throttled_session_grows_again_only_where_there_is_room() -> None:
    """While the newcomer runs, 200 + 750 of the GPU are taken and nothing grows; once it has left, a step in five."""
    site = shared_site(750)
    site.cycle()
    site.until(60 * MINUTE_MS)
    assert site.core.sessions["a"].granted_m == 200
    site.end("w0")
    site.cycle()
    made = site.until(100 * MINUTE_MS)
    grown = [(d.at_ms, d.granted_m) for d in made if d.action is Action.RECOVER and d.granted_m is not None]
    assert [granted for _, granted in grown] == [400, 600, 800]
    gaps = [after - before for (before, _), (after, _) in pairwise(grown)]
    assert gaps == [5 * MINUTE_MS] * 2
    assert site.core.sessions["a"].ladder in (Ladder.OK, Ladder.NOTICE)
    assert site.core.sessions["a"].granted_m == 800
    assert site.core.cluster.free_m == 200


def test_a_throttled_session_grows_into_the_part_that_is_left() -> None:
    """With 200 of the GPU left beside it, one step of 200 fits and the second does not."""
    site = shared_site(400)
    site.cycle()
    made = site.until(10 * MINUTE_MS)
    assert started(made) == ["w0"]
    assert site.core.sessions["a"].granted_m == 600
    assert site.core.cluster.free_m == 0
    made = site.until(60 * MINUTE_MS)
    assert [d for d in made if d.granted_m is not None] == []


@pytest.mark.parametrize("fraction_m", [1, 2, 3, 4, 7, 10, 333, 500, 999])
def test_every_part_of_a_gpu_is_shrunk_in_at_most_three_steps_and_then_taken(fraction_m: int) -> None:
    """75, 50, 25 % also of parts that four does not divide: each step frees something, and none is left over."""
    site = shared_site(fraction_m=fraction_m)
    site.submit("whole", "bob")
    site.cycle()
    made = site.until(60 * MINUTE_MS)
    granted = [fraction_m, *(d.granted_m for d in made if d.action is Action.THROTTLE and d.granted_m is not None)]
    assert all(after < before for before, after in pairwise(granted))
    assert all(part > 0 for part in granted)
    assert len(granted) <= 4
    assert did(made, Action.EVICT) == ["a"]


def test_a_session_on_a_whole_gpu_is_not_throttled() -> None:
    """Nothing could be given to others: it goes from warning to grace."""
    site = Site(SHARED)
    site.use("ann", 10.0)
    site.submit("a", "ann")
    site.cycle()
    site.submit("w", "bob")
    site.cycle()
    made = site.until(30 * MINUTE_MS)
    assert did(made, Action.THROTTLE) == []
    assert did(site.made, Action.EVICT) == ["a"]


def test_a_credit_that_ends_as_its_user_submits_has_ended() -> None:
    """The crossing falls due, the user asks for more before the next cycle: the cycle finds it out of credit."""
    site = Site(POOR, ev.HostJoined(0, "h", 1))
    site.use("ann", 3.45)
    site.submit("a", "ann")
    site.cycle()
    ann = site.core.ledger.users["ann"]
    assert ann.in_credit
    site.now = ann.due_ms + 5
    site.submit("b", "ann")
    site.cycle()
    assert not ann.in_credit
    assert list(site.core.queue.over) == [ann]


def test_an_older_session_that_comes_back_counts_for_patience() -> None:
    """Held, and let go while a younger one of the same user waits: the oldest wait is its own."""
    site = Site(RICH, ev.HostJoined(0, "h", 1))
    site.submit("running", "ann")
    site.cycle(0)
    site.now = 1_000
    site.submit("old", "ann")
    site.apply(ev.SessionHeld(1_500, "old"))
    site.now = 2_000
    site.submit("young", "ann")
    assert site.core.queue.oldest_in_credit_ms() == 2_000
    site.apply(ev.SessionUnheld(3_000, "old"))
    assert site.core.queue.oldest_in_credit_ms() == 1_000
