"""Shared GPUs against whole ones: the same fortnights in quarters of 16 shared GPUs and on 64 exclusive ones.

A session for one GPU asks for a quarter of one, a session for two for a half, one for four for a whole one, so that
both clusters have 64 places and everybody asks for as many of them. What the policy expects of requests before it has
learned (`headroom.prior_*`) is given in quarters too. Waits are those of researchers who asked in the second week, all
else is of the whole fortnight.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.figure import Figure
from policies.catalogue import make_policy
from policies.model import HOUR_MS, WHOLE_M, Action
from scheduler.core import Core
from scheduler.policy_files import read_policy
from simulations import cluster_spec
from simulations.collecting import collected_rarely
from simulations.loop import Simulation, Work
from simulations.metrics import percentile
from simulations.traces.row import Row
from simulations.workloads.scenario import load_scenario

if TYPE_CHECKING:
    from collections.abc import Iterator

    from policies.params import Params
    from simulations.workloads.workload import Again, Workload

SEEDS = (101, 102, 103, 104)
PLACES, PARTS, DAYS = 64, 4, 14
WEEK_MS = 7 * 24 * HOUR_MS


class Outcome(NamedTuple):
    """What became of one fortnight.

    Attributes:
        wait_s: 95th percentile of researchers' waits.
        evictions, warnings, throttles: decisions; a throttle of three steps counts three.
        throttled_h: hours that sessions ran on less than they asked for.
        freed_place_h: hours of a place that they gave up meanwhile.
        allocated_place_h: hours of a place that were held.
    """

    wait_s: float
    evictions: float
    warnings: float
    throttles: float
    throttled_h: float
    freed_place_h: float
    allocated_place_h: float


class _InParts:
    """A workload whose sessions ask for quarters."""

    def __init__(self, workload: Workload) -> None:
        self.name, self.start_ms, self.end_ms = workload.name, workload.start_ms, workload.end_ms
        self._workload = workload
        self._whole: dict[str, Row] = {}

    def arrivals(self) -> Iterator[Row]:
        """The workload's."""
        return map(self._part, self._workload.arrivals())

    def argv(self, row: Row) -> str:
        """The workload's."""
        return self._workload.argv(self._whole[row.session_id])

    def after(self, row: Row, outcome: str, at_ms: int, done_ms: int) -> Again | Row | None:
        """The workload's, asked about the session as it knows it."""
        following = self._workload.after(self._whole[row.session_id], outcome, at_ms, done_ms)
        return self._part(following) if isinstance(following, Row) else following

    def _part(self, row: Row) -> Row:
        self._whole[row.session_id] = row
        return row._replace(gpus=1, fraction=row.gpus / PARTS)


class _Counting(Simulation):
    """A simulation that counts what throttled sessions gave up."""

    throttled_ms = 0
    freed_m_ms = 0

    def _account(self, work: Work, now_ms: int) -> None:
        whole_m = round(work.row.fraction * WHOLE_M)
        if work.granted_m != whole_m:
            span = now_ms - work.since_ms
            self.throttled_ms += span
            self.freed_m_ms += span * (whole_m - work.granted_m)
        super()._account(work, now_ms)


def in_parts(params: Params) -> Params:
    """The same policy where everybody asks for a quarter: variance / mean of a count scales with its unit."""
    headroom = params.headroom
    return replace(
        params,
        headroom=replace(
            headroom,
            prior_per_h=headroom.prior_per_h / PARTS,
            prior_dispersion=max(1.0, headroom.prior_dispersion / PARTS),
        ),
    )


def outcome(name: str, seed: int, *, shared: bool) -> Outcome:
    """Run one fortnight of a scenario."""
    workload: Workload = load_scenario(name, seed=seed, days=DAYS)
    params, gpus = read_policy("research-first"), PLACES
    if shared:
        workload, params, gpus = _InParts(workload), in_parts(params), PLACES // PARTS
    core = Core(make_policy(params))
    for host in cluster_spec.pool(gpus):
        core.apply(host)
    simulation = _Counting(core, workload)
    works: list[Work] = []
    with collected_rarely():
        for batch in simulation.run():
            works += batch.arrived
    places = PARTS if shared else 1
    return Outcome(
        percentile(sorted(_waits_s(works)), 0.95) or 0.0,
        simulation.counts[Action.EVICT],
        simulation.counts[Action.WARN],
        simulation.counts[Action.THROTTLE],
        simulation.throttled_ms / HOUR_MS,
        simulation.freed_m_ms * places / WHOLE_M / HOUR_MS,
        sum(work.gpu_m_ms for work in works) * places / WHOLE_M / HOUR_MS,
    )


def _waits_s(works: list[Work]) -> Iterator[float]:
    for work in works:
        if work.row.kind == "researcher" and work.row.submit_ms >= WEEK_MS:
            yield ((work.start_ms if work.start_ms >= 0 else work.end_ms) - work.row.submit_ms) / 1000


def measure() -> list[Figure]:
    """Both clusters at offered loads 1.0 and 1.3."""
    figures = []
    for name, load in (("busy", "1.0"), ("overload", "1.3")):
        whole, parts = (
            Outcome(*map(fmean, zip(*(outcome(name, seed, shared=shared) for seed in SEEDS), strict=True)))
            for shared in (False, True)
        )
        figures.append(
            Figure(figure=f"load {load}: evictions, shared / exclusive", value=parts.evictions, unit="", bound=0.5,
                   at_most=True, yardstick=whole.evictions)
        )  # fmt: skip
        for text, unit, ours, theirs in (
            ("researcher p95 wait", "s", parts.wait_s, whole.wait_s),
            ("warnings", "", parts.warnings, whole.warnings),
            ("allocated hours of a place", "h", parts.allocated_place_h, whole.allocated_place_h),
        ):
            figures.append(Figure(figure=f"load {load}: {text}, shared", value=ours, unit=unit))
            figures.append(Figure(figure=f"load {load}: {text}, exclusive", value=theirs, unit=unit))
        figures += [
            Figure(figure=f"load {load}: throttle steps", value=parts.throttles, unit=""),
            Figure(figure=f"load {load}: hours that sessions were throttled", value=parts.throttled_h, unit="h"),
            Figure(figure=f"load {load}: hours of a place given to others by it", value=parts.freed_place_h, unit="h"),
        ]
    return figures
