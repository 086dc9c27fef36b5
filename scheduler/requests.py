"""What people and programs ask of the scheduler: one model for each operation, the same at the API and at the core.

A request travels API -> inbox -> service. It is checked at the API, so that mistakes are told at once, and again by the
service, because what lies in Redis is not trusted. `key` makes a request idempotent: the first answer on record for a
key is the answer to every repetition.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from workers.protocol import MOST_ARGUMENT_BYTES, MOST_ARGUMENTS, Name

LIMIT = 256 * 1024
"""Bytes of one request; more is refused unread."""

Key = Annotated[str, Field(min_length=8, max_length=128, pattern=r"^[A-Za-z0-9._:-]+$")]
Model = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]*$")]
Why = Annotated[str, Field(max_length=500)]
LAST_MS = 253_402_300_799_000
"""9999-12-31T23:59:59Z: what lies beyond has no calendar date."""


class RequestError(ValueError):
    """A request that is not well formed; says which member."""


class _Operation(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Submit(_Operation):
    """A session is asked for.

    Attributes:
        group, tier: checked against the user's record by the service; None = the record's.
        fraction: of one GPU; below 1 only with `gpus` 1.
        memory_mib: GPU memory needed on each GPU.
        argv: program and arguments; empty with `notebook`.
        grace_signal: sent to the program when it is asked to save.
        resubmitted_from: an ended session that this one follows.
    """

    op: Literal["submit"] = "submit"
    user: Name
    group: Name | None = None
    tier: Name | None = None
    gpus: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    gpu_type: Model | None = None
    memory_mib: Annotated[int, Field(ge=1, le=1 << 30)] | None = None
    notebook: bool = False
    argv: Annotated[tuple[str, ...], Field(max_length=MOST_ARGUMENTS)] = ()
    grace_signal: Literal["HUP", "INT", "USR1", "USR2"] | None = None
    resubmitted_from: Name | None = None

    @field_validator("argv")
    @classmethod
    def _sound(cls, argv: tuple[str, ...]) -> tuple[str, ...]:
        try:
            size = sum(len(argument.encode()) + 1 for argument in argv)
        except UnicodeEncodeError:
            raise ValueError("an argument is no valid text (a lone surrogate)") from None
        if size > MOST_ARGUMENT_BYTES:
            raise ValueError(f"{size} bytes of arguments: at most {MOST_ARGUMENT_BYTES}")
        if any("\0" in argument for argument in argv):
            raise ValueError("an argument contains a NUL character")
        if argv and not argv[0]:
            raise ValueError("the program's name is empty")
        return argv

    @model_validator(mode="after")
    def _fits_together(self) -> Submit:
        if bool(self.argv) == self.notebook:
            raise ValueError("a session runs either a command or a notebook server")
        if self.fraction < 1 and self.gpus != 1:
            raise ValueError("a fraction below 1 is possible with one GPU only")
        if round(self.fraction * 1000) < 1:
            raise ValueError("a fraction is at least 0.001")
        return self


class Act(_Operation):
    """An operator, or the owner, acts on a session. `reason` is shown to its user."""

    op: Literal["cancel", "hold", "unhold", "evict", "extend"]
    session: Name
    reason: Why = ""


class SetUser(_Operation):
    """A user exists with this group, tier, shares and mail address; None leaves what is on record, or the default.

    Attributes:
        until_ms: the tier given ends then; else in so many seconds (`until_s`); else it does not end by itself.
    """

    op: Literal["user"] = "user"
    user: Name
    group: Name | None = None
    tier: Name | None = None
    shares: Annotated[float, Field(gt=0, lt=1e9)] | None = None
    mail: Annotated[str, Field(max_length=254, pattern=r"^[^\s@]+@[^\s@]+$")] | None = None
    until_ms: Annotated[int, Field(le=LAST_MS)] | None = None
    until_s: Annotated[int, Field(ge=1, le=10**9)] | None = None

    @model_validator(mode="after")
    def _one_end(self) -> SetUser:
        if self.until_ms is not None and self.until_s is not None:
            raise ValueError("a tier ends at an instant or after a time, not both")
        if self.tier is None and (self.until_ms is not None or self.until_s is not None):
            raise ValueError("until goes with a tier: it is the tier that ends")
        return self


class Restrict(_Operation):
    """Nothing new of a user starts for a time, until an instant, or (with neither) until it is pardoned."""

    op: Literal["restrict"] = "restrict"
    user: Name
    for_s: Annotated[int, Field(ge=1, le=10**9)] | None = None
    until_ms: Annotated[int, Field(le=LAST_MS)] | None = None
    reason: Why = ""

    @model_validator(mode="after")
    def _one_end(self) -> Restrict:
        if self.for_s is not None and self.until_ms is not None:
            raise ValueError("a restriction lasts for a time or until an instant, not both")
        return self


class Pardon(_Operation):
    """A user's restriction and cooldown are over."""

    op: Literal["pardon"] = "pardon"
    user: Name
    reason: Why = ""


