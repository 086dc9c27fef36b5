"""The service's clock: wall time at its start, then monotonic, so that a corrected clock never runs backwards."""

from __future__ import annotations

import time


class SystemClock:
    """Milliseconds since 1970, never decreasing.

    Args:
        floor_ms: the first instant is no earlier (what was recorded before, should the wall clock have been set back).
    """

    def __init__(self, floor_ms: int = 0) -> None:
        self._base_ms = max(floor_ms, time.time_ns() // 1_000_000)
        self._base_ns = time.monotonic_ns()

    def now_ms(self) -> int:
        """Now."""
        return self._base_ms + (time.monotonic_ns() - self._base_ns) // 1_000_000

    def sleep_ms(self, duration_ms: int) -> None:
        """Wait."""
        time.sleep(duration_ms / 1000)
