"""Times, lengths of time and sizes as people write them on a command line."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

import click

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800, "": 1}
_MIB = {"kib": 1 / 1024, "mib": 1, "gib": 1024, "tib": 1024 * 1024}
MOST_S = 10**9
MOST_MIB = 1 << 30


class Duration(click.ParamType[int]):
    """`90`, `30m`, `12h`, `7d`, `2w`: whole seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Seconds."""
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,3})?)([smhdw]?)", str(value))
        seconds = float(found[1]) * _SECONDS[found[2]] if found else -1.0
        if not (0 <= seconds <= MOST_S):
            self.fail(f"{str(value)[:40]!r} is no length of time; for example: 90s, 30m, 12h, 7d", param, ctx)
        return round(seconds)


class Instant(click.ParamType[int]):
    """`2026-12-01T00:00Z`, or with another offset from UTC: milliseconds since 1970."""

    name = "instant"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Milliseconds."""
        if isinstance(value, int):
            return value
        try:
            moment = datetime.fromisoformat(str(value))
        except ValueError:
            moment = None
        if moment is None or moment.tzinfo is None:
            self.fail(
                f"{str(value)[:40]!r} is no time with its offset from UTC; for example: 2026-12-01T00:00Z", param, ctx
            )
        return round(moment.timestamp() * 1000)


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
