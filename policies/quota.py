"""Quotas: GPU-hours that a user may hold within a window, rolling or with a fixed reset.

What counts is what was held, busy or not: a quota is a promise in plain hours. A user who has used it up starts nothing
new; what runs goes on (a soft landing). Amounts are exact: thousandths of a GPU times milliseconds.
"""

from __future__ import annotations

from typing import NamedTuple

from policies.model import HOUR_MS, WHOLE_M

DAY_MS, WEEK_MS = 24 * HOUR_MS, 168 * HOUR_MS
MONDAY_MS = 4 * DAY_MS
"""A Monday, 00:00 UTC: the epoch began on a Thursday."""


class Window(NamedTuple):
    """What a quota counts.

    Attributes:
        length_ms: > 0.
        fixed: from the last 00:00 UTC (of a Monday, for weeks) on; otherwise the last `length_ms` at any time.
    """

    length_ms: int
    fixed: bool

    def start_ms(self, now_ms: int) -> int:
        """The first instant that counts now."""
        if not self.fixed:
            return now_ms - self.length_ms
        return now_ms - (now_ms - MONDAY_MS) % self.length_ms


def window(text: str) -> Window:
    """`daily`, `weekly`, or a rolling window such as `7d` or `24h`, as `policies.param_keys` allows them."""
    if text in ("daily", "weekly"):
        return Window(DAY_MS if text == "daily" else WEEK_MS, fixed=True)
    return Window(int(text[:-1]) * (DAY_MS if text[-1] == "d" else HOUR_MS), fixed=False)


def limit_of(quota_gpu_h: float) -> int:
    """A quota in thousandths of a GPU times milliseconds."""
    return round(quota_gpu_h * HOUR_MS * WHOLE_M)


def gpu_h_of(amount: int) -> float:
    """Thousandths of a GPU times milliseconds in GPU-hours."""
    return amount / (HOUR_MS * WHOLE_M)


class Holdings:
    """What one user held over time, as a step function.

    Attributes:
        knots: (from ms, thousandths of a GPU held from then on), times rising.
    """

    __slots__ = ("knots",)

    def __init__(self, knots: list[tuple[int, int]] | None = None) -> None:
        self.knots = knots if knots is not None else []

    @property
    def held_m(self) -> int:
        """Thousandths of a GPU held now."""
        return self.knots[-1][1] if self.knots else 0

    def hold(self, now_ms: int, held_m: int) -> None:
        """From now on so much is held."""
        knots = self.knots
        if held_m == self.held_m:
            return
        if knots and knots[-1][0] == now_ms:
            knots.pop()
            if held_m == self.held_m:
                return
        knots.append((now_ms, held_m))

    def forget(self, before_ms: int) -> None:
        """Drop what no window that starts at `before_ms` or later can see."""
        knots = self.knots
        seen = 0
        while seen + 1 < len(knots) and knots[seen + 1][0] <= before_ms:
            seen += 1
        if seen:
            del knots[:seen]

    def used(self, start_ms: int, now_ms: int) -> int:
        """Held from `start_ms` to `now_ms`, thousandths of a GPU times milliseconds."""
        total, until = 0, now_ms
        for from_ms, held_m in reversed(self.knots):
            total += held_m * (until - max(from_ms, start_ms))
            until = from_ms
            if from_ms <= start_ms:
                break
        return total

    def turns_ms(self, limit: int, counted: Window, now_ms: int) -> int | None:
        """When `used >= limit` turns round, with a fixed reset by then, if what is held stays; None = never.

        Between the instants at which the window's start or end passes a knot, usage is a straight line.
        """
        used = self.used(counted.start_ms(now_ms), now_ms)
        if counted.fixed:
            reset = counted.start_ms(now_ms) + counted.length_ms
            if used >= limit or not self.held_m:
                return reset if used else None
            return min(reset, now_ms + -(-(limit - used) // self.held_m))
        over, at = used >= limit, now_ms
        for next_ms, leaving_m in self._leaving(counted, now_ms):
            slope = self.held_m - leaving_m
            if slope and over is (slope < 0):
                left = (used - limit) // -slope + 1 if over else -(-(limit - used) // slope)
                if next_ms is None or at + left <= next_ms:
                    return at + left
            if next_ms is not None:
                used += slope * (next_ms - at)
                at = next_ms
        return None

    def _leaving(self, counted: Window, now_ms: int) -> list[tuple[int | None, int]]:
        """(until when, thousandths held at the window's start until then), from now on; the last one has no end."""
        start, knots = counted.start_ms(now_ms), self.knots
        found: list[tuple[int | None, int]] = []
        held_m = 0
        for from_ms, next_m in knots:
            if from_ms > start:
                found.append((from_ms + counted.length_ms, held_m))
            held_m = next_m
        return [*found, (None, held_m)]
