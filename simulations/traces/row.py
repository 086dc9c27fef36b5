"""One session of a trace, what each of its cells may hold, and the error that names a bad cell.

A trace is a table with one row a session. Here are the row, its columns and the parser of every column; files are
read and written in `csv_trace`, public formats in `importers`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any, Final, NamedTuple, TypeVar

COLUMNS: Final = (
    "session_id",
    "user",
    "group",
    "tier",
    "submit_s",
    "duration_s",
    "gpus",
    "fraction",
    "gpu_type",
    "memory_gib",
    "load",
    "patience_s",
    "checkpoint_s",
    "kind",
)
REQUIRED: Final = ("session_id", "user", "submit_s", "duration_s")
KINDS: Final = ("researcher", "student", "trainer", "miner", "idle", "sweep", "other")
ID: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
DEFAULT_GROUP: Final = "default"
DEFAULT_TIER: Final = "free"
DEFAULT_CHECKPOINT_MS: Final = 900_000
MAX_GPUS: Final = 100_000
MAX_S: Final = 10_000_000_000  # 317 years: milliseconds stay exact in a double and small in SQL

T = TypeVar("T")
Parser = Callable[[str], Any]

_SHOWN_CHARS = 80
_GPU_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._/+()-]{0,63}")
_NUMBER = re.compile(r"(?=.{1,64}\Z)(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?", re.ASCII)
_CACHED = 4096  # cells repeat: users, tiers, GPU counts; bounded, and only good (so short) cells are kept


class Row(NamedTuple):
    """One session of a trace.

    Attributes:
        session_id: unique in the trace, matches `ID`, as do `user`, `group` and `tier`.
        user: who asks.
        group: whose shares they are; `DEFAULT_GROUP` where the trace has none.
        tier: class of users; `DEFAULT_TIER` where the trace has none.
        submit_ms: when it is asked for, on the trace's own axis, >= 0.
        duration_ms: run time at full grant, > 0.
        gpus: 1 to `MAX_GPUS`.
        fraction: part of the GPU, (0, 1] in steps of 0.001; below 1 only with one GPU.
        gpu_type: model asked for; `None` = any.
        memory_gib: GPU memory asked for, > 0; `None` = unchecked.
        load: mean busy fraction, [0, 1]; `None` = unknown.
        patience_ms: gives up after waiting that long, >= 0; `None` = waits for ever.
        checkpoint_ms: between two checkpoints, > 0.
        kind: one of `KINDS`; a label for metrics that no policy sees.
    """

    session_id: str
    user: str
    group: str
    tier: str
    submit_ms: int
    duration_ms: int
    gpus: int = 1
    fraction: float = 1.0
    gpu_type: str | None = None
    memory_gib: float | None = None
    load: float | None = None
    patience_ms: int | None = None
    checkpoint_ms: int = DEFAULT_CHECKPOINT_MS
    kind: str = "other"


class TraceError(ValueError):
    """A trace file cannot be used: where, which cell, what it holds and what is allowed.

    Attributes:
        file: as the caller named it.
        line: from 1, the header included; 0 = the file as a whole.
        field: column, or `header`, `line`, `file`.
        value: the text found, cut at 80 characters.
        allowed: what it must be.
    """

    def __init__(self, file: str, line: int, field: str, value: str, allowed: str) -> None:
        value = value if len(value) <= _SHOWN_CHARS else value[: _SHOWN_CHARS - 1] + "…"
        super().__init__(file, line, field, value, allowed)
        self.file, self.line, self.field, self.value, self.allowed = file, line, field, value, allowed

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        return f"{where}: {self.field} = {self.value!r}: {self.allowed}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What an importer made of a public file.

    Attributes:
        rows: sorted by submit time, equal times in the source's order; ids `<format>-<row from 0>`.
        left_out: why rows were left out, and how many; empty when none was.
    """

    rows: list[Row]
    left_out: dict[str, int]


def numbered(prefix: str, rows: Iterable[Row]) -> list[Row]:
    """The rows sorted by submit time, equal times as they come, with the ids `<prefix>-<row from 0>`."""
    in_order = sorted(rows, key=lambda row: row.submit_ms)
    return [row._replace(session_id=f"{prefix}-{at}") for at, row in enumerate(in_order)]


def cell(file: str, line: int, field: str, text: str, parse: Callable[[str], T]) -> T:
    """The value of one cell.

    Raises:
        TraceError: for the ValueError of the parser, whose text says what is allowed.
    """
    try:
        return parse(text)
    except ValueError as error:
        raise TraceError(file, line, field, text, str(error)) from None


