"""The rotation rule: when sessions of one class take turns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from policies.give_way import counted_on_m, fits_without, needed_of_free_m, without_spare
from policies.model import NANO, Node, Session, User
from policies.standing import branches, sibling_factor, standing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from policies.order import FairSnapshot


class Rotation:
    """The rotation rule: who may be taken so that the waiter's side still stands better by `delta`.

    A victim is taken only if `standing(waiter's side, with the new session) + delta < standing(victim's side, as it
    stands before that victim leaves)`, both at the children of their lowest common ancestor; victims one after
    another on the holdings that then remain. Sessions that give way already count as gone, since the waiters nominated
    for them count as there; without that a side would be charged twice while a grace lasts. One object serves all
    waiters of a cycle: what it planned for one counts as done for the next.

    Args:
        delta_gpu_h: the threshold.  view: the moment.
        present: sessions that are about to be tested, and so count as there although they are in grace.
    """

    def __init__(self, delta_gpu_h: float, view: FairSnapshot, present: Sequence[Session] = ()) -> None:
        self._delta = delta_gpu_h
        self._view = view
        self._change: dict[Node, int] = {}  # committed charge come and gone by the plan so far, nano GPU-h
        self._spoken_m = 0  # of what is free, thousandths that somebody counts on
        for claim in view.claims.values():
            self._spoken_m += counted_on_m(claim)
            for session in claim.victims:
                if session not in present:
                    self._add(session.user, -session.committed_n)

    def find(
        self, waiter: Session, committed_n: int, victims: Sequence[Session], keep_m: int = 0
    ) -> tuple[list[Session] | None, int | None]:
        """(the victims that make room and all pass in sequence, None) or (None, when to look again in ms).

        `keep_m` thousandths of a GPU have to stay free after the waiter has started. If it still does not fit when no
        further victim passes, nobody is touched.
        """
        before, spare_m = dict(self._change), keep_m + self._spoken_m
        self._add(waiter.user, committed_n)
        taken: list[Session] = []
        retry: list[int] = []
        for victim in victims:
            if not self._passes(waiter.user, victim):
                retry += self._wait_ms(waiter.user, victim)
                continue
            taken.append(victim)
            self._add(victim.user, -victim.committed_n)
            if fits_without(waiter.shape, taken, self._view, spare_m):
                needed = without_spare(waiter.shape, taken, self._view, spare_m)
                self._change = dict(before)
                if self.holds(waiter, committed_n, needed):
                    self._spoken_m += needed_of_free_m(waiter, needed)
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

    def sides_gpu_h(self, waiter: Session, committed_n: int, victim: Session) -> tuple[float, float]:
        """(standing of the waiter's side with the new session, of the victim's side), GPU-h, as they are now."""
        sides = branches(waiter.user, victim.user)
        if sides is None:
            return 0.0, 0.0
        (mine, theirs), clock, change = sides, self._view.clock, self._change
        return standing(mine, clock, committed_n + change.get(mine, 0)), standing(theirs, clock, change.get(theirs, 0))

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
