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
        whole: only whole numbers.
        word: a text that may stand instead of a number, for None.
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
    whole: bool = False
    word: str = ""

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
        kind, sign = "whole number" if self.whole else "number", ">" if self.above else ">="
        return f"a {kind} {sign} {self.low:g} and at most {self.high}{self.unless}"

    def accepts(self, value: object) -> bool:
        """Whether a value from a file is a number within the bounds; true, false, NaN and infinity are not."""
        if self.word and value == self.word:
            return True
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            return False
        if not (self.low < value if self.above else self.low <= value) or not value <= self.high:
            return False
        per_ms = _MS.get(self.unit)  # a time that must not be 0 must not round to 0 either
        return per_ms is None or not self.above or round(value * per_ms) > 0

    def convert(self, value: float | str) -> float | None:
        """An accepted value as the parameters hold it: milliseconds, a whole number, or a float."""
        if isinstance(value, str):
            return None
        if self.is_duration:
            return to_ms(value)
        return int(value) if self.whole else float(value)

    def shown(self, value: float | None) -> float | str | None:
        """A value of the parameters as the file has it; whole numbers without their decimal point."""
        if value is None:
            return self.word or None
        value = value / 1000 if self.is_duration else value
        return int(value) if float(value).is_integer() else value


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """One text of a policy file.

    Attributes:
        options: what it may be; empty = whatever `pattern` matches.
        form: how messages describe the pattern.
    """

    table: str
    name: str
    default: str
    options: tuple[str, ...] = ()
    pattern: str = ""
    form: str = ""
    unit: str = ""
    does: str

    @property
    def field(self) -> str:
        """The attribute of the parameter class."""
        return self.name

    @property
    def allowed(self) -> str:
        """What a message says is allowed, to follow `must be`."""
        return self.form or "one of " + ", ".join(f'"{option}"' for option in self.options)

    def accepts(self, value: object) -> bool:
        """Whether a value from a file is such a text."""
        if not isinstance(value, str):
            return False
        return value in self.options or bool(self.pattern and re.fullmatch(self.pattern, value))

    @staticmethod
    def convert(value: str) -> str:
        """The text itself."""
        return value

    @staticmethod
    def shown(value: str) -> str:
        """The text itself."""
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """One list of texts of a policy file; absent = no limit."""

    table: str
    name: str
    default: None = None
    unit: str = ""
    does: str
    allowed: str = "a list of texts, with at least one"

    @property
    def field(self) -> str:
        """The attribute of the parameter class."""
        return self.name

    @staticmethod
    def accepts(value: object) -> bool:
        """Whether a value from a file is such a list."""
        return isinstance(value, list) and bool(value) and all(isinstance(one, str) and one for one in value)

    @staticmethod
    def convert(value: list[str]) -> tuple[str, ...]:
        """Each name once, in order."""
        return tuple(dict.fromkeys(value))

    @staticmethod
    def shown(value: tuple[str, ...] | None) -> list[str] | None:
        """The names as the file has them."""
        return None if value is None else list(value)


Setting = Key | Word | Names
"""Any key of a policy file."""


def to_ms(seconds: float) -> int:
    """Seconds of a file as integer milliseconds, rounded to the nearest."""
    return round(seconds * 1000)


def _s(table: str, name: str, default_s: float | None, does: str, *, above: bool = False) -> Key:
    return Key(table=table, name=name, default=default_s, high=LONGEST_S, above=above, unit="s", does=does)


def _most(name: str, unit: str, does: str, *, whole: bool = False) -> Key:
    """A limit of a tier; absent = none."""
    absent = "; absent: no limit"
    return Key(
        table="tiers",
        name=name,
        default=None,
        low=1 if whole else 0,
        above=not whole,
        unit=unit,
        does=does,
        unless=absent,
        whole=whole,
    )


def _part(table: str, name: str, default: float, does: str, *, unit: str = "") -> Key:
    return Key(table=table, name=name, default=default, high=1, unit=unit, does=does)


