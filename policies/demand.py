"""Headroom by goal: how many GPUs must be free so that requests in credit find one, learned from past requests.

Requests during a lead time are gamma-Poisson, that is negative binomial (Greenwood & Yule, 1920): the rate of an hour
is the mean for that hour of the day times a gamma factor of mean 1 and shape k, constant over the lead time. What is
learned is the mean of each hour of the day (UTC), one k for all of them, and how fast held GPUs come back.
"""

from __future__ import annotations

import math
from typing import Any, Self

from policies.model import HOUR_MS, WHOLE_M

MOST_MEAN = 10_000.0
"""Largest mean that `stock_gpus` takes: its time and its rounding error grow with the stock."""

LEAST_SHAPE = 0.01
MOST_CONFIDENCE = 0.9999

TIE = 1e-11
"""Probabilities this close are equal: rounding reaches 1e-12 at the largest mean, and must not decide a tie."""

BLOCK_BITS = 512
"""Probabilities too small for a float are carried in units of 2^-512; scaling by it is exact."""

DAY_HOURS = 24
MOST_LEAD_MS = DAY_HOURS * HOUR_MS

COUNT_HALF_LIFE_DAYS = 14.0
HAZARD_HALF_LIFE_MS = 7 * DAY_HOURS * HOUR_MS

PRIOR_HELD_GPU_H = 24.0
"""Held GPU-hours without a departure assumed at first, so that one early departure does not shrink the stock."""

MOST_INVERSE_SHAPE = 20.0
"""1/k at most: k >= .05, beyond which a day's requests are nearly all in one hour in twenty."""

LN_2 = math.log(2)
STEADY_H = HAZARD_HALF_LIFE_MS / HOUR_MS / LN_2
"""Held GPU-hours per held GPU once all that came before is forgotten."""


def stock_gpus(mean: float, shape: float, departures: float, confidence: float) -> int:
    """Smallest whole stock f >= 0 with P(N > f + departures) <= 1 - confidence, in GPUs.

    Args:
        mean: GPUs expected to be asked for in credit during the lead time, 0..10,000.
        shape: gamma shape k of the rate, .01..infinity; infinity is Poisson. Variance of N = mean + mean^2 / k.
        departures: GPUs expected back during the lead time, >= 0; `floor(f + departures)` requests are covered.
        confidence: 0..0.9999.

    Raises:
        ValueError: an argument is out of its range.

    Source: POLICY section 4 "Headroom"; p(0) = (1 + mean/k)^-k and p(n) = p(n-1) (n-1+k) / n mean / (mean+k).
    """
    if not (0 <= mean <= MOST_MEAN):
        raise ValueError(f"mean {mean} GPUs must be within 0 and {MOST_MEAN:.0f}")
    if not (shape >= LEAST_SHAPE):
        raise ValueError(f"shape {shape} must be >= {LEAST_SHAPE}")
    if not (0 <= departures < math.inf):
        raise ValueError(f"departures {departures} GPUs must be >= 0 and finite")
    if not (0 <= confidence <= MOST_CONFIDENCE):
        raise ValueError(f"confidence {confidence} must be within 0 and {MOST_CONFIDENCE}")
    # f is whole, so floor(f + departures) = f + floor(departures).
    return max(0, _quantile(mean, shape, confidence - TIE) - math.floor(departures))


def _quantile(mean: float, shape: float, probability: float) -> int:
    """Smallest n with P(N <= n) >= probability. All terms are positive, so the sum loses no more than its rounding."""
    if math.isinf(shape):
        log_none, fixed, per_count = -mean, mean, 0.0
    else:
        log_none, per_count = -shape * math.log1p(mean / shape), mean / (mean + shape)
        fixed = (shape - 1.0) * per_count
    bits = log_none / math.log(2)
    blocks = int(-bits) // BLOCK_BITS
    term = total = 2.0 ** (bits + blocks * BLOCK_BITS)
    count = 0
    while blocks or total < probability:
        if total > 1.0 and blocks:
            blocks -= 1
            term, total = math.ldexp(term, -BLOCK_BITS), math.ldexp(total, -BLOCK_BITS)
            continue
        count += 1
        term *= per_count + fixed / count
        total += term
    return count


