"""The load of a window is what one gets by looking at every second of it, and unknown is neither idle nor heavy."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.load import LoadWindow

SECOND_MS = 1000
LOADS = st.none() | st.sampled_from([0.0, 0.25, 0.8, 1.0]) | st.floats(0.0, 1.0)
STEPS = st.lists(st.tuples(st.integers(0, 40), LOADS), max_size=12)


def second_by_second(reports: list[tuple[int, float | None]], now_s: int, window_s: int) -> tuple[float, float]:
    """(mean of the known seconds, known part of the window) of the last `window_s` seconds before `now_s`."""
    known: list[float] = []
    for second in range(now_s - window_s, now_s):
        load = None
        for since, reported in reports:
            if since <= second:
                load = reported
        if load is not None:
            known.append(load)
    return (sum(known) / len(known) if known else 0.0), len(known) / window_s


def window_of(reports: list[tuple[int, float | None]], start_s: int, window_s: int) -> LoadWindow:
    window = LoadWindow(window_s * SECOND_MS, start_s * SECOND_MS)
    for since, load in reports:
        window.record(since * SECOND_MS, load)
    return window


@settings(max_examples=300, deadline=None)
@given(steps=STEPS, start=st.integers(0, 50), window_s=st.integers(1, 60), later=st.integers(0, 130))
def test_the_mean_is_that_of_every_second(
    steps: list[tuple[int, float | None]], start: int, window_s: int, later: int
) -> None:
    """Any reports, some at one instant, some forgotten since: mean and known part as counted second by second."""
    reports: list[tuple[int, float | None]] = [(start, None)]
    now = start
    window = LoadWindow(window_s * SECOND_MS, start * SECOND_MS)
    for gap, load in steps:
        now += gap
        reports.append((now, load))
        window.record(now * SECOND_MS, load)
        assert window.mean(now * SECOND_MS) == pytest.approx(second_by_second(reports, now, window_s), abs=1e-9)
    now += later
    assert window.mean(now * SECOND_MS) == pytest.approx(second_by_second(reports, now, window_s), abs=1e-9)


@settings(max_examples=150, deadline=None)
@given(steps=STEPS, window_s=st.integers(1, 30))
def test_only_what_a_window_can_see_is_kept(steps: list[tuple[int, float | None]], window_s: int) -> None:
    """Knots rise strictly, and at most one of them is as old as the window."""
    window, now = LoadWindow(window_s * SECOND_MS, 0), 0
    for gap, load in steps:
        now += gap * SECOND_MS
        window.record(now, load)
        times = [since for since, _ in window.knots]
        assert times == sorted(set(times))
        assert sum(since <= now - window_s * SECOND_MS for since in times) <= 1
        assert window.knots[-1] == (now, load)


@pytest.mark.parametrize(
    ("load", "known_s", "heavy"),
    [
        (0.8, 1800, True),
        (0.799, 1800, False),
        (1.0, 1620, True),
        (1.0, 1619, False),
        (0.8, 1620, True),
        (0.0, 1800, False),
    ],
)
def test_heavy_is_four_fifths_over_the_window_with_nine_tenths_of_it_known(
    load: float, known_s: int, heavy: bool
) -> None:
    """The thresholds themselves count as reached; a thousandth of load or a second of knowledge less does not."""
    window = LoadWindow(1_800_000, 0)
    window.record((1800 - known_s) * SECOND_MS, load)
    assert window.is_heavy(1_800_000, 0.8, 0.9) is heavy


def test_a_session_that_says_nothing_is_never_heavy() -> None:
    """Unknown all along: nothing known, mean 0, not heavy, and no instant at which that would change by itself."""
    window = LoadWindow(1_800_000, 5000)
    for at_ms in (5000, 1_805_000, 10_000_000):
        assert window.mean(at_ms) == (0.0, 0.0)
        assert not window.is_heavy(at_ms, 0.8, 0.9)


def test_silence_is_forgotten_as_load_is() -> None:
    """Busy, then unknown for more than a tenth of the window: heavy no longer; known again: heavy once it suffices."""
    window = LoadWindow(1_800_000, 0)
    window.record(0, 1.0)
    assert window.is_heavy(1_800_000, 0.8, 0.9)
    window.record(1_800_000, None)
    assert window.is_heavy(1_800_000 + 180_000, 0.8, 0.9)
    assert not window.is_heavy(1_800_000 + 180_001, 0.8, 0.9)
    window.record(2_000_000, 1.0)
    assert not window.is_heavy(3_600_000, 0.8, 0.9)
    assert window.is_heavy(2_000_000 + 1_620_000, 0.8, 0.9)


def test_a_report_at_the_instant_of_another_replaces_it() -> None:
    """The last word counts: nothing of the one before remains."""
    window = LoadWindow(10_000, 0)
    window.record(0, 1.0)
    window.record(0, 0.5)
    assert window.mean(10_000) == (0.5, 1.0)
