"""What can be read, from a core that follows the journal and from the rows of the truth.

One thread asks everything here, one question after another: the core is not for two, and a long question must not hold
up the loop that carries the writes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from policies.model import WHOLE_M, State
from scheduler.api import accounts, cluster, policy_view, rows, session_files, words
from scheduler.calendar_json import announcements, entry_json, past_entries
from scheduler.errors import NotFound, Unreachable
from scheduler.memberships import membership_json
from scheduler.replica import Replica
from scheduler.why import Positions

if TYPE_CHECKING:
    from pathlib import Path

    from scheduler.api.rows import Json
    from scheduler.core import Core
    from scheduler.ports import Reader, Row

WAITING = (State.QUEUED.value, State.HELD.value)
LIVE = tuple(state.value for state in State if state is not State.ENDED)
MOST_ROWS = 10_000
"""Rows of one answer."""

T = TypeVar("T")


class Views:
    """Answers to questions; every public method but `ask` and `close` runs in the reading thread.

    Args:
        open_reader: opens the truth; called when it is first needed, and again after it could not be reached.
        state: the state directory, for what sessions wrote.
        now_ms: the clock.
    """

    def __init__(self, open_reader: Callable[[], Reader], state: Path, now_ms: Callable[[], int]) -> None:
        self._open = open_reader
        self._state = state
        self.now_ms = now_ms
        self._reader: Reader | None = None
        self._replica: Replica | None = None
        self._positions = Positions()
        self._thread = ThreadPoolExecutor(1, "reads")

    async def ask(self, question: Callable[..., T], *arguments: Any) -> T:
        """Have the reading thread answer a question."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: self._answer(question, arguments))

    def close(self) -> None:
        """Let go of the truth."""
        self._thread.submit(self._drop)
        self._thread.shutdown(cancel_futures=False)

    def _answer(self, question: Callable[..., T], arguments: tuple[Any, ...]) -> T:
        try:
            return question(*arguments)
        except Unreachable:
            self._drop()
            raise

    def _drop(self) -> None:
        if self._reader is not None:
            self._reader.close()
        self._reader = self._replica = None

    @property
    def reader(self) -> Reader:
        """The truth."""
        if self._reader is None:
            self._reader = self._open()
        return self._reader

    def core(self) -> Core:
        """The core after the latest commit; `Unreachable` while nothing was ever committed."""
        if self._replica is None:
            self._replica = Replica(self.reader)
        core = self._replica.catch_up()
        if core is None:
            raise Unreachable("the scheduler has not begun yet: its journal is empty", "fairtier up")
        return core

    # -- sessions ------------------------------------------------------------------------------------------------

    def queue(self) -> list[Json]:
        """Sessions that wait, in the order in which they would be served; then those that an operator holds."""
        found = self._listed(self.reader.sessions(states=WAITING))
        return sorted(found, key=lambda entry: (entry["position"] is None, entry["position"] or 0))

    def sessions(self, states: tuple[str, ...], user: str | None, limit: int) -> list[Json]:
        """Sessions, oldest first; without states those that have not ended."""
        return self._listed(self.reader.sessions(states=states or LIVE, user=user, limit=min(limit, MOST_ROWS)))

    def _listed(self, found: list[Row]) -> list[Json]:
        waits = any(row["state"] == State.QUEUED for row in found)
        core = self.core() if waits else None
        places = self._positions.of(core) if core is not None else {}
        codes = words.WaitCodes(core)
        return [rows.session_json(row, places.get(row["session"]), codes.of(row)) for row in found]

    def session(self, session: str) -> Json:
        """One session with everything known of it."""
        row = self._row(session)
        url = (
            session_files.notebook_url(self._state, session) if row["notebook"] and row["state"] == "running" else None
        )
        return self._listed([row])[0] | rows.session_details(row) | {"url": url}

    def why(self, session: str) -> Json:
        """Why a session is where it is, and what would change it."""
        row = self._row(session)
        decisions = [rows.stored(decision) for decision in self.reader.decisions(session=session)]
        appeals = self.reader.appeals(user=row["user"])
        core = self.core()
        at = self._positions.of(core) if row["state"] == State.QUEUED else None
        answer = words.why(core, row, decisions, self.now_ms(), at, appeals=appeals)
        return answer | {"policy_version": self._version()}

    def log(self, session: str, offset: int, limit: int) -> session_files.Piece:
        """A piece of a session's output."""
        self._row(session)
        return session_files.read_log(self._state, session, offset, limit)

    def _row(self, session: str) -> Row:
        row = self.reader.session(session)
        if row is None:
            raise NotFound(f"no session {session}", "fairtier sessions --all lists every one")
        return row

    # -- users ---------------------------------------------------------------------------------------------------

    def shares(self) -> list[Json]:
        """Every user's account and place, best first."""
        return accounts.shares(self.core())

    def usage(self, user: str | None, since_s: int) -> Json:
        """GPU-hours by user in the last `since_s` seconds."""
        now_ms = self.now_ms()
        since_ms = max(0, now_ms - since_s * 1000)
        if user is not None and user not in {row["user"] for row in self.reader.users()}:
            raise NotFound(f"no user {user}", "fairtier user list")
        found = self.reader.sessions(user=user, since_ms=since_ms)
        return {"since": rows.utc(since_ms), "users": accounts.usage(self.core(), found, user, since_ms, now_ms)}

    def users(self) -> list[Json]:
        """Every user's record."""
        now_ms, ends = self.now_ms(), self.core().memberships.of
        return [rows.user_json(row, now_ms) | membership_json(ends.get(row["user"])) for row in self.reader.users()]

    # -- hosts ---------------------------------------------------------------------------------------------------

    def hosts(self) -> list[Json]:
        """Every host."""
        core, now_ms = self.core(), self.now_ms()
        return [cluster.host_json(core, row, now_ms) for row in self.reader.hosts()]

    def host(self, host: str) -> Json:
        """One host with its GPUs and what they do."""
        row = next((row for row in self.reader.hosts() if row["host"] == host), None)
        if row is None:
            raise NotFound(f"no host {host}", "fairtier host list")
        core = self.core()
        return cluster.host_json(core, row, self.now_ms()) | {"devices": cluster.gpus_json(core, host)}

    # -- the calendar --------------------------------------------------------------------------------------------

    def calendar(self, everything: bool) -> list[Json]:
        """What is agreed, earliest first; with `everything` also what is over or was removed, from the record."""
        core, now_ms = self.core(), self.now_ms()
        live = {e.id: e for e in core.view.calendar.entries.values() if e.until_ms > now_ms}
        found = [entry_json(entry, core.params, now_ms) for entry in live.values()]
        if everything:
            found += past_entries(map(rows.stored, self.reader.decisions(user="")), live, core.params, now_ms)
        return sorted(found, key=lambda entry: (entry["from"], entry["until"], entry["entry"]))

    # -- the rest ------------------------------------------------------------------------------------------------

    def history(self, session: str | None, user: str | None, since_s: int | None, limit: int) -> list[Json]:
        """Decisions, oldest first."""
        since_ms = 0 if since_s is None else max(0, self.now_ms() - since_s * 1000)
        found = self.reader.decisions(session=session, user=user, since_ms=since_ms, limit=min(limit, MOST_ROWS))
        return [rows.decision_json(row) | {"text": words.sentence(rows.stored(row))} for row in found]

    def tasks(self) -> list[Json]:
        """Background work, oldest first."""
        return [rows.task_json(row) for row in self.reader.tasks()]

    def policy(self) -> Json:
        """What is in force, and the figures it counts with now."""
        core, known = self.core(), self.reader.policies()
        return policy_view.policy_json(core, known[-1] if known else None)

    def _version(self) -> int | None:
        """Of the policy in force."""
        return max((row["version"] for row in self.reader.policies()), default=None)

    def versions(self) -> list[Json]:
        """Every version of the policy, oldest first, with the number of decisions made under it."""
        counts = self.reader.decisions_by_version()
        return [rows.version_json(row, counts.get(row["version"], 0)) for row in self.reader.policies()]

    def appeals(self, states: tuple[str, ...], user: str | None) -> list[Json]:
        """Appeals, oldest first."""
        return [rows.appeal_json(row) for row in self.reader.appeals(user=user, states=states)]

    def status(self) -> Json:
        """The instance on one page."""
        core = self.core()
        counts = dict.fromkeys(LIVE, 0)
        for session in core.sessions.values():
            counts[session.state.value] += 1
        return {
            "at": rows.utc(self.now_ms()),
            "state_dir": str(self._state),
            "policy": core.params.name or core.params.policy,
            "policy_version": self._version(),
            "last_event_at": rows.utc(core.now_ms),
            "journal_seq": self.reader.last_seq(),
            "sessions": counts,
            "gpus": {"total": core.cluster.total_m / WHOLE_M, "free": core.cluster.free_m / WHOLE_M},
            "hosts": cluster.host_counts(core),
            "users": len(core.ledger.users),
            "announcements": announcements(core.view.calendar.entries.values(), self.now_ms()),
        }
