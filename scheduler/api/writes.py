"""The routes that change something: each makes one request of its body and asks the scheduler."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import pydantic_core
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, StringConstraints, TypeAdapter, ValidationError

from scheduler import requests
from scheduler.api import rows
from scheduler.api.problems import NotJson, TooLarge
from scheduler.errors import BadInput, NotFound
from scheduler.ports import Row
from scheduler.requests import (
    LIMIT,
    Act,
    Activate,
    AnswerAppeal,
    Close,
    FileAppeal,
    Key,
    Operation,
    Pardon,
    Ping,
    Plan,
    Restrict,
    Rollback,
    Run,
    SetHost,
    SetUser,
    Submit,
    Unplan,
    mistakes,
)

if TYPE_CHECKING:
    from scheduler.adapters.redis_gateway import Gateway

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_KEY: TypeAdapter[str] = TypeAdapter(Key)
_BY: TypeAdapter[str] = TypeAdapter(Annotated[str, StringConstraints(pattern=r"^[\x21-\x7e]{1,64}$")])

_SHOWN: dict[str, Callable[[Row], rows.Json]] = {
    "session": rows.session_json,
    "user": rows.user_json,
    "task": rows.task_json,
    "appeal": rows.appeal_json,
    "host": rows.host_row_json,
    "policy": rows.version_json,
}

OperationT = TypeVar("OperationT", bound=BaseModel)


def named(name: str, what: str) -> str:
    """A name from a path; what cannot be a name names nothing: `NotFound`."""
    if not _NAME.fullmatch(name):
        raise NotFound(
            f"no {what} {name[:100]!r}", f"fairtier {what} list" if what in ("host", "user", "appeal") else None
        )
    return name


class Writes:
    """Routes that ask the scheduler through a gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter(prefix="/v1")
        for path, handler in (
            ("/sessions", self.submit),
            ("/sessions/{session}/{op}", self.act),
            ("/users/{user}/restrict", self.restrict),
            ("/users/{user}/pardon", self.pardon),
            ("/appeals", self.file_appeal),
            ("/appeals/{appeal}/{op}", self.answer_appeal),
            ("/calendar", self.plan),
            ("/calendar/{entry}/remove", self.unplan),
            ("/hosts/{host}/{op}", self.host),
            ("/policy/activate", self.activate),
            ("/policy/rollback", self.rollback),
            ("/tasks", self.task),
            ("/close", self.close),
            ("/ping", self.ping),
            ("/noop", self.noop),
        ):
            router.add_api_route(path, handler, methods=["POST"], response_model=None)
        router.add_api_route("/users/{user}", self.user, methods=["PUT"], response_model=None)
        return router

    async def submit(self, request: Request) -> JSONResponse:
        """A session is asked for; 201 with the session."""
        return JSONResponse(await self._ask(request, await _operation(request, Submit)), 201)

    async def act(
        self, request: Request, session: str, op: Literal["cancel", "hold", "unhold", "evict", "extend"]
    ) -> JSONResponse:
        """An operator, or the owner, acts on a session."""
        operation = await _operation(request, Act, op=op, session=named(session, "session"))
        return JSONResponse(await self._ask(request, operation))

    async def host(self, request: Request, host: str, op: Literal["drain", "resume"]) -> JSONResponse:
        """Nothing new on a host, or again."""
        operation = await _operation(request, SetHost, op=op, host=named(host, "host"))
        return JSONResponse(await self._ask(request, operation))

    async def user(self, request: Request, user: str) -> JSONResponse:
        """A user exists with this group, tier, shares and mail address."""
        return JSONResponse(await self._ask(request, await _operation(request, SetUser, user=user)))

    async def restrict(self, request: Request, user: str) -> JSONResponse:
        """Nothing new of a user starts, for a time or until it is pardoned."""
        return JSONResponse(await self._ask(request, await _operation(request, Restrict, user=named(user, "user"))))

    async def pardon(self, request: Request, user: str) -> JSONResponse:
        """A user's restriction and cooldown are over; `pardoned` says whether there was either."""
        return JSONResponse(await self._ask(request, await _operation(request, Pardon, user=named(user, "user"))))

    async def activate(self, request: Request) -> JSONResponse:
        """Another policy is in force; `changed` says whether it was not so already."""
        return JSONResponse(await self._ask(request, await _operation(request, Activate)))

    async def rollback(self, request: Request) -> JSONResponse:
        """The policy of an earlier version is in force again."""
        return JSONResponse(await self._ask(request, await _operation(request, Rollback)))

    async def file_appeal(self, request: Request) -> JSONResponse:
        """A user says that a rule was wrong; 201 with the appeal."""
        return JSONResponse(await self._ask(request, await _operation(request, FileAppeal)), 201)

    async def answer_appeal(self, request: Request, appeal: str, op: Literal["grant", "deny"]) -> JSONResponse:
        """An appeal is answered."""
        operation = await _operation(request, AnswerAppeal, op=op, appeal=named(appeal, "appeal"))
        return JSONResponse(await self._ask(request, operation))

    async def plan(self, request: Request) -> JSONResponse:
        """Entries of the calendar, all or none; with `check` nothing is changed."""
        return JSONResponse(await self._ask(request, await _operation(request, Plan)))

    async def unplan(self, request: Request, entry: str) -> JSONResponse:
        """An entry of the calendar is agreed no longer."""
        operation = await _operation(request, Unplan, entry=named(entry, "calendar entry"))
        return JSONResponse(await self._ask(request, operation))

    async def task(self, request: Request) -> JSONResponse:
        """Background work; 202, since it is not done yet."""
        return JSONResponse(await self._ask(request, await _operation(request, Run)), 202)

    async def close(self, request: Request) -> JSONResponse:
        """End every session."""
        return JSONResponse(await self._ask(request, await _operation(request, Close)))

    async def ping(self, request: Request) -> JSONResponse:
        """To the scheduler and back, through a commit."""
        return JSONResponse(await self._ask(request, await _operation(request, Ping)))

    async def noop(self, request: Request) -> JSONResponse:
        """Check a submit and do nothing: what HTTP and checking cost, to measure the rest against."""
        await _operation(request, Submit)
        return JSONResponse({})

    async def _ask(self, request: Request, operation: Operation) -> dict[str, Any]:
        key, by = _header(request, "Idempotency-Key", _KEY), _header(request, "FairTier-By", _BY)
        body = await self._gateway.ask(
            requests.Request(key=key or secrets.token_hex(16), by=by or "local", operation=operation)
        )
        return {"schema": 1, **_shown(body)}


