"""Random streams: the same on every Python and every machine, one per key, distributed as they say."""

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulations.streams import Stream, value_at

DRAWS = 20_000
Keys = st.lists(st.integers(-(2**70), 2**70) | st.text(max_size=12), max_size=4).map(tuple)

BITS = [7590179611833346360, 16895986793250898894, 14737712257944686302]
VALUES = [
    "0.25239536082358394",
    "25.585910577442206",
    "92.13990058081973",
    "3.2220987885773056",
    "6.573843617424397",
    "0.0028161516102138506",
    "39",
    "35",
    "1",
    "0.0",
]


def test_known_answers() -> None:
    """Values that never change: a new Python, or a new version of ours, must reproduce old runs."""
    stream = Stream(1, "busy", "u-1", "patience")
    assert [stream.bits() for _ in range(3)] == BITS
    got = (
        stream.uniform(),
        stream.exponential(30.0),
        stream.normal(94, 4),
        stream.lognormal(2.5, 0.9),
        stream.gamma(4.5, 2.0),
        stream.gamma(0.4, 2.0),
        stream.poisson(40.0),
        stream.integer(5, 50),
        stream.choice((0.2, 0.5, 0.3)),
        stream.from_cdf(((0.0, 0.3), (0.5, 0.6), (1.0, 1.0))),
    )
    assert [repr(value) for value in got] == VALUES


def test_uniform_is_uniform_and_never_0_or_1() -> None:
    stream = Stream(2, "uniform")
    values = sorted(stream.uniform() for _ in range(DRAWS))
    assert 0 < values[0] < values[-1] < 1
    distance = max(abs(value - (rank + 0.5) / DRAWS) for rank, value in enumerate(values))
    assert distance < 1.63 / math.sqrt(DRAWS)  # Kolmogorov-Smirnov, 1 %


@pytest.mark.parametrize("word", [0, 2**64 - 1])
def test_the_extreme_words_stay_inside(word: int) -> None:
    """The ends would give infinite normals and logarithms of 0."""
    stream = Stream("extreme")
    stream._words = [word] * 3
    assert 0 < stream.uniform() < 1
    assert math.isfinite(stream.normal())
    assert stream.exponential(1.0) > 0


@pytest.mark.parametrize(
    ("draw", "mean", "variance"),
    [
        (lambda s: s.normal(94, 4), 94, 16),
        (lambda s: s.exponential(30), 30, 900),
        (lambda s: s.gamma(4.5, 2.0), 9, 18),
        (lambda s: s.gamma(0.4, 2.0), 0.8, 1.6),
        (lambda s: s.gamma(1.0, 3.0), 3, 9),
        (lambda s: math.log(s.lognormal(2.5, 0.9)), math.log(2.5), 0.81),
        (lambda s: s.poisson(0.7), 0.7, 0.7),
        (lambda s: s.poisson(40.0), 40, 40),
        (lambda s: s.integer(5, 50), 27.5, (46**2 - 1) / 12),
        (lambda s: s.choice((0.2, 0.0, 0.8)), 1.6, 0.64),
        (lambda s: s.from_cdf(((0.0, 0.5), (1.0, 1.0))), 0.25, 0.5 / 3 - 0.0625),
    ],
)
def test_mean_and_variance(draw, mean, variance) -> None:
    stream = Stream(3, "moments")
    values = [float(draw(stream)) for _ in range(DRAWS)]
    assert statistics.fmean(values) == pytest.approx(mean, abs=4 * math.sqrt(variance / DRAWS))
    assert statistics.variance(values) == pytest.approx(variance, rel=0.08)


def test_the_quarter_points_of_a_gamma() -> None:
    """Two moments do not tell a gamma from a normal: its quartiles do (shape 4.5, integrated numerically)."""
    stream = Stream(4, "gamma")
    quartiles = statistics.quantiles((stream.gamma(4.5, 1.0) for _ in range(DRAWS)), n=4)
    assert quartiles == pytest.approx([2.9494, 4.1714, 5.6944], rel=0.02)


@given(Keys, Keys)
def test_equal_keys_give_equal_values_and_others_do_not(one, other) -> None:
    first, second = Stream(*one).bits(), Stream(*other).bits()
    assert (first == second) == (list(map(ascii, one)) == list(map(ascii, other)))


def test_keys_are_not_joined_up() -> None:
    keys = [("a", "bc"), ("ab", "c"), ("abc",), (1, 23), (12, 3), (123,), ("1", "23"), ("a', 'bc",), ()]
    assert len({Stream(*key).bits() for key in keys}) == len(keys)


def test_neighbouring_keys_are_uncorrelated() -> None:
    pairs = [(Stream(5, n, "a").uniform(), Stream(5, n, "b").uniform()) for n in range(4000)]
    nexts = [(Stream(5, n).uniform(), Stream(5, n + 1).uniform()) for n in range(4000)]
    for sample in (pairs, nexts):
        assert abs(statistics.correlation(*zip(*sample, strict=True))) < 4 / math.sqrt(len(sample))


def test_a_stream_ignores_what_others_draw() -> None:
    alone = Stream(6, "x")
    expected = [alone.uniform() for _ in range(20)]
    mixed, noise = Stream(6, "x"), Stream(6, "y")
    got = []
    for _ in range(20):
        noise.normal()
        got.append(mixed.uniform())
    assert got == expected


@given(st.integers(-(10**9), 10**9), st.integers(0, 10**9), st.integers(0, 10**6))
def test_integers_stay_in_range(lo: int, width: int, seed: int) -> None:
    assert lo <= Stream(seed).integer(lo, lo + width) <= lo + width


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=8).filter(lambda w: sum(w) > 0), st.integers(0, 10**6))
def test_a_choice_has_weight(weights: list[float], seed: int) -> None:
    assert weights[Stream(seed).choice(weights)] > 0


def test_quantiles_by_straight_lines() -> None:
    points = ((0.0, 0.25), (0.5, 0.5), (1.0, 1.0))
    assert [value_at(points, p) for p in (0.1, 0.25, 0.375, 0.5, 0.75, 1.0)] == [0.0, 0.0, 0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize(
    "draw",
    [
        lambda s: s.exponential(0),
        lambda s: s.exponential(math.nan),
        lambda s: s.normal(0, -1),
        lambda s: s.lognormal(-1, 1),
        lambda s: s.gamma(0, 1),
        lambda s: s.gamma(1, math.inf),
        lambda s: s.poisson(-1),
        lambda s: s.poisson(math.inf),
        lambda s: s.integer(2, 1),
        lambda s: s.choice(()),
        lambda s: s.choice((0, 0)),
        lambda s: s.choice((1, -1)),
        lambda s: s.from_cdf(((0.0, 0.5), (1.0, 0.9))),
        lambda s: s.from_cdf(()),
    ],
)
def test_parameters_out_of_range_are_refused(draw) -> None:
    with pytest.raises(ValueError):
        draw(Stream("wrong"))
