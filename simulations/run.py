"""One simulation from start to end: cluster, core, loop, files, summary."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from policies.catalogue import make_policy
from policies.explain import sentence
from policies.model import Action, Decision
from scheduler import events as ev
from scheduler.core import Core
from simulations.loop import Batch, Simulation
from simulations.metrics import report
from simulations.recorder import Recorder

if TYPE_CHECKING:
    from policies.params import Params
    from simulations.workloads.workload import Workload

TELLING = (Action.EVICT, Action.WARN, Action.THROTTLE, Action.NOTICE, Action.REJECT, Action.START)
"""Which decision to explain as an example, most telling first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to run.

    Attributes:
        workload, params, hosts: who comes, by which rules, on what (events that join the hosts).
        policy, seed: as the summary names them.
        shared_limit: GPUs that may be shared at once; None = any not held whole.
        out, journal: where files go, None = nowhere.
        stopwatch: monotonic seconds, for the rate; progress: told after each batch.
    """

    workload: Workload
    params: Params
    hosts: tuple[ev.HostJoined, ...]
    policy: str
    seed: int
    stopwatch: Callable[[], float]
    progress: Callable[[Simulation, Batch], None]
    shared_limit: int | None = None
    out: Path | None = None
    journal: Path | None = None


def run(plan: Plan) -> tuple[dict[str, Any], str]:
    """Run it; (summary, one decision explained). Files are in place when this returns, or none of them."""
    core = Core(make_policy(plan.params), plan.workload.start_ms, plan.shared_limit)
    for host in plan.hosts:
        core.apply(host)
    with Recorder(plan.out, plan.journal) as recorder:
        if plan.journal is not None:
            recorder.begin_journal(core)
        simulation = Simulation(core, plan.workload, recorder.tap if plan.journal is not None else None)
        wall_s, example = _drive(simulation, recorder, plan)
        digest = recorder.finish()
        head = {"trace": plan.workload.name, "policy": plan.policy, "seed": plan.seed, "digest": digest}
        rate = recorder.tally.submitted / wall_s if wall_s > 0 else None
        speed = {"wall_s": wall_s, "sessions_per_s": rate, "cycles": simulation.cycles}
        summary = {"schema": 1, **head, **report(recorder.tally, simulation), "speed": speed}
        recorder.publish(json.dumps(summary, indent=1))
    return summary, example


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
        plan.progress(simulation, batch)
