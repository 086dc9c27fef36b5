"""Background work as rows of the truth: what is to be handed to the workers, when again, and what has become of it.

A task is a row before it is anything else. The transport that carries it may be wiped and a worker may die at any
moment, so a row counts as settled only when its result file is there; until then whatever is in no queue and in no
worker's hands is handed over once more. That is harmless: a task runs under a lock of its own, and not at all once its
result is there.

States: `queued`, to be handed over at `next_ms`; `running`, handed over, may be found lost from `next_ms` on; `done`
and `failed`. Attempts count hand-overs, whether they were lost or ended with a failure that may pass.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from scheduler.errors import FairTierError
from scheduler.ports import BusDown

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from scheduler.ports import Row

LONGEST_WAIT_MS = 600_000


class Kind(NamedTuple):
    """How a kind of background work is treated.

    Attributes:
        timeout_s: its run is ended after this time.
        attempts: hand-overs before it is given up.
        retry_s: wait after the first failure that may pass; doubles with each.
    """

    timeout_s: int
    attempts: int
    retry_s: int = 30


KINDS: Mapping[str, Kind] = {
    "notify": Kind(timeout_s=60, attempts=6, retry_s=60),
    "simulate": Kind(timeout_s=3600, attempts=5),
    "usage-report": Kind(timeout_s=300, attempts=5),
}
"""The allow-list by name. Six notices are tried over 31 minutes: after 1, 2, 4, 8 and 16 more."""


class TryAgain(FairTierError):
    """A task failed for a reason that may pass; it is run again while its kind has attempts left."""


class Call(NamedTuple):
    """One hand-over.

    Attributes:
        attempt: how many there were with this one.
        made_ms: when the task was made. With the name it says which task a result belongs to: a database brought back
            from a backup uses names again.
    """

    task: str
    kind: str
    arguments: dict[str, Any]
    attempt: int = 1
    made_ms: int = 0


class Tasks(Protocol):
    """The transport of background work, and the result files that it leaves."""

    def enqueue(self, call: Call) -> None:
        """Hand a task to the workers; nothing happens when it is waiting already. `BusDown`."""

    def present(self, tasks: Collection[str]) -> set[str]:
        """Those of these tasks that wait in the queue or are being run. `BusDown`."""

    def outcome(self, task: str, made_ms: int) -> dict[str, Any] | None:
        """What a task has left: `ok` and `result`, or `error` and `retry`, and `attempt`; None = nothing yet."""


class Step(NamedTuple):
    """What one look asks for: a row, what changes in it, and the call that goes with it, if any."""

    row: Row
    changes: dict[str, Any]
    call: Call | None = None


def due(row: Row, now_ms: int) -> bool:
    """Whether a task may have to be handed over: an open one, on record, whose time has come.

    One that was made at this very instant is not on record yet.
    """
    return row["state"] in ("queued", "running") and bool(row["next_ms"] <= now_ms and row["created_ms"] < now_ms)


def handed_over(row: Row, now_ms: int) -> dict[str, Any]:
    """What changes when a task is handed over now; it may be found lost after 2 s, 4 s, 8 s ... 10 min."""
    wait_ms = min(LONGEST_WAIT_MS, 2000 << min(row["attempts"], 16))
    return {"state": "running", "attempts": row["attempts"] + 1, "next_ms": now_ms + wait_ms}


def settled(row: Row, outcome: Mapping[str, Any], now_ms: int) -> dict[str, Any]:
    """What changes when a task's outcome is there: done, failed, or queued for another try."""
    if outcome["ok"]:
        return {"state": "done", "result": json.dumps(outcome["result"]), "error": ""}
    kind = KINDS.get(row["kind"])
    if outcome.get("retry") and kind is not None and row["attempts"] < kind.attempts:
        wait_ms = 1000 * (kind.retry_s << (row["attempts"] - 1))
        return {"state": "queued", "next_ms": now_ms + wait_ms, "error": outcome["error"]}
    return {"state": "failed", "error": outcome["error"]}


def look(rows: Iterable[Row], tasks: Tasks, now_ms: int) -> list[Step]:
    """Look at the open tasks: settle those that have ended, hand over what is due and what was lost.

    Nothing is changed or enqueued here. A call that is lost after its row was written is found lost later. While the
    transport is down nothing is handed over and no attempt is used up.
    """
    steps: list[Step] = []
    waiting: list[Row] = []
    for row in rows:
        outcome = tasks.outcome(row["task"], row["created_ms"]) if row["state"] == "running" else None
        if outcome is not None and not (outcome.get("retry") and outcome["attempt"] < row["attempts"]):
            steps.append(Step(row, settled(row, outcome, now_ms)))
        elif due(row, now_ms):
            waiting.append(row)
    return steps + [_next(row, now_ms) for row in _absent(waiting, tasks)]


def _absent(rows: list[Row], tasks: Tasks) -> list[Row]:
    if not rows:
        return []
    try:
        present = tasks.present([row["task"] for row in rows])
    except BusDown:
        return []
    return [row for row in rows if row["task"] not in present]


def _next(row: Row, now_ms: int) -> Step:
    kind, attempts = KINDS.get(row["kind"]), row["attempts"]
    if kind is None:
        error = f"no background work of the kind {row['kind']!r} is known here"
        return Step(row, {"state": "failed", "error": error})
    if attempts >= kind.attempts:
        error = row["error"] or f"lost {attempts} times before it ended; see the log of the workers"
        return Step(row, {"state": "failed", "error": error})
    call = Call(row["task"], row["kind"], json.loads(row["arguments"]), attempts + 1, row["created_ms"])
    return Step(row, handed_over(row, now_ms), call)
