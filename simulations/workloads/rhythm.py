"""When people work, and how long: hours, weekdays, uneven days, and the distributions of the archetypes.

Time 0 is a Monday, 00:00 in the users' own time zone.
"""

import math
from functools import lru_cache
from statistics import NormalDist

from simulations.streams import Stream

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS
SHORTEST_MS = MINUTE_MS  # no session is shorter

# Share of a day's submits in each hour. Helios Venus: hours 0, 6, 10, 16 and 23 and the peak-to-trough ratio of 9 are
# measured; the hours between are drawn smoothly through them.
HOUR_WEIGHTS = (
    0.037, 0.029, 0.021, 0.015, 0.011, 0.009, 0.008, 0.010, 0.025, 0.042, 0.054, 0.055,
    0.047, 0.052, 0.060, 0.068, 0.072, 0.066, 0.052, 0.053, 0.058, 0.060, 0.053, 0.043,
)  # fmt: skip

# Share of a week's submits on Monday .. Sunday. Helios Venus: workdays .14-.18, weekend days .10-.11.
WEEKDAY_WEIGHTS = (0.155, 0.165, 0.170, 0.160, 0.145, 0.105, 0.100)

# Students work 14-23 h, and five times as much in the 48 h before the deadline: here each Friday 24:00 (our choice).
STUDENT_HOUR_WEIGHTS = tuple(1.0 if 14 <= hour < 23 else 0.0 for hour in range(24))
DEADLINE_FACTORS = (1.0, 1.0, 1.0, 5.0, 5.0, 1.0, 1.0)

DAY_CV = 0.47  # Helios Venus: coefficient of variation of submits a day

# Points (busy fraction, probability of at most it); straight lines between, so exact at the measured points only.
# Philly, samples: 33 % at <= .01, median .486, p75 .92, p90 .993. PAI: 41 % at <= .01, median .04, 57 % at <= .05,
# p75 .139, p90 .797. Philly above .05: the same points given a load above .05 (probability .65).
PHILLY_LOAD = ((0.0, 0.25), (0.01, 0.33), (0.05, 0.35), (0.486, 0.5), (0.92, 0.75), (0.993, 0.9), (1.0, 1.0))
PHILLY_BUSY_LOAD = ((0.05, 0.0), *((load, (p - 0.35) / 0.65) for load, p in PHILLY_LOAD[3:-1]), (1.0, 1.0))
PAI_LOAD = ((0.0, 0.345), (0.01, 0.41), (0.04, 0.5), (0.05, 0.57), (0.139, 0.75), (0.797, 0.9), (1.0, 1.0))

_PAIRS = 12  # cell runs and pauses that stand for a whole session's


@lru_cache(maxsize=4096)
def day_factor(seed: int, scenario: str, day: int) -> float:
    """How busy one day is for everyone who works by day: gamma with mean 1 and coefficient of variation `DAY_CV`."""
    return Stream(seed, scenario, "day", day).gamma(1 / DAY_CV**2, DAY_CV**2)


def weekday_factor(day: int) -> float:
    """Submits on this day over those on a mean day of the week."""
    return 7 * WEEKDAY_WEIGHTS[day % 7]


def submit_in_day(stream: Stream, day: int, hour_weights: tuple[float, ...]) -> int:
    """A submit time, ms, on `day` (0 = first Monday), its hour by weight and uniform in the hour."""
    hour = stream.choice(hour_weights)
    return day * DAY_MS + hour * HOUR_MS + int(stream.uniform() * HOUR_MS)


def clamped_ms(duration_ms: float, cap_ms: int) -> int:
    """Whole milliseconds between the shortest session and the cap."""
    return max(SHORTEST_MS, min(cap_ms, round(duration_ms)))


def clamped_lognormal_mean(median: float, sigma: float, lo: float, hi: float) -> float:
    """Mean of a lognormal pushed into lo .. hi (0 < lo < hi, in the unit of the median; sigma > 0).

    Source: the partial expectation of the lognormal, E[X; X < k] = e^(mu + sigma^2/2) Phi((ln k - mu)/sigma - sigma).
    """
    phi = NormalDist().cdf
    z_lo, z_hi = math.log(lo / median) / sigma, math.log(hi / median) / sigma
    inside = median * math.exp(sigma * sigma / 2) * (phi(z_hi - sigma) - phi(z_lo - sigma))
    return lo * phi(z_lo) + inside + hi * (1 - phi(z_hi))


def spread(rank: float, sigma: float) -> float:
    """How much more than the mean somebody uses: the lognormal with mean 1 and `sigma`, at quantile `rank` (0..1)."""
    return math.exp(sigma * NormalDist().inv_cdf(rank) - sigma * sigma / 2)


def cell_load(stream: Stream, duration_ms: int) -> float:
    """Mean busy fraction of a session of notebook cells and pauses, 0..1.

    Cell runs: lognormal, median 120 s, sigma 1.36. Pauses: lognormal, median 300 s, sigma 1.2, at least 240 s
    (NotebookOS). Load in a cell: Philly above .05. The first pairs stand for a long session.
    """
    busy_s = 0.0
    spent_s = 0.0
    for _ in range(_PAIRS):
        run_s = min(stream.lognormal(120, 1.36), duration_ms / 1000 - spent_s)
        busy_s += run_s * stream.from_cdf(PHILLY_BUSY_LOAD)
        spent_s += run_s + max(240.0, stream.lognormal(300, 1.2))
        if spent_s * 1000 >= duration_ms:
            break
    return busy_s / spent_s
