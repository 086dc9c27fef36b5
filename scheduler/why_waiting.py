"""Why a session waits, what it waits for, and what would start it at once; from the live state."""

from __future__ import annotations

from typing import TYPE_CHECKING

from policies.acceptable_use import PREFIX
from policies.baselines.arrival import LineQueue, by_duration
from policies.explain import block_words, gpu_h, refusal_words
from policies.headroom import keep_m
from policies.instead import charge_n, credit_back_ms, in_credit, instead, starts_now
from policies.limits import CHANGE_OF
from policies.model import HOUR_MS, NANO, WHOLE_M, Kind, State
from policies.order import FairQueue
from policies.placement import Cluster, HostSpec
from scheduler.why_calendar import closed_until, few, goes_first, kept_from, right_words
from scheduler.why_words import asked, count, options, reason, span, utc

if TYPE_CHECKING:
    from policies.group_credit import GroupCredit
    from policies.limits import Block
    from policies.model import Claim, Session, Shape
    from scheduler.core import Core
    from scheduler.ports import Row
    from scheduler.why_calendar import Kept


def waiting_reasons(core: Core, session: Session, place: tuple[int, int] | None, now_ms: int) -> list[Row]:
    """What it waits for first, then (where it applies) its cooldown, then its place.

    Args:
        session: queued.
        place: its position from 1, and how many wait; None = it is not in the order.
        now_ms: the instant of the question.
    """
    view, queue = core.view, core.queue
    if session in view.unplaceable:
        return [_refused(core, session)]
    if session.claim is not None:
        return [_nominated(core, session, session.claim)]
    if isinstance(queue, FairQueue):
        block = queue.limits.against(session.user, session.shape, view.clock.now_ms)
        if block is not None and block.rule == "limit.restricted" and session.user.restricted_rule:
            return [_restricted_by(core, session, block, now_ms)]
        if block is not None:
            return [_limited(session, block, f"may not start now: {block_words(block, utc)}")]
    found = [] if starts_now(view, core.params, session.user, session.shape) else [_not_now(core, session, now_ms)]
    if isinstance(queue, FairQueue):
        if queue.cooling(session.user):
            found.append(_cooldown(session))
        found.append(_place_by_credit(core, session, place, fits=not found))
    else:
        found.append(_place_in_line(core, session, place, fits=not found))
    return found


def _rule(core: Core, session: Session) -> str:
    """The rule by which it will start."""
    queue = core.queue
    if goes_first(core, session.user, session.shape):
        return "order.right"
    if isinstance(queue, FairQueue):
        return "order.in-credit" if in_credit(queue, session.user, session.shape) else "order.out-of-credit"
    return "order.duration" if isinstance(queue, LineQueue) and queue.key is by_duration else "order.arrival"


def _who(session: Session) -> str:
    return f"{session.id} of {session.user.name}"


# -- what it waits for -----------------------------------------------------------------------------------------------


def _limited(session: Session, block: Block, words: str) -> Row:
    """A limit keeps it from starting, whatever is free."""
    return reason(
        block.code,
        block.rule,
        f"{_who(session)} {words}",
        value=block.value,
        threshold=block.threshold,
        unit=block.unit,
        until_ms=block.until_ms,
        change=CHANGE_OF[block.rule],
    )


def _restricted_by(core: Core, session: Session, block: Block, now_ms: int) -> Row:
    """A rule of acceptable use has restricted its user: which, for how long in all, and how long it still lasts."""
    user, name = session.user, session.user.restricted_rule
    rule = next((one for one in core.params.rules if PREFIX + one.id == name), None)
    words = "" if rule is None else f": {rule.title}. {rule.message}"
    until = "it is pardoned" if block.until_ms is None else utc(block.until_ms)
    text = (
        f"{_who(session)} may not start now: the rule {name.removeprefix(PREFIX)} restricted {user.name} until {until}"
    )
    longest = max((step.for_ms or 0 for step in rule.steps), default=0) if rule is not None else 0
    return reason(
        block.code,
        name,
        f"{text}{words}" if words else f"{text}.",
        value=None if block.until_ms is None else max(0, block.until_ms - now_ms) / HOUR_MS,
        threshold=longest / HOUR_MS or None,
        unit="h",
        until_ms=block.until_ms,
        change="appeal",
    )


