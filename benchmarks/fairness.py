"""What the rules do for people: generated fortnights on 64 GPUs, the second week measured, against other policies.

A session belongs to the week in which it was submitted; its wait is until its first start, or until it was given up.
Seeds are others than those that the rules were tuned with.
"""

from __future__ import annotations

import csv
import time
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.figure import Figure
from scheduler import events as ev
from scheduler.policy_files import read_policy
from simulations.metrics import percentile
from simulations.run import Plan, run
from simulations.traces.row import Row
from simulations.workloads.scenario import load_scenario

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from simulations.workloads.workload import Again, Workload

SEEDS = tuple(range(101, 109))
GPUS, DAYS, WEEK_S = 64, 14, 7 * 86_400


class Outcome(NamedTuple):
    """What one policy made of one fortnight's second week.

    Attributes:
        wait_s: 95th percentile of researchers' waits.
        allocated_gpu_h: GPU-hours held by all.
        goodput_gpu_h: work of trainers' sessions that completed, without what was done twice.
        wrongful: evictions in credit and not heavy.  false_warnings: per 1,000 sessions of researchers and students.
        evictions: of all.
    """

    wait_s: float
    allocated_gpu_h: float
    goodput_gpu_h: float
    wrongful: float
    false_warnings: float
    evictions: float


class _Noting:
    """A workload that keeps the useful work of each session, GPU-s."""

    def __init__(self, workload: Workload) -> None:
        self.name, self.start_ms, self.end_ms = workload.name, workload.start_ms, workload.end_ms
        self.work_gpu_s: dict[str, float] = {}
        self.argv = workload.argv
        self._workload = workload

    def arrivals(self) -> Iterator[Row]:
        """The workload's."""
        for row in self._workload.arrivals():
            self._note(row)
            yield row

    def after(self, row: Row, outcome: str, at_ms: int, done_ms: int) -> Again | Row | None:
        """The workload's."""
        following = self._workload.after(row, outcome, at_ms, done_ms)
        if isinstance(following, Row):
            self._note(following)
        return following

    def _note(self, row: Row) -> None:
        load = 1.0 if row.load is None else row.load
        self.work_gpu_s[row.session_id] = row.duration_ms / 1000 * row.gpus * float(row.fraction) * load


def outcome(name: str, policy: str, seed: int) -> Outcome:
    """Run one fortnight of a scenario under a policy."""
    workload = _Noting(load_scenario(name, seed=seed, days=DAYS, scale=1.0))
    with TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        plan = Plan(
            workload=workload,
            params=read_policy(policy),
            hosts=(ev.HostJoined(0, "pool", GPUS),),
            policy=policy,
            seed=seed,
            stopwatch=time.perf_counter,
            progress=_quiet,
            out=out,
        )
        policing = run(plan).summary["policing"]
        with (out / "sessions.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    return _second_week(rows, workload.work_gpu_s, policing)


def _quiet(ended: int, at_ms: int) -> None:
    """Nobody watches."""
    del ended, at_ms


def _second_week(rows: Sequence[dict[str, str]], work_gpu_s: dict[str, float], policing: dict[str, Any]) -> Outcome:
    waits, allocated, goodput = [], 0.0, 0.0
    for row in rows:
        start, end = float(row["start_s"] or "nan"), float(row["end_s"] or "nan")
        submitted = float(row["submit_s"])
        if row["kind"] == "researcher" and WEEK_S <= submitted < 2 * WEEK_S:
            waits.append((end if start != start else start) - submitted)
        if start == start and end > start:
            inside = max(0.0, min(end, 2 * WEEK_S) - max(start, WEEK_S)) / (end - start)
            allocated += float(row["gpu_s"]) * inside
        if row["kind"] == "trainer" and row["outcome"] == "completed" and WEEK_S <= end < 2 * WEEK_S:
            goodput += work_gpu_s[row["session_id"]]
    return Outcome(
        percentile(sorted(waits), 0.95) or 0.0,
        allocated / 3600,
        goodput / 3600,
        policing["wrongful_evictions"],
        policing["false_warnings_per_1000"],
        policing["evictions"],
    )


def mean(name: str, policy: str, seeds: Sequence[int] = SEEDS) -> Outcome:
    """Mean over the seeds."""
    found = [outcome(name, policy, seed) for seed in seeds]
    return Outcome(*(fmean(values) for values in zip(*found, strict=True)))


def measure() -> list[Figure]:
    """Waits, allocation, goodput and policing at offered loads 1.0 and 1.3."""
    figures = []
    for name, load, wait_s, false in (("busy", "1.0", 90, 10), ("overload", "1.3", 240, 35)):
        ours, fifo, quota = (mean(name, policy) for policy in ("research-first", "fifo", "status-quo"))
        figures += [
            Figure(figure=f"load {load}: researcher p95 wait", value=ours.wait_s, unit="s", bound=wait_s, at_most=True),
            Figure(figure=f"load {load}: the same under fifo", value=fifo.wait_s, unit="s"),
            Figure(figure=f"load {load}: the same under status-quo", value=quota.wait_s, unit="s"),
            Figure(
                figure=f"load {load}: allocated GPU-h / fifo's",
                value=ours.allocated_gpu_h,
                unit="GPU-h",
                bound=0.95,
                yardstick=fifo.allocated_gpu_h,
            ),
            Figure(
                figure=f"load {load}: trainers' goodput / status-quo's",
                value=ours.goodput_gpu_h,
                unit="GPU-h",
                bound=1.8,
                yardstick=quota.goodput_gpu_h,
            ),
            Figure(figure=f"load {load}: wrongful evictions", value=ours.wrongful, unit="", bound=0, at_most=True),
            Figure(
                figure=f"load {load}: false warnings per 1,000",
                value=ours.false_warnings,
                unit="",
                bound=false,
                at_most=True,
            ),
            Figure(figure=f"load {load}: evictions", value=ours.evictions, unit=""),
        ]
        if name == "overload":
            figures += [
                Figure(
                    figure="load 1.3: fifo's wait / ours", value=fifo.wait_s, unit="s", bound=20, yardstick=ours.wait_s
                ),
                Figure(
                    figure="load 1.3: status-quo's wait / ours",
                    value=quota.wait_s,
                    unit="s",
                    bound=10,
                    yardstick=ours.wait_s,
                ),
            ]
    return figures
