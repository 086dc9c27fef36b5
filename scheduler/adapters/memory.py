"""The store and the bus without a disk or a server, for tests and for runs that nobody needs to keep."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from scheduler.adapters.lease import LEASE_MS, fenced, led
from scheduler.adapters.memory_bus import MemoryBus
from scheduler.adapters.retention import WORTH, Point, beginning, first_needed, superfluous
from scheduler.adapters.tables import whole
from scheduler.errors import FairTierError
from scheduler.ports import Past

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from scheduler.ports import Batch, Row
    from scheduler.requests import Answer

__all__ = ["MemoryBus", "MemoryData", "MemoryStore"]


@dataclass(slots=True, kw_only=True)
class MemoryData:
    """What a database holds. Journal lines and checkpoints by number, answers with the instant of each."""

    journal: dict[int, tuple[int, str]] = field(default_factory=dict)
    checkpoints: dict[int, tuple[int, str]] = field(default_factory=dict)
    rows: dict[str, dict[str, Row]] = field(
        default_factory=lambda: {name: {} for name in ("sessions", "users", "hosts", "tasks", "appeals")}
    )
    decisions: list[Row] = field(default_factory=list)
    commands: dict[str, Row] = field(default_factory=dict)
    answers: dict[str, tuple[int, Answer]] = field(default_factory=dict)
    cursors: dict[str, str] = field(default_factory=dict)
    policies: dict[int, Row] = field(default_factory=dict)
    leader: tuple[str, int, int] = ("", 0, 0)
    command_seq: int = 0


class MemoryStore:
    """`scheduler.ports.Store` on dictionaries, gone with the process.

    Args:
        clock: milliseconds since 1970, for the lease.
        data: of another store, shared as two processes share a database.
    """

    def __init__(self, clock: Callable[[], int], data: MemoryData | None = None) -> None:
        self._clock = clock
        self.data = MemoryData() if data is None else data
        self._token = 0

    def lead(self, holder: str) -> int:
        """Become the leader; the fencing token. `Refused` while another holder's lease lasts."""
        now_ms = self._clock()
        leader, token, expires_ms = self.data.leader
        if leader and leader != holder and expires_ms > now_ms:
            raise led(leader, expires_ms - now_ms, holder)
        self._token = token + 1
        self.data.leader = (holder, self._token, now_ms + LEASE_MS)
        return self._token

    def renew(self) -> None:
        """Lead for another `LEASE_MS`, with nothing to write. `Fenced` when another one leads."""
        self._hold(self._clock() + LEASE_MS)

    def commit(self, batch: Batch) -> None:
        """All or nothing. `Fenced` when the token is stale."""
        self._hold(self._clock() + LEASE_MS)
        rows = {name: _filled(name, getattr(batch, name)) for name in self.data.rows}
        decisions = [whole("decisions", row) for row in batch.decisions]
        commands = [whole("commands", row) for row in batch.commands]
        policies = {row["version"]: dict(whole("policy_versions", row)) for row in batch.policies}
        if not self.data.policies.keys().isdisjoint(policies):
            raise FairTierError(f"policy versions {sorted(policies)}: one of them is on record already")
        # Nothing below can fail: either all of it happens or, above, none.
        self._write_journal(batch)
        for name, changed in rows.items():
            self.data.rows[name].update(changed)
        first = len(self.data.decisions) + 1
        self.data.decisions.extend({"seq": seq} | row for seq, row in enumerate(decisions, start=first))
        self._write_commands(commands, batch.settled)
        for answer in batch.answers:
            self.data.answers.setdefault(answer.key, (batch.now_ms, answer))
        self.data.cursors.update(batch.cursors)
        self.data.policies.update(policies)

    def answer(self, key: str) -> Answer | None:
        """The answer on record for an idempotency key."""
        _, answer = self.data.answers.get(key, (0, None))
        return answer

    def cursors(self) -> dict[str, str]:
        """The last message taken in, by stream."""
        return dict(self.data.cursors)

    def outbox(self) -> list[Row]:
        """Commands not settled, in order."""
        return _copies(row for row in self.data.commands.values() if row["result"] is None)

    def prune(self, before_ms: int) -> int:
        """Drop journal lines, settled commands and answers older than this which nothing needs; how many."""
        self._hold(self._clock() + LEASE_MS)
        data = self.data
        before = len(data.journal) + len(data.commands) + len(data.answers)
        needed = first_needed(self._points(), before_ms)
        if needed is not None:
            data.checkpoints = {seq: entry for seq, entry in data.checkpoints.items() if seq >= needed}
            data.journal = {seq: entry for seq, entry in data.journal.items() if seq > needed}
        data.commands = {
            action: row
            for action, row in data.commands.items()
            if row["result"] is None or row["issued_ms"] >= before_ms
        }
        data.answers = {key: entry for key, entry in data.answers.items() if entry[0] >= before_ms}
        return before - len(data.journal) - len(data.commands) - len(data.answers)

    def past(self, after: int = -1) -> Past:
        """From the newest checkpoint on; with `after` >= 0 and few lines since, only those lines."""
        last = self.last_seq()
        if after >= 0 and 0 <= last - after <= WORTH:
            lines = self._lines(after)
            if len(lines) == last - after:
                return Past(after, None, iter(lines))
        if not self.data.checkpoints:
            return Past(0, None, iter(self._lines(0)))
        seq = max(self.data.checkpoints)
        return Past(seq, self.data.checkpoints[seq][1], iter(self._lines(seq)))

    def last_seq(self) -> int:
        """Number of the last journal line, 0 = none."""
        return max(max(self.data.journal, default=0), max(self.data.checkpoints, default=0))

    def journal(self) -> Iterator[str]:
        """Every line kept, in order, the first one a head line."""
        seq = beginning(self._points(), min(self.data.journal, default=None))
        if seq is not None:
            yield self.data.checkpoints[seq][1]
        yield from (line for _, line in self._lines(seq or 0))

    def recorded(self, since_ms: int) -> Past:
        """From the newest checkpoint at or before an instant on, or from the oldest."""
        found = self._points()
        seq = first_needed(found, since_ms)
        if seq is None:
            seq = beginning(found, min(self.data.journal, default=None))
        head = None if seq is None else self.data.checkpoints[seq][1]
        return Past(seq or 0, head, iter(self._lines(seq or 0)))

    def session(self, session: str) -> Row | None:
        """One session's row."""
        row = self.data.rows["sessions"].get(session)
        return None if row is None else dict(row)

    def sessions(
        self, *, states: Sequence[str] = (), user: str | None = None, since_ms: int = 0, limit: int | None = None
    ) -> list[Row]:
        """Rows of sessions, oldest first; `since_ms`: those not ended before it; `limit`: the newest so many."""
        found = [
            row
            for row in self.data.rows["sessions"].values()
            if (not states or row["state"] in states)
            and user in (None, row["user"])
            and (row["ended_ms"] is None or row["ended_ms"] >= since_ms)
        ]
        found.sort(key=lambda row: (row["submitted_ms"], len(row["session"]), row["session"]))
        return _copies(_newest(found, limit))

    def decisions(
        self, *, session: str | None = None, user: str | None = None, since_ms: int = 0, limit: int | None = None
    ) -> list[Row]:
        """Rows of decisions, oldest first; `limit`: the newest so many."""
        found = [
            row
            for row in self.data.decisions
            if session in (None, row["session"]) and user in (None, row["user"]) and row["at_ms"] >= since_ms
        ]
        return _copies(_newest(found, limit))

    def users(self) -> list[Row]:
        """Rows of users, by name."""
        return self._by_name("users")

    def hosts(self) -> list[Row]:
        """Rows of hosts, by name."""
        return self._by_name("hosts")

    def tasks(self, *, states: Sequence[str] = ()) -> list[Row]:
        """Rows of tasks, oldest first."""
        found = [row for row in self.data.rows["tasks"].values() if not states or row["state"] in states]
        return _copies(sorted(found, key=lambda row: (row["created_ms"], len(row["task"]), row["task"])))

    def policies(self) -> list[Row]:
        """Rows of policy versions, oldest first."""
        return _copies(row for _, row in sorted(self.data.policies.items()))

    def decisions_by_version(self) -> dict[int, int]:
        """Number of decisions on record by the version of the policy in force."""
        return dict(Counter(row["policy_version"] for row in self.data.decisions if row["policy_version"] is not None))

    def appeals(self, *, user: str | None = None, states: Sequence[str] = ()) -> list[Row]:
        """Rows of appeals, oldest first."""
        found = [
            row
            for row in self.data.rows["appeals"].values()
            if user in (None, row["user"]) and (not states or row["state"] in states)
        ]
        return _copies(sorted(found, key=lambda row: (row["filed_ms"], len(row["appeal"]), row["appeal"])))

    def close(self) -> None:
        """Let go of the lease, if it is ours."""
        if self._token and self._token == self.data.leader[1]:
            self._hold(0)
        self._token = 0

    def _hold(self, expires_ms: int) -> None:
        holder, token, _ = self.data.leader
        if not self._token or token != self._token:
            raise fenced()
        self.data.leader = (holder, token, expires_ms)

    def _write_journal(self, batch: Batch) -> None:
        last = self.last_seq()
        lines = enumerate(batch.lines, start=last + 1)
        self.data.journal.update({seq: (batch.now_ms, line) for seq, line in lines})
        if batch.checkpoint is not None:
            self.data.checkpoints[last + len(batch.lines)] = (batch.now_ms, batch.checkpoint)
            for seq in superfluous(self._points()):
                del self.data.checkpoints[seq]

    def _write_commands(self, commands: list[Row], settled: list[tuple[str, str, str]]) -> None:
        for row in commands:
            if row["action"] not in self.data.commands:
                self.data.command_seq += 1
                self.data.commands[row["action"]] = {"seq": self.data.command_seq} | row
        for action, result, detail in settled:
            known = self.data.commands.get(action)
            if known is not None and known["result"] is None:
                known.update(result=result, detail=detail)

    def _points(self) -> list[Point]:
        return [Point(seq, at_ms) for seq, (at_ms, _) in sorted(self.data.checkpoints.items())]

    def _lines(self, after: int) -> list[tuple[int, str]]:
        return [(seq, line) for seq, (_, line) in self.data.journal.items() if seq > after]

    def _by_name(self, name: str) -> list[Row]:
        return _copies(row for _, row in sorted(self.data.rows[name].items()))


def _filled(name: str, rows: dict[str, Row]) -> dict[str, Row]:
    return {key: copy.deepcopy(whole(name, row)) for key, row in rows.items()}


def _copies(rows: Iterable[Row]) -> list[Row]:
    return [dict(row) for row in rows]


def _newest(rows: list[Row], limit: int | None) -> list[Row]:
    return rows if limit is None else rows[max(0, len(rows) - limit) :]
