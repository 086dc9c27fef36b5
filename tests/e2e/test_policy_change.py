"""Another policy on an instance where everything is real: activated under a running session, killed, rolled back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.live_instance import LiveInstance

pytestmark = pytest.mark.slow

PATIENT = """\
name = "patient"
[ladder]
contention_s = 60
[telemetry]
report_s = 1
"""


def fairtier(state: Path, *arguments: str) -> str:
    """What a command that succeeds prints."""
    command = [sys.executable, "-m", "fairtier", *arguments, "--state", str(state)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def document(state: Path, *arguments: str) -> Any:
    """The JSON of a command."""
    return json.loads(fairtier(state, *arguments, "-o", "json"))


def submit(state: Path, user: str) -> str:
    """A session that sleeps."""
    command = [sys.executable, "-m", "fairtier", "submit", "--user", user, "--state", str(state), "-o", "json"]
    done = subprocess.run([*command, "--", "sleep", "600"], capture_output=True, text=True, timeout=60, check=True)
    return str(json.loads(done.stdout)["session"])


def until(state: Path, session: str, wanted: str, timeout_s: float = 30) -> None:
    """Returns when the session is in this state."""
    end = time.monotonic() + timeout_s
    while document(state, "session", session)["state"] != wanted:
        assert time.monotonic() < end, fairtier(state, "why", session)
        time.sleep(0.1)


def kill_scheduler(state: Path) -> None:
    """SIGKILL for the scheduler of this state directory alone; returns when another one answers."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"scheduler" in words and str(state).encode() in words:
            os.kill(int(process.name), signal.SIGKILL)
            break
    else:
        raise AssertionError("no scheduler found")
    end = time.monotonic() + 30
    while True:
        status = subprocess.run(
            [sys.executable, "-m", "fairtier", "status", "--state", str(state)], capture_output=True, check=False
        )
        if status.returncode == 0:
            return
        assert time.monotonic() < end, status.stderr
        time.sleep(0.1)


def by_version(state: Path, session: str) -> dict[str, int]:
    """The version that made each decision about a session, by action."""
    return {
        row["action"]: row["policy_version"] for row in document(state, "history", "--session", session)["decisions"]
    }


def test_a_policy_is_changed_while_sessions_run(tmp_path: Path) -> None:
    """Version 1 starts a session, 2 the next one, also after the scheduler was killed; 3 is a rollback.

    The first session runs through all of it, and the journal of all parts replays without a difference.
    """
    state = tmp_path / "s"
    mine = tmp_path / "patient.toml"
    mine.write_text(PATIENT)
    with LiveInstance("1x4", policy="demo", state=state) as instance:
        instance.set_users("ann", "bob")
        first = submit(state, "ann")
        until(state, first, "running")
        assert document(state, "policy", "shadow", "demo", "--every", "0")["differences"] == []
        assert "version 2 is in force: patient" in fairtier(state, "policy", "activate", str(mine), "--note", "exam")
        second = submit(state, "bob")
        until(state, second, "running")
        kill_scheduler(state)
        live = document(state, "policy", "show", "--live")
        assert (live["name"], live["version"], live["values"]["ladder"]["contention_s"]) == ("patient", 2, 60)
        third = submit(state, "bob")
        until(state, third, "running")
        assert "version 3 is in force: demo, as in version 1" in fairtier(state, "policy", "rollback")
        kill_scheduler(state)
        fourth = submit(state, "ann")
        until(state, fourth, "running")
        assert [by_version(state, sid)["start"] for sid in (first, second, third, fourth)] == [1, 2, 2, 3]
        assert document(state, "session", first)["state"] == "running"
        versions = document(state, "policy", "versions")["versions"]
        assert [(row["name"], row["source"]) for row in versions] == [
            ("demo", "start"),
            ("patient", "activate"),
            ("demo", "rollback"),
        ]
        assert "every decision equal" in fairtier(state, "simulate", "replay")
    assert "every decision equal" in fairtier(state, "simulate", "replay")