def _refused(core: Core, session: Session) -> Row:
    """About to be refused, with the next cycle."""
    fits = core.cluster.can_ever_fit(session.shape)
    block = core.queue.refusal(session.user, session.shape, asked=True) if fits else None
    if block is None:
        return _never_fits(core, session)
    return _limited(session, block, f"is refused: {refusal_words(block)}.")


def _never_fits(core: Core, session: Session) -> Row:
    have = core.cluster.total_m / WHOLE_M
    text = f"{_who(session)} can never run here: no choice among the cluster's {have:g} GPUs serves {_asks(session)}."
    return _with_suggestion(core, session, "NeverFits", "never-fits", text, threshold=have, otherwise="ask-for-less")


def _nominated(core: Core, session: Session, claim: Claim) -> Row:
    """Others give way to it: who, and until when at the latest."""
    value, set_aside = session.shape.amount_m / WHOLE_M, sum(part.amount_m for part in claim.set_aside) / WHOLE_M
    if claim.kind is Kind.WIDE and not claim.victims:
        text = (
            f"{_who(session)} has waited for {value:g} GPUs together: {set_aside:g} are kept for it by now, and so is "
            f"what becomes free."
        )
        return reason("NoFreeGpu", "order.reserve", text, value=value, threshold=set_aside, unit="gpu")
    grace_ms = core.params.ladder.grace_ms
    saving = [victim for victim in claim.victims if victim.state is not State.STOPPING]
    stopping = [victim.id for victim in claim.victims if victim.state is State.STOPPING]
    until = max((victim.ladder_since_ms + grace_ms for victim in saving), default=None)
    parts = [f"{', '.join(stopping)} {'is' if len(stopping) == 1 else 'are'} being stopped"] if stopping else []
    if until is not None:
        names = ", ".join(victim.id for victim in saving)
        parts.append(f"{names} may save until {utc(until)} at the latest")
    text = f"{_who(session)} is next: GPUs are being freed for it ({'; '.join(parts) or 'all of them by now'})."
    return reason("NoFreeGpu", "order.nominated", text, value=value, threshold=set_aside, unit="gpu", until_ms=until)


def _not_now(core: Core, session: Session, now_ms: int) -> Row:
    """It may not start now: for want of hosts, of the right GPUs, of free ones, or of free ones above the headroom."""
    closed = _closed_hosts(core, session.shape)
    if closed is not None:
        return _no_host(core, session, closed, now_ms)
    if core.cluster.fits(session.shape):
        kept = kept_from(core, session.user)
        if kept is not None and core.cluster.free_m - kept.amount_m < session.shape.amount_m:
            return _reserved(core, session, kept)
        return _headroom(core, session, kept)
    anything = session.shape._replace(gpu_type=None, memory_mib=None)
    code = "NoMatchingGpu" if core.cluster.fits(anything) else "NoFreeGpu"
    return _no_gpu(core, session, code)


def _closed_hosts(core: Core, shape: Shape) -> tuple[str, list[str]] | None:
    """('Draining' | 'HostLost', hosts): those that would have to be open for it ever to run; None = none need to."""
    view, cluster = core.view, core.cluster
    serving = [host for host in cluster.hosts.values() if host.kind.serves(shape)]
    opened = [host.spec for host in serving if host.available]
    if _ever(core, opened, shape):
        return None
    silent = [host.spec for host in serving if host.spec.name in view.stale_hosts]
    drained = [host.spec for host in serving if not host.available and host.spec not in silent]
    if _ever(core, opened + drained, shape):
        return "Draining", [spec.name for spec in drained]
    return "HostLost", [spec.name for spec in silent]


def _ever(core: Core, specs: list[HostSpec], shape: Shape) -> bool:
    return Cluster(tuple(specs), core.cluster.shared_limit).can_ever_fit(shape)


