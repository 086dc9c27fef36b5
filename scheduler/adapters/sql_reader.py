"""The truth, read from SQL: rows as dictionaries, JSON as the text that was stored."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, func, or_, select

from scheduler.adapters import schema
from scheduler.adapters.database import path_of, reader, telling
from scheduler.adapters.retention import WORTH, Point, beginning, first_needed
from scheduler.adapters.tables import table
from scheduler.ports import Past, StoreDown

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from sqlalchemy import Connection, Select

    from scheduler import ports

_SESSIONS, _DECISIONS, _USERS = table("sessions"), table("decisions"), table("users")
_POLICIES = table("policy_versions")
_APPEALS = table("appeals")
_HOSTS, _TASKS, _JOURNAL, _CHECKPOINTS = table("hosts"), table("tasks"), table("journal"), table("checkpoints")
_LAST = select(
    func.coalesce(select(func.max(_JOURNAL.c.seq)).scalar_subquery(), 0),
    func.coalesce(select(func.max(_CHECKPOINTS.c.seq)).scalar_subquery(), 0),
)
_POINTS = select(_CHECKPOINTS.c.seq, _CHECKPOINTS.c.at_ms).order_by(_CHECKPOINTS.c.seq)
_NEWEST = select(_CHECKPOINTS.c.seq, _CHECKPOINTS.c.head).order_by(_CHECKPOINTS.c.seq.desc()).limit(1)
_PAGE = 1_000
"""Lines of the journal read at once when all of it is asked for."""


class SqlReader:
    """`scheduler.ports.Reader` on a connection that cannot write; several threads may use it.

    Args:
        url_or_path: of the database.

    Raises:
        StoreDown: it cannot be opened, or its scheduler has not prepared it yet.
        NewerDatabase: a newer version wrote it.
    """

    def __init__(self, url_or_path: str | Path) -> None:
        self.path = path_of(url_or_path)
        self._reading = reader(self.path)
        try:
            with self._read() as connection:
                schema.check(connection, str(self.path))
        except BaseException:
            self._reading.dispose()
            raise

    def past(self, after: int = -1) -> Past:
        """From the newest checkpoint on; with `after` >= 0 and few lines since, only those lines."""
        with self._read() as connection:
            last = last_seq(connection)
            if after >= 0 and 0 <= last - after <= WORTH:
                lines = _lines(connection, after)
                if len(lines) == last - after:
                    return Past(after, None, iter(lines))
            newest = connection.execute(_NEWEST).first()
            seq, head = (newest.seq, newest.head) if newest is not None else (0, None)
            return Past(seq, head, iter(_lines(connection, seq)))

    def last_seq(self) -> int:
        """Number of the last journal line, 0 = none."""
        with self._read() as connection:
            return last_seq(connection)

    def journal(self) -> Iterator[str]:
        """Every line kept, in order, the first one a head line; read page by page."""
        with self._read() as connection:
            seq = beginning(points(connection), connection.scalar(select(func.min(_JOURNAL.c.seq))))
            head = connection.scalar(select(_CHECKPOINTS.c.head).where(_CHECKPOINTS.c.seq == seq))
        if head is not None:
            yield head
        yield from (line for _, line in self._pages(seq or 0))

    def recorded(self, since_ms: int) -> Past:
        """From the newest checkpoint at or before an instant on, or the oldest; lines are read page by page."""
        with self._read() as connection:
            found = points(connection)
            seq = first_needed(found, since_ms)
            if seq is None:
                seq = beginning(found, connection.scalar(select(func.min(_JOURNAL.c.seq))))
            head = connection.scalar(select(_CHECKPOINTS.c.head).where(_CHECKPOINTS.c.seq == seq))
        return Past(seq or 0, head, self._pages(seq or 0))

    def session(self, session: str) -> ports.Row | None:
        """One session's row."""
        rows = self._rows(select(_SESSIONS).where(_SESSIONS.c.session == session))
        return rows[0] if rows else None

    def sessions(
        self, *, states: Sequence[str] = (), user: str | None = None, since_ms: int = 0, limit: int | None = None
    ) -> list[ports.Row]:
        """Rows of sessions, oldest first; `since_ms`: those not ended before it; `limit`: the newest so many."""
        found = select(_SESSIONS)
        if states:
            found = found.where(_SESSIONS.c.state.in_(states))
        if user is not None:
            found = found.where(_SESSIONS.c.user == user)
        if since_ms > 0:
            found = found.where(or_(_SESSIONS.c.ended_ms.is_(None), _SESSIONS.c.ended_ms >= since_ms))
        return self._newest(found, _by_age(_SESSIONS.c.submitted_ms, _SESSIONS.c.session), limit)

    def decisions(
        self, *, session: str | None = None, user: str | None = None, since_ms: int = 0, limit: int | None = None
    ) -> list[ports.Row]:
        """Rows of decisions, oldest first; `limit`: the newest so many."""
        found = select(_DECISIONS)
        if session is not None:
            found = found.where(_DECISIONS.c.session == session)
        if user is not None:
            found = found.where(_DECISIONS.c.user == user)
        if since_ms > 0:
            found = found.where(_DECISIONS.c.at_ms >= since_ms)
        return self._newest(found, [_DECISIONS.c.seq], limit)

    def users(self) -> list[ports.Row]:
        """Rows of users, by name."""
        return self._rows(select(_USERS).order_by(_USERS.c.user))

    def hosts(self) -> list[ports.Row]:
        """Rows of hosts, by name."""
        return self._rows(select(_HOSTS).order_by(_HOSTS.c.host))

    def tasks(self, *, states: Sequence[str] = ()) -> list[ports.Row]:
        """Rows of tasks, oldest first."""
        found = select(_TASKS).where(_TASKS.c.state.in_(states)) if states else select(_TASKS)
        return self._rows(found.order_by(*_by_age(_TASKS.c.created_ms, _TASKS.c.task)))

    def policies(self) -> list[ports.Row]:
        """Rows of policy versions, oldest first."""
        return self._rows(select(_POLICIES).order_by(_POLICIES.c.version))

    def decisions_by_version(self) -> dict[int, int]:
        """Number of decisions on record by the version of the policy in force."""
        version = _DECISIONS.c.policy_version
        counted = select(version, func.count().label("number")).where(version.is_not(None)).group_by(version)
        return {row["policy_version"]: row["number"] for row in self._rows(counted)}

    def appeals(self, *, user: str | None = None, states: Sequence[str] = ()) -> list[ports.Row]:
        """Rows of appeals, oldest first."""
        found = select(_APPEALS)
        if states:
            found = found.where(_APPEALS.c.state.in_(states))
        if user is not None:
            found = found.where(_APPEALS.c.user == user)
        return self._rows(found.order_by(*_by_age(_APPEALS.c.filed_ms, _APPEALS.c.appeal)))

    def close(self) -> None:
        """Let go of the connections."""
        self._reading.dispose()

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        """A transaction that sees one state of the database."""
        with telling(self.path), self._reading.begin() as connection:
            yield connection

    def _rows(self, found: Select[Any]) -> list[ports.Row]:
        with self._read() as connection:
            result = connection.execute(found)
            names = tuple(result.keys())
            return [dict(zip(names, row, strict=True)) for row in result]

    def _newest(self, found: Select[Any], age: list[ColumnElement[Any]], limit: int | None) -> list[ports.Row]:
        if limit is None:
            return self._rows(found.order_by(*age))
        return self._rows(found.order_by(*(column.desc() for column in age)).limit(limit))[::-1]

    def _pages(self, seq: int) -> Iterator[tuple[int, str]]:
        """The lines after one, to the last."""
        while lines := self._page(seq):
            if lines[0][0] != seq + 1:
                raise StoreDown(
                    f"{self.path}: lines {seq + 1} to {lines[0][0] - 1} of the journal went while it was read"
                )
            yield from lines
            seq = lines[-1][0]

    def _page(self, after: int) -> list[tuple[int, str]]:
        with self._read() as connection:
            return _lines(connection, after, _PAGE)


def _by_age(at_ms: ColumnElement[int], name: ColumnElement[str]) -> list[ColumnElement[Any]]:
    """Oldest first; of the same instant in the order of the numbers that names end in: s-9 before s-10."""
    return [at_ms, func.length(name), name]


def last_seq(connection: Connection) -> int:
    """Number of the last line of the journal; with every line pruned, of the one that the checkpoint is after."""
    line, checkpoint = connection.execute(_LAST).one()
    return max(int(line), int(checkpoint))


def points(connection: Connection) -> list[Point]:
    """The checkpoints, oldest first."""
    return [Point(*row) for row in connection.execute(_POINTS)]


def _lines(connection: Connection, after: int, limit: int | None = None) -> list[tuple[int, str]]:
    found = select(_JOURNAL.c.seq, _JOURNAL.c.line).where(_JOURNAL.c.seq > after).order_by(_JOURNAL.c.seq)
    return [(seq, line) for seq, line in connection.execute(found.limit(limit))]
