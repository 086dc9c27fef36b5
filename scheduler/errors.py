"""What a command can say went wrong: one type per thing a caller can act on, each with its exit code."""

from __future__ import annotations

from typing import ClassVar


class FairTierError(Exception):
    """Something failed; the message says what, the hint (if any) what to do next. Exit code 1."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class BadInput(FairTierError):
    """The input is wrong and asking again changes nothing. Exit code 2."""

    exit_code = 2


class NotFound(FairTierError):
    """The thing named does not exist. Exit code 3."""

    exit_code = 3


class Unreachable(FairTierError):
    """The store cannot be reached; nothing was changed, asking again may help. Exit code 4."""

    exit_code = 4


class Refused(FairTierError):
    """The request is well formed and not allowed now, or it conflicts with another. Exit code 5."""

    exit_code = 5


class CoreError(ValueError):
    """An event that does not fit the core's state: nothing was changed."""