def _no_host(core: Core, session: Session, closed: tuple[str, list[str]], now_ms: int) -> Row:
    code, hosts = closed
    start = f"{_who(session)} waits: it asks for {_asks(session)}"
    opened = [host for host in core.cluster.hosts.values() if host.available and host.kind.serves(session.shape)]
    have = sum(host.spec.gpus for host in opened)
    if code == "Draining":
        shut = [host for host in hosts if host not in core.view.drained_hosts]
        window = closed_until(core, shut)
        if window is not None:
            drained = [host for host in hosts if host not in shut]
            more = f"; {few(drained)} {'is' if len(drained) == 1 else 'are'} drained" if drained else ""
            text = f"{start}, and {window.text}{more}."
            return _with_suggestion(core, session, code, "admin.plan", text, threshold=have, until_ms=window.until_ms)
        text = f"{start}, and {few(hosts)} {'is' if len(hosts) == 1 else 'are'} drained: nothing new is placed there."
        return _with_suggestion(core, session, code, "admin.drain", text, threshold=have, otherwise="resume-host")
    host = min(hosts, key=lambda name: core.hosts.reported_ms.get(name, now_ms))  # the one that is silent longest
    silent_ms = now_ms - core.hosts.reported_ms.get(host, now_ms)
    limit_ms = core.params.telemetry.stale_ms
    text = (
        f"{start}, and host {host} has not reported for {span(silent_ms)} (limit {span(limit_ms)}); "
        f"nothing new is placed there until it does. On the host: systemctl status fairtier-worker."
    )
    found = _with_suggestion(core, session, code, "host.lost", text, threshold=have)
    return found | {"value": silent_ms / 1000, "threshold": limit_ms / 1000, "unit": "s"}


def _reserved(core: Core, session: Session, kept: Kept) -> Row:
    """It would fit: what is free is kept for a reservation."""
    text = f"{_who(session)} waits: it asks for {_asks(session)}; {kept.words.text}."
    left = (core.cluster.free_m - kept.amount_m) / WHOLE_M
    until_ms = kept.words.until_ms
    return _with_suggestion(core, session, "NoFreeGpu", "order.right", text, threshold=left, until_ms=until_ms)


def _headroom(core: Core, session: Session, reserved: Kept | None) -> Row:
    """It would fit, and is out of credit: what is free is kept for requests in credit."""
    cluster, shape = core.cluster, session.shape
    kept_m = keep_m(core.view, core.params, shape.amount_m)
    free = cluster.free_m / WHOLE_M
    left = max(0, cluster.free_m - kept_m - (0 if reserved is None else reserved.amount_m)) / WHOLE_M
    text = (
        f"{_who(session)} waits: it asks for {_asks(session)} and is out of credit; of {count(free, 'free GPU')} "
        f"{kept_m / WHOLE_M:g} must stay free for requests in credit (headroom)."
    )
    text += "" if reserved is None else f" Of them, {reserved.words.text}."
    back = credit_back_ms(core.queue, session.user, shape) if isinstance(core.queue, FairQueue) else None
    if back is not None:
        text += f" It is in credit at {utc(back)} if nothing starts or ends."
    return _with_suggestion(core, session, "NoFreeGpu", _rule(core, session), text, threshold=left, until_ms=back)


def _no_gpu(core: Core, session: Session, code: str) -> Row:
    free, words = _free(core, session.shape)
    text = f"{_who(session)} waits: it asks for {_asks(session)}; {words}."
    told = sum(1 for other in core.view.warned.values() if other.user is not session.user)
    if told:
        text += f" {count(told, 'session')} of others {'has' if told == 1 else 'have'} been warned to give way."
    kept = kept_from(core, session.user)
    shut = closed_until(core, [name for name, host in core.cluster.hosts.items() if host.kind.serves(session.shape)])
    text += "".join(f" {words.text}." for words in (kept and kept.words, shut) if words)
    return _with_suggestion(core, session, code, _rule(core, session), text, threshold=free)


def _free(core: Core, shape: Shape) -> tuple[float, str]:
    """(GPUs free for this shape, the same in words): of its model, with its memory, on open hosts."""
    hosts = [host for host in core.cluster.hosts.values() if host.available and host.kind.serves(shape)]
    if shape.fraction_m < WHOLE_M:
        parts = [left[0] for host in hosts for left in host.shared.values()]
        parts += [WHOLE_M for host in hosts if host.free]
        most = max(parts, default=0) / WHOLE_M
        short = "" if most * WHOLE_M < shape.fraction_m else ", without the memory or not to be shared"
        return most, f"the most that is left of one GPU is {most:g}{short}"
    free = sum(len(host.free) for host in hosts)
    most = max((len(host.free) for host in hosts), default=0)
    kind = " of that kind" if shape.gpu_type is not None or shape.memory_mib is not None else ""
    words = f"{count(free, 'GPU')}{kind} {'is' if free == 1 else 'are'} free"
    return free, words + (f", but at most {most} on one host" if free >= shape.gpus else "")


