"""The daemon as it is shipped: a report, a simulation, a notice; its allow-list, its options, and what it costs."""

from __future__ import annotations

import csv
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fairtier.tasks import ALLOWED, tasks
from scheduler.adapters.rq_tasks import RqTasks
from scheduler.adapters.sql_store import SqlStore
from scheduler.ports import Batch
from scheduler.state_dir import database
from scheduler.task_rows import KINDS, Call
from simulations.background import simulate
from tests.scheduler.tasks_harness import server, wait_for

HOUR_MS = 3_600_000
LARGEST_MIB = 45


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with server() as found:
        yield found


def daemon(state: Path, **environment: str) -> subprocess.Popen[str]:
    code = "from fairtier.tasks import tasks; tasks(prog_name='tasks')"
    return subprocess.Popen(
        [sys.executable, "-c", code, "--state", str(state)],
        env={**os.environ, **environment},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.fixture
def running(url: str, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = daemon(tmp_path, FAIRTIER_REDIS_URL=url)
    try:
        yield process
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0, log
    assert all({"component", "event", "level", "timestamp"} <= json.loads(line).keys() for line in log.splitlines())


def result_of(url: str, state: Path, call: Call) -> dict[str, Any]:
    carrier = RqTasks(url, state)
    carrier.enqueue(call)
    wait_for(lambda: carrier.outcome(call.task, call.made_ms), 60)
    outcome = carrier.outcome(call.task, call.made_ms)
    carrier.close()
    assert outcome is not None
    return outcome


def test_a_usage_report_from_the_records(url: str, running: subprocess.Popen[str], tmp_path: Path) -> None:
    store = SqlStore(database(tmp_path), lambda: 0)
    store.lead("test")
    times = {"submitted_ms": 0, "started_ms": HOUR_MS, "ended_ms": 3 * HOUR_MS}
    who = {"user": "ann", "group": "g", "tier": "free"}
    row = {"session": "s-1", **who, "state": "ended", "ladder": "ok", "gpus": 2, "fraction_m": 1000, "busy_ms": HOUR_MS}
    store.commit(Batch(0, sessions={"s-1": {**row, **times}}))
    store.close()
    for form in ("csv", "json"):
        asked = {"since_ms": 0, "until_ms": 10 * HOUR_MS, "format": form}
        outcome = result_of(url, tmp_path, Call(f"t-{form}", "usage-report", asked))
        assert outcome["result"] == {"files": [f"report.{form}"], "users": 1}
    (line,) = csv.DictReader((tmp_path / "tasks" / "t-csv" / "report.csv").read_text().splitlines())
    assert (line["user"], line["allocated_gpu_h"], line["busy_gpu_h"]) == ("ann", "4.0", "1.0")
    (entry,) = json.loads((tmp_path / "tasks" / "t-json" / "report.json").read_text())["users"]
    assert (entry["user"], entry["allocated_gpu_h"], entry["wait_max_s"]) == ("ann", 4.0, 3600.0)


def test_a_report_without_records_says_so(url: str, running: subprocess.Popen[str], tmp_path: Path) -> None:
    outcome = result_of(url, tmp_path, Call("t-1", "usage-report", {"since_ms": 0, "until_ms": 1}))
    assert not outcome["ok"]
    assert "fairtier.db" in outcome["error"]


def test_a_simulation_is_the_one_of_the_command(url: str, running: subprocess.Popen[str], tmp_path: Path) -> None:
    asked = {"scenario": "calm", "policy": "fifo", "seed": 7, "days": 0.25}
    outcome = result_of(url, tmp_path, Call("t-1", "simulate", asked))
    assert outcome["ok"], outcome
    place = tmp_path / "tasks" / "t-1"
    assert {entry.name for entry in place.iterdir()} == {*outcome["result"]["files"], "result.json", "lock"}
    again = simulate(tmp_path / "again", "calm", "fifo", 7, 0.25, time.perf_counter)
    assert outcome["result"]["summary"]["digest"] == again["summary"]["digest"]
    for name in ("sessions.csv", "decisions.jsonl"):
        assert (place / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    for bad in ({"scenario": "nowhere"}, {"scenario": "calm", "policy": "x"}, {"scenario": "calm", "out": "/etc"}):
        outcome = result_of(url, tmp_path, Call(f"bad-{len(bad)}-{bad['scenario']}-{'out' in bad}", "simulate", bad))
        assert not outcome["ok"]


def test_a_notice_goes_where_the_file_says(url: str, running: subprocess.Popen[str], tmp_path: Path) -> None:
    seen: list[bytes] = []

    class Hook(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(503 if len(seen) == 1 else 200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    notice: dict[str, Any] = {"channel": "webhook", "session": "s-1", "user": "ann", "level": "evict", "text": "Gone."}
    notice |= {"rule": "ladder.evict", "at_ms": 0}
    outcome = result_of(url, tmp_path, Call("t-0", "notify", notice))
    assert outcome["result"] == {"sent": False, "reason": "no webhook is configured any more"}
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hook) as web:
        thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        path = tmp_path / "notify.toml"
        path.touch(0o600)
        path.write_text(f'[webhook]\nurl = "http://127.0.0.1:{web.server_port}/"\n')
        try:
            first = result_of(url, tmp_path, Call("t-1", "notify", notice, 1))
            carrier = RqTasks(url, tmp_path)
            carrier.enqueue(Call("t-1", "notify", notice, 2))
            wait_for(lambda: (carrier.outcome("t-1", 0) or {}).get("ok"), 60)
            carrier.close()
        finally:
            web.shutdown()
            thread.join()
    assert (first["ok"], first["retry"], first["error"]) == (False, True, "the webhook at 127.0.0.1 answered 503")
    assert json.loads(seen[0])["delivery"] == json.loads(seen[1])["delivery"] == "t-1"
    assert len(seen) == 2


def test_the_allow_list_is_what_tasks_are_made_of() -> None:
    assert {name: allowed.timeout_s for name, allowed in ALLOWED.items()} == {
        name: kind.timeout_s for name, kind in KINDS.items()
    }


def pss_mib(pid: int) -> float:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) / 1024


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_waiting_daemon_costs_next_to_nothing(url: str, running: subprocess.Popen[str], tmp_path: Path) -> None:
    result_of(url, tmp_path, Call("t-1", "simulate", {"scenario": "nowhere"}))
    assert pss_mib(running.pid) <= LARGEST_MIB
    before = cpu_s(running.pid)
    time.sleep(2)
    assert cpu_s(running.pid) - before <= 0.02


def test_waiting_needs_nothing_that_tasks_need() -> None:
    code = (
        "import sys, fairtier.tasks, scheduler.adapters.strict_rq\n"
        "print(*{name.partition('.')[0] for name in sys.modules}, *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    heavy = {"pydantic", "sqlalchemy", "sqlmodel", "httpx", "simulations", "rich", "structlog"}
    assert heavy & set(done.stdout.split()) == set(), done.stderr


def test_a_password_belongs_into_no_command_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(tasks, ["--state", str(tmp_path), "--redis", "redis://:hush@localhost:1/0"])
    assert result.exit_code != 0
    assert "FAIRTIER_REDIS_URL" in (getattr(result.exception, "hint", None) or "")
    assert "hush" not in str(result.exception) + result.output


def test_without_a_server_it_ends_with_a_word(tmp_path: Path) -> None:
    result = CliRunner().invoke(tasks, ["--state", str(tmp_path)])
    assert type(result.exception).__name__ == "BusDown"
    assert "does not answer" in str(result.exception)
