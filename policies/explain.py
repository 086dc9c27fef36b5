"""Decisions in words: what happens to whom, the numbers, until when, and what would change it.

The texts hold no facts of their own: every figure is in the decision.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from policies.acceptable_use import ACTIONS, PREFIX, known_rule
from policies.model import Action, Decision

if TYPE_CHECKING:
    from collections.abc import Mapping

    from policies.limits import Block
    from policies.model import Allocation, Reason

Clock = Callable[[int], str]
"""How a time in ms is shown."""

CHANGES: Mapping[str, str] = {
    "pause-or-finish": "Pause or finish to avoid it; idle time costs half, and past use fades by itself.",
    "credit-is-back": "Ends by itself when the credit is back or nobody waits any more.",
    "resubmit": "Save and submit again: it waits for capacity above the headroom.",
    "submit-again": "Submit it again; what was saved is in its folder.",
    "ask-for-less": "Ask for fewer GPUs, less memory or another model.",
    "end-another": "Ends when another session of the same user has ended, or with a smaller request.",
    "others-of-group": "Ends when a session of the same group has ended, or with a smaller request.",
    "fewer-waiting": "Submit it again when fewer sessions of the same user wait.",
    "other-model": "Ask for one of the GPU models of the tier.",
    "wait-for-quota": "What runs may go on; what was held falls out of the window by itself.",
    "ask-operator": "An operator ends it: fairtier user pardon.",
    "save-and-resubmit": "Save before that and submit it again: it waits in its turn.",
    "save-maintenance": "Save before that; it may be submitted again and placed on another host.",
    "resubmit-maintenance": "Submit it again: it is placed on another host, or waits.",
    "resubmit-lifetime": "Submit it again: it waits in its turn.",
    "resubmit-idle": "Submit it again when the GPU is needed.",
    "save-now": "Save before that; it cannot be extended any further.",
    "extend": "Whoever still needs it extends it: fairtier extend.",
    "use-or-extend": "Any GPU work, or fairtier extend, ends this.",
    "unhold": "It keeps its place and waits again once an operator lets it go: fairtier unhold.",
    "appeal": "Is this wrong? Appeal: fairtier appeal file.",
    "use-stop": "Whoever stops it before then has nothing to fear. Is this wrong? Appeal: fairtier appeal file.",
    "use-ends": "Whoever stops it before then keeps the session. Is this wrong? Appeal: fairtier appeal file.",
    "use-stays": "It may stay: that is not seen any more, or its user is on an allow-list.",
    "use-over": "That is not seen any more, or its user is on an allow-list, or the rule is gone.",
    "use-observed": "Recorded only; nobody is told.",
    "use-allowed": "Recorded only: its user is on an allow-list.",
    "use-whole-gpu": "Recorded only: whole GPUs are not throttled.",
    "use-shadow": "Recorded only: the rule is on trial (shadow).",
    "use-waits": "It stays until a second, independent signal is seen, or a person says so: fairtier evict.",
    "use-person": "It stays until a person says so: fairtier evict.",
    "resume-host": "It can be placed there again once an operator opens the host: fairtier host resume.",
}


def day_clock(at_ms: int) -> str:
    """Virtual time as day and time of day, from day 0; to the second, rounded down."""
    minutes, second = divmod(at_ms // 1000, 60)
    hours, minute = divmod(minutes, 60)
    day, hour = divmod(hours, 24)
    return f"day {day} {hour:02}:{minute:02}:{second:02}"


def gpu_h(amount: float) -> str:
    """GPU-hours for people: two decimals, small amounts (a demo's, a first minute's) four."""
    return f"{amount:.4f}" if 0 < abs(amount) < 0.1 else f"{amount:.2f}"


def sentence(decision: Decision, clock: Clock = day_clock) -> str:
    """One decision for people."""
    text = _TEXTS.get(known_rule(decision.reason.rule))
    body = text(decision, clock) if text is not None else f"{decision.action} ({decision.reason.rule})"
    change = CHANGES.get(decision.reason.change)
    return f"{clock(decision.at_ms)}  {decision.session} of {decision.user}: {body}" + (f" {change}" if change else "")


def gpus_of(allocation: Allocation | None) -> str:
    """GPUs in words: 'gpu-07 GPU 3, 5'."""
    if allocation is None:
        return "GPUs"
    parts = []
    for host, gpus in allocation.parts:
        shown = ", ".join(map(str, gpus[:4])) + (f" and {len(gpus) - 4} more" if len(gpus) > 4 else "")
        parts.append(f"{host} GPU {shown}")
    return "; ".join(parts)


def _until(decision: Decision, clock: Clock) -> str:
    return "at once" if decision.reason.until_ms is None else clock(decision.reason.until_ms)


def _use(decision: Decision) -> str:
    """'11.90 GPU-h used, 3.24 past the credit cap of 8.66'."""
    value, cap = decision.reason.value or 0.0, decision.reason.threshold or 0.0
    side = f"{gpu_h(value - cap)} past" if value > cap else f"{gpu_h(cap - value)} below"
    return f"{gpu_h(value)} GPU-h used, {side} the credit cap of {gpu_h(cap)}"


def _number(decision: Decision, name: str) -> float:
    return dict(decision.reason.numbers).get(name, 0.0)


def _started(why: str) -> Callable[[Decision, Clock], str]:
    def text(decision: Decision, clock: Clock) -> str:
        del clock
        reason = decision.reason
        figures = ""
        if reason.value is not None and reason.threshold is not None:
            figures = f" ({gpu_h(reason.value)} GPU-h used and committed, credit cap {gpu_h(reason.threshold)})"
        return f"starts on {gpus_of(decision.allocation)}: {why}{figures}."

    return text


def _plain(words: str) -> Callable[[Decision, Clock], str]:
    def text(decision: Decision, clock: Clock) -> str:
        del decision, clock
        return words

    return text


def _notice(decision: Decision, clock: Clock) -> str:
    cap = _number(decision, "cap_gpu_h")
    gone = f"; at the present rate it is gone at {_until(decision, clock)}" if decision.reason.until_ms else ""
    if decision.reason.change == "credit-is-back":
        return f"credit has recovered ({gpu_h(decision.reason.value or 0)} GPU-h used)."
    value = decision.reason.value or 0.0
    if value > cap:
        return f"credit is used up: {gpu_h(value)} of {gpu_h(cap)} GPU-h used. Nothing is taken while nobody waits."
    return f"credit runs low: {gpu_h(value)} of {gpu_h(cap)} GPU-h used{gone}. Nothing is taken while nobody waits."


def _warned(decision: Decision, clock: Clock) -> str:
    gpus, waiting = _number(decision, "deficit_gpus"), _number(decision, "waiting")
    missing = "1 GPU is" if gpus == 1 else f"{gpus:g} GPUs are"
    need = f"{missing} missing and {waiting:g} {'session waits' if waiting == 1 else 'sessions wait'}"
    return f"has to give way from {_until(decision, clock)} on: {_use(decision)}, {need}."


def _graced(decision: Decision, clock: Clock) -> str:
    whom = f"for {decision.other}" if decision.other else "for the headroom"
    return f"is asked to save and gives way {whom} at {_until(decision, clock)}: {_use(decision)}."


def _evicted(decision: Decision, clock: Clock) -> str:
    whom = f"for {decision.other}" if decision.other else "to refill the headroom"
    return f"gives way {whom}: {_use(decision)}. Until {_until(decision, clock)} its user makes nobody give way."


def _standing(decision: Decision) -> str:
    """'its side stands at 21.40 GPU-h, 0.90 more than the waiter's and the threshold'."""
    value, limit = decision.reason.value or 0.0, decision.reason.threshold or 0.0
    return f"its side stands at {gpu_h(value)} GPU-h, {gpu_h(value - limit)} more than the waiter's and the threshold"


