"""The API, for our own commands: plain calls, and errors that end a command with the right exit code."""

from __future__ import annotations

import contextlib
import getpass
import json
import re
import secrets
import socket
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from scheduler import state_dir
from scheduler.errors import BadInput, FairTierError, NotFound, Unreachable
from scheduler.wire_errors import error_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import TracebackType

    import httpx

WRITE_S = 2.3
"""An API that has not answered a write by now does not live: with its start a command ends within 3 s."""
READ_S = 15.0

Json = dict[str, Any]


class Log(NamedTuple):
    """A piece of a session's log: where it begins, its bytes, how long the log is."""

    offset: int
    content: bytes
    size: int


class Client:
    """Calls of one instance's API.

    Args:
        state: its state directory.
        url: of an API elsewhere; not in this version.
    """

    def __init__(self, state: Path = state_dir.DEFAULT_STATE, url: str | None = None) -> None:
        if url is not None:
            raise BadInput(
                "--url comes with tokens, in a later version",
                "use --state on the machine itself, or unset FAIRTIER_URL",
            )
        import httpx  # noqa: PLC0415 - help and mistakes in options need none

        self._state = state.expanduser()
        self._socket = state_dir.api_socket(state)
        self._reached = False
        self._http = httpx.Client(
            transport=httpx.HTTPTransport(uds=str(self._socket)),
            base_url="http://fairtier",
            headers={"FairTier-By": _me()},
            timeout=READ_S,
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connection."""
        self._http.close()

    # -- writes --------------------------------------------------------------------------------------------------

    def submit(self, **asked: Any) -> Json:
        """Ask for a session (members of `scheduler.requests.Submit`); the session."""
        return self._write("POST", "/v1/sessions", asked)

    def act(self, session: str, op: str, reason: str = "") -> Json:
        """Cancel, hold, unhold, evict or extend a session; the session."""
        return self._write("POST", f"/v1/sessions/{_quoted(session)}/{op}", {"reason": reason})

    def set_user(self, user: str, **fields: Any) -> Json:
        """Create or change a user; None leaves what is on record. The user."""
        if "/" in user or not user.isprintable():
            raise BadInput(f"{user[:100]!r} is no name: a-z, 0-9 and . _ - are possible")
        return self._write("PUT", f"/v1/users/{_quoted(user)}", fields)

    def restrict(self, user: str, **asked: Any) -> Json:
        """Let nothing new of a user start (members of `scheduler.requests.Restrict`); the user."""
        return self._write("POST", f"/v1/users/{_quoted(user)}/restrict", asked)

    def pardon(self, user: str, reason: str = "") -> Json:
        """End a user's restriction and cooldown; the user, and whether it was `pardoned` from either."""
        return self._write("POST", f"/v1/users/{_quoted(user)}/pardon", {"reason": reason})

    def file_appeal(self, **asked: Any) -> Json:
        """Say that a rule was wrong (members of `scheduler.requests.FileAppeal`); the appeal."""
        return self._write("POST", "/v1/appeals", _given(asked))

    def answer_appeal(self, appeal: str, op: str, **asked: Any) -> Json:
        """Grant or deny an appeal (members of `scheduler.requests.AnswerAppeal`); the appeal."""
        return self._write("POST", f"/v1/appeals/{_quoted(appeal)}/{op}", _given(asked))

    def plan(self, entries: list[Json], *, check: bool = False, reason: str = "") -> Json:
        """Agree on entries of the calendar (members of `scheduler.requests.Planned`), all or none; the entries."""
        return self._write("POST", "/v1/calendar", {"entries": entries, "check": check, "reason": reason})

    def unplan(self, entry: str, reason: str = "") -> Json:
        """An entry of the calendar is agreed no longer; what it was."""
        return self._write("POST", f"/v1/calendar/{_quoted(entry)}/remove", {"reason": reason})

    def set_host(self, host: str, op: str) -> Json:
        """Drain or resume a host; the host."""
        return self._write("POST", f"/v1/hosts/{_quoted(host)}/{op}", {})

    def activate_policy(self, toml: str, note: str = "") -> Json:
        """Put another policy in force; its version, and whether it is `changed`."""
        return self._write("POST", "/v1/policy/activate", {"toml": toml, "note": note})

    def rollback_policy(self, version: int | None = None, note: str = "") -> Json:
        """Put an earlier version's policy in force again, None = the one before; its version, whether it `changed`."""
        return self._write("POST", "/v1/policy/rollback", {"version": version, "note": note})

    def run_task(self, kind: str, arguments: Mapping[str, Any]) -> Json:
        """Start background work; the task."""
        return self._write("POST", "/v1/tasks", {"kind": kind, "arguments": dict(arguments)})

    def ping(self) -> None:
        """To the scheduler and back, through a commit."""
        self._write("POST", "/v1/ping", {})

    def close_instance(self) -> None:
        """End every session: the instance is about to stop."""
        self._write("POST", "/v1/close", {})

    # -- reads ---------------------------------------------------------------------------------------------------

    def get(self, path: str, **parameters: Any) -> Json:
        """A document below `/v1/`; parameters that are None are left out.

        Parts of the path that are data go through `part`.
        """
        response = self._call("GET", f"/v1/{path}", READ_S, params=_given(parameters))
        document: Json = response.json()
        return document

    def log(self, session: str, offset: int = 0) -> Log:
        """A piece of a session's output from `offset` on; negative: so many bytes before its end."""
        response = self._call("GET", f"/v1/sessions/{_quoted(session)}/log", READ_S, params={"offset": offset})
        headers = response.headers
        return Log(int(headers["FairTier-Log-Offset"]), response.content, int(headers["FairTier-Log-Size"]))

    def metrics(self) -> str:
        """The figures for Prometheus."""
        return self._call("GET", "/metrics", READ_S).text

    # -- underneath ----------------------------------------------------------------------------------------------

    def _write(self, method: str, path: str, body: Mapping[str, Any]) -> Json:
        key = {"Idempotency-Key": secrets.token_hex(16)}
        try:
            content = json.dumps(_given(body), allow_nan=False)
        except ValueError:
            raise BadInput("a number is not finite: neither nan nor inf means anything here") from None
        document: Json = self._call(method, path, WRITE_S, content=content, headers=key).json()
        return document

    def _call(self, method: str, path: str, timeout_s: float, **more: Any) -> httpx.Response:
        import httpx  # noqa: PLC0415 - loaded already

        if not self._reached:
            self._knock()
        try:
            response = self._http.request(method, path, timeout=timeout_s, **more)
        except httpx.TransportError as error:
            raise Unreachable(
                f"the API on {self._socket} does not answer: {str(error) or type(error).__name__}",
                "fairtier status says what runs; fairtier logs shows why",
            ) from None
        if response.is_success:
            return response
        raise _error(response)

    def _knock(self) -> None:
        """Find out whether anybody listens, and tell apart why not; once is enough."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(WRITE_S)
            try:
                probe.connect(str(self._socket))
            except PermissionError:
                raise Unreachable(
                    f"{self._socket} may not be opened by {_me()}", "be the user who runs the instance, or root"
                ) from None
            except OSError:
                raise Unreachable(
                    f"no instance runs on {self._state}", f"fairtier up --emulate 2x2 --state {self._state}"
                ) from None
        self._reached = True


def part(name: str) -> str:
    """A name as one part of a path, whatever is in it."""
    return _quoted(name)


def _quoted(name: str) -> str:
    """Percent-encoded; `.` and `..` too, which would otherwise mean another path."""
    if not name or "/" in name or not name.isprintable():
        raise NotFound(f"{name[:100]!r} names nothing: a name has a-z, 0-9 and . _ - in it")
    quoted = quote(name.encode(errors="surrogateescape"), safe="")
    return quoted.replace(".", "%2E") if set(name) == {"."} else quoted


def _given(fields: Mapping[str, Any]) -> Json:
    return {name: value for name, value in fields.items() if value is not None}


def _me() -> str:
    """Who asks, for the record."""
    with contextlib.suppress(OSError, KeyError, ImportError):
        return re.sub(r"[^\x21-\x7e]", "_", getpass.getuser())[:64] or "unknown"
    return "unknown"


def _error(response: httpx.Response) -> FairTierError:
    """What the API says went wrong."""
    try:
        told = response.json()
        return error_of(str(told["error"]), str(told["message"]), told.get("hint"))
    except (ValueError, KeyError, TypeError, AttributeError):
        return FairTierError(f"the API answered {response.status_code} with something that is not ours")