class FileAppeal(_Operation):
    """A user says that a rule was wrong, about a session or about its restriction."""

    op: Literal["appeal"] = "appeal"
    session: Name | None = None
    user: Name | None = None
    text: Annotated[str, Field(min_length=1, max_length=2000)]

    @model_validator(mode="after")
    def _one_subject(self) -> FileAppeal:
        if (self.session is None) == (self.user is None):
            raise ValueError("an appeal is about a session or about a user")
        return self


class AnswerAppeal(_Operation):
    """An appeal is answered; with `allow_for_s` a rule ("" = every rule) only observes the user for so long."""

    op: Literal["grant", "deny"]
    appeal: Annotated[str, Field(pattern=r"^a-[1-9][0-9]{0,11}$")]
    text: Annotated[str, Field(min_length=1, max_length=2000)]
    allow_for_s: Annotated[int, Field(ge=1, le=10**9)] | None = None
    rule: Annotated[str, Field(max_length=64)] = ""

    @model_validator(mode="after")
    def _fits_together(self) -> AnswerAppeal:
        if self.op == "deny" and self.allow_for_s is not None:
            raise ValueError("who is denied is not allowed anything")
        if self.rule and self.allow_for_s is None:
            raise ValueError("a rule is named with how long it is allowed (--allow-for)")
        return self


Text = Annotated[str, Field(max_length=200)]
Ahead = Annotated[int, Field(ge=0, le=10**9)]
At = Annotated[int, Field(ge=0, le=LAST_MS)]


class Planned(_Operation):
    """An entry of the calendar that is asked for.

    Attributes:
        from_ms: begin; else so many seconds from now (`from_s`, default 0).
        until_ms: end; else so many seconds after the begin (`until_s`).
        gpus, group: of a reservation.  hosts, drain_s: of maintenance; no host = all of them.
        text: what people are told.
    """

    entry: Name
    kind: Literal["reservation", "maintenance"]
    from_ms: At | None = None
    from_s: Ahead | None = None
    until_ms: At | None = None
    until_s: Annotated[int, Field(ge=1, le=10**9)] | None = None
    gpus: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    group: Name | None = None
    hosts: Annotated[tuple[Name, ...], Field(max_length=1000)] = ()
    drain_s: Ahead = 0
    text: Text = ""

    @model_validator(mode="after")
    def _fits_together(self) -> Planned:
        if self.from_ms is not None and self.from_s is not None:
            raise ValueError("an entry begins at an instant or after a time, not both")
        if (self.until_ms is None) == (self.until_s is None):
            raise ValueError("an entry ends at an instant, or a time after its begin")
        if self.kind == "reservation" and (self.gpus is None or self.group is None or self.hosts or self.drain_s):
            raise ValueError("a reservation is of gpus for a group; it has neither hosts nor a drain")
        if self.kind == "maintenance" and (self.gpus is not None or self.group is not None):
            raise ValueError("maintenance is of hosts; it has neither gpus nor a group")
        return self

    @field_validator("text")
    @classmethod
    def _one_line(cls, text: str) -> str:
        if not text.isprintable():
            raise ValueError("a text is one line without control characters")
        return text


