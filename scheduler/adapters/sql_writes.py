"""What each request waits for, as SQL: statements compiled once and run by the driver, with many rows each.

SQLAlchemy writes the SQL, so that it suits the database; running it through SQLAlchemy as well would take longer than
the disk does, and every accepted request waits for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from sqlalchemy import bindparam, select, update
from sqlalchemy.dialects import postgresql, sqlite

from scheduler.adapters.tables import COLUMNS, table, whole

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy import Dialect
    from sqlalchemy.sql import Executable

    from scheduler.ports import Batch, Row

Values = tuple[Any, ...]


class Cursor(Protocol):
    """What is used of a driver's cursor (PEP 249)."""

    @property
    def rowcount(self) -> int:
        """Rows that the last statement changed."""

    def execute(self, sql: str, values: Values, /) -> object:
        """Run a statement."""

    def fetchall(self) -> Sequence[Values]:
        """The rows of the last statement."""

    def executemany(self, sql: str, rows: Sequence[Values], /) -> object:
        """Run a statement for each row."""


class Statement(NamedTuple):
    """SQL, and the names of its values in order."""

    sql: str
    names: tuple[str, ...]

    def run(self, cursor: Cursor, **values: Any) -> int:
        """Run it once; how many rows it changed."""
        cursor.execute(self.sql, tuple(values[name] for name in self.names))
        return cursor.rowcount

    def run_all(self, cursor: Cursor, rows: Iterable[Row]) -> None:
        """Run it for each row, given by name."""
        names = self.names
        if prepared := [tuple([row[name] for name in names]) for row in rows]:
            cursor.executemany(self.sql, prepared)


class Writes:
    """Every statement that a commit needs, for one sort of database."""

    def __init__(self, dialect: Dialect) -> None:
        self._upserts = {
            name: _upsert(name, dialect)
            for name in ("sessions", "users", "hosts", "tasks", "appeals", "cursors", "checkpoints")
        }
        self._firsts = {name: _first(name, dialect) for name in ("commands", "answers")}
        self._appends = {name: _append(name, dialect) for name in ("journal", "decisions", "policy_versions")}
        self._settle = _settle(dialect)
        self._renew = _renew(dialect)
        self._answer = _answer(dialect)

    def answer(self, cursor: Cursor, key: str) -> str | None:
        """The answer on record for a key, as JSON."""
        self._answer.run(cursor, b_key=key)
        rows = cursor.fetchall()  # all: a statement left in the middle would keep a transaction open
        return str(rows[0][0]) if rows else None

    def renew(self, cursor: Cursor, token: int, expires_ms: int) -> bool:
        """Make a lease last until then; False when the token is not the leader's any more."""
        return self._renew.run(cursor, b_token=token, b_expires_ms=expires_ms) == 1

    def write(self, cursor: Cursor, batch: Batch, last: int) -> int:
        """Everything of a batch but its checkpoint.

        Args:
            cursor: in the transaction.
            batch: what to write.
            last: number of the last line of the journal; the new last one is returned.
        """
        if batch.lines:
            rows = [(last + number, batch.now_ms, line) for number, line in enumerate(batch.lines, start=1)]
            cursor.executemany(self._appends["journal"].sql, rows)
        for name, changed in (
            ("sessions", batch.sessions),
            ("users", batch.users),
            ("hosts", batch.hosts),
            ("tasks", batch.tasks),
            ("appeals", batch.appeals),
        ):
            if changed:
                self._upserts[name].run_all(cursor, [whole(name, row) for row in changed.values()])
        self._append_all(cursor, batch)
        return last + len(batch.lines)

    def checkpoint(self, cursor: Cursor, seq: int, at_ms: int, head: str) -> None:
        """Store the state after line `seq`."""
        self._upserts["checkpoints"].run(cursor, seq=seq, at_ms=at_ms, head=head)

    def _append_all(self, cursor: Cursor, batch: Batch) -> None:
        if batch.decisions:
            self._appends["decisions"].run_all(cursor, [whole("decisions", row) for row in batch.decisions])
        if batch.policies:
            self._appends["policy_versions"].run_all(cursor, [whole("policy_versions", row) for row in batch.policies])
        if batch.commands:
            self._firsts["commands"].run_all(cursor, [whole("commands", row) for row in batch.commands])
        if batch.settled:
            settled = [{"b_action": a, "b_result": result, "b_detail": detail} for a, result, detail in batch.settled]
            self._settle.run_all(cursor, settled)
        if batch.answers:
            answers = [{"key": a.key, "at_ms": batch.now_ms, "body": a.model_dump_json()} for a in batch.answers]
            self._firsts["answers"].run_all(cursor, answers)
        if batch.cursors:
            self._upserts["cursors"].run_all(cursor, [{"stream": s, "id": id_} for s, id_ in batch.cursors.items()])


def _compiled(statement: Executable, dialect: Dialect) -> Statement:
    compiled = statement.compile(dialect=dialect)  # type: ignore[attr-defined]
    return Statement(str(compiled), tuple(compiled.positiontup))


def _insert(name: str, dialect: Dialect) -> Any:
    """INSERT with the means of the database for rows that exist already."""
    made = postgresql.insert if dialect.name == "postgresql" else sqlite.insert
    return made(table(name)).values({column: bindparam(column) for column in COLUMNS[name]})


def _append(name: str, dialect: Dialect) -> Statement:
    return _compiled(_insert(name, dialect), dialect)


def _first(name: str, dialect: Dialect) -> Statement:
    """Insert, or leave what is on record as it is."""
    return _compiled(_insert(name, dialect).on_conflict_do_nothing(), dialect)


def _upsert(name: str, dialect: Dialect) -> Statement:
    """Insert, or overwrite the whole row."""
    keys = [column.name for column in table(name).primary_key]
    statement = _insert(name, dialect)
    rest = {column: statement.excluded[column] for column in COLUMNS[name] if column not in keys}
    return _compiled(statement.on_conflict_do_update(index_elements=keys, set_=rest), dialect)


def _settle(dialect: Dialect) -> Statement:
    commands = table("commands")
    statement = update(commands).where(commands.c.action == bindparam("b_action"), commands.c.result.is_(None))
    return _compiled(statement.values(result=bindparam("b_result"), detail=bindparam("b_detail")), dialect)


def _answer(dialect: Dialect) -> Statement:
    answers = table("answers")
    return _compiled(select(answers.c.body).where(answers.c.key == bindparam("b_key")), dialect)


def _renew(dialect: Dialect) -> Statement:
    leader = table("leader")
    statement = update(leader).where(leader.c.token == bindparam("b_token"))
    return _compiled(statement.values(expires_ms=bindparam("b_expires_ms")), dialect)
