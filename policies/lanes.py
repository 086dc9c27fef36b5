"""How the queue files its waiting sessions: cells, benches and lanes, and a cell's place in the order.

Containers only: `policies.order.FairQueue` fills them and keeps them right.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, NamedTuple

from policies.model import Node, Session, Shape, State, User
from policies.rights import Held

if TYPE_CHECKING:
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
"""Entries that a lane may keep beside four for each of its cells."""


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
        asked_m: asked by them, thousandths of a GPU, where they are in credit by their own accounts.
    """

    __slots__ = ("asked_m", "cells", "committed_n", "count", "credit", "group", "idle", "lane", "live")

    def __init__(self, lane: Lane, group: Node, credit: GroupCredit | None, committed_n: int) -> None:
        self.cells = self.count = self.asked_m = 0
        self.lane = lane
        self.group = group
        self.credit = credit
        self.committed_n = committed_n
        self.idle: dict[float, SortedList[tuple[float, int, str, Cell]]] = {}
        self.live: dict[Cell, None] = {}


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
        self.ages: list[Age] = []

    def remember(self, cell: Cell, tie: int) -> None:
        """The first session of a cell waits here: kept for wide sessions alone, whose longest wait is asked for."""
        head = cell.head()
        heappush(self.ages, (head.submit_ms, head.id, tie, cell))
        if len(self.ages) > 4 * self.cells + SPARE_AGES:
            self.ages = list({id(age[-1]): age for age in self.ages if self._holds(age)}.values())
            heapify(self.ages)

    def oldest(self) -> Age:
        """Whose session has waited longest; the lane must not be empty."""
        while not self._holds(self.ages[0]):
            heappop(self.ages)
        return self.ages[0]

    def _holds(self, age: Age) -> bool:
        submit_ms, sid, _, cell = age
        if cell.bench is None or cell.bench.lane is not self:
            return False
        head = cell.head()
        return head.submit_ms == submit_ms and head.id == sid


def cell_of(entry: tuple[float, int, str, Cell]) -> Cell:
    """The cell of an entry of a bench's sorted list."""
    return entry[3]


class Candidate(NamedTuple):
    """A cell's place in the total order: compare two of them directly."""

    place: tuple[float, ...]
    submit_ms: int
    session_id: str
    cell: Cell
