"""Claims as the core keeps them: who gives way to whom, and what has been released for it so far.

A waiter that sessions give way to is *nominated*: it leaves the queue, and what it asks counts as committed, so that
one user cannot have a dozen sessions nominated at the standing of one. GPUs released by its victims are set aside, and
what it needs of the free ones as soon as they are evicted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from policies.give_way import missing_m
from policies.model import Allocation, Claim, Kind, Session
from policies.usage import committed_n

if TYPE_CHECKING:
    from collections.abc import Sequence

    from policies.params import Params
    from policies.snapshot import Snapshot, WaitingQueue
    from scheduler.ledger import Ledger


class Claims:
    """Changes `view.claims` and the counts that go with them.

    Attributes:
        made: number of claims so far; gives them their order.
    """

    def __init__(self, view: Snapshot[WaitingQueue], ledger: Ledger, params: Params) -> None:
        self.made = 0
        self._view = view
        self._ledger = ledger
        self._params = params

    def give_way(self, session: Session, waiter: Session | None, kind: Kind) -> None:
        """`session` is in grace for `waiter`, or (None) for the headroom."""
        claim = waiter.claim if waiter is not None else None
        if claim is None:
            self.made += 1
            claim = self._view.claims[self.made] = Claim(self.made, waiter, [], kind)
            if waiter is not None:
                self._nominate(waiter, claim)
        wide, claim.kind = claim.kind is Kind.WIDE, kind
        claim.victims.append(session)
        if wide:
            self.count_missing()
        session.claim = claim
        session.acknowledged = False

    def reserve(self, waiter: Session, free: Sequence[Allocation]) -> None:
        """Keep what is free for a waiter that is given a reservation, or has one."""
        claim = waiter.claim
        if claim is None:
            self.made += 1
            claim = self._view.claims[self.made] = Claim(self.made, waiter, [], Kind.WIDE)
            self._nominate(waiter, claim)
        self._keep(claim, free)
        self.count_missing()

    def count_missing(self) -> None:
        """Bring `view.missing_m` up to date."""
        self._view.missing_m = sum(map(missing_m, self._view.claims.values()))

    def let_stay(self, session: Session) -> None:
        """A session need not give way after all; a claim without victims is given up."""
        claim, session.claim = session.claim, None
        if claim is None:
            return
        claim.victims.remove(session)
        if claim.victims:
            return
        waiter = claim.waiter
        if waiter is None:
            del self._view.claims[claim.number]
        else:
            self.drop(waiter)
            self._view.queue.add(waiter)

    def promise(self, session: Session, free: Sequence[Allocation]) -> None:
        """A session is evicted: keep what is free and needed, too, by the waiter that it gives way to."""
        claim = session.claim
        if claim is None:
            return
        claim.promised = True
        self._keep(claim, free)

    def _keep(self, claim: Claim, free: Sequence[Allocation]) -> None:
        for allocation in free:
            self._view.cluster.take(allocation)
            claim.set_aside.append(allocation)
            self._view.set_aside_m += allocation.amount_m

    def release(self, session: Session, allocation: Allocation) -> None:
        """A session's GPUs are free: for the waiter it gave way to if there is one, otherwise for all."""
        view = self._view
        claim, session.claim = session.claim, None
        if claim is not None:
            claim.victims.remove(session)
            if claim.waiter is not None:
                claim.set_aside.append(allocation)
                view.set_aside_m += allocation.amount_m
                return
            if not claim.victims:
                del view.claims[claim.number]
        view.cluster.release(allocation)

    def drop(self, waiter: Session) -> None:
        """The waiter needs its claim no longer; GPUs set aside are free, sessions still in grace serve the headroom."""
        view = self._view
        claim, waiter.claim = waiter.claim, None
        if claim is None:
            return
        for allocation in claim.set_aside:
            view.set_aside_m -= allocation.amount_m
            view.cluster.release(allocation)
        claim.set_aside.clear()
        claim.waiter = None
        if not claim.victims:
            del view.claims[claim.number]
        view.claimed_m -= waiter.shape.amount_m
        if claim.kind is Kind.WIDE:
            self.count_missing()
        self._ledger.change(waiter.user, 0, -waiter.committed_n)
        waiter.committed_n = 0
        waiter.by_band = False
        del waiter.user.nominated[waiter.id]
        view.queue.user_changed(waiter.user)

    def _nominate(self, waiter: Session, claim: Claim) -> None:
        view, shape = self._view, waiter.shape
        waiter.claim = claim
        waiter.user.nominated[waiter.id] = waiter
        view.queue.remove(waiter)
        weight = self._params.weight(shape.gpu_type)
        waiter.committed_n = committed_n(shape, shape.fraction_m, weight, self._params.ladder.min_run_ms)
        self._ledger.change(waiter.user, 0, waiter.committed_n)
        view.claimed_m += shape.amount_m
        view.queue.user_changed(waiter.user)