def _asks(session: Session) -> str:
    return asked(session.shape)


def _with_suggestion(
    core: Core,
    session: Session,
    code: str,
    rule: str,
    text: str,
    *,
    threshold: float,
    until_ms: int | None = None,
    otherwise: str | None = None,
) -> Row:
    """A reason with GPUs asked against GPUs there are, and what could be asked for instead."""
    value = session.shape.amount_m / WHOLE_M
    other = instead(core.view, core.params, session)
    change = otherwise
    if other is not None:
        change = options(session.shape, other)
        text += f" Cancel it and submit the same with {change}: that starts now."
    return reason(code, rule, text, value=value, threshold=threshold, unit="gpu", until_ms=until_ms, change=change)


# -- its place -------------------------------------------------------------------------------------------------------


def _cooldown(session: Session) -> Row:
    user = session.user
    text = (
        f"{user.name} was evicted a short while ago: until {utc(user.cooldown_until_ms)} its sessions start on GPUs "
        f"above the headroom only, and make nobody give way."
    )
    return reason("Cooldown", "order.out-of-credit", text, until_ms=user.cooldown_until_ms)


def _front(session: Session, place: tuple[int, int] | None, *, fits: bool) -> str:
    """'s-1 is number 3 of 7 that wait'."""
    if place is None:
        return f"{session.id} is not in the order yet"
    start = f"{session.id} is number {place[0]} of {place[1]} that wait"
    return start + (" and fits: it starts in its turn, with the next cycle" if fits else "")


def _place_by_credit(core: Core, session: Session, place: tuple[int, int] | None, *, fits: bool) -> Row:
    """Its place follows from credit and standing: the figures that decide about credit."""
    queue, user, shape = core.queue, session.user, session.shape
    assert isinstance(queue, FairQueue)  # noqa: S101 - the caller has looked
    cap = queue.caps[user.tier]
    usage, committed = queue.clock.usage(user), (user.committed_n + charge_n(queue.params, shape)) / NANO
    credit, gap = in_credit(queue, user, shape), usage + committed - cap
    side = f"{gpu_h(gap)} past" if gap > 0 else f"{gpu_h(-gap)} below"
    text = (
        f"{_front(session, place, fits=fits)}. {user.name} is {'in' if credit else 'out of'} credit for it: "
        f"{gpu_h(usage)} GPU-h used and {gpu_h(committed)} committed with it, {side} the credit cap of {gpu_h(cap)}."
        f"{right_words(core, user, shape)}"
    )
    shared = queue.group_credits.of(user)
    if shared is not None and not shared.covers(queue.clock, charge_n(queue.params, shape)):
        text += f" {_shared(queue, shared)}"
    until = None
    if not credit:
        until = credit_back_ms(queue, user, shape)
        text += f" {_back(session, until)}"
    rule = "order.in-credit" if credit else "order.out-of-credit"
    return reason("Position", rule, text, value=usage + committed, threshold=cap, unit="gpu_h", until_ms=until)


def _shared(queue: FairQueue, shared: GroupCredit) -> str:
    usage, committed = queue.clock.usage(shared.node), shared.node.committed_n / NANO
    return (
        f"The users of group {shared.node.name} share a credit of {gpu_h(shared.cap_gpu_h)} GPU-h: {gpu_h(usage)} are "
        f"used and {gpu_h(committed)} committed."
    )


def _back(session: Session, until_ms: int | None) -> str:
    if until_ms is not None:
        return f"In credit at {utc(until_ms)} if nothing starts or ends."
    if session.user.held:
        return "In credit only after a session of its user has ended."
    return "A request of this size is never in credit here: it starts on GPUs above the headroom."


def _place_in_line(core: Core, session: Session, place: tuple[int, int] | None, *, fits: bool) -> Row:
    """Arrival orders: how many are in front, and whether they are passed over."""
    in_front = None if place is None else place[0] - 1
    policy = core.params.policy
    stops = isinstance(core.queue, LineQueue) and not core.queue.by_shape
    turn = fits and not (stops and in_front)
    text = f"{_front(session, place, fits=turn)}."
    if in_front and stops:
        text += f" The policy {policy} starts nobody before those in front."
    return reason("Position", _rule(core, session), text, value=in_front, threshold=0, unit="sessions")
