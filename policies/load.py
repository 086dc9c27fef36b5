"""Measured GPU load of a session over the last window, and what counts as heavy."""

from __future__ import annotations

from collections import deque


class LoadWindow:
    """Load as a step function over the last `window_ms`: knots (from when, load), oldest first.

    Load is 0..1 of what the session was granted; None = unknown, which is neither idle nor heavy.
    """

    __slots__ = ("knots", "window_ms")

    def __init__(self, window_ms: int, start_ms: int) -> None:
        self.window_ms = window_ms
        self.knots: deque[tuple[int, float | None]] = deque([(start_ms, None)])

    def record(self, at_ms: int, load: float | None) -> None:
        """From `at_ms` on the load is `load`; knots that no window from `at_ms` on can see are dropped."""
        knots = self.knots
        if knots and knots[-1][0] == at_ms:
            knots.pop()
        knots.append((at_ms, load))
        edge = at_ms - self.window_ms
        while len(knots) > 1 and knots[1][0] <= edge:
            knots.popleft()

    def mean(self, now_ms: int) -> tuple[float, float]:
        """(mean load over the known part of the window, known part of the whole window), both 0..1."""
        edge, busy, known = now_ms - self.window_ms, 0.0, 0
        until = now_ms
        for since, load in reversed(self.knots):
            if load is not None:
                span = until - max(since, edge)
                busy += span * load
                known += span
            if since <= edge:
                break
            until = since
        return (busy / known if known else 0.0), known / self.window_ms

    def is_heavy(self, now_ms: int, threshold: float, known_fraction: float) -> bool:
        """Mean load of the window at least `threshold`, with at least `known_fraction` of it known."""
        mean, known = self.mean(now_ms)
        return known >= known_fraction and mean >= threshold
