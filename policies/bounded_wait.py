"""The bounded-wait band: whoever has waited very long gets its turn, whatever its standing.

The oldest session of each user that has waited for `max_wait` or longer is in the band, unless its user runs a session
that came by the band already. Users who share their credit (`policies.group_credit`) have one turn together: more
accounts do not make more turns. Of any four consecutive starts at most one is the band's, and never one that would take
from the headroom.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

from sortedcontainers import SortedList

from policies.group_credit import GroupCredit
from policies.usage import NEVER_MS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from policies.group_credit import GroupCredits
    from policies.lanes import Cell, Lane
    from policies.model import User

EVERY = 4
"""One of so many consecutive starts may be the band's."""

SPARE_ENTRIES = 1024
"""Entries that may lie about beside four for each session that waits."""

Aged = tuple[int, str, "Cell"]
"""(submit time, id) of a cell's first session, and the cell."""


class Band:
    """Cells whose first session has waited for `max_wait_ms`, oldest first.

    Attributes:
        cells: all of them, those included whose user has to wait for something else.
    """

    __slots__ = ("_max_wait_ms", "_shared", "_young", "cells")

    def __init__(self, max_wait_ms: int, shared: GroupCredits) -> None:
        self._max_wait_ms = max_wait_ms
        self._shared = shared
        self._young: list[tuple[int, str, int, Cell]] = []
        self.cells: SortedList[Aged] = SortedList()

    def add(self, cell: Cell, tie: int, waiting: int, now_ms: int) -> None:
        """A cell was filed, or another session is its first: take it in, or remember when it will be due."""
        head = cell.head()
        if head.submit_ms + self._max_wait_ms <= now_ms:
            self._take_in(cell, head.submit_ms, head.id)
            return
        heappush(self._young, (head.submit_ms, head.id, tie, cell))
        if len(self._young) > 4 * waiting + SPARE_ENTRIES:
            kept = {id(entry[3]): entry for entry in self._young if _holds(entry[3], entry[0], entry[1])}
            self._young = list(kept.values())
            heapify(self._young)

    def remove(self, cell: Cell) -> None:
        """A cell is taken out of its bench."""
        if cell.aged is not None:
            self.cells.remove((*cell.aged, cell))
            cell.aged = None

    def advance(self, now_ms: int) -> None:
        """Take in those that have waited long enough by now."""
        young = self._young
        while young and young[0][0] + self._max_wait_ms <= now_ms:
            submit_ms, sid, _, cell = heappop(young)
            if _holds(cell, submit_ms, sid):
                self._take_in(cell, submit_ms, sid)

    def _take_in(self, cell: Cell, submit_ms: int, sid: str) -> None:
        if cell.aged != (submit_ms, sid):
            self.remove(cell)
            cell.aged = submit_ms, sid
            self.cells.add((submit_ms, sid, cell))

    def next_ms(self) -> int:
        """When the next one will have waited long enough."""
        young = self._young
        while young and not _holds(young[0][3], young[0][0], young[0][1]):
            heappop(young)
        return young[0][0] + self._max_wait_ms if young else NEVER_MS

    def first(self, lanes: Collection[Lane]) -> Cell | None:
        """The oldest of the band that waits in one of these lanes; None = nobody."""
        return next((cell for cell in self.oldest() if cell.bench is not None and cell.bench.lane in lanes), None)

    def oldest(self) -> Iterator[Cell]:
        """The cell of the oldest session of each user in the band, oldest first."""
        seen: set[User] = set()
        for _, _, cell in self.cells:
            if cell.user not in seen:
                seen.add(cell.user)
                if not self.has_turn(cell.user):
                    yield cell

    def who(self, user: User) -> User | GroupCredit:
        """Whose turn it is when it is the user's."""
        return (None if self._shared.none else self._shared.of(user)) or user

    def has_turn(self, user: User) -> bool:
        """The user, or one of those with whom it shares credit, runs or has reserved something by the band."""
        who = self.who(user)
        return any(map(has_turn, who.members if isinstance(who, GroupCredit) else (who,)))


def has_turn(user: User) -> bool:
    """A session of the user came by the band, or has a reservation by it."""
    return any(session.by_band for session in (*user.held.values(), *user.nominated.values()))


def _holds(cell: Cell, submit_ms: int, sid: str) -> bool:
    """The entry is of the cell's first session, and it is filed."""
    if cell.bench is None:
        return False
    head = cell.head()
    return head.submit_ms == submit_ms and head.id == sid
