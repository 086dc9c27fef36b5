"""Who gives way, and to whom: the order of victims, the smallest set that makes room, and rotation.

The figure that orders the queue is the figure that is compared here (`policies.standing`), and a set of victims is
tested as a whole before anybody is touched: where two figures were used, or only single victims tested, schedulers
have evicted in endless circles.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from policies.model import NANO, WHOLE_M, Allocation, Ladder, Node, Session, Shape, State, User
from policies.standing import branches, sibling_factor, standing

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from policies.order import FairSnapshot
    from policies.params import Params


def is_heavy(session: Session, now_ms: int, params: Params) -> bool:
    """Sustained load: the mean over the window is at least `heavy_load`, with enough of the window known."""
    ladder = params.ladder
    window = session.window
    return window is not None and window.is_heavy(now_ms, ladder.heavy_load, ladder.heavy_known_fraction)


def victim_key(session: Session, view: FairSnapshot, params: Params) -> tuple[bool, tuple[float, ...], int, int, str]:
    """Order of giving way: heavy first, then worst standing, least work lost since a checkpoint, youngest, id."""
    now = view.clock.now_ms
    places = tuple([-standing(node, view.clock) for node in session.user.path])
    return not is_heavy(session, now, params), places, now - session.saved_ms, -session.start_ms, session.id


def in_victim_order(sessions: Iterable[Session], view: FairSnapshot, params: Params) -> list[Session]:
    """Sessions in the order in which they give way."""
    return [entry[-1] for entry in sorted((*victim_key(s, view, params), s) for s in sessions)]


def room_for(shape: Shape, victims: Sequence[Session], view: FairSnapshot) -> list[Session] | None:
    """The first victims, in order, whose GPUs make room for the shape, without those that turn out not to be needed.

    None when all of them together do not. On one pool of whole GPUs this is a count; with host boundaries the release
    is tried on the index and taken back.
    """
    needed: list[Session] = []
    for session in victims:
        needed.append(session)
        if _fits_without(shape, needed, view):
            return _without_spare(shape, needed, view)
    return None


def _without_spare(shape: Shape, needed: list[Session], view: FairSnapshot) -> list[Session]:
    """The set without the members it does not need, those that would give way last tried first."""
    for session in needed[-2::-1]:
        rest = [other for other in needed if other is not session]
        if _fits_without(shape, rest, view):
            needed = rest
    return needed


def _fits_without(shape: Shape, sessions: Sequence[Session], view: FairSnapshot) -> bool:
    """Whether the shape would fit if these sessions' GPUs were free."""
    gain_m = sum(session.held_m for session in sessions)
    if shape.fraction_m == WHOLE_M and view.cluster.free_m + gain_m < shape.amount_m:
        return False
    return view.cluster.fits_without(shape, _allocations(sessions))


def _allocations(sessions: Iterable[Session]) -> list[Allocation]:
    return [session.allocation for session in sessions if session.allocation is not None]


class Rotation:
    """The rotation rule: who may be taken so that the waiter's side still stands better by `delta`.

    A victim is taken only if `standing(waiter's side, with the new session) + delta < standing(victim's side, as it
    stands before that victim leaves)`, both at the children of their lowest common ancestor; victims one after
    another on the holdings that then remain. One object serves all waiters of a cycle: what it planned for one counts
    as done for the next.
    """

    def __init__(self, delta_gpu_h: float, view: FairSnapshot) -> None:
        self._delta = delta_gpu_h
        self._view = view
        self._change: dict[Node, int] = {}  # committed charge come and gone by the plan so far, nano GPU-h

    def find(
        self, waiter: Session, committed_n: int, victims: Sequence[Session]
    ) -> tuple[list[Session] | None, int | None]:
        """(the victims that make room and all pass in sequence, None) or (None, when to look again in ms).

        If the waiter still does not fit when no further victim passes, nobody is touched.
        """
        before = dict(self._change)
        self._add(waiter.user, committed_n)
        taken: list[Session] = []
        retry: list[int] = []
        for victim in victims:
            if not self._passes(waiter.user, victim):
                retry += self._wait_ms(waiter.user, victim)
                continue
            taken.append(victim)
            self._add(victim.user, -victim.committed_n)
            if _fits_without(waiter.shape, taken, self._view):
                needed = _without_spare(waiter.shape, taken, self._view)
                self._change = dict(before)
                if self.holds(waiter, committed_n, needed):
                    return needed, None
                break
        self._change = before
        return None, min(retry, default=None)

    def holds(self, waiter: Session, committed_n: int, victims: Sequence[Session]) -> bool:
        """Whether every victim of a set passes, one after another on what then remains; counts as done if so."""
        before = dict(self._change)
        self._add(waiter.user, committed_n)
        for victim in victims:
            if not self._passes(waiter.user, victim):
                self._change = before
                return False
            self._add(victim.user, -victim.committed_n)
        return True

    def _add(self, user: User, committed_n: int) -> None:
        for node in user.path:
            self._change[node] = self._change.get(node, 0) + committed_n

    def _passes(self, user: User, victim: Session) -> bool:
        sides = branches(user, victim.user)
        if sides is None:
            return False
        (mine, theirs), clock, change = sides, self._view.clock, self._change
        better = standing(mine, clock, change.get(mine, 0)) + self._delta
        return better < standing(theirs, clock, change.get(theirs, 0))

    def _wait_ms(self, user: User, victim: Session) -> list[int]:
        """Milliseconds until the rule may hold for this victim if nothing else changes; none = not by waiting.

        Both sides are of the form `X 2^(-t/h) + Y`, so their difference is, and its zero has a closed form.
        """
        sides = branches(user, victim.user)
        if sides is None:
            return []
        mine, theirs = sides
        left, right = sibling_factor(mine), sibling_factor(theirs)
        decaying = theirs.scaled * right - mine.scaled * left
        level = self._level(theirs) * right - self._level(mine) * left - self._delta
        wait = self._view.clock.time_to_zero(decaying, level)
        return [] if wait is None else [wait]

    def _level(self, node: Node) -> float:
        return node.steady + (node.committed_n + self._change.get(node, 0)) / NANO


def may_give_way(session: Session, view: FairSnapshot) -> bool:
    """Running, not on its way out already, and its host's telemetry is fresh."""
    running = session.state is State.RUNNING or session.state is State.STARTING
    return running and session.ladder is not Ladder.GRACE and session.claim is None and view.fresh(session)
