"""How long saving takes: what acknowledged save hooks needed, of which the lead time of the headroom counts the p90."""

from __future__ import annotations

import math
from collections import deque

KEPT = 100
"""The last so many acknowledged saves count."""
FEWEST = 10
"""With fewer than these the whole grace counts."""


class SaveTimes:
    """The last saves, from the begin of a grace to its acknowledgement.

    Args:
        known_ms: those on record, oldest first.
    """

    __slots__ = ("_known_ms",)

    def __init__(self, known_ms: list[int] | None = None) -> None:
        self._known_ms: deque[int] = deque(known_ms or (), maxlen=KEPT)

    def took(self, duration_ms: int) -> None:
        """A save was acknowledged after so long."""
        self._known_ms.append(duration_ms)

    def expected_ms(self, grace_ms: int) -> int:
        """The time within which nine of ten saves are done (nearest rank); at most the grace, which ends without."""
        known = sorted(self._known_ms)
        if len(known) < FEWEST:
            return grace_ms
        return min(grace_ms, known[math.ceil(0.9 * len(known)) - 1])

    def dump(self) -> list[int]:
        """For checkpoints."""
        return list(self._known_ms)
