"""The service's clock: the wall clock where it goes forward, a steady one where that is set back."""

from __future__ import annotations

import time
from collections.abc import Callable

STEP_NS = 1_000_000_000
"""A wall clock this far ahead was set, or the machine slept: it is followed. Less is drift, which is not."""


class SystemClock:
    """Milliseconds since 1970, never decreasing.

    Hosts judge by their wall clocks whether a command has expired, so a wall clock that jumps ahead (a suspended
    machine, a clock that was wrong) has to be followed.

    Args:
        wall_ns, steady_ns: what it reads, nanoseconds since 1970 and since whenever.
    """

    def __init__(
        self, wall_ns: Callable[[], int] = time.time_ns, steady_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._wall_ns = wall_ns
        self._steady_ns = steady_ns
        self._ahead_ns = wall_ns() - steady_ns()

    def now_ms(self) -> int:
        """Now."""
        steady, wall = self._steady_ns(), self._wall_ns()
        if wall - steady > self._ahead_ns + STEP_NS:
            self._ahead_ns = wall - steady
        return (steady + self._ahead_ns) // 1_000_000

    def sleep_ms(self, duration_ms: int) -> None:
        """Wait."""
        time.sleep(duration_ms / 1000)
