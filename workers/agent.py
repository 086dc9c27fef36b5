"""The worker of one host: commands in, journal, act, report; in one asyncio loop."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

import structlog

from workers import proc
from workers.bus import WorkerBus
from workers.clock import wall_ms
from workers.enforcer_link import EnforcerLink
from workers.journal import Accepted, Journal, JournalError
from workers.protocol import ProtocolError, Result, Start, read_command
from workers.reporter import Reporter
from workers.session import Session
from workers.sessions import Sessions

if TYPE_CHECKING:
    from workers.containment import Containment
    from workers.journal import AnyCommand
    from workers.probes.base import GpuProbe
    from workers.settings import Settings

_PRUNE_S = 3600.0

log = structlog.get_logger()


class Agent:
    """Wires the parts together and runs them until it is told to end."""

    def __init__(self, settings: Settings, containment: Containment, probe: GpuProbe) -> None:
        self.settings = settings
        self.bus = WorkerBus(settings.redis, settings.host)
        self.journal = Journal(settings.own / "journal.sqlite")
        self.link = EnforcerLink(containment, settings.duty_period_ms)
        epoch, boot = self.journal.next_epoch(), proc.boot_id()
        self.reporter = Reporter(settings, self.bus, self.journal, probe, epoch, boot)
        self.sessions = Sessions(settings, containment, self.link, probe, self.reporter.news, self.reporter.result)
        self._measuring = asyncio.Event()
        log.info("worker starts", host=settings.host, epoch=epoch, gpus=probe.gpus, containment=containment.name)

    async def run(self) -> None:
        """Work until SIGTERM or SIGINT; sessions go on without us, throttled ones are thawed."""
        ended = asyncio.Event()
        for signum in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(signum, ended.set)
        self.settings.sessions.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.link.start()
        try:
            await self._take_over()
            await self._until(ended)
            await self.reporter.last(self.sessions)
        finally:
            await self.sessions.close()
            await self.link.close()
            await self.bus.close()
            self.journal.close()
        log.info("worker ends; its sessions go on", running=len(self.sessions.running))

    async def _until(self, ended: asyncio.Event) -> None:
        """Run the loops until the end is asked for, or one of them fails, which is a mistake of ours."""
        loops = [
            asyncio.ensure_future(work)
            for work in (
                self._commands(),
                self._samples(),
                self._heal(),
                self._prune(),
                self.reporter.run(self.sessions),
            )
        ]
        waiting = asyncio.ensure_future(ended.wait())
        try:
            done, _ = await asyncio.wait([waiting, *loops], return_when=asyncio.FIRST_COMPLETED)
            for failed in done - {waiting}:
                failed.result()
        finally:
            for task in (waiting, *loops):
                task.cancel()
            await asyncio.gather(waiting, *loops, return_exceptions=True)

    async def _take_over(self) -> None:
        """What a worker before us had: its sessions, then the commands that it died over."""
        unfinished = self.journal.unfinished()
        kept = {session.name: session for session in self.journal.sessions()}
        begun = {c.session: Session.of(c) for c in unfinished if isinstance(c, Start) and c.session not in kept}
        await self.sessions.adopt([*kept.values(), *begun.values()])
        for command in unfinished:
            log.info("command of the worker before", kind=command.kind, session=command.session)
            await self._obey(command)
        self._measuring.set()

    async def _commands(self) -> None:
        """Every command is written down with all that came with it, then obeyed in order."""
        async for batch in self.bus.commands():
            commands = [command for raw in batch if (command := _read(raw)) is not None]
            accepted = self._accept(commands)
            for result in accepted.answered:
                self.reporter.result(result, record=False)
            for command in accepted.new:
                await self._obey(command)
                await asyncio.sleep(0)
            self._measuring.set()

    def _accept(self, commands: list[AnyCommand]) -> Accepted:
        """Without a journal nothing is started, since nothing would keep it from starting twice; the rest is obeyed."""
        try:
            return self.journal.accept(commands, wall_ms())
        except JournalError as error:
            log.error("command could not be written down", error=str(error))
            for start in (command for command in commands if isinstance(command, Start)):
                self._refuse(start, str(error))
            return Accepted([command for command in commands if not isinstance(command, Start)], [])

    def _refuse(self, start: Start, why: str) -> None:
        if start.session not in self.sessions.all:
            session = self.sessions.all[start.session] = Session.of(start)
            self.sessions.end_unstarted(session, why)
            self.reporter.result(Result(action=start.action, result="failed", detail=why))

    async def _obey(self, command: AnyCommand) -> None:
        if wall_ms() > command.expires_ms:
            late_s = (wall_ms() - command.expires_ms) / 1000
            log.warning("command expired", kind=command.kind, session=command.session, late_s=late_s)
            self.sessions.discard_unstarted(command.session)
            self.reporter.result(Result(action=command.action, result="expired", detail=f"{late_s:.1f} s late"))
            return
        result = await self.sessions.obey(command)
        if result is not None:
            self.reporter.result(result)

    async def _samples(self) -> None:
        """Measure each `sample_s` while sessions run; asleep otherwise."""
        loop = asyncio.get_running_loop()
        next_s = loop.time()
        while True:
            if not self.sessions.running:
                self._measuring.clear()
                await self._measuring.wait()
                next_s = loop.time()
            next_s = max(loop.time(), next_s + self.settings.sample_s)
            await asyncio.sleep(next_s - loop.time())
            self.sessions.measure()

    async def _heal(self) -> None:
        """After the transport was away or emptied, say everything again."""
        while True:
            await self.bus.lost.wait()
            self.bus.lost.clear()
            self.reporter.everything()

    async def _prune(self) -> None:
        """Keep the journal small."""
        while True:
            try:
                self.journal.prune(wall_ms())
            except JournalError as error:
                log.error("journal could not be pruned", error=str(error))
            await asyncio.sleep(_PRUNE_S)


def _read(raw: bytes) -> AnyCommand | None:
    try:
        return read_command(raw)
    except ProtocolError as error:
        log.warning("unreadable command skipped", error=str(error)[:300], size=len(raw))
        return None


def run(settings: Settings, containment: Containment, probe: GpuProbe) -> None:
    """Be this host's worker until SIGTERM or SIGINT."""

    async def main() -> None:
        await Agent(settings, containment, probe).run()

    asyncio.run(main())
