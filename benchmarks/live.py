"""A live instance: how soon a submit is accepted and its process runs, how many a second, and what idling costs.

Anchors: Slurm 22.05.8 on the same kind of machine: srun 54 / 75 ms (p50 / p95) to the running process, sbatch 2,952 ms;
34 to 46 starts a second of trivial sessions on 256 slots.
"""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from statistics import quantiles
from typing import Any

import redis
from sqlalchemy import insert

from benchmarks.figure import Figure
from benchmarks.live_instance import LiveInstance
from scheduler.adapters.database import create, writer
from scheduler.adapters.tables import table

ROUNDS = 200
IDLE_S = 30.0
STARTS, SLOTS = 600, "4x50"
CLIENTS, EACH = 8, 150


def measure() -> list[Figure]:
    """All figures, on three instances one after another."""
    with LiveInstance("2x2") as instance:
        instance.set_users("ann")
        figures = [*_idle(instance), *_command(instance), *_accepted(instance), *_running(instance)]
    with LiveInstance(SLOTS) as instance:
        figures += _starts(instance)
    with LiveInstance("2x2") as instance:
        figures += _sustained(instance)
    return figures


def _percentile(values: list[float], percent: int) -> float:
    return quantiles(values, n=100, method="inclusive")[percent - 1]


# -- what idling costs --


def _idle(instance: LiveInstance) -> list[Figure]:
    time.sleep(3)
    before, began = instance.cpu_s(), time.monotonic()
    time.sleep(IDLE_S)
    share = (instance.cpu_s() - before) / (time.monotonic() - began)
    return [
        Figure(figure="idle: processor", value=100 * share, unit="% of a core", bound=3, at_most=True),
        Figure(figure="idle: memory, sum of PSS", value=instance.pss_mib(), unit="MiB", bound=400, at_most=True),
    ]


def _command(instance: LiveInstance) -> list[Figure]:
    command = [sys.executable, "-m", "fairtier", "queue", "--state", str(instance.state)]
    times = []
    for _ in range(7):
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - began)
    return [Figure(figure="fairtier queue, whole process", value=min(times), unit="s", bound=0.7, at_most=True)]


# -- how soon --


def _accepted(instance: LiveInstance) -> list[Figure]:
    """Submits, in turns with the yardstick: one no-op POST + one XADD + one fsynced commit."""
    server = redis.Redis.from_url(f"unix://{instance.state}/redis.sock")
    rows = _Rows(instance.state.parent / "yardstick.db")
    body = {"user": "ann", "argv": ["true"]}
    taken, yard = [], []
    for number in range(ROUNDS):
        began = time.perf_counter()
        instance.http.post("/v1/noop", json=body).raise_for_status()
        server.xadd("ft:yardstick", {"m": b"x" * 400}, maxlen=100)
        rows.commit(number)
        yard.append(1000 * (time.perf_counter() - began))
        taken.append(_submit(instance, body)[1])
        time.sleep(0.02)  # one warm client on an idle instance: let the session before start and end
    rows.close()
    server.close()
    p50 = _percentile(yard, 50)
    return [
        Figure(figure="submit to accepted, p50", value=_percentile(taken, 50), unit="ms", bound=4, at_most=True,
               yardstick=p50),
        Figure(figure="submit to accepted, p99", value=_percentile(taken, 99), unit="ms", bound=10, at_most=True,
               yardstick=p50),
    ]  # fmt: skip


class _Rows:
    """Commits of one row, fsynced, on a connection that stays open: what the store does at the least."""

    def __init__(self, path: Path) -> None:
        create(path)
        self._connection = writer(path).connect()
        self._table = table("journal")
        with self._connection.begin():
            self._table.create(self._connection)

    def commit(self, number: int) -> None:
        with self._connection.begin():
            self._connection.execute(insert(self._table), [{"seq": number, "at_ms": number, "line": "x" * 200}])

    def close(self) -> None:
        self._connection.close()


