"""Errors on their way through HTTP: each sort has a name, a status and the exception that a command ends with."""

from __future__ import annotations

from scheduler.errors import BadInput, FairTierError, NotFound, Refused, Unreachable

BY_NAME: dict[str, type[FairTierError]] = {
    "bad-input": BadInput,
    "not-found": NotFound,
    "refused": Refused,
    "unreachable": Unreachable,
    "failed": FairTierError,
}
_STATUS = {"bad-input": 422, "not-found": 404, "refused": 409, "unreachable": 503, "failed": 500}


def error_of(name: str, message: str, hint: str | None) -> FairTierError:
    """The exception of an error's name; one that this version does not know is a plain failure."""
    return BY_NAME.get(name, FairTierError)(message, hint)


def name_of(error: FairTierError) -> str:
    """The name of an error's sort."""
    return next((name for name, kind in BY_NAME.items() if isinstance(error, kind)), "failed")


def status_of(error: FairTierError) -> int:
    """The HTTP status that tells an error."""
    return _STATUS[name_of(error)]
