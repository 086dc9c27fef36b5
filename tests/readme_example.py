"""The decision that the README explains: the first eviction for a nominated waiter in the `overload` week."""

from __future__ import annotations

from policies.catalogue import make_policy
from policies.model import Action, Decision
from scheduler.core import Core
from scheduler.policy_files import read_policy
from simulations import cluster_spec
from simulations.loop import Simulation
from simulations.workloads.scenario import load_scenario


def example() -> Decision:
    """Run the week until it happens."""
    workload = load_scenario("overload", seed=1)
    core = Core(make_policy(read_policy("research-first")))
    for host in cluster_spec.pool(workload.gpus):
        core.apply(host)
    for batch in Simulation(core, workload).run():
        for decision in batch.decisions:
            if decision.action is Action.EVICT and decision.reason.rule == "ladder.evict":
                return decision
    raise AssertionError("nobody was evicted for a waiter in the overload week")
