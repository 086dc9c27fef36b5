"""Measures against their definitions computed the slow way, and waits against queueing theory."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from statistics import fmean, quantiles, stdev

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from policies.catalogue import make_policy
from policies.params import Params
from scheduler.core import Core
from simulations.cluster_spec import pool
from simulations.loop import Simulation, Work
from simulations.metrics import Tally, gini, jain, max_min_fill, percentile, report, summary
from simulations.recorder import Recorder, session_line
from simulations.streams import Stream
from simulations.traces.row import Row
from simulations.workloads.workload import TraceWorkload

VALUES = st.lists(st.floats(0, 1e6, allow_subnormal=False), min_size=1, max_size=40)
POSITIVE = st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=40)

# -- definitions ---------------------------------------------------------------------------------------------------


@given(VALUES, st.floats(0, 1))
def test_percentiles_lie_on_the_line_between_two_values(values: list[float], part: float) -> None:
    """Between neighbours of the sorted list, at the place `part x (n - 1)` of it; the ends are minimum and maximum."""
    ordered = sorted(values)
    found = percentile(ordered, part)
    assert found is not None
    place = part * (len(ordered) - 1)
    below, above = ordered[math.floor(place)], ordered[math.ceil(place)]
    assert below <= found <= above or math.isclose(found, below) or math.isclose(found, above)
    assert found == pytest.approx(below * (1 - place % 1) + above * (place % 1), rel=1e-9, abs=1e-9)
    assert percentile(ordered, 0.0) == ordered[0]
    assert percentile(ordered, 1.0) == ordered[-1]


@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=60))
def test_percentiles_are_those_of_the_standard_library(values: list[float]) -> None:
    """The same as `statistics.quantiles(method="inclusive")` at every per cent."""
    ordered = sorted(values)
    for number, wanted in enumerate(quantiles(ordered, n=100, method="inclusive"), start=1):
        assert percentile(ordered, number / 100) == pytest.approx(wanted, rel=1e-9, abs=1e-6)


def test_nothing_has_no_percentile() -> None:
    """No values: None, in the summary as well, where a mean of nothing would be no number."""
    assert percentile([], 0.5) is None
    assert summary([]) == {"mean": None, "p50": None, "p95": None, "p99": None}
    assert summary([3.0, 1.0, 2.0], (0.5,)) == {"mean": 2.0, "p50": 2.0}


@given(POSITIVE)
def test_jain_is_its_formula_and_lies_between_one_nth_and_one(values: list[float]) -> None:
    """(sum)^2 / (n sum of squares)."""
    found = jain(values)
    assert found is not None
    assert found == pytest.approx(sum(values) ** 2 / (len(values) * sum(v * v for v in values)))
    assert 1 / len(values) - 1e-9 <= found <= 1 + 1e-9
    assert jain([5.0] * len(values)) == pytest.approx(1.0)
    assert jain([0.0] * (len(values) - 1) + [7.0]) == pytest.approx(1 / len(values))


@given(POSITIVE)
def test_gini_is_the_mean_difference_over_twice_the_mean(values: list[float]) -> None:
    """Sum over all pairs of |a - b|, / (2 n^2 mean): the definition that needs no order."""
    found = gini(values)
    assert found is not None
    pairs = math.fsum(abs(a - b) for a in values for b in values)
    assert found == pytest.approx(pairs / (2 * len(values) ** 2 * fmean(values)), abs=1e-9)
    assert -1e-9 <= found < 1
    assert gini([5.0] * len(values)) == pytest.approx(0.0, abs=1e-12)
    assert gini([0.0] * 9 + [7.0]) == pytest.approx(0.9)


def test_measures_of_nothing_are_unknown() -> None:
    """No users, or users that were given nothing: None, not 0."""
    for nothing in ([], [0.0, 0.0]):
        assert jain(nothing) is None
        assert gini(nothing) is None


def filled_slowly(demand: dict[str, float], capacity: float) -> dict[str, float]:
    """Progressive filling as defined: raise all that are not yet satisfied together until the capacity is used."""
    got = dict.fromkeys(demand, 0.0)
    left = capacity
    while left > 1e-9 * max(1.0, capacity):
        hungry = [name for name in demand if demand[name] - got[name] > 1e-12 * max(1.0, demand[name])]
        if not hungry:
            break
        raised = min(left / len(hungry), min(demand[name] - got[name] for name in hungry))
        for name in hungry:
            got[name] += raised
        left -= raised * len(hungry)
    return got


DEMAND = st.dictionaries(st.sampled_from("abcdefghij"), st.floats(0.01, 1000), max_size=8)


@given(DEMAND, st.floats(0, 3000))
def test_max_min_filling_is_progressive_filling(demand: dict[str, float], capacity: float) -> None:
    """The same parts as raising everybody together; nothing is given beyond demand or capacity, none is wasted."""
    parts = max_min_fill(demand, capacity)
    wanted = filled_slowly(demand, capacity)
    assert parts.keys() == demand.keys()
    for name, part in parts.items():
        assert part == pytest.approx(wanted[name], rel=1e-6, abs=1e-6)
        assert 0 <= part <= demand[name]
    assert math.fsum(parts.values()) == pytest.approx(min(capacity, math.fsum(demand.values())), abs=1e-6)


@given(DEMAND, st.floats(0.1, 3000))
def test_whoever_gets_less_than_asked_gets_at_least_as_much_as_anybody(
    demand: dict[str, float], capacity: float
) -> None:
    """The definition of max-min fairness: a part short of its demand is among the largest."""
    parts = max_min_fill(demand, capacity)
    assume(parts)
    for name, part in parts.items():
        if part < demand[name] - 1e-9:
            assert part >= max(parts.values()) - 1e-6


# -- the report of a run -------------------------------------------------------------------------------------------


def simulated(rows: list[Row], gpus: int, policy: str = "fifo") -> tuple[list[Work], Simulation]:
    core = Core(make_policy(Params(policy=policy)), rows[0].submit_ms if rows else 0)
    for host in pool(gpus):
        core.apply(host._replace(at_ms=core.now_ms))
    simulation = Simulation(core, TraceWorkload("t", rows))
    return [work for batch in simulation.run() for work in batch.arrived], simulation


def row(sid: str, user: str, submit_ms: int, duration_ms: int, gpus: int = 1, **more: object) -> Row:
    return Row(sid, user, "default", "free", submit_ms, duration_ms, gpus, **more)  # type: ignore[arg-type]


def test_the_report_counts_what_happened() -> None:
    """Three sessions on one GPU, worked out by hand: waits, turnarounds, allocation up to the last submit, fairness."""
    works, simulation = simulated(
        [
            row("a", "ann", 0, 10_000, load=0.5, kind="trainer"),
            row("b", "bob", 2_000, 4_000, patience_ms=60_000, kind="student"),
            row("c", "cem", 4_000, 5_000, patience_ms=3_000, kind="student"),
            row("d", "dee", 8_000, 1_000, gpus=2, kind="student"),
        ],
        1,
    )
    tally = Tally()
    for work in works:
        tally.add(work)
    said = report(tally, simulation)
    assert said["sessions"] == {
        "submitted": 4,
        "started": 2,
        "completed": 2,
        "evicted": 0,
        "abandoned": 1,
        "rejected": 1,
    }
    assert said["wait_s"]["mean"] == pytest.approx((0 + 8 + 3) / 3)
    assert said["wait_s"]["p50"] == 3.0
    assert said["wait_s"]["by_kind"]["student"]["mean"] == pytest.approx((8 + 3) / 2)
    assert said["wait_s"]["by_tier"]["free"]["mean"] == said["wait_s"]["mean"]
    assert said["jct_s"]["mean"] == pytest.approx((10 + 12) / 2)
    assert said["gpu"]["allocated"] == pytest.approx(1.0)
    assert said["gpu"]["busy"] == pytest.approx(0.5)
    assert said["gpu"]["busy_counts_unknown_load_as_1"] is True
    served = {"ann": 10.0, "bob": 4.0, "cem": 0.0, "dee": 0.0}
    entitled = max_min_fill({"ann": 10.0, "bob": 4.0, "cem": 5.0, "dee": 2.0}, 8.0)
    parts = [served[user] / entitled[user] for user in served]
    assert said["fairness"]["jain"] == pytest.approx(jain(parts))
    assert said["fairness"]["gini"] == pytest.approx(gini(parts))
    assert said["fairness"]["min_served_over_entitled"] == 0.0


def test_a_run_in_which_nothing_happened_has_no_figures() -> None:
    """No sessions at all: counts of 0, and None for every measure, not 0."""
    _, simulation = simulated([], 1)
    said = report(Tally(), simulation)
    assert said["sessions"]["submitted"] == 0
    assert said["wait_s"]["mean"] is said["jct_s"]["mean"] is said["gpu"]["allocated"] is None
    assert said["fairness"] == {"jain": None, "gini": None, "min_served_over_entitled": None}
    assert said["policing"]["false_warnings_per_1000"] is None


def test_a_session_is_written_as_documented() -> None:
    """Column by column, unknown fields empty, milliseconds kept."""
    works, _ = simulated(
        [row("a", "ann", 1_500, 10_001, load=0.5, kind="trainer"), row("b", "bob", 2_000, 9, patience_ms=250)], 1
    )
    assert [session_line(work) for work in works] == [
        "a,ann,free,trainer,1.5,1.5,11.501,0,completed,1,pool,10.001,5.0005,0,0,0\n",
        "b,bob,free,other,2,,2.25,0.25,abandoned,1,,0.0,0.0,0,0,0\n",
    ]


def test_the_digest_is_that_of_the_files(tmp_path: Path) -> None:
    """SHA-256 of sessions.csv followed by decisions.jsonl, whatever the batches were."""
    rows = [row(f"s{n}", f"u{n % 3}", 10 * n, 1_000) for n in range(50)]
    core = Core(make_policy(Params(policy="fifo")))
    for host in pool(2):
        core.apply(host._replace(at_ms=core.now_ms))
    with Recorder(tmp_path / "out", None) as recorder:
        for batch in Simulation(core, TraceWorkload("t", rows)).run():
            recorder.write(batch)
        digest = recorder.finish()
        recorder.publish("{}")
    files = [(tmp_path / "out" / name).read_bytes() for name in ("sessions.csv", "decisions.jsonl")]
    assert digest == hashlib.sha256(b"".join(files)).hexdigest()
    assert files[0].count(b"\n") == 51
    assert files[1].count(b"\n") == 50
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "decisions.jsonl",
        "sessions.csv",
        "summary.json",
    ]


# -- queueing theory -----------------------------------------------------------------------------------------------


def erlang_c_wait_s(servers: int, rate: float, service_s: float) -> float:
    """Mean wait of M/M/c: C(c, a) / (c / s - rate), a = rate x s (Erlang 1917)."""
    offered = rate * service_s
    blocked = offered**servers / math.factorial(servers) * servers / (servers - offered)
    wait = blocked / (sum(offered**k / math.factorial(k) for k in range(servers)) + blocked)
    return wait / (servers / service_s - rate)


def arrivals(seed: int, rate: float, service_s: float, number: int) -> Iterator[Row]:
    gaps, services, at_ms = Stream(seed, "gap"), Stream(seed, "service"), 0.0
    for index in range(number):
        at_ms += gaps.exponential(1000 / rate)
        yield row(f"s{index}", "u", round(at_ms), max(1, round(services.exponential(1000 * service_s))))


def test_the_formula_is_known_where_it_is_simple() -> None:
    """M/M/1 at load .5 waits rho / (1 - rho) services; the formula for many servers has that as its first case."""
    assert erlang_c_wait_s(1, 0.5, 1.0) == pytest.approx(1.0)
    assert erlang_c_wait_s(1, 0.8, 1.0) == pytest.approx(4.0)


@pytest.mark.slow
@pytest.mark.parametrize(("servers", "load"), [(1, 0.7), (8, 0.7), (8, 0.9)])
def test_waits_under_fifo_are_those_of_the_theory(servers: int, load: float) -> None:
    """M/M/c, 20 independent runs of 20,000 sessions, the first 4,000 left out: within 3 standard errors of Erlang C."""
    service_s = 600.0
    rate = load * servers / service_s
    means = []
    for seed in range(20):
        works, _ = simulated(list(arrivals(seed, rate, service_s, 20_000)), servers)
        means.append(fmean((work.start_ms - work.row.submit_ms) / 1000 for work in works[4_000:]))
    error = stdev(means) / math.sqrt(len(means))
    wanted = erlang_c_wait_s(servers, rate, service_s)
    assert abs(fmean(means) - wanted) <= 3 * error
    assert error < 0.1 * wanted  # a test that would accept anything is none


@pytest.mark.slow
def test_sessions_start_in_the_order_in_which_they_came() -> None:
    """The premise of the theory above: first come, first served."""
    works, _ = simulated(list(arrivals(99, 0.9 * 8 / 600.0, 600.0, 20_000)), 8)
    assert all(before.start_ms <= after.start_ms for before, after in pairwise(works))
