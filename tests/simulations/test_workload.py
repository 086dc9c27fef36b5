"""Sessions from a trace: read as they are needed, and what follows an eviction."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulations.traces.row import Row
from simulations.workloads.workload import Again, TraceWorkload, Workload, left_ms

HOUR_MS = 3_600_000
FINAL = ("completed", "failed", "abandoned", "rejected", "cancelled")


def row(number: int = 0, submit_ms: int = 0, duration_ms: int = HOUR_MS, checkpoint_ms: int = 900_000) -> Row:
    return Row(f"s-{number}", "u-1", "lab", "free", submit_ms, duration_ms, checkpoint_ms=checkpoint_ms)


def test_resume_goes_on_from_the_last_checkpoint() -> None:
    """44 of 60 minutes are done, the last checkpoint was at 30: half an hour is left."""
    source = TraceWorkload("t", [row()])
    assert source.after(row(), "evicted", 5_000_000, 44 * 60_000) == Again(5_000_001, 30 * 60_000)
    assert source.after(row(), "lost", 5_000_000, 45 * 60_000) == Again(5_000_001, 15 * 60_000)


def test_restart_repeats_everything() -> None:
    source = TraceWorkload("t", [row()], on_evict="restart")
    assert source.after(row(), "evicted", 7, 44 * 60_000) == Again(8, HOUR_MS)
    assert source.after(row(), "lost", 7, 0) == Again(8, HOUR_MS)


def test_end_gives_up() -> None:
    source = TraceWorkload("t", [row()], on_evict="end")
    assert source.after(row(), "evicted", 7, 0) is None
    assert source.after(row(), "lost", 7, 0) is None


@pytest.mark.parametrize("outcome", FINAL)
@pytest.mark.parametrize("on_evict", ["resume", "restart", "end"])
def test_every_other_end_is_final(outcome: str, on_evict) -> None:
    assert TraceWorkload("t", [row()], on_evict=on_evict).after(row(), outcome, 7, 0) is None


def test_a_mode_nobody_knows_is_refused() -> None:
    with pytest.raises(ValueError, match="resume, restart, end"):
        TraceWorkload("t", [], on_evict="retry")  # type: ignore[arg-type]


@given(st.integers(1, 10**9), st.integers(1, 10**7), st.integers(0, 10**9))
def test_what_is_left(duration_ms: int, checkpoint_ms: int, done_ms: int) -> None:
    """At least 1 ms, never more than all, and at most one checkpoint interval is done twice."""
    done_ms = min(done_ms, duration_ms)
    left = left_ms(row(duration_ms=duration_ms, checkpoint_ms=checkpoint_ms), done_ms)
    assert 1 <= left <= duration_ms
    assert left == 1 or 0 <= left - (duration_ms - done_ms) < checkpoint_ms


@given(st.lists(st.integers(1, 3_600_000), max_size=20))
def test_evicted_over_and_over_the_work_still_ends(runs: list[int]) -> None:
    """What is left never grows, whether ends are counted from the first start or from the last."""
    source, asked = TraceWorkload("t", []), row()
    for ran_ms in runs:
        following = source.after(asked, "evicted", 7, min(ran_ms, asked.duration_ms))
        assert following is not None
        assert following.duration_ms <= asked.duration_ms
        asked = asked._replace(duration_ms=following.duration_ms)


def test_rows_are_read_only_when_needed() -> None:
    """One row is read ahead, to know the start; nothing holds the others."""
    read = 0

    def endless() -> Iterator[Row]:
        nonlocal read
        while True:
            read += 1
            yield row(read, submit_ms=1000 + read)

    source = TraceWorkload("t", endless())
    assert (source.start_ms, read) == (1001, 1)
    arrivals = source.arrivals()
    assert [next(arrivals).submit_ms for _ in range(5)] == [1001, 1002, 1003, 1004, 1005]
    assert (source.start_ms, source.end_ms, read) == (1001, 1005, 5)


def test_an_iterator_is_read_once_and_a_list_again_and_again() -> None:
    rows = [row(0, 5), row(1, 9)]
    source = TraceWorkload("t", iter(rows))
    assert list(source.arrivals()) == rows
    with pytest.raises(RuntimeError, match="once"):
        source.arrivals()
    kept = TraceWorkload("t", rows)
    assert list(kept.arrivals()) == list(kept.arrivals()) == rows
    assert (kept.start_ms, kept.end_ms) == (5, 9)


def test_an_empty_trace() -> None:
    source: Workload = TraceWorkload("t", [])
    assert list(source.arrivals()) == []
    assert (source.name, source.start_ms, source.end_ms) == ("t", 0, 0)


def test_rows_out_of_order_are_refused_by_name() -> None:
    source = TraceWorkload("t", [row(0, 9), row(1, 8)])
    with pytest.raises(ValueError, match="session s-1 of t is submitted at 8 ms, before the one above it"):
        list(source.arrivals())
