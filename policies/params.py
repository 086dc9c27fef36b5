"""The parameters of a policy, validated: what a policy file says, and what follows from it.

`load` reads the text of a file and reports every mistake at once (`policies.param_file` does the reading). Durations
are seconds in the file and integer milliseconds here. The classes themselves trust what they are given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from policies.acceptable_use import Rule
from policies.param_file import ParamError, PolicyError, read, write
from policies.param_keys import KEYS, POLICIES, RULES, TIER_KEYS
from policies.rule_file import rule_dict

__all__ = [
    "HeadroomParams",
    "IdleParams",
    "LadderParams",
    "OrderParams",
    "ParamError",
    "Params",
    "PolicyError",
    "TelemetryParams",
    "TierParams",
    "UsageParams",
    "load",
]

HOUR_MS = 3_600_000
DEFAULT_DELTA_GPU_H = 0.5
"""The gap in standing that the swap period assumes where `rotate_delta_gpu_h` is unset."""
DEFAULT_TIER = "free"


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageParams:
    """How use is charged and forgotten.

    Attributes:
        half_life_h: hours after which past use counts half, > 0.
        idle_charge: 0..1, the cost of holding an idle GPU as a part of a busy one's.
    """

    half_life_h: float = 48.0
    idle_charge: float = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadroomParams:
    """How many GPUs are kept free for requests in credit.

    Attributes:
        fixed_gpus: >= 0.
        confidence: 0..1, of finding a free GPU at once, from which the stock follows; None = `fixed_gpus` is the stock.
        max_fraction: 0..1 of the pool, bounds either.
        prior_per_h, prior_dispersion: GPUs asked for in an hour, and variance / mean, before anything is learned.
    """

    fixed_gpus: float = 0.0
    confidence: float | None = None
    max_fraction: float = 0.25
    prior_per_h: float = 12.0
    prior_dispersion: float = 39.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LadderParams:
    """When somebody is noticed, warned, throttled and evicted; times in integer milliseconds.

    Attributes:
        contention_ms: contention must last this long before the ladder moves.
        warn_ms: between a warning and what it warns of.
        throttle_step_ms: on each step of a throttle, > 0.
        grace_ms: longest time to save before an eviction.
        recover_ms: one step down per this time without contention, > 0.
        min_run_ms: running time that cannot be taken.
        patience_ms: an in-credit waiter's wait before heavy sessions in credit give way.
        rotate_delta_gpu_h: gap in standing beyond which sessions of one class take turns, GPU-h, > 0; None = off.
        notice_credit_fraction: 0..1 of the credit, below it a notice is given.
        notice_ahead_ms: a notice is given when the credit is predicted gone within this time.
        heavy_load: 0..1, mean load from which a session is heavy.
        heavy_window_ms: time over which that load is averaged, > 0.
        heavy_known_fraction: 0..1 of that time, with less of it known nobody is heavy.
    """

    contention_ms: int = 0
    warn_ms: int = 300_000
    throttle_step_ms: int = 300_000
    grace_ms: int = 300_000
    recover_ms: int = 300_000
    min_run_ms: int = 1_800_000
    patience_ms: int = 600_000
    rotate_delta_gpu_h: float | None = None
    notice_credit_fraction: float = 0.25
    notice_ahead_ms: int = 3_600_000
    heavy_load: float = 0.8
    heavy_window_ms: int = 1_800_000
    heavy_known_fraction: float = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class TierParams:
    """What a class of users is entitled to.

    Attributes:
        baseline_gpus: GPUs a user may use on average and stay in credit, >= 0; None = `"auto"`.
        group_baseline_gpus: GPUs that a group's users of this tier may use on average together and stay in credit;
            None = no bound.
        guaranteed_gpus: GPUs that the tier's users go first for and take back from others, >= 0.
        sessions_per_user, queued_per_user: that hold GPUs, that wait, at once.
        gpus_per_user, gpus_per_group: held at once by one user, by the users of one group in this tier.
        gpu_models: that may be used.
        lifetime_ms: time from start or extension to the end of a session.
        longest_ms: bounds what extensions add up to, from the start; None = none.
        quota_gpu_h: GPU-hours that a user may hold within `quota_window` (see `policies.quota`).

        Every limit is > 0; None = no limit.
    """

    baseline_gpus: float | None = None
    group_baseline_gpus: float | None = None
    guaranteed_gpus: float = 0.0
    sessions_per_user: int | None = None
    queued_per_user: int | None = None
    gpus_per_user: float | None = None
    gpus_per_group: float | None = None
    gpu_models: tuple[str, ...] | None = None
    lifetime_ms: int | None = None
    longest_ms: int | None = None
    quota_gpu_h: float | None = None
    quota_window: str = "7d"


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderParams:
    """Who goes first.

    Attributes:
        by: "standing", or "arrival": whoever came first.
        max_wait_ms: after waiting for this long a session may start whatever its standing (`policies.bounded_wait`).
        reserve_after_ms: after waiting for this long, what becomes free is kept for a wide session (`policies.wide`).
    """

    by: str = "standing"
    max_wait_ms: int = 7_200_000
    reserve_after_ms: int = 900_000


@dataclass(frozen=True, slots=True, kw_only=True)
class IdleParams:
    """What becomes of sessions that hold GPUs without using them; integer milliseconds.

    Attributes:
        warn_ms, release_ms: without load for so long: told, ended; None = off.
        when: "contention", or "always": also while nobody waits.
    """

    warn_ms: int | None = None
    release_ms: int | None = None
    when: str = "contention"


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetryParams:
    """How often hosts report and how long silence is believed; integer milliseconds, each > 0."""

    report_ms: int = 10_000
    stale_ms: int = 30_000
    lost_ms: int = 45_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Params:
    """One policy.

    Attributes:
        name, summary: for people; may be empty.
        policy: one of `policies.param_keys.POLICIES`; all but `fair-share` ignore everything below.
        gpu_weight: what one GPU of a model counts for, > 0; see `weight`.
        tiers: always has `free`; see `tier`.
        rules: of acceptable use.
    """

    name: str = ""
    summary: str = ""
    policy: str = "fair-share"
    usage: UsageParams = UsageParams()
    gpu_weight: Mapping[str, float] = field(default_factory=dict, hash=False)
    tiers: Mapping[str, TierParams] = field(default_factory=lambda: {DEFAULT_TIER: TierParams()}, hash=False)
    order: OrderParams = OrderParams()
    headroom: HeadroomParams = HeadroomParams()
    ladder: LadderParams = LadderParams()
    idle: IdleParams = IdleParams()
    telemetry: TelemetryParams = TelemetryParams()
    rules: tuple[Rule, ...] = ()

    def tier(self, name: str) -> TierParams:
        """The parameters of a tier; a tier that is not listed is treated as `free`."""
        return self.tiers.get(name) or self.tiers.get(DEFAULT_TIER) or TierParams()

    def weight(self, model: str | None) -> float:
        """What one GPU of a model counts for; 1 for an unknown or unlisted model."""
        return 1.0 if model is None else self.gpu_weight.get(model, 1.0)

    @property
    def steady_gpu_h(self) -> float:
        """K = h / ln 2, GPU-h: the usage that one GPU at full charge tends to (exponential decay, rate 1)."""
        return self.usage.half_life_h / math.log(2)

    @property
    def delta_gpu_h(self) -> float:
        """The gap in standing between two who swap, GPU-h: `rotate_delta_gpu_h`, .5 where unset, K / 2 if K <= .5."""
        delta, steady = self.ladder.rotate_delta_gpu_h, self.steady_gpu_h
        if delta is not None:
            return delta
        return DEFAULT_DELTA_GPU_H if steady > DEFAULT_DELTA_GPU_H else steady / 2

    @property
    def swap_period_ms(self) -> int:
        """h log2((K + d) / (K - d)), ms: two equal users on one GPU swap no faster than this.

        From -d to +d while one charges at rate 1 (toward K) and the other decays: solve the exact integral of the
        ledger for the time at which the difference of their usages has changed its sign.
        """
        steady, delta = self.steady_gpu_h, self.delta_gpu_h
        return round(self.usage.half_life_h * HOUR_MS * math.log2((steady + delta) / (steady - delta)))

    def as_dict(self) -> dict[str, Any]:
        """Every effective value under its key in a policy file, durations in seconds; a key that is off is None."""
        top = {"name": self.name, "summary": self.summary, "policy": self.policy}
        if self.policy != POLICIES[0]:
            return top
        tables: dict[str, Any] = {"usage": {}, "gpu_weight": dict(self.gpu_weight)}
        tables["tiers"] = {
            name: {key.name: key.shown(getattr(tier, key.field)) for key in TIER_KEYS}
            for name, tier in self.tiers.items()
        }
        for key in KEYS:
            value = getattr(getattr(self, key.table), key.field)
            tables.setdefault(key.table, {})[key.name] = key.shown(value)
        if self.headroom.confidence is not None:
            tables["headroom"]["fixed_gpus"] = None  # the goal sets it
        if self.rules:
            tables[RULES] = [rule_dict(rule) for rule in self.rules]
        return top | tables

    def to_toml(self) -> str:
        """A policy file that says the same as these parameters, without comments; `load` of it gives them back."""
        values = self.as_dict()
        return write({name: value for name, value in values.items() if value not in ("", {})})


def load(text: str, file: str) -> Params:
    """Read the text of a policy file.

    Args:
        text: TOML; durations are seconds.
        file: how messages name the file.

    Raises:
        PolicyError: with every mistake in the file at once.
    """
    document = read(text, file)
    values = document.values
    return Params(
        **document.top,
        usage=UsageParams(**values.get("usage", {})),
        gpu_weight=document.gpu_weight,
        tiers={DEFAULT_TIER: TierParams()} | {name: TierParams(**tier) for name, tier in document.tiers.items()},
        order=OrderParams(**values.get("order", {})),
        headroom=HeadroomParams(**values.get("headroom", {})),
        ladder=LadderParams(**values.get("ladder", {})),
        idle=IdleParams(**values.get("idle", {})),
        telemetry=TelemetryParams(**values.get("telemetry", {})),
        rules=document.rules,
    )
