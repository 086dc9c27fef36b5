"""Whoever can write to Redis can make the worker run nothing but what is allowed, and cannot stop it."""

from __future__ import annotations

import json
import pickle
import socket
import subprocess
import sys
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import redis

from scheduler.adapters.rq_tasks import RqTasks
from scheduler.adapters.strict_job import read_order
from scheduler.adapters.strict_json import LIMIT, StrictJSON, Unreadable, inflate
from scheduler.task_rows import Call
from tests.scheduler.tasks_harness import ROOT, burst, children, nothing_left, runs, server, start, stop, wait_for

Fields = dict[str, Any]


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    with nothing_left():
        yield


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with server() as found:
        yield found


@pytest.fixture
def client(url: str) -> Iterator[redis.Redis]:
    found = redis.Redis.from_url(url)
    found.flushall()
    yield found
    found.close()


class Boom:
    """Unpickled, it touches the canary."""

    def __reduce__(self) -> tuple[Any, ...]:
        return __import__("os").system, ("touch $CANARY",)


TOUCH = "touch $CANARY"
PYTHON = "__import__('os').system('touch $CANARY')"
GOOD = {"arguments": {}, "attempt": 1, "made_ms": 0}


def call(kind: Any = "usage-report", instance: Any = None, args: Any = (), kwargs: Any = GOOD) -> bytes:
    return json.dumps([kind, instance, args, kwargs]).encode()


def with_arguments(**changes: Any) -> bytes:
    return call(kwargs={**GOOD, **changes})


REFUSED: Mapping[str, Fields] = {
    "pickled": {"data": pickle.dumps(("os.system", None, (TOUCH,), {}))},
    "pickled-reduce": {"data": pickle.dumps(Boom())},
    "pickled-zlib": {"data": zlib.compress(pickle.dumps(Boom()))},
    "os-system": {"data": call("os.system", None, [TOUCH], {})},
    "os-system-zlib": {"data": zlib.compress(call("os.system", None, [TOUCH], {}))},
    "subprocess": {"data": call("subprocess.call", None, [["sh", "-c", TOUCH]], {})},
    "eval": {"data": call("builtins.eval", None, [PYTHON], {})},
    "exec": {"data": call("builtins.exec", None, [PYTHON], {})},
    "our-own-function": {"data": call("scheduler.adapters.task_files.remove", None, ["/", "x"], {})},
    "instance": {"data": call("usage-report", {"a": 1})},
    "positional": {"data": call(args=["../../etc"])},
    "kind-case": {"data": call("Usage-Report")},
    "kind-line": {"data": call("usage-report\n")},
    "kind-list": {"data": call(["usage-report"])},
    "kind-null": {"data": call(None)},
    "kwargs-list": {"data": call(kwargs=[])},
    "arguments-list": {"data": with_arguments(arguments=[1])},
    "attempt-true": {"data": with_arguments(attempt=True)},
    "attempt-text": {"data": with_arguments(attempt="1")},
    "made-missing": {"data": call(kwargs={"arguments": {}, "attempt": 1})},
    "folder-too": {"data": call(kwargs={**GOOD, "folder": "/etc"})},
    "not-a-number": {"data": b'["usage-report",null,[],{"arguments":{"a":NaN},"attempt":1,"made_ms":0}]'},
    "object": {"data": b"{}"},
    "five": {"data": b'["usage-report",null,[],{},1]'},
    "empty-list": {"data": b"[]"},
    "number": {"data": b"7"},
    "not-utf8": {"data": b'["usage-report\xff",null,[],{}]'},
    "brackets": {"data": b"[" * 60_000},
    "braces": {"data": b'{"a":' * 10_000},
    "long-number": {"data": b"9" * 60_000},
    "large": {"data": b" " * (LIMIT + 1)},
    "zlib-bomb": {"data": zlib.compress(b" " * 50_000_000)},
    "failure-callback": {"data": call("nothing"), "failure_callback_name": "os.system"},
    "junk-and-callback": {"data": b"\0", "failure_callback_name": "os.system", "stopped_callback_name": "os.system"},
}
"""Jobs of which nothing is run."""