def _turn_warned(decision: Decision, clock: Clock) -> str:
    return f"its turn ends at {_until(decision, clock)}: {_standing(decision)}."


def _turn_graced(decision: Decision, clock: Clock) -> str:
    return f"is asked to save; {decision.other} has its turn at {_until(decision, clock)}: {_standing(decision)}."


def _turn_ended(decision: Decision, clock: Clock) -> str:
    cooled = f"Until {_until(decision, clock)} its user makes nobody give way."
    return f"{decision.other} has its turn: {_standing(decision)}. {cooled}"


def _throttled(decision: Decision, clock: Clock) -> str:
    part = (decision.granted_m or 0) / 10
    return f"is granted {part:g} % of a GPU until {_until(decision, clock)}: {_use(decision)}."


def _never(decision: Decision, clock: Clock) -> str:
    del clock
    asked, have = decision.reason.value or 0.0, decision.reason.threshold or 0.0
    return f"can never run here: it asks for {asked:g} GPUs, no choice among the cluster's {have:g} could serve it."


_ASKED = {
    "limit.queued-per-user": "sessions of the user wait already",
    "limit.gpus-per-user": "GPUs are asked for",
    "limit.gpus-per-group": "GPUs are asked for",
}


def refusal_words(reason: Block | Reason) -> str:
    """Why a request is refused outright."""
    if reason.rule == "limit.model":
        return "that GPU model is not allowed in this tier"
    return f"{reason.value or 0:g} {_ASKED[reason.rule]}, and the limit is {reason.threshold or 0:g}"


