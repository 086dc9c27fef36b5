"""Background work ends once whatever dies in between: task, worker, or everything that Redis knew."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from scheduler.adapters import task_files
from scheduler.adapters.memory_tasks import MemoryTasks
from scheduler.adapters.rq_tasks import RqTasks
from scheduler.adapters.strict_json import LIMIT
from scheduler.adapters.strict_rq import connect
from scheduler.background import Background
from scheduler.errors import BadInput
from scheduler.ports import BusDown
from scheduler.task_rows import Call, Tasks
from tests.scheduler.tasks_harness import burst, children, nothing_left, runs, server, start, stop, wait_for

Row = dict[str, Any]


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    with nothing_left():
        yield


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with server() as found:
        yield found


@pytest.fixture
def tasks(url: str, tmp_path: Path) -> Iterator[RqTasks]:
    with redis.Redis.from_url(url) as client:
        client.flushall()
    found = RqTasks(url, tmp_path)
    yield found
    found.close()


def row(task: str = "t-1", kind: str = "usage-report", **changes: Any) -> Row:
    made: Row = {"task": task, "kind": kind, "arguments": "{}", "state": "queued", "created_ms": 0, "attempts": 0}
    return made | {"next_ms": 0, "result": None, "error": ""} | changes


def attend(background: Background, rows: list[Row], now_ms: int) -> None:
    for changed, changes in background.attend(rows, now_ms):
        changed.update(changes)


@pytest.mark.parametrize(
    ("arguments", "error", "retry"),
    [
        ({"fail": "again"}, "not now", True),
        ({"fail": "defect"}, "ZeroDivisionError: a defect", False),
        ({"fail": "die"}, "its process was killed by SIGKILL before it had a result", False),
        ({"fail": "large"}, "a result of 20000", False),
        ({"fail": "no-json"}, "Object of type object is not JSON serializable", False),
    ],
)
def test_every_failure_is_told_in_the_result(
    url: str, tasks: RqTasks, tmp_path: Path, arguments: dict[str, Any], error: str, retry: bool
) -> None:
    tasks.enqueue(Call("t-1", "usage-report", arguments, 3, 7))
    tasks.enqueue(Call("t-2", "usage-report", {}, 1, 7))
    burst(url, tmp_path)
    outcome = tasks.outcome("t-1", 7)
    assert outcome is not None
    assert (outcome["ok"], outcome["attempt"], outcome["retry"]) == (False, 3, retry)
    assert outcome["error"].startswith(error)
    assert tasks.outcome("t-2", 7) == {"ok": True, "attempt": 1, "result": {"counted": "t-2"}}
    assert tasks.outcome("t-2", 8) is None, "a task of another time had the same name"


def test_a_task_that_takes_too_long_is_ended(url: str, tasks: RqTasks, tmp_path: Path) -> None:
    tasks.enqueue(Call("t-1", "simulate", {"seconds": 20}))
    burst(url, tmp_path)
    assert tasks.outcome("t-1", 0) == {"ok": False, "attempt": 1, "error": "it took longer than 1 s", "retry": False}


def test_repetitions_of_a_task_run_it_once(url: str, tasks: RqTasks, tmp_path: Path) -> None:
    for _ in range(3):
        tasks.enqueue(Call("t-1", "usage-report", {}))
    assert tasks.present(["t-1", "t-2"]) == {"t-1"}
    burst(url, tmp_path)
    tasks.enqueue(Call("t-1", "usage-report", {}, 2))
    burst(url, tmp_path)
    assert runs(tmp_path) == ["t-1"]


def test_two_workers_do_not_run_one_task_at_the_same_time(url: str, tasks: RqTasks, tmp_path: Path) -> None:
    tasks.enqueue(Call("t-1", "usage-report", {"seconds": 1}))
    worker = start(url, tmp_path)
    wait_for(lambda: runs(tmp_path) == ["t-1"])
    assert tasks.present(["t-1"]) == {"t-1"}
    tasks.enqueue(Call("t-1", "usage-report", {}, 2))
    assert "is being run elsewhere" in burst(url, tmp_path)
    wait_for(lambda: tasks.outcome("t-1", 0))
    assert stop(worker)[0] == 0
    assert runs(tmp_path) == ["t-1"]


def test_a_worker_killed_in_the_middle_leaves_nothing_running_and_the_task_ends_once(
    url: str, tasks: RqTasks, tmp_path: Path
) -> None:
    background = Background(tasks, None)
    rows = [row(arguments='{"seconds": 1}')]
    attend(background, rows, 1)
    worker = start(url, tmp_path)
    wait_for(lambda: runs(tmp_path) == ["t-1"])
    (process,) = children(worker.pid)
    attend(background, rows, 60_000)
    assert rows[0]["attempts"] == 1, "it is being run"
    worker.kill()
    worker.communicate()
    wait_for(lambda: not Path(f"/proc/{process}").exists() or " Z " in Path(f"/proc/{process}/stat").read_text())
    assert tasks.present(["t-1"]) == set()
    attend(background, rows, 60_000)
    assert (rows[0]["state"], rows[0]["attempts"]) == ("running", 2)
    burst(url, tmp_path)
    attend(background, rows, 61_000)
    assert (rows[0]["state"], rows[0]["result"]) == ("done", '{"counted": "t-1"}')
    assert runs(tmp_path) == ["t-1", "t-1"]


def test_after_a_wiped_redis_everything_open_is_handed_over_again(url: str, tasks: RqTasks, tmp_path: Path) -> None:
    background = Background(tasks, None)
    rows = [row(f"t-{n}") for n in range(50)]
    attend(background, rows, 1)
    assert tasks.present([r["task"] for r in rows]) == {r["task"] for r in rows}
    with redis.Redis.from_url(url) as client:
        client.flushall()
    attend(background, rows, 1000)
    assert tasks.present(["t-7"]) == set(), "not before its time: it might be on its way"
    attend(background, rows, 2001)
    assert tasks.present(["t-7"]) == {"t-7"}
    burst(url, tmp_path)
    attend(background, rows, 2002)
    assert {r["state"] for r in rows} == {"done"}
    assert sorted(runs(tmp_path)) == sorted(r["task"] for r in rows)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_stops_at_once_and_what_ran_is_next(
    url: str, tasks: RqTasks, tmp_path: Path, number: signal.Signals
) -> None:
    tasks.enqueue(Call("t-1", "usage-report", {"seconds": 30}))
    worker = start(url, tmp_path)
    wait_for(lambda: runs(tmp_path) == ["t-1"])
    tasks.enqueue(Call("t-2", "usage-report", {}))
    began = time.monotonic()
    code, log = stop(worker, number)
    assert (code, time.monotonic() - began < 2) == (0, True), log
    with redis.Redis.from_url(url) as client:
        assert client.lrange("rq:queue:ft-tasks", 0, -1) == [b"t-1", b"t-2"]
        assert client.smembers("rq:workers") == set()
    assert tasks.outcome("t-1", 0) is None


def test_an_idle_worker_stops_at_once(url: str, tasks: RqTasks, tmp_path: Path) -> None:
    worker = start(url, tmp_path)
    with redis.Redis.from_url(url) as client:
        wait_for(lambda: client.smembers("rq:workers"))
        time.sleep(0.1)
        began = time.monotonic()
        assert stop(worker)[0] == 0
        assert time.monotonic() - began < 1


def test_a_worker_that_breaks_says_so_with_its_exit_code(url: str, tasks: RqTasks, tmp_path: Path) -> None:
    worker = start(url, tmp_path)
    with redis.Redis.from_url(url) as client:
        wait_for(lambda: client.smembers("rq:workers"))
        (name,) = client.smembers("rq:workers")
        client.set(name, "no hash: the next heartbeat fails")
        tasks.enqueue(Call("t-1", "usage-report", {}))
        _, log = worker.communicate(timeout=30)
    assert worker.returncode == 1, log
    assert runs(tmp_path) == []


def test_a_worker_outlives_its_server(tmp_path: Path) -> None:
    with server() as first:
        worker = start(first, tmp_path)
        tasks = RqTasks(first, tmp_path)
        tasks.enqueue(Call("t-1", "usage-report", {}))
        wait_for(lambda: tasks.outcome("t-1", 0))
    time.sleep(0.3)
    assert worker.poll() in (None, 1), "it waits for a server, or asks to be started again"
    with pytest.raises(BusDown):
        tasks.enqueue(Call("t-2", "usage-report", {}))
    with pytest.raises(BusDown):
        tasks.present(["t-2"])
    assert stop(worker)[0] in (0, 1)
    with pytest.raises(BusDown, match="does not answer"):
        connect(first)
    rows = [row()]
    attend(Background(tasks, None), rows, 1)
    assert rows == [row()], "nothing was handed over, no attempt is used up"
    tasks.close()


def test_only_what_fits_is_handed_over(tasks: RqTasks) -> None:
    for call in (
        Call("t-1", "os.system", {}),
        Call("../x", "simulate", {}),
        Call("", "simulate", {}),
        Call("t-1", "simulate", {"x": "y" * LIMIT}),
    ):
        with pytest.raises(BadInput):
            tasks.enqueue(call)
    rows = [row(arguments='{"x": "' + "y" * LIMIT + '"}'), row("t-2")]
    attend(Background(tasks, None), rows, 1)
    assert (rows[0]["state"], rows[1]["state"]) == ("failed", "running")


def test_results_are_read_as_data_of_somebody_else(tmp_path: Path) -> None:
    place = task_files.folder(tmp_path, "t-1")
    place.mkdir(parents=True)
    result = place / task_files.RESULT
    good = '{"ok": true, "attempt": 1, "made_ms": 5, "result": {}}'
    secret = tmp_path / "secret"
    secret.write_text(good)
    for text in ("", "[]", "{}", "[" * 100_000, '{"ok": 1, "made_ms": 5}', good.replace("{}", "[]"), "x" * 2_000_000):
        result.write_text(text)
        outcome = task_files.read_outcome(tmp_path, "t-1", 5)
        assert outcome is None or not outcome["ok"], text[:60]
    result.unlink()
    result.symlink_to(secret)
    assert task_files.read_outcome(tmp_path, "t-1", 5)["ok"] is False  # type: ignore[index]
    result.unlink()
    os.mkfifo(result)
    assert task_files.read_outcome(tmp_path, "t-1", 5)["ok"] is False  # type: ignore[index]
    result.unlink()
    result.write_text(good)
    assert task_files.read_outcome(tmp_path, "t-1", 5) == {"ok": True, "attempt": 1, "result": {}}
    assert task_files.read_outcome(tmp_path, "t-1", 6) is None
    for name in ("..", "a/b", "", "a" * 65, "a\n", "ä"):
        with pytest.raises(ValueError):
            task_files.folder(tmp_path, name)


def test_memory_tasks_are_carried_alike(tasks: RqTasks) -> None:
    memory = MemoryTasks()
    carriers: tuple[Tasks, ...] = (tasks, memory)
    for carrier in carriers:
        for _ in range(2):
            carrier.enqueue(Call("t-1", "simulate", {}, 1, 5))
        assert carrier.present(["t-1", "t-2"]) == {"t-1"}
        assert carrier.outcome("t-1", 5) is None
    assert len(memory.calls) == 1
    outcome = {"ok": True, "result": {"a": 1}}
    task_files.write_outcome(tasks._state, "t-1", {**outcome, "attempt": 1, "made_ms": 5})
    memory.end(memory.calls[0], outcome)
    for carrier in carriers:
        assert carrier.outcome("t-1", 5) == {**outcome, "attempt": 1}
        assert carrier.outcome("t-1", 6) is None
    memory.down = True
    with pytest.raises(BusDown):
        memory.enqueue(Call("t-1", "simulate", {}))


def test_a_run_begins_with_an_empty_folder(url: str, tasks: RqTasks, tmp_path: Path) -> None:
    place = task_files.folder(tmp_path, "t-1")
    (place / "old").mkdir(parents=True)
    (place / "old" / "file").write_text("of a run that was killed")
    (place / "link").symlink_to(tmp_path)
    tasks.enqueue(Call("t-1", "usage-report", {}))
    burst(url, tmp_path)
    assert {entry.name for entry in place.iterdir()} == {"lock", "result.json", "work"}
    assert tmp_path.is_dir()
    tasks.remove("t-1")
    assert not place.exists()
    tasks.remove("t-1")
