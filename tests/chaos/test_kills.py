"""kill -9 of every part of a busy instance, at random moments: nothing accepted is lost, nothing runs twice."""

from __future__ import annotations

import os
import random
import re
import signal
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.live_instance import LiveInstance
from scheduler import journal
from scheduler.adapters.sql_reader import SqlReader
from scheduler.policy_files import preset_text
from workers.containment import available, bases
from workers.settings import instance_of

pytestmark = [
    pytest.mark.slow,
    # httpcore leaves the socket of a refused connection to the garbage collector
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

ROUNDS = 20
SEED = 20_261
THAW_S = 5.0
PARTS = ("scheduler", "api", "worker", "redis", "enforcer")
BURN = "echo started >> starts; i=0; while [ $(date +%s) -lt $END ]; do i=$((i+1)); done"
USERS = ("u1", "u2", "u3", "u4", "u5", "u6")


def part_of(pid: int) -> str:
    """Which part of the instance a process is; "" for `up` itself, sessions and others."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return ""
    if "workers.enforcer" in words:
        return "enforcer"
    if words[0].endswith(("valkey-server", "redis-server")) or "-server" in words[0]:
        return "redis"
    name = words[words.index("fairtier") + 1] if "fairtier" in words[:-1] else ""
    return name if name in PARTS else ""


class People(threading.Thread):
    """Users who go on asking all the time, and remember what was accepted."""

    def __init__(self, instance: LiveInstance) -> None:
        super().__init__(daemon=True)
        self._instance = instance
        self._over = threading.Event()
        self.accepted: list[str] = []
        self.refused = 0

    def run(self) -> None:
        chance = random.Random(SEED + 1)
        turn = 0
        while not self._over.wait(0.15):
            turn += 1
            shared = turn % 3 == 0
            seconds = chance.choice((1, 2, 25)) if not shared else 25
            script = f"END=$(( $(date +%s) + {seconds} )); {BURN}"
            body = {"user": USERS[turn % len(USERS)], "fraction": 0.5 if shared else 1, "argv": ["sh", "-c", script]}
            key = {"Idempotency-Key": f"chaos-key-{turn:06}"}
            self._ask(body, key)

    def _ask(self, body: dict[str, Any], key: dict[str, str]) -> None:
        """Again with the same key until there is an answer, as a client does whose request may have been lost."""
        for _ in range(40):
            try:
                with self._instance.client() as http:
                    answer = http.post("/v1/sessions", json=body, headers=key)
                if answer.status_code == 201:
                    self.accepted.append(answer.json()["session"])
                    return
                if answer.status_code < 500:
                    self.refused += 1
                    return
            except httpx.HTTPError:
                pass
            if self._over.wait(0.2):
                return

    def end(self) -> None:
        self._over.set()
        self.join(10)


class Frost(threading.Thread):
    """Watches the sessions' cgroups: for how long one was frozen without a break."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self._folder = folder
        self._over = threading.Event()
        self.longest_s = 0.0
        self.seen = 0

    def run(self) -> None:
        since: dict[Path, float] = {}
        while not self._over.wait(0.02):
            now = time.monotonic()
            for events in self._folder.glob("*/*/cgroup.events"):
                try:
                    frozen = "frozen 1" in events.read_text()
                except OSError:
                    frozen = False
                if not frozen:
                    since.pop(events, None)
                    continue
                self.seen += 1
                self.longest_s = max(self.longest_s, now - since.setdefault(events, now))

    def end(self) -> None:
        self._over.set()
        self.join(5)


def until(condition: Any, timeout_s: float, what: str) -> None:
    """Wait for a condition."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.1)


def answers(instance: LiveInstance) -> bool:
    """Whether the way to the scheduler and back works."""
    try:
        with instance.client() as http:
            return http.post("/v1/ping", json={}).status_code == 200
    except httpx.HTTPError:
        return False


def hasty(folder: Path) -> Path:
    """The demo's policy with little credit, so that throttles and graces are always under way."""
    text = preset_text("demo")
    text, changed = re.subn(r"baseline_gpus = [\d.]+", "baseline_gpus = 0.05", text)
    text, changed_too = re.subn(r"min_run_s = \d+", "min_run_s = 3", text)
    assert changed == changed_too == 1
    path = folder / "hasty.toml"
    path.write_text(text)
    return path


def test_kill_9_of_every_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """20 rounds over all parts under load; then everything ends, and the record is held against what really ran."""
    chance = random.Random(SEED)
    works, where = available()
    assert works, where
    with LiveInstance("2x2", str(hasty(tmp_path))) as instance:
        instance.set_users(*USERS)
        people, frost = People(instance), Frost(bases()[0] / f"fairtier-{instance_of(instance.state)}")
        people.start()
        frost.start()
        killed = []
        for number in range(ROUNDS):
            time.sleep(chance.uniform(0.8, 2.5))
            part = PARTS[number % len(PARTS)]
            pids = [pid for pid in instance.processes() if part_of(pid) == part]
            if pids:
                os.kill(chance.choice(pids), signal.SIGKILL)
                killed.append(part)
        until(lambda: answers(instance), 20, "the instance does not come back")
        people.end()
        end_everything(instance)
        frost.end()
        rows = check_record(instance, people)
        with capsys.disabled():
            print(
                f"\n{len(killed)} kills, seed {SEED}: {len(people.accepted)} accepted, {len(rows)} on record,"
                f" frozen {frost.seen} times seen, longest {frost.longest_s:.2f} s"
            )
    assert len(killed) >= ROUNDS - 2
    assert set(killed) == set(PARTS)
    assert len(people.accepted) >= ROUNDS
    assert frost.seen
    assert frost.longest_s <= THAW_S


def end_everything(instance: LiveInstance) -> None:
    """Cancel what has not ended, and wait until it has."""
    database = instance.state / "fairtier.db"

    def left() -> list[str]:
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
            return [sid for (sid,) in connection.execute("select session from sessions where ended_ms is null")]

    for sid in left():
        with instance.client() as http:
            http.post(f"/v1/sessions/{sid}/cancel", json={})
    until(lambda: not left(), 60, "not every session has ended")


def check_record(instance: LiveInstance, people: People) -> list[dict[str, Any]]:
    """Truth on disk against truth on the host."""
    reader = SqlReader(instance.state / "fairtier.db")
    try:
        rows = reader.sessions()
        decisions = reader.decisions()
        lines = list(reader.journal())
    finally:
        reader.close()
    by_id = {row["session"]: row for row in rows}
    assert len(set(people.accepted)) == len(people.accepted), "one key became two sessions"
    assert set(people.accepted) <= set(by_id), "something accepted is not on record"
    assert all(row["state"] == "ended" and row["outcome"] for row in rows)
    for sid, row in by_id.items():
        starts = instance.state / "sessions" / sid / "work" / "starts"
        ran = len(starts.read_text().splitlines()) if starts.exists() else 0
        assert ran <= 1, f"{sid} ran {ran} times"
        if row["outcome"] == "completed":
            assert ran == 1, f"{sid} is on record as completed and never ran"
    whole_grace(decisions)
    outcome = list(journal.replay(lines, "the journal"))
    assert all(isinstance(line, int) for line in outcome), outcome[-1]
    return rows


def whole_grace(decisions: list[dict[str, Any]]) -> None:
    """Nobody was evicted before its whole grace, whatever was killed in between."""
    grace: dict[str, int] = {}
    for row in decisions:
        if row["action"] == "grace":
            grace[row["session"]] = row["at_ms"]
        elif row["action"] == "evict" and row["rule"].startswith("ladder."):
            assert row["at_ms"] - grace[row["session"]] >= 5_000, row
