"""Quotas: what was held within a window, and when that passes the limit, against counting by the millisecond."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import quota
from policies.model import HOUR_MS, WHOLE_M
from policies.quota import DAY_MS, MONDAY_MS, WEEK_MS, Holdings, Window, gpu_h_of, limit_of, window

Change = tuple[int, int]
"""(milliseconds since the change before, thousandths of a GPU held from then on)."""

CHANGES = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4)), max_size=12)
WINDOWS = st.builds(Window, st.integers(1, 20), st.booleans())
BEGIN_MS = MONDAY_MS - 30
"""Fixed windows are counted from a Monday: histories lie on both sides of it."""


def naive_start_ms(counted: Window, now_ms: int) -> int:
    """First instant that counts, found by walking back from now."""
    if not counted.fixed:
        return now_ms - counted.length_ms
    return next(at for at in range(now_ms, now_ms - counted.length_ms, -1) if (at - MONDAY_MS) % counted.length_ms == 0)


class Tape:
    """What was held in each millisecond, written out; what is held last goes on for ever."""

    def __init__(self) -> None:
        self.now = BEGIN_MS
        self.held: dict[int, int] = {}
        self.last = 0

    def hold(self, gap_ms: int, held_m: int) -> None:
        for at_ms in range(self.now, self.now + gap_ms):
            self.held[at_ms] = self.last
        self.now += gap_ms
        self.last = held_m

    def at(self, at_ms: int) -> int:
        return self.last if at_ms >= self.now else self.held.get(at_ms, 0)

    def used(self, counted: Window, now_ms: int) -> int:
        return sum(self.at(at_ms) for at_ms in range(naive_start_ms(counted, now_ms), now_ms))

    def turns_ms(self, limit: int, counted: Window, now_ms: int) -> int | None:
        """First later instant at which `used >= limit` is another; a window's length later nothing changes any more."""
        over = self.used(counted, now_ms) >= limit
        last = now_ms + counted.length_ms
        if counted.fixed:
            last = naive_start_ms(counted, now_ms) + counted.length_ms
        return next((at for at in range(now_ms + 1, last + 1) if (self.used(counted, at) >= limit) is not over), None)


def played(changes: list[Change]) -> tuple[Tape, Holdings]:
    tape, holdings = Tape(), Holdings()
    for gap_ms, held_m in changes:
        tape.hold(gap_ms, held_m)
        holdings.hold(tape.now, held_m)
    return tape, holdings


def check_used(changes: list[Change], later_ms: int, counted: Window) -> None:
    """At every instant of the time that follows."""
    tape, holdings = played(changes)
    for now_ms in range(tape.now, tape.now + later_ms + 1):
        assert counted.start_ms(now_ms) == naive_start_ms(counted, now_ms)
        assert holdings.used(counted.start_ms(now_ms), now_ms) == tape.used(counted, now_ms)


def check_turns(changes: list[Change], later_ms: int, counted: Window, limit: int) -> None:
    """The predicted instant is the first at which the answer is another; never too late, and not in the past.

    With a fixed reset the reset itself may be named although nothing turns there: the count begins anew.
    """
    tape, holdings = played(changes)
    now_ms = tape.now + later_ms
    found, expected = holdings.turns_ms(limit, counted, now_ms), tape.turns_ms(limit, counted, now_ms)
    if counted.fixed and expected is None:
        assert found in (None, naive_start_ms(counted, now_ms) + counted.length_ms)
        assert found is not None or not tape.last
    else:
        assert found == expected


def check_forget(changes: list[Change], later_ms: int, counted: Window, limit: int) -> None:
    """Forgetting what lies before the window changes no answer, then or at any later instant."""
    tape, whole = played(changes)
    now_ms = tape.now + later_ms
    for before_ms in (now_ms - counted.length_ms, counted.start_ms(now_ms)):
        less = Holdings(list(whole.knots))
        less.forget(before_ms)
        assert less.held_m == whole.held_m
        assert sum(1 for at_ms, _ in less.knots if at_ms <= before_ms) <= 1
        for at_ms in range(now_ms, now_ms + 2 * counted.length_ms):
            start_ms = counted.start_ms(at_ms)
            assert less.used(start_ms, at_ms) == whole.used(start_ms, at_ms)
            assert less.turns_ms(limit, counted, at_ms) == whole.turns_ms(limit, counted, at_ms)


