"""A simulation as background work: a scenario by name, its files into the task's folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scheduler.errors import BadInput
from scheduler.policy_files import read_policy
from simulations import cluster_spec
from simulations.recorder import FILES
from simulations.run import Plan, run
from simulations.workloads.scenario import ScenarioError, load_scenario, scenario_names

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def simulate(
    folder: Path, scenario: str, policy: str, seed: int, days: float | None, stopwatch: Callable[[], float]
) -> dict[str, Any]:
    """Run a shipped scenario under a shipped policy and leave the files of `simulate run --out` in `folder`.

    Args:
        scenario, policy: names, never paths.
        days: length of the run; None = the scenario's.
        stopwatch: monotonic seconds.

    Returns:
        `files`, their names, and `summary`, the run's.

    Raises:
        BadInput: no such scenario or policy, or `days` out of range.
    """
    if scenario not in scenario_names():
        raise BadInput(f"no such scenario: {scenario!r}", f"one of {', '.join(scenario_names())}")
    if policy.endswith(".toml"):
        raise BadInput(f"{policy!r} is a file: background work takes policies by name")
    try:
        workload = load_scenario(scenario, seed=seed, days=days)
    except ScenarioError as error:
        raise BadInput("; ".join(map(str, error.mistakes))) from error
    plan = Plan(
        workload=workload,
        params=read_policy(policy),
        hosts=cluster_spec.pool(workload.gpus),
        policy=policy,
        seed=seed,
        stopwatch=stopwatch,
        progress=lambda ended, now_ms: None,  # noqa: ARG005 - nobody watches
        out=folder,
    )
    return {"files": list(FILES), "summary": run(plan).summary}
