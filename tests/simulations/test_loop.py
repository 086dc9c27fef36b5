"""The simulation loop: users who come back, GPU time counted to the millisecond, the same run from the same seed."""

from __future__ import annotations

import csv
import gc
import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.catalogue import make_policy
from policies.model import Action
from policies.params import HeadroomParams, LadderParams, Params, TierParams
from scheduler import events as ev
from scheduler.core import Core
from scheduler.journal import Difference, replay
from scheduler.policy_files import read_policy
from simulations.cluster_spec import hosts, pool
from simulations.collecting import NEW_OBJECTS, collected_rarely
from simulations.loop import Simulation, Work
from simulations.run import Plan, run
from simulations.traces.importers import import_trace
from simulations.traces.row import Row
from simulations.workloads.scenario import load_scenario
from simulations.workloads.workload import Again, OnEvict, TraceWorkload, Workload

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the folder of real traces is not beside this one")
MINUTE_MS, HOUR_MS = 60_000, 3_600_000
FIFO = Params(policy="fifo")


def row(sid: str, user: str, submit_ms: int, duration_ms: int, **more: Any) -> Row:
    return Row(sid, user, "default", "free", submit_ms, duration_ms, **more)


def simulate(
    workload: Workload, params: Params = FIFO, cluster: tuple[ev.HostJoined, ...] = pool(1)
) -> tuple[dict[str, Work], Simulation, list[Any]]:
    """(every session by its first id, the simulation at its end, the decisions); audited after every instant."""
    core = Core(make_policy(params), workload.start_ms)
    for host in cluster:
        core.apply(host._replace(at_ms=core.now_ms))
    simulation = Simulation(core, workload)
    works, decisions = {}, []
    for batch in simulation.run():
        works |= {work.row.session_id: work for work in batch.arrived}
        decisions += batch.decisions
    core.validate()
    assert not core.sessions
    return works, simulation, decisions


def trace(*rows: Row, on_evict: OnEvict = "resume") -> TraceWorkload:
    return TraceWorkload("t", list(rows), on_evict)


# -- one after another ---------------------------------------------------------------------------------------------


def test_sessions_run_for_their_duration_one_after_another() -> None:
    """On one GPU: waits, starts and ends are sums of durations, to the millisecond."""
    works, simulation, _ = simulate(trace(*(row(f"s{n}", "u", n, 1000 + n) for n in range(4))))
    assert [(w.start_ms, w.end_ms) for w in works.values()] == [(0, 1000), (1000, 2001), (2001, 3003), (3003, 4006)]
    assert [w.outcome for w in works.values()] == ["completed"] * 4
    assert simulation.ended == 4


def test_a_release_at_the_instant_of_an_arrival_serves_it_at_once() -> None:
    """Releases come before arrivals and both before the cycle."""
    works, _, _ = simulate(trace(row("a", "u", 0, 5000), row("b", "v", 5000, 10)))
    assert works["b"].start_ms == 5000


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 9000), st.integers(1, 20_000), st.integers(1, 6), st.integers(0, 3)),
        min_size=1,
        max_size=30,
    ),
    st.sampled_from(["fifo", "fifo-skip", "sjf"]),
)
def test_no_work_is_lost_or_made(sessions: list[tuple[int, int, int, int]], policy: str) -> None:
    """GPU time over all sessions is the sum of duration x GPUs, each session's own is too, and no GPU is overbooked."""
    at_ms, rows = 0, []
    for number, (gap, duration, gpus, user) in enumerate(sessions):
        at_ms += gap
        rows.append(row(f"s{number}", f"u{user}", at_ms, duration, gpus=gpus))
    works, simulation, _ = simulate(trace(*rows), Params(policy=policy), hosts("2x3"))
    assert sum(w.gpu_m_ms for w in works.values()) == sum(1000 * r.duration_ms * r.gpus for r in rows)
    for work in works.values():
        assert work.gpu_m_ms == 1000 * work.row.duration_ms * work.row.gpus
        assert work.end_ms - work.start_ms == work.row.duration_ms
        assert work.busy_m_ms == work.gpu_m_ms  # unknown load counts as 1
    instants = sorted({w.start_ms for w in works.values()})
    for now in instants:
        assert sum(w.row.gpus for w in works.values() if w.start_ms <= now < w.end_ms) <= 6
    until = rows[-1].submit_ms
    held = sum(1000 * w.row.gpus * max(0, min(until, w.end_ms) - w.start_ms) for w in works.values())
    assert simulation.area_m_ms == held


def test_the_known_load_is_the_busy_part() -> None:
    """Load .25 over an hour: a quarter of the GPU time is busy."""
    works, _, _ = simulate(trace(row("s", "u", 0, HOUR_MS, load=0.25)))
    assert works["s"].busy_m_ms == works["s"].gpu_m_ms / 4 == 250 * HOUR_MS


