"""Which checkpoints and journal lines are still needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

NEWEST = 3
"""Checkpoints kept whatever their age: if one is damaged there are others."""
DAY_MS = 24 * 3600 * 1000
WORTH = 5_000
"""Journal lines that a reader rather applies than to begin anew from a checkpoint."""


class Point(NamedTuple):
    """A checkpoint without its content."""

    seq: int
    at_ms: int


def superfluous(points: Sequence[Point]) -> list[int]:
    """Numbers of checkpoints, given oldest first, to drop: of the old ones the first of each day stays.

    A journal can be cut only where a checkpoint is. One a day lets it be cut to the day without keeping every one.
    """
    older = points[:-NEWEST]
    kept_days: set[int] = set()
    dropped = []
    for point in older:
        day = point.at_ms // DAY_MS
        if day in kept_days:
            dropped.append(point.seq)
        kept_days.add(day)
    return dropped


def first_needed(points: Sequence[Point], before_ms: int) -> int | None:
    """Number of the newest checkpoint, given oldest first, from which everything since `before_ms` follows.

    What is older may go. None when nothing may.
    """
    return max((point.seq for point in points if point.at_ms <= before_ms), default=None)


def beginning(points: Sequence[Point], first_line: int | None) -> int | None:
    """Number of the oldest checkpoint that every later line of the journal follows; None without a checkpoint.

    Args:
        points: oldest first.
        first_line: number of the first line that is kept, None = no line is.
    """
    if not points:
        return None
    if first_line is None:
        return points[-1].seq
    return next((point.seq for point in points if point.seq >= first_line - 1), points[-1].seq)
