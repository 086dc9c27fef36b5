"""A consistent copy of a database that is in use, and putting one back.

Whatever appears under its final name is whole and checked: it is written beside it first, and renamed.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

from sqlalchemy.exc import DBAPIError

from scheduler.adapters import schema
from scheduler.adapters.database import reader, telling
from scheduler.errors import BadInput, FairTierError, NotFound, Refused

if TYPE_CHECKING:
    from collections.abc import Iterator

_COMPANIONS = ("-wal", "-shm")
"""Files that SQLite keeps beside a database in use."""


class Copied(NamedTuple):
    """What was copied, and where the file that it replaced is now (restore only)."""

    file: Path
    size: int
    sessions: int
    journal_seq: int
    replaced: Path | None = None


def backup(state_db: Path, out_file: Path, *, force: bool = False) -> Copied:
    """Copy a database, in use or not, as it is at one instant.

    Args:
        state_db: what to copy.
        out_file: where to; an existing file is refused unless `force`.

    Raises:
        NotFound: no such database, or no such directory.
        Refused: the file exists, or the source is no FairTier database or a newer one.
        StoreFull: no room for the copy.
    """
    _existing(state_db, "there is no database to back up")
    _writable_place(out_file)
    if out_file.exists() and not force:
        raise Refused(f"{out_file} exists already: nothing was written", "give another name, or --force to replace it")
    with _beside(out_file) as temporary:
        _copy(state_db, temporary)
        copied = _checked(temporary, str(state_db))
        _rename(temporary, out_file)
    return copied._replace(file=out_file)


def restore(file: Path, state_db: Path, *, force: bool = False) -> Copied:
    """Put a backup in the place of a database that nobody uses.

    Args:
        file: a backup; it stays as it is.
        state_db: the database; an existing one is refused unless `force`, which keeps it as `NAME.before-restore`.

    Raises:
        NotFound: no such backup.
        BadInput: it is damaged, or no FairTier database.
        Refused: there is a database already, or the backup is of a newer version.
        StoreFull: no room for the copy.
    """
    _existing(file, "there is no such backup")
    _writable_place(state_db)
    if state_db.exists() and not force:
        raise Refused(
            f"{state_db} exists already: nothing was changed", "--force replaces it and keeps it as .before-restore"
        )
    with _beside(state_db) as temporary:
        _copy(file, temporary)
        copied = _checked(temporary, str(file))
        _free_lease(temporary)
        replaced = _set_aside(state_db) if state_db.exists() else None
        _rename(temporary, state_db)
    return copied._replace(file=state_db, replaced=replaced)


def set_aside_unknown(state_db: Path, sessions: Path) -> Path | None:
    """Move folders of sessions that the records do not know: their names will be given again. Where to; None = none.

    Raises:
        FairTierError: one cannot be moved.
    """
    if not sessions.is_dir():
        return None
    with closing(_open(state_db)) as records:
        known = {str(name) for (name,) in records.execute("SELECT session FROM sessions")}
    unknown = [folder for folder in sorted(sessions.iterdir()) if folder.name not in known]
    if not unknown:
        return None
    aside = _unused(sessions.with_name(f"{sessions.name}.before-restore"))
    try:
        aside.mkdir(mode=0o700)
        for folder in unknown:
            folder.rename(aside / folder.name)
    except OSError as error:
        raise FairTierError(f"folders in {sessions} cannot be moved to {aside}: {error.strerror}") from error
    return aside


def _existing(file: Path, otherwise: str) -> None:
    if not file.is_file():
        raise NotFound(f"{file}: {otherwise}", "check the path; --state names the directory of an instance")


def _writable_place(file: Path) -> None:
    if not file.parent.is_dir():
        raise NotFound(f"{file.parent}: no such directory for {file.name}", "make it first")
    if file.is_dir():
        raise BadInput(f"{file} is a directory: a file is expected")


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A new private file in the target's directory, gone at the end unless it was renamed."""
    with telling(target):
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        with telling(target):
            yield temporary
    finally:
        for suffix in ("", *_COMPANIONS, "-journal"):
            temporary.with_name(temporary.name + suffix).unlink(missing_ok=True)


def _open(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=rw", uri=True, isolation_level=None, timeout=10)


def _copy(source: Path, target: Path) -> None:
    """All pages in one step: one state of the source, which its writer need not wait for."""
    with _found_damaged(str(source)), closing(_open(source)) as old, closing(_open(target)) as new:
        old.backup(new)
        # One file without companions, whatever the source used.
        new.execute("PRAGMA journal_mode=DELETE")


@contextmanager
def _found_damaged(name: str) -> Iterator[None]:
    """What SQLite says about a file that it cannot make sense of, as `BadInput`; the store is not at fault."""
    try:
        yield
    except (sqlite3.DatabaseError, DBAPIError) as error:
        cause = error.orig if isinstance(error, DBAPIError) else error
        if getattr(cause, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            raise BadInput(f"{name} is damaged or no database: {cause}", "take another backup") from None
        raise


def _checked(copy: Path, name: str) -> Copied:
    """What a copy holds; refused when it is damaged, somebody else's or newer."""
    with _found_damaged(name), closing(_open(copy)) as connection:
        found = connection.execute("PRAGMA integrity_check(3)").fetchall()
        if found != [("ok",)]:
            raise BadInput(f"{name} is damaged: {'; '.join(str(row[0]) for row in found)}", "take another backup")
        _check_schema(copy, name)
        sessions = connection.execute("SELECT count(*) FROM sessions").fetchone()[0]
        seq = connection.execute("SELECT coalesce(max(seq), 0) FROM journal").fetchone()[0]
    return Copied(copy, copy.stat().st_size, sessions, seq)


def _check_schema(copy: Path, name: str) -> None:
    engine = reader(copy)
    try:
        with engine.begin() as connection:
            found = schema.revision(connection)
            schema.refuse_newer(connection, found, name)
    except Refused as error:
        if type(error) is Refused:
            raise BadInput(f"{name}: {error.message}", error.hint) from None
        raise
    finally:
        engine.dispose()
    if found is None:
        raise BadInput(f"{name} is no FairTier database: it has no tables", "take another file")


def _free_lease(copy: Path) -> None:
    """The leader of the time of the backup is no more; its lease must not keep a new one waiting."""
    with closing(_open(copy)) as connection:
        connection.execute("UPDATE leader SET expires_ms = 0")


def _set_aside(state_db: Path) -> Path:
    """Keep the database that is replaced under another name, and take its log away.

    A log left behind would be taken for the new database's. A sound one is merged first, so that there is none.
    """
    try:
        with closing(_open(state_db)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except sqlite3.DatabaseError:
        pass  # damaged: kept as it is, log included
    kept = _unused(state_db.with_name(state_db.name + ".before-restore"))
    os.link(state_db, kept)
    for suffix in _COMPANIONS:
        companion = state_db.with_name(state_db.name + suffix)
        if companion.exists():
            companion.rename(kept.with_name(kept.name + suffix))
    return kept


def _unused(path: Path) -> Path:
    """The path, or with a number after it when it is taken."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}.{number}")
    return free


def _rename(temporary: Path, target: Path) -> None:
    """Make it the target, at once and for good: on disk before and after."""
    _sync(temporary)
    temporary.replace(target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    except OSError as error:
        raise FairTierError(f"{path} may not be on disk: {error.strerror}") from error
    finally:
        os.close(handle)
