"""Times, lengths of time and sizes as people write them on a command line."""

from __future__ import annotations

import contextlib
import re
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import click

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800, "": 1}
_MIB = {"kib": 1 / 1024, "mib": 1, "gib": 1024, "tib": 1024 * 1024}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MOST_S = 10**9
MOST_MIB = 1 << 30


def seconds_of(text: str) -> int | None:
    """Whole seconds of `90`, `30m`, `12h`, `7d`, `2w`; None where it is none of that."""
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,3})?)([smhdw]?)", text)
    seconds = float(found[1]) * _SECONDS[found[2]] if found else -1.0
    return round(seconds) if 0 <= seconds <= MOST_S else None


def instant_of(value: str | datetime) -> int:
    """Milliseconds since 1970 of a time with its offset from UTC; ValueError says what is missing."""
    moment: object = value
    if isinstance(moment, str):
        with contextlib.suppress(ValueError):
            moment = datetime.fromisoformat(moment)
    if not isinstance(moment, datetime):
        raise ValueError(f"{str(value)[:40]!r} is no time with its offset from UTC; for example: 2026-12-01T00:00Z")
    if moment.tzinfo is None:
        local = moment.isoformat(timespec="minutes")
        raise ValueError(f"{local} says not where: give its offset from UTC as well, {local}Z for UTC or {local}+01:00")
    return round((moment - _EPOCH) / timedelta(milliseconds=1))


def when_of(text: str) -> When:
    """`+2h`, or a time with its offset from UTC; ValueError says what is wrong."""
    if not text.startswith("+"):
        return When(instant_of(text), None)
    seconds = seconds_of(text[1:])
    if seconds is None:
        raise ValueError(f"{text[:40]!r} is no length of time; for example: +30m, +2h, +7d")
    return When(None, seconds)


class Duration(click.ParamType[int]):
    """`90`, `30m`, `12h`, `7d`, `2w`: whole seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Seconds."""
        if isinstance(value, int):
            return value
        seconds = seconds_of(str(value))
        if seconds is None:
            self.fail(f"{str(value)[:40]!r} is no length of time; for example: 90s, 30m, 12h, 7d", param, ctx)
        return seconds


class Instant(click.ParamType[int]):
    """`2026-12-01T00:00Z`, or with another offset from UTC: milliseconds since 1970."""

    name = "instant"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Milliseconds."""
        if isinstance(value, int):
            return value
        try:
            return instant_of(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class When(NamedTuple):
    """An instant, or so many seconds after another one: one of the two is None."""

    at_ms: int | None
    after_s: int | None


class InstantOrAfter(click.ParamType[When]):
    """`2026-12-01T00:00Z`, or `+2h`."""

    name = "instant"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> When:
        """The one or the other."""
        if isinstance(value, When):
            return value
        try:
            return when_of(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Memory(click.ParamType[int]):
    """`8GiB`, `512MiB`: whole MiB."""

    name = "memory"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """MiB."""
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,3})?) ?([kmgt]ib)", str(value).lower())
        mib = float(found[1]) * _MIB[found[2]] if found else 0.0
        if not (1 <= mib <= MOST_MIB):
            self.fail(f"{str(value)[:40]!r} is no size of memory; for example: 8GiB, 512MiB", param, ctx)
        return round(mib)
