"""What one heavy user gains from many accounts: paired weeks in which only the number of its accounts differs.

Load 1.3 on 64 GPUs, of which the heavy user asks for `LINES`. It and the people who hoard or sweep have unverified
accounts: one group with a fixed share, one tier. With `group_baseline_gpus` the group's GPU-hours should stay within
2 % however many accounts it has (I10). The figures without it, and without the bounded-wait band, which gives each
account its turn, say what either is worth.
"""

from __future__ import annotations

import heapq
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from statistics import fmean, stdev
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.figure import Figure
from policies.catalogue import make_policy
from policies.model import WHOLE_M
from policies.params import TierParams
from policies.usage import NEVER_MS
from scheduler import events as ev
from scheduler.core import Core
from scheduler.policy_files import read_policy
from simulations.loop import Simulation
from simulations.traces.row import Row
from simulations.workloads.rhythm import DAY_MS, HOUR_MS, MINUTE_MS
from simulations.workloads.scenario import read_scenario
from simulations.workloads.workload import Again, left_ms

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from simulations.workloads.workload import Workload

GPUS, LOAD, LINES = 64, 1.3, 20
SEEDS = tuple(range(201, 221))
GROUP, HEAVY = "unverified", "heavy"
UNVERIFIED = ("idle", "sweep")
"""Kinds of people whose accounts are unverified, beside the heavy user."""

OWN_GPUS, GROUP_GPUS = 0.5, 2.0
"""Baselines of an unverified account, and of all of them."""

DAYS, FROM_MS = 9, 2 * DAY_MS
"""The week begins when usage has built up: one half-life after everybody began from nothing."""

CAP_MS, PAUSE_MS = 12 * HOUR_MS, 3 * MINUTE_MS


class Case(NamedTuple):
    """What bounds the group's credit (None = nothing does), whether there is a bounded-wait band, how many accounts."""

    text: str
    group_gpus: float | None
    band: bool = True
    splits: tuple[int, ...] = ()
    at_most: float | None = None


class Week(NamedTuple):
    """Which week: its seed, and how many accounts the heavy user has."""

    seed: int
    accounts: int
    case: Case


class Split:
    """A workload to which a heavy user is added that keeps `LINES` sessions going, from so many accounts in turn."""

    def __init__(self, workload: Workload, accounts: int) -> None:
        self.name, self.start_ms, self.end_ms = workload.name, workload.start_ms, workload.end_ms
        self.argv = workload.argv
        self._workload = workload
        self._accounts = accounts

    def arrivals(self) -> Iterator[Row]:
        """The workload's, and the first session of each line, a minute apart."""
        lines = (self._session(line, 0, self.start_ms + line * MINUTE_MS) for line in range(LINES))
        theirs = map(self._placed, self._workload.arrivals())
        return heapq.merge(theirs, lines, key=lambda row: (row.submit_ms, row.session_id))

    def after(self, row: Row, outcome: str, at_ms: int, done_ms: int) -> Again | Row | None:
        """The heavy user asks again after three minutes, from the same account; others as they do."""
        if not row.session_id.startswith(HEAVY):
            following = self._workload.after(row, outcome, at_ms, done_ms)
            return self._placed(following) if isinstance(following, Row) else following
        if at_ms + PAUSE_MS >= self.end_ms:
            return None
        if outcome in ("evicted", "lost"):
            return Again(at_ms + PAUSE_MS, left_ms(row, done_ms))
        _, line, number = row.session_id.split("-")
        return self._session(int(line), int(number) + 1, at_ms + PAUSE_MS)

    def _placed(self, row: Row) -> Row:
        return row._replace(group=GROUP, tier=GROUP) if row.kind in UNVERIFIED else row

    def _session(self, line: int, number: int, submit_ms: int) -> Row:
        """Lengths of the first ones differ, so that not all end together."""
        return Row(
            session_id=f"{HEAVY}-{line}-{number}",
            user=f"{HEAVY}-{line % self._accounts}",
            group=GROUP,
            tier=GROUP,
            submit_ms=submit_ms,
            duration_ms=CAP_MS if number else CAP_MS * (line + 1) // LINES,
            gpus=1,
            fraction=1.0,
            gpu_type=None,
            memory_gib=None,
            load=0.94,
            patience_ms=None,
            checkpoint_ms=15 * MINUTE_MS,
            kind="trainer",
        )


class Counting(Simulation):
    """A simulation that adds up the GPU time of the unverified, and of the heavy user, in the week that counts."""

    group_m_ms = heavy_m_ms = 0
    before_ms = FROM_MS

    def elapse(self, now_ms: int) -> None:
        """What they held since the last instant."""
        super().elapse(now_ms)
        span_ms = min(now_ms, self.workload.end_ms) - self.before_ms
        if span_ms <= 0:
            return
        self.before_ms += span_ms
        for session in self.core.view.holders.values():
            if session.user.group.name == GROUP:
                self.group_m_ms += session.held_m * span_ms
                if session.user.name.startswith(HEAVY):
                    self.heavy_m_ms += session.held_m * span_ms


def gpu_hours(week: Week) -> tuple[float, float]:
    """(the unverified group's, the heavy user's) GPU-hours in one week."""
    scenario = read_scenario("overload")
    people = replace(scenario, offered_load=LOAD - LINES / GPUS).workload(seed=week.seed, days=DAYS)
    params = read_policy("research-first")
    unverified = TierParams(baseline_gpus=OWN_GPUS, group_baseline_gpus=week.case.group_gpus)
    params = replace(params, tiers={**params.tiers, GROUP: unverified})
    if not week.case.band:
        params = replace(params, order=replace(params.order, max_wait_ms=NEVER_MS))
    core = Core(make_policy(params))
    core.apply(ev.HostJoined(0, "pool", GPUS))
    core.apply(ev.GroupSet(0, GROUP, 1.0))
    simulation = Counting(core, Split(people, week.accounts))
    for now_ms in simulation.instants():
        if now_ms >= people.end_ms:
            break
    return simulation.group_m_ms / WHOLE_M / HOUR_MS, simulation.heavy_m_ms / WHOLE_M / HOUR_MS


CASES = (
    Case("bound", GROUP_GPUS, splits=(2, 5, 20), at_most=1.02),
    Case("bound, no band", GROUP_GPUS, band=False, splits=(20,), at_most=1.02),
    Case("no bound", None, splits=(20,)),
)


def measure(cases: Sequence[Case] = CASES, seeds: Sequence[int] = SEEDS) -> list[Figure]:
    """Ratios to one account, week by week: of the group, and of the heavy user."""
    weeks = [Week(seed, n, case) for case in cases for n in (1, *case.splits) for seed in seeds]
    with ProcessPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        found = dict(zip(weeks, pool.map(gpu_hours, weeks), strict=True))
    figures = []
    for case in cases:
        ones = [found[Week(seed, 1, case)] for seed in seeds]
        mean = fmean(group for group, _ in ones)
        figures.append(Figure(figure=f"{case.text}: group, one account", value=mean, unit="GPU-h a week"))
        for n in case.splits:
            pairs = list(zip([found[Week(seed, n, case)] for seed in seeds], ones, strict=True))
            group, heavy = ([many[at] / one[at] for many, one in pairs] for at in (0, 1))
            text = f"{case.text}: %s, {n} accounts / one"
            error = stdev(group) / len(group) ** 0.5
            figures += [
                Figure(figure=text % "group", value=fmean(group), unit="", bound=case.at_most, at_most=True),
                Figure(figure=text % "standard error of group", value=error, unit=""),
                Figure(figure=text % "heavy user", value=fmean(heavy), unit=""),
            ]
    return figures
