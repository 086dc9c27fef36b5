"""The SQL store keeps what it promised through kills, full disks, foreign files and newer versions of itself."""

from __future__ import annotations

import json
import os
import random
import re
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from scheduler.adapters import database, schema
from scheduler.adapters.sql_reader import SqlReader
from scheduler.adapters.sql_store import PRUNED_AT_ONCE, SqlStore
from scheduler.adapters.tables import METADATA
from scheduler.errors import BadInput, FairTierError, Refused
from scheduler.ports import NewerDatabase, StoreDown, StoreFull
from scheduler.requests import Answer
from tests.contract import world as w
from tests.contract.world import NOW_MS, Clock, batch
from tests.scheduler.adapters import crashing

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[3]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "fairtier.db"


@pytest.fixture
def store(path: Path) -> Iterator[SqlStore]:
    made = SqlStore(path, Clock())
    made.lead("one")
    yield made
    made.close()


def _tampered(path: Path, sql: str) -> None:
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(sql)
    connection.close()


# -- kills -------------------------------------------------------------------------------------------------------------


def _killed(path: Path, fault: str) -> list[dict[str, object]]:
    command = [sys.executable, "-m", "tests.scheduler.adapters.crashing", str(path), fault]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    found: list[dict[str, object]] = json.loads(done.stdout)
    return found


def test_a_commit_killed_at_any_statement_is_whole_or_absent(path: Path) -> None:
    found = _killed(path, "none")
    assert len(found) > 12, "one of everything takes more statements than that"
    assert [entry["killed"] for entry in found] == [True] * (len(found) - 1) + [False]
    assert all(entry["counts"] == [0] * 12 for entry in found[:-1])
    assert found[-1]["counts"] == [1] * 12


def test_a_store_without_transactions_would_be_found_out(path: Path) -> None:
    assert any(len(set(entry["counts"])) > 1 for entry in _killed(path, "autocommit"))  # type: ignore[call-overload]


@pytest.mark.slow
def test_what_was_reported_committed_survives_kills_at_random_moments(path: Path) -> None:
    choice = random.Random(1)
    command = [sys.executable, "-m", "tests.scheduler.adapters.crashing", str(path), "endless"]
    for _ in range(5):
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            told = int(process.stdout.readline())
            time.sleep(choice.uniform(0, 0.2))
            process.kill()
            told = max([told, *map(int, process.stdout.read().split("\n")[:-1])])
        store = SqlStore(path, Clock())
        counts = crashing.counts(store)
        store.close()
        assert len(set(counts)) == 1
        assert told <= counts[0] <= told + 1


# -- disks -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root, as which CI runs")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "fairtier-test", str(disk)], check=True)
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def _fill(disk: Path) -> Path:
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError:
            pass
    return ballast


def _commit_until_full(store: SqlStore) -> int:
    for number in range(1, 10_000):
        try:
            store.commit(batch(lines=["x" * 1000], sessions=w.sessions(f"s-{number}")))
        except StoreFull:
            return number - 1
    raise AssertionError("the disk was never full")


def test_a_full_disk_refuses_and_heals(small_disk: Path) -> None:
    store = SqlStore(small_disk / "fairtier.db", Clock())
    store.lead("one")
    ballast = _fill(small_disk)
    done = _commit_until_full(store)
    for _ in range(3):
        with pytest.raises(StoreFull, match=f"no room in {small_disk} for fairtier.db: nothing was written"):
            store.commit(batch(lines=["x" * 100_000]))
    assert store.last_seq() == len(store.sessions()) == done, "what was accepted can still be read"
    ballast.unlink()
    store.commit(batch(lines=["after"]))
    assert [number for number, _ in store.past().lines] == list(range(1, done + 2))
    store.close()


def test_a_store_opened_on_a_full_disk_works_when_there_is_room(small_disk: Path) -> None:
    ballast = _fill(small_disk)
    with pytest.raises(StoreFull, match="no room in"):
        SqlStore(small_disk / "fairtier.db", Clock())
    ballast.unlink()
    store = SqlStore(small_disk / "fairtier.db", Clock())
    store.lead("one")
    store.commit(batch(lines=["a"]))
    store.close()


