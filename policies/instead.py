"""What a waiting session could ask for instead and start at once: the one change that would help it.

Tested on the view with the same questions that the policies ask; nothing is promised that the next cycle would not do
if it came at this instant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from policies.baselines.arrival import LineQueue
from policies.headroom import keep_m
from policies.model import NANO, WHOLE_M, Session, Shape, State, User
from policies.order import FairQueue
from policies.usage import NEVER_MS, committed_n

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from policies.params import Params
    from policies.rights import Held
    from policies.snapshot import Snapshot, WaitingQueue

STEP_M = 50
"""Fractions are suggested in twentieths of a GPU."""

GIB_MIB = 1024


def charge_n(params: Params, shape: Shape) -> int:
    """Committed charge of a session of this shape while it waits, nano GPU-h."""
    return committed_n(shape, shape.fraction_m, params.weight(shape.gpu_type), params.ladder.min_run_ms)


def in_credit(queue: FairQueue, user: User, shape: Shape) -> bool:
    """Whether a session of this shape, if the user asked for it now, would count as in credit."""
    return not queue.out_of_credit(user, charge_n(queue.params, shape))


def credit_back_ms(queue: FairQueue, user: User, shape: Shape) -> int | None:
    """When a waiting session of this shape is in credit again if nothing starts or ends; None = never by itself.

    Its user's usage has to fall to the cap less what is committed, at the present charge rate, and a cooldown to end.
    """
    clock = queue.clock
    level = queue.caps[user.tier] - (user.committed_n + charge_n(queue.params, shape)) / NANO
    at_ms = clock.now_ms
    if clock.usage(user) > level:
        wait_ms = clock.time_to_reach(user, level) if level > user.steady else NEVER_MS
        if wait_ms == NEVER_MS:
            return None
        at_ms += wait_ms
    elif user.steady > level and queue.cooling(user):
        return None  # the credit will be gone when the cooldown ends, or soon after
    shared = queue.group_credits.of(user)
    if shared is not None:
        back_ms = shared.back_ms(clock, charge_n(queue.params, shape))
        if back_ms == NEVER_MS:
            return None
        at_ms = max(at_ms, back_ms)
    return max(at_ms, user.cooldown_until_ms) if queue.cooling(user) else at_ms


def instead(view: Snapshot[WaitingQueue], params: Params, session: Session) -> Shape | None:
    """Another shape that starts in the next cycle if the session is cancelled and its user asks for that; None = none.

    One thing changed where possible, the mildest first: another model, less memory (at least half), fewer GPUs, then a
    part of one GPU. None as well while something else is about to start: what is free now may be gone then.
    """
    if _busy(view, params, session):
        return None
    return next(_starting(view, params, session), None)


def starts_now(view: Snapshot[WaitingQueue], params: Params, user: User, shape: Shape) -> bool:
    """Whether a session of this shape would start in the next cycle if nobody came before it."""
    queue = view.queue
    if not isinstance(queue, FairQueue):
        return view.cluster.free_m >= shape.amount_m and view.cluster.fits(shape)
    now_ms = view.clock.now_ms
    if queue.limits.against(user, shape, now_ms) or queue.limits.refusal(user, shape, 0):
        return False
    return _may_start(view, params, shape, queue.rights.of(user), credit=in_credit(queue, user, shape))


def _busy(view: Snapshot[WaitingQueue], params: Params, session: Session) -> bool:
    """Somebody else is about to start, or (in a line that stops) would come first."""
    queue, cluster = view.queue, view.cluster
    if isinstance(queue, FairQueue):
        if view.missing_m or _reserving(queue, params):
            return True
        return any(
            lane.cells and _may_start(view, params, lane.shape, lane.rights, credit=lane.in_credit)
            for lane in queue.lanes.values()
        )
    if not isinstance(queue, LineQueue):
        return True
    if not queue.by_shape:
        return queue.waiting > (0 if session in view.unplaceable or session.state is not State.QUEUED else 1)
    shapes = [line[0][2].shape for line in queue.lines.values() if any(e[2].state is State.QUEUED for e in line)]
    return any(cluster.fits(shape) for shape in shapes)


def _reserving(queue: FairQueue, params: Params) -> bool:
    """A wide session has waited so long that what is free may be kept for it."""
    since_ms = queue.clock.now_ms - params.order.reserve_after_ms
    ages = [lane.oldest() for lane in queue.wide if lane.cells]
    return any(age is not None and age[0] <= since_ms for age in ages)


def _may_start(view: Snapshot[WaitingQueue], params: Params, shape: Shape, rights: Held, *, credit: bool) -> bool:
    """Whether the first session of such a lane would start: as `FairShare` asks (`policies.decide`)."""
    cluster, queue = view.cluster, view.queue
    assert isinstance(queue, FairQueue)  # noqa: S101 - the callers have looked
    left_m = cluster.free_m - shape.amount_m - queue.rights.kept_m(rights)
    if left_m < 0 or not cluster.fits(shape):
        return False
    if credit or queue.rights.first(rights, shape.amount_m) is not None:
        return True
    return left_m >= keep_m(view, params, shape.amount_m)


def _starting(view: Snapshot[WaitingQueue], params: Params, session: Session) -> Iterator[Shape]:
    shape = session.shape

    def starts(other: Shape) -> bool:
        return starts_now(view, params, session.user, other)

    if shape.gpu_type is not None:
        models = sorted(model for model in view.cluster.weight_models() if model is not None)
        yield from (other for model in models if starts(other := shape._replace(gpu_type=model)))
    yield from _less_memory(shape, starts)
    yield from _fewer_gpus(shape, starts)


def _less_memory(shape: Shape, starts: Callable[[Shape], bool]) -> Iterator[Shape]:
    """The most memory, at least half of what was asked, in whole GiB where it is more than one."""
    asked = shape.memory_mib
    if asked is None:
        return
    most = _largest(-(-asked // 2), asked - 1, lambda mib: starts(shape._replace(memory_mib=mib)))
    if most is not None:
        rounded = most // GIB_MIB * GIB_MIB
        yield shape._replace(memory_mib=rounded if 2 * rounded >= asked else most)


def _fewer_gpus(shape: Shape, starts: Callable[[Shape], bool]) -> Iterator[Shape]:
    """The most whole GPUs that start; where not even one does, the largest part of one."""
    if shape.fraction_m == WHOLE_M:
        most = _largest(1, shape.gpus - 1, lambda gpus: starts(shape._replace(gpus=gpus)))
        if most is not None:
            yield shape._replace(gpus=most)
    one = shape._replace(gpus=1)
    steps = (shape.fraction_m - 1) // STEP_M
    part = _largest(1, steps, lambda step: starts(one._replace(fraction_m=step * STEP_M)))
    if part is not None:
        yield one._replace(fraction_m=part * STEP_M)


def _largest(low: int, high: int, holds: Callable[[int], bool]) -> int | None:
    """The largest n in low..high for which `holds` is true, if it is true for all smaller ones too; None = none."""
    if low > high or not holds(low):
        return None
    while low < high:
        middle = (low + high + 1) // 2
        if holds(middle):
            low = middle
        else:
            high = middle - 1
    return low
