"""The worker's side of the enforcer: start it, ask it, and replace it when it dies."""

from __future__ import annotations

import asyncio
import itertools
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from workers.clock import boot_ns
from workers.containment import Cgroups
from workers.enforcer import LONGEST_REQUEST

if TYPE_CHECKING:
    from workers.containment import Containment

_ANSWER_S = 10.0
_PAUSE_S = 0.2
_FULL_S = 0.005
_PACKAGES = Path(__file__).resolve().parent.parent

log = structlog.get_logger()


class EnforcerError(Exception):
    """The enforcer refused, or it cannot be reached; says what."""


class EnforcerLink:
    """One enforcer at a time. What was registered and throttled is told to the next one when one dies."""

    def __init__(self, containment: Containment, period_ms: int) -> None:
        self._containment = containment
        self._period_ms = period_ms
        self._numbers = itertools.count(1)
        self._waiting: dict[str, asyncio.Future[str]] = {}
        self._leaders: dict[str, int] = {}
        self._duties: dict[str, tuple[int, int]] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._restart: asyncio.Task[None] | None = None
        self._closing = False

    @property
    def pid(self) -> int | None:
        """Process id of the enforcer of now."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the enforcer; it first thaws whatever one before it left frozen."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [*self._command(), "--fd", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                # Exactly this package and the standard library, whatever the folder of now or the site holds.
                env={"PYTHONPATH": str(_PACKAGES)},
            )
        ours.setblocking(False)
        self._socket = ours
        asyncio.get_running_loop().add_reader(ours.fileno(), self._read)

    async def add(self, session: str, pid: int) -> None:
        """Register a session and the process that leads it."""
        self._leaders[session] = pid
        await self._ask("add", session, str(pid))

    async def drop(self, session: str) -> None:
        """The session has ended."""
        self._duties.pop(session, None)
        if self._leaders.pop(session, None) is not None:
            await self._ask("drop", session)

    async def duty(self, session: str, granted_m: int, lease_ms: int) -> None:
        """Let a session run `granted_m` thousandths of the time, for `lease_ms`."""
        self._duties[session] = (granted_m, boot_ns() + lease_ms * 1_000_000)
        await self._ask("duty", session, str(granted_m), str(lease_ms))

    async def lift(self, session: str) -> None:
        """End a throttle."""
        self._duties.pop(session, None)
        await self._ask("lift", session)

    async def signal(self, session: str, name: str, *, main: bool) -> None:
        """Send a signal by name (TERM, USR1 ...) to all processes, or to the main program alone."""
        await self._ask("signal", session, name, "main" if main else "all")

    async def kill(self, session: str) -> None:
        """End every process of a session."""
        self._duties.pop(session, None)
        await self._ask("kill", session)

    async def close(self) -> None:
        """Let the enforcer go: it thaws everything and exits."""
        self._closing = True
        if self._restart:
            self._restart.cancel()
        self._hang_up("the worker ends")
        if self._process:
            try:
                await asyncio.to_thread(self._process.wait, 2.0)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _command(self) -> list[str]:
        root = ["--cgroups", str(self._containment.root)] if isinstance(self._containment, Cgroups) else []
        python = [sys.executable, "-P", "-S", "-m", "workers.enforcer"]
        return [*python, "--period-ms", str(self._period_ms), *root]

    async def _ask(self, operation: str, session: str, *words: str) -> None:
        """One request; again if the enforcer died over it. `EnforcerError` when it says no."""
        for _ in range(3):
            if self._restart:
                await asyncio.shield(self._restart)
            answer = await self._once(operation, session, *words)
            if answer == "ok":
                return
            if answer:
                raise EnforcerError(f"{operation} {session}: {answer.removeprefix('no ')}")
        raise EnforcerError(f"{operation} {session}: the enforcer died over it three times")

    async def _once(self, operation: str, session: str, *words: str) -> str:
        """The answer; empty when the enforcer died."""
        if self._socket is None:
            raise EnforcerError(f"{operation} {session}: the worker ends")
        number = str(next(self._numbers))
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            await self._send(" ".join((number, operation, session, *words)).encode("ascii"))
            return await asyncio.wait_for(answer, _ANSWER_S)
        except OSError:
            await asyncio.sleep(0)
            return ""
        except TimeoutError:
            raise EnforcerError(f"{operation} {session}: no answer within {_ANSWER_S:g} s") from None
        finally:
            self._waiting.pop(number, None)

    async def _send(self, request: bytes) -> None:
        """A datagram goes whole or not at all; while the enforcer is behind, wait."""
        while self._socket:
            try:
                self._socket.send(request)
            except BlockingIOError:
                await asyncio.sleep(_FULL_S)
            else:
                return

    def _read(self) -> None:
        """Deliver an answer, or notice that the enforcer is gone."""
        assert self._socket is not None  # noqa: S101 - we are called by its reader
        try:
            data = self._socket.recv(LONGEST_REQUEST)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._died()
            return
        number, _, answer = data.decode("ascii", "replace").partition(" ")
        waiting = self._waiting.get(number)
        if waiting and not waiting.done():
            waiting.set_result(answer)

    def _died(self) -> None:
        log.error("enforcer died; another one is started", pid=self.pid)
        self._restart = asyncio.get_running_loop().create_task(self._again())
        self._hang_up("")

    def _hang_up(self, answer: str) -> None:
        if self._socket:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_result(answer)

    async def _again(self) -> None:
        """Reap the dead one, start the next, tell it everything."""
        if self._process:
            self._process.kill()
            await asyncio.to_thread(self._process.wait)
        await asyncio.sleep(_PAUSE_S)
        self.start()
        for session, pid in list(self._leaders.items()):
            await self._once("add", session, str(pid))
        for session, (granted_m, until_ns) in list(self._duties.items()):
            left_ms = (until_ns - boot_ns()) // 1_000_000
            if left_ms > 0:
                await self._once("duty", session, str(granted_m), str(left_ms))
        if self._restart is asyncio.current_task():
            self._restart = None