def _refused(decision: Decision, clock: Clock) -> str:
    del clock
    return f"is refused: {refusal_words(decision.reason)}."


def _time_left(decision: Decision, clock: Clock) -> str:
    value, limit = decision.reason.value or 0.0, decision.reason.threshold or 0.0
    return f"ends at {_until(decision, clock)}: it has run {value:.2f} h of at most {limit:.2f}."


def _time_over(decision: Decision, clock: Clock) -> str:
    del clock
    return f"ends: its lifetime of {decision.reason.threshold or 0:.2f} h is over."


def _idle_told(decision: Decision, clock: Clock) -> str:
    ends = "" if decision.reason.until_ms is None else f" While GPUs are needed it ends at {_until(decision, clock)}."
    return f"has not used its GPU for {decision.reason.value or 0:.0f} min.{ends}"


def _idle_over(decision: Decision, clock: Clock) -> str:
    del clock
    value, limit = decision.reason.value or 0.0, decision.reason.threshold or 0.0
    return f"ends: its GPU has not been used for {value:.0f} min, and {limit:.0f} are allowed while GPUs are needed."


def _by_right(decision: Decision, clock: Clock) -> str:
    del clock
    held, amount = _number(decision, "held_gpus"), decision.reason.threshold or 0.0
    return f"starts on {gpus_of(decision.allocation)}: {held:g} of {amount:g} GPUs that it has a right to were in use."


def _waited_long(decision: Decision, clock: Clock) -> str:
    del clock
    waited, limit = (decision.reason.value or 0.0) / 3600, (decision.reason.threshold or 0.0) / 3600
    where = gpus_of(decision.allocation)
    return f"starts on {where}: it has waited {waited:.2f} h, and one of four starts is for those above {limit:.2f} h."


def _reserving(decision: Decision, clock: Clock) -> str:
    del clock
    has, needs = decision.reason.value or 0.0, decision.reason.threshold or 0.0
    return f"has waited long for {needs:g} GPUs together: {has:g} are kept for it by now, and what becomes free."


def _owed(decision: Decision) -> str:
    held, amount = decision.reason.value or 0.0, decision.reason.threshold or 0.0
    return f"of {amount:g} GPUs that others have a right to, {held:g} are in use by them"


def _reclaim_told(decision: Decision, clock: Clock) -> str:
    return f"gives back what it was lent from {_until(decision, clock)} on: {_owed(decision)}."


def _reclaim_graced(decision: Decision, clock: Clock) -> str:
    whom = f"for {decision.other}" if decision.other else "for what is reserved"
    return f"is asked to save and gives its GPUs back {whom} at {_until(decision, clock)}: {_owed(decision)}."


def _reclaimed(decision: Decision, clock: Clock) -> str:
    del clock
    whom = f"for {decision.other}" if decision.other else "for what is reserved"
    return f"gives its GPUs back {whom}: {_owed(decision)}."


def _maintenance_told(decision: Decision, clock: Clock) -> str:
    return f"ends at {_until(decision, clock)}: its host is worked on from then."


def _maintenance_over(decision: Decision, clock: Clock) -> str:
    return f"ends: its host is worked on until {_until(decision, clock)}."


_NEXT: Mapping[str, str] = {
    "throttle": "a smaller part of the GPU",
    "evict": "the end of the session",
    "restrict": "a restriction: nothing new of its user starts{}",
}
_WOULD: Mapping[str, str] = {
    "warn": "would have warned its user",
    "throttle": "would have throttled it",
    "evict": "would have asked for the end of the session",
    "restrict": "would have restricted its user",
}