def _shown(body: dict[str, Any]) -> dict[str, Any]:
    """The scheduler answers with the row it wrote, shown as everywhere else, and what there is to say beside it."""
    for member, show in _SHOWN.items():
        if member in body:
            return show(body[member]) | {name: value for name, value in body.items() if name != member}
    return body


def _header(request: Request, name: str, kind: TypeAdapter[str]) -> str:
    """A header's value, "" where there is none; `BadInput` when it is not of its kind."""
    value = request.headers.get(name, "")
    try:
        return kind.validate_python(value) if value else ""
    except ValidationError as error:
        raise BadInput(f"header {name}: {mistakes(error)}") from None


async def _operation(request: Request, model: type[OperationT], **fixed: str) -> OperationT:
    """The operation that a body asks for, with what the path says already; every mistake is told at once."""
    data = _parse(await _body(request))
    try:
        return model.model_validate(data | fixed)
    except ValidationError as error:
        raise BadInput(mistakes(error)) from None


def _parse(raw: bytes) -> dict[str, Any]:
    """A JSON object; nothing is an empty one."""
    if not raw.strip():
        return {}
    try:
        data = pydantic_core.from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        raise NotJson(f"the body is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise NotJson(f"the body must be a JSON object, not {type(data).__name__}")
    return data


async def _body(request: Request) -> bytes:
    """The body, read no further than the limit."""
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > LIMIT:
            raise TooLarge(f"the body has more than {LIMIT} bytes: that is all that is read")
    return bytes(raw)
