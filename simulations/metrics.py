"""What a run was like: waits, completion times, allocation, fairness, policing.

Memory: one float for each session that waited and three numbers for each user. Percentiles interpolate linearly.
Sums go through `math.fsum`, whose result does not depend on the order or the Python version.
"""

from __future__ import annotations

import math
from array import array
from typing import TYPE_CHECKING, Any

from policies.model import WHOLE_M

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from simulations.loop import Simulation, Work

OUTCOMES = ("completed", "evicted", "abandoned", "rejected")
HONEST_KINDS = ("researcher", "student")


def percentile(ordered: Sequence[float], part: float) -> float | None:
    """Value below which `part` (0..1) of sorted values lie, interpolated linearly; None for no values."""
    if not ordered:
        return None
    at = part * (len(ordered) - 1)
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def summary(values: Iterable[float], parts: Sequence[float] = (0.5, 0.95, 0.99)) -> dict[str, float | None]:
    """Mean and percentiles; None where there are no values."""
    ordered = sorted(values)
    mean = math.fsum(ordered) / len(ordered) if ordered else None
    return {"mean": mean} | {f"p{round(part * 100)}": percentile(ordered, part) for part in parts}


def jain(values: Sequence[float]) -> float | None:
    """Jain's index, (sum x)^2 / (n sum x^2): 1 when all are equal, 1/n when one has everything."""
    square = math.fsum(value * value for value in values)
    return math.fsum(values) ** 2 / (len(values) * square) if square else None


def gini(values: Sequence[float]) -> float | None:
    """Gini coefficient: 0 when all are equal, towards 1 when one has everything."""
    total, count = math.fsum(values), len(values)
    if not total:
        return None
    weighted = math.fsum((2 * rank - count - 1) * value for rank, value in enumerate(sorted(values), start=1))
    return weighted / (count * total)


def max_min_fill(demand: Mapping[str, float], capacity: float) -> dict[str, float]:
    """Max-min fair parts of a capacity, equal shares: nobody gets more than asked or less than another could spare.

    Source: progressive filling (Bertsekas and Gallager, Data Networks, 6.5.2).
    """
    parts: dict[str, float] = {}
    left, waiting = capacity, sorted(demand.items(), key=lambda item: (item[1], item[0]))
    for index, (name, asked) in enumerate(waiting):
        parts[name] = min(asked, max(0.0, left) / (len(waiting) - index))
        left -= parts[name]
    return parts


class Tally:
    """Gathers what the metrics need from each session as it is written out."""

    def __init__(self) -> None:
        self.submitted = 0
        self.started = 0
        self.outcomes = dict.fromkeys(OUTCOMES, 0)
        self.honest = 0
        self.unknown_load = False
        self._waits: dict[tuple[str, str], array[float]] = {}
        self._turnarounds: array[float] = array("d")
        self._demand: dict[str, int] = {}
        self._served: dict[str, int] = {}

    def add(self, work: Work) -> None:
        """Count one session that has reached its outcome (or that the run left waiting)."""
        row = work.row
        self.submitted += 1
        self.honest += row.kind in HONEST_KINDS
        self.unknown_load |= row.load is None and work.start_ms >= 0
        if work.outcome in self.outcomes:
            self.outcomes[work.outcome] += 1
        if work.start_ms >= 0:
            self.started += 1
            self._wait(work, work.start_ms - row.submit_ms)
        elif work.outcome == "abandoned":
            self._wait(work, work.end_ms - row.submit_ms)
        if work.outcome == "completed":
            self._turnarounds.append((work.end_ms - row.submit_ms) / 1000)
        self._served[row.user] = self._served.get(row.user, 0) + work.gpu_m_ms
        asked = row.gpus * round(row.fraction * WHOLE_M) * row.duration_ms
        self._demand[row.user] = self._demand.get(row.user, 0) + asked

    def _wait(self, work: Work, wait_ms: int) -> None:
        key = (work.row.kind, work.row.tier)
        waits = self._waits.get(key)
        if waits is None:
            waits = self._waits[key] = array("d")
        waits.append(wait_ms / 1000)

    def waits(self) -> dict[str, Any]:
        """Waits of started and abandoned sessions, seconds: all, by kind and by tier."""
        groups: list[dict[str, list[float]]] = [{}, {}]
        for key, waits in self._waits.items():
            for group, name in zip(groups, key, strict=True):
                group.setdefault(name, []).extend(waits)
        by_kind, by_tier = ({name: summary(group[name]) for name in sorted(group)} for group in groups)
        everything = [wait for waits in self._waits.values() for wait in waits]
        return summary(everything) | {"by_kind": by_kind, "by_tier": by_tier}

    def turnarounds(self) -> dict[str, float | None]:
        """Submit to end of completed sessions, seconds."""
        return summary(self._turnarounds, (0.5, 0.95))

    def fairness(self, capacity_m_ms: float) -> dict[str, float | None]:
        """Over users: GPU time served / entitled, entitled = max-min filling of what they asked for."""
        entitled = max_min_fill({user: float(asked) for user, asked in self._demand.items()}, capacity_m_ms)
        parts = [self._served[user] / entitled[user] for user in sorted(entitled) if entitled[user] > 0]
        return {"jain": jain(parts), "gini": gini(parts), "min_served_over_entitled": min(parts, default=None)}


def report(tally: Tally, simulation: Simulation) -> dict[str, Any]:
    """The members of a run's summary that follow from what happened."""
    span_ms = max(0, simulation.last_submit_ms - simulation.first_ms)
    capacity = simulation.core.cluster.total_m * span_ms
    policing = simulation.policing()._asdict()
    false_warnings = policing.pop("false_warnings")
    return {
        "sessions": {"submitted": tally.submitted, "started": tally.started} | tally.outcomes,
        "wait_s": tally.waits(),
        "jct_s": tally.turnarounds(),
        "gpu": {
            "allocated": simulation.area_m_ms / capacity if capacity else None,
            "busy": simulation.busy_area_m_ms / capacity if capacity else None,
            "busy_counts_unknown_load_as_1": tally.unknown_load,
        },
        "fairness": tally.fairness(capacity),
        "policing": policing
        | {"false_warnings_per_1000": 1000 * false_warnings / tally.honest if tally.honest else None},
    }
