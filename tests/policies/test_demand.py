"""The stock is the quantile that its definition says, what is learned is what a plain reading of all hours gives, and
after four weeks the stock holds its goal; planted faults in each of the three are caught.

`by_definition` keeps every hour for ever and loops over them; `Demand` keeps 24 pairs of sums.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from decimal import Decimal, localcontext
from fractions import Fraction
from time import perf_counter
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import demand as module
from policies.demand import Demand, Hazard, HourCounts, stock_gpus
from policies.model import HOUR_MS

MINUTE_MS = 60_000
DAY_MS = 24 * HOUR_MS
YEAR_MS = 365 * DAY_MS

MEANS = st.just(0.0) | st.floats(1e-6, 60.0)
SHAPES = st.just(math.inf) | st.floats(0.05, 50.0) | st.sampled_from([0.05, 1.0, 1e6])
DEPARTURES = st.just(0.0) | st.floats(0.0, 30.0)
CONFIDENCES = st.sampled_from([0.0, 0.5, 0.95, 0.98, 0.99]) | st.floats(0.0, 0.999)


# --- the stock ---


def check_t19(stock: Callable[[float, float, float, float], int]) -> None:
    """POLICY T19: 12 requests/h, variance/mean of an hour's count 39, no departures, confidence .95."""
    for lead_min, expected, poisson in ((5, 5, 3), (15, 14, 6), (35, 32, 12)):
        mean = 12 * lead_min / 60
        assert stock(mean, 12 / 38, 0.0, 0.95) == expected
        assert stock(mean, math.inf, 0.0, 0.95) == poisson


def test_t19() -> None:
    check_t19(stock_gpus)


@pytest.mark.parametrize(("lead_min", "expected"), [(5, 5), (15, 14), (35, 32)])
def test_t19_from_the_prior_alone(lead_min: int, expected: int) -> None:
    """A prior of 12 requests/h with variance/mean 39 is T19, at any moment of the day."""
    demand = Demand(prior_per_h=12.0, prior_dispersion=39.0)
    for now_ms in (0, 50 * MINUTE_MS, 23 * HOUR_MS + 59 * MINUTE_MS):
        assert demand.goal_stock_gpus(now_ms, lead_min * MINUTE_MS, 0, 0.95) == expected


def tails(mean: float, shape: float, counts: tuple[int, ...]) -> list[Decimal]:
    """P(N > n) for each n of `counts`, by adding up the probabilities in 50 digits; 1 below n = 0."""
    with localcontext() as context:
        context.prec = 50
        m, k = Decimal(mean), Decimal(shape)
        poisson = math.isinf(shape)
        term = (-m).exp() if poisson else (-k * (1 + m / k).ln()).exp()
        total, result = Decimal(0), dict.fromkeys((n for n in counts if n < 0), Decimal(1))
        for n in range(max(counts) + 1):
            if n:
                term *= m / n if poisson else (n - 1 + k) / n * (m / (m + k))
            total += term
            if n in counts:
                result[n] = 1 - total
        return [result[n] for n in counts]


def check_stock(
    stock: Callable[[float, float, float, float], int], mean: float, shape: float, departures: float, confidence: float
) -> None:
    """The answer covers enough and one less would not, but for ties of 1e-10."""
    answer = stock(mean, shape, departures, confidence)
    covered = math.floor(answer + Fraction(departures))
    missed, missed_by_one_less = tails(mean, shape, (covered, covered - 1))
    allowed = 1 - Decimal(confidence)
    assert missed <= allowed + Decimal("1e-10")
    assert answer >= 0
    assert answer == 0 or missed_by_one_less > allowed - Decimal("1e-10")


@settings(max_examples=150)
@given(mean=MEANS, shape=SHAPES, departures=DEPARTURES, confidence=CONFIDENCES)
def test_the_stock_is_the_smallest_that_covers(mean: float, shape: float, departures: float, confidence: float) -> None:
    check_stock(stock_gpus, mean, shape, departures, confidence)