RUN_PLAINLY: Mapping[str, Fields] = {
    "success-callback": {"success_callback_name": "os.system", "success_callback_timeout": "x"},
    "all-callbacks": {f"{name}_callback_name": "builtins.print" for name in ("success", "failure", "stopped")},
    "pickled-result": {"result": pickle.dumps(Boom())},
    "pickled-meta": {"meta": pickle.dumps(Boom())},
    "depends": {"dependency_ids": '["x"]', "dependency_id": b"\xff", "allow_dependency_failures": "junk"},
    "repeats": {"repeats_left": "1000", "repeat_intervals": "[0]"},
    "retries": {"retries_left": "1000", "retry_intervals": "{", "number_of_retries": "no"},
    "rate-limit": {"rate_limit_key": "k", "rate_limit_concurrency": "1"},
    "status": {"status": "no-such", "origin": b"\xff", "description": "\x1b[2J"},
    "times": {"created_at": "yesterday", "started_at": "x", "ended_at": "x", "last_heartbeat": b"\xff"},
    "timeout": {"timeout": "-1", "result_ttl": "x", "failure_ttl": "x", "ttl": "x"},
    "group": {"group_id": "g", "worker_name": b"\xff", "exc_info": zlib.compress(b"x" * 9_000_000)},
}
"""Jobs that are allowed, with fields that must not be looked at."""

NO_JOBS = (b"../../etc/passwd", b"\xff\xfe", b"a" * 100_000, b"", b"a:b", b"a b", b"gone")
"""Entries of the queue that are no job's name, or a name without a record."""


def put(client: redis.Redis, job: str | bytes, fields: Mapping[str, Any] | None = None) -> None:
    if fields is not None:
        client.hset(f"rq:job:{job!s}", mapping=dict(fields))
    client.rpush("rq:queue:ft-tasks", job)


def fill(client: redis.Redis) -> None:
    for job, fields in REFUSED.items():
        put(client, job, fields)
    for job, fields in RUN_PLAINLY.items():
        put(client, job, {"data": call(), **fields})
    for name in NO_JOBS:
        put(client, name)
    client.set("rq:job:text", "x")
    client.rpush("rq:job:list", "x")
    for job in ("text", "list"):
        put(client, job)
    client.zadd("rq:wip:ft-tasks", {"failure-callback:1": 1})  # abandoned: RQ's maintenance would call its callback
    client.rpush("rq:queue:ft-tasks:intermediate", b"\xff", "failure-callback")
    client.set("rq:suspended", "1")


def test_hostile_jobs_run_nothing_and_the_worker_goes_on(url: str, client: redis.Redis, tmp_path: Path) -> None:
    assert len(REFUSED) + len(RUN_PLAINLY) + len(NO_JOBS) >= 50
    tasks = RqTasks(url, tmp_path)
    fill(client)
    tasks.enqueue(Call("good", "usage-report", {}))
    log = burst(url, tmp_path)
    assert not (tmp_path / "canary").exists()
    assert runs(tmp_path) == [*RUN_PLAINLY, "good"]
    assert tasks.outcome("good", 0) == {"ok": True, "attempt": 1, "result": {"counted": "good"}}
    assert log.count("refused, nothing was run") == len(REFUSED)
    assert "\x1b" not in log
    left = {key.decode() for key in client.keys("rq:*")}
    assert not [key for key in left if key.startswith("rq:job:") and key not in ("rq:job:text", "rq:job:list")]
    assert client.llen("rq:queue:ft-tasks") == client.llen("rq:queue:ft-tasks:intermediate") == 0
    tasks.close()


FOREIGN = """
import sys, redis, rq
connection = redis.Redis.from_url(sys.argv[1])
serializer = {"json": rq.serializers.JSONSerializer, "pickle": None}[sys.argv[2]]
rq.SimpleWorker(["ft-tasks"], connection=connection, serializer=serializer).work(burst=True)
"""


