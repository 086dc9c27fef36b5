"""What the scheduler and a host's worker say to each other: JSON messages with a version and size limits.

Both directions are idempotent. A `Report` is a picture, not a difference: counters are cumulative since the session's
start, and whatever ended is told again until the scheduler says `Forget`, so that a lost or doubled message changes
nothing. A command carries an action id that is obeyed once and an instant after which it is not obeyed at all.

Times in messages are wall-clock milliseconds of the sender; durations are milliseconds.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

VERSION = 1
LIMIT = 1024 * 1024
"""Bytes of one message; more is refused unread."""
MOST_ARGUMENTS, MOST_ARGUMENT_BYTES = 256, 64 * 1024

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$", max_length=64)]
"""Of hosts, users, groups, sessions: safe in a path, a Redis key, a log line and a CSV cell."""
Count = Annotated[int, Field(ge=0, le=1 << 53)]
Milliseconds = Count
Part = Annotated[int, Field(ge=1, le=1000)]
Text = Annotated[str, Field(max_length=4096)]


class ProtocolError(ValueError):
    """A message that is not what it should be; says where."""


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


# -- from the scheduler to a host --------------------------------------------------------------------------------------


class _Command(_Message):
    """Common to all commands.

    Attributes:
        action: idempotency key; a worker acts on it once.
        issued_ms, expires_ms: after `expires_ms` it is not obeyed but answered `expired`.
    """

    version: Literal[1] = 1
    action: Annotated[str, Field(min_length=1, max_length=128)]
    session: Name
    issued_ms: Milliseconds
    expires_ms: Milliseconds


class Start(_Command):
    """Start a session's processes.

    Attributes:
        argv: program and arguments, no shell; empty for a notebook server, which the host chooses.
        gpus: numbers of the GPUs on this host that it may use; fraction_m: thousandths of each.
        grace_signal: sent to the main process when a grace begins (e.g. "USR1"); None = none.
        notebook: the program is a Jupyter server; its runtime files belong into the session's directory.
    """

    kind: Literal["start"] = "start"
    user: Name
    argv: Annotated[tuple[str, ...], Field(max_length=MOST_ARGUMENTS)]
    gpus: Annotated[tuple[Count, ...], Field(min_length=1)]
    fraction_m: Part
    grace_signal: Literal["HUP", "INT", "USR1", "USR2"] | None = None
    notebook: bool = False

    @model_validator(mode="after")
    def _runs_something(self) -> Start:
        if not (self.argv or self.notebook):
            raise ValueError("a start without a program")
        return self


class Throttle(_Command):
    """Let a session use `granted_m` thousandths of each of its GPUs; its full fraction again lifts the throttle.

    The throttle lapses by itself `lease_ms` after it was received, unless renewed by another `Throttle`.
    """

    kind: Literal["throttle"] = "throttle"
    granted_m: Part
    lease_ms: Annotated[int, Field(ge=100, le=3_600_000)]


class Notice(_Command):
    """Tell the people in a session something: into the notice file of its directory.

    Attributes:
        level: what it is about; `grace` also begins the time to save (grace signal, wait for the file `saved`),
            `clear` takes back what was said before.
        text: for people.  rule: code of the rule that spoke.  until_ms: deadline, None = none.
    """

    kind: Literal["notice"] = "notice"
    level: Literal["notice", "warn", "throttle", "grace", "evict", "clear"]
    text: Text
    rule: Annotated[str, Field(max_length=128)] = ""
    until_ms: Milliseconds | None = None


class Stop(_Command):
    """End a session: thaw, SIGTERM, up to `wait_ms`, then everything in it is killed.

    `outcome` is what the report then says, unless the session had ended before.
    """

    kind: Literal["stop"] = "stop"
    outcome: Literal["evicted", "cancelled"]
    wait_ms: Milliseconds


class Forget(_Command):
    """The end of a session is on record: reports need not mention it any more."""

    kind: Literal["forget"] = "forget"


Command = Annotated[Start | Throttle | Notice | Stop | Forget, Field(discriminator="kind")]


# -- from a host to the scheduler --------------------------------------------------------------------------------------


class SessionReport(_Message):
    """One session as its host sees it.

    Attributes:
        state: `running` from the moment its processes exist; `ended` when none is left.
        outcome: of an ended one. `failed`: exit code not 0, could not be started, or vanished; `error` says which.
        exit_code: of the main process (128 + signal where one killed it); None = unknown or still running.
        busy_ms: GPU-milliseconds computed since the start, at most `granted_ms`.
        granted_ms: GPU-milliseconds granted since the start (2 GPUs half each for a second: 1000).
        known: the load since the report before was measured; False = `busy_ms` could not follow.
        saved: the session acknowledged the grace that it is in.
        granted_m: thousandths of each GPU that it may use now.
    """

    session: Name
    state: Literal["running", "ended"]
    outcome: Literal["completed", "failed", "evicted", "cancelled"] | None = None
    exit_code: Annotated[int, Field(ge=0, le=255)] | None = None
    error: Text = ""
    busy_ms: Count
    granted_ms: Count
    known: bool
    saved: bool = False
    granted_m: Part = 1000


class Result(_Message):
    """What became of a command."""

    action: Annotated[str, Field(min_length=1, max_length=128)]
    result: Literal["done", "failed", "expired"]
    detail: Text = ""


class Report(_Message):
    """What a host's worker says, in order of (epoch, seq).

    Attributes:
        boot: the kernel's boot id.  epoch: starts of this worker so far.  seq: report of this epoch, from 1.
        full: `sessions` names every session the host knows; otherwise only those with news.
        gpus, model, memory_mib: the host's GPUs, all alike.
    """

    version: Literal[1] = 1
    host: Name
    boot: Annotated[str, Field(max_length=64)]
    epoch: Count
    seq: Count
    sent_ms: Milliseconds
    full: bool
    gpus: Annotated[int, Field(ge=1, le=1_000_000)]
    model: Annotated[str, Field(max_length=64)] | None = None
    memory_mib: Annotated[int, Field(ge=1)] | None = None
    sessions: tuple[SessionReport, ...] = ()
    results: tuple[Result, ...] = ()


_COMMAND: TypeAdapter[Start | Throttle | Notice | Stop | Forget] = TypeAdapter(Command)


def encode(message: Start | Throttle | Notice | Stop | Forget | Report) -> bytes:
    """A message as JSON; `ProtocolError` when it is larger than `LIMIT`."""
    raw = message.model_dump_json().encode()
    if len(raw) > LIMIT:
        raise ProtocolError(f"a {type(message).__name__} of {len(raw)} bytes: at most {LIMIT} are sent")
    return raw


def read_command(raw: bytes) -> Start | Throttle | Notice | Stop | Forget:
    """A command from its JSON; `ProtocolError` says what is wrong."""
    try:
        return _COMMAND.validate_json(_bounded(raw))
    except ValidationError as error:
        raise ProtocolError(_first(error)) from None


def read_report(raw: bytes) -> Report:
    """A report from its JSON; `ProtocolError` says what is wrong."""
    try:
        return Report.model_validate_json(_bounded(raw))
    except ValidationError as error:
        raise ProtocolError(_first(error)) from None


def _bounded(raw: bytes) -> bytes:
    if len(raw) > LIMIT:
        raise ProtocolError(f"{len(raw)} bytes: at most {LIMIT} are read")
    return raw


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'message'}: {first['msg']}"
