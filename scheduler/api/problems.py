"""What went wrong, as every route tells it: `{"error", "message", "hint"}` and a status."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from scheduler.errors import BadInput, FairTierError
from scheduler.wire_errors import name_of, status_of

if TYPE_CHECKING:
    from fastapi import FastAPI, Request


class NotJson(BadInput):
    """A body that cannot be read at all. Status 400."""


class TooLarge(BadInput):
    """A body over the limit. Status 413."""


_OWN_STATUS: dict[type[FairTierError], int] = {NotJson: 400, TooLarge: 413}
_OF_STATUS = {404: "not-found", 503: "unreachable"}


def tell_problems(app: FastAPI) -> None:
    """Have every error of an app told in our form."""
    app.add_exception_handler(FairTierError, _ours)
    app.add_exception_handler(RequestValidationError, _parameters)
    app.add_exception_handler(HTTPException, _of_the_framework)
    app.add_exception_handler(Exception, _unexpected)


def _problem(status: int, error: str, message: str, hint: str | None = None) -> JSONResponse:
    return JSONResponse({"error": error, "message": message, "hint": hint}, status)


def _ours(request: Request, error: Exception) -> JSONResponse:
    del request
    assert isinstance(error, FairTierError)  # noqa: S101 - registered for it
    return _problem(_OWN_STATUS.get(type(error), status_of(error)), name_of(error), error.message, error.hint)


def _parameters(request: Request, error: Exception) -> JSONResponse:
    del request
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for it
    entries: list[dict[str, Any]] = list(error.errors())
    return _problem(422, "bad-input", "; ".join(f"{entry['loc'][-1]}: {entry['msg']}" for entry in entries))


def _of_the_framework(request: Request, error: Exception) -> JSONResponse:
    """An unknown path, a method that a path does not have."""
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for it
    name = _OF_STATUS.get(error.status_code, "bad-input" if error.status_code < 500 else "failed")
    return _problem(error.status_code, name, f"{request.method} {request.url.path[:200]}: {error.detail}")


def _unexpected(request: Request, error: Exception) -> JSONResponse:
    """A mistake of ours; the log has the traceback."""
    return _problem(500, "failed", f"{request.method} {request.url.path[:200]}: {type(error).__name__}")