def check_knots(changes: list[Change]) -> None:
    """Times rise, neighbours differ, the first is not nothing: no two histories of the same holdings look different."""
    tape, holdings = played(changes)
    knots = holdings.knots
    assert all(before[0] < after[0] and before[1] != after[1] for before, after in pairwise(knots))
    assert not knots or knots[0][1] != 0
    assert holdings.held_m == tape.last


@given(changes=CHANGES, later_ms=st.integers(0, 30), counted=WINDOWS)
@settings(max_examples=300)
def test_what_was_held_is_the_sum_over_milliseconds(changes: list[Change], later_ms: int, counted: Window) -> None:
    """Rolling and fixed windows, at every instant after the last change."""
    check_used(changes, later_ms, counted)


@given(changes=CHANGES, later_ms=st.integers(0, 30), counted=WINDOWS, limit=st.integers(1, 60))
@settings(max_examples=1000)
def test_the_limit_is_passed_exactly_when_foretold(
    changes: list[Change], later_ms: int, counted: Window, limit: int
) -> None:
    """To the millisecond, up and down, whatever leaves the window meanwhile."""
    check_turns(changes, later_ms, counted, limit)


@given(changes=CHANGES, later_ms=st.integers(0, 30), counted=WINDOWS, limit=st.integers(1, 60))
@settings(max_examples=300)
def test_what_is_forgotten_is_not_missed(changes: list[Change], later_ms: int, counted: Window, limit: int) -> None:
    """Neither amounts nor predictions change, and one knot at most is kept from before the window."""
    check_forget(changes, later_ms, counted, limit)


@given(changes=CHANGES)
def test_knots_are_kept_to_those_that_say_something(changes: list[Change]) -> None:
    """Equal ones and those of one instant are merged."""
    check_knots(changes)


def test_nothing_ever_held() -> None:
    """No use, and nothing ahead."""
    holdings = Holdings()
    for counted in (Window(10, fixed=False), Window(10, fixed=True)):
        assert (holdings.held_m, holdings.used(counted.start_ms(5), 5)) == (0, 0)
        assert holdings.turns_ms(1, counted, 5) is None
    holdings.forget(5)
    assert holdings.knots == []


def test_a_gpu_held_and_given_back_at_once_leaves_no_trace() -> None:
    """Several changes at one instant count as the last; back to what was held before, as none."""
    holdings = Holdings()
    holdings.hold(5, 1000)
    holdings.hold(5, 0)
    assert holdings.knots == []
    holdings.hold(6, 1000)
    holdings.hold(9, 3000)
    holdings.hold(9, 2000)
    holdings.hold(9, 1000)
    assert holdings.knots == [(6, 1000)]


# -- units and windows -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "length_ms", "fixed"),
    [
        ("daily", DAY_MS, True),
        ("weekly", WEEK_MS, True),
        ("7d", WEEK_MS, False),
        ("1d", DAY_MS, False),
        ("24h", DAY_MS, False),
        ("1h", HOUR_MS, False),
        ("36h", 36 * HOUR_MS, False),
    ],
)
def test_windows_as_they_are_written(text: str, length_ms: int, *, fixed: bool) -> None:
    """Two words with a reset, and rolling ones in days or hours."""
    assert window(text) == Window(length_ms, fixed)


@pytest.mark.parametrize("gpu_h", [0.001, 0.1, 0.25, 1.0, 1 / 3, 40.0, 12345.678, 1e6])
def test_a_quota_in_gpu_hours_and_back(gpu_h: float) -> None:
    """To a thousandth of a GPU for a millisecond."""
    assert limit_of(gpu_h) == pytest.approx(gpu_h * HOUR_MS * WHOLE_M, abs=0.5)
    assert gpu_h_of(limit_of(gpu_h)) == pytest.approx(gpu_h, abs=1 / (HOUR_MS * WHOLE_M))


