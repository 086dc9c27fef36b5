"""The ledger number: GPU-hours charged, decayed with a half-life, integrated exactly.

Every account follows U' = -(ln 2 / h) U + r between two changes of its charge rate r, so that

    U(t) = U(0) 2^(-t/h) + r K (1 - 2^(-t/h)),     K = h / ln 2.

Written as `U(t) = scaled / theta(t) + steady` with `theta(t) = 2^((t - landmark) / h)`, `steady = r K` and
`scaled = (U - steady) theta`, an account needs touching only when its rate changes, and the accounts with nothing
running keep the order of their `scaled` for ever (forward decay: Cormode et al., ICDE 2009).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from policies.model import HOUR_MS, NANO

if TYPE_CHECKING:
    from policies.model import Node, Shape

REBASE_HALF_LIVES = 64
"""The landmark moves by this many half-lives at a time: a scaling by 2^-64, which is exact in binary floats."""

NOTHING_GPU_H = 1e-11
"""Usage below this is what rounding left of none: the least charge, a thousandth of an idle GPU for 1 ms, is more."""

NEVER_MS = 1 << 62
"""A time that does not come."""

ROUNDING = 1e-9
"""An account may stand at a level exactly, and beyond it by rounding only: it passes it within a millisecond."""


class DecayClock:
    """The one decay factor of an instant, shared by all accounts.

    Args:
        half_life_ms: > 0.
        now_ms: first instant; also the landmark.
    """

    __slots__ = ("half_life_ms", "inverse", "landmark_ms", "now_ms", "steady_gpu_h", "theta")

    def __init__(self, half_life_ms: int, now_ms: int = 0) -> None:
        if not half_life_ms > 0:
            raise ValueError(f"half-life {half_life_ms} ms must be > 0")
        self.half_life_ms = half_life_ms
        self.steady_gpu_h = half_life_ms / HOUR_MS / math.log(2)
        self.landmark_ms = now_ms
        self.now_ms = now_ms
        self.theta = 1.0
        self.inverse = 1.0

    def move(self, now_ms: int) -> int:
        """Go to `now_ms`; not 0 when the landmark moved by so many half-lives: every account must be multiplied by
        `2.0 ** -half_lives`.
        """
        self.now_ms = now_ms
        age = (now_ms - self.landmark_ms) / self.half_life_ms
        rebased = 0
        if age > REBASE_HALF_LIVES:
            rebased = int(age) // REBASE_HALF_LIVES * REBASE_HALF_LIVES
            self.landmark_ms += rebased * self.half_life_ms
            age = (now_ms - self.landmark_ms) / self.half_life_ms
        self.theta = 2.0**age
        self.inverse = 2.0**-age
        return rebased

    def usage(self, node: Node) -> float:
        """Decayed usage of an account now, GPU-h, >= 0."""
        return node.scaled * self.inverse + node.steady

    def compared(self, node: Node) -> float:
        """`usage`, with none where rounding left next to none: places are compared by it, and equal ones are a tie.

        Accounts with nothing running are exact in proportion and stay as they are.
        """
        usage = node.scaled * self.inverse + node.steady
        return 0.0 if usage < NOTHING_GPU_H and node.rate_n else usage

    def set_rate(self, node: Node, rate_n: int) -> None:
        """Charge the account at `rate_n` (nano GPU-h per hour) from now on."""
        usage = self.compared(node)
        node.rate_n = rate_n
        node.steady = rate_n / NANO * self.steady_gpu_h
        node.scaled = (usage - node.steady) * self.theta

    def set_usage(self, node: Node, usage_gpu_h: float) -> None:
        """Overwrite the account's usage now (an administrator's correction); its rate stays."""
        node.scaled = (usage_gpu_h - node.steady) * self.theta

    def time_to_reach(self, node: Node, usage_gpu_h: float) -> int:
        """Milliseconds, >= 1, until the account's usage has passed `usage_gpu_h` at its present rate.

        `NEVER_MS` when it never will. Source: U(t) of the module's docstring solved for t.
        """
        now = node.scaled * self.inverse
        goal = usage_gpu_h - node.steady
        if now == 0.0 or goal == 0.0 or not (0.0 < goal / now <= 1.0 + ROUNDING):
            return NEVER_MS
        return max(1, math.ceil(-self.half_life_ms * math.log2(goal / now)))

    def time_to_zero(self, decaying: float, level: float) -> int | None:
        """Milliseconds, >= 1, until `decaying / theta + level` passes zero upwards; None when it never does.

        `decaying` is scaled like `Node.scaled`; `level` in GPU-h. For the difference of two accounts.
        """
        now = decaying * self.inverse
        if now + level > 0.0:
            return 1
        if not (level > 0.0 > now):
            return None
        return max(1, math.ceil(self.half_life_ms * math.log2(-now / level)))


def charge_rate_n(gpus: int, weight: float, granted_m: int, idle_charge: float, load: float | None) -> int:
    """Charge rate of a running session, nano GPU-h per hour.

    `gpus x weight x fraction x (idle_charge + (1 - idle_charge) x load)`; unknown load is charged as load 0.

    Args:
        gpus: >= 1.  weight: of the GPU model, > 0 (T4 = 1).  granted_m: thousandths of each GPU, 1..1000.
        idle_charge: 0..1.  load: measured busy part of what was granted, 0..1; None = unknown.
    """
    busy = 0.0 if load is None else load
    return round(gpus * granted_m * weight * (idle_charge + (1.0 - idle_charge) * busy) * (NANO // 1000))


def committed_n(shape: Shape, granted_m: int, weight: float, min_run_ms: int) -> int:
    """Committed charge of a session held or asked for: its minimum run at load 1, nano GPU-h."""
    return round(shape.gpus * granted_m * weight * (min_run_ms / HOUR_MS) * (NANO // 1000))


def decayed(usage_gpu_h: float, rate: float, hours: float, half_life_h: float) -> float:
    """Usage after `hours` at a constant charge `rate` (GPU-h per hour), GPU-h: the closed form, for tests and docs."""
    left: float = 2.0 ** (-hours / half_life_h)
    return usage_gpu_h * left + rate * (half_life_h / math.log(2)) * (1.0 - left)


def retry_after_h(usage_gpu_h: float, limit_gpu_h: float, half_life_h: float) -> float:
    """Hours until decayed usage falls to the limit, if nothing more is charged.

    Args:
        usage_gpu_h: decayed usage now, >= 0.
        limit_gpu_h: > 0. At or above the usage the answer is 0.
        half_life_h: > 0.

    Source: exponential decay, U(t) = U(0) * 2 ** (-t / half_life_h), solved for t.
    """
    if not (usage_gpu_h >= 0 and limit_gpu_h > 0 and half_life_h > 0):
        raise ValueError(f"usage {usage_gpu_h} must be >= 0, limit {limit_gpu_h} and half-life {half_life_h} > 0")
    return max(0.0, half_life_h * math.log2(usage_gpu_h / limit_gpu_h)) if usage_gpu_h else 0.0


def swap_period_h(half_life_h: float, delta_gpu_h: float) -> float:
    """Hours in which two equal users who hold one GPU in turn drift apart by the rotation threshold, both ways.

    `h log2((K + d) / (K - d))`: the usage difference goes from -d to +d (rate 1). Needs 0 < d < K.
    """
    steady = half_life_h / math.log(2)
    if not (0 < delta_gpu_h < steady):
        raise ValueError(f"rotation threshold {delta_gpu_h} GPU-h must be > 0 and < K = {steady:.4f} GPU-h")
    return half_life_h * math.log2((steady + delta_gpu_h) / (steady - delta_gpu_h))


def credit_gone_h(cap_gpu_h: float, rate: float, half_life_h: float) -> float | None:
    """Hours from zero usage until a credit cap is used up at a constant charge rate; None = never."""
    level = rate * half_life_h / math.log(2)
    return None if level <= cap_gpu_h else half_life_h * math.log2(level / (level - cap_gpu_h))
