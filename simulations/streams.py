"""Random numbers by key: the only place that makes them.

A stream's values follow from its key alone, not from what was drawn elsewhere, so two policies meet identical users
even when their schedules diverge (common random numbers). Word `i` of a stream is 64 bits of
BLAKE2b(key, counter = i // 8); distributions use plain arithmetic, `math.log` and `math.exp`, and the stated
algorithms, never the `random` module, so values are the same on every supported Python.
"""

import math
import struct
from bisect import bisect_left
from collections.abc import Sequence
from hashlib import blake2b
from statistics import NormalDist

_EIGHT_WORDS = struct.Struct("<8Q")
_COUNTER = struct.Struct("<Q")
_NORMAL_QUANTILE = NormalDist().inv_cdf
_CELL = 2.0**-52
_POISSON_CHUNK = 16.0  # exp(-16) is far from underflow, and few products are needed


class Stream:
    """An endless sequence of draws that belongs to one key.

    Args:
        key: integers and strings, for example (seed, scenario, user, session, purpose). Order, type and boundaries
            matter: ("a", "bc"), ("ab", "c") and ("1",), (1,) are four streams.
    """

    __slots__ = ("_counter", "_key", "_words")

    def __init__(self, *key: int | str) -> None:
        self._key = blake2b(ascii(key).encode(), digest_size=32, person=b"fairtier-stream").digest()
        self._counter = 0
        self._words: list[int] = []

    def bits(self) -> int:
        """The next word, 0 .. 2**64 - 1."""
        words = self._words or self._more()
        return words.pop()

    def uniform(self) -> float:
        """A number strictly between 0 and 1: the middle of one of 2**52 equal cells."""
        words = self._words or self._more()
        return ((words.pop() >> 12) + 0.5) * _CELL

    def exponential(self, mean: float) -> float:
        """Exponential with `mean` > 0, by inversion."""
        return -_positive("mean", mean) * math.log(self.uniform())

    def normal(self, mean: float = 0.0, sd: float = 1.0) -> float:
        """Normal with standard deviation `sd` >= 0, by inversion (Wichura 1988, AS 241, as in `NormalDist`)."""
        if not sd >= 0:
            raise ValueError(f"sd {sd} must be >= 0")
        return mean + sd * _NORMAL_QUANTILE(self.uniform())

    def lognormal(self, median: float, sigma: float) -> float:
        """exp of a normal: `median` > 0 in the unit of the answer, `sigma` >= 0 the deviation of its logarithm."""
        return _positive("median", median) * math.exp(self.normal(0.0, sigma))

    def gamma(self, shape: float, scale: float) -> float:
        """Gamma with mean shape * scale and variance shape * scale**2; both > 0.

        Source: Marsaglia and Tsang 2000, "A simple method for generating gamma variables": exact, by rejection;
        a shape below 1 is drawn at shape + 1 and multiplied by U ** (1 / shape) (their section 6).
        """
        _positive("scale", scale)
        if _positive("shape", shape) < 1:
            return self.gamma(shape + 1, scale) * math.exp(math.log(self.uniform()) / shape)
        d = shape - 1 / 3
        c = 1 / math.sqrt(9 * d)
        while True:
            x = self.normal()
            root = 1 + c * x
            cube = root * root * root
            if cube > 0 and math.log(self.uniform()) < 0.5 * x * x + d * (1 - cube + math.log(cube)):
                return d * cube * scale

    def poisson(self, mean: float) -> int:
        """Poisson count, `mean` >= 0 (Knuth's product of uniforms; a large mean is drawn in parts)."""
        if not 0 <= mean < math.inf:
            raise ValueError(f"mean {mean} must be >= 0 and finite")
        count = 0
        while mean > 0:
            floor = math.exp(-min(mean, _POISSON_CHUNK))
            mean -= _POISSON_CHUNK
            product = self.uniform()
            while product > floor:
                count += 1
                product *= self.uniform()
        return count

    def integer(self, lo: int, hi: int) -> int:
        """An integer lo .. hi, both ends possible; probabilities differ by less than (hi - lo + 1) / 2**64."""
        if not lo <= hi:
            raise ValueError(f"lo {lo} must be <= hi {hi}")
        return lo + (self.bits() * (hi - lo + 1) >> 64)

    def choice(self, weights: Sequence[float]) -> int:
        """An index of `weights`, each >= 0 and some > 0, with probability proportional to its weight."""
        if not all(weight >= 0 for weight in weights):
            raise ValueError(f"weights {list(weights)} must be >= 0")
        left = self.uniform() * _positive("sum of weights", math.fsum(weights))
        last = 0
        for index, weight in enumerate(weights):
            if weight > 0:
                last = index
                if left < weight:
                    break
                left -= weight
        return last

    def from_cdf(self, points: Sequence[tuple[float, float]]) -> float:
        """A value of the distribution with these (value, probability of at most value), straight lines between.

        Both columns rise, the last probability is 1; a first probability above 0 is an atom at the first value.
        """
        return value_at(points, self.uniform())

    def _more(self) -> list[int]:
        block = blake2b(_COUNTER.pack(self._counter), key=self._key).digest()
        self._words = list(reversed(_EIGHT_WORDS.unpack(block)))
        self._counter += 1
        return self._words


def value_at(points: Sequence[tuple[float, float]], probability: float) -> float:
    """The quantile at `probability` (0..1) of a distribution given as for `Stream.from_cdf`."""
    if not (points and points[-1][1] == 1):
        raise ValueError(f"the points {list(points)} must end at probability 1")
    at = bisect_left(points, probability, key=lambda point: point[1])
    value, reached = points[at]
    if at == 0:
        return value
    before, start = points[at - 1]
    return before + (value - before) * ((probability - start) / (reached - start))


def _positive(what: str, value: float) -> float:
    if not 0 < value < math.inf:
        raise ValueError(f"{what} {value} must be > 0 and finite")
    return value