def _submit(instance: LiveInstance, body: dict[str, Any]) -> tuple[str, float]:
    """(session, milliseconds to the answer)."""
    began = time.perf_counter()
    answer = instance.http.post("/v1/sessions", json=body)
    took_ms = 1000 * (time.perf_counter() - began)
    answer.raise_for_status()
    return str(answer.json()["session"]), took_ms


def _running(instance: LiveInstance) -> list[Figure]:
    """From the begin of the request to what the process says is the time."""
    took = []
    for _ in range(ROUNDS // 2):
        began_ns = time.time_ns()
        sid, _ = _submit(instance, {"user": "ann", "argv": ["date", "+%s%N"]})
        log = instance.state / "sessions" / sid / "log"
        until = time.monotonic() + 10
        while not (log.exists() and log.read_text().strip().isdigit()):
            if time.monotonic() > until:
                raise RuntimeError(f"session {sid} has not run within 10 s")
            time.sleep(0.005)
        took.append((int(log.read_text()) - began_ns) / 1e6)
        time.sleep(0.05)
    return [
        Figure(figure="submit to process running, p50", value=_percentile(took, 50), unit="ms", bound=50, at_most=True),
        Figure(
            figure="submit to process running, p95", value=_percentile(took, 95), unit="ms", bound=100, at_most=True
        ),
    ]


# -- how many --


def _starts(instance: LiveInstance) -> list[Figure]:
    """Trivial sessions queued on drained hosts; then the hosts are opened, and the clock runs until all have ended."""
    users = [f"u{number}" for number in range(12)]
    instance.set_users(*users)
    hosts = [row["host"] for row in instance.http.get("/v1/hosts").json()["hosts"]]
    for host in hosts:
        instance.http.post(f"/v1/hosts/{host}/drain").raise_for_status()
    for number in range(STARTS):
        _submit(instance, {"user": users[number % len(users)], "argv": ["true"]})
    for host in hosts:
        instance.http.post(f"/v1/hosts/{host}/resume").raise_for_status()
    database = sqlite3.connect(f"file:{instance.state}/fairtier.db?mode=ro", uri=True)
    try:
        until = time.monotonic() + 120
        while database.execute("select count(*) from sessions where ended_ms is null").fetchone()[0]:
            if time.monotonic() > until:
                raise RuntimeError("the sessions have not ended within 120 s")
            time.sleep(0.1)
        span = database.execute("select min(started_ms), max(ended_ms) from sessions").fetchone()
        failed = database.execute("select count(*) from sessions where outcome != 'completed'").fetchone()[0]
    finally:
        database.close()
    if failed:
        raise RuntimeError(f"{failed} of {STARTS} trivial sessions did not complete")
    rate = STARTS / ((span[1] - span[0]) / 1000)
    return [Figure(figure="trivial sessions started and ended, 200 slots", value=rate, unit="1/s", bound=100)]


def _sustained(instance: LiveInstance) -> list[Figure]:
    """Submissions accepted from several clients at once; they wait, since the hosts are drained."""
    users = [f"u{number}" for number in range(CLIENTS)]
    instance.set_users(*users)
    for row in instance.http.get("/v1/hosts").json()["hosts"]:
        instance.http.post(f"/v1/hosts/{row['host']}/drain").raise_for_status()
    began = time.perf_counter()
    threads = [threading.Thread(target=_send, args=(instance, user)) for user in users]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rate = CLIENTS * EACH / (time.perf_counter() - began)
    accepted = instance.http.get("/v1/status").json()["sessions"]["queued"]
    if accepted != CLIENTS * EACH:
        raise RuntimeError(f"{accepted} of {CLIENTS * EACH} submissions are on record")
    return [Figure(figure=f"submissions accepted from {CLIENTS} clients", value=rate, unit="1/s", bound=300)]


def _send(instance: LiveInstance, user: str) -> None:
    with instance.client() as http:
        for _ in range(EACH):
            http.post("/v1/sessions", json={"user": user, "argv": ["true"]}).raise_for_status()
