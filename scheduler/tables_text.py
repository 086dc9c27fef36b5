"""Sessions and other things as tables for people; programs get the same rows whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from scheduler.output import emit

if TYPE_CHECKING:
    from collections.abc import Mapping

Json = dict[str, Any]
Column = Callable[[Json], object]

SESSION_COLUMNS = (
    "session", "user", "group", "tier", "state", "outcome", "ladder", "submitted_at", "started_at", "ended_at",
    "host", "gpus", "load", "position", "reason",
)  # fmt: skip
"""Of a CSV: the members of the JSON object, in its order."""


def show_table(
    rows: Sequence[Json], columns: Mapping[str, Column], output: str, key: str, out: TextIO | None = None
) -> None:
    """Print rows: for people the columns, each computed from a row; for programs the rows themselves.

    Args:
        key: the member of the JSON document that holds the rows.
    """
    if output == "table":
        shown = [{name: column(row) for name, column in columns.items()} for row in rows]
        emit(shown, tuple(columns), "table", key, out, right=_NUMBERS)
    else:
        members = SESSION_COLUMNS if key == "sessions" else tuple(dict.fromkeys(name for row in rows for name in row))
        emit(rows, members or tuple(columns), output, key, out)


def member(name: str) -> Column:
    """A member as it is."""
    return lambda row: row.get(name)


def gpus(session: Json) -> str | None:
    """`2`, or `0.5` for half of one; what it has, not what it asked for."""
    held = session["gpus"]
    return None if not held else f"{sum(gpu['fraction'] for gpu in held):g}"


def when(name: str) -> Column:
    """A time to the second."""
    return lambda row: None if row.get(name) is None else str(row[name])[:19].replace("T", " ") + "Z"


def version_by(version: Json) -> str:
    """`start`, `activate`, `rollback to 2`."""
    back = version["rolled_back_to"]
    return str(version["source"]) if back is None else f"{version['source']} to {back}"


def restricted(user: Json) -> object:
    """Until when: a time to the second, or `pardon`."""
    until = user["restricted_until"]
    return until if until == "pardon" else when("restricted_until")(user)


def percent(name: str) -> Column:
    """A fraction as a percentage."""
    return lambda row: None if row.get(name) is None else f"{100 * row[name]:.0f} %"


def outcome(session: Json) -> str:
    """State, and how it ended; the rung where it is not the usual one."""
    if session["outcome"]:
        return f"{session['state']} ({session['outcome']})"
    return session["state"] if session["ladder"] == "ok" else f"{session['state']} ({session['ladder']})"


def number(name: str, digits: int = 2) -> Column:
    """A number with so many digits after the point."""
    return lambda row: None if row.get(name) is None else f"{row[name]:.{digits}f}"


_NUMBERS = frozenset(
    {
        "position",
        "gpus",
        "free",
        "version",
        "decisions",
        "load",
        "shares",
        "usage",
        "committed",
        "standing",
        "credit",
        "level_fs",
        "rank",
    }
    | {"factor", "sessions", "allocated", "busy", "silent", "attempts"}
)

QUEUE: Mapping[str, Column] = {
    "position": member("position"),
    "session": member("session"),
    "user": member("user"),
    "tier": member("tier"),
    "state": member("state"),
    "submitted": when("submitted_at"),
    "reason": member("reason"),
}
SESSIONS: Mapping[str, Column] = {
    "session": member("session"),
    "user": member("user"),
    "tier": member("tier"),
    "state": outcome,
    "submitted": when("submitted_at"),
    "host": member("host"),
    "gpus": gpus,
    "load": percent("load"),
    "position": member("position"),
    "reason": member("reason"),
}
SHARES: Mapping[str, Column] = {
    "user": member("user"),
    "path": member("path"),
    "shares": member("shares"),
    "usage": number("usage_gpu_h", 3),
    "committed": number("committed_gpu_h", 3),
    "standing": number("standing_gpu_h", 3),
    "credit": number("credit_gpu_h", 3),
    "level_fs": member("level_fs"),
    "rank": member("rank"),
    "factor": number("factor", 4),
}
USAGE: Mapping[str, Column] = {
    "user": member("user"),
    "group": member("group"),
    "sessions": member("sessions"),
    "allocated": number("allocated_gpu_h", 3),
    "busy": number("busy_gpu_h", 3),
    "usage": number("usage_gpu_h", 3),
    "credit": number("credit_gpu_h", 3),
}
HISTORY: Mapping[str, Column] = {
    "at": when("at"),
    "session": member("session"),
    "user": member("user"),
    "action": member("action"),
    "rule": member("rule"),
    "text": member("text"),
}
USERS: Mapping[str, Column] = {
    **{name: member(name) for name in ("user", "group", "tier")},
    "tier_until": when("tier_until"),
    **{name: member(name) for name in ("shares", "mail")},
    "restricted_until": restricted,
}
APPEALS: Mapping[str, Column] = {
    **{name: member(name) for name in ("appeal", "user", "session", "state")},
    "filed": when("filed_at"),
    "text": member("text"),
    "answered": when("answered_at"),
    "answer": member("answer"),
    "allowed_until": when("allowed_until"),
}


def _until(host: Json) -> str | None:
    """'until ...' of a host that maintenance closes."""
    shown = when("maintenance_until")(host) if host["state"] == "maintenance" else None
    return None if shown is None else f"until {shown}"


HOSTS: Mapping[str, Column] = {
    "host": member("host"),
    "state": lambda host: " ".join(filter(None, (host["state"], _until(host)))),
    "model": member("model"),
    "gpus": member("gpus"),
    "free": member("free_gpus"),
    "sessions": lambda host: len(host["sessions"]),
    "silent": lambda host: None if host["silent_s"] is None else f"{host['silent_s']:.0f} s",
}
DEVICES: Mapping[str, Column] = {
    "gpu": member("gpu"),
    "granted": member("granted"),
    "load": percent("utilisation"),
    "sessions": lambda device: ", ".join(device["sessions"]) or None,
}
VERSIONS: Mapping[str, Column] = {
    "version": member("version"),
    "since": when("since"),
    "name": member("name"),
    "by": version_by,
    "who": member("who"),
    "decisions": member("decisions"),
    "note": member("note"),
}
CALENDAR: Mapping[str, Column] = {
    "entry": member("entry"),
    "kind": member("kind"),
    "state": member("state"),
    "from": when("from"),
    "until": when("until"),
    "gpus": lambda entry: None if entry["gpus"] is None else f"{entry['gpus']:g}",
    "for": lambda entry: entry["group"] if entry["hosts"] is None else ", ".join(entry["hosts"]) or "all hosts",
    "text": member("text"),
}
TASKS: Mapping[str, Column] = {
    "task": member("task"),
    "kind": member("kind"),
    "state": member("state"),
    "created": when("created_at"),
    "attempts": member("attempts"),
    "error": member("error"),
}
