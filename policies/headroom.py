"""The stock of GPUs kept free for requests in credit, and how much of it is missing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from policies.demand import MOST_LEAD_MS
from policies.model import WHOLE_M

if TYPE_CHECKING:
    from policies.lanes import Lane
    from policies.order import FairQueue, FairSnapshot
    from policies.params import Params
    from policies.rights import Right
    from policies.save_times import SaveTimes
    from policies.snapshot import Snapshot


STOCK_EVERY_MS = 900_000
"""A stock by goal is computed anew this often."""


def stock_m(view: Snapshot[Any], params: Params) -> int:
    """Headroom f, thousandths of a GPU: what the goal needs, or `fixed_gpus`; at most `max_fraction` of the pool."""
    headroom, goal_m = params.headroom, view.memory.stock_m
    wanted_m = round(headroom.fixed_gpus * WHOLE_M) if goal_m is None else goal_m
    most_m = int(view.cluster.total_m * headroom.max_fraction) // WHOLE_M * WHOLE_M
    return wanted_m if wanted_m < most_m else most_m  # noqa: FURB136 - called in every cycle, min() costs a third of it


def keep_m(view: Snapshot[Any], params: Params, amount_m: int) -> int:
    """What must stay free after an out-of-credit session of `amount_m` starts: `min(f, pool - its GPUs)`."""
    return min(stock_m(view, params), max(0, view.cluster.total_m - amount_m))


def set_stock(view: FairSnapshot, params: Params) -> None:
    """Compute the stock by goal, when that is due: requests within the lead time find a free GPU with `confidence`.

    The lead time is what refilling the stock takes: the warning and the time to save.
    """
    memory, now, confidence = view.memory, view.clock.now_ms, params.headroom.confidence
    if confidence is None:
        memory.stock_m = None
        return
    if memory.stock_due_ms <= now:
        memory.stock_due_ms = (now // STOCK_EVERY_MS + 1) * STOCK_EVERY_MS
        held_m = view.cluster.total_m - view.cluster.free_m
        lead_ms = min(lead_time_ms(params, view.queue.saves), MOST_LEAD_MS)
        memory.stock_m = view.queue.demand.goal_stock_gpus(now, lead_ms, max(0, held_m), confidence) * WHOLE_M
    if view.queue.waiting or view.queue.over or view.claims:  # with none of them, another stock would change nothing
        view.wake(memory.stock_due_ms)


def lead_time_ms(params: Params, saves: SaveTimes) -> int:
    """How long it takes from a shortage to a free GPU: the warning, then the time that saving takes, ms."""
    return params.ladder.warn_ms + saves.expected_ms(params.ladder.grace_ms)


class Shortage(NamedTuple):
    """What is asked for and missing, thousandths of a GPU.

    Attributes:
        asked_m: asked by waiters in credit, or with a right, that found no room; nominated ones included.
        stock_m: the headroom f, and what is reserved and not in use.
        coming_m: free, set aside, in grace or being stopped.
        uncovered_m: the part of `asked_m` that nobody gives way for yet.
        right_m: the part of `uncovered_m` that is asked with a right.
        reserved_m: the part of `stock_m` that is reserved.
    """

    asked_m: int
    stock_m: int
    coming_m: int
    uncovered_m: int
    right_m: int = 0
    reserved_m: int = 0

    @property
    def deficit_m(self) -> int:
        """`asked + f - free - in grace`; negative when more is coming than is missing."""
        return self.asked_m + self.stock_m - self.coming_m

    @property
    def headroom_deficit_m(self) -> int:
        """The deficit once the waiters that nobody gives way for are left out."""
        return self.deficit_m - self.uncovered_m

    @property
    def right_deficit_m(self) -> int:
        """What is missing for those with a right and for what is reserved, nominated waiters served first."""
        return self.asked_m - self.uncovered_m + self.right_m + self.reserved_m - self.coming_m

    @property
    def contention(self) -> bool:
        """Somebody in credit waits, or less than the headroom is free or coming."""
        return self.asked_m > 0 or self.coming_m < self.stock_m


def shortage(view: FairSnapshot, params: Params) -> Shortage:
    """The present shortage. Departures expected within the lead time are in the stock by goal."""
    cluster, waiting_m = view.cluster, view.queue.asked_m
    coming_m = cluster.free_m + view.set_aside_m + view.leaving_m
    missing_m = view.missing_m
    if view.queue.rights.none:
        return Shortage(waiting_m + view.claimed_m, stock_m(view, params), coming_m, waiting_m + missing_m)
    right_m, more_m, reserved_m = _by_right(view.queue)
    waiting_m += more_m
    stocked_m = stock_m(view, params) + reserved_m
    return Shortage(waiting_m + view.claimed_m, stocked_m, coming_m, waiting_m + missing_m, right_m, reserved_m)


def _by_class(lane: Lane) -> tuple[bool, tuple[tuple[str, int], ...], int, int, str, int]:
    """In credit first, then whatever tells lanes apart."""
    gpus, fraction_m, gpu_type, memory_mib = lane.shape
    rights = tuple((right.name, right.amount_m) for right in lane.rights)
    return not lane.in_credit, rights, gpus, fraction_m, gpu_type or "", memory_mib or 0


def _by_right(queue: FairQueue) -> tuple[int, int, int]:
    """(asked with a right, the part of it that is out of credit, reserved and neither in use nor asked for)."""
    right_m = more_m = 0
    left: dict[Right, int] = {}
    asking = [lane for lane in queue.lanes.values() if lane.rights and lane.cells]
    for lane in sorted(asking, key=_by_class):  # lanes are in no order that a restored core would have, too
        for right in lane.rights:
            left.setdefault(right, right.missing_m)
        best = max(lane.rights, key=lambda right: left[right])
        asked_m = min(lane.count, left[best] // lane.amount_m) * lane.amount_m
        left[best] -= asked_m
        right_m += asked_m
        more_m += 0 if lane.in_credit else asked_m
    return right_m, more_m, sum(left.get(right, right.missing_m) for right in queue.rights.counted())
