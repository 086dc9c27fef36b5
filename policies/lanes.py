"""How the queue files its waiting sessions: cells, benches and lanes, and a cell's place in the order.

Containers only: `policies.order.FairQueue` fills them and keeps them right.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, NamedTuple

from policies.model import Node, Session, Shape, State, User
from policies.rights import Held

if TYPE_CHECKING:
    from collections.abc import Callable

    from sortedcontainers import SortedList

    from policies.group_credit import GroupCredit
    from policies.limits import Block

LaneKey = tuple[Shape, bool, Held]
"""Shape, in credit, and the rights (`policies.rights`) of those who wait."""

Key = tuple[float, int, str]
"""(scaled usage, submit time, session id) of a cell's head: the order among idle users of equal shares."""


Age = tuple[int, str, int, "Cell"]
"""(submit time, session id, tie) of a cell's first session, and the cell."""

SPARE_AGES = 256
"""Entries that may be kept beside four for each cell."""


class Ages:
    """Cells by the age of their first session; entries that no longer hold are dropped when they surface."""

    __slots__ = ("_heap",)

    def __init__(self) -> None:
        self._heap: list[Age] = []

    def remember(self, cell: Cell, tie: int, cells: int) -> None:
        """A cell was filed, or another session is its first; `cells` are filed here in all."""
        head = cell.head()
        heappush(self._heap, (head.submit_ms, head.id, tie, cell))
        if len(self._heap) > 4 * cells + SPARE_AGES:
            kept = {id(age[-1]): age for age in self._heap if age[-1].bench is not None and _is_first(age)}
            self._heap = list(kept.values())
            heapify(self._heap)

    def oldest(self, here: Callable[[Cell], bool]) -> Age | None:
        """The oldest of those that are still filed here; None = nobody is."""
        heap = self._heap
        while heap and not (here(heap[0][-1]) and _is_first(heap[0])):
            heappop(heap)
        return heap[0] if heap else None


def _is_first(age: Age) -> bool:
    submit_ms, sid, _, cell = age
    head = cell.head()
    return head.submit_ms == submit_ms and head.id == sid


class Cell:
    """One user's waiting sessions of one shape, earliest first; sessions that left are dropped when they surface.

    A cell that a limit blocks is on no bench.
    """

    __slots__ = (
        "aged",
        "amount_m",
        "asked_m",
        "bench",
        "block",
        "committed_n",
        "count",
        "heap",
        "idle_key",
        "idle_shares",
        "own_credit",
        "shape",
        "user",
    )

    def __init__(self, user: User, shape: Shape, committed_n: int) -> None:
        self.user = user
        self.shape = shape
        self.amount_m = shape.amount_m
        self.committed_n = committed_n
        self.heap: list[tuple[int, str, int, Session]] = []
        self.count = 0
        self.own_credit = False
        self.asked_m = 0
        self.bench: Bench | None = None
        self.block: Block | None = None
        self.idle_key: Key | None = None
        self.idle_shares = 1.0
        self.aged: tuple[int, str] | None = None

    @property
    def in_credit(self) -> bool:
        """By its user's account, and by its group's."""
        return self.bench is not None and self.bench.lane.in_credit

    def head(self) -> Session:
        """The session that goes first; the cell must not be empty."""
        heap = self.heap
        while True:
            session = heap[0][3]
            if session.state is State.QUEUED and session.claim is None:
                return session
            heappop(heap)

    def first(self, most: int) -> list[Session]:
        """The first so many sessions, in order; `most` >= 1."""
        if most == 1:
            return [self.head()]
        waiting = {entry[3]: None for entry in sorted(self.heap) if entry[3].state is State.QUEUED}
        return [session for session in waiting if session.claim is None][:most]


class Bench:
    """The cells of one group in one lane: idle users sorted (one list for each number of shares), others unsorted.

    Attributes:
        credit: what bounds their credit together; they are in credit by their own accounts.  committed_n: of each.
        ages: of them, where their credit is bounded together: whole benches go in and out of credit.
        asked_m: asked by them, thousandths of a GPU, where they are in credit by their own accounts.
    """

    __slots__ = ("ages", "asked_m", "cells", "committed_n", "count", "credit", "group", "idle", "lane", "live")

    def __init__(self, lane: Lane, group: Node, credit: GroupCredit | None, committed_n: int) -> None:
        self.cells = self.count = self.asked_m = 0
        self.lane = lane
        self.group = group
        self.credit = credit
        self.committed_n = committed_n
        self.ages = Ages()
        self.idle: dict[float, SortedList[tuple[float, int, str, Cell]]] = {}
        self.live: dict[Cell, None] = {}

    def oldest(self) -> Age | None:
        """Whose session has waited longest; kept where their credit is bounded together."""
        return self.ages.oldest(lambda cell: cell.bench is self)


class Lane:
    """All waiting sessions of one shape and of users with the same rights that are in credit, or that are not."""

    __slots__ = ("ages", "amount_m", "benches", "cells", "count", "in_credit", "key", "rights", "shape")

    def __init__(self, shape: Shape, in_credit: bool, rights: Held) -> None:
        self.shape = shape
        self.in_credit = in_credit
        self.rights = rights
        self.key: LaneKey = (shape, in_credit, rights)
        self.amount_m = shape.amount_m
        self.count = 0
        self.cells = 0
        self.benches: dict[Node | GroupCredit, Bench] = {}
        self.ages = Ages()

    def oldest(self) -> Age | None:
        """Whose session has waited longest; None where nobody waits. Kept for wide sessions alone."""
        found = [bench.oldest() for bench in self.benches.values() if bench.credit]
        found.append(self.ages.oldest(lambda cell: cell.bench is not None and cell.bench.lane is self))
        return min((age for age in found if age is not None), default=None)


def cell_of(entry: tuple[float, int, str, Cell]) -> Cell:
    """The cell of an entry of a bench's sorted list."""
    return entry[3]


class Candidate(NamedTuple):
    """A cell's place in the total order: compare two of them directly."""

    place: tuple[float, ...]
    submit_ms: int
    session_id: str
    cell: Cell
