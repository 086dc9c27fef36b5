"""The load ladder: ok -> notice -> warn -> throttle -> grace -> evict, and back.

Each stage is a generator of decisions; the core carries each decision out before the stage goes on, so every stage
counts on what is true now. Without contention nothing here goes beyond a notice.
"""

from __future__ import annotations

from heapq import nsmallest
from typing import TYPE_CHECKING

from policies.give_way import (
    allocations_of,
    claim_fits,
    counted_on_m,
    in_victim_order,
    is_heavy,
    may_give_way,
    missing_m,
    needed_of_free_m,
    releases,
    room_for,
    victim_key,
)
from policies.headroom import Shortage, shortage
from policies.model import (
    WHOLE_M,
    Action,
    Allocation,
    Claim,
    Decision,
    Kind,
    Ladder,
    Reason,
    Session,
    State,
)
from policies.reclaim import right_reason, still_due
from policies.rotation import Rotation

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from policies.lanes import LaneKey
    from policies.order import FairSnapshot
    from policies.params import Params

QUARTERS = (4, 3, 2, 1)
"""A throttle grants 100, 75, 50 and 25 % of what was asked for on a shared GPU, in this order."""


class LoadLadder:
    """The stages, with the parameters that they share."""

    def __init__(self, params: Params) -> None:
        self.params = params
        self.rungs = params.ladder
        self.delta_gpu_h = params.delta_gpu_h
        self.swap_ms = params.swap_period_ms

    # -- notice --------------------------------------------------------------------------------------------------

    def notices(self, view: FairSnapshot) -> Iterator[Decision]:
        """Tell the holders whose credit runs low, and take it back when it has recovered."""
        queue = view.queue
        touched, queue.touched = queue.touched, {}
        for user in touched:
            if not user.held:
                continue
            on, off = queue.notice_levels(user)
            usage = view.clock.usage(user)
            low = usage > (off if user.noticed else on) and user.rate_n > 0
            was, user.noticed = user.noticed, low
            if not (low or was):
                continue
            for session in list(user.held.values()):
                if low and session.ladder is Ladder.OK and view.fresh(session):
                    yield self._notice(view, session, usage, on)
                elif not low and session.ladder is Ladder.NOTICE:
                    reason = Reason("ladder.notice", usage, off, "gpu_h", change="credit-is-back")
                    yield _step(view, session, Action.RECOVER, Ladder.OK, reason)

    def _notice(self, view: FairSnapshot, session: Session, usage: float, level: float) -> Decision:
        user = session.user
        cap = view.queue.caps[user.tier]
        until = None
        if usage <= cap < user.steady:
            until = view.clock.now_ms + view.clock.time_to_reach(user, cap)
        reason = Reason("ladder.notice", usage, level, "gpu_h", until, "pause-or-finish", (("cap_gpu_h", cap),))
        return _step(view, session, Action.NOTICE, Ladder.NOTICE, reason)

    # -- contention ----------------------------------------------------------------------------------------------

    def contended(self, view: FairSnapshot, short: Shortage, *, rotating: bool) -> bool:
        """Whether contention has lasted long enough for the ladder to move; keeps the memory of its begin and end."""
        memory, now = view.memory, view.clock.now_ms
        if not (short.contention or rotating):
            memory.contention_since_ms = None
            if memory.calm_from_ms is None:
                memory.calm_from_ms = now
            return False
        memory.calm_from_ms = None
        if memory.contention_since_ms is None:
            memory.contention_since_ms = now
        acts = memory.contention_since_ms + self.rungs.contention_ms
        if acts > now:
            view.wake(acts)
        return acts <= now

    # -- warn ----------------------------------------------------------------------------------------------------

    def warn(self, view: FairSnapshot, short: Shortage) -> Iterator[Decision]:
        """Warn those who would give way first: at most 3 x deficit + 2 sessions at a time, worst standing first."""
        deficit = -(-short.deficit_m // WHOLE_M)
        if deficit <= 0 or not view.queue.over:
            return
        under = sum(1 for s in view.warned.values() if s.ladder is not Ladder.GRACE and not s.user.in_credit)
        room = 3 * deficit + 2 - under
        if room <= 0:
            return
        chosen = nsmallest(room, ((*victim_key(s, view, self.params)[1:], s) for s in self._to_warn(view)))
        for *_, session in chosen:
            numbers = (("deficit_gpus", short.deficit_m / WHOLE_M), ("waiting", float(view.queue.waiting)))
            yield self.warning(view, session, self._over_cap(view, session, "ladder.warn", None, numbers))

    def _to_warn(self, view: FairSnapshot) -> Iterator[Session]:
        """Sessions out of credit, not warned yet, whose warning may run inside the rest of their minimum run."""
        next_ms: int | None = None
        over = view.queue.rights.unprotected(view.queue)
        for user in over:
            for session in user.held.values():
                if session.ladder in (Ladder.OK, Ladder.NOTICE) and may_give_way(session, view):
                    from_ms = self.warn_from_ms(session)
                    if from_ms <= view.clock.now_ms:
                        yield session
                    elif next_ms is None or from_ms < next_ms:
                        next_ms = from_ms
        if next_ms is not None:
            view.wake(next_ms)

    def warn_from_ms(self, session: Session) -> int:
        """The warning may start inside the minimum run, so that it ends no earlier than that."""
        return session.start_ms + max(0, self.rungs.min_run_ms - self.rungs.warn_ms)

    def warning(self, view: FairSnapshot, session: Session, reason: Reason) -> Decision:
        """Warn a session; the warning ends after its full time, and not before the minimum run does."""
        until = max(view.clock.now_ms + self.rungs.warn_ms, session.start_ms + self.rungs.min_run_ms)
        if until > view.clock.now_ms:
            view.wake(until)
        return _step(view, session, Action.WARN, Ladder.WARN, reason._replace(until_ms=until))

    def may_be_told(self, view: FairSnapshot, session: Session) -> bool:
        """It could give way, and has been warned or may be warned by now: a plan holds nobody who cannot follow it."""
        if not may_give_way(session, view):
            return False
        from_ms = self.warn_from_ms(session)
        if session.ladder in (Ladder.OK, Ladder.NOTICE) and from_ms > view.clock.now_ms:
            view.wake(from_ms)
            return False
        return True

    @staticmethod
    def still_stands(view: FairSnapshot, waiter: Session, victims: list[Session]) -> bool:
        """Nothing decided since a plan was made has started its waiter or taken one of its victims."""
        waits = waiter.state is State.QUEUED and waiter.claim is None
        return waits and all(may_give_way(session, view) for session in victims)

    # -- throttle ------------------------------------------------------------------------------------------------

    def throttle(self, view: FairSnapshot) -> Iterator[Decision]:
        """Shared GPUs: shrink warned sessions a step at a time; what is freed is admitted to others at once."""
        if all(session.shape.fraction_m == WHOLE_M for session in view.warned.values()):
            return
        for session in self._served(view):
            if session.shape.fraction_m < WHOLE_M and shortage(view, self.params).deficit_m > 0:
                yield from self.shrink(view, session)

    def shrink(self, view: FairSnapshot, session: Session) -> Iterator[Decision]:
        """One throttle step, if one is left and the step before has run its time."""
        smaller, now = _smaller_m(session), view.clock.now_ms
        if session.ladder is Ladder.THROTTLE:
            due = session.ladder_since_ms + self.rungs.throttle_step_ms
            if due > now:
                view.wake(due)
                return
        if smaller is None:
            return
        until = now + self.rungs.throttle_step_ms
        view.wake(until)
        reason = self._over_cap(view, session, "ladder.throttle", until)
        yield _step(view, session, Action.THROTTLE, Ladder.THROTTLE, reason)._replace(granted_m=smaller)

    def _served(self, view: FairSnapshot) -> list[Session]:
        """Out-of-credit sessions whose warning has run its full time and whose minimum run is over."""
        now, served = view.clock.now_ms, []
        for session in view.warned.values():
            if session.user.in_credit or not may_give_way(session, view):
                continue
            ready = self.ready_ms(session)
            if ready <= now:
                served.append(session)
            else:
                view.wake(ready)
        return served

    def ready_ms(self, session: Session) -> int:
        """When the warning has run its full time and the minimum run is over."""
        return max(session.lead_ms + self.rungs.warn_ms, session.start_ms + self.rungs.min_run_ms)

    def may_go(self, session: Session, now_ms: int) -> bool:
        """No throttle step is left that should come before grace."""
        if session.ladder is not Ladder.THROTTLE:
            return _smaller_m(session) is None
        return _smaller_m(session) is None and session.ladder_since_ms + self.rungs.throttle_step_ms <= now_ms

    @staticmethod
    def _over_cap(
        view: FairSnapshot,
        session: Session,
        rule: str,
        until_ms: int | None,
        numbers: tuple[tuple[str, float], ...] = (),
        change: str = "pause-or-finish",
    ) -> Reason:
        """The user's usage against its credit cap."""
        usage, cap = view.clock.usage(session.user), view.queue.caps[session.user.tier]
        return Reason(rule, usage, cap, "gpu_h", until_ms, change, numbers)

    # -- grace ---------------------------------------------------------------------------------------------------

    def claim(self, view: FairSnapshot) -> Iterator[Decision]:
        """Put into grace whoever must give way: for wide reservations, waiters in order, the headroom."""
        if shortage(view, self.params).deficit_m <= 0:
            return
        now = view.clock.now_ms
        if not self._enough(view, view.warned.values()):
            return
        ready = [session for session in self._served(view) if self.may_go(session, now)]
        if not self._enough(view, ready):
            return
        ready = in_victim_order(ready, view, self.params)
        yield from self._for_reserved(view, ready)
        yield from self._for_waiters(view, ready)
        deficit_m = shortage(view, self.params).headroom_deficit_m
        for session in view.queue.rights.spare(ready, (), view) if deficit_m > 0 else ():
            if 0 < session.held_m <= deficit_m:
                yield self.grace(view, session, self._gives_way(view, session, "ladder.headroom"), None)
                deficit_m = shortage(view, self.params).headroom_deficit_m

    def _enough(self, view: FairSnapshot, ready: Collection[Session]) -> bool:
        """Whether somebody could be served at all, were all of them to go: their order costs most of this stage."""
        if not ready:
            return False
        if shortage(view, self.params).headroom_deficit_m > 0:
            return True
        room_m = view.cluster.free_m + sum([session.held_m for session in ready])
        lanes = view.queue.lanes.values()
        if any(lane.amount_m <= room_m for lane in lanes if lane.in_credit and lane.cells):
            return True
        return any(missing_m(claim) <= room_m for claim, _ in self._reserved(view))

    def _for_reserved(self, view: FairSnapshot, ready: list[Session]) -> Iterator[Decision]:
        """Those who make room for a wide session that has a reservation."""
        rights = view.queue.rights
        for claim, waiter in self._reserved(view):
            spoken_m = sum(map(counted_on_m, view.claims.values()))
            own = rights.of(waiter.user)
            able = rights.spare(ready, own, view)
            victims = room_for(waiter.shape, able, view, spoken_m + rights.kept_m(own), claim.set_aside)
            if victims is not None and shortage(view, self.params).deficit_m > 0:
                for session in victims:
                    ready.remove(session)
                    yield self.grace(view, session, self._gives_way(view, session, "ladder.grace"), waiter)

    def _for_waiters(self, view: FairSnapshot, ready: list[Session]) -> Iterator[Decision]:
        """Those who make room for in-credit waiters, the first in order first."""
        hopeless: set[LaneKey] = set()
        rights = view.queue.rights
        spoken_m = sum(map(counted_on_m, view.claims.values()))
        while shortage(view, self.params).deficit_m > 0:
            lanes = [lane for lane in view.queue.lanes.values() if lane.in_credit and lane.key not in hopeless]
            best = view.queue.best(lanes)
            if best is None:
                return
            waiter = best.cell.head()
            own = rights.of(waiter.user)
            able = rights.spare(ready, own, view)
            victims = room_for(waiter.shape, able, view, spoken_m + rights.kept_m(own))
            if victims is None:
                hopeless.add((waiter.shape, True, own))
                continue
            spoken_m += needed_of_free_m(waiter, victims)
            for session in victims:
                ready.remove(session)
                yield self.grace(view, session, self._gives_way(view, session, "ladder.grace"), waiter)

    def _gives_way(self, view: FairSnapshot, session: Session, rule: str) -> Reason:
        return self._over_cap(view, session, rule, None, change="credit-is-back")

    def _reserved(self, view: FairSnapshot) -> list[tuple[Claim, Session]]:
        """Wide sessions in credit that have a reservation, and nobody who gives way to them."""
        found = []
        for claim in view.claims.values():
            waiter = claim.waiter
            if claim.kind is not Kind.WIDE or waiter is None or claim.victims:
                continue
            if not view.queue.out_of_credit(waiter.user):
                found.append((claim, waiter))
        return found

    def grace(self, view: FairSnapshot, session: Session, reason: Reason, waiter: Session | None) -> Decision:
        """Ask a session to save, for the nominated waiter or (None) for the headroom."""
        until = view.clock.now_ms + self.rungs.grace_ms
        if until > view.clock.now_ms:
            view.wake(until)
        step = _step(view, session, Action.GRACE, Ladder.GRACE, reason._replace(until_ms=until))
        return step._replace(other=waiter.id if waiter else None)

    # -- evict ---------------------------------------------------------------------------------------------------

    def evict(self, view: FairSnapshot) -> Iterator[Decision]:
        """Where the grace of everybody in a claim is over: test once more, then evict together or withdraw."""
        now = view.clock.now_ms
        for claim in list(view.claims.values()):
            graced = list(claim.victims)
            if not graced or any(session.state is State.STOPPING for session in graced):
                continue
            if not all(self._grace_over(session, now) and view.fresh(session) for session in graced):
                continue  # the host's next report calls again
            if not self._claim_stands(view, claim, graced):
                for session in graced:
                    yield self._withdraw(view, session)
                continue
            aside = self._lacking(view, claim, graced)
            for session in graced:
                yield self._evict(view, session, claim)._replace(set_aside=aside)
                aside = ()

    @staticmethod
    def _lacking(view: FairSnapshot, claim: Claim, victims: list[Session]) -> tuple[Allocation, ...]:
        """What the waiter needs of the free GPUs: kept from the moment of the eviction, while its victims leave."""
        if claim.waiter is None:
            return ()
        return view.cluster.lacking(claim.waiter.shape, [*claim.set_aside, *allocations_of(victims)])

    def _grace_over(self, session: Session, now_ms: int) -> bool:
        return session.acknowledged or session.ladder_since_ms + self.rungs.grace_ms <= now_ms

    def _claim_stands(self, view: FairSnapshot, claim: Claim, victims: list[Session]) -> bool:
        """Credit and contention, tested again: nobody is evicted for what is over by now."""
        waiter = claim.waiter
        if not all(releases(session, view) for session in victims):
            return False
        if claim.kind is Kind.RECLAIM:
            return still_due(view, self.params, claim)
        rights = view.queue.rights
        if not rights.may_give(victims, () if waiter is None else rights.of(waiter.user), view):
            return False
        if waiter is None:
            out = all(not session.user.in_credit for session in victims)
            return out and shortage(view, self.params).headroom_deficit_m >= 0
        if view.queue.cooling(waiter.user) or not claim_fits(view, self.params, claim, waiter, victims):
            return False  # who was evicted meanwhile makes nobody give way: two users would swap places
        if claim.kind is Kind.ROTATION:
            heavy = all(not s.user.in_credit or is_heavy(s, view.clock.now_ms, self.params) for s in victims)
            return heavy and Rotation(self.delta_gpu_h, view, victims).holds(waiter, 0, victims)
        return not view.queue.out_of_credit(waiter.user) and all(not session.user.in_credit for session in victims)

    def _evict(self, view: FairSnapshot, session: Session, claim: Claim) -> Decision:
        until = view.clock.now_ms + self.swap_ms
        waiter = claim.waiter
        if claim.kind is Kind.RECLAIM:
            reason = right_reason(view, "reclaim.evict", claim.waiter)  # no cooldown: it did nothing to be cooled for
        elif waiter is not None and claim.kind is Kind.ROTATION:
            mine, theirs = Rotation(self.delta_gpu_h, view, claim.victims).sides_gpu_h(waiter, 0, session)
            reason = Reason("ladder.evict-rotate", theirs, mine + self.delta_gpu_h, "gpu_h", until, "resubmit")
        else:
            rule = "ladder.evict" if waiter is not None else "ladder.evict-headroom"
            reason = self._over_cap(view, session, rule, until)._replace(change="resubmit")
        step = _step(
            view,
            session,
            Action.EVICT,
            Ladder.GRACE,
            reason,
        )
        return step._replace(other=waiter.id if waiter is not None else None)

    def _withdraw(self, view: FairSnapshot, session: Session) -> Decision:
        reason = self._over_cap(view, session, "ladder.withdraw", None)._replace(change="")
        below = Ladder.THROTTLE if session.granted_m < session.shape.fraction_m else Ladder.WARN
        return _step(view, session, Action.WITHDRAW, below, reason)

    # -- recover -------------------------------------------------------------------------------------------------

    def recover(self, view: FairSnapshot) -> Iterator[Decision]:
        """One level down for every `recover` without contention."""
        memory, now = view.memory, view.clock.now_ms
        if not view.warned or memory.calm_from_ms is None:
            return
        due = memory.calm_from_ms + self.rungs.recover_ms
        if due > now:
            view.wake(due)
            return
        memory.calm_from_ms = now
        for session in list(view.warned.values()):
            if session.ladder is Ladder.WARN:
                below = Ladder.NOTICE if session.user.noticed else Ladder.OK
                reason = self._over_cap(view, session, "ladder.recover", None)._replace(change="")
                yield _step(view, session, Action.RECOVER, below, reason)
            elif session.ladder is Ladder.THROTTLE:
                yield from self._grow(view, session)
        if view.warned:
            view.wake(now + self.rungs.recover_ms)

    def _grow(self, view: FairSnapshot, session: Session) -> Iterator[Decision]:
        """One throttle step back up, if the GPU still has the room; from full size the next step down is warn."""
        whole = session.shape.fraction_m
        granted = min(part_m for part_m in _parts_m(session) if part_m > session.granted_m)
        short = shortage(view, self.params)
        spare_m = short.coming_m - (granted - session.granted_m) - short.stock_m
        if (
            session.curbed_by
            or session.allocation is None
            or spare_m < 0
            or not view.cluster.may_grow(session.allocation, granted)
        ):
            return  # growing would make the next contention by itself, or there is no room
        ladder = Ladder.WARN if granted == whole else Ladder.THROTTLE
        reason = self._over_cap(view, session, "ladder.recover", None)._replace(change="")
        yield _step(view, session, Action.RECOVER, ladder, reason)._replace(granted_m=granted)


def _parts_m(session: Session) -> list[int]:
    """What a throttle may grant of a shared GPU, thousandths, largest first (rounded up, so never nothing)."""
    asked_m = session.shape.fraction_m
    return [-(-asked_m * quarters // 4) for quarters in QUARTERS]


def _smaller_m(session: Session) -> int | None:
    """The next smaller grant; None for whole GPUs and when there is none."""
    if session.shape.fraction_m == WHOLE_M:
        return None
    return next((part_m for part_m in _parts_m(session) if part_m < session.granted_m), None)


def _step(view: FairSnapshot, session: Session, action: Action, ladder: Ladder, reason: Reason) -> Decision:
    """A decision that moves one session on the ladder."""
    return Decision(view.clock.now_ms, action, session.id, session.user.name, reason, ladder)
