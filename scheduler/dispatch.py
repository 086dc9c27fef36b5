"""From decisions to host commands, and seeing to it that they arrive.

A command that must arrive is a row of the outbox, written with the decision, sent after the commit and sent again until
its host says what became of it. Throttles are leases: while one lasts it is renewed, without a row, and it lapses by
itself when nobody renews it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

from policies.explain import sentence
from policies.model import Action, Ladder, State
from scheduler.roster import hosts_of
from scheduler.why import utc
from workers.protocol import Forget, Notice, ProtocolError, Start, Stop, Throttle, read_command

if TYPE_CHECKING:
    from collections.abc import Iterable

    from policies.model import Decision
    from scheduler.core import Core
    from scheduler.moment import Moment
    from scheduler.ports import HostCommand, Row
    from scheduler.roster import Roster

START_LIFE_MS = 60_000
NOTICE_LIFE_MS = 600_000
STOP_LIFE_MS = 24 * 3_600_000
STOP_WAIT_MS = 5_000
"""Between SIGTERM and the end of everything, for a session that is stopped."""
LEASE_MS = 15_000
"""A throttle that is not renewed for this long lapses: users are freed when the control plane is away."""
Level = Literal["notice", "warn", "throttle", "grace", "evict", "clear"]
Ending = Literal["evicted", "cancelled"]
LEVELS: dict[Action, Level] = {
    Action.NOTICE: "notice",
    Action.WARN: "warn",
    Action.THROTTLE: "throttle",
    Action.GRACE: "grace",
    Action.RESTRICT: "warn",
}
"""What kind of notice a decision is to the people in its session."""
USE_LEVELS: dict[str, Level] = {"use-stop": "warn", "use-ends": "grace", "use-stays": "clear", "use-waits": "clear"}
"""For notices of acceptable use, by what would change them."""
RUNGS: dict[Ladder, Level] = {Ladder.NOTICE: "notice", Ladder.WARN: "warn", Ladder.THROTTLE: "throttle"}
"""For decisions that lead back to a rung."""
RESEND_FIRST_MS, RESEND_MOST_MS = 1_000, 8_000


class _Pending:
    """A command on its way: when it is sent again, and how long after that the next time."""

    __slots__ = ("at_ms", "command", "host", "pause_ms")

    def __init__(self, host: str, command: HostCommand, at_ms: int) -> None:
        self.host = host
        self.command = command
        self.at_ms = at_ms
        self.pause_ms = RESEND_FIRST_MS


class Dispatch:
    """See the module's docstring.

    Args:
        core, roster: of this run of the service.
        outbox: rows of commands that are not settled.
    """

    def __init__(self, core: Core, roster: Roster, outbox: Iterable[Row]) -> None:
        self._core = core
        self._roster = roster
        self._pending: dict[str, _Pending] = {}
        self._of: dict[str, set[str]] = {}
        self._renewed_ms = 0
        self._renewals = 0
        for row in outbox:
            try:
                command = read_command(row["body"].encode())
            except ProtocolError:
                continue  # of a version that wrote other commands: its session's report will show what is missing
            self._await(row["host"], command, 0)

    # -- new commands -------------------------------------------------------------------------------------------------

    def decided(self, moment: Moment, decisions: Iterable[Decision]) -> None:
        """The commands that carry out what a cycle decided."""
        for decision in decisions:
            row = self._roster.sessions.get(decision.session)
            if row is None:
                self.ended(moment, decision.session)  # rejected or lost: no host has it, or none that could be told
            elif decision.action is Action.OBSERVE:
                continue
            elif decision.action is Action.START:
                self._start(moment, row)
            elif decision.action is Action.EVICT:
                self._notice(moment, row, decision, "evict")
                self.stop(moment, row, "evicted")
            else:
                if decision.granted_m is not None:
                    self._throttle(moment, row, decision.granted_m)
                if row["allocation"]:
                    self._notice(moment, row, decision, _level(decision))

    def _start(self, moment: Moment, row: Row) -> None:
        [(host, gpus)] = hosts_of(row)
        fields = self._fields(moment, row, "start", START_LIFE_MS)
        self._post(
            moment,
            host,
            Start(
                **fields,
                user=row["user"],
                argv=tuple(json.loads(row["argv"])),
                gpus=tuple(gpus),
                fraction_m=row["fraction_m"],
                grace_signal=row["grace_signal"],
                notebook=row["notebook"],
            ),
        )

    def stop(self, moment: Moment, row: Row, outcome: Ending, wait_ms: int = STOP_WAIT_MS) -> None:
        """End a session's processes."""
        fields = self._fields(moment, row, "stop", STOP_LIFE_MS)
        for host, _ in hosts_of(row):
            self._post(moment, host, Stop(**fields, outcome=outcome, wait_ms=wait_ms))

    def tell(self, moment: Moment, row: Row, text: str, rule: str) -> None:
        """Tell the people in a session that an operator ends it."""
        fields = self._fields(moment, row, "notice-evict", NOTICE_LIFE_MS)
        for host, _ in hosts_of(row):
            self._post(moment, host, Notice(**fields, level="evict", text=text, rule=rule))

    def forget(self, moment: Moment, host: str, sid: str) -> None:
        """The session's end is on record; not in the outbox, since the host's next report asks again."""
        fields = self._fields(moment, {"session": sid}, "forget", NOTICE_LIFE_MS)
        moment.commands.append((host, Forget(**fields)))

    def quell(self, moment: Moment, host: str, sid: str) -> None:
        """A host runs a session that should not exist: it is stopped at once; its next report asks again."""
        fields = self._fields(moment, {"session": sid}, "quell", NOTICE_LIFE_MS)
        moment.commands.append((host, Stop(**fields, outcome="cancelled", wait_ms=0)))

    def _throttle(self, moment: Moment, row: Row, granted_m: int) -> None:
        fields = self._fields(moment, row, "throttle", LEASE_MS)
        for host, _ in hosts_of(row):
            self._post(moment, host, Throttle(**fields, granted_m=granted_m, lease_ms=LEASE_MS))

    def _notice(self, moment: Moment, row: Row, decision: Decision, level: Level) -> None:
        fields = self._fields(moment, row, f"notice-{level}", NOTICE_LIFE_MS)
        reason = decision.reason
        for host, _ in hosts_of(row):
            notice = Notice(
                **fields, level=level, text=sentence(decision, utc), rule=reason.rule, until_ms=reason.until_ms
            )
            self._post(moment, host, notice)

    def _fields(self, moment: Moment, row: Row, kind: str, life_ms: int) -> dict[str, Any]:
        sid = row["session"]
        return {
            "action": f"{sid}:{kind}:{moment.now_ms}.{moment.core.revision}",
            "session": sid,
            "issued_ms": moment.now_ms,
            "expires_ms": moment.now_ms + life_ms,
        }

    def _post(self, moment: Moment, host: str, command: HostCommand) -> None:
        if command.action in self._pending:
            return
        self._supersede(moment, command)
        self._await(host, command, moment.now_ms)
        moment.batch.commands.append(
            {
                "action": command.action,
                "host": host,
                "session": command.session,
                "kind": command.kind,
                "body": command.model_dump_json(),
                "issued_ms": command.issued_ms,
                "expires_ms": command.expires_ms,
                "result": None,
                "detail": "",
            }
        )

    def _supersede(self, moment: Moment, command: HostCommand) -> None:
        """An older notice or throttle that has not arrived must not be sent again after a newer one."""
        if isinstance(command, Notice | Throttle):
            for action in self._actions(command.session):
                if self._pending[action].command.kind == command.kind:
                    self.settled(moment, action, "expired", "a newer one follows")

    def _await(self, host: str, command: HostCommand, at_ms: int) -> None:
        self._pending[command.action] = _Pending(host, command, at_ms)
        self._of.setdefault(command.session, set()).add(command.action)

    # -- until they have arrived --------------------------------------------------------------------------------------

    def settled(self, moment: Moment, action: str, result: str, detail: str) -> HostCommand | None:
        """A host says what became of a command; the command, if it was waited for."""
        pending = self._pending.pop(action, None)
        if pending is None:
            return None
        moment.batch.settled.append((action, result, detail))
        open_ = self._of[pending.command.session]
        open_.discard(action)
        if not open_:
            del self._of[pending.command.session]
        return pending.command

    def ended(self, moment: Moment, sid: str) -> None:
        """A session is over: nothing about it is sent again. A start that was lost would run it after its end."""
        for action in self._actions(sid):
            stop = isinstance(self._pending[action].command, Stop)
            self.settled(moment, action, "done" if stop else "expired", "its session has ended")

    def _actions(self, sid: str) -> list[str]:
        return sorted(self._of.get(sid, ()))

    def overdue(self, moment: Moment) -> list[HostCommand]:
        """Commands whose time is over without a word from the host: settled as expired."""
        late = [p.command for p in self._pending.values() if p.command.expires_ms + RESEND_MOST_MS < moment.now_ms]
        for command in late:
            self.settled(moment, command.action, "expired", "the host did not answer in time")
        return late

    def is_pending(self, sid: str) -> bool:
        """Whether the session's start has not been answered by its host."""
        return any(isinstance(self._pending[action].command, Start) for action in self._of.get(sid, ()))

    def due_ms(self) -> int | None:
        """When something has to be sent next; None = nothing."""
        times = [pending.at_ms for pending in self._pending.values()]
        if self._throttled():
            times.append(self._renewed_ms + LEASE_MS // 3)
        return min(times, default=None)

    def to_send(self, now_ms: int) -> list[tuple[str, HostCommand]]:
        """Everything that is due now: new, unanswered, and leases to renew."""
        due: list[tuple[str, HostCommand]] = []
        for pending in self._pending.values():
            if pending.at_ms <= now_ms:
                due.append((pending.host, pending.command))
                pending.at_ms = now_ms + pending.pause_ms
                pending.pause_ms = min(2 * pending.pause_ms, RESEND_MOST_MS)
        if now_ms >= self._renewed_ms + LEASE_MS // 3:
            self._renewed_ms = now_ms
            due += self._renewals_now(now_ms)
        return due

    def send_all_again(self) -> None:
        """The transport was away: whatever is not settled is due."""
        self._renewed_ms = 0
        for pending in self._pending.values():
            pending.at_ms, pending.pause_ms = 0, RESEND_FIRST_MS

    def _throttled(self) -> list[str]:
        return list(self._core.view.shrunk)

    def _renewals_now(self, now_ms: int) -> list[tuple[str, HostCommand]]:
        due: list[tuple[str, HostCommand]] = []
        for sid in self._throttled():
            session = self._core.sessions[sid]
            if session.state is State.RUNNING and session.allocation is not None:
                self._renewals += 1
                renewal = Throttle(
                    action=f"{sid}:renew:{now_ms}.{self._renewals}",
                    session=sid,
                    issued_ms=now_ms,
                    expires_ms=now_ms + LEASE_MS,
                    granted_m=session.granted_m,
                    lease_ms=LEASE_MS,
                )
                due += [(host, renewal) for host in session.allocation.hosts]
        return due


def _level(decision: Decision) -> Level:
    """What kind of notice a decision is to the people in its session."""
    if decision.reason.rule.startswith("use.") and decision.reason.change in USE_LEVELS:
        return USE_LEVELS[decision.reason.change]
    return LEVELS.get(decision.action) or RUNGS.get(decision.ladder or Ladder.OK, "clear")
