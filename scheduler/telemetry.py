"""Reports become events: hosts that join and speak, what their sessions computed, what started and what ended.

A report is a picture, so every rule here is a comparison of what the host says with what is on record; a report that
was lost, doubled or late changes nothing in the end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from policies.model import Ladder, State
from scheduler import events as ev
from scheduler.errors import CoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from scheduler.core import Core
    from scheduler.dispatch import Dispatch
    from scheduler.moment import Moment
    from scheduler.ports import Row
    from scheduler.roster import Roster
    from workers.protocol import Report, SessionReport


class Telemetry:
    """See the module's docstring.

    Args:
        warn: logs an event with its members; what a host says and cannot be used is said there.
    """

    def __init__(self, core: Core, roster: Roster, dispatch: Dispatch, warn: Callable[..., None]) -> None:
        self._core = core
        self._roster = roster
        self._dispatch = dispatch
        self._warn = warn

    def take(self, moment: Moment, report: Report) -> None:
        """Compare a report with what is on record, and apply the differences."""
        if not self._hear(moment, report):
            return
        for result in report.results:
            command = self._dispatch.settled(moment, result.action, result.result, result.detail)
            if command is not None and result.result != "done":
                self._warn("command-not-done", action=result.action, result=result.result, detail=result.detail)
        for session in report.sessions:
            self._session(moment, report.host, session)
        if report.full:
            self._missing(moment, report)

    # -- the host -----------------------------------------------------------------------------------------------------

    def _hear(self, moment: Moment, report: Report) -> bool:
        """Whether the report is news; the host joins or is heard of."""
        host, now = report.host, moment.now_ms
        row = self._roster.hosts.get(host)
        if row is not None and self._is_old(report, row):
            return False
        known = self._core.cluster.hosts.get(host)
        brings = (report.gpus, report.model, report.memory_mib)
        if known is None or (known.spec.gpus, known.spec.model, known.spec.memory_mib) != brings:
            self._joined(moment, report)
        if known is not None and (report.full or host in self._core.view.stale_hosts):
            moment.apply(ev.HostReported(now, host))
        self._roster.keep_host(
            moment.batch,
            host,
            gpus=report.gpus,
            model=report.model,
            memory_mib=report.memory_mib,
            boot=report.boot,
            epoch=report.epoch,
            seq=report.seq,
            reported_ms=now,
        )
        return True

    def _joined(self, moment: Moment, report: Report) -> None:
        join = ev.HostJoined(moment.now_ms, report.host, report.gpus, report.model, report.memory_mib, heartbeat=True)
        try:
            moment.apply(join)
        except CoreError as error:
            self._warn("host-changed", host=report.host, gpus=report.gpus, error=str(error))

    def _is_old(self, report: Report, row: Row) -> bool:
        """Told before. A worker that lost its folder counts from 1 again: believed once nothing depends on its host."""
        if report.boot != row["boot"] or (report.epoch, report.seq) > (row["epoch"], row["seq"]):
            return False
        return report.epoch == row["epoch"] or report.host not in self._core.view.lost_hosts

    def heard_anew(self, moment: Moment, listened: Collection[str] | None) -> None:
        """Nobody listened for a while: a host's silence counts from now; one that is listened to no more is lost."""
        for host in list(self._core.hosts.reported_ms):
            if host in self._core.view.lost_hosts:
                continue
            gone = listened is not None and host not in listened
            moment.apply(ev.HostSilent(moment.now_ms, host) if gone else ev.HostReported(moment.now_ms, host))

    # -- its sessions -------------------------------------------------------------------------------------------------

    def _session(self, moment: Moment, host: str, said: SessionReport) -> None:
        row = self._roster.sessions.get(said.session)
        session = self._core.sessions.get(said.session)
        placed = session.allocation if session is not None else None
        if row is None or session is None or placed is None or host not in placed.hosts:
            self._stranger(moment, host, said)
            return
        try:
            self._measured(moment, row, said)
        except CoreError as error:
            self._warn("report-not-used", session=said.session, host=host, error=str(error))
        if said.state == "ended":
            self._ended(moment, host, row, said)
        elif session.state is State.STARTING:
            moment.apply(ev.SessionStarted(moment.now_ms, said.session))
            self._roster.touch(moment.batch, row, state=State.RUNNING.value, running_ms=moment.now_ms)

    def _stranger(self, moment: Moment, host: str, said: SessionReport) -> None:
        """A session that is not on record as live here: its end is forgotten, its processes are ended."""
        if said.state == "ended":
            self._dispatch.forget(moment, host, said.session)
        else:
            self._warn("session-not-on-record", session=said.session, host=host)
            self._dispatch.quell(moment, host, said.session)

    def _measured(self, moment: Moment, row: Row, said: SessionReport) -> None:
        session = self._core.sessions[said.session]
        granted_ms = max(said.granted_ms, row["granted_ms"])
        # At the end also without news: what was charged since the last report was not computed after all.
        if said.granted_ms > row["granted_ms"] or (said.state == "ended" and granted_ms):
            busy_ms = min(max(said.busy_ms, row["busy_ms"]), granted_ms)
            moment.apply(ev.UsageMeasured(moment.now_ms, said.session, busy_ms, granted_ms, said.known))
            self._roster.touch(moment.batch, row, busy_ms=busy_ms, granted_ms=granted_ms, load=session.load)
        if said.saved and session.ladder is Ladder.GRACE and not session.acknowledged:
            moment.apply(ev.SessionSaved(moment.now_ms, said.session, acknowledged=True))

    def _ended(self, moment: Moment, host: str, row: Row, said: SessionReport) -> None:
        """What a session is on record to end as, it ended as; otherwise as its host says."""
        own = said.outcome if said.outcome in ("completed", "failed") else "failed"
        outcome = row["ending"] or own
        moment.apply(ev.SessionEnded(moment.now_ms, said.session, outcome))
        self._roster.ended(moment.batch, row, outcome, exit_code=said.exit_code, error=said.error)
        self._dispatch.ended(moment, said.session)
        self._dispatch.forget(moment, host, said.session)

    def _missing(self, moment: Moment, report: Report) -> None:
        """Sessions that should be on this host and are not: their processes are gone."""
        there = {said.session for said in report.sessions}
        for sid, session in list(self._core.view.holders.items()):
            here = session.allocation is not None and report.host in session.allocation.hosts
            if here and sid not in there and not self._dispatch.is_pending(sid):
                error = f"host {report.host} does not know it any more"
                self.vanished(moment, self._roster.sessions[sid], error)

    def vanished(self, moment: Moment, row: Row, error: str) -> None:
        """A session without processes: it failed, or ended as it was to end."""
        outcome = row["ending"] or "failed"
        moment.apply(ev.SessionEnded(moment.now_ms, row["session"], outcome))
        self._roster.ended(moment.batch, row, outcome, error=error)
        self._dispatch.ended(moment, row["session"])
