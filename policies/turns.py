"""Sessions of one class take turns: the stage of the ladder that applies the rotation rule."""

from __future__ import annotations

from typing import TYPE_CHECKING

from policies.give_way import in_victim_order, is_heavy
from policies.headroom import keep_m
from policies.model import Decision, Ladder, Reason, Session
from policies.rotation import Rotation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from policies.headroom import Shortage
    from policies.ladder import LoadLadder
    from policies.lanes import Bench
    from policies.order import FairSnapshot

Pair = tuple[Session, list[Session]]
"""A waiter and the sessions that give way to it."""

RECHECK_MS = 60_000
"""While somebody waits for a turn, who could pass next and whose load has become heavy are looked at this often: on a
fixed grid, since a time counted from now would add one more chain of wake-ups with every event."""


class Turns:
    """Finds who takes whose turn, and lets the ladder do the rest."""

    def __init__(self, ladder: LoadLadder) -> None:
        self._ladder = ladder
        self._params = ladder.params
        self._rungs = ladder.rungs

    def pairs(self, view: FairSnapshot, short: Shortage) -> list[Pair]:
        """(waiter, its victims) for every waiter for whom the rotation rule finds victims now, best first.

        Out-of-credit waiters only where `rotate_delta_gpu_h` is set. In credit gives way last: only when heavy, to
        in-credit waiters of at least `patience`, and when all that is held out of credit would not be enough.
        """
        rule = Rotation(self._ladder.delta_gpu_h, view)
        found: list[Pair] = []
        if self._rungs.rotate_delta_gpu_h is not None:
            over = [s for user in view.queue.over for s in user.held.values() if self._ladder.may_be_told(view, s)]
            found += self._among(view, rule, in_credit=False, victims=over)
        if view.queue.asked_m > 0 and short.deficit_m > self._over_m(view) and self._patience_over(view):
            found += self._among(view, rule, in_credit=True, victims=self._heavy_in_credit(view))
        return found

    def _over_m(self, view: FairSnapshot) -> int:
        """Thousandths of a GPU held out of credit by sessions that are not leaving yet."""
        return sum(s.held_m for user in view.queue.over for s in user.held.values() if not view.leaving(s))

    def _patience_over(self, view: FairSnapshot) -> bool:
        """Whether some user's first in-credit waiter has waited for `patience`; if not, come back when one has."""
        since = view.queue.oldest_in_credit_ms()
        if since is None:
            return False
        over = since + self._rungs.patience_ms
        if over > view.clock.now_ms:
            view.wake(over)
        return over <= view.clock.now_ms

    def _heavy_in_credit(self, view: FairSnapshot) -> list[Session]:
        now, heavy, again = view.clock.now_ms, [], False
        for session in view.holders.values():
            if session.load is not None and session.user.in_credit and self._ladder.may_be_told(view, session):
                again = True
                if is_heavy(session, now, self._params):
                    heavy.append(session)
        if again:
            view.wake((now // RECHECK_MS + 1) * RECHECK_MS)
        return heavy

    def _among(self, view: FairSnapshot, rule: Rotation, *, in_credit: bool, victims: list[Session]) -> list[Pair]:
        found: list[Pair] = []
        if not victims:
            return found
        left = in_victim_order(victims, view, self._params)
        left.sort(key=lambda session: session.ladder in (Ladder.OK, Ladder.NOTICE))  # whoever was told stays first
        for bench in view.queue.benches(in_credit=in_credit):
            found += self._of_bench(view, rule, bench, left)
        return found

    def _of_bench(self, view: FairSnapshot, rule: Rotation, bench: Bench, left: list[Session]) -> Iterator[Pair]:
        """One waiter of each user of a bench, in order, until one finds no victims: those behind would not either."""
        now, lane = view.clock.now_ms, bench.lane
        rights = view.queue.rights
        spare_m = rights.kept_m(lane.rights) + (0 if lane.in_credit else keep_m(view, self._params, lane.amount_m))
        for candidate in view.queue.in_order(bench):
            cell = candidate.cell
            waiter = cell.head()
            if view.queue.cooling(cell.user):
                continue
            if bench.lane.in_credit and waiter.submit_ms + self._rungs.patience_ms > now:
                view.wake(waiter.submit_ms + self._rungs.patience_ms)
                continue
            able = rights.spare(left, lane.rights, view)
            taken, retry = rule.find(waiter, cell.committed_n, able, spare_m) if able else (None, None)
            if taken is None:
                # Those behind fail as well now, but one of them may be the first to pass later.
                view.wake((now // RECHECK_MS + 1) * RECHECK_MS)
                if retry is not None:
                    view.wake(now + retry)
                return
            for session in taken:
                left.remove(session)
            yield waiter, taken

    def take(self, view: FairSnapshot, pairs: list[Pair]) -> Iterator[Decision]:
        """Warn the victims of each pair; once all their warnings and minimum runs are over, put them into grace."""
        now, ladder = view.clock.now_ms, self._ladder
        for waiter, victims in pairs:
            if not ladder.still_stands(view, waiter, victims):
                continue
            for session in victims:
                if session.ladder in (Ladder.OK, Ladder.NOTICE):
                    yield ladder.warning(view, session, self._reason(view, "ladder.rotate-warn", waiter, session))
            ready = max(ladder.ready_ms(session) for session in victims)
            if ready > now:
                view.wake(ready)
                continue
            for session in victims:
                yield from ladder.shrink(view, session)
            if not all(ladder.may_go(session, now) for session in victims):
                continue
            # What the plan of the other pairs counts on may not have happened: this pair has to hold on its own.
            needed = self._alone(view, waiter, victims)
            reasons = [
                self._reason(view, "ladder.rotate", waiter, session)._replace(change="credit-is-back")
                for session in needed
            ]
            for session, reason in zip(needed, reasons, strict=True):
                yield ladder.grace(view, session, reason, waiter)

    def _alone(self, view: FairSnapshot, waiter: Session, victims: list[Session]) -> list[Session]:
        """Those of the pair's victims that the rule takes without regard to other pairs; none if it does not hold."""
        cell = waiter.user.cells[waiter.shape]
        rights = view.queue.rights
        spare_m = rights.kept_m(rights.of(waiter.user))
        spare_m += 0 if cell.in_credit else keep_m(view, self._params, cell.amount_m)
        rule, able = Rotation(self._ladder.delta_gpu_h, view), rights.spare(victims, rights.of(waiter.user), view)
        needed, retry = rule.find(waiter, cell.committed_n, able, spare_m)
        if retry is not None:
            view.wake(view.clock.now_ms + retry)
        return needed or []

    def _reason(self, view: FairSnapshot, rule: str, waiter: Session, victim: Session) -> Reason:
        """Standing of the victim's side, against that of the waiter's side and the threshold together."""
        committed_n = waiter.user.cells[waiter.shape].committed_n if waiter.claim is None else 0
        delta = self._ladder.delta_gpu_h
        mine, theirs = Rotation(delta, view).sides_gpu_h(waiter, committed_n, victim)
        return Reason(rule, theirs, mine + delta, "gpu_h", None, "pause-or-finish", (("delta_gpu_h", delta),))
