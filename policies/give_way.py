"""Who gives way: the order of victims, and the smallest set that makes room.

The figure that orders the queue is the figure that is compared here (`policies.standing`), and a set of victims is
tested as a whole before anybody is touched: where two figures were used, or only single victims tested, schedulers
have evicted in endless circles.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from policies.headroom import keep_m
from policies.model import WHOLE_M, Allocation, Claim, Kind, Ladder, Session, Shape, State
from policies.standing import standing

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


def room_for(
    shape: Shape, victims: Sequence[Session], view: FairSnapshot, spare_m: int, aside: Sequence[Allocation] = ()
) -> list[Session] | None:
    """The first victims, in order, whose GPUs make room for the shape, without those that turn out not to be needed.

    `spare_m` thousandths are left over; `aside` is set aside for it already. None when all of them together do not
    make room. On one pool of whole GPUs this is a count; with host boundaries the release is tried on the index and
    taken back.
    """
    all_m = sum([session.held_m for session in victims]) + sum([allocation.amount_m for allocation in aside])
    if view.cluster.free_m + all_m - shape.amount_m < spare_m:
        return None
    needed: list[Session] = []
    for session in victims:
        needed.append(session)
        if fits_without(shape, needed, view, spare_m, aside):
            return without_spare(shape, needed, view, spare_m, aside)
    return None


def counted_on_m(claim: Claim) -> int:
    """Thousandths of a GPU that a claim's waiter needs of what is free: it must not be counted on twice."""
    if claim.waiter is None or (claim.kind is Kind.WIDE and not claim.victims):
        return 0  # a reservation counts on what becomes free later
    aside_m = sum(allocation.amount_m for allocation in claim.set_aside)
    return needed_of_free_m(claim.waiter, claim.victims, aside_m)


def missing_m(claim: Claim) -> int:
    """What a waiter with a reservation lacks, thousandths of a GPU; 0 for claims that somebody gives way for."""
    if claim.kind is not Kind.WIDE or claim.waiter is None or claim.victims:
        return 0
    return max(0, claim.waiter.shape.amount_m - sum(allocation.amount_m for allocation in claim.set_aside))


def needed_of_free_m(waiter: Session, victims: Iterable[Session], aside_m: int = 0) -> int:
    """What a waiter asks beyond that which its victims hold and what is set aside for it, thousandths of a GPU."""
    return max(0, waiter.shape.amount_m - aside_m - sum(session.held_m for session in victims))


def without_spare(
    shape: Shape, needed: list[Session], view: FairSnapshot, spare_m: int, aside: Sequence[Allocation] = ()
) -> list[Session]:
    """The set without the members it does not need, those that would give way last tried first."""
    for session in needed[-2::-1]:
        rest = [other for other in needed if other is not session]
        if fits_without(shape, rest, view, spare_m, aside):
            needed = rest
    return needed


def fits_without(
    shape: Shape, sessions: Sequence[Session], view: FairSnapshot, spare_m: int, aside: Sequence[Allocation] = ()
) -> bool:
    """Whether the shape would fit if these sessions' GPUs were free, with `spare_m` thousandths left over."""
    gain_m = sum(session.held_m for session in sessions) + sum(allocation.amount_m for allocation in aside)
    left_m = view.cluster.free_m + gain_m - shape.amount_m
    if left_m < spare_m or (shape.fraction_m == WHOLE_M and left_m < 0):
        return False
    return view.cluster.fits_without(shape, [*aside, *allocations_of(sessions)])


def allocations_of(sessions: Iterable[Session]) -> list[Allocation]:
    """What sessions hold."""
    return [session.allocation for session in sessions if session.allocation is not None]


def claim_fits(
    view: FairSnapshot, params: Params, claim: Claim, waiter: Session, victims: Sequence[Session] = ()
) -> bool:
    """Whether a nominated waiter fits into what is free, set aside for it, and held by `victims`.

    Out of credit (what it asks is counted as committed already) it has to leave the headroom free, like any other,
    until somebody is evicted for it.
    """
    cluster, user, amount_m = view.cluster, waiter.user, waiter.shape.amount_m
    freed = [*claim.set_aside, *allocations_of(victims)]
    rights = view.queue.rights
    over = claim.kind is not Kind.RECLAIM and view.queue.out_of_credit(user)
    if (over or not rights.none) and not claim.promised:
        left_m = cluster.free_m + sum(allocation.amount_m for allocation in freed) - amount_m
        kept_m = rights.kept_m(rights.of(user))
        if left_m < kept_m + (keep_m(view, params, amount_m) if over else 0):
            return False
    return cluster.fits_without(waiter.shape, freed)


def releases(session: Session, view: FairSnapshot) -> bool:
    """Its hosts' telemetry is fresh, and what it gives up could be given to others (no host of it is closed)."""
    if not (view.stale_hosts or view.drained_hosts or view.maintained_hosts):
        return True
    hosts = session.allocation.hosts if session.allocation is not None else ()
    closed = view.stale_hosts | view.drained_hosts | view.maintained_hosts
    return closed.isdisjoint(hosts)


def may_give_way(session: Session, view: FairSnapshot) -> bool:
    """Running, not on its way out already, and of use to others."""
    running = session.state is State.RUNNING or session.state is State.STARTING
    if not running or session.ladder is Ladder.GRACE or session.claim is not None:
        return False
    return releases(session, view)