# -- patience ------------------------------------------------------------------------------------------------------


def test_a_waiter_gives_up_when_its_patience_ends() -> None:
    """Not before, and not if it starts at that very instant or earlier."""
    works, simulation, _ = simulate(
        trace(
            row("a", "u", 0, 10_000),
            row("gone", "v", 0, 10, patience_ms=9_999),
            row("in-time", "w", 0, 10, patience_ms=10_001),
            row("later", "x", 1, 10),
        )
    )
    assert (works["gone"].outcome, works["gone"].end_ms, works["gone"].start_ms) == ("abandoned", 9_999, -1)
    assert (works["in-time"].outcome, works["in-time"].start_ms) == ("completed", 10_000)
    assert works["later"].start_ms == 10_010
    assert simulation.ended == 4


def test_patience_ends_with_the_start() -> None:
    """A session that runs longer than its patience is not abandoned."""
    works, _, _ = simulate(trace(row("s", "u", 0, 10_000, patience_ms=1)))
    assert (works["s"].outcome, works["s"].end_ms) == ("completed", 10_000)


# -- evicted and back ----------------------------------------------------------------------------------------------

QUICK = Params(
    tiers={"free": TierParams(baseline_gpus=0.02)},
    ladder=LadderParams(min_run_ms=10 * MINUTE_MS, warn_ms=0, grace_ms=0),
)
"""A cap of 1.385 GPU-h; whoever is past it gives way at once."""


def two(on_evict: OnEvict) -> tuple[dict[str, Work], list[Any]]:
    """A trainer of 10 h; after 4 h (out of credit by then) somebody fresh asks for half an hour."""
    rows = (
        row("long", "ann", 0, 10 * HOUR_MS, load=1.0, checkpoint_ms=HOUR_MS),
        row("short", "bob", 14_500_000, 1_800_000),
    )
    works, _, decisions = simulate(trace(*rows, on_evict=on_evict), QUICK)
    return works, decisions


def test_an_evicted_session_goes_on_from_its_last_checkpoint() -> None:
    """Evicted after 14,500 s with a checkpoint each hour: 4 h are kept, the rest is done again when it has its turn."""
    works, decisions = two("resume")
    long, short = works["long"], works["short"]
    assert (short.start_ms, short.end_ms) == (14_500_000, 16_300_000)
    assert (long.evictions, long.attempts, long.outcome, long.start_ms) == (1, 2, "completed", 0)
    assert long.session == "long#2"
    again = [d.at_ms for d in decisions if d.action is Action.START and d.session == "long#2"]
    assert again == [16_300_000]
    assert long.end_ms == again[0] + 6 * HOUR_MS
    assert long.gpu_m_ms == 1000 * (14_500_000 + 6 * HOUR_MS)


def test_an_evicted_session_may_begin_again() -> None:
    """`restart` does the whole of it once more."""
    long = two("restart")[0]["long"]
    assert (long.evictions, long.attempts, long.outcome) == (1, 2, "completed")
    assert long.end_ms == 16_300_000 + 10 * HOUR_MS
    assert long.gpu_m_ms == 1000 * (14_500_000 + 10 * HOUR_MS)


def test_an_evicted_session_may_stay_away() -> None:
    """`end` leaves it evicted."""
    long = two("end")[0]["long"]
    assert (long.evictions, long.attempts, long.outcome, long.end_ms) == (1, 1, "evicted", 14_500_000)
    assert long.gpu_m_ms == 1000 * 14_500_000


class FollowUp:
    """One session; when it ends its user asks for another, `times` times, or the same once more if given up."""

    name = "follow-up"
    start_ms = end_ms = 0

    def __init__(self, first: Row, times: int) -> None:
        self.first = first
        self.times = times
        self.told: list[tuple[str, str, int, int]] = []

    def arrivals(self) -> Iterator[Row]:
        yield row("other", "zoe", 0, 5000)
        yield self.first

    def after(self, row: Row, outcome: str, at_ms: int, done_ms: int) -> Again | Row | None:
        self.told.append((row.session_id, outcome, at_ms, done_ms))
        if row.user == "zoe" or self.times == 0:
            return None
        self.times -= 1
        if outcome == "abandoned":
            return Again(at_ms + 2000, row.duration_ms)
        return row._replace(session_id=f"{row.session_id}+", submit_ms=at_ms + 100)