@pytest.mark.parametrize("mean", [700.0, 1000.0, 10_000.0])
@pytest.mark.parametrize("shape", [2.5, 400.0, 1e9, math.inf])
def test_large_means_do_not_underflow(mean: float, shape: float) -> None:
    """P(N = 0) is as small as e^-10000 here."""
    for confidence in (0.95, 0.9999):
        check_stock(stock_gpus, mean, shape, 12.5, confidence)


def test_ties_go_to_the_smaller_stock() -> None:
    """Geometric with p = 1/2: P(N > n) = 2^-(n+1) exactly; and P(N > 0) = .1 to the last digit but one."""
    assert [stock_gpus(1.0, 1.0, 0.0, 1 - 2.0**-n) for n in range(1, 12)] == list(range(11))
    assert stock_gpus(1 / 9, 1.0, 0.0, 0.9) == 0
    assert stock_gpus(0.0, 0.05, 0.0, 0.9999) == 0


@settings(max_examples=150)
@given(mean=MEANS, shape=SHAPES, departures=DEPARTURES, confidence=CONFIDENCES, more=st.floats(0.0, 5.0))
def test_monotone(mean: float, shape: float, departures: float, confidence: float, more: float) -> None:
    """More requests or confidence never need less, more departures never need more."""
    stock = stock_gpus(mean, shape, departures, confidence)
    assert stock_gpus(mean + more, shape, departures, confidence) >= stock
    assert stock_gpus(mean, shape, departures, min(0.9999, confidence + more / 50)) >= stock
    assert stock_gpus(mean, shape, departures + more, confidence) <= stock


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1.0, 1.0, 0.0, 0.95), "mean -1.0 GPUs must be within 0 and 10000"),
        ((10_001.0, 1.0, 0.0, 0.95), "mean 10001.0 GPUs must be within 0 and 10000"),
        ((math.nan, 1.0, 0.0, 0.95), "mean nan"),
        ((1.0, 0.0, 0.0, 0.95), "shape 0.0 must be >= 0.01"),
        ((1.0, math.nan, 0.0, 0.95), "shape nan"),
        ((1.0, 1.0, -0.1, 0.95), "departures -0.1 GPUs must be >= 0"),
        ((1.0, 1.0, math.inf, 0.95), "departures inf"),
        ((1.0, 1.0, 0.0, 1.0), r"confidence 1.0 must be within 0 and 0.9999"),
        ((1.0, 1.0, 0.0, math.nan), "confidence nan"),
    ],
)
def test_a_wrong_argument_is_named_with_its_limit(arguments: tuple[float, float, float, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stock_gpus(*arguments)


# --- what is learned ---


class Request(NamedTuple):
    at_ms: int
    user: str
    amount_m: int
    most_m: int | None


def by_definition(
    first_ms: int, requests: list[Request], now_ms: int, prior: tuple[float, float, float]
) -> tuple[list[float], float]:
    """(rate of each hour of the day, 1/k), from a list of every hour that began and ended while it was watched."""
    counted: dict[int, dict[str, int]] = {}
    for at_ms, user, amount_m, most_m in requests:
        users = counted.setdefault(at_ms // HOUR_MS, {})
        both = users.get(user, 0) + amount_m
        users[user] = both if most_m is None else max(users.get(user, 0), min(both, most_m))
    hours = [h for h in range(first_ms // HOUR_MS, now_ms // HOUR_MS) if h * HOUR_MS >= first_ms]
    observed: dict[int, list[tuple[float, float]]] = {b: [] for b in range(24)}
    newest = {h % 24: h // 24 for h in hours}
    for h in hours:
        weight = 2.0 ** ((h // 24 - newest[h % 24]) / 14)
        observed[h % 24].append((weight, sum(counted.get(h, {}).values()) / 1000))
    per_h, dispersion, weight_days = prior
    plain = [
        (math.fsum(w * x for w, x in observed[b]) + weight_days * per_h)
        / (math.fsum(w for w, _ in observed[b]) + weight_days)
        for b in range(24)
    ]
    rates = [(plain[(b + 23) % 24] + 2 * plain[b] + plain[(b + 1) % 24]) / 4 for b in range(24)]
    excess = math.fsum(w * ((x - rates[b]) ** 2 - rates[b]) for b in range(24) for w, x in observed[b])
    scale = math.fsum(w * rates[b] ** 2 for b in range(24) for w, _ in observed[b])
    before = min(20.0, (dispersion - 1) / per_h) if per_h else 0.0
    measured = min(20.0, max(0.0, excess / scale)) if scale else before
    days = math.fsum(w for b in range(24) for w, _ in observed[b]) / 24
    return rates, (days * measured + weight_days * before) / (days + weight_days)


def check_learned(first_ms: int, requests: list[Request], now_ms: int, prior: tuple[float, float, float]) -> None:
    demand = Demand(*prior)
    demand.held(first_ms, 0)
    for request in requests:
        demand.requested(*request)
    rates, inverse_shape = demand.profile(now_ms)
    expected_rates, expected_inverse_shape = by_definition(first_ms, requests, now_ms, prior)
    assert list(rates) == pytest.approx(expected_rates, rel=1e-9, abs=1e-12)
    # Where the count hardly varies, the variance is a difference of large sums.
    assert inverse_shape == pytest.approx(expected_inverse_shape, rel=1e-6, abs=1e-8)


GAPS_MS = st.integers(0, 3 * HOUR_MS) | st.sampled_from([0, 1, HOUR_MS, DAY_MS, 5 * DAY_MS, 40 * DAY_MS])
ASKS = st.lists(
    st.tuples(
        GAPS_MS, st.sampled_from("abc"), st.sampled_from([0, 250, 1000, 4000]), st.none() | st.just(500) | st.just(5000)
    ),
    max_size=40,
)
FIRSTS_MS = st.sampled_from([0, 7 * HOUR_MS, 1_790_000_000_000]) | st.integers(0, 50 * HOUR_MS)
PRIORS = st.tuples(st.sampled_from([0.0, 0.5, 12.0]), st.sampled_from([1.0, 4.0, 39.0]), st.sampled_from([0.5, 2.0]))


@settings(max_examples=100)
@given(first_ms=FIRSTS_MS, asks=ASKS, later_ms=GAPS_MS, prior=PRIORS)
def test_learned_as_by_definition(
    first_ms: int,
    asks: list[tuple[int, str, int, int | None]],
    later_ms: int,
    prior: tuple[float, float, float],
) -> None:
    """Any requests, silences of any length between them: the rates and 1/k are those of the list of all hours."""
    at_ms, requests = first_ms, []
    for gap_ms, user, amount_m, most_m in asks:
        at_ms += gap_ms
        requests.append(Request(at_ms, user, amount_m, most_m))
    check_learned(first_ms, requests, at_ms + later_ms, prior)


def poisson(rng: random.Random, mean: float) -> int:
    """Arrivals of a unit-rate process before `mean`."""
    count, at = 0, rng.expovariate(1.0)
    while at < mean:
        count, at = count + 1, at + rng.expovariate(1.0)
    return count


def rate_of(hour: int) -> float:
    """GPUs asked for per hour: 11.4 at 14 o'clock, .6 at 2."""
    return 6 * (1 + 0.9 * math.cos(2 * math.pi * (hour % 24 - 14) / 24))


def some_weeks(first_ms: int, days: int, shape: float = 0.6, seed: int = 1) -> list[Request]:
    """Gamma-Poisson requests of one GPU, the gamma factor drawn for each hour; all before the last hour's half."""
    rng = random.Random(seed)
    requests = []
    for hour in range(days * 24):
        count = poisson(rng, rate_of(hour) * rng.gammavariate(shape, 1 / shape))
        ats = sorted(rng.randrange(HOUR_MS // 2) for _ in range(count))
        requests += [Request(first_ms + hour * HOUR_MS + at, f"u{rng.randrange(30)}", 1000, 2000) for at in ats]
    return requests


def check_learned_from_ten_days() -> None:
    """Ten days that begin at 00:20, read in the middle of an hour with requests."""
    first_ms = 20 * MINUTE_MS
    requests = some_weeks(first_ms, 10)
    check_learned(first_ms, requests, requests[-1].at_ms + 1, (3.0, 5.0, 2.0))


def test_learned_from_ten_days() -> None:
    check_learned_from_ten_days()


def neighbours_off_by_one(rates: list[float]) -> tuple[float, ...]:
    return tuple(rates[b - 2] / 4 + rates[b - 1] / 2 + rates[b] / 4 for b in range(24))


def no_midnight(rates: list[float]) -> tuple[float, ...]:
    return tuple(rates[max(0, b - 1)] / 4 + rates[b] / 2 + rates[min(23, b + 1)] / 4 for b in range(24))


def unfinished_hour_counts(counts: HourCounts, bucket: int) -> tuple[float, float, float]:
    counts.hour = (counts.hour or 0) + 1
    try:
        return right_seen(counts, bucket)
    finally:
        counts.hour -= 1


def only_days_with_requests(counts: HourCounts, bucket: int) -> tuple[float, float, float]:
    days, total, squares = right_seen(counts, bucket)
    return (days, total, squares) if total else (0.0, 0.0, 0.0)


def first_hour_counts(counts: HourCounts, at_ms: int) -> None:
    right_watch(counts, at_ms - at_ms % HOUR_MS)


def no_limit(counts: HourCounts, user: str, amount_m: int, most_m: int | None) -> None:
    right_count(counts, user, amount_m, None)


def poisson_pooled(demand: Demand, seen: object, rates: object) -> float:
    return 0.0


right_seen, right_watch, right_count = HourCounts.seen, HourCounts.watch, HourCounts.count


@pytest.mark.parametrize(
    ("owner", "name", "fault"),
    [
        (module, "_smoothed", neighbours_off_by_one),
        (module, "_smoothed", no_midnight),
        (module, "_smoothed", tuple),
        (module, "COUNT_HALF_LIFE_DAYS", 13.0),
        (HourCounts, "seen", unfinished_hour_counts),
        (HourCounts, "watch", first_hour_counts),
        (HourCounts, "count", no_limit),
        (Demand, "_pooled", poisson_pooled),
    ],
)
def test_planted_faults_in_learning_are_caught(
    monkeypatch: pytest.MonkeyPatch, owner: object, name: str, fault: object
) -> None:
    monkeypatch.setattr(owner, name, fault)
    with pytest.raises(AssertionError):
        check_learned_from_ten_days()


def check_quiet_hours_count() -> None:
    """A request at noon of each of ten days: the other hours have seen ten days of nothing."""
    requests = [Request(day * DAY_MS + 12 * HOUR_MS, "a", 1000, None) for day in range(10)]
    check_learned(0, requests, 10 * DAY_MS, (3.0, 5.0, 2.0))


def test_quiet_hours_count(monkeypatch: pytest.MonkeyPatch) -> None:
    check_quiet_hours_count()
    monkeypatch.setattr(HourCounts, "seen", only_days_with_requests)
    with pytest.raises(AssertionError):
        check_quiet_hours_count()


def test_before_anything_is_told_the_prior_holds() -> None:
    demand = Demand(prior_per_h=6.0, prior_dispersion=4.0)
    assert demand.lead(10**12, HOUR_MS // 2, 64_000) == pytest.approx((3.0, 2.0, 0.0))
    assert Demand(6.0, 1.0).lead(0, HOUR_MS, 0) == (6.0, math.inf, 0.0)
    assert Demand(0.0, 9.0).goal_stock_gpus(0, HOUR_MS, 0, 0.98) == 0


def test_asking_changes_nothing() -> None:
    """Whoever asks for the stock every 7 minutes learns the same as whoever never asks."""
    requests = some_weeks(0, 3)
    end_ms = 3 * DAY_MS
    asked, silent = Demand(3.0, 5.0), Demand(3.0, 5.0)
    now_ms = 0
    for request in requests:
        while now_ms <= request.at_ms:
            asked.goal_stock_gpus(now_ms, 10 * MINUTE_MS, 5000, 0.95)
            now_ms += 7 * MINUTE_MS
        asked.requested(*request)
        silent.requested(*request)
    assert asked.lead(end_ms, HOUR_MS, 5000) == silent.lead(end_ms, HOUR_MS, 5000)
    assert asked.dump() == silent.dump()


# --- the lead window ---


def rated(rates: list[float]) -> Demand:
    """A demand that knows these rates, whatever the smoothing."""
    demand = Demand(0.0, 1.0)
    demand._profile = (tuple(rates), 0.0)
    return demand


def test_a_window_over_two_hours_is_weighted_by_time() -> None:
    demand = rated([float(hour) for hour in range(24)])
    assert demand.lead(9 * HOUR_MS + 50 * MINUTE_MS, 40 * MINUTE_MS, 0)[0] == pytest.approx(9 / 6 + 10 / 2)
    assert demand.lead(DAY_MS - 15 * MINUTE_MS, 30 * MINUTE_MS, 0)[0] == pytest.approx(23 / 4 + 0 / 4)
    assert demand.lead(5 * DAY_MS + 123, DAY_MS, 0)[0] == pytest.approx(sum(range(24)))
    assert demand.lead(12 * HOUR_MS, 0, 0)[0] == 0.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: d.lead(0, -1, 0), "lead_ms -1 must be within 0 and 86400000"),
        (lambda d: d.lead(0, DAY_MS + 1, 0), "lead_ms 86400001 must be within 0 and 86400000"),
        (lambda d: d.lead(0, 1, -1), "held_m -1 must be >= 0"),
        (lambda d: d.requested(0, "u", -1, None), "amount_m -1 of user u must be >= 0"),
        (lambda d: d.departed(0, -1), "amount_m -1 must be >= 0"),
        (lambda d: d.held(0, -1), "total_m -1 must be >= 0"),
        (lambda d: Demand(-1.0, 2.0), "prior_per_h -1.0 must be >= 0"),
        (lambda d: Demand(1.0, 0.5), "prior_dispersion 0.5 must be >= 1"),
        (lambda d: Demand(1.0, 2.0, 0.0), "prior_weight_days 0.0 must be > 0"),
        (lambda d: Demand(math.nan, 2.0), "prior_per_h nan"),
    ],
)
def test_wrong_facts_are_refused(call: Callable[[Demand], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(Demand(1.0, 2.0))


def test_the_stock_is_bounded_however_many_ask() -> None:
    """A mean beyond the limit of the stock counts as the limit: a cycle must not fail for it."""
    assert Demand(1e6, 1.0).goal_stock_gpus(0, HOUR_MS, 0, 0.95) == stock_gpus(10_000.0, math.inf, 0.0, 0.95)


# --- departures ---


@settings(max_examples=100)
@given(
    steps=st.lists(
        st.tuples(
            st.integers(0, 3 * DAY_MS) | st.sampled_from([0, 1]), st.booleans(), st.sampled_from([0, 500, 1000, 64_000])
        ),
        max_size=20,
    ),
    later_ms=st.integers(0, 30 * DAY_MS),
)
def test_the_hazard_is_decayed_departures_per_decayed_held_hours(
    steps: list[tuple[int, bool, int]], later_ms: int
) -> None:
    """Against the integral of each piece taken from the present, and the age of each departure."""
    hazard, at_ms = Hazard(), 1_790_000_000_000
    departures: list[tuple[int, int]] = []
    pieces: list[tuple[int, int]] = []
    for gap_ms, is_departure, amount_m in steps:
        at_ms += gap_ms
        hazard.move(at_ms)
        if is_departure:
            hazard.departed_gpus += amount_m / 1000
            departures.append((at_ms, amount_m))
        else:
            hazard.held_m = amount_m
            pieces.append((at_ms, amount_m))
    now_ms = at_ms + later_ms

    def left(since_ms: int) -> float:
        return float(2.0 ** ((since_ms - now_ms) / (7 * DAY_MS)))

    ends = [since_ms for since_ms, _ in pieces[1:]] + [now_ms]
    held = math.fsum(
        amount_m / 1000 * (7 * 24 / math.log(2)) * (left(end_ms) - left(since_ms))
        for (since_ms, amount_m), end_ms in zip(pieces, ends, strict=False)
    )
    departed = math.fsum(amount_m / 1000 * left(when_ms) for when_ms, amount_m in departures)
    assert hazard.sums(now_ms) == pytest.approx((departed, held), rel=1e-9, abs=1e-9)


def test_departures_follow_from_what_is_held_and_how_long() -> None:
    """40 GPUs of which one comes back every half hour: hazard .05/h; from 30 held GPUs 1 is expected in 40 min."""
    demand = Demand(1.0, 1.0)
    demand.held(0, 40_000)
    for half_hour in range(1, 48 * 60):
        demand.departed(half_hour * HOUR_MS // 2, 1000)
    departures = demand.lead(60 * DAY_MS, 40 * MINUTE_MS, 30_000)[2]
    assert departures == pytest.approx(1.0, rel=0.01)
    assert demand.lead(60 * DAY_MS, 80 * MINUTE_MS, 30_000)[2] == pytest.approx(2 * departures)
    assert demand.lead(60 * DAY_MS, 40 * MINUTE_MS, 0)[2] == 0.0


def test_one_early_departure_is_no_flood() -> None:
    """One of two GPUs back after a minute: less than .05 per GPU and hour, not the 30 that the quotient says."""
    demand = Demand(1.0, 1.0)
    demand.held(0, 2000)
    demand.departed(MINUTE_MS, 1000)
    assert 0.0 < demand.lead(MINUTE_MS, HOUR_MS, 1000)[2] < 0.05


# --- coverage ---


class Coverage(NamedTuple):
    """Lead windows, those whose requests exceeded f + departures, those that exceed the f of the true parameters."""

    windows: int
    missed: int
    missed_by_truth: int
    stock: int
    stock_by_truth: int

    def __add__(self, other: tuple[int, ...]) -> Coverage:  # type: ignore[override]
        return Coverage(*(a + b for a, b in zip(self, other, strict=True)))


def covered(seed: int, lead_min: int, confidence: float, departures_m: int) -> Coverage:
    """Four weeks to learn, then one lead window in every hour of four more; learning goes on.

    Each hour has its own gamma factor (k = .6), so the windows are independent. Departures are certain: of 20 GPUs
    `departures_m` thousandths come back each hour and are taken again.
    """
    rng, shape, lead_ms = random.Random(seed), 0.6, lead_min * MINUTE_MS
    demand, result = Demand(3.0, 5.0), Coverage(0, 0, 0, 0, 0)
    back = departures_m / 1000 * lead_min / 60
    demand.held(0, 20_000)
    truth = [stock_gpus(rate_of(hour) * lead_min / 60, shape, back, confidence) for hour in range(24)]
    for hour in range(8 * 7 * 24):
        start_ms = hour * HOUR_MS
        count = poisson(rng, rate_of(hour) * rng.gammavariate(shape, 1 / shape))
        ats_ms = sorted(start_ms + rng.randrange(HOUR_MS) for _ in range(count))
        now_ms = start_ms + rng.randrange(HOUR_MS - lead_ms)
        demand.departed(start_ms, departures_m)
        if hour >= 4 * 7 * 24:
            stock = demand.goal_stock_gpus(now_ms, lead_ms, 20_000, confidence)
            asked = sum(now_ms <= at_ms < now_ms + lead_ms for at_ms in ats_ms)
            truly = truth[hour % 24]
            result += (1, asked > stock + back, asked > truly + back, stock, truly)
        for at_ms in ats_ms:
            demand.requested(at_ms, f"u{rng.randrange(10**9)}", 1000, 2000)
    return result


def check_covered(lead_min: int, confidence: float, departures_m: int = 0) -> None:
    """The goal holds, at the price of the stock that the true parameters would ask for.

    4 seeds give 2688 independent windows: the fraction missed has a standard deviation of at most
    sqrt(p (1 - p) / 2688) = .0042 for p = .05, .0027 for p = .02; 3.3 of them are allowed. f is whole, so the true
    parameters miss less than p, too; hence the comparison with them on the same windows, where most of the noise
    cancels: rates that are 20 % off (their error after four weeks, k = .6) move the tail by .002 to .007 on average,
    .010 is allowed, .005 measured. The mean stock was within 3.2 % of the true one, 5 % is allowed.
    """
    total = Coverage(0, 0, 0, 0, 0)
    for seed in range(4):
        total += covered(seed, lead_min, confidence, departures_m)
    windows, missed, missed_by_truth, stock, stock_by_truth = total
    goal = 1 - confidence
    assert missed / windows <= goal + 3.3 * math.sqrt(goal * confidence / windows)
    assert abs(missed - missed_by_truth) / windows <= 0.010
    assert stock == pytest.approx(stock_by_truth, rel=0.05)


@pytest.mark.parametrize(("lead_min", "confidence"), [(5, 0.95), (15, 0.95), (35, 0.95), (15, 0.98)])
def test_after_four_weeks_the_goal_holds(lead_min: int, confidence: float) -> None:
    check_covered(lead_min, confidence)


def test_with_departures_the_goal_holds() -> None:
    check_covered(35, 0.95, departures_m=4000)


def hours_off_by_six(rates: tuple[float, ...], since_ms: int, until_ms: int) -> float:
    return right_integral(rates, since_ms + 6 * HOUR_MS, until_ms + 6 * HOUR_MS)


def departures_of_an_hour(hazard: Hazard, now_ms: int) -> float:
    return right_per_hour(hazard, now_ms) * 60 / 35


right_integral, right_per_hour = module._integral, Hazard.per_hour


@pytest.mark.parametrize(
    ("owner", "name", "fault"),
    [
        (Demand, "_pooled", poisson_pooled),
        (module, "_integral", hours_off_by_six),
        (Hazard, "per_hour", departures_of_an_hour),
    ],
)
def test_planted_faults_in_the_forecast_are_caught(
    monkeypatch: pytest.MonkeyPatch, owner: object, name: str, fault: object
) -> None:
    monkeypatch.setattr(owner, name, fault)
    with pytest.raises(AssertionError):
        check_covered(35, 0.95, departures_m=4000)


def poisson_stock(mean: float, shape: float, departures: float, confidence: float) -> int:
    return stock_gpus(mean, math.inf, departures, confidence)


def one_too_many(mean: float, shape: float, departures: float, confidence: float) -> int:
    return stock_gpus(mean, shape, departures, confidence) + 1


def departures_rounded_up(mean: float, shape: float, departures: float, confidence: float) -> int:
    return stock_gpus(mean, shape, math.ceil(departures), confidence)


@pytest.mark.parametrize("fault", [poisson_stock, one_too_many, departures_rounded_up])
def test_planted_faults_in_the_stock_are_caught(fault: Callable[[float, float, float, float], int]) -> None:
    with pytest.raises(AssertionError):
        check_stock(fault, 3.0, 0.4, 1.5, 0.95)
    if fault is not departures_rounded_up:  # T19 has no departures
        with pytest.raises(AssertionError):
            check_t19(fault)


# --- checkpoints ---


def told(demand: Demand, request: Request, number: int) -> None:
    demand.requested(*request)
    if number % 3 == 0:
        demand.departed(request.at_ms, 1000)
    demand.held(request.at_ms, number % 7 * 1000)


def check_checkpoint(moments: set[int]) -> None:
    """Stopped after each of these requests, written as JSON and restored: all later answers are the same floats."""
    prior = (3.0, 5.0, 2.0)
    unstopped, stopped = Demand(*prior), Demand(*prior)
    for number, request in enumerate(some_weeks(20 * MINUTE_MS, 4)):
        if number in moments:
            state = json.dumps(stopped.dump())
            stopped = Demand.restore(json.loads(state), *prior)
            assert json.dumps(stopped.dump()) == state
        told(unstopped, request, number)
        told(stopped, request, number)
        now_ms = request.at_ms + 1000
        assert stopped.lead(now_ms, 40 * MINUTE_MS, 9000) == unstopped.lead(now_ms, 40 * MINUTE_MS, 9000)
    assert json.dumps(stopped.dump()) == json.dumps(unstopped.dump())


@settings(max_examples=20)
@given(moments=st.sets(st.integers(0, 500), max_size=12))
def test_stopping_and_going_on_is_never_having_stopped(moments: set[int]) -> None:
    check_checkpoint(moments)


@pytest.mark.parametrize("member", sorted(Demand(1.0, 1.0).dump()))
def test_every_member_of_a_checkpoint_counts(monkeypatch: pytest.MonkeyPatch, member: str) -> None:
    """A checkpoint without one of them is refused by name, and one that forgets its value is not the same."""
    state = Demand(1.0, 1.0).dump()
    del state[member]
    with pytest.raises(KeyError, match=member):
        Demand.restore(state, 1.0, 1.0)

    right_dump, empty = Demand.dump, Demand(1.0, 1.0).dump()[member]

    def forgetful(demand: Demand) -> dict[str, Any]:
        return {**right_dump(demand), member: empty}

    told_ms = 10 * DAY_MS + 20 * MINUTE_MS
    demand = Demand(1.0, 1.0)
    for number, request in enumerate(some_weeks(told_ms, 3)):
        told(demand, request, number)
    assert right_dump(demand)[member] != empty
    monkeypatch.setattr(Demand, "dump", forgetful)
    with pytest.raises((AssertionError, TypeError)):
        assert right_dump(Demand.restore(demand.dump(), 1.0, 1.0)) == right_dump(demand)


def test_a_checkpoint_is_a_copy() -> None:
    demand = Demand(1.0, 1.0)
    demand.requested(0, "a", 1000, None)
    state = demand.dump()
    before = json.dumps(state)
    restored = Demand.restore(state, 1.0, 1.0)
    for now_ms in (1, 3 * HOUR_MS):
        for one in (demand, restored):
            one.requested(now_ms, "b", 1000, None)
    assert json.dumps(state) == before


# --- time ---


def fastest_us(call: Callable[[int], object], calls: int, rounds: int = 5) -> float:
    """Least mean time of a call among some rounds: what else the machine does only adds."""
    best = math.inf
    for r in range(rounds):
        begun = perf_counter()
        for number in range(calls):
            call(r * calls + number)
        best = min(best, perf_counter() - begun)
    return best / calls * 1e6


def test_a_year_of_silence_is_quick_and_counts_as_days_without_requests() -> None:
    requests = some_weeks(0, 10)
    check_learned(0, requests, 10 * DAY_MS + YEAR_MS, (3.0, 5.0, 2.0))
    demand = Demand(3.0, 5.0)
    for request in requests:
        demand.requested(*request)
    begun = perf_counter()
    for years in (1, 2, 100, 5000):
        demand.requested(years * YEAR_MS, "a", 1000, None)
        mean, shape, _ = demand.lead(years * YEAR_MS + HOUR_MS, HOUR_MS, 0)
        assert 0.0 < mean < 0.5
        assert shape >= 0.05
    # Measured .2 ms for all four; a loop over the hours of the 5000 years takes seconds.
    assert perf_counter() - begun < 0.1


def test_time_that_goes_back_counts_as_the_last() -> None:
    demand = Demand(1.0, 1.0)
    demand.held(5 * HOUR_MS, 1000)
    demand.requested(6 * HOUR_MS, "a", 1000, None)
    before = demand.dump()
    demand.requested(2 * HOUR_MS, "a", 0, None)
    demand.departed(2 * HOUR_MS, 0)
    assert demand.dump() == before


def test_cost() -> None:
    """Measured on one core of a 2-core machine: .4 to .5 us a fact, 9 us for a stock of 71; limits are 5 and 300 us."""
    demand = Demand(10.0, 39.0)
    for request in some_weeks(0, 10):
        demand.requested(*request)
    users, now_ms = [f"u{number}" for number in range(200)], 10 * DAY_MS
    assert fastest_us(lambda n: demand.requested(now_ms + n, users[n % 200], 1000, 2000), 2000) < 5
    assert fastest_us(lambda n: demand.departed(now_ms + 10_000 + n, 1000), 2000) < 5
    assert fastest_us(lambda n: demand.held(now_ms + 20_000 + n, n), 2000) < 5

    def stock(n: int) -> None:
        demand.lead(now_ms + 30_000 + n, 15 * MINUTE_MS, 60_000)
        assert 90 <= stock_gpus(25.0, 0.6, 0.0, 0.95) <= 110

    assert fastest_us(stock, 100) < 300
