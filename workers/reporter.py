"""What is still to be told to the scheduler, and telling it.

A report is made when it is sent, from what is true then; one that could not be sent is thrown away and its content
told by the next. Results are repeated in full reports for a while, because the transport may lose what it has taken.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

import structlog

from workers.bus import BusGone
from workers.clock import boot_ns, wall_ms
from workers.journal import JournalError
from workers.protocol import ProtocolError, Report

if TYPE_CHECKING:
    from workers.bus import WorkerBus
    from workers.journal import Journal
    from workers.probes.base import GpuProbe
    from workers.protocol import Result
    from workers.sessions import Sessions
    from workers.settings import Settings

_RESULTS_AT_ONCE = 500
_REPEAT_NS = 60_000_000_000
_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 0.5

log = structlog.get_logger()


class Reporter:
    """News of sessions and results of commands, until they are told."""

    def __init__(self, settings: Settings, bus: WorkerBus, journal: Journal, probe: GpuProbe, epoch: int, boot: str):
        self._settings, self._bus, self._journal, self._probe = settings, bus, journal, probe
        self._epoch, self._boot, self._seq = epoch, boot, 0
        self._changed: set[str] = set()
        self._unsaved: set[str] = set()
        self._results: dict[str, Result] = {}
        self._unsaved_results: dict[str, Result] = {}
        self._repeated: dict[str, tuple[int, Result]] = {}
        self._full_ns = self._counters_due_ns = 0
        self._wake = asyncio.Event()

    def news(self, session: str) -> None:
        """A report about this session is due now."""
        self._changed.add(session)
        self._unsaved.add(session)
        self._wake.set()

    def result(self, result: Result, *, record: bool = True) -> None:
        """Tell what became of a command; `record` = for the first time."""
        self._results[result.action] = result
        if record:
            self._unsaved_results[result.action] = result
        self._wake.set()

    def everything(self) -> None:
        """A full report is due now."""
        self._full_ns = 0
        self._wake.set()

    async def run(self, sessions: Sessions) -> None:
        """Report for ever: at once what is new, everything each `report_s`."""
        pause_s = _PAUSE_S
        while True:
            await self._due()
            full = boot_ns() >= self._full_ns
            try:
                await self._tell(sessions, full=full)
            except (BusGone, ProtocolError) as error:
                if isinstance(error, ProtocolError):
                    log.error("a report cannot be sent", error=str(error))
                await asyncio.sleep(pause_s)
                pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)
                self._full_ns = 0
            else:
                pause_s = _PAUSE_S

    async def last(self, sessions: Sessions) -> None:
        """Before the worker ends: write everything down, then tell it if that is possible at once."""
        self._counters_due_ns = 0
        with suppress(BusGone, TimeoutError):
            async with asyncio.timeout(0.5):
                await self._tell(sessions, full=True)

    async def _due(self) -> None:
        """Wait for news or for the next full report."""
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, (self._full_ns - boot_ns()) / 1e9)):
                await self._wake.wait()
        await asyncio.sleep(0)
        self._wake.clear()

    async def _tell(self, sessions: Sessions, *, full: bool) -> None:
        """Write down, then tell: what was told must be known after a restart."""
        if full:
            sessions.measure()
        self._save(sessions, full=full)
        report = self._report(sessions, full=full)
        changed, self._changed = self._changed, set()
        try:
            await self._bus.append(report)
        except BaseException:
            self._changed |= changed
            raise
        if full:
            self._full_ns = boot_ns() + int(self._settings.report_s * 1e9)
        self._told(report, sessions)

    def _report(self, sessions: Sessions, *, full: bool) -> Report:
        self._seq += 1
        names = list(sessions.all) if full else [name for name in self._changed if name in sessions.all]
        repeated = [result for _, result in self._repeated.values()] if full else []
        return Report(
            host=self._settings.host,
            boot=self._boot,
            epoch=self._epoch,
            seq=self._seq,
            sent_ms=wall_ms(),
            full=full,
            gpus=self._probe.gpus,
            model=self._probe.model,
            memory_mib=self._probe.memory_mib,
            sessions=tuple(s.report() for name in names if (s := sessions.all[name]).state != "accepted"),
            results=(*self._results.values(), *reversed(repeated))[:_RESULTS_AT_ONCE],
        )

    def _told(self, report: Report, sessions: Sessions) -> None:
        now_ns = boot_ns()
        for told in report.results:
            if self._results.pop(told.action, None) is not None:
                self._repeated[told.action] = (now_ns, told)
        self._repeated = {a: kept for a, kept in self._repeated.items() if now_ns - kept[0] < _REPEAT_NS}
        if self._results:
            self._wake.set()
        for told_session in report.sessions:
            session = sessions.all.get(told_session.session)
            if session is not None:
                session.known = True

    def _save(self, sessions: Sessions, *, full: bool) -> None:
        """One commit. When it fails (disk full) the scheduler is told all the same, and we try again next time."""
        if full and boot_ns() >= self._counters_due_ns:
            self._unsaved |= {session.name for session in sessions.running}
            self._counters_due_ns = boot_ns() + int(self._settings.report_s * 1e9)
        names = self._unsaved
        kept = [sessions.all[name] for name in names if name in sessions.all]
        if not (kept or self._unsaved_results or sessions.forgotten):
            return
        try:
            self._journal.save(kept, self._unsaved_results.values(), sessions.forgotten, now_ms=wall_ms())
        except JournalError as error:
            log.error("journal is behind", error=str(error))
            return
        self._unsaved.clear()
        self._unsaved_results.clear()
        sessions.forgotten.clear()
