"""Appeals: a user says that a rule of acceptable use was wrong, and a person answers, once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from scheduler import events as ev
from scheduler.errors import BadInput, NotFound, Refused
from scheduler.roster import record
from scheduler.why_words import utc

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scheduler.core import Core
    from scheduler.moment import Moment
    from scheduler.ports import Row, Store
    from scheduler.requests import AnswerAppeal, FileAppeal
    from scheduler.roster import Roster

OPEN, GRANTED, DENIED = "open", "granted", "denied"
MOST_OPEN = 3
"""Appeals of one user that wait for an answer."""


class Appeals:
    """Filed and answered, as rows and on record; what is granted reaches the core as events.

    Args:
        core, store, roster: of this run of the service.
        user: the row of a user that exists; `NotFound` otherwise.
    """

    def __init__(self, core: Core, store: Store, roster: Roster, user: Callable[[str], Row]) -> None:
        self._core = core
        self._store = store
        self._roster = roster
        self._user = user

    def file(self, moment: Moment, asked: FileAppeal) -> Callable[[], dict[str, Any]]:
        """A new appeal, of a user or about a session of one."""
        user = self._user_of(moment, asked)
        waiting = [row["appeal"] for row in self._roster.appeals.values() if row["user"] == user]
        if len(waiting) >= MOST_OPEN:
            raise Refused(
                f"{len(waiting)} appeals of {user} wait for an answer already ({', '.join(waiting)}); the limit is"
                f" {MOST_OPEN}",
                "wait for an answer: fairtier appeal list --open",
            )
        row = self._roster.new_appeal(moment.batch, user, asked.session or "", asked.text, moment.by)
        _record(moment, row, "appeal", asked.text)
        return lambda: {"appeal": dict(row)}

    def _user_of(self, moment: Moment, asked: FileAppeal) -> str:
        if asked.session is None:
            return str(self._user(asked.user or "")["user"])
        sid = asked.session
        row = self._roster.sessions.get(sid) or moment.batch.sessions.get(sid) or self._store.session(sid)
        if row is None:
            raise NotFound(f"session {sid} does not exist", "fairtier sessions --all lists them")
        return str(row["user"])

    def answer(self, moment: Moment, asked: AnswerAppeal) -> Callable[[], dict[str, Any]]:
        """Granted or denied, once. Granting pardons; with a time the rule only observes the user for so long."""
        row = self._open(moment, asked.appeal)
        known = [rule.id for rule in self._core.params.rules]
        if asked.rule and asked.rule not in known:
            names = ", ".join(known) or "none"
            raise BadInput(f"the policy has no rule {asked.rule}; its rules are: {names}", "fairtier policy show")
        name, until_ms = row["user"], None
        user = self._core.ledger.users[name]
        if asked.op == "grant":
            if max(user.restricted_until_ms, user.cooldown_until_ms) > moment.now_ms:
                moment.apply(ev.UserPardoned(moment.now_ms, name))
                self._roster.restrict(moment.batch, name, None)
            if asked.allow_for_s is not None:
                until_ms = moment.now_ms + asked.allow_for_s * 1000
                moment.apply(ev.RuleAllowed(moment.now_ms, name, asked.rule, until_ms))
        row = self._roster.keep_appeal(
            moment.batch,
            row,
            state=GRANTED if asked.op == "grant" else DENIED,
            answered_ms=moment.now_ms,
            answered_by=moment.by,
            answer=asked.text,
            rule=asked.rule,
            allowed_until_ms=until_ms,
        )
        _record(moment, row, asked.op, asked.text, until_ms=until_ms)
        return lambda: {"appeal": dict(row)}

    def _open(self, moment: Moment, appeal: str) -> Row:
        row = self._roster.appeals.get(appeal)
        if row is not None:
            return row
        before = moment.batch.appeals.get(appeal) or next(
            (one for one in self._store.appeals() if one["appeal"] == appeal), None
        )
        if before is None:
            raise NotFound(f"appeal {appeal} does not exist", "fairtier appeal list")
        raise Refused(
            f"appeal {appeal} was {before['state']} at {utc(before['answered_ms'])} by {before['answered_by']}: an"
            " appeal is answered once",
            "fairtier appeal file makes a new one",
        )


def _record(moment: Moment, row: Row, op: str, text: str, until_ms: int | None = None) -> None:
    """An act on record beside the policy's decisions."""
    entry = {
        "at_ms": moment.now_ms,
        "action": op,
        "session": row["session"] or None,
        "user": row["user"],
        "rule": f"admin.{op}",
        "by": moment.by,
        "text": text,
        "appeal": row["appeal"],
    }
    moment.batch.decisions.append(record(entry | ({} if until_ms is None else {"until_ms": until_ms})))


def appeal_words(appeals: Sequence[Mapping[str, Any]]) -> str:
    """Where the latest appeal of a user stands; empty where there is none."""
    if not appeals:
        return ""
    row = appeals[-1]
    if row["state"] == OPEN:
        return f"Appeal {row['appeal']} of {utc(row['filed_ms'])} waits for an answer."
    words = f"Appeal {row['appeal']} of {utc(row['filed_ms'])} was {row['state']} at {utc(row['answered_ms'])}"
    return f"{words}: {row['answer']}" if row["answer"] else f"{words}."
