"""The truth in SQL, written by one leader at a time.

The leader holds a lease, a row with a number that grows with each leader (the fencing token). Every commit begins with
renewing that row under its own token, in the same transaction: who has been replaced writes nothing, however late it
wakes up.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from sqlalchemy import ColumnElement, delete, insert, select

from scheduler.adapters import schema
from scheduler.adapters.database import create, path_of, telling, writer
from scheduler.adapters.lease import LEASE_MS, fenced, led
from scheduler.adapters.retention import first_needed, superfluous
from scheduler.adapters.sql_reader import SqlReader, last_seq, points
from scheduler.adapters.sql_writes import Writes
from scheduler.adapters.tables import table
from scheduler.errors import FairTierError
from scheduler.ports import StoreDown
from scheduler.requests import Answer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sqlalchemy import Connection, Table

    from scheduler import ports
    from scheduler.ports import Batch

__all__ = ["LEASE_MS", "PRUNED_AT_ONCE", "SqlReader", "SqlStore"]

PRUNED_AT_ONCE = 5_000
"""Rows of one table that one `prune` drops at most, so that commits do not wait for it."""

_ANSWERS, _COMMANDS, _CURSORS = table("answers"), table("commands"), table("cursors")
_LEADER, _JOURNAL, _CHECKPOINTS = table("leader"), table("journal"), table("checkpoints")
_OPEN = select(_COMMANDS).where(_COMMANDS.c.result.is_(None)).order_by(_COMMANDS.c.seq)


class SqlStore(SqlReader):
    """`scheduler.ports.Store` on SQLite; makes the database if there is none, migrates an older one.

    Args:
        url_or_path: of the database; its directory must exist.
        clock: milliseconds since 1970, for the lease.

    Raises:
        StoreDown, StoreFull: it cannot be opened or made.
        NewerDatabase: a newer version wrote it.
    """

    def __init__(self, url_or_path: str | Path, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._token = 0
        self._last: int | None = None
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        self._file: tuple[int, int] | None = None
        self.path = path_of(url_or_path)
        create(self.path)
        self._writing = writer(self.path)
        self._writes = Writes(self._writing.dialect)
        try:
            with self._write() as connection:
                schema.prepare(connection, str(self.path), clock())
            super().__init__(self.path)
        except BaseException:
            self._drop()
            raise

    def lead(self, holder: str) -> int:
        """Become the leader; the fencing token. `Refused` while another holder's lease lasts."""
        now_ms = self._clock()
        with self._write() as connection:
            row = connection.execute(select(_LEADER)).first()
            if row is not None and row.holder != holder and row.expires_ms > now_ms:
                raise led(row.holder, row.expires_ms - now_ms, holder)
            token = 1 if row is None else row.token + 1
            connection.execute(delete(_LEADER))
            mine = {"id": 1, "holder": holder, "token": token, "expires_ms": now_ms + LEASE_MS}
            connection.execute(insert(_LEADER).values(mine))
            self._last = last_seq(connection)
        self._token = token
        return token

    def renew(self) -> None:
        """Lead for another `LEASE_MS`, with nothing to write. `Fenced` when another one leads."""
        with self._write() as connection:
            self._renew(connection, self._clock() + LEASE_MS)

    def commit(self, batch: Batch) -> None:
        """All or nothing, on disk when it returns. `StoreFull`, `StoreDown`, or `Fenced` when the token is stale."""
        with self._write() as connection:
            self._renew(connection, self._clock() + LEASE_MS)
            last = last_seq(connection) if self._last is None else self._last
            cursor = connection.connection.cursor()
            last = self._writes.write(cursor, batch, last)
            if batch.checkpoint is not None:
                self._writes.checkpoint(cursor, last, batch.now_ms, batch.checkpoint)
                old = superfluous(points(connection))
                connection.execute(delete(_CHECKPOINTS).where(_CHECKPOINTS.c.seq.in_(old)))
        self._last = last

    def answer(self, key: str) -> Answer | None:
        """The answer on record for an idempotency key."""
        # Asked for each request before it is decided: one statement, without the cost of a transaction around it.
        with self._lock, telling(self.path):
            body = self._writes.answer(self._connected().connection.cursor(), key)
        return None if body is None else Answer.model_validate_json(body)

    def cursors(self) -> dict[str, str]:
        """The last message taken in, by stream."""
        return {row["stream"]: row["id"] for row in self._rows(select(_CURSORS))}

    def outbox(self) -> list[ports.Row]:
        """Commands not settled, in order."""
        return self._rows(_OPEN)

    def prune(self, before_ms: int) -> int:
        """Drop what is older than this and not needed, at most `PRUNED_AT_ONCE` rows of a table; how many.

        The journal is cut at a checkpoint, so that what is kept of it can be replayed. Call again while it returns
        something.
        """
        with self._write() as connection:
            self._renew(connection, self._clock() + LEASE_MS)
            dropped = self._prune_journal(connection, before_ms)
            done = (_COMMANDS.c.issued_ms < before_ms) & _COMMANDS.c.result.is_not(None)
            dropped += _drop_oldest(connection, _COMMANDS, _COMMANDS.c.seq, done)
            return dropped + _drop_oldest(connection, _ANSWERS, _ANSWERS.c.at_ms, _ANSWERS.c.at_ms < before_ms)

    def close(self) -> None:
        """Let go of the lease, if it is ours, and of the connections."""
        if self._token:
            with suppress(FairTierError), self._write() as connection:
                self._renew(connection, 0)
        self._token = 0
        self._drop()
        super().close()

    def _prune_journal(self, connection: Connection, before_ms: int) -> int:
        needed = first_needed(points(connection), before_ms)
        if needed is None:
            return 0
        connection.execute(delete(_CHECKPOINTS).where(_CHECKPOINTS.c.seq < needed))
        return _drop_oldest(connection, _JOURNAL, _JOURNAL.c.seq, _JOURNAL.c.seq <= needed)

    def _renew(self, connection: Connection, expires_ms: int) -> None:
        if not self._writes.renew(connection.connection.cursor(), self._token, expires_ms):
            raise fenced()

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        """A transaction that holds the write lock; rolled back when anything is raised inside."""
        with self._lock, telling(self.path):
            try:
                connection = self._connected()
                with connection.begin():
                    yield connection
            except FairTierError:
                raise
            except BaseException:
                self._drop()  # whatever state the connection is in: the next one begins anew
                raise

    def _connected(self) -> Connection:
        """The write connection, opened if there is none, or refused when its file is not the database any more."""
        found = self.path.stat()
        if self._connection is None:
            self._connection = self._writing.connect()
            self._file = (found.st_dev, found.st_ino)
        elif self._file != (found.st_dev, found.st_ino):
            self._drop()
            raise StoreDown(f"{self.path} was replaced while in use", "it is opened again at the next attempt")
        return self._connection

    def _drop(self) -> None:
        connection, self._connection, self._last = self._connection, None, None
        if connection is not None:
            connection.close()


def _drop_oldest(connection: Connection, of: Table, age: ColumnElement[int], which: ColumnElement[bool]) -> int:
    key = next(iter(of.primary_key))
    oldest = select(key).where(which).order_by(age).limit(PRUNED_AT_ONCE)
    return connection.execute(delete(of).where(key.in_(oldest))).rowcount
