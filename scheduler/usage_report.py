"""The report of who used what: one line a user, from the sessions on record.

Allocated GPU-hours are exact for any span: GPUs held times the time they were held in it. Of a session that runs across
a border of the span only the sum of busy time is on record; it is spread evenly over the session's run.
"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scheduler.ports import Reader, Row

COLUMNS = (
    "user",
    "group",
    "tier",
    "sessions",
    "allocated_gpu_h",
    "busy_gpu_h",
    "evictions",
    "waits",
    "wait_mean_s",
    "wait_max_s",
)
_GPU_H_MS = 3_600_000
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(slots=True)
class _Line:
    """What one user did in the span."""

    user: str
    group: str = ""
    tier: str = ""
    sessions: int = 0
    allocated_gpu_ms: float = 0.0
    busy_gpu_ms: float = 0.0
    evictions: int = 0
    waits_ms: list[int] = field(default_factory=list)

    def entry(self) -> dict[str, Any]:
        """As it is reported; waits are None where nothing started."""
        waits = self.waits_ms
        return {
            "user": self.user,
            "group": self.group,
            "tier": self.tier,
            "sessions": self.sessions,
            "allocated_gpu_h": round(self.allocated_gpu_ms / _GPU_H_MS, 6),
            "busy_gpu_h": round(self.busy_gpu_ms / _GPU_H_MS, 6),
            "evictions": self.evictions,
            "waits": len(waits),
            "wait_mean_s": round(sum(waits) / len(waits) / 1000, 3) if waits else None,
            "wait_max_s": max(waits) / 1000 if waits else None,
        }


def usage(reader: Reader, since_ms: int, until_ms: int, now_ms: int) -> list[dict[str, Any]]:
    """One entry a user, by name, for the span from `since_ms` to before `until_ms`; users without sessions too.

    `sessions` are those submitted before the end of the span and not over before its begin; a wait counts in the span
    in which it ended with a start. What still runs is counted up to `now_ms`.
    """
    lines = {row["user"]: _Line(row["user"], row["group"], row["tier"]) for row in reader.users()}
    for row in reader.sessions(since_ms=since_ms):
        if row["submitted_ms"] < until_ms:
            line = lines.setdefault(row["user"], _Line(row["user"], row["group"], row["tier"]))
            _add(line, row, since_ms, until_ms, now_ms)
    return [lines[user].entry() for user in sorted(lines)]


def _add(line: _Line, row: Row, since_ms: int, until_ms: int, now_ms: int) -> None:
    line.sessions += 1
    started_ms, ended_ms = row["started_ms"], row["ended_ms"]
    if row["outcome"] == "evicted" and ended_ms is not None and since_ms <= ended_ms < until_ms:
        line.evictions += 1
    if started_ms is None:
        return
    if since_ms <= started_ms < until_ms:
        line.waits_ms.append(started_ms - row["submitted_ms"])
    last_ms = max(started_ms, ended_ms if ended_ms is not None else now_ms)
    inside_ms = max(0, min(last_ms, until_ms) - max(started_ms, since_ms))
    line.allocated_gpu_ms += inside_ms * row["gpus"] * row["fraction_m"] / 1000
    if last_ms > started_ms:
        line.busy_gpu_ms += row["busy_ms"] * inside_ms / (last_ms - started_ms)


def as_json(entries: Iterable[dict[str, Any]], since_ms: int, until_ms: int) -> str:
    """The report as a JSON document."""
    head = {"schema": 1, "since": _utc(since_ms), "until": _utc(until_ms)}
    return json.dumps({**head, "users": list(entries)}, indent=1, allow_nan=False) + "\n"


def as_csv(entries: Iterable[dict[str, Any]]) -> str:
    """The report as CSV; unknown values are empty, and no cell is a formula to a spreadsheet."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for entry in entries:
        writer.writerow(["" if entry[column] is None else safe_cell(entry[column]) for column in COLUMNS])
    return out.getvalue()


def safe_cell(value: object) -> object:
    """Text that a spreadsheet would take for a formula gets a quote in front; numbers stay numbers."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def _utc(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
