"""The usage report: exact GPU-hours for any span, waits and evictions by user, cells that no spreadsheet runs."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest

from scheduler.adapters.memory import MemoryStore
from scheduler.ports import Batch
from scheduler.usage_report import COLUMNS, as_csv, as_json, safe_cell, usage

H = 3_600_000


def read(*rows: dict[str, Any]) -> MemoryStore:
    """A store with these sessions and two users."""
    users = {
        user: {"user": user, "group": "g", "tier": "free", "shares": 1.0, "created_ms": 0} for user in ("ann", "bob")
    }
    sessions = {f"s-{n}": {**row, "session": f"s-{n}"} for n, row in enumerate(rows)}
    store = MemoryStore(lambda: 0)
    store.lead("test")
    store.commit(Batch(0, users=users, sessions=sessions))
    return store


def session(user: str, submitted: float, started: float | None, ended: float | None, **changes: Any) -> dict[str, Any]:
    times = {"submitted_ms": submitted, "started_ms": started, "ended_ms": ended}
    row: dict[str, Any] = {name: None if at is None else round(at * H) for name, at in times.items()}
    made = {"user": user, "group": "g", "tier": "free", "outcome": "completed" if ended else None, "gpus": 1}
    return row | made | {"state": "ended", "ladder": "ok", "fraction_m": 1000, "busy_ms": 0} | changes


def report(*rows: dict[str, Any], since: float = 10, until: float = 20, now: float = 100) -> dict[str, dict[str, Any]]:
    entries = usage(read(*rows), round(since * H), round(until * H), round(now * H))
    return {entry["user"]: entry for entry in entries}


def test_a_session_inside_the_span_counts_whole() -> None:
    ann = report(session("ann", 11, 11.5, 14.5, gpus=2, busy_ms=4 * H))["ann"]
    assert (ann["sessions"], ann["allocated_gpu_h"], ann["busy_gpu_h"]) == (1, 6.0, 4.0)
    assert (ann["waits"], ann["wait_mean_s"], ann["wait_max_s"]) == (1, 1800.0, 1800.0)


@pytest.mark.parametrize(
    ("started", "ended", "now", "hours"),
    [(5, 15, 100, 5), (15, 25, 100, 5), (5, 25, 100, 10), (15, None, 18, 3), (15, None, 100, 5), (2, 8, 100, 0)],
)
def test_of_a_session_across_a_border_the_part_inside_counts(
    started: float, ended: float | None, now: float, hours: float
) -> None:
    row = session("ann", 1, started, ended, fraction_m=500, busy_ms=round(((ended or now) - started) * H / 4))
    ann = report(row, now=now)["ann"]
    assert ann["allocated_gpu_h"] == hours / 2
    assert ann["busy_gpu_h"] == pytest.approx(hours / 4, abs=1e-6)


def test_spans_side_by_side_add_up() -> None:
    rows = [session("ann", 1, 2 + n, 9.5 + n, gpus=3, busy_ms=7 * H) for n in range(10)]
    whole = report(*rows, since=0, until=30)["ann"]
    parts = [report(*rows, since=a, until=a + 5)["ann"] for a in range(0, 30, 5)]
    for figure in ("allocated_gpu_h", "busy_gpu_h"):
        assert sum(part[figure] for part in parts) == pytest.approx(whole[figure], abs=1e-5)
    assert sum(part["waits"] for part in parts) == whole["waits"] == 10


def test_evictions_waits_and_users_without_sessions() -> None:
    rows = (
        session("ann", 11, 12, 13, outcome="evicted"),
        session("ann", 11, 12, 21, outcome="evicted"),
        session("ann", 11, None, 12, outcome="cancelled"),
        session("zoe", 25, 26, 27),
    )
    found = report(*rows)
    assert list(found) == ["ann", "bob"], "one submitted after the span is not in it"
    assert (found["ann"]["sessions"], found["ann"]["evictions"], found["ann"]["waits"]) == (3, 1, 2)
    assert (found["bob"]["sessions"], found["bob"]["wait_mean_s"]) == (0, None)


def test_no_cell_is_a_formula() -> None:
    for text in ("=1+1", "+1", "-1", "@x", "\tx", "\rx"):
        assert safe_cell(text) == f"'{text}"
    for value in ("ann", "", 1, -1.5, "a=b"):
        assert safe_cell(value) == value
    row = session("ann", 11, 12, 13) | {"user": "=cmd", "group": '"x",\n@y'}
    text = as_csv(usage(read(row), 0, 20 * H, 20 * H))
    found = list(csv.reader(io.StringIO(text)))
    assert found[0] == list(COLUMNS)
    assert found[1][:3] == ["'=cmd", '"x",\n@y', "free"]
    assert found[2][-2:] == ["", ""], "unknown is empty"


def test_json_has_a_schema_and_the_span() -> None:
    document = json.loads(as_json(usage(read(), 0, H, H), 0, H))
    assert (document["schema"], document["since"], document["until"]) == (
        1,
        "1970-01-01T00:00:00Z",
        "1970-01-01T01:00:00Z",
    )
    assert [entry["user"] for entry in document["users"]] == ["ann", "bob"]