def test_a_follow_up_is_a_session_of_its_own() -> None:
    """A new row arrives at its submit time, is counted, and the workload hears of every end with the work done."""
    workload = FollowUp(row("s", "u", 0, 700), 2)
    works, simulation, _ = simulate(workload)
    assert [(sid, w.row.submit_ms, w.start_ms, w.end_ms) for sid, w in works.items()] == [
        ("other", 0, 0, 5000),
        ("s", 0, 5000, 5700),
        ("s+", 5800, 5800, 6500),
        ("s++", 6600, 6600, 7300),
    ]
    assert workload.told == [
        ("other", "completed", 5000, 5000),
        ("s", "completed", 5700, 700),
        ("s+", "completed", 6500, 700),
        ("s++", "completed", 7300, 700),
    ]
    assert simulation.ended == 4


def test_who_gave_up_may_ask_again_with_the_same_session() -> None:
    """Abandoned after 3 s, back 2 s later: one session with two attempts, and its patience starts anew."""
    works, simulation, _ = simulate(FollowUp(row("s", "u", 0, 700, patience_ms=3000), 1))
    work = works["s"]
    assert (work.attempts, work.outcome, work.start_ms, work.end_ms) == (2, "completed", 5000, 5700)
    assert simulation.ended == len(works) == 2


def test_what_can_never_run_is_rejected_and_its_user_told() -> None:
    """More GPUs than there are: rejected at its submit time, nothing held."""
    workload = FollowUp(row("s", "u", 0, 700, gpus=2), 0)
    works, _, _ = simulate(workload)
    assert (works["s"].outcome, works["s"].end_ms, works["s"].gpu_m_ms) == ("rejected", 0, 0)
    assert ("s", "rejected", 0, 0) in workload.told


# -- throttled -----------------------------------------------------------------------------------------------------

SLOW = Params(
    tiers={"free": TierParams(baseline_gpus=0.02)},
    headroom=HeadroomParams(),
    ladder=LadderParams(min_run_ms=10 * MINUTE_MS, warn_ms=0, grace_ms=0, throttle_step_ms=5 * MINUTE_MS),
)


def test_a_throttled_session_is_slower_by_as_much_as_it_is_given_less() -> None:
    """Work, GPU time, busy time and throttled time add up over all grants: integral of the grant = the work asked."""
    works, _, decisions = simulate(
        trace(
            row("long", "ann", 0, 6 * HOUR_MS, fraction=0.8, load=0.5),
            row("short", "bob", 5 * HOUR_MS, 30 * MINUTE_MS, fraction=0.4),
        ),
        SLOW,
    )
    long = works["long"]
    grants = [(0, 800), *((d.at_ms, d.granted_m) for d in decisions if d.session == "long" and d.granted_m is not None)]
    grants = [(at, granted) for at, granted in grants if granted is not None]
    assert 600 in [granted for _, granted in grants]
    edges = [at for at, _ in grants[1:]] + [long.end_ms]
    spans = [(granted, until - at) for (at, granted), until in zip(grants, edges, strict=True)]
    assert long.outcome == "completed"
    assert long.gpu_m_ms == sum(granted * span for granted, span in spans)
    assert long.busy_m_ms == pytest.approx(long.gpu_m_ms / 2)
    assert long.throttled_ms == sum(span for granted, span in spans if granted < 800)
    assert long.throttled_ms > 0
    work = sum(granted * span for granted, span in spans)
    assert 0 <= work - 800 * long.row.duration_ms <= 800 * len(spans)  # ends are rounded up to the millisecond
    assert works["short"].start_ms == 5 * HOUR_MS


# -- the same again ------------------------------------------------------------------------------------------------


def run_scenario(seed: int, out: Path | None = None, journal: Path | None = None, days: float = 0.4) -> dict[str, Any]:
    workload = load_scenario("overload", seed=seed, days=days)
    plan = Plan(
        workload=workload,
        params=read_policy("research-first"),
        hosts=pool(workload.gpus),
        policy="research-first",
        seed=seed,
        stopwatch=lambda: 0.0,
        progress=lambda simulation, batch: None,
        out=out,
        journal=journal,
    )
    return run(plan)[0]