def number(text: str, allowed: str) -> Fraction:
    """The exact value of a plain or exponent decimal >= 0, such as `5`, `.25`, `1e3`; at most 64 characters.

    Raises:
        ValueError: with `allowed` as its text, for anything else (signs, blanks, underscores, `nan`, `inf`, other
            digits than 0-9, exponents beyond three digits).
    """
    if not _NUMBER.fullmatch(text):
        raise ValueError(allowed)
    return Fraction(text)


def seconds_ms(text: str, allowed: str = "must be a number of seconds >= 0") -> int:
    """Milliseconds for a number of seconds, [0, `MAX_S`]; finer times go to the nearest, ties to even.

    Raises:
        ValueError: with `allowed` as its text, or the limit that was passed.
    """
    whole, dot, decimals = text.partition(".")
    if len(text) <= 13 and text.isascii() and whole.isdigit() and len(whole) <= 9:
        if not dot:
            return int(whole) * 1000
        if decimals.isdigit() and len(decimals) <= 3:
            return int(whole) * 1000 + int(decimals.ljust(3, "0"))
    exact = number(text, allowed)
    if exact > MAX_S:
        raise ValueError(f"must be a number of seconds <= {MAX_S}")
    return round(exact * 1000)


def positive_seconds_ms(text: str) -> int:
    """As `seconds_ms`, at least 1 ms."""
    allowed = "must be a number of seconds > 0 (at least 0.001)"
    value_ms = seconds_ms(text, allowed)
    if value_ms == 0:
        raise ValueError(allowed)
    return value_ms


def identifier(text: str) -> str:
    """The text itself where it matches `ID`.

    Raises:
        ValueError: the text says what is allowed.
    """
    if not ID.fullmatch(text):
        raise ValueError("must be 1 to 64 characters of a-z 0-9 . _ - and begin with a letter or digit")
    return text


def count(text: str, least: int = 1) -> int:
    """A whole number of GPUs, `least` to `MAX_GPUS`.

    Raises:
        ValueError: the text says what is allowed.
    """
    allowed = f"must be a whole number from {least} to {MAX_GPUS}"
    exact = number(text, allowed)
    if not (exact.denominator == 1 and least <= exact <= MAX_GPUS):
        raise ValueError(allowed)
    return int(exact)


def _fraction(text: str) -> float:
    allowed = "must be a number > 0 and <= 1 with at most 3 decimals"
    exact = number(text, allowed)
    if not (0 < exact <= 1 and (exact * 1000).denominator == 1):
        raise ValueError(allowed)
    return float(exact)


def _load(text: str) -> float:
    allowed = "must be a number from 0 to 1, or empty for unknown"
    exact = number(text, allowed)
    if exact > 1:
        raise ValueError(allowed)
    return float(exact)


def _memory_gib(text: str) -> float:
    allowed = "must be a number of GiB > 0, or empty"
    number(text, allowed)
    value = float(text)
    if not 0 < value < math.inf:
        raise ValueError(allowed)
    return value


def _gpu_type(text: str) -> str:
    if not _GPU_TYPE.fullmatch(text):
        raise ValueError("must be 1 to 64 letters, digits, blanks or . _ / + ( ) -, or empty for any")
    return text


def _kind(text: str) -> str:
    if text not in KINDS:
        raise ValueError(f"must be one of {', '.join(KINDS)}")
    return text


def _optional(parse: Parser, default: object) -> Parser:
    """A parser that answers `default` for an empty cell and remembers its last answers."""
    return lru_cache(_CACHED)(lambda text: parse(text) if text else default)


PARSERS: Final[tuple[Parser, ...]] = (
    identifier,
    lru_cache(_CACHED)(identifier),
    _optional(identifier, DEFAULT_GROUP),
    _optional(identifier, DEFAULT_TIER),
    seconds_ms,
    positive_seconds_ms,
    _optional(count, 1),
    _optional(_fraction, 1.0),
    _optional(_gpu_type, None),
    _optional(_memory_gib, None),
    _optional(_load, None),
    _optional(seconds_ms, None),
    _optional(positive_seconds_ms, DEFAULT_CHECKPOINT_MS),
    _optional(_kind, "other"),
)
"""One parser a column, in the order of `COLUMNS` and of the fields of `Row`."""
