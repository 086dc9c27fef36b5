"""Instants at which a cycle is due although nothing happens: a small heap without duplicates."""

from __future__ import annotations

from heapq import heappop, heappush

from policies.usage import NEVER_MS


class Wakes:
    """Instants in milliseconds; a call too many does no harm, one too few would."""

    __slots__ = ("_heap", "_known")

    def __init__(self) -> None:
        self._heap: list[int] = []
        self._known: set[int] = set()

    def add(self, instants: set[int]) -> None:
        """Take over the instants of a set and empty it."""
        known = self._known
        if not known.issuperset(instants):  # a policy asks for the same few in every cycle
            for at_ms in instants - known:
                known.add(at_ms)
                heappush(self._heap, at_ms)
        instants.clear()

    def passed(self, now_ms: int) -> None:
        """Forget everything up to now."""
        heap = self._heap
        while heap and heap[0] <= now_ms:
            self._known.discard(heappop(heap))

    def next_ms(self) -> int:
        """The earliest; `NEVER_MS` when there is none."""
        return self._heap[0] if self._heap else NEVER_MS

    def pending(self) -> list[int]:
        """All of them, earliest first."""
        return sorted(self._heap)
