"""Opening the database, and what its errors mean to who calls.

SQLite here: a write-ahead log, so that readers and the one writer do not wait for each other, and `synchronous=FULL`,
so that what is committed is on disk. Transactions are begun by us: a writer's at once for writing, so that two writers
wait for each other instead of failing halfway.
"""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import quote

from sqlalchemy import create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool, QueuePool

from scheduler.errors import BadInput, FairTierError
from scheduler.ports import StoreDown, StoreFull

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection, Engine

BUSY_S = 5.0
"""How long one waits for another's transaction before the store counts as down."""
ROOM = 64 * 1024
"""Bytes; with less free space an I/O error is taken for a full disk (SQLite reports some of them as such)."""


def path_of(url_or_path: str | Path) -> Path:
    """The file of a SQLite database, given as a path or as `sqlite:///PATH`."""
    text = str(url_or_path)
    scheme, separator, rest = text.partition("://")
    if not separator:
        return Path(text).absolute()
    if scheme != "sqlite" or not rest.startswith("/") or len(rest) < 2:
        raise BadInput(
            f"store {scheme}://...: this version keeps its records in SQLite", "give a path, or sqlite:///PATH"
        )
    return Path(rest[1:]).absolute()


def create(path: Path) -> None:
    """Make an empty file for a database that does not exist, readable by its owner alone: command lines are in it."""
    with telling(path):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))


def writer(path: Path) -> Engine:
    """An engine whose transactions lock the database for writing; the file must exist."""
    engine = create_engine("sqlite://", creator=lambda: _connect(path, write=True), poolclass=NullPool)
    event.listen(engine, "begin", _begin_write)
    return engine


def reader(path: Path) -> Engine:
    """An engine that cannot write, whose transactions see one state of the database; for use by several threads."""
    engine = create_engine("sqlite://", creator=lambda: _connect(path, write=False), poolclass=QueuePool, pool_size=4)
    event.listen(engine, "begin", _begin_read)
    return engine


def _begin_write(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _begin_read(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN")


def _connect(path: Path, *, write: bool) -> sqlite3.Connection:
    # mode=rw: a database that has gone must not come back empty.
    uri = f"file:{quote(str(path))}?mode=rw"
    raw = sqlite3.connect(uri, uri=True, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        raw.execute("PRAGMA foreign_keys=ON")
        if write:
            raw.execute("PRAGMA journal_mode=WAL")
            raw.execute("PRAGMA synchronous=FULL")
        else:
            raw.execute("PRAGMA query_only=1")
    except sqlite3.Error:
        raw.close()
        raise
    return raw


@contextmanager
def telling(path: Path) -> Iterator[None]:
    """Turn what SQLite, SQLAlchemy and the operating system raise into `StoreFull` and `StoreDown`."""
    try:
        yield
    except DBAPIError as error:
        _tell(path, error.orig if error.orig is not None else error)
    except (sqlite3.Error, OSError) as error:
        _tell(path, error)


def _tell(path: Path, error: BaseException) -> NoReturn:
    if _means_full(path, error):
        raise StoreFull(
            f"no room in {path.parent} for {path.name}: nothing was written, what was accepted before is safe",
            f"free some space there (df {path.parent}); work goes on by itself",
        ) from error
    if isinstance(error, sqlite3.IntegrityError | sqlite3.ProgrammingError | sqlite3.InterfaceError):
        raise FairTierError(f"{path.name}: a row that does not fit was refused: {error}") from error
    raise StoreDown(f"{path}: {_text(error)}", _hint(error)) from error


def _means_full(path: Path, error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and _free(path) < ROOM)


def _free(path: Path) -> int:
    try:
        return shutil.disk_usage(path.parent).free
    except OSError:
        return ROOM


def _text(error: BaseException) -> str:
    name = getattr(error, "sqlite_errorname", None)
    text = getattr(error, "strerror", None) or str(error)
    return f"{text} ({name})" if name else text


def _hint(error: BaseException) -> str:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return "the file is damaged or no database; `fairtier restore` brings a backup back"
    if code == sqlite3.SQLITE_BUSY:
        return f"another program has held the database for {BUSY_S:.0f} s; end it and try again"
    return "check that the directory is there, writable for this user and its disk sound"
