"""What a check of `doctor` says, and how checks are made."""

from __future__ import annotations

import pwd
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    pass

OK, WARN, FAIL = "ok", "warn", "FAIL"


class Result(NamedTuple):
    """What a check says: `OK`, `WARN` or `FAIL`, what was found, and what to do ("" = nothing)."""

    level: str
    found: str
    do: str = ""


class Finding(NamedTuple):
    """A result, and the check that it is of."""

    check: str
    level: str
    found: str
    do: str


def made(checks: Iterable[tuple[str, Callable[..., Result | None]]], *about: Path) -> Iterator[Finding]:
    """What the checks find, without those that do not apply. One that breaks is a finding as well."""
    for name, check in checks:
        try:
            result = check(*about)
        except Exception as error:  # whatever it is, the other checks are still worth having
            message = getattr(error, "message", "") or f"{type(error).__name__}: {error}"
            result = Result(FAIL, message, getattr(error, "hint", None) or "")
        if result is not None:
            yield Finding(name, result.level, " ".join(result.found.split()), " ".join(result.do.split()))


def owner_name(uid: int) -> str:
    """A user's name, or its number where it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
