"""What is lent is taken back: for those whose tier is guaranteed GPUs, and for what a group has reserved.

Another track than the load ladder, with its means: warning, minimum run, throttle, time to save. Credit does not
protect what is beyond one's own right, but whoever is out of credit goes first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from policies.give_way import claim_fits, counted_on_m, needed_of_free_m, room_for, victim_key
from policies.headroom import shortage
from policies.model import WHOLE_M, Decision, Ladder, Reason, Session

if TYPE_CHECKING:
    from collections.abc import Iterator

    from policies.headroom import Shortage
    from policies.ladder import LoadLadder
    from policies.lanes import Lane, LaneKey
    from policies.model import Claim
    from policies.order import FairSnapshot
    from policies.params import Params
    from policies.rights import Right
    from policies.turns import Pair


class Reclaim:
    """Finds who gives back, and lets the ladder do the rest."""

    def __init__(self, ladder: LoadLadder) -> None:
        self._ladder = ladder
        self._params = ladder.params

    def pairs(self, view: FairSnapshot, short: Shortage) -> list[Pair]:
        """(waiter, the sessions that give back what it needs) for those who wait with a right, best first."""
        rights = view.queue.rights
        if rights.none or short.right_deficit_m <= 0:
            return []
        left, plan = self._who_may(view), _Plan(view)
        found = [plan.find(lane, waiter, left) for lane, waiter in _asking(view)]
        return [pair for pair in found if pair is not None]

    def _who_may(self, view: FairSnapshot) -> list[Session]:
        """Sessions that could be told now, out of credit first, then whoever was told already, then the usual order."""
        able = [session for session in view.holders.values() if self._ladder.may_be_told(view, session)]
        keyed = sorted(
            (s.user.in_credit, s.ladder in (Ladder.OK, Ladder.NOTICE), victim_key(s, view, self._params), s.id, s)
            for s in able
        )
        return [entry[-1] for entry in keyed]

    def take(self, view: FairSnapshot, pairs: list[Pair]) -> Iterator[Decision]:
        """Warn whoever gives back; once all warnings and minimum runs are over, put them into grace."""
        planned: list[Session] = []
        for waiter, victims in pairs:
            if not self._ladder.still_stands(view, waiter, victims):
                continue
            lane = waiter.user.cells[waiter.shape].bench
            yield from self._warn(view, victims, waiter)
            if lane is not None and self._ready(view, victims):
                yield from self._shrink(view, victims)
                if all(self._ladder.may_go(session, view.clock.now_ms) for session in victims):
                    pair = _Plan(view).find(lane.lane, waiter, victims)
                    for session in pair[1] if pair is not None else []:
                        reason = right_reason(view, "reclaim.grace", waiter)
                        yield self._ladder.grace(view, session, reason, waiter)
                    continue
            planned += victims
        yield from self._refill(view, planned)

    def _refill(self, view: FairSnapshot, planned: list[Session]) -> Iterator[Decision]:
        """What is reserved and missing beyond what those who wait are to be given."""
        short = shortage(view, self._params)
        missing_m = min(short.reserved_m, short.right_deficit_m - sum(session.held_m for session in planned))
        if missing_m <= 0:
            return
        rights, now = view.queue.rights, view.clock.now_ms
        able = [session for session in self._who_may(view) if session not in planned]
        for session in rights.spare(able, (), view):
            if 0 < session.held_m <= missing_m:
                missing_m -= session.held_m
                yield from self._warn(view, [session], None)
                if self._ready(view, [session]):
                    yield from self._shrink(view, [session])
                    if self._ladder.may_go(session, now):
                        yield self._ladder.grace(view, session, right_reason(view, "reclaim.reserve", None), None)

    def _warn(self, view: FairSnapshot, victims: list[Session], waiter: Session | None) -> Iterator[Decision]:
        for session in victims:
            if session.ladder in (Ladder.OK, Ladder.NOTICE):
                yield self._ladder.warning(view, session, right_reason(view, "reclaim.warn", waiter))

    def _shrink(self, view: FairSnapshot, victims: list[Session]) -> Iterator[Decision]:
        for session in victims:
            yield from self._ladder.shrink(view, session)

    def _ready(self, view: FairSnapshot, victims: list[Session]) -> bool:
        """Whether all warnings and minimum runs are over; if not, come back when they are."""
        ready = max(self._ladder.ready_ms(session) for session in victims)
        if ready > view.clock.now_ms:
            view.wake(ready)
        return ready <= view.clock.now_ms


def _asking(view: FairSnapshot) -> Iterator[tuple[Lane, Session]]:
    """Who waits with a right: the first session of every user in order, then the others that could start with them."""
    queue, further = view.queue, []
    for in_credit in (True, False):
        for bench in queue.benches(in_credit=in_credit):
            for candidate in queue.in_order(bench) if bench.lane.rights else ():
                cell = candidate.cell
                if not queue.cooling(cell.user):
                    yield bench.lane, cell.head()
                    further.append((bench.lane, cell))
    for lane, cell in further:
        most = queue.limits.within(cell.user, cell.shape, cell.count)
        for waiter in cell.first(most)[1:]:
            yield lane, waiter


class _Plan:
    """Who gives back to whom: what one waiter was promised, the next does not count on."""

    def __init__(self, view: FairSnapshot) -> None:
        self._view = view
        self._spoken_m = sum(map(counted_on_m, view.claims.values()))
        self._given: dict[Right, int] = {}
        self._hopeless: set[LaneKey] = set()

    def find(self, lane: Lane, waiter: Session, left: list[Session]) -> Pair | None:
        """The waiter and those who give back to it, who are taken out of `left`; None if it cannot be served."""
        view, rights, amount_m = self._view, self._view.queue.rights, lane.amount_m
        right = next((r for r in lane.rights if r.held_m + self._given.get(r, 0) + amount_m <= r.due_m), None)
        if right is None or lane.key in self._hopeless:
            return None
        victims = room_for(
            waiter.shape, rights.spare(left, (), view), view, self._spoken_m + rights.kept_m(lane.rights)
        )
        if victims is None:
            self._hopeless.add(lane.key)  # who else waits there would not find them either
            return None
        self._spoken_m += needed_of_free_m(waiter, victims)
        self._given[right] = self._given.get(right, 0) + amount_m
        for session in victims:
            left.remove(session)
        return waiter, victims


def still_due(view: FairSnapshot, params: Params, claim: Claim) -> bool:
    """Whether what was lent still has to be given back, when the time to save is over."""
    rights, waiter, victims = view.queue.rights, claim.waiter, claim.victims
    if waiter is None:
        return shortage(view, params).right_deficit_m >= 0 and rights.may_give(victims, (), view)
    covered = any(right.held_m <= right.amount_m for right in rights.of(waiter.user))
    if not covered or view.queue.cooling(waiter.user) or not rights.may_give(victims, (), view):
        return False
    return claim_fits(view, params, claim, waiter, victims)


def right_reason(view: FairSnapshot, rule: str, waiter: Session | None, until_ms: int | None = None) -> Reason:
    """GPUs held by those with the right, against what they have a right to."""
    rights = view.queue.rights
    owned = rights.of(waiter.user) if waiter is not None else tuple(rights.counted())
    held_m, amount_m = sum(right.held_m for right in owned), sum(right.amount_m for right in owned)
    return Reason(rule, held_m / WHOLE_M, amount_m / WHOLE_M, "gpu", until_ms, "save-and-resubmit")
