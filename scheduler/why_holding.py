"""How it stands with a session that holds GPUs: its rung, its user's credit, and what contention would mean for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from policies.acceptable_use import PREFIX
from policies.explain import gpus_of
from policies.give_way import is_heavy
from policies.model import HOUR_MS, Ladder, State
from policies.order import FairQueue
from policies.tracks import Tracks
from policies.usage import NEVER_MS
from scheduler.why_calendar import maintenance_ahead
from scheduler.why_stored import last, stored_reason
from scheduler.why_words import reason, span, use, utc

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from policies.model import Session
    from scheduler.core import Core
    from scheduler.ports import Row

    Entry = Mapping[str, Any]

RUNGS = {Ladder.WARN: "Warned", Ladder.THROTTLE: "Throttled", Ladder.GRACE: "Grace"}
"""Code of the reason on each rung beyond a notice."""

USE_ACTIONS = ("notice", "throttle", "restrict", "recover")
_OWED = "Credit does not protect what others have a right to; if they no longer ask for it, it may stay."

LADDER_ACTIONS = ("warn", "throttle", "grace", "withdraw", "recover")


def holding_reasons(core: Core, session: Session, decisions: Sequence[Entry], now_ms: int) -> list[Row]:
    """What was decided about it first, then how it stands now, then (where so) that its host is silent."""
    if session.state is State.STOPPING:
        return [_stopping(session, decisions)]
    found, owed = [], False
    code = RUNGS.get(session.ladder)
    if code is not None:
        on_rung = [entry for entry in decisions if entry.get("ladder") == session.ladder]
        entry = last(on_rung, *LADDER_ACTIONS)
        if entry is not None:
            found.append(stored_reason(entry, code))
            owed = str(entry["rule"]).startswith("reclaim.")
    found += _use(core, session, decisions)
    found.append(_credit(core, session, owed=owed) if isinstance(core.queue, FairQueue) else _in_line(core, session))
    ends = Tracks(core.params).ends_ms(session)
    if ends is not None:
        found.append(_lifetime(session, ends, now_ms))
    worked_on = maintenance_ahead(core, session)
    if worked_on is not None:
        found.append(worked_on)
    if not core.view.fresh(session):
        found.append(_silent(core, session, now_ms))
    return found


def _use(core: Core, session: Session, decisions: Sequence[Entry]) -> list[Row]:
    """What rules of acceptable use that are seen now have told its user last; what is only on record is not told."""
    live = [PREFIX + name for name, sighting in (session.uses or {}).items() if sighting.live]
    known = {PREFIX + rule.id for rule in core.params.rules}
    told = [entry for entry in decisions if entry["action"] != "observe"]
    latest = [last([entry for entry in told if entry["rule"] == name], *USE_ACTIONS) for name in live if name in known]
    return [stored_reason(entry, "AcceptableUse") for entry in latest if entry is not None]


def _lifetime(session: Session, ends_ms: int, now_ms: int) -> Row:
    """Its tier lets it run until a time, whatever its credit."""
    text = f"{session.id} ends at {utc(ends_ms)}, {span(ends_ms - session.start_ms)} after its start, whoever waits."
    value, limit = (now_ms - session.start_ms) / HOUR_MS, (ends_ms - session.start_ms) / HOUR_MS
    return reason("Lifetime", "lifetime.end", text, value=value, threshold=limit, unit="h", until_ms=ends_ms)


def _stopping(session: Session, decisions: Sequence[Entry]) -> Row:
    entry = last(decisions, "evict", "cancel")
    if entry is not None:
        return stored_reason(entry, "Stopping", "Its processes are being ended.")
    return reason("Stopping", None, f"{session.id} of {session.user.name} is being stopped.")


def _runs(session: Session) -> str:
    what = "is being started" if session.state is State.STARTING else "runs"
    return f"{session.id} of {session.user.name} {what} on {gpus_of(session.allocation)} since {utc(session.start_ms)}"


def _in_line(core: Core, session: Session) -> Row:
    text = f"{_runs(session)}. The policy {core.params.policy} takes GPUs from nobody: it runs until it ends."
    return reason("Running", None, text)


def _credit(core: Core, session: Session, *, owed: bool) -> Row:
    """Credit now, and until when: in credit until it is gone, otherwise until it could have to give way first.

    Args:
        owed: it has been told to give back what others have a right to, which credit does not prevent.
    """
    queue, user = core.queue, session.user
    assert isinstance(queue, FairQueue)  # noqa: S101 - the caller has looked
    usage, cap = queue.clock.usage(user), queue.caps[user.tier]
    start = f"{_runs(session)}: {use(usage, cap)}. {_heavy(core, session)}"
    notice = session.ladder is Ladder.NOTICE
    if usage <= cap:
        until, text = (None, _OWED) if owed else _in_credit(core, session)
        code, rule = "Notice" if notice else "InCredit", "ladder.notice"
    else:
        until, text = (None, _OWED) if owed else _out_of_credit(core, session)
        code, rule = "Notice" if notice else "OutOfCredit", "ladder.warn"
    change = "pause-or-finish" if notice or usage > cap else None
    return reason(code, rule, f"{start}{text}", value=usage, threshold=cap, unit="gpu_h", until_ms=until, change=change)


def _heavy(core: Core, session: Session) -> str:
    ladder = core.params.ladder
    if session.window is None or not is_heavy(session, core.now_ms, core.params):
        return ""
    mean, _ = session.window.mean(core.now_ms)
    return f"It is heavy: mean load {mean:.2f} over {span(ladder.heavy_window_ms)} (limit {ladder.heavy_load:g}). "


def _in_credit(core: Core, session: Session) -> tuple[int | None, str]:
    """(when the credit is gone, what that means)."""
    user, clock = session.user, core.view.clock
    cap = core.queue.caps[user.tier] if isinstance(core.queue, FairQueue) else 0.0
    wait_ms = clock.time_to_reach(user, cap) if user.steady > cap else NEVER_MS
    until = None if wait_ms == NEVER_MS else clock.now_ms + wait_ms
    lasts = (
        "At its present rate the credit lasts."
        if until is None
        else f"At its present rate it is in credit until {utc(until)}."
    )
    patience = span(core.params.ladder.patience_ms)
    rights = isinstance(core.queue, FairQueue) and not core.queue.rights.none
    lent = ", or others ask for GPUs that they have a right to" if rights else ""
    return until, (
        f"{lasts} In credit it need not give way, unless it is heavy, somebody in credit has waited for {patience} "
        f"and nobody out of credit is left to go first{lent}."
    )


def _out_of_credit(core: Core, session: Session) -> tuple[int | None, str]:
    """(when it would have to give way at the earliest, what that means); on a rung the decision has said so already."""
    if session.ladder in RUNGS:
        return None, "It is out of credit; back in credit the step is withdrawn."
    ladder, memory = core.params.ladder, core.view.memory
    until = max(core.now_ms + ladder.warn_ms, session.start_ms + ladder.min_run_ms)
    since = memory.contention_since_ms
    now = (
        "Nobody needs its GPUs now, so nothing is taken."
        if since is None
        else f"There has been contention since {utc(since)}; it has not been told to give way."
    )
    return until, f"{now} If its turn comes it is warned first, and gives way at {utc(until)} at the earliest."


def _silent(core: Core, session: Session, now_ms: int) -> Row:
    hosts = session.allocation.hosts if session.allocation is not None else ()
    host = next(name for name in hosts if name in core.view.stale_hosts)
    seen_ms, telemetry = core.hosts.reported_ms[host], core.params.telemetry
    text = (
        f"host {host} has not reported for {span(now_ms - seen_ms)} (limit {span(telemetry.stale_ms)}); the session "
        f"keeps running and no further step is taken; it counts as lost at {utc(seen_ms + telemetry.lost_ms)}."
    )
    return reason(
        "HostLost",
        "host.lost",
        text,
        value=(now_ms - seen_ms) / 1000,
        threshold=telemetry.stale_ms / 1000,
        unit="s",
        until_ms=seen_ms + telemetry.lost_ms,
    )
