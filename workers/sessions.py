"""The sessions of one host: obey what is commanded about them, see them end, measure them.

Everything here may be done twice with the effect of once, because a worker that died over a command does it again.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from workers import notices, proc
from workers.clock import boot_ns, wall_ms
from workers.endings import ending, leads, reaped
from workers.enforcer_link import EnforcerError
from workers.launcher import LaunchError, cap_log, exit_code, launch, pid_on_file
from workers.probes.base import Watched
from workers.protocol import Notice, Result, Start, Stop, Throttle
from workers.session import LONGEST_ERROR, Session
from workers.settings import base_environment
from workers.throttles import Throttles

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    from workers.containment import Containment
    from workers.enforcer_link import EnforcerLink
    from workers.journal import AnyCommand
    from workers.probes.base import GpuProbe
    from workers.protocol import Forget
    from workers.session import Outcome
    from workers.settings import Settings

_LOOK_S, _LONGEST_LOOK_S = 0.005, 0.05
_KILL_AGAIN_S = 1.0

log = structlog.get_logger()


class Sessions:
    """All sessions that are not forgotten.

    `news` is called with a session's name when a report about it is due, `told` with the result of a command that took
    its time.
    """

    def __init__(
        self,
        settings: Settings,
        containment: Containment,
        link: EnforcerLink,
        probe: GpuProbe,
        news: Callable[[str], None],
        told: Callable[[Result], None],
    ) -> None:
        self.all: dict[str, Session] = {}
        self.forgotten: set[str] = set()
        self._settings, self._containment, self._link, self._probe = settings, containment, link, probe
        self._news, self._told = news, told
        self._boot = proc.boot_id()
        self._since: dict[str, int | None] = {}
        self._pinned: dict[str, int] = {}
        self._throttles = Throttles(link, news)
        self._ending: set[str] = set()
        self._stops: dict[str, list[str]] = {}
        self._deadlines: dict[str, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def running(self) -> list[Session]:
        """Those with processes."""
        return [session for session in self.all.values() if session.state == "running"]

    # -- commands ------------------------------------------------------------------------------------------------------

    async def obey(self, command: AnyCommand) -> Result | None:
        """Do what a command says; its result, None = it follows later."""
        try:
            if isinstance(command, Start):
                detail = await self._start(command)
            elif isinstance(command, Throttle):
                detail = await self._throttle(command)
            elif isinstance(command, Notice):
                detail = await self._notice(command)
            elif isinstance(command, Stop):
                return self._stop(command)
            else:
                detail = self._forget(command)
        except (LaunchError, EnforcerError, OSError, Impossible) as error:
            log.warning("command failed", kind=command.kind, session=command.session, error=str(error))
            return Result(action=command.action, result="failed", detail=str(error)[:LONGEST_ERROR])
        return Result(action=command.action, result="done", detail=detail)

    async def _start(self, start: Start) -> str:
        known = self.all.get(start.session)
        if known is not None and known.state != "accepted":
            return "known already"
        session = self.all[start.session] = Session.of(start)
        self.forgotten.discard(start.session)
        folder = self._folder(start.session)
        try:
            if not all(gpu < self._settings.gpus for gpu in start.gpus):
                raise Impossible(f"GPUs {start.gpus} were asked for; {self._settings.host} has {self._settings.gpus}")
            if pid_on_file(folder) is not None:
                raise Impossible(f"its folder {folder} is that of an earlier session")
            pid = launch(start, folder, self._containment.create(start.session), base_environment())
        except (LaunchError, Impossible, OSError) as error:
            self.end_unstarted(session, str(error))
            raise
        session.begin(pid, proc.start_ticks(pid), self._boot, boot_ns())
        log.info(
            "session started",
            session=session.name,
            program=Path(start.argv[0]).name[:64] if start.argv else "notebook",
            pid=pid,
        )
        self._since[session.name] = session.counted_ns
        self._news(session.name)
        await self.watch(session)
        return ""

    async def _throttle(self, command: Throttle) -> str:
        session = self._known(command.session)
        if session.state == "ended":
            return "it has ended"
        await self._throttles.apply(session, command.granted_m, command.lease_ms)
        return ""

    async def _notice(self, command: Notice) -> str:
        session = self._known(command.session)
        folder = self._folder(session.name)
        if not folder.is_dir():
            return "it has no folder"
        if command.level == "grace" and session.state == "running":
            session.grace, session.saved = notices.mark(folder), False
        elif command.level == "clear":
            session.grace, session.saved = None, False
        notices.write(folder, command)
        if command.level == "grace" and session.grace_signal and session.state == "running":
            await self._link.signal(session.name, session.grace_signal, main=True)
        self._news(session.name)
        return ""

    def _stop(self, command: Stop) -> Result | None:
        """Begin to end a session. One that never came here is noted as ended, so that a late Start is not obeyed."""
        session = self.all.get(command.session)
        if session is None or session.state == "accepted":
            session = self.all.setdefault(command.session, Session(name=command.session))
            session.end(command.outcome, None, "it was stopped before it started", boot_ns())
            self._news(session.name)
        if session.state == "ended":
            return Result(action=command.action, result="done", detail="it has ended")
        self._stops.setdefault(session.name, []).append(command.action)
        begun = session.name in self._deadlines
        by_ns = boot_ns() + command.wait_ms * 1_000_000
        self._deadlines[session.name] = min(by_ns, self._deadlines.get(session.name, by_ns))
        if not begun and session.name not in self._ending:
            if exit_code(self._folder(session.name)) is None:
                session.stop = session.stop or command.outcome
            self._news(session.name)
            self._spawn(self._bring_down(session))
        return None

    def _forget(self, command: Forget) -> str:
        session = self.all.get(command.session)
        if session is None:
            return "not known"
        if session.state != "ended":
            raise Impossible(f"session {session.name} has not ended; stop it first")
        del self.all[session.name]
        self.forgotten.add(session.name)
        return ""

    # -- from running to ended -----------------------------------------------------------------------------------------

    async def watch(self, session: Session) -> None:
        """See when the shell that leads a running session ends."""
        assert session.pid is not None  # noqa: S101 - running
        self._containment.attach(session.name, session.pid)
        try:
            pinned = self._pinned[session.name] = os.pidfd_open(session.pid)
        except OSError:
            self._spawn(self._finish(session))
            return
        asyncio.get_running_loop().add_reader(pinned, self._main_ended, session)
        await self._link.add(session.name, session.pid)

    def _main_ended(self, session: Session) -> None:
        self._unpin(session)
        if session.name not in self._deadlines:
            self._spawn(self._finish(session))

    async def _bring_down(self, session: Session) -> None:
        """Thaw, ask to end, wait as long as was granted, then kill."""
        with suppress(EnforcerError):
            await self._throttles.lift(session)
            await self._link.signal(session.name, "TERM", main=False)
        pause_s = _LOOK_S
        while self._containment.populated(session.name) and boot_ns() < self._deadlines[session.name]:
            left_s = (self._deadlines[session.name] - boot_ns()) / 1e9
            await asyncio.sleep(max(0.0, min(pause_s, left_s)))
            pause_s = min(_LONGEST_LOOK_S, pause_s * 2)
        await self._finish(session)

    async def _finish(self, session: Session) -> None:
        """Kill what is left, wait until nothing is, and close the account."""
        if session.name in self._ending or session.state == "ended":
            return  # its processes ended and it was stopped at the same moment: one of the two closes the account
        self._ending.add(session.name)
        await self._clear(session)
        self._unpin(session)
        status = await reaped(session.pid)
        self._sample([session], boot_ns())
        while not self._containment.remove(session.name):
            await self._clear(session)
            await asyncio.sleep(_LOOK_S)
        self._close(session, *ending(session, self._folder(session.name), status))
        with suppress(EnforcerError):
            await self._link.drop(session.name)

    async def _clear(self, session: Session) -> None:
        """Kill until nothing is left."""
        asked_ns, tries = 0, 0
        while self._containment.populated(session.name):
            if boot_ns() - asked_ns > _KILL_AGAIN_S * 1e9:
                asked_ns, tries = boot_ns(), tries + 1
                if tries > 1:
                    log.warning("session does not end; killing again", session=session.name, tries=tries)
                with suppress(EnforcerError):
                    await self._link.kill(session.name)
            await asyncio.sleep(_LOOK_S)

    def end_unstarted(self, session: Session, error: str) -> None:
        """It could not be started."""
        self._close(session, "failed", None, error)
        with suppress(OSError):
            self._containment.remove(session.name)

    def discard_unstarted(self, name: str) -> None:
        """The Start that a session waited for came too late."""
        if name in self.all and self.all[name].state == "accepted":
            del self.all[name]
            self.forgotten.add(name)

    def _close(self, session: Session, outcome: Outcome, code: int | None, error: str) -> None:
        session.end(outcome, code, error, boot_ns())
        log.info("session ended", session=session.name, outcome=outcome, exit_code=code, error=error)
        self._ending.discard(session.name)
        self._since.pop(session.name, None)
        self._probe.forget(session.name)
        self._deadlines.pop(session.name, None)
        self._throttles.drop(session.name)
        for action in self._stops.pop(session.name, ()):
            self._told(Result(action=action, result="done"))
        self._news(session.name)

    # -- after a restart -----------------------------------------------------------------------------------------------

    async def adopt(self, sessions: Iterable[Session]) -> None:
        """Take over what a worker before us had."""
        for session in sessions:
            self.all[session.name] = session
            if session.state != "ended":
                await self._adopt(session)

    async def _adopt(self, session: Session) -> None:
        """Go on with it where it runs, or else note that it ended. One that never started waits for its Start."""
        folder = self._folder(session.name)
        pid = session.pid or pid_on_file(folder)
        if session.state == "accepted":
            if pid is None:
                return
            session.begin(pid, None, self._boot, boot_ns())
        session.known, session.pid = False, pid
        self._since[session.name] = None
        if session.boot != self._boot:
            session.counted_ns = boot_ns()
        session.boot = self._boot
        self._news(session.name)
        if pid is not None and leads(session, pid, folder, self._containment.pids(session.name)):
            session.ticks = proc.start_ticks(pid)
            log.info("session adopted", session=session.name, pid=pid)
            await self.watch(session)
            await self._throttles.resume(session)
        else:
            self._end_where_it_ended(session, folder)
            session.pid = None
            self._spawn(self._finish(session))

    def _end_where_it_ended(self, session: Session, folder: Path) -> None:
        """Count the grant up to when the exit code was written, and nothing after it."""
        with suppress(OSError):
            ended_ns = boot_ns() - (wall_ms() * 1_000_000 - (folder / "exit").stat().st_mtime_ns)
            session.count(min(ended_ns, boot_ns()))
        session.counted_ns = boot_ns()

    # -- measuring -----------------------------------------------------------------------------------------------------

    def measure(self) -> None:
        """Sample all running sessions, see who has saved, cut logs that grew too long."""
        self._sample(self.running, boot_ns())
        for session in self.running:
            folder = self._folder(session.name)
            if session.grace is not None and not session.saved and notices.mark(folder) not in ("", session.grace):
                session.saved = True
                self._news(session.name)
            if cap_log(folder, self._settings.log_cap_bytes):
                log.info("log was cut", session=session.name, cap_bytes=self._settings.log_cap_bytes)

    def _sample(self, sessions: list[Session], now_ns: int) -> None:
        watched = {s.name: Watched(s.gpus, self._since.get(s.name)) for s in sessions}
        samples = self._probe.sample(now_ns, watched) if watched else {}
        for session in sessions:
            session.take(samples[session.name], now_ns)
            self._since[session.name] = now_ns

    # -- small things --------------------------------------------------------------------------------------------------

    def _known(self, name: str) -> Session:
        session = self.all.get(name)
        if session is None:
            raise Impossible(f"session {name} is not on {self._settings.host}")
        return session

    def _folder(self, name: str) -> Path:
        return self._settings.sessions / name

    def _unpin(self, session: Session) -> None:
        pinned = self._pinned.pop(session.name, None)
        if pinned is not None:
            asyncio.get_running_loop().remove_reader(pinned)
            os.close(pinned)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        """Run on its own; a mistake of ours is logged and ends nothing else."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a task of a session failed", exc_info=task.exception())

    async def close(self) -> None:
        """Let go of all sessions; their processes go on."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._throttles.close()
        for session in list(self.all.values()):
            self._unpin(session)


class Impossible(Exception):
    """A command that does not fit what is; says why."""
