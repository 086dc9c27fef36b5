"""Rows of the truth as JSON objects of the interface: ISO times in UTC, durations in seconds, unknown is null."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from policies.limits import FOR_EVER_MS
from policies.model import HOUR_MS

if TYPE_CHECKING:
    from scheduler.ports import Row

Json = dict[str, Any]
"""One JSON object."""


def utc(at_ms: int | None) -> str | None:
    """ISO 8601 in UTC, to the millisecond; None = it has not happened."""
    if at_ms is None:
        return None
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def gpu_h(gpu_ms: float) -> float:
    """GPU-hours of GPU-milliseconds, to the microhour."""
    return round(gpu_ms / HOUR_MS, 6)


def session_json(row: Row, position: int | None = None, reason: str | None = None) -> Json:
    """A session as every list has it.

    Args:
        row: of the truth.
        position: place in the queue, from 1; None = it does not wait.
        reason: code of what it waits for; None = the rule of the last decision about it.
    """
    parts = _parts(row)
    return {
        "session": row["session"],
        "user": row["user"],
        "group": row["group"],
        "tier": row["tier"],
        "state": row["state"],
        "outcome": row["outcome"],
        "ladder": row["ladder"],
        "submitted_at": utc(row["submitted_ms"]),
        "started_at": utc(row["started_ms"]),
        "ended_at": utc(row["ended_ms"]),
        "host": ",".join(host for host, _ in parts) or None,
        "gpus": _gpus(parts, row["granted_m"]),
        "load": row["load"],
        "position": position,
        "reason": reason or _rule(row),
    }


def session_details(row: Row) -> Json:
    """What a single session shows in addition to what the lists have."""
    return {
        "asked": {
            "gpus": row["gpus"],
            "fraction": row["fraction_m"] / 1000,
            "gpu_type": row["gpu_type"],
            "memory_mib": row["memory_mib"],
        },
        "argv": json.loads(row["argv"] or "[]"),
        "notebook": bool(row["notebook"]),
        "granted_gpu_h": gpu_h(row["granted_ms"]),
        "busy_gpu_h": gpu_h(row["busy_ms"]),
        "exit_code": row["exit_code"],
        "error": row["error"] or None,
        "ending": row["ending"],
        "submitted_by": row["submitted_by"] or None,
        "resubmitted_from": row["resubmitted_from"],
    }


def decision_json(row: Row) -> Json:
    """A stored decision: when, to whom, what, by which rule, and the figures of its reason."""
    body = _object(row["body"])
    found = {
        "at": utc(row["at_ms"]),
        "session": row["session"] or None,
        "user": row["user"] or None,
        "action": row["action"],
        "rule": row["rule"],
        "policy_version": row["policy_version"],
        "until": utc(body.pop("until_ms", None)),
    }
    return found | {name: value for name, value in body.items() if name not in found and name != "at_ms"}


def task_json(row: Row) -> Json:
    """Background work."""
    return {
        "task": row["task"],
        "kind": row["kind"],
        "state": row["state"],
        "arguments": _object(row["arguments"]),
        "created_at": utc(row["created_ms"]),
        "attempts": row["attempts"],
        "next_at": utc(row["next_ms"]),
        "result": _object(row["result"]) if row["result"] else None,
        "error": row["error"] or None,
    }


def appeal_json(row: Row) -> Json:
    """An appeal: who, about what, and what was answered."""
    return {
        "appeal": row["appeal"],
        "user": row["user"],
        "session": row["session"] or None,
        "state": row["state"],
        "text": row["text"],
        "filed_at": utc(row["filed_ms"]),
        "filed_by": row["filed_by"] or None,
        "answered_at": utc(row["answered_ms"]),
        "answered_by": row["answered_by"] or None,
        "answer": row["answer"] or None,
        "rule": row["rule"] or None,
        "allowed_until": utc(row["allowed_until_ms"]),
    }


def user_json(row: Row, now_ms: int = 0) -> Json:
    """A user's record; a restriction that is over by `now_ms` is none."""
    until_ms = row.get("restricted_until_ms") or 0  # answers on record from before 0002 have none
    return {
        "user": row["user"],
        "group": row["group"],
        "tier": row["tier"],
        "shares": row["shares"],
        "mail": row["mail"],
        "created_at": utc(row["created_ms"]),
        "restricted_until": "pardon" if until_ms == FOR_EVER_MS else utc(until_ms) if until_ms > now_ms else None,
    }


def host_row_json(row: Row) -> Json:
    """A host as its row has it, without what only the live view knows."""
    return {
        "host": row["host"],
        "drained": bool(row["drained"]),
        "gpus": row["gpus"],
        "model": row["model"],
        "memory_gib": None if row["memory_mib"] is None else row["memory_mib"] / 1024,
        "joined_at": utc(row["joined_ms"]),
        "reported_at": utc(row["reported_ms"]),
    }


def version_json(row: Row, decisions: int | None = None) -> Json:
    """A version of the policy; `decisions`: made under it, None = not counted here."""
    shown = {
        "version": row["version"],
        "since": utc(row["at_ms"]),
        "name": row["name"],
        "source": row["source"],
        "who": row["who"] or None,
        "note": row["note"] or None,
        "rolled_back_to": row["rolled_back_to"],
        "sha256": row["sha256"],
    }
    return shown if decisions is None else shown | {"decisions": decisions}


def stored(row: Row) -> Json:
    """A decision as it was stored: `scheduler.journal.decision_dict`'s JSON object, and the version of the policy."""
    return _object(row["body"]) | {"policy_version": row["policy_version"]}


def _parts(row: Row) -> list[tuple[str, list[int]]]:
    return [(host, list(gpus)) for host, gpus in json.loads(row["allocation"] or "[]")]


def _gpus(parts: list[tuple[str, list[int]]], granted_m: int) -> list[Json]:
    """GPUs with what is granted of each; on several hosts each says on which."""
    several = len(parts) > 1
    return [
        {"gpu": gpu, "fraction": granted_m / 1000} | ({"host": host} if several else {})
        for host, gpus in parts
        for gpu in gpus
    ]


def _rule(row: Row) -> str | None:
    rule = _object(row["reason"]).get("rule")
    return None if rule is None else str(rule)


def _object(text: str | None) -> Json:
    found = json.loads(text) if text else {}
    return found if isinstance(found, dict) else {"value": found}
