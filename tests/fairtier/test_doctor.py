"""The doctor finds what is wrong, says what to do, exits 1 for a FAIL only, and changes nothing."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks.live_instance import LiveInstance
from fairtier import doctor_instance, doctor_machine, doctor_place, import_names
from fairtier.cli import main
from fairtier.doctor import examine
from fairtier.doctor_place import mount_of
from fairtier.finding import FAIL, OK, WARN, Finding, Result, made
from fairtier.import_names import foreign_names
from fairtier.instance_lock import InstanceLock
from policies.catalogue import make_policy
from scheduler.adapters.sql_store import SqlStore
from scheduler.core import Core
from scheduler.journal import head_line
from scheduler.policy_files import read_policy
from scheduler.ports import Batch
from scheduler.state_dir import api_socket, database


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "s"
    folder.mkdir(mode=0o700)
    return folder


def found(state: Path, check: str) -> Finding:
    (finding,) = (finding for finding in examine(state) if finding.check == check)
    return finding


def records(state: Path) -> SqlStore:
    """Records as a scheduler with the demo's policy makes them."""
    store = SqlStore(database(state), lambda: 0)
    store.lead("test")
    store.commit(Batch(0, checkpoint=head_line(Core(make_policy(read_policy("demo")), 0))))
    return store


def content(folder: Path) -> dict[str, tuple[int, bytes]]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_a_directory_that_is_not_there_is_no_failure_and_is_not_made(tmp_path: Path) -> None:
    """Before the first start: nothing FAILs here, and nothing is left behind."""
    result = CliRunner().invoke(main, ["doctor", "--state", str(tmp_path / "a" / "s"), "-o", "json"])
    document = json.loads(result.output)
    assert [check for check in document["checks"] if check["level"] == FAIL] == []
    assert (result.exit_code, document["ok"], document["schema"]) == (0, True, 1)
    names = [name for name, _ in (*doctor_machine.MACHINE, *doctor_place.PLACE, *doctor_instance.INSTANCE)]
    assert [check["check"] for check in document["checks"]] == [
        name for name in names if name not in ("api", "scheduler", "policy")
    ]
    assert list(tmp_path.iterdir()) == []


def test_the_table_has_a_line_for_each_check(state: Path) -> None:
    """Check, level, what was found, what to do; exit 1 with a FAIL."""
    (state / "notify.toml").write_text("levels = 3\n")
    result = CliRunner().invoke(main, ["doctor", "--state", str(state)])
    assert result.exit_code == 1
    assert result.output.splitlines()[0].split() == ["check", "level", "found", "do"]
    assert len(result.output.splitlines()) == 1 + len(examine(state))
    assert "FAIL" in next(line for line in result.output.splitlines() if line.startswith("notices"))


def test_the_versions_of_python_are_those_of_the_distribution() -> None:
    """pyproject.toml says it for pip, the doctor for people."""
    (major, oldest), (_, newest) = doctor_machine.OLDEST_PYTHON, doctor_machine.NEWEST_PYTHON
    needed = metadata.metadata("fairtier")["Requires-Python"]
    assert set(needed.split(",")) == {f">={major}.{oldest}", f"<{major}.{newest + 1}"}


@pytest.mark.parametrize(
    ("limit", "value", "check", "level"),
    [
        ("NEWEST_PYTHON", (3, 10), "python", FAIL),
        ("OLDEST_KERNEL", (99, 0), "kernel", WARN),
        ("OLDEST_SQLITE", (99, 0), "sqlite", FAIL),
        ("OLDEST_YEAR", 9999, "clock", FAIL),
        ("ROOM_WARN", 2**80, "space", WARN),
        ("SLOW_COMMIT_MS", 0.0, "commits", WARN),
        ("PROC", Path("/nowhere"), "schedstat", WARN),
    ],
)
def test_what_is_past_a_limit_is_said(
    state: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: object, check: str, level: str
) -> None:
    """Each limit counts: with one that nothing here can meet the check speaks up, and says what to do."""
    assert found(state, check).level == OK
    for module in (doctor_machine, doctor_place):
        if hasattr(module, limit):
            monkeypatch.setattr(module, limit, value)
    finding = found(state, check)
    assert finding.level == level
    assert finding.do


