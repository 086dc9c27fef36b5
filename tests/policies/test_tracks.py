"""When a lifetime ends, what is planned ahead for a session, and which parameters turn the tracks on."""

from __future__ import annotations

import pytest

from policies.catalogue import make_policy
from policies.model import Session
from policies.params import IdleParams, Params, TierParams
from policies.tracks import SPARE_LOOKS, Tracks
from scheduler import events as ev
from scheduler.core import Core

HOUR_MS = 3_600_000


def params_of(lifetime: int | None, longest: int | None = None, idle: IdleParams | None = None) -> Params:
    tier = TierParams(baseline_gpus=5.0, lifetime_ms=lifetime, longest_ms=longest)
    return Params(tiers={"free": tier}, idle=idle or IdleParams())


def running(params: Params, start_ms: int = 0) -> tuple[Core, Session]:
    core = Core(make_policy(params), start_ms)
    core.apply(ev.HostJoined(start_ms, "h", 1))
    core.apply(ev.SessionSubmitted(start_ms, "s", "u"))
    core.cycle(start_ms)
    return core, core.sessions["s"]


@pytest.mark.parametrize(
    ("lifetime", "longest", "extended", "ends"),
    [
        (None, None, [], None),
        (None, 9, [1], None),
        (2, None, [], 2),
        (2, None, [1], 2),
        (2, 5, [], 2),
        (2, 5, [0], 2),
        (2, 5, [1], 3),
        (2, 5, [1, 2], 4),
        (2, 5, [1, 2, 3], 5),
        (2, 5, [1, 3, 4], 5),
        (2, 2, [1], 2),
    ],
)
@pytest.mark.parametrize("start", [0, 100])
def test_when_a_lifetime_ends(
    lifetime: int | None, longest: int | None, extended: list[int], ends: int | None, start: int
) -> None:
    """The lifetime after the start or the last extension, at most `longest` after the start; hours."""
    lifetime_ms, longest_ms = (None if value is None else value * HOUR_MS for value in (lifetime, longest))
    core, session = running(params_of(lifetime_ms, longest_ms), start * HOUR_MS)
    for hour in extended:
        core.apply(ev.SessionExtended((start + hour) * HOUR_MS, "s"))
    expected = None if ends is None else (start + ends) * HOUR_MS
    assert Tracks(core.params).ends_ms(session) == expected


@pytest.mark.parametrize(
    ("params", "on"),
    [
        (params_of(None), False),
        (params_of(None, 9), False),
        (params_of(1), True),
        (params_of(None, None, IdleParams(warn_ms=1)), True),
        (params_of(None, None, IdleParams(release_ms=1)), True),
        (params_of(None, None, IdleParams(when="always")), False),
    ],
)
def test_the_tracks_are_on_when_there_is_something_to_follow(params: Params, on: bool) -> None:
    """Without a lifetime or an idle time nothing is planned at all."""
    core, _ = running(params)
    assert core.policy.tracked is on
    core.apply(ev.LoadReported(1, "s", 0.0))
    assert bool(core.view.looks) is on


def test_sessions_that_ended_are_dropped_from_what_is_planned() -> None:
    """A week ahead is planned for each of thousands of short sessions; those that ended do not stay for a week."""
    core = Core(make_policy(params_of(168 * HOUR_MS)))
    core.apply(ev.HostJoined(0, "h", 1))
    for number in range(3 * SPARE_LOOKS):
        at_ms, sid = number * 60_000, f"s{number}"
        core.apply(ev.SessionSubmitted(at_ms, sid, "u"))
        core.cycle(at_ms)
        core.cycle(at_ms + 1)
        core.apply(ev.SessionEnded(at_ms + 1, sid))
        assert len(core.view.looks) <= SPARE_LOOKS + 8
