"""The stock of GPUs kept free for requests in credit, and how much of it is missing."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from policies.model import WHOLE_M

if TYPE_CHECKING:
    from policies.order import FairSnapshot
    from policies.params import Params


def stock_m(params: Params, pool_m: int) -> int:
    """Headroom f, thousandths of a GPU: `fixed_gpus`, at most `max_fraction` of the pool in whole GPUs."""
    headroom = params.headroom
    fixed_m = round(headroom.fixed_gpus * WHOLE_M)
    most_m = int(pool_m * headroom.max_fraction) // WHOLE_M * WHOLE_M
    return fixed_m if fixed_m < most_m else most_m  # noqa: FURB136 - called in every cycle, min() costs a third of it


def keep_m(params: Params, pool_m: int, amount_m: int) -> int:
    """What must stay free after an out-of-credit session of `amount_m` starts: `min(f, pool - its GPUs)`."""
    return min(stock_m(params, pool_m), max(0, pool_m - amount_m))


class Shortage(NamedTuple):
    """What is asked for and missing, thousandths of a GPU.

    Attributes:
        asked_m: asked by in-credit waiters that found no room, nominated ones included.
        stock_m: the headroom f.
        coming_m: free, set aside, in grace or being stopped.
        uncovered_m: the part of `asked_m` that nobody gives way for yet.
    """

    asked_m: int
    stock_m: int
    coming_m: int
    uncovered_m: int

    @property
    def deficit_m(self) -> int:
        """`asked + f - free - in grace`; negative when more is coming than is missing."""
        return self.asked_m + self.stock_m - self.coming_m

    @property
    def headroom_deficit_m(self) -> int:
        """The deficit once the waiters that nobody gives way for are left out."""
        return self.deficit_m - self.uncovered_m

    @property
    def contention(self) -> bool:
        """Somebody in credit waits, or less than the headroom is free or coming."""
        return self.asked_m > 0 or self.coming_m < self.stock_m


def shortage(view: FairSnapshot, params: Params) -> Shortage:
    """The present shortage. Departures expected within the lead time count as none until a rate is learned."""
    cluster, waiting_m = view.cluster, view.queue.asked_m
    coming_m = cluster.free_m + view.set_aside_m + view.leaving_m
    return Shortage(waiting_m + view.claimed_m, stock_m(params, cluster.total_m), coming_m, waiting_m)