def test_a_full_disk_at_the_start_of_a_full_store(small_disk: Path) -> None:
    path = small_disk / "fairtier.db"
    SqlStore(path, Clock()).close()
    ballast = _fill(small_disk)
    with pytest.raises(StoreFull):
        SqlStore(path, Clock()).lead("one")
    ballast.unlink()
    store = SqlStore(path, Clock())
    assert store.lead("one") == 1
    store.close()


# -- files -------------------------------------------------------------------------------------------------------------


def test_records_are_readable_by_their_owner_alone(store: SqlStore) -> None:
    files = [store.path, *store.path.parent.glob("fairtier.db-*")]
    assert len(files) == 3
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


def test_commits_are_synced_to_a_write_ahead_log(store: SqlStore) -> None:
    assert store._connection is not None
    cursor = store._connection.connection.cursor()
    pragmas = [cursor.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]
    assert pragmas == ["wal", 2]


def test_a_database_is_named_by_path_or_url(path: Path) -> None:
    assert database.path_of(path) == database.path_of(str(path)) == database.path_of(f"sqlite:///{path}") == path
    assert database.path_of("sqlite:///fairtier.db") == database.path_of("fairtier.db") == Path.cwd() / "fairtier.db"


@pytest.mark.parametrize("url", ["postgresql://host/db", "sqlite://", "sqlite:///", "mysql://x"])
def test_other_databases_are_refused(url: str) -> None:
    with pytest.raises(BadInput, match="keeps its records in SQLite"):
        SqlStore(url, Clock())


def test_odd_characters_in_the_path(tmp_path: Path) -> None:
    directory = tmp_path / "100% ?mode=ro&#\u00fc b"
    directory.mkdir()
    store = SqlStore(directory / "fairtier.db", Clock())
    store.lead("one")
    store.commit(batch(lines=["a"]))
    store.close()
    assert sorted(file.name for file in directory.iterdir()) == ["fairtier.db"]


def test_no_directory_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreDown, match="No such file or directory"):
        SqlStore(tmp_path / "absent" / "fairtier.db", Clock())


def test_a_reader_makes_no_database(path: Path) -> None:
    with pytest.raises(StoreDown, match="unable to open"):
        SqlReader(path)
    assert not path.exists()


def test_a_database_that_goes_away_does_not_come_back_empty(store: SqlStore) -> None:
    store.commit(batch(lines=["a"]))
    kept = store.path.rename(store.path.with_suffix(".kept"))
    for _ in range(2):
        with pytest.raises(StoreDown, match="No such file"):
            store.commit(batch(lines=["b"]))
    assert not store.path.exists()
    kept.rename(store.path)
    store.commit(batch(lines=["c"]))
    assert [line for _, line in store.past().lines] == ["a", "c"]


def test_a_database_that_was_replaced_is_noticed(store: SqlStore, tmp_path: Path) -> None:
    store.commit(batch(lines=["a"]))
    other = SqlStore(tmp_path / "other.db", Clock())
    other.close()
    (tmp_path / "other.db").rename(store.path)
    with pytest.raises(StoreDown, match="was replaced"):
        store.commit(batch(lines=["b"]))


def test_a_database_held_by_another_writer_is_down_then_works(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_S", 0.1)
    store._drop()
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreDown, match="database is locked") as caught:
        store.commit(batch(lines=["a"]))
    assert "another program has held the database" in str(caught.value.hint)
    other.execute("ROLLBACK")
    other.close()
    store.commit(batch(lines=["a"]))


def test_a_file_that_is_no_database(path: Path) -> None:
    path.write_text("hello " * 1000)
    with pytest.raises(StoreDown, match="not a database") as caught:
        SqlStore(path, Clock())
    assert "fairtier restore" in str(caught.value.hint)