@pytest.mark.parametrize(("job", "form"), [("os-system", "json"), ("pickled", "pickle"), ("pickled-reduce", "pickle")])
def test_planted_fault_a_plain_worker_runs_these_payloads(
    url: str, client: redis.Redis, tmp_path: Path, job: str, form: str
) -> None:
    """The payloads are alive: RQ's own worker executes them."""
    put(client, job, REFUSED[job])
    canary = tmp_path / "canary"
    done = subprocess.run(
        [sys.executable, "-c", FOREIGN, url, form],
        cwd=ROOT,
        env={"CANARY": str(canary), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert canary.exists()


def test_webhooks_of_a_job_are_not_called(url: str, client: redis.Redis, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        hooks = json.dumps([{"url": address, "job_status": status} for status in ("finished", "failed")])
        put(client, "hook", {"data": call(), "webhooks": hooks})
        put(client, "hook-refused", {"data": b"[]", "webhooks": hooks})
        burst(url, tmp_path)
        assert runs(tmp_path) == ["hook"]
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_arguments_that_the_function_refuses_end_as_a_failed_task(
    url: str, client: redis.Redis, tmp_path: Path
) -> None:
    put(client, "bad", {"data": with_arguments(arguments={"path": "../../x"})})
    burst(url, tmp_path)
    tasks = RqTasks(url, tmp_path)
    assert tasks.outcome("bad", 0) == {"ok": False, "attempt": 1, "error": "unknown arguments", "retry": False}
    assert runs(tmp_path) == []
    tasks.close()


WRONG_TYPES = (
    "rq:queue:ft-tasks",
    "rq:queue:ft-tasks:intermediate",
    "rq:workers",
    "rq:workers:ft-tasks",
    "rq:wip:ft-tasks",
    "rq:finished:ft-tasks",
    "rq:failed:ft-tasks",
    "rq:clean_registries:ft-tasks",
    "rq:executions:good",
)


@pytest.mark.parametrize("key", WRONG_TYPES)
def test_keys_of_a_wrong_type_do_not_stop_work(url: str, client: redis.Redis, tmp_path: Path, key: str) -> None:
    client.hset(key, "x", "y")
    tasks = RqTasks(url, tmp_path)
    tasks.enqueue(Call("good", "usage-report", {}))
    burst(url, tmp_path)
    if tasks.outcome("good", 0) is None:  # it went with the queue that was removed, and is found lost
        assert tasks.present(["good"]) == set()
        tasks.enqueue(Call("good", "usage-report", {}, 2))
        burst(url, tmp_path)
    assert runs(tmp_path) == ["good"]
    tasks.close()


def test_commands_by_pubsub_reach_nobody(url: str, client: redis.Redis, tmp_path: Path) -> None:
    """`shutdown`, `kill-horse`, `stop-job` and junk, sent while a task runs: it ends as if nothing had been said."""
    tasks = RqTasks(url, tmp_path)
    tasks.enqueue(Call("long", "usage-report", {"seconds": 1}))
    worker = start(url, tmp_path)
    wait_for(lambda: runs(tmp_path) == ["long"])
    (name,) = [key.decode().removeprefix("rq:worker:") for key in client.smembers("rq:workers")]
    commands: list[Any] = [{"command": word} for word in ("shutdown", "kill-horse", "nothing")]
    commands += [{"command": "stop-job", "job_id": "long"}, [1], "x", None]
    heard = [client.publish(f"rq:pubsub:{name}", json.dumps(command)) for command in commands]
    assert heard == [0] * len(commands)
    client.publish(f"rq:pubsub:{name}", b"\xff")
    wait_for(lambda: tasks.outcome("long", 0))
    assert tasks.outcome("long", 0)["ok"]  # type: ignore[index]
    assert worker.poll() is None
    wait_for(lambda: children(worker.pid) == [])
    assert stop(worker)[0] == 0
    assert runs(tmp_path) == ["long"]
    tasks.close()


def test_json_is_read_within_its_limit_only() -> None:
    for raw in (b"[" * LIMIT, b"NaN", b"-Infinity", b"\xff", b'"' + b"a" * LIMIT + b'"', b""):
        with pytest.raises(Unreadable):
            StrictJSON.loads(raw)
    with pytest.raises(ValueError):
        StrictJSON.dumps(float("nan"))
    with pytest.raises(Unreadable):
        inflate(zlib.compress(b"a" * (LIMIT + 1)))
    assert inflate(zlib.compress(b"a" * LIMIT)) == b"a" * LIMIT
    assert read_order(zlib.compress(call())) == ("usage-report", {}, 1, 0)
