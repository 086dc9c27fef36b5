"""A backup is whole, of one instant and checked; restoring one never loses what was there."""

from __future__ import annotations

import fcntl
import sqlite3
import stat
import threading
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from fairtier.cli import LazyGroup
from scheduler.adapters.backup import backup, restore, set_aside_unknown
from scheduler.adapters.sql_store import SqlStore
from scheduler.errors import BadInput, FairTierError, NotFound, Refused
from scheduler.ports import NewerDatabase
from tests.contract import world as w
from tests.contract.world import Clock, batch
from tests.scheduler.adapters import crashing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from click.testing import Result


@pytest.fixture
def state(tmp_path: Path) -> Path:
    made = tmp_path / "state"
    made.mkdir()
    return made


@pytest.fixture
def store(state: Path) -> Iterator[SqlStore]:
    made = SqlStore(state / "fairtier.db", Clock())
    made.lead("one")
    for number in range(1, 4):
        made.commit(crashing.batch(number))
    yield made
    made.close()


def _names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def _counts(path: Path) -> list[int]:
    store = SqlStore(path, Clock())
    try:
        return crashing.counts(store)
    finally:
        store.close()


def test_a_copy_of_a_store_in_use_holds_everything(store: SqlStore, tmp_path: Path) -> None:
    out = tmp_path / "copy.db"
    copied = backup(store.path, out)
    assert (copied.file, copied.sessions, copied.journal_seq, copied.size) == (out, 3, 3, out.stat().st_size)
    assert _names(tmp_path) == ["copy.db", "state"]
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    store.commit(crashing.batch(4))
    assert _counts(out) == [3] * 12


def test_a_copy_made_while_commits_go_on_is_of_one_instant(store: SqlStore, tmp_path: Path) -> None:
    stop = threading.Event()

    def write() -> None:
        number = 4
        while not stop.is_set():
            store.commit(crashing.batch(number))
            number += 1

    writing = threading.Thread(target=write)
    writing.start()
    try:
        seen = [backup(store.path, tmp_path / "copy.db", force=True).journal_seq for _ in range(10)]
    finally:
        stop.set()
        writing.join()
    assert seen == sorted(seen)
    assert seen[-1] > seen[0]
    assert _counts(tmp_path / "copy.db") == [seen[-1]] * 12


def test_a_backup_replaces_nothing_unasked(store: SqlStore, tmp_path: Path) -> None:
    out = tmp_path / "copy.db"
    out.write_text("precious")
    with pytest.raises(Refused, match="exists already: nothing was written"):
        backup(store.path, out)
    assert out.read_text() == "precious"
    backup(store.path, out, force=True)
    assert _counts(out) == [3] * 12


def test_a_failed_backup_leaves_nothing(state: Path, tmp_path: Path) -> None:
    damaged = state / "fairtier.db"
    damaged.write_bytes(b"SQLite format 3\0" + b"x" * 5000)
    with pytest.raises(BadInput, match="damaged or no database"):
        backup(damaged, tmp_path / "copy.db")
    with pytest.raises(NotFound, match="no database to back up"):
        backup(state / "absent.db", tmp_path / "copy.db")
    with pytest.raises(NotFound, match="no such directory"):
        backup(damaged, tmp_path / "absent" / "copy.db")
    assert _names(tmp_path) == ["state"]


def test_restore_brings_it_all_back(store: SqlStore, state: Path, tmp_path: Path) -> None:
    backup(store.path, tmp_path / "copy.db")
    store.close()
    new = tmp_path / "new"
    new.mkdir()
    copied = restore(tmp_path / "copy.db", new / "fairtier.db")
    assert (copied.sessions, copied.replaced) == (3, None)
    assert _names(new) == ["fairtier.db"]
    assert _counts(new / "fairtier.db") == [3] * 12


def test_the_lease_of_the_time_of_the_backup_is_nobodys(store: SqlStore, tmp_path: Path) -> None:
    backup(store.path, tmp_path / "copy.db")
    restore(tmp_path / "copy.db", tmp_path / "new.db")
    new = SqlStore(tmp_path / "new.db", Clock())
    assert new.lead("another") == 2
    new.close()