def test_somebody_elses_database_is_left_alone(path: Path) -> None:
    _tampered(path, "CREATE TABLE recipes (name TEXT)")
    with pytest.raises(Refused, match="no FairTier database: its tables are recipes"):
        SqlStore(path, Clock())
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("recipes",)]
    connection.close()


def test_a_value_that_no_column_takes_is_refused(store: SqlStore) -> None:
    with pytest.raises(FairTierError, match="a row that does not fit"):
        store.commit(batch(lines=["a"], sessions=w.sessions("s-1", user=None)))
    with pytest.raises(FairTierError, match="a row that does not fit"):
        store.commit(batch(lines=["a"], sessions=w.sessions("s-1", user={"a": 1})))
    store.commit(batch(lines=["b"]))
    assert [line for _, line in store.past().lines] == ["b"]


def test_the_first_result_of_a_command_stays(store: SqlStore) -> None:
    store.commit(batch(commands=[w.COMMAND], settled=[(w.COMMAND["action"], "done", "first")]))
    store.commit(batch(settled=[(w.COMMAND["action"], "failed", "second")]))
    connection = sqlite3.connect(store.path)
    assert connection.execute("SELECT result, detail FROM commands").fetchall() == [("done", "first")]
    connection.close()


# -- schema ------------------------------------------------------------------------------------------------------------


def test_migrations_make_the_tables(path: Path) -> None:
    SqlStore(path, Clock()).close()
    assert _differences(path) == []
    _tampered(path, "DROP INDEX ix_sessions_user")
    _tampered(path, "ALTER TABLE users DROP COLUMN mail")
    assert len(_differences(path)) == 2, "planted: an index and a column are missing"


def _differences(path: Path) -> list[object]:
    """What would have to be migrated to make a database what the tables say."""
    engine = database.reader(path)
    with engine.connect() as connection:
        options = {"compare_type": True, "compare_server_default": True}
        found: list[object] = compare_metadata(MigrationContext.configure(connection, opts=options), METADATA)
    engine.dispose()
    return found


def test_the_revisions_are_those_of_the_migrations() -> None:
    engine = database.reader(Path("unused"))
    scripts = ScriptDirectory.from_config(schema.alembic_config(engine))  # type: ignore[arg-type]
    assert tuple(script.revision for script in scripts.walk_revisions())[::-1] == schema.REVISIONS


def test_a_database_of_the_first_revision_is_brought_to_ours(path: Path) -> None:
    """What it holds stays; who was never restricted is not."""
    _make(path, "0001")
    _tampered(path, "INSERT INTO users VALUES ('ann', 'bio', 'free', 1.5, 'a@b.example', 7)")
    with pytest.raises(StoreDown, match=f"has the older schema 0001, ours is {schema.HEAD}"):
        SqlReader(path)
    store = SqlStore(path, Clock())
    assert store.users() == [w.USER | {"created_ms": 7, "restricted_until_ms": None}]
    store.close()
    assert _differences(path) == []


def test_decisions_of_before_policy_versions_have_none(path: Path) -> None:
    """A database of the second revision: its decisions stay, and there is no version until the scheduler starts."""
    _make(path, "0002")
    _tampered(path, "INSERT INTO decisions VALUES (1, 7, 's-1', 'ann', 'start', 'order.in-credit', '{}')")
    store = SqlStore(path, Clock())
    store.lead("one")
    store.commit(w.batch(decisions=[w.DECISION], policies=[w.POLICY]))
    assert [row["policy_version"] for row in store.decisions()] == [None, 3]
    assert (store.policies(), store.decisions_by_version()) == ([w.POLICY], {3: 1})
    store.close()
    assert _differences(path) == []


def _make(path: Path, revision: str) -> None:
    """A database as the version with this revision made it."""
    database.create(path)
    engine = database.writer(path)
    with engine.begin() as connection:
        command.upgrade(schema.alembic_config(connection), revision)
        schema._sign(connection, NOW_MS)
    engine.dispose()


