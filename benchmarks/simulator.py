"""Sessions per second of the simulator, one core, no files written; the best of a few runs.

Measured on 2 shared cores of a virtual machine, CPython 3.11: docs/simulate.md has the figures and their spread.
"""

from __future__ import annotations

import gc
import time
from heapq import heappop, heappush

from benchmarks.figure import Figure, shared
from policies.catalogue import make_policy
from scheduler.core import Core
from scheduler.policy_files import read_policy
from simulations import cluster_spec
from simulations.collecting import collected_rarely
from simulations.loop import Simulation
from simulations.traces.importers import import_trace
from simulations.traces.row import Row
from simulations.workloads.scenario import load_scenario
from simulations.workloads.workload import TraceWorkload, Workload

GPUS, RUNS = 768, 7


def measure() -> list[Figure]:
    """All figures."""
    rows = list(import_trace("helios", shared() / "traces" / "helios_10796.csv").rows)
    heap, merged, fifo, fair = 0.0, 0.0, 0.0, 0.0
    for _ in range(RUNS):  # interleaved, so that all feel the same noise
        heap = max(heap, _rate(len(rows), lambda: _bare_heap(rows)))
        merged = max(merged, _rate(len(rows), lambda: _merged_heap(rows)))
        fifo = max(fifo, _run(TraceWorkload("helios", rows), "fifo", GPUS))
        fair = max(fair, _run(TraceWorkload("helios", rows), "research-first", GPUS))
    week = max(_run(load_scenario("overload", seed=1), "research-first", 64) for _ in range(2))
    unit = "sessions/s"
    return [
        Figure(figure="research-first, helios_10796, 768 GPUs", value=fair, unit=unit, bound=10_000),
        Figure(figure="fifo, helios_10796, 768 GPUs", value=fifo, unit=unit, bound=20_000),
        Figure(figure="fifo / bare heap loop", value=fifo, unit=unit, bound=1 / 30, yardstick=heap),
        Figure(figure="fifo / heap for ends only, arrivals merged", value=fifo, unit=unit, yardstick=merged),
        Figure(figure="research-first, a generated overloaded week", value=week, unit=unit),
    ]


def _run(workload: Workload, policy: str, gpus: int) -> float:
    core = Core(make_policy(read_policy(policy)))
    for host in cluster_spec.pool(gpus):
        core.apply(host)
    simulation = Simulation(core, workload)
    gc.collect()
    began, count = time.perf_counter(), 0
    with collected_rarely():  # as `simulations.run` does
        for batch in simulation.run():
            count += len(batch.arrived)
    return count / (time.perf_counter() - began)


def _rate(count: int, loop: object) -> float:
    began = time.perf_counter()
    loop()  # type: ignore[operator]
    return count / (time.perf_counter() - began)


def _bare_heap(rows: list[Row]) -> None:
    """Every arrival and every end through one heap, and nothing else."""
    heap: list[tuple[int, int, int]] = []
    for number, row in enumerate(rows):
        heappush(heap, (row.submit_ms, 1, number))
    while heap:
        now, arrives, number = heappop(heap)
        if arrives:
            heappush(heap, (now + rows[number].duration_ms, 0, number))


def _merged_heap(rows: list[Row]) -> None:
    """Only ends go through the heap."""
    heap: list[tuple[int, int]] = []
    for number, row in enumerate(rows):
        while heap and heap[0][0] <= row.submit_ms:
            heappop(heap)
        heappush(heap, (row.submit_ms + row.duration_ms, number))
    while heap:
        heappop(heap)
