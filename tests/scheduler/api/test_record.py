"""What is counted rises only, misses nothing, and counts nothing twice, however often it is looked at."""

from __future__ import annotations

from typing import Any

from scheduler.adapters.memory import MemoryStore
from scheduler.api.record import BOUNDS_S, Record, Waits
from scheduler.ports import Batch


def session(sid: str, submitted: int, started: int | None = None, ended: int | None = None) -> dict[str, Any]:
    return {
        "session": sid, "user": "ann", "group": "g", "tier": "free",
        "state": "queued" if started is None else "running" if ended is None else "ended",
        "outcome": None if ended is None else "completed", "submitted_ms": submitted, "started_ms": started,
        "ended_ms": ended, "ladder": "ok", "gpus": 1, "fraction_m": 1000,
    }  # fmt: skip


def decision(at_ms: int, rule: str) -> dict[str, Any]:
    return {"at_ms": at_ms, "session": "s-1", "user": "ann", "action": "start", "rule": rule, "body": "{}"}


def test_a_histogram_is_cumulative_and_bounds_belong_to_their_bucket() -> None:
    waits = Waits()
    for wait_s in (0, 1, 1.001, 86_400, 86_401):
        waits.add(wait_s)
    buckets = dict(waits.buckets())
    assert buckets["1.0"] == 2
    assert buckets["5.0"] == 3
    assert buckets["86400.0"] == 4
    assert buckets["+Inf"] == 5
    assert len(buckets) == len(BOUNDS_S) + 1


def test_looking_often_counts_the_same_as_looking_once() -> None:
    store = MemoryStore(lambda: 0)
    store.lead("test")
    often, now = Record(), 0
    for number in range(50):
        now = number * 40_000
        rows = {f"s-{number}": session(f"s-{number}", now)}
        if number >= 1:
            rows[f"s-{number - 1}"] = session(f"s-{number - 1}", now - 40_000, now)
        if number >= 3:
            rows[f"s-{number - 3}"] = session(f"s-{number - 3}", now - 120_000, now - 80_000, now)
        store.commit(Batch(now, sessions=rows, decisions=[decision(now, "order.in-credit")] * 2))
        often.catch_up(store, now)
        often.catch_up(store, now)
    once = Record()
    once.catch_up(store, now)
    assert often.actions == once.actions == {("start", "order.in-credit"): 100}
    assert often.outcomes == once.outcomes == {"completed": 47}
    assert often.waits.buckets() == once.waits.buckets()
    assert often.waits.buckets()[-1] == ("+Inf", 49.0)
    assert often.waits.sum_s == once.waits.sum_s == 49 * 40
