"""How unequal the generated people are before any policy, held against what was measured of real ones.

`python -m benchmarks.population` prints what decision 0018 rests on: the same figures for other spreads of researchers,
and what the two traces say.
"""

from __future__ import annotations

import csv
import math
from collections import Counter
from statistics import fmean, median, stdev, variance
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.figure import Figure, shared
from simulations.metrics import gini
from simulations.traces.importers import import_trace
from simulations.workloads.by_day import Researcher
from simulations.workloads.offered import open_loop
from simulations.workloads.rhythm import DAY_MS, HOUR_MS
from simulations.workloads.scenario import load_scenario

if TYPE_CHECKING:
    from collections.abc import Sequence

SEEDS = tuple(range(1, 9))
DAYS = 20
"""As long as the Helios trace."""

SIGMAS = (0.0, 0.25, 0.5, 0.75, 1.0)
PAUSE_MIN = 120
"""Somebody who has computed nothing for so long has stood up."""

LEAST_DAYS = 7
"""Notebooks in use for less time say little about how often."""


class Spread(NamedTuple):
    """How unequal people are.

    Attributes:
        top, gini: part of all GPU time that the busiest tenth of people asks for; Gini coefficient.
        r_top, r_gini: the same within researchers.
        r_median, r_p90, r_most: sessions a day of the median, of the ninetieth in a hundred, of the busiest researcher.
        r_gpus: GPUs that the busiest would hold on average.
        day_cv, hour_ratio: researchers' sessions: coefficient of variation of a day's, variance / mean of an hour's.
        all_hour_ratio: variance / mean of everybody's sessions of an hour.
    """

    top: float
    gini: float
    r_top: float
    r_gini: float
    r_median: float
    r_p90: float
    r_most: float
    r_gpus: float
    day_cv: float
    hour_ratio: float
    all_hour_ratio: float


def top_tenth(values: Sequence[float]) -> float:
    """Part of the sum that the largest tenth has, 0..1."""
    return math.fsum(sorted(values)[-max(1, round(len(values) / 10)) :]) / math.fsum(values)


