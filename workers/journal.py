"""What a worker must not forget when it dies: which commands it has obeyed, and which sessions it has.

A command is written down before it is acted on, all that were read together in one commit, so that the same command
delivered again, or read again after a restart, is answered and not repeated. SQLite, on the host's own disk.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from workers.protocol import Result, encode, read_command
from workers.session import Session

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from workers.protocol import Forget, Notice, Start, Stop, Throttle

    AnyCommand = Start | Throttle | Notice | Stop | Forget

KEEP_MS = 24 * 3_600_000
"""Obeyed actions are known for so long; commands expire much sooner."""
_BUSY_S = 5.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS worker (one INTEGER PRIMARY KEY CHECK (one = 1), epoch INTEGER NOT NULL);
INSERT OR IGNORE INTO worker VALUES (1, 0);
CREATE TABLE IF NOT EXISTS actions (
    number INTEGER PRIMARY KEY, action TEXT UNIQUE NOT NULL, command TEXT, accepted_ms INTEGER NOT NULL,
    result TEXT, detail TEXT
);
CREATE INDEX IF NOT EXISTS actions_open ON actions (number) WHERE result IS NULL;
CREATE INDEX IF NOT EXISTS actions_by_age ON actions (accepted_ms);
CREATE TABLE IF NOT EXISTS sessions (session TEXT PRIMARY KEY, body TEXT NOT NULL) WITHOUT ROWID;
"""


class JournalError(Exception):
    """The journal cannot be written (disk full, not ours); says why. Nothing was recorded."""


class Accepted(NamedTuple):
    """Commands sorted by what is to be done with them.

    Attributes:
        new: to obey now.
        answered: results of those obeyed before, to be told again.
    """

    new: list[AnyCommand]
    answered: list[Result]


class Journal:
    """One worker's journal; every call that writes is one commit, on disk when it returns."""

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
            self._lock = _locked(path.with_suffix(".lock"))
            self._db = sqlite3.connect(path, timeout=_BUSY_S)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_SCHEMA)
            path.chmod(0o600)
        except (sqlite3.Error, OSError) as error:
            raise JournalError(f"journal {path}: {error}") from error

    def next_epoch(self) -> int:
        """Count one more start of this worker; which one it is."""
        with self._commit() as db:
            (epoch,) = db.execute("UPDATE worker SET epoch = epoch + 1 RETURNING epoch").fetchone()
        return int(epoch)

    def accept(self, commands: Iterable[AnyCommand], now_ms: int) -> Accepted:
        """Write down the new ones of these commands, in one commit; those still at work are in neither list."""
        accepted = Accepted([], [])
        with self._commit() as db:
            for command in commands:
                known = db.execute("SELECT result, detail FROM actions WHERE action = ?", (command.action,)).fetchone()
                if known is None:
                    row = (command.action, encode(command).decode(), now_ms)
                    db.execute("INSERT INTO actions (action, command, accepted_ms) VALUES (?, ?, ?)", row)
                    accepted.new.append(command)
                elif known[0] is not None:
                    accepted.answered.append(Result(action=command.action, result=known[0], detail=known[1]))
        return accepted

    def unfinished(self) -> list[AnyCommand]:
        """Commands written down that have no result, oldest first: a worker before us died over them."""
        rows = self._db.execute("SELECT command FROM actions WHERE result IS NULL ORDER BY number")
        return [read_command(command.encode()) for (command,) in rows]

    def save(
        self,
        sessions: Iterable[Session],
        results: Iterable[Result] = (),
        forgotten: Iterable[str] = (),
        *,
        now_ms: int = 0,
    ) -> None:
        """Write sessions as they are now and what became of commands (their text is then not needed any more).

        A command refused because it could not be written down is written down here, late, so that it stays refused.
        """
        with self._commit() as db:
            db.executemany(
                "INSERT OR REPLACE INTO sessions VALUES (?, ?)", [(s.name, json.dumps(s.row())) for s in sessions]
            )
            db.executemany(
                "INSERT INTO actions (action, result, detail, accepted_ms) VALUES (?, ?, ?, ?) ON CONFLICT (action)"
                " DO UPDATE SET result = excluded.result, detail = excluded.detail, command = NULL",
                [(r.action, r.result, r.detail, now_ms) for r in results],
            )
            db.executemany("DELETE FROM sessions WHERE session = ?", [(name,) for name in forgotten])

    def sessions(self) -> list[Session]:
        """Every session not forgotten."""
        rows = self._db.execute("SELECT body FROM sessions ORDER BY session")
        return [Session.restored(json.loads(body)) for (body,) in rows]

    def prune(self, now_ms: int) -> int:
        """Drop finished actions older than a day; how many."""
        with self._commit() as db:
            return db.execute(
                "DELETE FROM actions WHERE accepted_ms < ? AND result IS NOT NULL", (now_ms - KEEP_MS,)
            ).rowcount

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()
        os.close(self._lock)

    @contextmanager
    def _commit(self) -> Iterator[sqlite3.Connection]:
        """A transaction whose failure is a `JournalError`."""
        try:
            with self._db:
                yield self._db
        except sqlite3.Error as error:
            raise JournalError(f"the worker's journal cannot be written: {error}") from error


def _locked(file: Path) -> int:
    """Hold a lock while this process lives, however it ends: two workers of one host would start things twice."""
    handle = os.open(file, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise JournalError(f"another worker of this host is running: it holds {file}; stop it first") from None
    return handle