class Plan(_Operation):
    """Something is agreed for certain times: all of the entries, or none. `check`: only say whether it could be."""

    op: Literal["plan"] = "plan"
    entries: Annotated[tuple[Planned, ...], Field(min_length=1, max_length=200)]
    check: bool = False
    reason: Why = ""


class Unplan(_Operation):
    """An entry of the calendar is agreed no longer."""

    op: Literal["unplan"] = "unplan"
    entry: Name
    reason: Why = ""


class SetHost(_Operation):
    """Nothing new is placed on a drained host; `resume` ends that."""

    op: Literal["drain", "resume"]
    host: Name


class Activate(_Operation):
    """Another policy is in force from now on; `toml` is all of it."""

    op: Literal["activate"] = "activate"
    toml: Annotated[str, Field(min_length=1, max_length=LIMIT // 2)]
    note: Why = ""


class Rollback(_Operation):
    """The policy of an earlier version is in force again; None = of the one before the present one."""

    op: Literal["rollback"] = "rollback"
    version: Annotated[int, Field(ge=1, le=10**9)] | None = None
    note: Why = ""


class Run(_Operation):
    """Background work: `kind` is one of the tasks' allow-list, which checks `arguments`."""

    op: Literal["task"] = "task"
    kind: Annotated[str, Field(pattern=r"^[a-z][a-z-]{0,31}$")]
    arguments: dict[str, Any] = Field(default_factory=dict)


class Close(_Operation):
    """End every session and decide nothing more: the instance is about to stop."""

    op: Literal["close"] = "close"


class Ping(_Operation):
    """Answered after a commit: the whole way works."""

    op: Literal["ping"] = "ping"


Operation = Annotated[
    Submit
    | Act
    | SetUser
    | Restrict
    | Pardon
    | FileAppeal
    | AnswerAppeal
    | Plan
    | Unplan
    | SetHost
    | Activate
    | Rollback
    | Run
    | Close
    | Ping,
    Field(discriminator="op"),
]


class Request(BaseModel):
    """An operation on its way.

    Attributes:
        reply_to: where the answer goes; "" = nobody waits.
        by: who asked, for the record.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    key: Key
    by: Annotated[str, Field(max_length=64)] = ""
    reply_to: Annotated[str, Field(max_length=128)] = ""
    operation: Operation


class Answer(BaseModel):
    """What became of a request.

    Attributes:
        error: "" = done; otherwise the sort of error, which decides exit code and HTTP status.
        body: what was asked for, or the state after it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    error: Literal["", "bad-input", "not-found", "refused", "unreachable", "failed"] = ""
    message: str = ""
    hint: str | None = None
    body: dict[str, Any] = Field(default_factory=dict)


def read_request(raw: bytes) -> Request:
    """A request from its JSON; `RequestError` says what is wrong."""
    if len(raw) > LIMIT:
        raise RequestError(f"{len(raw)} bytes: at most {LIMIT} are read")
    try:
        return Request.model_validate_json(raw)
    except ValidationError as error:
        raise RequestError(mistakes(error)) from None


def key_of(raw: bytes) -> tuple[str, str]:
    """(key, reply_to) of a request that could not be read, as far as they can be made out; for the refusal."""
    try:
        entry = json.loads(raw[:LIMIT])
        return str(entry["key"])[:128], str(entry["reply_to"])[:128]
    except (ValueError, KeyError, TypeError, RecursionError):
        return "", ""


def mistakes(error: ValidationError) -> str:
    """Every mistake of a request on one line: member, and what is wrong with it."""
    parts = []
    for entry in error.errors(include_url=False, include_input=False, include_context=False):
        place = [str(part) for part in entry["loc"]]
        place = place[2:] if place[:1] == ["operation"] else place  # after it comes which operation it is
        parts.append(f"{'.'.join(place) or 'request'}: {entry['msg'].removeprefix('Value error, ')}")
    return "; ".join(parts)