class HourCounts:
    """GPUs asked for in each hour, gathered by hour of the day with exponential forgetting (half-life 14 days).

    For hour of the day b, with x the count of a past day and w = 2^(-age in days / 14), only `sum w x` and
    `sum w x^2` are kept: `sum w` follows from the number of days, and a day without requests adds nothing to the
    others. So silence of any length costs nothing, and asking does not change what is learned.

    Attributes:
        hour: the hour that runs, counted from time 0; None before anything was told.
        first_hour: the first hour watched from its beginning.
        by_user: what counts of each user in the hour that runs, thousandths of a GPU; total_m: their sum.
        sums, squares: `sum w x` (GPUs) and `sum w x^2`, as of day `touched` of that hour of the day.
    """

    __slots__ = ("by_user", "first_hour", "hour", "squares", "sums", "total_m", "touched")

    def __init__(self) -> None:
        self.hour: int | None = None
        self.first_hour = 0
        self.by_user: dict[str, int] = {}
        self.total_m = 0
        self.sums = [0.0] * DAY_HOURS
        self.squares = [0.0] * DAY_HOURS
        self.touched = [0] * DAY_HOURS

    def watch(self, at_ms: int) -> None:
        """It is `at_ms`. Watching begins with the first time told; an earlier time than the last changes nothing."""
        hour = at_ms // HOUR_MS
        if self.hour is None:
            self.hour = hour
            self.first_hour = -(-at_ms // HOUR_MS)
        elif hour > self.hour:
            self._close()
            self.hour = hour

    def count(self, user: str, amount_m: int, most_m: int | None) -> None:
        """A user asked for `amount_m` in the hour that runs, of which it counts at most `most_m` (None = no limit)."""
        before_m = self.by_user.get(user, 0)
        counted_m = amount_m if most_m is None else min(amount_m, most_m - before_m)
        if counted_m > 0:
            self.by_user[user] = before_m + counted_m
            self.total_m += counted_m

    def _close(self) -> None:
        """The hour that ran has ended; it counts if it was watched from its beginning."""
        if self.total_m and self.hour is not None and self.hour >= self.first_hour:
            day, bucket = divmod(self.hour, DAY_HOURS)
            count = self.total_m / WHOLE_M
            kept = _kept(day - self.touched[bucket])
            self.sums[bucket] = self.sums[bucket] * kept + count
            self.squares[bucket] = self.squares[bucket] * kept + count * count
            self.touched[bucket] = day
        self.by_user.clear()
        self.total_m = 0

    def seen(self, bucket: int) -> tuple[float, float, float]:
        """(sum w, sum w x, sum w x^2) over the ended hours at hour `bucket` of the day, the newest with w = 1."""
        if self.hour is None:
            return 0.0, 0.0, 0.0
        last = (self.hour - 1 - bucket) // DAY_HOURS
        days = last - (self.first_hour - 1 - bucket) // DAY_HOURS
        if days <= 0:
            return 0.0, 0.0, 0.0
        kept = _kept(last - self.touched[bucket])
        return (1.0 - _kept(days)) / (1.0 - _kept(1)), self.sums[bucket] * kept, self.squares[bucket] * kept


def _kept(days: int) -> float:
    """Weight left to a count after so many days, 0..1."""
    weight: float = 2.0 ** (-days / COUNT_HALF_LIFE_DAYS)
    return weight


class Hazard:
    """Departures in GPUs per held GPU-hour, with exponential forgetting (half-life 7 days).

    Both sums decay alike; the held one follows E(t + dt) = E(t) 2^(-dt/h) + held K (1 - 2^(-dt/h)), K = h / ln 2, the
    exact integral of `policies.usage`.

    Attributes:
        at_ms: the instant of the two sums; None before anything was told.
        held_m: thousandths of a GPU held since then.
        departed_gpus, held_gpu_h: the decayed sums.
    """

    __slots__ = ("at_ms", "departed_gpus", "held_gpu_h", "held_m")

    def __init__(self) -> None:
        self.at_ms: int | None = None
        self.held_m = 0
        self.departed_gpus = 0.0
        self.held_gpu_h = 0.0

    def sums(self, now_ms: int) -> tuple[float, float]:
        """(departed GPUs, held GPU-hours), decayed to `now_ms`."""
        if self.at_ms is None or now_ms <= self.at_ms:
            return self.departed_gpus, self.held_gpu_h
        exponent = (self.at_ms - now_ms) * LN_2 / HAZARD_HALF_LIFE_MS
        kept = math.exp(exponent)
        return (
            self.departed_gpus * kept,
            self.held_gpu_h * kept - self.held_m / WHOLE_M * STEADY_H * math.expm1(exponent),
        )

    def move(self, at_ms: int) -> None:
        """Bring the sums to `at_ms`; an earlier time than the last counts as the last."""
        before_ms = self.at_ms
        if before_ms is None:
            self.at_ms = at_ms
        elif at_ms > before_ms:
            self.departed_gpus, self.held_gpu_h = self.sums(at_ms)
            self.at_ms = at_ms

    def per_hour(self, now_ms: int) -> float:
        """Departures in GPUs per held GPU-hour, >= 0; 0 before any."""
        departed, held = self.sums(now_ms)
        return departed / (held + PRIOR_HELD_GPU_H)


class Demand:
    """What has been learned about requests in credit and about departures.

    Times are integer milliseconds from a midnight UTC (the epoch, or 0 in simulation) and do not go back: an earlier
    one counts as the last. Amounts are integer thousandths of a GPU.

    Weekends have no profile of their own: with 30 % of the work-days' requests at weekends (k = .6, goal .95), knowing
    that would save .2 of 5.2 GPUs; without it .055 of the leads of work-days and .002 of those of weekends miss.

    Args:
        prior_per_h: GPUs asked for per hour expected before anything is known, >= 0.
        prior_dispersion: variance / mean of a one-hour count before anything is known, >= 1.
        prior_weight_days: days of observation that the prior is worth, > 0.
    """

    __slots__ = (
        "_profile",
        "_profile_hour",
        "_rates",
        "_seen",
        "counts",
        "hazard",
        "prior_inverse_shape",
        "prior_per_h",
        "prior_weight",
    )

    def __init__(self, prior_per_h: float, prior_dispersion: float, prior_weight_days: float = 2.0) -> None:
        if not (0 <= prior_per_h < math.inf):
            raise ValueError(f"prior_per_h {prior_per_h} must be >= 0 and finite")
        if not (1 <= prior_dispersion < math.inf):
            raise ValueError(f"prior_dispersion {prior_dispersion} must be >= 1 and finite")
        if not (0 < prior_weight_days < math.inf):
            raise ValueError(f"prior_weight_days {prior_weight_days} must be > 0 and finite")
        self.prior_per_h = prior_per_h
        self.prior_inverse_shape = _inverse_shape(prior_dispersion - 1.0, prior_per_h, unknown=0.0)
        self.prior_weight = prior_weight_days
        self.counts = HourCounts()
        self.hazard = Hazard()
        self._profile_hour: int | None = None
        self._seen = [(0.0, 0.0, 0.0)] * DAY_HOURS
        self._rates = [0.0] * DAY_HOURS
        self._profile = self._learn()

    def requested(self, at_ms: int, user: str, amount_m: int, most_m: int | None) -> None:
        """A user in credit asked for `amount_m`, >= 0; of one hour it counts at most `most_m` (None = no limit)."""
        if not amount_m >= 0:
            raise ValueError(f"amount_m {amount_m} of user {user} must be >= 0")
        self.counts.watch(at_ms)
        self.counts.count(user, amount_m, most_m)

    def departed(self, at_ms: int, amount_m: int) -> None:
        """`amount_m`, >= 0, came back by itself. `held` tells the total that is left."""
        if not amount_m >= 0:
            raise ValueError(f"amount_m {amount_m} must be >= 0")
        self.counts.watch(at_ms)
        hazard = self.hazard
        if hazard.at_ms != at_ms:
            hazard.move(at_ms)
        hazard.departed_gpus += amount_m / WHOLE_M

    def held(self, at_ms: int, total_m: int) -> None:
        """From `at_ms` on, `total_m`, >= 0, is held in all."""
        if not total_m >= 0:
            raise ValueError(f"total_m {total_m} must be >= 0")
        hazard = self.hazard
        if hazard.at_ms != at_ms:  # a departure at this instant has done both
            self.counts.watch(at_ms)
            hazard.move(at_ms)
        hazard.held_m = total_m

    def lead(self, now_ms: int, lead_ms: int, held_m: int) -> tuple[float, float, float]:
        """(mean, shape, departures) for `stock_gpus`: what to expect in [now_ms, now_ms + lead_ms].

        Args:
            now_ms: hours that have ended by now count.
            lead_ms: 0..24 h.
            held_m: held now, of which departures are expected at the learned hazard, >= 0.
        """
        if not (0 <= lead_ms <= MOST_LEAD_MS):
            raise ValueError(f"lead_ms {lead_ms} must be within 0 and {MOST_LEAD_MS}")
        if not held_m >= 0:
            raise ValueError(f"held_m {held_m} must be >= 0")
        rates, inverse_shape = self.profile(now_ms)
        departures = held_m / WHOLE_M * self.hazard.per_hour(now_ms) * (lead_ms / HOUR_MS)
        shape = 1.0 / inverse_shape if inverse_shape else math.inf
        return _integral(rates, now_ms, now_ms + lead_ms), shape, departures

    def goal_stock_gpus(self, now_ms: int, lead_ms: int, held_m: int, confidence: float) -> int:
        """Headroom f in GPUs: requests during the lead time exceed f + departures in at most 1 - confidence of cases.

        Arguments as `lead` and `stock_gpus` take them; a mean beyond `stock_gpus`' limit counts as the limit.
        """
        mean, shape, departures = self.lead(now_ms, lead_ms, held_m)
        return stock_gpus(min(mean, MOST_MEAN), shape, departures, confidence)

    def profile(self, now_ms: int) -> tuple[tuple[float, ...], float]:
        """(GPUs asked for per hour, for each hour of the day; 1/k), from the hours ended by `now_ms`."""
        if self.counts.hour is not None:
            self.counts.watch(now_ms)
        if self.counts.hour != self._profile_hour:
            self._profile = self._learn()
        return self._profile

    def _learn(self) -> tuple[tuple[float, ...], float]:
        """The profile, computed once an hour: nothing that it looks at changes within one.

        What was seen at an hour of the day changes only when such an hour ends.
        """
        before, hour = self._profile_hour, self.counts.hour
        new = DAY_HOURS if before is None or hour is None else min(hour - before, DAY_HOURS)
        for ended in range(new):
            bucket = ((hour or 0) - 1 - ended) % DAY_HOURS
            days, total, squares = self.counts.seen(bucket)
            self._seen[bucket] = days, total, squares
            self._rates[bucket] = (total + self.prior_weight * self.prior_per_h) / (days + self.prior_weight)
        self._profile_hour = hour
        rates = _smoothed(self._rates)
        return rates, self._pooled(self._seen, rates)

    def _pooled(self, seen: list[tuple[float, float, float]], rates: tuple[float, ...]) -> float:
        """1/k from all hours: `sum ((x - mean)^2 - mean) / sum mean^2`, shrunk to the prior by days of observation.

        `mean` is the rate that would be forecast, so 1/k holds its error too (smoothing, weekends, a changed habit).
        Source: method of moments, Var x = mean + mean^2 / k.
        """
        pairs = list(zip(seen, rates, strict=True))
        excess = math.fsum(
            [squares - 2.0 * mean * total + days * mean * (mean - 1.0) for (days, total, squares), mean in pairs]
        )
        scale = math.fsum([days * mean * mean for (days, _, _), mean in pairs])
        days = math.fsum([days for days, _, _ in seen]) / DAY_HOURS
        measured = _inverse_shape(excess, scale, unknown=self.prior_inverse_shape)
        return (days * measured + self.prior_weight * self.prior_inverse_shape) / (days + self.prior_weight)

    def dump(self) -> dict[str, Any]:
        """All that was learned, as plain values for a checkpoint (JSON keeps them exactly)."""
        counts, hazard = self.counts, self.hazard
        return {
            "hour": counts.hour,
            "first_hour": counts.first_hour,
            "by_user": dict(counts.by_user),
            "sums": list(counts.sums),
            "squares": list(counts.squares),
            "touched": list(counts.touched),
            "at_ms": hazard.at_ms,
            "held_m": hazard.held_m,
            "departed_gpus": hazard.departed_gpus,
            "held_gpu_h": hazard.held_gpu_h,
        }

    @classmethod
    def restore(
        cls, state: dict[str, Any], prior_per_h: float, prior_dispersion: float, prior_weight_days: float = 2.0
    ) -> Self:
        """What `dump` gave, under a prior that may have changed since. KeyError names a missing member."""
        demand = cls(prior_per_h, prior_dispersion, prior_weight_days)
        counts, hazard = demand.counts, demand.hazard
        counts.hour = state["hour"]
        counts.first_hour = state["first_hour"]
        counts.by_user = dict(state["by_user"])
        counts.total_m = sum(counts.by_user.values())
        counts.sums = list(state["sums"])
        counts.squares = list(state["squares"])
        counts.touched = list(state["touched"])
        hazard.at_ms = state["at_ms"]
        hazard.held_m = state["held_m"]
        hazard.departed_gpus = state["departed_gpus"]
        hazard.held_gpu_h = state["held_gpu_h"]
        return demand


def _inverse_shape(excess: float, scale: float, unknown: float) -> float:
    """1/k = excess variance / squared scale, clamped to 0..20; `unknown` where there is nothing to divide by."""
    return min(max(excess / scale, 0.0), MOST_INVERSE_SHAPE) if scale > 0 else unknown


def _smoothed(rates: list[float]) -> tuple[float, ...]:
    """Each hour with its two neighbours, weights 1/4, 1/2, 1/4, over midnight too; keeps the sum of the day.

    On a sinusoidal day it cuts the error of the rates by 30 % (k = .6) and 19 % (k = 5) after four weeks; where the
    rate jumps between two hours it cuts 12 % (k = .6) or adds 37 % (k = 5).
    """
    return tuple(rates[b - 1] / 4 + rates[b] / 2 + rates[(b + 1) % DAY_HOURS] / 4 for b in range(DAY_HOURS))


def _integral(rates: tuple[float, ...], since_ms: int, until_ms: int) -> float:
    """GPUs expected between two instants at a constant rate within each hour."""
    parts = []
    while since_ms < until_ms:
        hour = since_ms // HOUR_MS
        end_ms = min(until_ms, (hour + 1) * HOUR_MS)
        parts.append(rates[hour % DAY_HOURS] * ((end_ms - since_ms) / HOUR_MS))
        since_ms = end_ms
    return math.fsum(parts)
