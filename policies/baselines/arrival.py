"""`fifo`, `fifo-skip` and `sjf`: one line for all, no credit, no ladder.

`fifo` starts sessions in the order in which they came and stops at the first that does not fit; `fifo-skip` passes over
it; `sjf` orders by declared run time and stops.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any

from policies.decide import lose_silent, reject_unplaceable
from policies.maintenance import clear_hosts
from policies.model import Action, Decision, Ladder, Reason, Session, Shape, State
from policies.usage import NEVER_MS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from policies.calendar import Calendar
    from policies.model import User
    from policies.params import Params
    from policies.snapshot import Memory, Snapshot, WaitingQueue
    from policies.usage import DecayClock

Key = tuple[int, int, int]


def by_arrival(session: Session) -> Key:
    """Submit time, then the order of arrival at the core."""
    return session.submit_ms, session.seq, 0


def by_duration(session: Session) -> Key:
    """Declared run time (not stated: last), then submit time, then the order of arrival."""
    expected = NEVER_MS if session.expected_ms is None else session.expected_ms
    return expected, session.submit_ms, session.seq


class LineQueue:
    """Waiting sessions in lines, by a key that never changes; sessions that left are dropped when they surface.

    Args:
        by_time: order by declared run time instead of arrival.
        by_shape: one line for each shape instead of one for all.
    """

    __slots__ = ("by_shape", "key", "lines", "pushed", "waiting")

    def __init__(self, *, by_time: bool, by_shape: bool) -> None:
        self.key = by_duration if by_time else by_arrival
        self.by_shape = by_shape
        self.lines: dict[Shape | None, list[tuple[Key, int, Session]]] = {}
        self.waiting = 0
        self.pushed = 0

    def add(self, session: Session) -> None:
        """A session waits."""
        self.waiting += 1
        self.pushed += 1
        line = self.lines.setdefault(session.shape if self.by_shape else None, [])
        heappush(line, (self.key(session), self.pushed, session))

    def remove(self, session: Session) -> None:
        """A session waits no longer."""
        del session
        self.waiting -= 1

    def head(self, line: list[tuple[Key, int, Session]]) -> tuple[Key, int, Session] | None:
        """The first of a line; None when it is empty."""
        while line:
            if line[0][2].state is State.QUEUED:
                return line[0]
            heappop(line)
        return None

    def calendar_changed(self, calendar: Calendar) -> None:
        """These policies know no reservations."""

    def refusal(self, user: User, shape: Shape, *, asked: bool = False) -> None:
        """These policies have no limits."""

    def user_changed(self, user: User) -> None:
        """Nothing here depends on the user."""

    def cool_down(self, user: User, until_ms: int) -> None:
        """Nobody is evicted by these policies."""

    def advance(self) -> None:
        """The line stands still."""

    def next_ms(self) -> int:
        """Time changes nothing."""
        return NEVER_MS

    def rebased(self) -> None:
        """No key depends on an account."""

    def requested(self, session: Session) -> None:
        """Nothing is learned."""

    def took(self, amount_m: int) -> None:
        """Nothing is learned."""

    def gave_back(self, amount_m: int, *, by_itself: bool) -> None:
        """Nothing is learned."""

    def saved(self, duration_ms: int) -> None:
        """Nobody is asked to save."""

    def learned(self) -> None:
        """Nothing is learned."""

    def restore_learned(self, learned: dict[str, Any] | None, held_m: int) -> None:
        """Nothing is learned."""

    def shared_dues(self) -> list[tuple[str, str, int]]:
        """These policies know no credit."""
        return []

    def restore_shared_dues(self, dues: list[tuple[str, str, int]]) -> None:
        """These policies know no credit."""

    def touched_names(self) -> list[str]:
        """There are no notices."""
        return []

    def touch(self, users: list[User]) -> None:
        """There are no notices."""

    def restore_memory(self, memory: Memory) -> None:
        """Nothing is remembered."""

    def set_due(self, user: User, at_ms: int) -> None:
        """Time changes nothing."""


class Line:
    """Start sessions from the front of one line.

    Args:
        params: of which only the charging is used.
        by_time: order by declared run time instead of arrival.
        skip: pass over what does not fit instead of stopping at it.
    """

    def __init__(self, params: Params, *, by_time: bool = False, skip: bool = False) -> None:
        self.params = params
        self.tracked = False
        self._by_time = by_time
        self._skip = skip
        self._reason = Reason("order.duration" if by_time else "order.arrival")

    def make_queue(self, clock: DecayClock) -> LineQueue:
        """Empty lines."""
        del clock
        return LineQueue(by_time=self._by_time, by_shape=self._skip)

    def decide(self, view: Snapshot[WaitingQueue]) -> Iterator[Decision]:
        """Refuse what can never run, then start from the front."""
        if view.unplaceable:
            yield from reject_unplaceable(view)
        if view.lost_hosts:
            yield from lose_silent(view)
        if view.calendar.entries:
            yield from clear_hosts(view)
        queue, cluster = view.queue, view.cluster
        assert isinstance(queue, LineQueue)  # noqa: S101 - the core pairs a policy with its own queue
        lines = list(queue.lines.values()) if queue.waiting and cluster.free_m else []
        if len(lines) == 1:
            yield from self._start_line(view, queue, lines[0])
            return
        while lines:
            heads = [head for line in lines if (head := queue.head(line)) is not None]
            if not heads:
                return
            session = min(heads)[2] if len(heads) > 1 else heads[0][2]
            allocation = cluster.place(session.shape)
            if allocation is None:
                lines = [line for line in lines if not line or line[0][2] is not session]
                continue
            yield Decision(
                view.clock.now_ms, Action.START, session.id, session.user.name, self._reason, Ladder.OK, allocation
            )

    def _start_line(
        self, view: Snapshot[WaitingQueue], queue: LineQueue, line: list[tuple[Key, int, Session]]
    ) -> Iterator[Decision]:
        """From the front, until one does not fit."""
        now_ms, cluster = view.clock.now_ms, view.cluster
        while (head := queue.head(line)) is not None:
            session = head[2]
            allocation = cluster.place(session.shape)
            if allocation is None:
                return
            yield Decision(now_ms, Action.START, session.id, session.user.name, self._reason, Ladder.OK, allocation)
