"""The two clocks of a host: one that people and the scheduler read, one that only runs forward."""

from __future__ import annotations

import time


def wall_ms() -> int:
    """Milliseconds since 1970: for what is told to others and for expiry. It may be set back."""
    return time.time_ns() // 1_000_000


def boot_ns() -> int:
    """Nanoseconds since the host booted, suspension included: for durations, also across restarts of the worker."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
