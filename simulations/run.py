"""One simulation from start to end: cluster, core, loop, files, summary."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from policies.catalogue import make_policy
from policies.explain import sentence
from policies.model import Action, Decision
from scheduler import events as ev
from scheduler.core import Core
from simulations.collecting import collected_rarely
from simulations.loop import Simulation
from simulations.metrics import report
from simulations.recorder import Recorder

if TYPE_CHECKING:
    from policies.params import Params
    from simulations.traces.row import Row
    from simulations.workloads.workload import Workload

TELLING = (Action.EVICT, Action.WARN, Action.THROTTLE, Action.NOTICE, Action.REJECT, Action.START)
"""Which decision to explain as an example, most telling first."""

WATCH_EVERY = 64
"""Cycles between two words about progress."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to run.

    Attributes:
        workload, params, hosts: who comes, by which rules, on what (events that join the hosts).
        policy, seed: as the summary names them.
        shared_limit: GPUs that may be shared at once; None = any not held whole.
        out, journal: where files go, None = nowhere.
        stopwatch: monotonic seconds, for the rate.
        progress: told now and then how many sessions have ended, and the virtual time, ms.
    """

    workload: Workload
    params: Params
    hosts: tuple[ev.HostJoined, ...]
    policy: str
    seed: int
    stopwatch: Callable[[], float]
    progress: Callable[[int, int], None]
    shared_limit: int | None = None
    out: Path | None = None
    journal: Path | None = None


class Result(NamedTuple):
    """What a run leaves: its summary, one decision in words, and how many sessions each kind's waits cover."""

    summary: dict[str, Any]
    example: str
    waited: dict[str, int]


class _Reading:
    """A workload that knows how long reading it took: the rate of a run is the loop's alone."""

    def __init__(self, workload: Workload, stopwatch: Callable[[], float]) -> None:
        self.name, self.start_ms, self.end_ms = workload.name, workload.start_ms, workload.end_ms
        self.spent_s = 0.0
        self.after, self.argv = workload.after, workload.argv
        self._workload = workload
        self._stopwatch = stopwatch

    def arrivals(self) -> Iterator[Row]:
        """The workload's, timed."""
        rows, stopwatch = self._workload.arrivals(), self._stopwatch
        while True:
            began = stopwatch()
            row = next(rows, None)
            self.spent_s += stopwatch() - began
            if row is None:
                return
            yield row


class _Watched(Simulation):
    """A simulation that says how far it is: a batch can take minutes to fill."""

    watch: Callable[[int, int], None]

    def elapse(self, now_ms: int) -> None:
        """Every few instants, tell."""
        super().elapse(now_ms)
        if not self.cycles % WATCH_EVERY:
            self.watch(self.ended, now_ms)


def run(plan: Plan) -> Result:
    """Run it. Files are in place when this returns, or none of them.

    Raises:
        BadInput: a place for files that cannot take them.
        FairTierError: a write failed; nothing was changed.
        TraceError: a row of the trace is wrong; nothing was changed.
    """
    reading = _Reading(plan.workload, plan.stopwatch)
    core = Core(make_policy(plan.params), plan.workload.start_ms, plan.shared_limit)
    for host in plan.hosts:
        core.apply(host._replace(at_ms=plan.workload.start_ms))
    with Recorder(plan.out, plan.journal) as recorder:
        if plan.journal is not None:
            recorder.begin_journal(core)
        simulation = _Watched(core, reading, recorder.tap if plan.journal is not None else None)
        simulation.watch = plan.progress
        with collected_rarely():
            wall_s, example = _drive(simulation, recorder, plan)
        wall_s -= reading.spent_s
        digest = recorder.finish()
        head = {"trace": plan.workload.name, "policy": plan.policy, "seed": plan.seed, "digest": digest}
        rate = recorder.tally.submitted / wall_s if wall_s > 0 else None
        speed = {"wall_s": wall_s, "sessions_per_s": rate, "cycles": simulation.cycles}
        summary = {"schema": 1, **head, **report(recorder.tally, simulation), "speed": speed}
        recorder.publish(json.dumps(summary, indent=1, allow_nan=False))
    return Result(summary, example, recorder.waited)


def _drive(simulation: Simulation, recorder: Recorder, plan: Plan) -> tuple[float, str]:
    """Run to the end; (seconds spent in the loop itself, the most telling decision in words)."""
    wall_s, best, batches = 0.0, len(TELLING), simulation.run()
    example: Decision | None = None
    while True:
        began = plan.stopwatch()
        batch = next(batches, None)
        wall_s += plan.stopwatch() - began
        if batch is None:
            return wall_s, sentence(example) if example is not None else ""
        for decision in batch.decisions:
            if best and decision.action in TELLING[:best]:
                best, example = TELLING.index(decision.action), decision
        recorder.write(batch)
