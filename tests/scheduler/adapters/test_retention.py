"""Checkpoints are thinned so that the journal can be cut to the day, and never to where it could not be replayed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from scheduler.adapters.retention import DAY_MS, NEWEST, Point, beginning, first_needed, superfluous

HOUR_MS = DAY_MS // 24


@st.composite
def _points(draw: st.DrawFn) -> list[Point]:
    seqs = sorted(draw(st.sets(st.integers(0, 1000), max_size=40)))
    times = sorted(draw(st.lists(st.integers(0, 10 * DAY_MS), min_size=len(seqs), max_size=len(seqs))))
    return [Point(seq, at_ms) for seq, at_ms in zip(seqs, times, strict=True)]


@given(_points())
def test_the_newest_and_one_a_day_stay(points: list[Point]) -> None:
    dropped = set(superfluous(points))
    kept = [point for point in points if point.seq not in dropped]
    assert kept[-NEWEST:] == points[-NEWEST:]
    assert kept[:1] == points[:1], "the journal's beginning"
    assert {point.at_ms // DAY_MS for point in kept} == {point.at_ms // DAY_MS for point in points}
    older = [point.at_ms // DAY_MS for point in kept[:-NEWEST]]
    assert len(older) == len(set(older))
    assert superfluous(kept) == []


@given(_points(), st.integers(0, 11 * DAY_MS))
def test_a_cut_keeps_all_since_then(points: list[Point], before_ms: int) -> None:
    needed = first_needed(points, before_ms)
    if needed is None:
        assert all(point.at_ms > before_ms for point in points)
    else:
        assert all(point.at_ms >= before_ms or point.seq <= needed for point in points)
        assert next(point.at_ms for point in points if point.seq == needed) <= before_ms


@given(_points(), st.none() | st.integers(1, 1001))
def test_a_journal_begins_where_every_later_line_is(points: list[Point], first_line: int | None) -> None:
    found = beginning(points, first_line)
    assert (found is None) == (not points)
    if found is not None and first_line is not None and found != points[-1].seq:
        assert found >= first_line - 1


def test_an_hourly_checkpoint_for_a_week_leaves_nine() -> None:
    points: list[Point] = []
    for hour in range(7 * 24):
        points.append(Point(hour, hour * HOUR_MS))
        dropped = set(superfluous(points))
        points = [point for point in points if point.seq not in dropped]
    assert [point.seq for point in points] == [0, 24, 48, 72, 96, 120, 144, 165, 166, 167]
