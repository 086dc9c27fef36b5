"""Demand without a policy: every session served at once and run to its end."""

import heapq
import math
from collections import defaultdict
from collections.abc import Callable, Iterator

from simulations.traces.row import Row
from simulations.workloads.rhythm import HOUR_MS
from simulations.workloads.workload import Workload


def open_loop(workload: Workload) -> Iterator[Row]:
    """Every session somebody asks for if each starts at once and completes, sorted by submit, then session id.

    Holds only the sessions that run. This is what a generated trace contains.
    """
    arrivals = workload.arrivals()
    waiting: list[tuple[int, str, Row]] = []  # submits to come
    running: list[tuple[int, str, Row]] = []  # ends to come

    def ask(row: Row | None) -> None:
        if row is not None:
            heapq.heappush(waiting, (row.submit_ms, row.session_id, row))

    ask(next(arrivals, None))
    arrived = waiting[0][1] if waiting else ""
    while waiting or running:
        if running and (not waiting or running[0][0] <= waiting[0][0]):
            end_ms, _, row = heapq.heappop(running)
            following = workload.after(row, "completed", end_ms, row.duration_ms)
            ask(following if isinstance(following, Row) else None)
            continue
        _, session_id, row = heapq.heappop(waiting)
        yield row
        heapq.heappush(running, (row.submit_ms + row.duration_ms, session_id, row))
        if session_id == arrived:
            following_arrival = next(arrivals, None)
            arrived = following_arrival.session_id if following_arrival is not None else ""
            ask(following_arrival)


def offered_gpu_h(workload: Workload, label: Callable[[Row], str]) -> dict[str, float]:
    """GPU-hours asked for inside `start_ms` .. `end_ms` in the open loop, by label (kind or user, say)."""
    gpu_ms: defaultdict[str, float] = defaultdict(float)
    for row in open_loop(workload):
        inside_ms = min(row.submit_ms + row.duration_ms, workload.end_ms) - row.submit_ms
        gpu_ms[label(row)] += max(0, inside_ms) * row.gpus * row.fraction
    return {name: value / HOUR_MS for name, value in gpu_ms.items()}


def offered_load(workload: Workload, gpus: int) -> float:
    """GPU-hours asked for over GPU-hours there are, in the open loop; `gpus` >= 1."""
    span_h = (workload.end_ms - workload.start_ms) / HOUR_MS
    return math.fsum(offered_gpu_h(workload, lambda row: row.kind).values()) / (gpus * span_h)
