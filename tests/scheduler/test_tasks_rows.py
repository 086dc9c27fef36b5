"""What is handed over, when again, and when it is given up: the rows of background work and nothing else."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest

from scheduler.adapters.memory_tasks import MemoryTasks
from scheduler.background import Background
from scheduler.errors import BadInput
from scheduler.task_rows import KINDS, Call, due, handed_over, look, settled

Row = dict[str, Any]


def row(**changes: Any) -> Row:
    made: Row = {"task": "t-1", "kind": "notify", "arguments": '{"a": 1}', "state": "queued", "created_ms": 1000}
    return made | {"attempts": 0, "next_ms": 1000, "result": None, "error": ""} | changes


def test_a_task_is_handed_over_once_it_is_on_record() -> None:
    assert not due(row(), 1000), "made at this instant: not on record yet"
    assert due(row(), 1001)
    assert not due(row(next_ms=5000), 4999)
    assert not due(row(state="done"), 9000)
    assert not due(row(state="failed"), 9000)
    (step,) = look([row()], MemoryTasks(), 1001)
    assert step.call == Call("t-1", "notify", {"a": 1}, 1, 1000)
    assert step.changes == {"state": "running", "attempts": 1, "next_ms": 3001}


def test_what_waits_or_runs_is_left_alone_and_costs_no_write() -> None:
    carried = MemoryTasks()
    carried.waiting.add("t-1")
    assert look([row(state="running", attempts=1)], carried, 10**9) == []


def test_lost_work_is_handed_over_with_growing_patience_until_it_is_given_up() -> None:
    carried, task, now_ms = MemoryTasks(), row(kind="simulate"), 1001
    instants = []
    while task["state"] in ("queued", "running"):
        (step,) = look([task], carried, now_ms)
        task |= step.changes
        instants.append(now_ms)
        now_ms = task["next_ms"]
    assert [b - a for a, b in pairwise(instants)] == [2000, 4000, 8000, 16000, 32000]
    assert task["state"] == "failed"
    assert task["error"].startswith("lost 5 times")
    assert handed_over(row(attempts=200), 0)["next_ms"] == 600_000


def test_a_failure_that_may_pass_is_tried_six_times_over_half_an_hour() -> None:
    carried, task, now_ms, tried = MemoryTasks(), row(), 1001, []
    while task["state"] in ("queued", "running"):
        for changed, changes in Background(carried, None).attend([task], now_ms):
            changed.update(changes)
        if task["state"] == "running":
            tried.append(now_ms)
            carried.end(carried.calls[-1], {"ok": False, "error": "503", "retry": True})
            now_ms += 1
        else:
            now_ms = task["next_ms"]
    assert [call.attempt for call in carried.calls] == [1, 2, 3, 4, 5, 6]
    assert [round((at_ms - tried[0]) / 60_000) for at_ms in tried] == [0, 1, 3, 7, 15, 31]
    assert (task["state"], task["error"]) == ("failed", "503")


def test_the_outcome_of_an_earlier_attempt_is_not_counted_twice() -> None:
    carried = MemoryTasks()
    carried.end(Call("t-1", "notify", {}, 1, 1000), {"ok": False, "error": "503", "retry": True})
    carried.waiting.add("t-1")
    assert look([row(state="running", attempts=2)], carried, 2000) == []
    (step,) = look([row(state="running", attempts=1)], carried, 2000)
    assert step.changes == {"state": "queued", "next_ms": 62_000, "error": "503"}


def test_final_outcomes() -> None:
    running = row(state="running", attempts=1)
    done = settled(running, {"ok": True, "attempt": 1, "result": {"a": 1}}, 0)
    assert done == {"state": "done", "result": '{"a": 1}', "error": ""}
    assert settled(running, {"ok": False, "attempt": 1, "error": "404", "retry": False}, 0)["state"] == "failed"
    (step,) = look([row(kind="gone")], MemoryTasks(), 2000)
    assert (step.call, step.changes["state"]) == (None, "failed")


def test_without_transport_results_are_still_taken_in_and_no_attempt_is_used_up() -> None:
    carried = MemoryTasks()
    carried.down = True
    carried.end(Call("t-2", "notify", {}, 1, 1000), {"ok": True, "result": {}})
    rows = [row(), row(task="t-2", state="running", attempts=1, next_ms=0)]
    changes = Background(carried, None).attend(rows, 2000)
    assert [(changed["task"], what["state"]) for changed, what in changes] == [("t-2", "done")]


def test_planted_fault_a_transport_that_breaks_between_look_and_enqueue() -> None:
    carried = MemoryTasks()
    steps = look([row()], carried, 2000)
    assert steps[0].call is not None
    carried.down = True
    carried.present = lambda tasks: set()  # type: ignore[method-assign]  # it answered a moment ago
    assert Background(carried, None).attend([row()], 2000) == []


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("usage-report", {"since_ms": 0, "until_ms": 1}),
        ("usage-report", {"since_ms": 0, "until_ms": 1, "format": "json"}),
        ("simulate", {"scenario": "calm"}),
        ("simulate", {"scenario": "calm", "policy": "fifo", "seed": 3, "days": 1}),
    ],
)
def test_arguments_that_are_allowed(kind: str, arguments: dict[str, Any]) -> None:
    Background(MemoryTasks(), None).check(kind, arguments)


@pytest.mark.parametrize(
    ("kind", "arguments", "word"),
    [
        ("os.system", {}, "no background work"),
        ("", {}, "no background work"),
        ("notify", {}, "cannot be asked for"),
        ("usage-report", {}, "since_ms"),
        ("usage-report", {"since_ms": 5, "until_ms": 5}, "less than"),
        ("usage-report", {"since_ms": -1, "until_ms": 5}, "since_ms"),
        ("usage-report", {"since_ms": 0, "until_ms": 5, "format": "xlsx"}, "format"),
        ("usage-report", {"since_ms": 0, "until_ms": 5, "out": "/etc/x"}, "out"),
        ("usage-report", {"since_ms": True, "until_ms": 5}, "since_ms"),
        ("simulate", {"scenario": "../calm"}, "scenario"),
        ("simulate", {"scenario": "/x.toml"}, "scenario"),
        ("simulate", {"scenario": "calm", "policy": "mine.toml"}, "policy"),
        ("simulate", {"scenario": "calm", "seed": -1}, "seed"),
        ("simulate", {"scenario": "calm", "days": 1e9}, "days"),
        ("simulate", {"scenario": "calm", "days": float("nan")}, "days"),
        ("simulate", {"scenario": ["calm"]}, "scenario"),
    ],
)
def test_arguments_that_are_not(kind: str, arguments: dict[str, Any], word: str) -> None:
    with pytest.raises(BadInput, match=word):
        Background(MemoryTasks(), None).check(kind, arguments)


def test_the_kinds_end_in_time() -> None:
    assert sorted(KINDS) == ["notify", "simulate", "usage-report"]
    assert all(0 < kind.timeout_s <= 3600 and kind.attempts >= 1 for kind in KINDS.values())
    assert json.loads(row()["arguments"]) == {"a": 1}