def test_the_same_seed_gives_the_same_run_and_another_seed_another(tmp_path: Path) -> None:
    """Digest, summary and files are equal byte for byte for one seed; a second seed changes them."""
    first, second = run_scenario(1, tmp_path / "a"), run_scenario(1, tmp_path / "b")
    assert first == second
    assert first["sessions"]["submitted"] > 50
    for name in ("sessions.csv", "decisions.jsonl", "summary.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert run_scenario(2)["digest"] != first["digest"]


def test_the_digest_is_that_of_the_two_files_and_needs_no_files(tmp_path: Path) -> None:
    """SHA-256 of sessions.csv followed by decisions.jsonl; the same when nothing is written."""
    summary = run_scenario(3, tmp_path / "out", days=0.2)
    both = (tmp_path / "out" / "sessions.csv").read_bytes() + (tmp_path / "out" / "decisions.jsonl").read_bytes()
    assert summary["digest"] == hashlib.sha256(both).hexdigest()
    assert run_scenario(3, days=0.2)["digest"] == summary["digest"]
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary


def test_a_journal_does_not_change_the_run_and_replays(tmp_path: Path) -> None:
    """With a journal the digest is the same, and the journal replays without a difference."""
    journal = tmp_path / "j.jsonl"
    assert run_scenario(4, journal=journal, days=0.2)["digest"] == run_scenario(4, days=0.2)["digest"]
    with journal.open(encoding="utf-8") as lines:
        said = list(replay(lines, "j.jsonl"))
    assert said
    assert not any(isinstance(result, Difference) for result in said)


# -- start for start as other simulators -----------------------------------------------------------------------------


def starts(kind: str, file: str, params: Params, cluster: tuple[ev.HostJoined, ...]) -> list[Work]:
    rows = import_trace(kind, SHARED / "traces" / file).rows
    core = Core(make_policy(params), rows[0].submit_ms)
    for host in cluster:
        core.apply(host._replace(at_ms=core.now_ms))
    works = [work for batch in Simulation(core, TraceWorkload(kind, rows)).run() for work in batch.arrived]
    assert [work.row.session_id for work in works] == [f"{kind}-{number}" for number in range(len(rows))]
    return works


def reference(name: str) -> list[dict[str, str]]:
    with (SHARED / "reference" / "replays" / name).open(newline="") as file:
        return list(csv.DictReader(file))


def mean_wait_s(works: list[Work]) -> float:
    return sum(work.start_ms - work.row.submit_ms for work in works) / len(works) / 1000


@pytest.mark.slow
@needs_shared
def test_helios_is_replayed_start_for_start() -> None:
    """`fifo` on a pool of 768 starts all 10,796 jobs in the second in which Tiresias does; mean wait 933.31 s."""
    wanted = reference("helios_10796_fifo_768pooled.csv")
    works = starts("helios", "helios_10796.csv", FIFO, pool(768))
    assert len(works) == len(wanted) == 10_796
    assert [(w.row.submit_ms, w.start_ms) for w in works] == [
        (1000 * int(line["submit_s"]), 1000 * int(line["start_s"])) for line in wanted
    ]
    assert mean_wait_s(works) == pytest.approx(933.31, abs=0.005)


@pytest.mark.slow
@needs_shared
def test_helios_passing_over_what_does_not_fit() -> None:
    """`fifo-skip` on the same pool: mean wait 223.42 s."""
    works = starts("helios", "helios_10796.csv", Params(policy="fifo-skip"), pool(768))
    assert mean_wait_s(works) == pytest.approx(223.42, abs=0.005)


@pytest.mark.slow
@needs_shared
def test_philly_is_replayed_start_for_start() -> None:
    """`fifo` by `consolidate` on 16 hosts of 8 starts all 11,897 jobs as the reference does; mean wait 240.98 s."""
    wanted = reference("philly_11cb48_fifo_consolidate_16x8.csv")
    works = starts("philly", "philly_11cb48.csv", FIFO, hosts("16x8"))
    assert len(works) == len(wanted) == 11_897
    assert [(w.row.gpus, w.row.submit_ms, w.row.duration_ms, w.start_ms) for w in works] == [
        (int(line["gpus"]), *(1000 * int(line[name]) for name in ("submit_s", "duration_s", "start_s")))
        for line in wanted
    ]
    assert mean_wait_s(works) == pytest.approx(240.98, abs=0.005)


@pytest.mark.slow
@needs_shared
def test_the_journal_of_helios_replays_byte_for_byte(tmp_path: Path) -> None:
    """20 days of 95 users under the default policy: every cycle decides again what it decided."""
    journal = tmp_path / "helios.jsonl"
    plan = Plan(
        workload=TraceWorkload("helios", import_trace("helios", SHARED / "traces" / "helios_10796.csv").rows),
        params=read_policy("research-first"),
        hosts=pool(768),
        policy="research-first",
        seed=1,
        stopwatch=lambda: 0.0,
        progress=lambda simulation, batch: None,
        journal=journal,
    )
    assert run(plan)[0]["sessions"]["submitted"] == 10_796
    with journal.open(encoding="utf-8") as lines:
        cycles = 0
        for result in replay(lines, str(journal)):
            assert not isinstance(result, Difference), result
            cycles += 1
    assert cycles > 10_000


def test_the_collector_is_as_it_was_after_a_simulation() -> None:
    """It looks less often inside, and as before outside, after an error too."""
    before = gc.get_threshold()
    with collected_rarely():
        assert gc.get_threshold()[0] == NEW_OBJECTS > before[0]
    with suppress(KeyError), collected_rarely():
        raise KeyError
    assert gc.get_threshold() == before
