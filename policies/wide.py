"""Reservations of wide sessions: what becomes free is kept for one that needs several GPUs together.

Without that, smaller sessions that keep coming would take every GPU as it becomes free, and a session that needs four
at once could wait for ever. One waiter at a time has a reservation: it is nominated, and GPUs are set aside for it
until it fits. Whoever gives way to it meanwhile joins the same claim.
"""

from __future__ import annotations

from collections import Counter
from heapq import nlargest
from typing import TYPE_CHECKING

from policies.give_way import claim_fits
from policies.headroom import keep_m
from policies.model import WHOLE_M, Action, Allocation, Claim, Decision, Kind, Reason, Session, Shape

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from policies.lanes import Cell, Lane
    from policies.order import FairSnapshot
    from policies.params import Params
    from policies.placement import Cluster, _Class


class Wide:
    """Who has a reservation, and what is kept for it."""

    def __init__(self, params: Params) -> None:
        self._params = params
        self._after_ms = params.order.reserve_after_ms

    def keep(self, view: FairSnapshot) -> Iterator[Decision]:
        """Set aside what has become free for the waiter that has a reservation, or give the reservation up."""
        for claim in list(view.claims.values()):
            if claim.kind is Kind.WIDE and claim.waiter is not None and not claim.victims:
                if self._entitled(view, claim.waiter) and _open(view, claim, claim.waiter.shape):
                    yield from self._gather(view, claim.waiter, claim.set_aside)
                else:
                    waited_s = (view.clock.now_ms - claim.waiter.submit_ms) / 1000
                    reason = Reason("order.reservation-over", waited_s, None, "s")
                    waiter = claim.waiter
                    yield Decision(view.clock.now_ms, Action.WITHDRAW, waiter.id, waiter.user.name, reason)

    def begin(self, view: FairSnapshot) -> Iterator[Decision]:
        """Give a reservation to the first wide session that has waited long enough and does not fit."""
        if any(claim.kind is Kind.WIDE for claim in view.claims.values()):
            return
        cell = self._first(view)
        if cell is not None:
            yield from self._gather(view, cell.head(), ())

    def _first(self, view: FairSnapshot) -> Cell | None:
        """In credit, or with a right, whoever has waited longest; else the oldest of the bounded-wait band."""
        queue = view.queue
        wide = [lane for lane in queue.wide if lane.cells]
        if not wide:
            return None
        lanes = [lane for lane in wide if self._goes_first(view, lane) and not view.cluster.fits(lane.shape)]
        ages = [age for age in (lane.oldest() for lane in lanes) if age is not None]
        oldest = min(ages, default=None)
        if oldest is not None and self._due(view, oldest[0]):
            return oldest[-1]
        if not queue.band.cells:
            return None
        aged = queue.band.first([lane for lane in wide if not (lane.in_credit or self._starts(view, lane))])
        return aged if aged is not None and self._due(view, aged.head().submit_ms) else None

    def _due(self, view: FairSnapshot, submit_ms: int) -> bool:
        """Whether it has waited long enough by now; if not, come back when it has."""
        due_ms = submit_ms + self._after_ms
        if due_ms > view.clock.now_ms:
            view.wake(due_ms)
        return due_ms <= view.clock.now_ms

    @staticmethod
    def _goes_first(view: FairSnapshot, lane: Lane) -> bool:
        return lane.in_credit or (bool(lane.rights) and view.queue.rights.first(lane.rights, lane.amount_m) is not None)

    def _starts(self, view: FairSnapshot, lane: Lane) -> bool:
        """Out of credit it fits, and leaves the headroom."""
        left_m = view.cluster.free_m - lane.amount_m - view.queue.rights.kept_m(lane.rights)
        return left_m >= keep_m(view, self._params, lane.amount_m) and view.cluster.fits(lane.shape)

    def _entitled(self, view: FairSnapshot, waiter: Session) -> bool:
        """It would be given the reservation still."""
        queue, user = view.queue, waiter.user
        if queue.limits.against_nominated(user, view.clock.now_ms):
            return False
        if any(right.held_m <= right.amount_m for right in queue.rights.of(user)):
            return True
        if not self._over(view, waiter):
            return True
        in_band = waiter.submit_ms + self._params.order.max_wait_ms <= view.clock.now_ms
        return in_band and (waiter.by_band or not queue.band.has_turn(user))

    @staticmethod
    def _over(view: FairSnapshot, waiter: Session) -> bool:
        """Out of credit, or cooling down; what it asks counts as committed once it is nominated."""
        queue, user = view.queue, waiter.user
        asked = 0 if waiter.claim is not None else user.cells[waiter.shape].committed_n
        return queue.out_of_credit(user, asked)

    def _by_band(self, view: FairSnapshot, waiter: Session) -> bool:
        """Nothing but its long wait entitles it."""
        asked_m = 0 if waiter.claim is not None else waiter.shape.amount_m
        rights = view.queue.rights.of(waiter.user)
        return self._over(view, waiter) and all(right.held_m + asked_m > right.amount_m for right in rights)

    def _gather(self, view: FairSnapshot, waiter: Session, aside: Sequence[Allocation]) -> Iterator[Decision]:
        """Set aside what is free and of use to it; out of credit, never what the headroom needs."""
        shape, rights = waiter.shape, view.queue.rights
        claim = waiter.claim
        if claim is not None and claim_fits(view, self._params, claim, waiter):
            return
        free_m = view.cluster.free_m - rights.kept_m(rights.of(waiter.user))
        if self._over(view, waiter):
            free_m -= keep_m(view, self._params, shape.amount_m)
        more = gather(view.cluster, shape, aside, max(0, free_m) // WHOLE_M)
        if more:
            has = sum(allocation.amount_m for allocation in (*aside, *more)) / WHOLE_M
            rule = "order.reserve-waited" if self._by_band(view, waiter) else "order.reserve"
            reason = Reason(rule, has, shape.gpus, "gpu")
            yield Decision(view.clock.now_ms, Action.RESERVE, waiter.id, waiter.user.name, reason, set_aside=more)


def _open(view: FairSnapshot, claim: Claim, shape: Shape) -> bool:
    """No host of what is set aside has been closed, and of those like them there are enough for the shape."""
    hosts = [view.cluster.hosts[host] for allocation in claim.set_aside for host in allocation.hosts]
    kinds = _large_enough(view.cluster, shape)
    return all(host.available and host.kind in kinds for host in hosts)


def _large_enough(cluster: Cluster, shape: Shape) -> set[_Class]:
    """Kinds of which so many hosts are open that the shape would fit if they were empty."""
    open_hosts = Counter(host.kind for host in cluster.hosts.values() if host.available)
    return {kind for kind, hosts in open_hosts.items() if kind.serves(shape) and hosts * kind.size >= shape.gpus}


def gather(cluster: Cluster, shape: Shape, aside: Sequence[Allocation], most: int) -> tuple[Allocation, ...]:
    """Free GPUs that bring a wide shape nearer to fitting: on the hosts begun with, else on the freest.

    Args:
        shape: of whole GPUs.
        aside: what is set aside already.
        most: at most so many GPUs.
    """
    has: dict[str, int] = {}
    for allocation in aside:
        for name, gpus in allocation.parts:
            has[name] = has.get(name, 0) + len(gpus)
    kinds = _large_enough(cluster, shape)
    serving = [
        host
        for name, host in cluster.hosts.items()
        if host.kind in kinds and host.available and (host.free or name in has)
    ]
    begun = [host.kind for host in serving if host.spec.name in has]
    single = [host for host in serving if host.kind.size >= shape.gpus]
    if begun:
        serving = [host for host in serving if host.kind is begun[0]]
    elif single:
        serving = single
    elif serving:
        kind = max(serving, key=lambda host: (len(host.free), -host.index)).kind
        serving = [host for host in serving if host.kind is kind]
    if not serving:
        return ()
    size = serving[0].kind.size
    whole, rest = divmod(shape.gpus, size)
    targets = [size] * whole + ([rest] if rest else [])
    chosen = nlargest(
        len(targets),
        serving,
        key=lambda host: (host.spec.name in has, has.get(host.spec.name, 0) + len(host.free), -host.index),
    )
    chosen.sort(key=lambda host: (-has.get(host.spec.name, 0) - len(host.free), host.index))
    found = []
    for host, target in zip(chosen, targets, strict=False):
        count = min(target - has.get(host.spec.name, 0), len(host.free), most)
        if count > 0:
            most -= count
            found.append(Allocation(((host.spec.name, tuple(host.free[: -count - 1 : -1])),), WHOLE_M, 0))
    return tuple(found)
