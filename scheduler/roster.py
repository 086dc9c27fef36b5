"""The rows of the truth that the service keeps at hand: live sessions, users and hosts, as they stand after a commit.

The core decides; rows are what people and the next start of the service read. Each change goes through here, so that
what was touched is known when the batch is written.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from policies.model import Action, Ladder, Outcome, State
from scheduler.journal import decision_dict

if TYPE_CHECKING:
    from collections.abc import Iterable

    from policies.model import Decision
    from scheduler.core import Core
    from scheduler.ports import Batch, Reader, Row
    from scheduler.requests import SetUser, Submit

LIVE = tuple(state.value for state in State if state is not State.ENDED)
UNFINISHED = ("queued", "running")
"""States of a task that is not over."""


class Roster:
    """See the module's docstring.

    Attributes:
        sessions: rows of sessions that have not ended, by id.
        users, hosts, tasks: rows by name; of the tasks those that are not over.
        appeals: rows of those that wait for an answer, by name.
        tasks_made, appeals_made: numbers of tasks and of appeals so far.
    """

    def __init__(self, reader: Reader) -> None:
        self.sessions: dict[str, Row] = {row["session"]: row for row in reader.sessions(states=LIVE)}
        self.users: dict[str, Row] = {row["user"]: row for row in reader.users()}
        self.hosts: dict[str, Row] = {row["host"]: row for row in reader.hosts()}
        tasks = reader.tasks()
        self.tasks: dict[str, Row] = {row["task"]: row for row in tasks if row["state"] in UNFINISHED}
        self.tasks_made = max((int(row["task"].removeprefix("t-")) for row in tasks), default=0)

        appeals = reader.appeals()
        self.appeals: dict[str, Row] = {row["appeal"]: row for row in appeals if row["state"] == "open"}
        self.appeals_made = max((int(row["appeal"].removeprefix("a-")) for row in appeals), default=0)

    # -- sessions -----------------------------------------------------------------------------------------------------

    def submitted(self, batch: Batch, sid: str, asked: Submit, user: Row, by: str) -> Row:
        """The row of a new session."""
        row: Row = {
            "session": sid,
            "user": asked.user,
            "group": user["group"],
            "tier": user["tier"],
            "state": State.QUEUED.value,
            "outcome": None,
            "ladder": Ladder.OK.value,
            "gpus": asked.gpus,
            "fraction_m": round(asked.fraction * 1000),
            "gpu_type": asked.gpu_type,
            "memory_mib": asked.memory_mib,
            "submitted_ms": batch.now_ms,
            "started_ms": None,
            "running_ms": None,
            "ended_ms": None,
            "granted_m": round(asked.fraction * 1000),
            "allocation": None,
            "busy_ms": 0,
            "granted_ms": 0,
            "load": None,
            "exit_code": None,
            "error": "",
            "argv": json.dumps(list(asked.argv)),
            "notebook": asked.notebook,
            "grace_signal": asked.grace_signal,
            "ending": None,
            "reason": None,
            "submitted_by": by,
            "resubmitted_from": asked.resubmitted_from,
        }
        self.sessions[sid] = row
        return self.touch(batch, row)

    def touch(self, batch: Batch, row: Row, **changes: Any) -> Row:
        """Change a session's row and have it written."""
        row.update(changes)
        batch.sessions[row["session"]] = row
        return row

    def ended(self, batch: Batch, row: Row, outcome: str, **changes: Any) -> Row:
        """A session is over: its row is written once more and no longer kept at hand."""
        self.sessions.pop(row["session"], None)
        return self.touch(batch, row, state=State.ENDED.value, outcome=outcome, ended_ms=batch.now_ms, **changes)

    def decided(self, batch: Batch, core: Core, decisions: Iterable[Decision]) -> None:
        """Rows and the record follow what a cycle decided."""
        for decision in decisions:
            entry = decision_dict(decision)
            batch.decisions.append(record(entry))
            if decision.action is Action.OBSERVE:
                continue
            row = self.sessions[decision.session]
            reason = json.dumps(entry)
            if decision.action is Action.REJECT:
                self.ended(batch, row, Outcome.REJECTED.value, reason=reason)
            elif decision.action is Action.LOSE:
                self.ended(
                    batch, row, Outcome.LOST.value, reason=reason, error="its host has not reported for too long"
                )
            else:
                self._follow(batch, core, row, decision, reason)
                if decision.action is Action.RESTRICT:
                    user = core.ledger.users[decision.user]
                    self.restrict(batch, user.name, user.restricted_until_ms)

    def _follow(self, batch: Batch, core: Core, row: Row, decision: Decision, reason: str) -> None:
        session = core.sessions[decision.session]
        changes: dict[str, Any] = {
            "state": session.state.value,
            "ladder": session.ladder.value,
            "granted_m": session.granted_m,
            "reason": reason,
        }
        if decision.action is Action.START and session.allocation is not None:
            changes["started_ms"] = batch.now_ms
            changes["allocation"] = json.dumps([[host, list(gpus)] for host, gpus in session.allocation.parts])
        elif decision.action is Action.EVICT:
            changes["ending"] = Outcome.EVICTED.value
        self.touch(batch, row, **changes)

    def host_by_session(self, sessions: Iterable[str]) -> dict[str, str]:
        """The (first) host of each of these that has one."""
        placed = {sid: hosts_of(self.sessions[sid]) for sid in sessions if sid in self.sessions}
        return {sid: hosts[0][0] for sid, hosts in placed.items() if hosts}

    # -- users, hosts, tasks ------------------------------------------------------------------------------------------

    def user_row(self, asked: SetUser, now_ms: int) -> Row:
        """The user's row with what was asked for; not kept yet."""
        row = self.users.get(asked.user) or {
            "user": asked.user,
            "group": "default",
            "tier": "free",
            "shares": 1.0,
            "mail": None,
            "created_ms": now_ms,
            "restricted_until_ms": None,
        }
        wanted = asked.model_dump(exclude={"op", "user", "until_ms", "until_s"}, exclude_none=True)
        if (row["restricted_until_ms"] or 0) <= now_ms:
            wanted["restricted_until_ms"] = None  # it is over
        return {**row, **wanted}

    def keep_user(self, batch: Batch, row: Row) -> None:
        """A user's row is as given."""
        self.users[row["user"]] = batch.users[row["user"]] = row

    def lapsed(self, batch: Batch, core: Core) -> None:
        """Rows follow the tiers that ended with a cycle."""
        for name in core.lapsed:
            self.keep_user(batch, {**self.users[name], "tier": core.ledger.users[name].tier})

    def restrict(self, batch: Batch, user: str, until_ms: int | None) -> Row:
        """A user's row with another restriction; None = without one."""
        row = {**self.users[user], "restricted_until_ms": until_ms}
        self.keep_user(batch, row)
        return row

    def keep_host(self, batch: Batch, host: str, **changes: Any) -> Row:
        """A host's row, with changes."""
        row = self.hosts.setdefault(
            host,
            {
                "host": host,
                "gpus": 0,
                "model": None,
                "memory_mib": None,
                "boot": "",
                "epoch": 0,
                "seq": 0,
                "drained": False,
                "joined_ms": batch.now_ms,
                "reported_ms": batch.now_ms,
            },
        )
        row.update(changes)
        batch.hosts[host] = row
        return row

    def new_task(self, batch: Batch, kind: str, arguments: dict[str, Any]) -> Row:
        """A task's row, queued."""
        self.tasks_made += 1
        row: Row = {
            "task": f"t-{self.tasks_made}",
            "kind": kind,
            "arguments": json.dumps(arguments),
            "state": "queued",
            "created_ms": batch.now_ms,
            "attempts": 0,
            "next_ms": batch.now_ms,
            "result": None,
            "error": "",
        }
        self.tasks[row["task"]] = batch.tasks[row["task"]] = row
        return row

    def new_appeal(self, batch: Batch, user: str, session: str, text: str, by: str) -> Row:
        """An appeal's row, open."""
        self.appeals_made += 1
        row: Row = {
            "appeal": f"a-{self.appeals_made}",
            "user": user,
            "session": session,
            "state": "open",
            "text": text,
            "filed_ms": batch.now_ms,
            "filed_by": by,
            "answered_ms": None,
            "answered_by": "",
            "answer": "",
            "rule": "",
            "allowed_until_ms": None,
        }
        self.appeals[row["appeal"]] = batch.appeals[row["appeal"]] = row
        return row

    def keep_appeal(self, batch: Batch, row: Row, **changes: Any) -> Row:
        """An appeal's row, with changes; one that is answered is no longer kept at hand."""
        row = {**row, **changes}
        batch.appeals[row["appeal"]] = row
        if row["state"] != "open":
            self.appeals.pop(row["appeal"], None)
        return row

    def keep_task(self, batch: Batch, row: Row, **changes: Any) -> None:
        """A task's row, with changes; one that is over is no longer kept at hand."""
        row.update(changes)
        batch.tasks[row["task"]] = row
        if row["state"] not in UNFINISHED:
            self.tasks.pop(row["task"], None)


def record(entry: dict[str, Any]) -> Row:
    """A decision's row from its JSON object; an act on a user is about no session."""
    return {
        "at_ms": entry["at_ms"],
        "session": entry["session"] or "",
        "user": entry["user"],
        "action": entry["action"],
        "rule": entry["rule"],
        "body": json.dumps(entry),
    }


def hosts_of(row: Row) -> list[tuple[str, list[int]]]:
    """(host, GPU numbers) pairs of a session's row; empty while it waits."""
    return [(host, gpus) for host, gpus in json.loads(row["allocation"])] if row["allocation"] else []
