"""The fair-share policy: who starts, who is told, who gives way, composed from the rules of this package.

`FairShare.decide` is the whole of it, in the order in which things happen within a cycle.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from policies.bounded_wait import EVERY
from policies.give_way import claim_fits
from policies.headroom import set_stock, shortage, stock_m
from policies.ladder import LoadLadder
from policies.limits import CHANGE_OF
from policies.maintenance import clear_hosts
from policies.model import HOUR_MS, NANO, WHOLE_M, Action, Claim, Decision, Kind, Ladder, Reason, Session
from policies.order import FairQueue
from policies.reclaim import Reclaim
from policies.standing import auto_baseline, credit_cap_gpu_h
from policies.tracks import Tracks
from policies.turns import Turns
from policies.wide import Wide

if TYPE_CHECKING:
    from collections.abc import Iterator

    from policies.lanes import Candidate, Cell, Lane
    from policies.order import FairSnapshot
    from policies.params import Params
    from policies.snapshot import Snapshot, WaitingQueue
    from policies.usage import DecayClock

WEEK_MS, DAY_MS = 168 * HOUR_MS, 24 * HOUR_MS


class FairShare:
    """Fair share by measured use, with the load ladder."""

    def __init__(self, params: Params) -> None:
        self.params = params
        self.ladder = LoadLadder(params)
        self.turns = Turns(self.ladder)
        self.reclaim = Reclaim(self.ladder)
        self.wide = Wide(params)
        self.tracks = Tracks(params)
        self.tracked = self.tracks.on
        self._auto = any(params.tier(name).baseline_gpus is None for name in (*params.tiers, ""))

    def make_queue(self, clock: DecayClock) -> FairQueue:
        """A queue in Fair Tree order."""
        return FairQueue(clock, self.params)

    def decide(self, view: Snapshot[WaitingQueue]) -> Iterator[Decision]:
        """The decisions of one cycle."""
        assert isinstance(view.queue, FairQueue)  # noqa: S101 - the core pairs a policy with its own queue
        return self._decide(cast("FairSnapshot", view))

    def _decide(self, view: FairSnapshot) -> Iterator[Decision]:
        # 1. What has to end, and what the rest of the cycle counts with.
        yield from self._keep_house(view)
        # 2. Nominated waiters take what was freed for them, wide ones keep what is free; then everybody else, in order.
        if view.claims:
            yield from self._seat(view)
            yield from self.wide.keep(view)
        if view.queue.waiting and view.cluster.free_m:
            yield from self.wide.begin(view)
        yield from self._admit(view)
        # 3. Where grace is over, evict or withdraw; what that returns to the queue is looked at at once.
        if view.claims:
            yield from self.ladder.evict(view)
            yield from self._admit(view)
        # 4. Tell those whose credit runs low.
        if view.queue.touched:
            yield from self.ladder.notices(view)
        # 5. Without contention the ladder goes no further, and what it did is taken back step by step.
        short = shortage(view, self.params)
        pairs = self.turns.pairs(view, short) if view.queue.waiting and view.holders else []
        if not self.ladder.contended(view, short, rotating=bool(pairs)):
            if view.warned:
                yield from self.ladder.recover(view)
            return
        if view.idlers:
            yield from self.tracks.end_idle(view)
            short = shortage(view, self.params)
        # 6. Under contention: end what is idle; warn, shrink, give grace, evict, each after the one before has run.
        yield from self.ladder.warn(view, short)
        reclaims = self.reclaim.pairs(view, short)
        if view.warned or pairs or reclaims or short.reserved_m:
            yield from self.ladder.throttle(view)
            yield from self._admit(view)
            yield from self.ladder.claim(view)
            yield from self.reclaim.take(view, reclaims)
            yield from self.turns.take(view, pairs)
            yield from self._admit(view)
            yield from self.ladder.evict(view)

    def _keep_house(self, view: FairSnapshot) -> Iterator[Decision]:
        """Refuse what could never run, end what outlived its time or its host, move baselines and headroom when due."""
        if view.unplaceable or view.lost_hosts:
            yield from reject_unplaceable(view)
            yield from lose_silent(view)
        if self.tracked:
            yield from self.tracks.follow(view)
        if view.calendar.entries:
            yield from clear_hosts(view)
        if self._auto:
            if view.memory.baseline_due_ms <= view.clock.now_ms:
                self._move_baselines(view)
            if view.queue.waiting or view.holders:
                view.wake(view.memory.baseline_due_ms)
        set_stock(view, self.params)

    # -- baselines -----------------------------------------------------------------------------------------------

    def _move_baselines(self, view: FairSnapshot) -> None:
        """Automatic baselines: hourly during the first 7 days, by the users seen so far; then daily, 10 % at most."""
        memory, now = view.memory, view.clock.now_ms
        if memory.first_ms is None:
            memory.first_ms = now
        young = now - memory.first_ms < WEEK_MS
        memory.baseline_due_ms = now + (HOUR_MS if young else DAY_MS)
        counts: dict[str, int] = {}
        for user in view.users.values():
            if young or user.held or user.cells or now - user.active_ms <= WEEK_MS:
                counts[user.tier] = counts.get(user.tier, 0) + 1
        changed = False
        for tier, users in counts.items():
            if self.params.tier(tier).baseline_gpus is None:
                before = None if young else memory.baselines.get(tier)
                baseline = auto_baseline(view.cluster.total_m / WHOLE_M, users, before)
                changed |= memory.baselines.get(tier) != baseline
                memory.baselines[tier] = baseline
                view.queue.caps[tier] = credit_cap_gpu_h(baseline, view.clock)
        if changed:
            view.queue.caps_changed()

    # -- admission -----------------------------------------------------------------------------------------------

    def _seat(self, view: FairSnapshot) -> Iterator[Decision]:
        """Nominated waiters that fit into what is free and set aside for them, oldest claim first."""
        for claim in list(view.claims.values()):
            waiter = claim.waiter
            if waiter is None:
                continue
            if claim_fits(view, self.params, claim, waiter):
                self._count_start(view)
                yield self._seat_one(view, claim, waiter)
            elif not claim.victims and claim.kind is not Kind.WIDE:
                reason = Reason("order.nomination-over", (view.clock.now_ms - waiter.submit_ms) / 1000, None, "s")
                yield Decision(view.clock.now_ms, Action.WITHDRAW, waiter.id, waiter.user.name, reason)

    @staticmethod
    def _seat_one(view: FairSnapshot, claim: Claim, waiter: Session) -> Decision:
        reason = Reason("order.nominated", (view.clock.now_ms - waiter.submit_ms) / 1000, None, "s")
        allocation = view.cluster.place_without(waiter.shape, claim.set_aside)
        return Decision(view.clock.now_ms, Action.START, waiter.id, waiter.user.name, reason, Ladder.OK, allocation)

    def _admit(self, view: FairSnapshot) -> Iterator[Decision]:
        """Start waiting sessions in order for as long as something fits."""
        queue = view.queue
        while queue.waiting and view.cluster.free_m:
            # Every start may move its user's other sessions to another lane: look at the lanes anew.
            first, in_credit, others = self._lanes_that_fit(view)
            aged = None if first else self._by_band(view, in_credit, others)
            if aged is not None:
                yield self._start_aged(view, aged)
                continue
            best = queue.best(first or (in_credit or others if queue.fair else in_credit + others))
            if best is None:
                return
            self._count_start(view)
            yield self._start(view, best)

    @staticmethod
    def _count_start(view: FairSnapshot) -> None:
        memory = view.memory
        if memory.since_band:
            memory.since_band -= 1

    def _by_band(self, view: FairSnapshot, in_credit: list[Lane], others: list[Lane]) -> Cell | None:
        """Whoever has waited so long that it starts now; never from the headroom, never two of four starts."""
        band, memory = view.queue.band, view.memory
        if not band.cells or memory.since_band:
            return None
        free_m, total_m, f_m = view.cluster.free_m, view.cluster.total_m, stock_m(view, self.params)
        kept_m = view.queue.rights.kept_m
        lanes = [
            lane
            for lane in in_credit
            if free_m - lane.amount_m - kept_m(lane.rights) >= min(f_m, total_m - lane.amount_m)
        ]
        return band.first([*lanes, *others])

    @staticmethod
    def _start_aged(view: FairSnapshot, cell: Cell) -> Decision:
        view.memory.since_band = EVERY - 1
        head, now = cell.head(), view.clock.now_ms
        limit_s = view.queue.params.order.max_wait_ms / 1000
        reason = Reason("order.waited-long", (now - head.submit_ms) / 1000, limit_s, "s")
        allocation = view.cluster.place(cell.shape)
        return Decision(now, Action.START, head.id, cell.user.name, reason, Ladder.OK, allocation)

    def _lanes_that_fit(self, view: FairSnapshot) -> tuple[list[Lane], list[Lane], list[Lane]]:
        """(with a right, in credit, out of credit): lanes whose sessions may start now.

        What others have reserved has to stay free after the start, and out of credit, without a right, at least
        `min(f, pool - its GPUs)` as well.
        """
        cluster, rights = view.cluster, view.queue.rights
        free_m, total_m = cluster.free_m, cluster.total_m
        f_m = stock_m(view, self.params)
        first: list[Lane] = []
        in_credit: list[Lane] = []
        others: list[Lane] = []
        for lane in view.queue.lanes.values():
            if not lane.cells:  # most are: they are kept for the next session like their last
                continue
            left_m = free_m - lane.amount_m
            if left_m < 0:
                continue
            if not rights.none:
                left_m -= rights.kept_m(lane.rights)
                if left_m < 0:
                    continue
            if lane.rights and rights.first(lane.rights, lane.amount_m) is not None:
                if cluster.fits(lane.shape):
                    first.append(lane)
            elif lane.in_credit:
                if cluster.fits(lane.shape):
                    in_credit.append(lane)
            elif left_m >= min(f_m, total_m - lane.amount_m) and cluster.fits(lane.shape):
                others.append(lane)
        return [lane for lane in first if lane.in_credit] or first, in_credit, others

    @staticmethod
    def _start(view: FairSnapshot, best: Candidate) -> Decision:
        cell, rights = best.cell, view.queue.rights
        right = None if rights.none else rights.first(rights.of(cell.user), cell.amount_m)
        if right is not None:
            numbers = (("held_gpus", right.held_m / WHOLE_M),)
            reason = Reason("order.right", cell.amount_m / WHOLE_M, right.amount_m / WHOLE_M, "gpu", numbers=numbers)
            allocation = view.cluster.place(cell.shape)
            return Decision(
                view.clock.now_ms, Action.START, best.session_id, cell.user.name, reason, Ladder.OK, allocation
            )
        rule = "order.in-credit" if cell.in_credit else "order.out-of-credit"
        usage = view.clock.usage(cell.user) + (cell.user.committed_n + cell.committed_n) / NANO
        reason = Reason(rule, usage, view.queue.caps[cell.user.tier], "gpu_h")
        allocation = view.cluster.place(cell.shape)
        return Decision(view.clock.now_ms, Action.START, best.session_id, cell.user.name, reason, Ladder.OK, allocation)


def reject_unplaceable(view: Snapshot[WaitingQueue]) -> Iterator[Decision]:
    """Refuse sessions that would not fit on an empty cluster, with what the cluster has, or that a limit forbids."""
    for session in list(view.unplaceable):
        fits = view.cluster.can_ever_fit(session.shape)
        block = view.queue.refusal(session.user, session.shape, asked=True) if fits else None
        if block is not None:
            reason = Reason(block.rule, block.value, block.threshold, block.unit, change=CHANGE_OF[block.rule])
        else:
            have = view.cluster.total_m / WHOLE_M
            reason = Reason("never-fits", session.shape.amount_m / WHOLE_M, have, "gpu", change="ask-for-less")
        yield Decision(view.clock.now_ms, Action.REJECT, session.id, session.user.name, reason)


def lose_silent(view: Snapshot[WaitingQueue]) -> Iterator[Decision]:
    """Close the sessions of hosts that have been silent for longer than `lost`."""
    if not view.lost_hosts:
        return
    for session in list(view.holders.values()):
        if session.allocation is not None and not view.lost_hosts.isdisjoint(session.allocation.hosts):
            reason = Reason("host.lost", change="submit-again")
            yield Decision(view.clock.now_ms, Action.LOSE, session.id, session.user.name, reason)
