"""What goes wrong around a live instance, and how it heals: full disk, wiped transport, silent host, and more."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis

from benchmarks.live_instance import LiveInstance

pytestmark = pytest.mark.slow


def until(condition: Callable[[], Any], timeout_s: float, what: str) -> Any:
    """The condition's value once it is true."""
    end = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < end, what
        time.sleep(0.1)
    return value


def fairtier(instance: LiveInstance, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command on the instance."""
    command, environment = [sys.executable, "-m", "fairtier", *arguments], {"FAIRTIER_STATE": str(instance.state)}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **environment}
    )


def submit(instance: LiveInstance, user: str, *argv: str) -> str:
    """A session of a user."""
    answer = instance.http.post("/v1/sessions", json={"user": user, "argv": list(argv)})
    answer.raise_for_status()
    return str(answer.json()["session"])


def session(instance: LiveInstance, sid: str) -> dict[str, Any]:
    """Its state now."""
    row: dict[str, Any] = instance.http.get(f"/v1/sessions/{sid}").json()
    return row


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of 12 MiB."""
    folder = Path(tempfile.mkdtemp(prefix="fairtier-disk-"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
        shutil.rmtree(folder)


def fill(folder: Path) -> Path:
    """Leave no byte free."""
    path = folder / "ballast"
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 65536)
    with suppress(OSError), path.open("ab", buffering=0) as file:
        while True:
            file.write(b"\0" * 512)
    return path


def test_a_full_disk(small_disk: Path) -> None:
    """Submissions are refused with exit 5, what was accepted goes on; with room the instance recovers by itself."""
    with LiveInstance("1x2", "demo", state=small_disk / "s") as instance:
        instance.set_users("ann")
        before = submit(instance, "ann", "sleep", "6")
        # Running means that its shell was started; a shell that has not noted its pid when space runs out gives up.
        pid = small_disk / "s" / "sessions" / before / "pid"
        until(lambda: pid.exists() and pid.read_text(), 10, "not started")
        ballast = fill(small_disk)
        done = until(
            lambda: (one := fairtier(instance, "submit", "--user", "ann", "--", "true")).returncode and one,
            20,
            "no error",
        )
        assert done.returncode == 5, done.stderr
        assert "space" in done.stderr or "full" in done.stderr
        time.sleep(3)
        ballast.unlink()
        after = until(lambda: accepted(instance), 15, "no recovery")
        until(lambda: session(instance, before)["outcome"] == "completed", 20, "the first session was lost")
        until(lambda: session(instance, after)["outcome"] == "completed", 20, "the second session does not run")
        assert fairtier(instance, "simulate", "replay", "--state", str(instance.state)).returncode == 0


def accepted(instance: LiveInstance) -> str | None:
    """A session, once one is accepted again."""
    answer = instance.http.post("/v1/sessions", json={"user": "ann", "argv": ["true"]})
    return str(answer.json()["session"]) if answer.status_code == 201 else None


def test_a_transport_that_is_wiped_again_and_again() -> None:
    """FLUSHALL every tenth of a second while sessions are asked for: everything accepted runs once, no host is lost."""
    with LiveInstance("2x4", "demo") as instance:
        instance.set_users("ann", "bob")
        server = redis.Redis.from_url(f"unix://{instance.state}/redis.sock")
        taken: list[str] = []
        until_s = time.monotonic() + 6
        while time.monotonic() < until_s:
            server.flushall()
            answer = instance.http.post("/v1/sessions", json={"user": "ann", "argv": ["sh", "-c", "echo x >> ran"]})
            if answer.status_code == 201:
                taken.append(answer.json()["session"])
            time.sleep(0.1)
        server.close()
        assert len(taken) >= 5
        for sid in taken:
            until(lambda sid=sid: session(instance, sid)["state"] == "ended", 40, f"{sid} has not ended")
            assert session(instance, sid)["outcome"] == "completed", session(instance, sid)
            assert (instance.state / "sessions" / sid / "work" / "ran").read_text() == "x\n"
        hosts = instance.http.get("/v1/hosts").json()["hosts"]
        assert {host["state"] for host in hosts} == {"up"}


def test_a_host_that_falls_silent_and_comes_back() -> None:
    """Its worker stops: nothing new goes there, its sessions are lost; back again, it ends them and serves."""
    with LiveInstance("1x1", "demo") as instance:
        instance.set_users("ann")
        lost = submit(instance, "ann", "sleep", "1000")
        until(lambda: session(instance, lost)["state"] == "running", 10, "not started")
        [worker] = [pid for pid in instance.processes() if b"\0worker\0" in cmdline(pid)]
        os.kill(worker, signal.SIGSTOP)
        until(lambda: instance.http.get("/v1/hosts").json()["hosts"][0]["state"] == "stale", 15, "not stale")
        waiting = submit(instance, "ann", "true")
        until(lambda: session(instance, lost)["outcome"] == "lost", 30, "not lost")
        assert session(instance, waiting)["state"] == "queued"
        os.kill(worker, signal.SIGCONT)
        until(lambda: session(instance, waiting)["outcome"] == "completed", 20, "the host does not serve again")
        left = subprocess.run(["pgrep", "-fx", "sleep 1000"], capture_output=True, text=True, check=False).stdout
        assert not left


def cmdline(pid: int) -> bytes:
    """Its command line."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def test_background_work_is_done() -> None:
    """A usage report and a simulation, asked for by command, end with files."""
    with LiveInstance("1x1", "demo") as instance:
        instance.set_users("ann")
        sid = submit(instance, "ann", "true")
        until(lambda: session(instance, sid)["state"] == "ended", 15, "not ended")
        now_ms = time.time_ns() // 1_000_000
        report = fairtier(instance, "task", "run", "usage-report", f"since_ms={now_ms - 60_000}", f"until_ms={now_ms}")
        assert report.returncode == 0, report.stderr
        asked = fairtier(instance, "task", "run", "simulate", "scenario=calm", "policy=fifo", "days=0.2", "-o", "json")
        assert asked.returncode == 0, asked.stderr

        def states() -> dict[str, str]:
            return {row["kind"]: row["state"] for row in instance.http.get("/v1/tasks").json()["tasks"]}

        until(lambda: set(states().values()) == {"done"}, 60, states())
        assert "ann" in (instance.state / "tasks" / "t-1" / "report.csv").read_text()
        assert (instance.state / "tasks" / "t-2").is_dir()
        refused = fairtier(instance, "task", "run", "os.system", "x=1")
        assert refused.returncode == 2


@pytest.mark.parametrize(
    "argv",
    [
        ["-c", "import os"],
        ["$(touch /tmp/fairtier-hostile)"],
        ["sh", "-c", "exit 0; touch x"],
        ["/no/such/program"],
        ["echo", "\x1b[31m\x07", "=cmd()", "a\nb"],
        ["echo", "'; drop table sessions; --"],
    ],
)
def test_hostile_commands_are_only_commands(argv: list[str]) -> None:
    """No shell of ours looks at an argument; a program that does not exist fails with a readable log."""
    with LiveInstance("1x1", "demo") as instance:
        instance.set_users("ann")
        sid = submit(instance, "ann", *argv)
        row = until(lambda: (one := session(instance, sid))["state"] == "ended" and one, 15, "not ended")
        assert not Path("/tmp/fairtier-hostile").exists()
        assert row["outcome"] in ("completed", "failed")
        shown = fairtier(instance, "session", sid)
        assert shown.returncode == 0
        assert "\x1b" not in shown.stdout
        listed = fairtier(instance, "sessions", "--all", "-o", "csv")
        assert not [line for line in listed.stdout.splitlines() if line.startswith(("=", "+", "-", "@"))]