def test_a_current_database_is_opened_without_alembic(path: Path) -> None:
    SqlStore(path, Clock()).close()
    program = (
        "import sys; from scheduler.adapters.sql_store import SqlStore; "
        f"SqlStore({str(path)!r}, lambda: 0).lead('x'); print('alembic' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_newer_database_is_refused_by_name(path: Path) -> None:
    SqlStore(path, Clock()).close()
    _tampered(path, "UPDATE alembic_version SET version_num = '9999'")
    _tampered(path, "UPDATE meta SET value = '7.1' WHERE key = 'version'")
    wanted = f"was written by FairTier 7.1 (schema 9999); this is {schema.product()} (schema {schema.HEAD})"
    with pytest.raises(NewerDatabase, match=re.escape(wanted)):
        SqlStore(path, Clock())
    with pytest.raises(NewerDatabase, match=re.escape(wanted)):
        SqlReader(path)


def test_an_empty_file_is_a_database_to_be(path: Path) -> None:
    path.touch()
    with pytest.raises(StoreDown, match="has no tables yet"):
        SqlReader(path)
    SqlStore(path, Clock()).close()
    SqlReader(path).close()


def test_the_database_says_who_made_it(path: Path) -> None:
    SqlStore(path, Clock()).close()
    connection = sqlite3.connect(path)
    found = dict(connection.execute("SELECT key, value FROM meta"))
    connection.close()
    assert found == {"application": "fairtier", "version": schema.product(), "created_ms": str(NOW_MS)}


# -- readers -----------------------------------------------------------------------------------------------------------


def test_a_reader_sees_what_is_committed_and_no_more(store: SqlStore) -> None:
    reader = SqlReader(store.path)
    store.commit(batch(users={"ann": w.USER}, lines=["a"]))
    assert (reader.users(), reader.last_seq()) == ([w.USER], 1)
    with store._write() as connection:
        connection.exec_driver_sql("DELETE FROM users")
        connection.exec_driver_sql("DELETE FROM journal")
        assert (reader.users(), reader.last_seq()) == ([w.USER], 1), "not committed yet, and it does not wait"
    assert (reader.users(), reader.last_seq()) == ([], 0)
    reader.close()


def test_a_reader_cannot_write(store: SqlStore) -> None:
    reader = SqlReader(store.path)
    with pytest.raises(StoreDown, match="readonly"), reader._read() as connection:
        connection.exec_driver_sql("DELETE FROM users")
    reader.close()


def test_a_journal_cut_while_it_is_read_is_no_silent_gap(store: SqlStore) -> None:
    store.commit(batch(checkpoint="head 0"))
    store.commit(batch(lines=["x"] * 1500, checkpoint="head 1500"))
    reading = store.journal()
    assert next(reading) == "head 0"
    assert store.prune(NOW_MS) == 1500
    store.commit(batch(lines=["y"]))
    with pytest.raises(StoreDown, match="lines 1 to 1500 of the journal went"):
        list(reading)


def test_one_prune_takes_a_bounded_part(store: SqlStore) -> None:
    count = PRUNED_AT_ONCE + 10
    store.commit(batch(lines=["x"] * count, checkpoint="head", answers=[Answer(key=f"k{n}") for n in range(count)]))
    assert store.prune(NOW_MS + 1) == 2 * PRUNED_AT_ONCE
    assert list(store.journal()) == ["head"], "what is left of the cut part is not part of the journal"
    assert store.prune(NOW_MS + 1) == 20
    assert store.prune(NOW_MS + 1) == 0


def test_the_lease_is_renewed_without_writing(store: SqlStore) -> None:
    clock = store._clock
    assert isinstance(clock, Clock)
    clock.now_ms += 14_000
    store.renew()
    clock.now_ms += 14_000
    other = SqlStore(store.path, clock)
    with pytest.raises(Refused, match=r"another 1\.0 s"):
        other.lead("two")
    other.close()
