"""What a session computed, by its host's cumulative counters, against what it was charged for.

Between two reports the core charges the load of the last one (sample and hold). Each report carries the sum since the
session's start, so that the charge can be set right exactly: what was computed and not charged yet is added, what was
charged too much is given back. A report that is lost, late or doubled changes nothing in the end: counters are kept at
their maximum, differences are never summed.

Amounts are integers in `rate x time`: nano GPU-h per hour times milliseconds.
"""

from __future__ import annotations

from policies.model import NANO

PER_GPU_H = NANO * 3_600_000
"""One GPU-hour in the unit of this file."""


class Meter:
    """One session's counters and what was charged for computing.

    Attributes:
        busy_ms, granted_ms: highest counters reported, GPU-milliseconds.
        charged: for computing (without the part for holding), up to `since_ms`.
        rate_n: charge rate for computing since then.
    """

    __slots__ = ("busy_ms", "charged", "granted_ms", "rate_n", "since_ms")

    def __init__(self, now_ms: int) -> None:
        self.busy_ms = 0
        self.granted_ms = 0
        self.charged = 0
        self.since_ms = now_ms
        self.rate_n = 0

    def take(self, busy_ms: int, granted_ms: int) -> float | None:
        """Note a report; the load, 0..1, since the report before, or None when it is older than that one.

        The same counters once more say that nothing was computed since: what was charged ahead is given back.
        """
        granted = granted_ms - self.granted_ms
        if granted < 0:
            return None
        busy = max(0, busy_ms - self.busy_ms)
        self.busy_ms = max(self.busy_ms, busy_ms)
        self.granted_ms = granted_ms
        return min(1.0, busy / granted) if granted else 0.0

    def turn(self, now_ms: int, rate_n: int) -> None:
        """From now on computing is charged at `rate_n`."""
        self.charged += self.rate_n * (now_ms - self.since_ms)
        self.since_ms = now_ms
        self.rate_n = rate_n

    def owed_gpu_h(self, now_ms: int, weight: float) -> float:
        """GPU-h computed and not charged yet (negative: charged too much); counted as charged from now on.

        Args:
            weight: charge for one GPU-hour of computing: GPU weight x (1 - idle_charge).
        """
        self.turn(now_ms, self.rate_n)
        due = round(self.busy_ms * weight * NANO)
        owed, self.charged = due - self.charged, due
        return owed / PER_GPU_H