def _used(decision: Decision, clock: Clock) -> str:
    """What a rule of acceptable use saw, in the words of the policy file, and what it does about it."""
    rule, change = decision.reason.rule.removeprefix(PREFIX), decision.reason.change
    seen = f"the rule {rule} saw it {decision.reason.value or 0:.0f} min ago"
    words = f": {decision.reason.text}" if decision.reason.text else "."
    done = {
        Action.EVICT: f"ends: {seen}{words}",
        Action.RESTRICT: f"nothing new of its user starts until {_until(decision, clock)}: {seen}{words}",
        Action.THROTTLE: f"is granted {(decision.granted_m or 0) / 10:g} % of a GPU: {seen}{words}",
        Action.RECOVER: f"is granted {(decision.granted_m or 0) / 10:g} % of a GPU again (rule {rule}).",
    }
    if decision.action in done:
        return done[decision.action]
    if change == "use-ends":
        return f"ends at {_until(decision, clock)}: {seen}{words}"
    if change == "use-stop":
        return f"{seen}{words} If it goes on, {_next(decision)} follows at {_until(decision, clock)}."
    if change == "use-shadow":
        return f"{seen}, and {_WOULD[ACTIONS[int(_number(decision, 'would'))]]}{words}"
    return f"{seen}{words}"


def _next(decision: Decision) -> str:
    hours = _number(decision, "for_h")
    return _NEXT[ACTIONS[int(_number(decision, "next"))]].format(f" for {hours:g} h")


def block_words(block: Block, clock: Clock) -> str:
    """What a limit holds against sessions that wait, and until when."""
    value, limit = block.value or 0.0, block.threshold or 0.0
    until = "" if block.until_ms is None else f" Until {clock(block.until_ms)} at the latest."
    words = {
        "limit.restricted": "its user is restricted.",
        "limit.quota": f"{gpu_h(value)} GPU-h were held within the quota's window, of {gpu_h(limit)}.",
        "limit.sessions-per-user": f"its user has {value:g} of {limit:g} sessions with GPUs already.",
        "limit.gpus-per-user": f"its user holds {value:g} GPUs already, of {limit:g}.",
        "limit.gpus-per-group": f"its group holds {value:g} GPUs already, of {limit:g}.",
    }
    return f"{words[block.rule]}{until}"


_TEXTS: Mapping[str, Callable[[Decision, Clock], str]] = {
    "order.in-credit": _started("first in order among those in credit"),
    "order.out-of-credit": _started("out of credit, but there is capacity above the headroom"),
    "order.right": _by_right,
    "order.waited-long": _waited_long,
    "order.nominated": _started("the GPUs were freed for it"),
    "order.reserve": _reserving,
    "order.reserve-waited": _reserving,
    "order.reservation-over": _plain("waits in its old place again: what was kept for it is free for all."),
    "order.nomination-over": _plain("waits in its old place again: what was freed for it is not enough by now."),
    "order.arrival": _started("its turn by time of arrival"),
    "order.duration": _started("its turn by declared run time"),
    "never-fits": _never,
    **dict.fromkeys(("limit.model", *_ASKED), _refused),
    "lifetime.warn": _time_left,
    "lifetime.end": _time_over,
    "maintenance.warn": _maintenance_told,
    "maintenance.end": _maintenance_over,
    "reclaim.warn": _reclaim_told,
    "reclaim.grace": _reclaim_graced,
    "reclaim.reserve": _reclaim_graced,
    "reclaim.evict": _reclaimed,
    "idle.warn": _idle_told,
    "idle.end": _idle_over,
    "host.lost": _plain("its host has fallen silent; the session is lost."),
    "ladder.notice": _notice,
    "ladder.warn": _warned,
    "ladder.rotate-warn": _turn_warned,
    "ladder.throttle": _throttled,
    "ladder.grace": _graced,
    "ladder.headroom": _graced,
    "ladder.rotate": _turn_graced,
    "ladder.evict": _evicted,
    "ladder.evict-headroom": _evicted,
    "ladder.evict-rotate": _turn_ended,
    "ladder.withdraw": _plain("may stay after all: its credit is back, or nobody needs its GPU any more."),
    "use.RULE": _used,
    "ladder.recover": _plain("one step back: nobody in credit waits and the headroom is full."),
}

RULES = tuple(_TEXTS)
"""Every rule that a decision can name."""
