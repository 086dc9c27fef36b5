"""A user is restricted and pardoned on an instance where everything is real, across a restart of all of it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.live_instance import LiveInstance

pytestmark = pytest.mark.slow


def fairtier(state: Path, *arguments: str) -> str:
    """What a command that succeeds prints."""
    command = [sys.executable, "-m", "fairtier", *arguments, "--state", str(state)]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout


def document(state: Path, *arguments: str) -> Any:
    """The JSON of a command."""
    return json.loads(fairtier(state, *arguments, "-o", "json"))


def submit(state: Path) -> str:
    """A session of bob's that sleeps."""
    command = [sys.executable, "-m", "fairtier", "submit", "--user", "bob", "--state", str(state), "-o", "json"]
    done = subprocess.run([*command, "--", "sleep", "600"], capture_output=True, text=True, timeout=30, check=True)
    return str(json.loads(done.stdout)["session"])


def until_running(state: Path, session: str, timeout_s: float = 20) -> None:
    """Returns when it runs."""
    until = time.monotonic() + timeout_s
    while document(state, "session", session)["state"] != "running":
        assert time.monotonic() < until, f"{session} does not run: {fairtier(state, 'why', session)}"
        time.sleep(0.1)


def reasons(state: Path, session: str) -> list[tuple[str, str | None]]:
    """(code, until) of what it waits for."""
    return [(reason["code"], reason["until"]) for reason in document(state, "why", session)["reasons"]]


def restricted(state: Path) -> dict[str, str | None]:
    """Until when, by user."""
    return {row["user"]: row["restricted_until"] for row in document(state, "user", "list")["users"]}


def test_a_restriction_holds_over_a_restart_until_the_pardon(tmp_path: Path) -> None:
    """What runs goes on, what is new waits and says why, GPUs being free; the pardon starts it at once."""
    state = tmp_path / "s"
    with LiveInstance("1x2", state=state) as instance:
        instance.set_users("ann", "bob")
        running = submit(state)
        until_running(state, running)
        assert "bob restricted until 2100-01-01 00:00:00Z" in fairtier(
            state, "user", "restrict", "bob", "--until", "2100-01-01T00:00Z", "--reason", "mining"
        )
        waiting = submit(state)
        time.sleep(1)
        assert document(state, "session", running)["state"] == "running"
        assert reasons(state, waiting) == [("Restricted", "2100-01-01T00:00:00Z")]
    with LiveInstance("1x2", state=state):
        assert restricted(state) == {"ann": None, "bob": "2100-01-01T00:00:00.000Z"}
        assert reasons(state, waiting) == [("Restricted", "2100-01-01T00:00:00Z")]
        fairtier(state, "user", "restrict", "bob")
        assert restricted(state) == {"ann": None, "bob": "pardon"}
        assert reasons(state, waiting) == [("Restricted", None)]
        assert fairtier(state, "user", "pardon", "bob", "--reason", "a mistake").startswith("bob pardoned")
        until_running(state, waiting)
        assert restricted(state) == {"ann": None, "bob": None}
        acts = [row for row in document(state, "history", "--user", "bob")["decisions"] if row["session"] is None]
        assert [(row["rule"], row["text"]) for row in acts] == [
            ("admin.restrict", "mining"),
            ("admin.restrict", ""),
            ("admin.pardon", "a mistake"),
        ]
        assert all(row["by"] for row in acts)


def test_a_restriction_ends_by_itself_when_its_time_is_over(tmp_path: Path) -> None:
    """Nobody does anything: the session that waited starts then, and no sooner."""
    state = tmp_path / "s"
    with LiveInstance("1x1", state=state) as instance:
        instance.set_users("bob")
        began = time.monotonic()
        fairtier(state, "user", "restrict", "bob", "--for", "4s")
        session = submit(state)
        until_running(state, session)
        assert time.monotonic() - began >= 4
        assert restricted(state) == {"bob": None}
