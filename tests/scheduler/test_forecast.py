"""A forecast says what then happens if sessions end when they were assumed to, and costs the core nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.catalogue import make_policy
from policies.model import HOUR_MS, Action, State
from policies.params import HeadroomParams, LadderParams, Params, TierParams
from scheduler import checkpoint
from scheduler import events as ev
from scheduler.core import Core
from scheduler.forecast import forecast

MINUTE_MS = 60_000
FAIR = Params(
    tiers={"free": TierParams(baseline_gpus=0.05)},
    headroom=HeadroomParams(fixed_gpus=1),
    ladder=LadderParams(rotate_delta_gpu_h=0.5),
)
POLICIES = {
    "fifo": Params(policy="fifo"),
    "fifo-skip": Params(policy="fifo-skip"),
    "sjf": Params(policy="sjf"),
    "fair-share": FAIR,
}


def copy(core: Core) -> Core:
    return checkpoint.restore(checkpoint.dump(core), core.policy)


class Site:
    """A core with hosts that obey at once, and sessions that end when `lasts` says."""

    def __init__(self, params: Params, *gpus: int, lasts: Mapping[str, int]) -> None:
        self.core = Core(make_policy(params))
        self.lasts = lasts
        self.ends: dict[str, int] = {}
        self.starts: dict[str, int] = {}
        self.deadline: int | None = None
        for number, count in enumerate(gpus):
            self.core.apply(ev.HostJoined(0, f"h{number}", count))

    def cycle(self, now: int) -> None:
        """Releases of this instant, then cycles until nothing more is decided."""
        for sid in [sid for sid, at in self.ends.items() if at <= now]:
            del self.ends[sid]
            self.core.apply(ev.SessionEnded(now, sid))
        again = True
        while again:
            step, again = self.core.cycle(now), False
            for decision in step.decisions:
                sid = decision.session
                if decision.action is Action.START:
                    self.starts[sid] = now
                    self.ends[sid] = now + self.lasts[sid]
                    self.core.apply(ev.SessionStarted(now, sid))
                elif decision.action is Action.EVICT:
                    del self.ends[sid]
                    self.core.apply(ev.SessionEnded(now, sid, "evicted"))
                    again = True
            self.deadline = step.next_deadline_ms

    def run(self, until: int | None = None) -> None:
        """From instant to instant; without `until`, to the end of the last session."""
        while self.ends if until is None else True:
            due = [at for at in (min(self.ends.values(), default=None), self.deadline) if at is not None]
            now = min(due, default=until)
            if now is None or (until is not None and now >= until):
                return
            assert now > self.core.now_ms
            self.cycle(now)

    def forecast(self) -> dict[str, int]:
        """What the forecast says now, from a copy."""
        left = {sid: at - self.core.now_ms for sid, at in self.ends.items()}
        return forecast(copy(self.core), left, lambda sid: self.lasts[sid])


SESSIONS = st.lists(
    st.tuples(
        st.integers(0, 4),  # user
        st.integers(1, 5),  # GPUs
        st.integers(0, 60),  # minutes since the one before
        st.integers(1, 600),  # minutes it runs
    ),
    min_size=2,
    max_size=14,
)


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=50, deadline=None)
@given(sessions=SESSIONS, used=st.lists(st.integers(0, 20), min_size=5, max_size=5))
def test_without_further_arrivals_it_comes_true(
    policy: str, sessions: list[tuple[int, int, int, int]], used: list[int]
) -> None:
    """Every waiting session starts at the very millisecond forecast, and those not forecast never start."""
    lasts = {f"s{number}": minutes * MINUTE_MS for number, (*_, minutes) in enumerate(sessions)}
    site = Site(POLICIES[policy], 3, 3, lasts=lasts)
    for user, gpu_h in enumerate(used):
        site.core.apply(ev.UserSet(0, f"u{user}"))
        site.core.apply(ev.UsageSet(0, f"u{user}", float(gpu_h)))
    now = 0
    for number, (user, gpus, gap, minutes) in enumerate(sessions):
        now += gap * MINUTE_MS
        site.run(now)
        site.core.apply(ev.SessionSubmitted(now, f"s{number}", f"u{user}", gpus=gpus, expected_ms=minutes * MINUTE_MS))
        site.cycle(now)
    waiting = {sid for sid, session in site.core.sessions.items() if session.state is State.QUEUED}
    said = site.forecast()
    site.starts.clear()
    site.run()
    assert said == {sid: at for sid, at in site.starts.items() if sid in waiting}


@pytest.mark.parametrize("policy", POLICIES)
def test_the_original_core_does_not_notice(policy: str) -> None:
    """State, revision and what it decides next are the same as without the forecast."""
    site = Site(POLICIES[policy], 2, lasts=dict.fromkeys(("a", "b", "c", "d"), HOUR_MS))
    for number, sid in enumerate("abcd"):
        site.core.apply(ev.SessionSubmitted(number, sid, f"u{number}"))
    site.cycle(3)
    before, twin = checkpoint.dump(site.core), copy(site.core)
    said = site.forecast()
    assert said == site.forecast()
    assert set(said) == {sid for sid, session in site.core.sessions.items() if session.state is State.QUEUED}
    assert checkpoint.dump(site.core) == before
    for core in (site.core, twin):
        core.apply(ev.SessionEnded(10, "a"))
    assert site.core.cycle(10) == twin.cycle(10)


def test_it_knows_when_somebody_will_give_way() -> None:
    """A user far out of credit is going to be warned, asked to save and evicted: the waiter need not wait ten hours."""
    params = dataclasses.replace(FAIR, headroom=HeadroomParams(), ladder=LadderParams())
    site = Site(params, 1, lasts={"long": 10 * HOUR_MS, "w": HOUR_MS})
    site.core.apply(ev.UserSet(0, "ann"))
    site.core.apply(ev.UsageSet(0, "ann", 10.0))
    site.core.apply(ev.SessionSubmitted(0, "long", "ann"))
    site.cycle(0)
    site.core.apply(ev.SessionSubmitted(HOUR_MS, "w", "bob"))
    said = forecast(copy(site.core), {"long": 9 * HOUR_MS}, lambda sid: site.lasts[sid])
    site.cycle(HOUR_MS)
    again = site.forecast()
    site.run()
    assert site.starts["w"] == HOUR_MS + 10 * MINUTE_MS  # five minutes of warning, five of grace
    assert said == again == {"w": site.starts["w"]}


def test_hosts_are_assumed_to_go_on_reporting() -> None:
    """Nobody reports in a forecast; hosts that are alive now are not taken for lost because of it."""
    site = Site(FAIR, lasts={})
    site.core.apply(ev.HostJoined(0, "beat", 1, heartbeat=True))
    site.core.apply(ev.SessionSubmitted(0, "a", "ann"))
    site.core.cycle(0)
    site.core.apply(ev.SessionStarted(0, "a"))
    site.core.apply(ev.SessionSubmitted(0, "b", "bob"))
    site.core.cycle(0)
    said = forecast(copy(site.core), {"a": 20 * MINUTE_MS}, lambda sid: HOUR_MS)
    assert said == {"b": 20 * MINUTE_MS}


@pytest.mark.parametrize("policy", POLICIES)
def test_held_and_impossible_sessions_are_left_out(policy: str) -> None:
    """What is held, or wider than the cluster, has no start to forecast, and is in nobody's way."""
    params = dataclasses.replace(POLICIES[policy], headroom=HeadroomParams())
    site = Site(params, 1, lasts=dict.fromkeys(("a", "b", "c", "wide"), HOUR_MS))
    for number, sid in enumerate("abc"):
        site.core.apply(ev.SessionSubmitted(0, sid, f"u{number}"))
    site.core.apply(ev.SessionHeld(0, "b"))
    site.cycle(0)
    site.core.apply(ev.SessionSubmitted(0, "wide", "u9", gpus=2))
    running = next(iter(site.core.view.holders))
    (free,) = {"a", "c"} - {running}
    assert forecast(copy(site.core), {running: 5}, lambda sid: HOUR_MS) == {free: 5}


def test_an_overdue_session_is_assumed_to_end_next() -> None:
    """No time left, or less than none, counts as one millisecond."""
    site = Site(POLICIES["fifo"], 1, lasts=dict.fromkeys(("a", "b"), HOUR_MS))
    site.core.apply(ev.SessionSubmitted(0, "a", "ann"))
    site.core.apply(ev.SessionSubmitted(0, "b", "bob"))
    site.cycle(50)
    for left in (0, -10_000):
        assert forecast(copy(site.core), {"a": left}, lambda sid: HOUR_MS) == {"b": 51}