def test_too_little_room_is_a_failure(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below the lower limit nothing can be promised."""
    monkeypatch.setattr(doctor_place, "ROOM_WARN", 2**80)
    monkeypatch.setattr(doctor_place, "ROOM_FAIL", 2**79)
    assert found(state, "space").level == FAIL


def test_a_check_that_breaks_is_a_line_like_others() -> None:
    """The rest of the report is worth having whatever happens to one check."""

    def breaks() -> Result:
        raise ZeroDivisionError("ours")

    def speaks() -> Result:
        return Result(OK, "two\nlines")

    assert list(made([("a", breaks), ("b", lambda: None), ("c", speaks)])) == [
        ("a", FAIL, "ZeroDivisionError: ours", ""),
        ("c", OK, "two lines", ""),
    ]


# -- import names ------------------------------------------------------------------------------------------------------


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Python, started in a folder: what is in there comes first."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=folder)


def test_the_import_names_are_ours() -> None:
    """In this environment, that is."""
    assert foreign_names() == []


def test_foreign_packages_under_our_names_are_found(tmp_path: Path) -> None:
    """Package or module, with the distribution it came with; even where nothing else of ours can be imported."""
    for name in ("scheduler", "policies"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    (tmp_path / "workers.py").touch()
    (tmp_path / "celery_like-1.0.dist-info").mkdir()
    (tmp_path / "celery_like-1.0.dist-info" / "RECORD").write_text("workers.py,,0\n")
    code = "import json\nfrom fairtier.import_names import foreign_names\nprint(json.dumps(foreign_names()))"
    done = run(code, tmp_path)
    assert json.loads(done.stdout) == [
        ["policies", str(tmp_path / "policies" / "__init__.py"), ""],
        ["scheduler", str(tmp_path / "scheduler" / "__init__.py"), ""],
        ["workers", str(tmp_path / "workers.py"), "celery_like"],
    ], done.stderr


def test_the_doctor_survives_a_foreign_package(tmp_path: Path) -> None:
    """It FAILs with the file's name; checks that need what is hidden FAIL too, and the others go on."""
    (tmp_path / "workers").mkdir()
    (tmp_path / "workers" / "__init__.py").touch()
    code = f"from fairtier.cli import main\nmain(['doctor', '--state', {str(tmp_path / 's')!r}, '-o', 'json'])"
    done = run(code, tmp_path)
    levels = {check["check"]: check for check in json.loads(done.stdout)["checks"]}
    assert done.returncode == 1
    assert str(tmp_path / "workers" / "__init__.py") in levels["import names"]["found"]
    assert levels["import names"]["do"]
    assert (levels["cgroups"]["level"], levels["sqlite"]["level"]) == (FAIL, OK)


def test_a_package_installed_into_ours_is_found(tmp_path: Path) -> None:
    """Two distributions with one folder overwrite each other's files; pip does not mind."""
    for owner, lines in (("fairtier", "workers/agent.py,,0"), ("other", "a.py,,0\nworkers/__init__.py,,0")):
        (tmp_path / f"{owner}-1.0.dist-info").mkdir()
        (tmp_path / f"{owner}-1.0.dist-info" / "RECORD").write_text(lines + "\n")
    assert import_names._claims(tmp_path) == {"workers": "other"}


# -- the place ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "level"), [(0o700, OK), (0o750, WARN), (0o720, FAIL), (0o707, FAIL)])
def test_who_may_use_the_state_directory(state: Path, mode: int, level: str) -> None:
    """Others may not read it, and by no means write."""
    state.chmod(mode)
    assert found(state, "state directory").level == level


def test_a_path_too_long_for_sockets(tmp_path: Path) -> None:
    """With the length and the limit."""
    finding = found(tmp_path / ("x" * 120), "sockets")
    assert finding.level == FAIL
    assert "107" in finding.found


MOUNTS = """\
21 1 8:1 / / rw - ext4 /dev/sda1 rw
30 21 0:40 / /data rw shared:1 - nfs4 server:/data rw
31 30 0:41 / /data/lab\\040b rw - tmpfs tmpfs rw
32 31 0:42 / /data/lab\\040b rw - xfs /dev/sdb rw
"""


@pytest.mark.parametrize(
    ("path", "point", "kind"),
    [
        ("/var", "/", "ext4"),
        ("/data", "/data", "nfs4"),
        ("/data/lab/s", "/data", "nfs4"),
        ("/datas", "/", "ext4"),
        ("/data/lab b/s", "/data/lab b", "xfs"),
    ],
)
def test_the_file_system_of_a_path(path: str, point: str, kind: str) -> None:
    """The deepest mount, the one on top of others, names with blanks; no part of a name counts."""
    assert mount_of(Path(path), MOUNTS) == (Path(point), kind)


@pytest.mark.parametrize("kinds", ["NETWORK", "VOLATILE"])
def test_a_file_system_that_is_no_good_for_records(state: Path, monkeypatch: pytest.MonkeyPatch, kinds: str) -> None:
    """Shown with whatever the directory is on here."""
    text = Path("/proc/self/mountinfo").read_text()
    monkeypatch.setattr(doctor_place, "NETWORK", ())
    monkeypatch.setattr(doctor_place, "VOLATILE", ())
    assert found(state, "file system").level == OK
    monkeypatch.setattr(doctor_place, kinds, (mount_of(state.resolve(), text)[1],))
    assert found(state, "file system").level == WARN


# -- the instance ------------------------------------------------------------------------------------------------------


def test_records_and_their_policy(state: Path) -> None:
    """Whole, of this version, and with the policy that will go on."""
    records(state).close()
    assert found(state, "records").level == OK
    assert "demo" in found(state, "policy").found


def test_records_are_left_as_they_are(state: Path, tmp_path: Path) -> None:
    """Closed, in use, and as a killed instance leaves them: no file changes, comes or goes."""
    store = records(state)
    killed = Path(shutil.copytree(state, tmp_path / "killed"))
    assert {"fairtier.db-wal", "fairtier.db"} <= content(killed).keys()
    for folder in (state, killed):
        before = content(folder)
        before.pop("fairtier.db-shm", None)  # locks and an index: no records
        assert found(folder, "policy").level == OK
        assert {name: kept for name, kept in content(folder).items() if name != "fairtier.db-shm"} == before
    store.close()
    before = content(state)
    assert found(state, "records").level == OK
    assert content(state) == before


def damage(state: Path) -> None:
    path = database(state)
    with path.open("r+b") as file:
        file.seek(4096 + 512)
        file.write(b"\xff" * (path.stat().st_size - 8192))


def no_database(state: Path) -> None:
    database(state).write_bytes(b"something else entirely" * 100)


def newer(state: Path) -> None:
    with closing(sqlite3.connect(database(state))) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.commit()


def somebody_elses(state: Path) -> None:
    database(state).unlink()
    with closing(sqlite3.connect(database(state))) as connection:
        connection.execute("CREATE TABLE theirs (a)")


@pytest.mark.parametrize("plant", [damage, no_database, newer, somebody_elses])
def test_records_that_cannot_be_used(state: Path, plant: Callable[[Path], None]) -> None:
    """Each says so once, with what to do; nothing is said about their policy."""
    records(state).close()
    plant(state)
    checks = {finding.check: finding for finding in examine(state)}
    assert checks["records"].level == FAIL
    assert checks["records"].do


def test_an_empty_database_is_a_first_start_that_was_cut_short(state: Path) -> None:
    """The next start prepares it."""
    database(state).touch()
    assert found(state, "records").level == WARN


def test_a_check_of_records_ends_in_time(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A running instance's disk is not kept busy for long: what was not read through is said."""
    records(state).close()
    with closing(sqlite3.connect(database(state))) as connection:
        connection.execute("CREATE TABLE t (a)")
        rows = [(os.urandom(200),) for _ in range(20_000)]
        connection.executemany("INSERT INTO t VALUES (?)", rows)
        connection.commit()
    assert found(state, "records").level == OK
    monkeypatch.setattr(doctor_instance, "CHECK_S", 0.0)
    assert found(state, "records").level == WARN


def private(path: Path, text: str) -> None:
    path.touch(0o600)
    path.write_text(text)


def test_notices(state: Path) -> None:
    """Where they go, never with a secret; what the scheduler would not start with is a FAIL."""
    assert found(state, "notices").level == OK
    private(state / "notify.toml", '[webhook]\nurl = "https://chat.example.org/hush"\nsecret_file = "key"\n')
    assert found(state, "notices").level == FAIL
    private(state / "key", "hush\n")
    finding = found(state, "notices")
    assert (finding.level, "chat.example.org" in finding.found) == (OK, True)
    (state / "key").chmod(0o644)
    finding = found(state, "notices")
    assert (finding.level, finding.do) == (FAIL, f"chmod 600 {state / 'key'}")
    assert "hush" not in str(finding)
    private(state / "notify.toml", "per_user_hour = 3\n")
    assert found(state, "notices").level == WARN


@contextmanager
def rude(path: Path) -> Iterator[None]:
    """Somebody who listens on a socket and hangs up on everybody."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()

        def hang_up() -> None:
            while True:
                try:
                    listener.accept()[0].close()
                except OSError:
                    return

        thread = threading.Thread(target=hang_up)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_an_instance_that_does_not_answer(tmp_path: Path) -> None:
    """Running, by its lock, and nobody listens; or somebody listens and says nothing of use."""
    with InstanceLock(tmp_path):
        checks = {finding.check: finding for finding in examine(tmp_path)}
        assert str(os.getpid()) in checks["instance"].found
        assert checks["api"].level == FAIL
        assert "scheduler" not in checks
        with rude(api_socket(tmp_path)):
            checks = {finding.check: finding for finding in examine(tmp_path)}
    assert (checks["api"].level, checks["scheduler"].level) == (FAIL, FAIL)
    assert "logs scheduler" in checks["scheduler"].do


@pytest.mark.slow
def test_a_running_instance_is_asked_and_not_disturbed() -> None:
    """Everything answers, and neither its journal nor the files beside its records are others than before."""
    with LiveInstance("1x1", "demo") as instance:
        instance.set_users("ann")

        def now() -> tuple[Any, list[str]]:
            status = instance.http.get("/v1/status").json()
            return status["users"], sorted(path.name for path in instance.state.iterdir())

        before = now()
        checks = {finding.check: finding for finding in examine(instance.state)}
        assert now() == before
        assert instance.process.poll() is None
        assert [finding for finding in checks.values() if finding.level == FAIL] == []
        assert str(instance.process.pid) in checks["instance"].found
        for name in ("api", "scheduler", "records", "policy"):
            assert checks[name].level == OK