def ms_of(when: datetime) -> int:
    return int((when - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(milliseconds=1))


def check_calendar(now: datetime) -> None:
    """Against the calendar: the day's and the week's first instant, and the quota back with the next one."""
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    monday = midnight - timedelta(days=midnight.weekday())
    assert monday.strftime("%A %H:%M") == "Monday 00:00"
    holdings = Holdings([(ms_of(monday - timedelta(days=9)), 1000)])
    for text, start, days in (("daily", midnight, 1), ("weekly", monday, 7)):
        counted = window(text)
        assert counted.start_ms(ms_of(now)) == ms_of(start)
        held_ms = ms_of(now) - ms_of(start)
        assert holdings.used(counted.start_ms(ms_of(now)), ms_of(now)) == 1000 * held_ms
        if held_ms:
            assert holdings.turns_ms(1000 * held_ms, counted, ms_of(now)) == ms_of(start + timedelta(days=days))


@given(
    st.datetimes(datetime(1971, 1, 1), datetime(2200, 1, 1)).map(  # noqa: DTZ001 - the zone follows
        lambda when: when.replace(microsecond=when.microsecond // 1000 * 1000, tzinfo=UTC)
    )
)
def test_days_and_weeks_begin_as_in_the_calendar(now: datetime) -> None:
    """Days at 00:00 UTC, weeks on Monday 00:00 UTC, for any date."""
    check_calendar(now)


@pytest.mark.parametrize(
    ("now", "start"),
    [
        ("2024-02-29T23:59:59.999", "2024-02-26"),  # a leap day, a Thursday
        ("2024-03-03T23:59:59.999", "2024-02-26"),  # Sunday, the last instant of the week
        ("2024-03-04T00:00:00.000", "2024-03-04"),  # Monday, the first
        ("2027-01-01T12:00:00.000", "2026-12-28"),  # over the new year
        ("1969-12-31T23:00:00.000", "1969-12-29"),  # before the epoch
    ],
)
def test_weeks_of_some_dates(now: str, start: str) -> None:
    """Looked up in a calendar."""
    at_ms, start_ms = (ms_of(datetime.fromisoformat(text).replace(tzinfo=UTC)) for text in (now, start))
    assert window("weekly").start_ms(at_ms) == start_ms


# -- planted faults --------------------------------------------------------------------------------------------------


def play_seeds(number: int) -> None:
    """Every check on so many random histories, the same each time."""
    for seed in range(number):
        draw = random.Random(seed)
        changes = [(draw.randint(0, 9), draw.randint(0, 4)) for _ in range(draw.randint(0, 12))]
        later_ms, limit = draw.randint(0, 30), draw.randint(1, 60)
        counted = Window(draw.randint(1, 20), draw.random() < 0.5)
        check_used(changes, later_ms, counted)
        check_turns(changes, later_ms, counted, limit)
        check_forget(changes, later_ms, counted, limit)
        check_knots(changes)
    check_calendar(datetime(2026, 10, 21, 15, 4, 5, tzinfo=UTC))


def no_merge(self: Holdings, now_ms: int, held_m: int) -> None:
    self.knots.append((now_ms, held_m))


def forgets_one_more(self: Holdings, before_ms: int) -> None:
    while self.knots and self.knots[0][0] < before_ms:
        del self.knots[0]


def uses_of_its_knots_only(self: Holdings, start_ms: int, now_ms: int) -> int:
    """Leaves out what the window's start cuts in two."""
    ends = [*(at_ms for at_ms, _ in self.knots[1:]), now_ms]
    return sum(m * (end - at) for (at, m), end in zip(self.knots, ends, strict=True) if at >= start_ms)


honest_turns = Holdings.turns_ms


def turns_late(self: Holdings, limit: int, counted: Window, now_ms: int) -> int | None:
    found = honest_turns(self, limit, counted, now_ms)
    return None if found is None else found + 1


def turns_as_if_nothing_left(self: Holdings, limit: int, counted: Window, now_ms: int) -> int | None:
    """The straight line of now, whatever leaves the window meanwhile."""
    left = limit - self.used(counted.start_ms(now_ms), now_ms)
    return now_ms + -(-left // self.held_m) if left > 0 and self.held_m else honest_turns(self, limit, counted, now_ms)


FAULTS: dict[str, tuple[object, str, Callable[..., Any] | int]] = {
    "knots are not merged": (Holdings, "hold", no_merge),
    "the knot at the window's start is forgotten": (Holdings, "forget", forgets_one_more),
    "nothing is forgotten": (Holdings, "forget", lambda self, before_ms: None),
    "a window begins with a knot": (Holdings, "used", uses_of_its_knots_only),
    "a millisecond late": (Holdings, "turns_ms", turns_late),
    "nothing leaves the window": (Holdings, "turns_ms", turns_as_if_nothing_left),
    "weeks begin on Thursday": (quota, "MONDAY_MS", 0),
    "weeks begin on Sunday": (quota, "MONDAY_MS", 3 * DAY_MS),
}


def test_without_a_fault_nothing_is_found() -> None:
    """The same histories pass on the code as it is."""
    play_seeds(100)


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_caught(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of these mistakes is found within a few hundred random histories."""
    owner, name, wrong = FAULTS[fault]
    monkeypatch.setattr(owner, name, wrong)
    with pytest.raises(AssertionError):
        play_seeds(300)