KEYS: tuple[Setting, ...] = (
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
    Word(
        table="order",
        name="by",
        default="standing",
        options=("standing", "arrival"),
        does='Who goes first: "standing", whoever used least of its share; "arrival", whoever came first.',
    ),
    _s("order", "max_wait_s", 7200, "After this long one of every four starts goes to whoever waits longest."),
    _s("order", "reserve_after_s", 900, "After this long, what becomes free is kept for a session that needs several."),
    Key(table="headroom", name="fixed_gpus", default=0, unit="GPUs", does="GPUs kept free for requests in credit."),
    Key(
        table="headroom",
        name="confidence",
        default=None,
        high=0.9999,
        does="Keep so many free that requests in credit find one with this probability; absent: fixed_gpus.",
        unless="; instead of headroom.fixed_gpus",
    ),
    _part("headroom", "max_fraction", 0.25, "Never keep free more than this part of the pool.", unit="of the pool"),
    Key(
        table="headroom",
        name="prior_per_h",
        default=12,
        unit="GPUs per hour",
        does="GPUs that requests in credit ask for in an hour, before the first days have been seen.",
    ),
    Key(
        table="headroom",
        name="prior_dispersion",
        default=39,
        low=1,
        does="How bursty these are before the first days have been seen: variance / mean of an hour's requests.",
    ),
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
    _s(
        "idle",
        "warn_s",
        None,
        "A session whose GPUs have done nothing for this long is warned; absent: off.",
        above=True,
    ),
    _s("idle", "release_s", None, "After this long without any load it ends; absent: off.", above=True),
    Word(
        table="idle",
        name="when",
        default="contention",
        options=("contention", "always"),
        does='"contention": idle sessions are warned and ended only while somebody waits or stock is short.',
    ),
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
TIER_KEYS: tuple[Setting, ...] = (
    Key(
        table="tiers",
        name="baseline_gpus",
        default=None,
        unit="GPUs",
        does='GPUs that a user of this tier may use on average and stay in credit; "auto": what there is, divided.',
        unless=', or "auto"',
        word="auto",
    ),
    Key(
        table="tiers",
        name="group_baseline_gpus",
        default=None,
        unit="GPUs",
        does="GPUs that a group's users of this tier may use on average together and stay in credit; absent: no bound.",
        unless="; absent: no bound",
    ),
    Key(
        table="tiers",
        name="guaranteed_gpus",
        default=0,
        unit="GPUs",
        does="GPUs that users of this tier go first for; others use them meanwhile, and give them back.",
    ),
    _most("sessions_per_user", "sessions", "Sessions of one user that hold GPUs at once.", whole=True),
    _most("queued_per_user", "sessions", "Sessions of one user that wait at once; more are refused.", whole=True),
    _most("gpus_per_user", "GPUs", "GPUs that one user holds at once."),
    _most("gpus_per_group", "GPUs", "GPUs that the users of one group hold at once in this tier."),
    Names(table="tiers", name="gpu_models", does="GPU models that this tier may use; absent: any."),
    _s(
        "tiers",
        "lifetime_s",
        None,
        "A session ends this long after its start, or after it was last extended; absent: never.",
        above=True,
    ),
    _s(
        "tiers",
        "longest_s",
        None,
        "No extension goes beyond this long after the start; absent: sessions cannot be extended.",
        above=True,
    ),
    _most("quota_gpu_h", "GPU-h", "GPU-hours that one user may hold within the window; then nothing new starts."),
    Word(
        table="tiers",
        name="quota_window",
        default="7d",
        options=("daily", "weekly"),
        pattern=r"[1-9][0-9]{0,2}[hd]",
        form='"daily" or "weekly" (from 00:00 UTC, Monday), or a rolling window like "7d" or "24h"',
        does='What the quota counts: a rolling window, or all since 00:00 UTC ("daily") or Monday ("weekly").',
    ),
)


def default_text(key: Setting) -> str:
    """A default as tables for people show it."""
    if isinstance(key, Key) and key.default is not None:
        return f"{key.default:g}"
    word = key.default or (key.word if isinstance(key, Key) else None)
    return f'"{word}"' if word else "off"


TOP_LEVEL = ("name", "summary", "policy")
TABLES = ("usage", "gpu_weight", "tiers", "order", "headroom", "ladder", "idle", "telemetry")
RULES = "rule"
"""The array of tables that holds the rules of acceptable use; its keys are in `policies.rule_file`."""


def keys_of(table: str) -> dict[str, Setting]:
    """The keys of one table, by name, in the order shown to people."""
    return {key.name: key for key in (TIER_KEYS if table == "tiers" else KEYS) if key.table == table}
