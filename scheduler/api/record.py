"""What has happened so far, counted: read once from the record, then only what was added."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scheduler.ports import Reader, Row

BOUNDS_S = (1, 5, 15, 60, 300, 900, 1800, 3600, 7200, 14_400, 28_800, 86_400)
"""Upper bounds of the waits' histogram."""
OVERLAP_MS = 60_000
"""Rows are read again from so long before the last look: a commit carries the instant at which its cycle began."""


class Waits:
    """How long sessions waited before they started, as a histogram."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS_S) + 1)
        self.sum_s = 0.0

    def add(self, wait_s: float) -> None:
        """One more."""
        self._counts[bisect_left(BOUNDS_S, wait_s)] += 1
        self.sum_s += wait_s

    def buckets(self) -> list[tuple[str, float]]:
        """(upper bound, number up to it), the last one `+Inf`."""
        total, pairs = 0, []
        for bound, number in zip((*map(str, map(float, BOUNDS_S)), "+Inf"), self._counts, strict=True):
            total += number
            pairs.append((bound, float(total)))
        return pairs


class Record:
    """Counts that only rise.

    Attributes:
        actions: decisions by (action, rule).
        outcomes: ended sessions by outcome.
        waits: from submit to start.
    """

    def __init__(self) -> None:
        self.actions: Counter[tuple[str, str]] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.waits = Waits()
        self._seen_ms = 0
        self._decision = 0
        self._started: set[str] = set()
        self._ended: set[str] = set()

    def catch_up(self, reader: Reader, now_ms: int) -> None:
        """Count what was added since the last look."""
        since_ms = max(0, self._seen_ms - OVERLAP_MS)
        for row in reader.decisions(since_ms=since_ms):
            if row["seq"] > self._decision:
                self._decision = row["seq"]
                self.actions[row["action"], row["rule"]] += 1
        self._count_sessions(reader.sessions(since_ms=since_ms))
        self._seen_ms = now_ms

    def _count_sessions(self, found: list[Row]) -> None:
        """Starts and ends among rows; only sessions that are read again need to be remembered."""
        started = {row["session"] for row in found if row["started_ms"] is not None}
        ended = {row["session"] for row in found if row["ended_ms"] is not None}
        for row in found:
            if row["session"] in started and row["session"] not in self._started:
                self.waits.add((row["started_ms"] - row["submitted_ms"]) / 1000)
            if row["session"] in ended and row["session"] not in self._ended:
                self.outcomes[row["outcome"] or "unknown"] += 1
        self._started, self._ended = started, ended
