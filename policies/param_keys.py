"""Every key of a policy file: where it is, what it allows, its default, its unit and what it does.

One table feeds the reader, its messages, `policy show` and the defaults of the parameter classes. Only keys that do
something in this version are in it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

LONGEST_S = 1_000_000_000
"""Upper bound of a duration, seconds (about 31 years): anything longer is a mistake or means `never`."""
MOST_GPUS = 1_000_000
"""Upper bound of a number of GPUs and of a weight."""

POLICIES = ("fair-share", "fifo", "fifo-skip", "sjf")
"""What orders the queue: the rules of this project, or one of the plain orders to compare with."""

IDENTIFIER = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
"""Names of policies and tiers; match with `fullmatch`."""


_MS = {"s": 1000, "h": 3_600_000}


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One number of a policy file.

    Attributes:
        table: the TOML table it stands in.
        name: its key there; durations are in seconds.
        default: what holds when it is absent; None = off.
        low, high: bounds in the file's unit, both allowed unless `above` is set.
        above: the low bound itself is refused.
        unit: for people; empty for a bare fraction.
        does: what it does, one sentence.
        unless: appended to what a message says is allowed.
    """

    table: str
    name: str
    default: float | None
    low: float = 0
    high: float = MOST_GPUS
    above: bool = False
    unit: str = ""
    does: str
    unless: str = ""

    @property
    def is_duration(self) -> bool:
        """Whether the file gives seconds, which the parameters hold as integer milliseconds."""
        return self.name.endswith("_s")

    @property
    def field(self) -> str:
        """The attribute of the parameter class: `warn_s` in the file is `warn_ms` there."""
        return self.name.removesuffix("_s") + "_ms" if self.is_duration else self.name

    @property
    def allowed(self) -> str:
        """What a message says is allowed, to follow `must be`."""
        if self.high == 1:
            return "a number from 0 to 1"
        return f"a number {'>' if self.above else '>='} {self.low:g} and at most {self.high}{self.unless}"

    def accepts(self, value: object) -> bool:
        """Whether a value from a file is a number within the bounds; true, false, NaN and infinity are not."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        if not (self.low < value if self.above else self.low <= value) or not value <= self.high:
            return False
        per_ms = _MS.get(self.unit)  # a time that must not be 0 must not round to 0 either
        return per_ms is None or not self.above or round(value * per_ms) > 0

    def convert(self, value: float) -> float:
        """An accepted value as the parameters hold it: milliseconds, or a float."""
        return to_ms(value) if self.is_duration else float(value)


def to_ms(seconds: float) -> int:
    """Seconds of a file as integer milliseconds, rounded to the nearest."""
    return round(seconds * 1000)


def _s(table: str, name: str, default_s: float, does: str, *, above: bool = False) -> Key:
    return Key(table=table, name=name, default=default_s, high=LONGEST_S, above=above, unit="s", does=does)


def _part(table: str, name: str, default: float, does: str, *, unit: str = "") -> Key:
    return Key(table=table, name=name, default=default, high=1, unit=unit, does=does)


KEYS: tuple[Key, ...] = (
    Key(
        table="usage",
        name="half_life_h",
        default=48,
        above=True,
        high=8760,
        unit="h",
        does="Past use counts half after this long.",
    ),
    _part("usage", "idle_charge", 0.5, "What holding an idle GPU costs, as a part of a fully busy one."),
    Key(table="headroom", name="fixed_gpus", default=0, unit="GPUs", does="GPUs kept free for requests in credit."),
    _part("headroom", "max_fraction", 0.25, "Never keep free more than this part of the pool.", unit="of the pool"),
    _s("ladder", "contention_s", 0, "How long somebody must wait or stock be short before the ladder moves."),
    _s("ladder", "warn_s", 300, "Time between a warning and what it warns of."),
    _s("ladder", "throttle_step_s", 300, "Time on each step of a throttle: 75, 50, 25 %.", above=True),
    _s("ladder", "grace_s", 300, "Longest time to save before an eviction; 0 evicts at once."),
    _s("ladder", "recover_s", 300, "One step down the ladder after this long without contention.", above=True),
    _s("ladder", "min_run_s", 1800, "Running time that nobody can be made to give up."),
    _s("ladder", "patience_s", 600, "How long a request in credit waits before heavy users in credit give way."),
    Key(
        table="ladder",
        name="rotate_delta_gpu_h",
        default=None,
        above=True,
        unit="GPU-h",
        does="Sessions of one class take turns once standings differ by more than this; absent: off.",
        unless="; absent turns it off, and at 0 equal users would swap for ever",
    ),
    _part("ladder", "notice_credit_fraction", 0.25, "Notice when less than this part of the credit is left."),
    _s("ladder", "notice_ahead_s", 3600, "Notice when the credit is predicted to be gone within this time."),
    _part("ladder", "heavy_load", 0.8, "Mean load from which a session counts as heavy."),
    _s("ladder", "heavy_window_s", 1800, "Time over which that load is averaged.", above=True),
    _part("ladder", "heavy_known_fraction", 0.9, "Part of that time whose load must be known to call a session heavy."),
    _s("telemetry", "report_s", 10, "Time between two reports of a host.", above=True),
    _s("telemetry", "stale_s", 30, "Older telemetry than this never escalates anything.", above=True),
    _s("telemetry", "lost_s", 45, "A host silent for this long is lost.", above=True),
)

WEIGHT = Key(
    table="gpu_weight",
    name="MODEL",
    default=1,
    above=True,
    does="What one GPU of this model counts for; models not listed count 1.",
)
BASELINE = Key(
    table="tiers",
    name="baseline_gpus",
    default=None,
    unit="GPUs",
    does='GPUs that a user of this tier may use on average and stay in credit; "auto": what there is, divided.',
    unless=', or "auto"',
)

TOP_LEVEL = ("name", "summary", "policy")
TABLES = ("usage", "gpu_weight", "tiers", "headroom", "ladder", "telemetry")


def keys_of(table: str) -> dict[str, Key]:
    """The numbers of one table with a fixed set of keys, by name, in the order shown to people."""
    return {key.name: key for key in KEYS if key.table == table}