def spread(name: str, seed: int) -> Spread:
    """One generated population, every session served at once."""
    workload = load_scenario(name, seed=seed, days=DAYS)
    gpu_ms: Counter[str] = Counter()
    sessions: Counter[str] = Counter()
    hours, days, all_hours = [0] * DAYS * 24, [0] * DAYS, [0] * DAYS * 24
    for row in open_loop(workload):
        gpu_ms[row.user] += (min(row.submit_ms + row.duration_ms, workload.end_ms) - row.submit_ms) * row.gpus
        all_hours[row.submit_ms // HOUR_MS] += 1
        if row.kind == "researcher":
            sessions[row.user] += 1
            hours[row.submit_ms // HOUR_MS] += 1
            days[row.submit_ms // DAY_MS] += 1
    researchers = [person.user for person in workload.people if person.kind == "researcher"]
    everyone = [float(sum(gpu_ms[user] for user in person.users)) for person in workload.people]
    theirs = [float(gpu_ms[user]) for user in researchers]
    a_day = sorted(sessions[user] / DAYS for user in researchers)
    return Spread(
        top_tenth(everyone),
        gini(everyone) or 0.0,
        top_tenth(theirs),
        gini(theirs) or 0.0,
        median(a_day),
        a_day[int(0.9 * len(a_day))],
        a_day[-1],
        max(theirs) / (DAYS * DAY_MS),
        stdev(days) / fmean(days),
        variance(hours) / fmean(hours),
        variance(all_hours) / fmean(all_hours),
    )


def mean(name: str) -> Spread:
    """Mean over the seeds."""
    return Spread(*(fmean(values) for values in zip(*(spread(name, seed) for seed in SEEDS), strict=True)))


def measure() -> list[Figure]:
    """The shipped people of two scenarios."""
    figures = []
    for name in ("busy", "overload"):
        found = mean(name)
        for text, value, unit, bound, at_most in (
            ("busiest tenth of people, part of GPU time", found.top, "", 0.55, False),
            ("Gini of people's GPU time", found.gini, "", 0.68, False),
            ("median researcher", found.r_median, "sessions/day", 0.75, False),
            ("busiest researcher", found.r_most, "sessions/day", 3.5, True),
            ("busiest researcher", found.r_gpus, "GPUs on average", 0.6, True),
        ):
            figures.append(Figure(figure=f"{name}: {text}", value=value, unit=unit, bound=bound, at_most=at_most))
    return figures


# -- what decision 0018 rests on --


def helios() -> dict[str, float]:
    """The users of the Helios trace: 95, over 20 days."""
    gpu_ms: Counter[str] = Counter()
    hours: Counter[int] = Counter()
    days: Counter[int] = Counter()
    for row in import_trace("helios", shared() / "traces" / "helios_10796.csv").rows:
        gpu_ms[row.user] += row.duration_ms * row.gpus
        hours[row.submit_ms // HOUR_MS] += 1
        days[row.submit_ms // DAY_MS] += 1
    values = [float(value) for value in gpu_ms.values()]
    by_hour, by_day = ([counts[at] for at in range(max(counts))] for counts in (hours, days))
    return {
        "top": top_tenth(values),
        "gini": gini(values) or 0.0,
        "day_cv": stdev(by_day) / fmean(by_day),
        "all_hour_ratio": variance(by_hour) / fmean(by_hour),
    }


def notebooks() -> dict[str, float]:
    """How often people sit down at the notebooks of the Adobe trace, and how much the notebooks differ.

    A sitting begins with a run after `PAUSE_MIN` without any. `cv` is that of the rates behind the counts, without
    their Poisson noise: E[n (n - 1)] = E[T^2] m^2 (1 + cv^2) for counts n over times T. `sigma` is that of a lognormal
    with this cv.
    """
    counts, spans = [], []
    for runs in _notebooks():
        span_days = (runs[-1][0] - runs[0][0]) / 1440
        if span_days >= LEAST_DAYS:
            counts.append(_sittings(runs) - 1)  # the first begins the span
            spans.append(span_days)
    a_day = sum(counts) / math.fsum(spans)
    pairs = sum(count * (count - 1) for count in counts) / math.fsum(span * span for span in spans)
    cv2 = pairs / a_day**2 - 1
    rates = [count / span for count, span in zip(counts, spans, strict=True)]
    return {
        "notebooks": len(rates),
        "sittings_a_day": a_day,
        "cv": math.sqrt(cv2),
        "sigma": math.sqrt(math.log1p(cv2)),
        "most_over_mean": max(rates) / a_day,
    }


def _notebooks() -> list[list[tuple[float, float]]]:
    """(begin, length) in minutes of each run, by notebook: a time that goes back begins the next one."""
    found: list[list[tuple[float, float]]] = []
    with (shared() / "traces" / "adobe_sensei_june_2021.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            begin = float(row["submit_time"])
            if not found or begin < found[-1][-1][0]:
                found.append([])
            found[-1].append((begin, float(row["duration"])))
    return found


def _sittings(runs: Sequence[tuple[float, float]]) -> int:
    count, end = 0, -math.inf
    for begin, length in runs:
        count += begin - end > PAUSE_MIN
        end = max(end, begin + length)
    return count


def main() -> None:
    """Print both tables."""
    print(f"| scenario | sigma | {' | '.join(Spread._fields)} |")
    shipped = Researcher.sigma_between
    for name in ("busy", "overload"):
        for sigma in SIGMAS:
            Researcher.sigma_between = sigma
            print(f"| {name} | {sigma:g} | {' | '.join(f'{value:.2f}' for value in mean(name))} |", flush=True)
    Researcher.sigma_between = shipped
    for trace, figures in (("helios", helios()), ("adobe", notebooks())):
        print(trace, {name: round(value, 2) for name, value in figures.items()})


if __name__ == "__main__":
    main()
