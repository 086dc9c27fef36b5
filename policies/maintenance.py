"""Sessions on hosts that are going to be worked on: told ahead, and ended when the work begins.

That nothing new is placed there some time before is the hosts' own affair (`policies.calendar.Calendar.drained`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from policies.model import Action, Decision, Reason, Session
from policies.tracks import TOLD_AHEAD_MS, runs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from policies.calendar import Entry
    from policies.snapshot import Snapshot


def clear_hosts(view: Snapshot[Any]) -> Iterator[Decision]:
    """Tell, or end, the sessions on hosts whose maintenance is near, or has begun."""
    now = view.clock.now_ms
    for entry in view.calendar.maintenance():
        steps = [entry.from_ms - ms for ms in TOLD_AHEAD_MS]
        later = [at for at in (*steps, entry.from_ms) if at > now]
        if later:
            view.wake(later[0])
        due = [at for at in steps if at <= now]
        if not due or entry.until_ms <= now:
            continue
        for session in list(view.holders.values()):
            if runs(session) and any(entry.closes(host) for host in _hosts_of(session)):
                yield from _clear(session, entry, now, due[-1])


def _clear(session: Session, entry: Entry, now_ms: int, told_from_ms: int) -> Iterator[Decision]:
    left_s = max(0, entry.from_ms - now_ms) / 1000
    if entry.from_ms <= now_ms:
        reason = Reason("maintenance.end", None, None, "", entry.until_ms, "resubmit-maintenance")
        yield Decision(now_ms, Action.EVICT, session.id, session.user.name, reason)
    elif session.maintenance_told_ms < told_from_ms:
        reason = Reason("maintenance.warn", left_s, None, "s", entry.from_ms, "save-maintenance")
        yield Decision(now_ms, Action.NOTICE, session.id, session.user.name, reason)


def _hosts_of(session: Session) -> tuple[str, ...]:
    return () if session.allocation is None else session.allocation.hosts