def test_restore_over_a_database_keeps_it(store: SqlStore, state: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy.db"
    backup(store.path, out)
    store.commit(crashing.batch(4))
    store.close()
    with pytest.raises(Refused, match="exists already: nothing was changed"):
        restore(out, store.path)
    kept = state / "fairtier.db.before-restore"
    assert restore(out, store.path, force=True).replaced == kept
    assert _counts(store.path) == [3] * 12
    assert _counts(kept) == [4] * 12
    restore(out, store.path, force=True)
    assert _names(state) == ["fairtier.db", "fairtier.db.before-restore", "fairtier.db.before-restore.2"]


def test_a_log_left_by_a_crash_stays_with_its_database(store: SqlStore, state: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy.db"
    backup(store.path, out)
    store.commit(crashing.batch(4))
    crashed = tmp_path / "crashed"
    crashed.mkdir()
    for name in ("fairtier.db", "fairtier.db-wal"):
        (crashed / name).write_bytes((state / name).read_bytes())
    assert (crashed / "fairtier.db-wal").stat().st_size > 0
    restore(out, crashed / "fairtier.db", force=True)
    assert _counts(crashed / "fairtier.db") == [3] * 12
    assert _counts(crashed / "fairtier.db.before-restore") == [4] * 12


def test_folders_of_sessions_that_are_not_in_the_backup_are_set_aside(
    store: SqlStore, state: Path, tmp_path: Path
) -> None:
    """Their names will be given again; those on record stay where they are."""
    known = store.sessions()[0]["session"]
    store.close()
    for name in (known, "s-later"):
        (state / "sessions" / name).mkdir(parents=True)
    aside = set_aside_unknown(state / "fairtier.db", state / "sessions")
    assert aside is not None
    assert _names(aside) == ["s-later"]
    assert _names(state / "sessions") == [known]
    assert set_aside_unknown(state / "fairtier.db", state / "sessions") is None
    assert set_aside_unknown(state / "fairtier.db", tmp_path / "nowhere") is None


def test_a_damaged_database_is_kept_too(store: SqlStore, state: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy.db"
    backup(store.path, out)
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "fairtier.db").write_text("x" * 5000)
    (bad / "fairtier.db-wal").write_text("y" * 5000)
    restore(out, bad / "fairtier.db", force=True)
    assert not (bad / "fairtier.db-wal").exists(), "it would be taken for the new database's log"
    assert _counts(bad / "fairtier.db") == [3] * 12
    assert (bad / "fairtier.db.before-restore").read_text() == "x" * 5000


def _torn(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-8192])


def _overwritten(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.seek(8192)
        opened.write(b"\xff" * 4096)


def _text(file: Path) -> None:
    file.write_text("hello " * 1000)


def _emptied(file: Path) -> None:
    file.write_bytes(b"")


def _gone(file: Path) -> None:
    file.unlink()


def _anothers(file: Path) -> None:
    _change(file, "DROP TABLE meta")


def _newer(file: Path) -> None:
    _change(file, "UPDATE alembic_version SET version_num = '9999'")


def _change(file: Path, sql: str) -> None:
    connection = sqlite3.connect(file)
    with connection:
        connection.execute(sql)
    connection.close()


@pytest.mark.parametrize(
    ("spoil", "error", "text"),
    [
        (_torn, BadInput, "damaged"),
        (_overwritten, BadInput, "damaged"),
        (_text, BadInput, "damaged or no database"),
        (_emptied, BadInput, "it has no tables"),
        (_anothers, BadInput, "no FairTier database"),
        (_newer, NewerDatabase, "schema 9999"),
        (_gone, NotFound, "no such backup"),
    ],
)
def test_what_is_no_sound_backup_is_refused_and_nothing_changed(
    spoil: Callable[[Path], None], error: type[FairTierError], text: str, store: SqlStore, tmp_path: Path
) -> None:
    out = tmp_path / "copy.db"
    backup(store.path, out)
    spoil(out)
    before = _names(tmp_path)
    with pytest.raises(error, match=text):
        restore(out, tmp_path / "new.db")
    assert _names(tmp_path) == before


# -- commands ----------------------------------------------------------------------------------------------------------

LAZY = {name: (f"scheduler.backup_cli:{name}", "") for name in ("backup", "restore")}


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(LazyGroup(lazy=LAZY), [str(argument) for argument in arguments])


def test_the_commands_copy_and_put_back(store: SqlStore, state: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy.db"
    made = _run("backup", out, "--state", state)
    assert made.output == f"wrote {out}: 3 sessions, journal up to line 3, {out.stat().st_size} bytes\n"
    assert _run("backup", out, "--state", state).exit_code == 5
    assert _run("backup", tmp_path / "x.db", "--state", tmp_path).exit_code == 3
    new = tmp_path / "deep" / "new"
    assert _run("restore", out, "--state", new).exit_code == 0
    assert stat.S_IMODE(new.stat().st_mode) == 0o700
    assert _counts(new / "fairtier.db") == [3] * 12
    assert _run("restore", out, "--state", new).exit_code == 5
    again = _run("restore", out, "--state", new, "--force")
    assert "the records from before are" in again.output
    assert _run("restore", tmp_path / "absent", "--state", new, "--force").exit_code == 3


def test_restore_keeps_away_from_a_running_instance(store: SqlStore, state: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy.db"
    backup(store.path, out)
    with (state / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused = _run("restore", out, "--state", state, "--force")
    assert refused.exit_code == 5
    assert f"error: an instance runs on {state}: nothing was changed\nhint: stop it first" in refused.output
    assert _names(state) == ["fairtier.db", "fairtier.db-shm", "fairtier.db-wal", "lock"]


def test_the_state_directory_may_come_from_the_environment(store: SqlStore, state: Path, tmp_path: Path) -> None:
    result = CliRunner(env={"FAIRTIER_STATE": str(state)}).invoke(LazyGroup(lazy=LAZY), ["backup", f"{tmp_path}/c.db"])
    assert result.exit_code == 0, result.output


def test_a_state_directory_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = _run("restore", tmp_path / "file", "--state", tmp_path / "file" / "below")
    assert (result.exit_code, "cannot be used as a state directory" in result.output) == (1, True)


def test_rows_survive_the_way_there_and_back(store: SqlStore, tmp_path: Path) -> None:
    store.commit(batch(sessions={"s-1": w.SESSION}))
    backup(store.path, tmp_path / "a.db")
    restore(tmp_path / "a.db", tmp_path / "b.db")
    new = SqlStore(tmp_path / "b.db", Clock())
    assert new.session("s-1") == w.SESSION
    assert new.outbox() == store.outbox()
    new.close()
