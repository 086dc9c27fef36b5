"""`fairtier up` with everything real: one ready line, one instance a directory, clean ends, clear refusals."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.live_instance import LiveInstance
from workers.leftovers import leftovers
from workers.settings import instance_of

pytestmark = pytest.mark.slow


def fairtier(*arguments: str, timeout: float = 30, **more: object) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    command = [sys.executable, "-m", "fairtier", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


@pytest.fixture(scope="module")
def live() -> Iterator[LiveInstance]:
    """An instance with the demo's policy, one host of two GPUs, and a user."""
    with LiveInstance("1x2", "demo") as instance:
        instance.set_users("ann", "bob")
        yield instance


def test_a_second_up_is_refused_and_the_first_goes_on(live: LiveInstance) -> None:
    """Same state directory: exit 5, and it says which process has it."""
    done = fairtier("up", "--state", str(live.state), "--emulate", "1x1")
    assert done.returncode == 5
    assert str(live.process.pid) in done.stderr
    assert not done.stdout
    assert live.http.post("/v1/ping", json={}).status_code == 200


def test_a_busy_port_is_refused_and_nothing_is_started(tmp_path: Path) -> None:
    """Exit 5 before anything runs."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = fairtier("up", "--state", str(tmp_path / "s"), "--emulate", "1x1", "--http", str(port))
    assert done.returncode == 5
    assert str(port) in done.stderr
    assert not list((tmp_path / "s").glob("*.sock"))


def test_a_state_path_too_long_for_a_socket_is_bad_input(tmp_path: Path) -> None:
    """Exit 2, with the length and the limit; nothing is made."""
    state = tmp_path / ("x" * 120)
    done = fairtier("up", "--state", str(state), "--emulate", "1x1")
    assert done.returncode == 2
    assert "107" in done.stderr
    assert not state.exists()


@pytest.mark.parametrize("emulate", ["2", "0x2", "2x0", "2x", "axb", "65x1", "1x1025", "-1x2"])
def test_nonsense_for_emulate_is_bad_input(tmp_path: Path, emulate: str) -> None:
    """Exit 2, with what is allowed."""
    done = fairtier("up", "--state", str(tmp_path / "s"), f"--emulate={emulate}")
    assert done.returncode == 2
    assert "HOSTSxGPUS" in done.stderr
    assert not (tmp_path / "s").exists()


def test_a_session_runs_and_its_output_and_exit_code_are_kept(live: LiveInstance) -> None:
    """A command's output goes to its log, its exit code to its record."""
    answer = live.http.post("/v1/sessions", json={"user": "ann", "argv": ["sh", "-c", "echo hello; exit 3"]}).json()
    sid = answer["session"]
    row = until_ended(live, sid)
    assert (row["outcome"], row["exit_code"]) == ("failed", 3)
    assert (live.state / "sessions" / sid / "log").read_text() == "hello\n"


def until_ended(live: LiveInstance, sid: str, timeout_s: float = 30) -> dict[str, object]:
    """The session once it has ended."""
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        row: dict[str, object] = live.http.get(f"/v1/sessions/{sid}").json()
        if row["state"] == "ended":
            return row
        time.sleep(0.05)
    raise AssertionError(f"{sid} has not ended: {row}")


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT, "down"])
def test_the_end_is_clean_and_quick(end: signal.Signals | str) -> None:
    """SIGTERM, Ctrl-C or `down` with a running, a deaf and a waiting session: exit 0 in 10 s, nothing is left."""
    with LiveInstance("1x2", "demo") as instance:
        instance.set_users("ann")
        deaf = ["sh", "-c", "trap '' TERM; while :; do sleep 1; done"]
        for argv in (["sleep", "1000"], deaf, ["sleep", "1000"]):
            instance.http.post("/v1/sessions", json={"user": "ann", "argv": argv}).raise_for_status()
        time.sleep(1)
        pids = instance.processes()
        began = time.monotonic()
        if end == "down":
            assert fairtier("down", "--state", str(instance.state)).returncode == 0
        else:
            instance.process.send_signal(end)
        assert instance.process.wait(15) == 0
        assert time.monotonic() - began < 10
        assert not [pid for pid in pids if lives(pid)]
        assert set(leftovers(instance_of(instance.state), instance.state).values()) == {0}
        assert not [path for path in instance.state.rglob("*") if path.is_socket()]


def lives(pid: int) -> bool:
    """Whether a process exists and is not just waiting to be reaped."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_ctrl_c_during_the_start_leaves_nothing(tmp_path: Path) -> None:
    """At several moments of the start."""
    for moment_s in (0.3, 0.6, 1.0, 1.5):
        state = tmp_path / f"s{moment_s}"
        command = [sys.executable, "-m", "fairtier", "up", "--state", str(state), "--emulate", "1x1"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(moment_s)
        process.send_signal(signal.SIGINT)
        process.wait(15)
        left = subprocess.run(["pgrep", "-f", str(state)], capture_output=True, text=True, check=False).stdout
        assert not left
        assert not [path for path in state.rglob("*") if path.is_socket()]


def test_the_queue_survives_the_end(tmp_path: Path) -> None:
    """What waits when the instance ends waits again after the next start, and runs."""
    with LiveInstance("1x1", "demo") as first:
        first.set_users("ann")
        first.http.post("/v1/sessions", json={"user": "ann", "argv": ["sleep", "1000"]}).raise_for_status()
        waiting = first.http.post("/v1/sessions", json={"user": "ann", "argv": ["true"]}).json()["session"]
        assert fairtier("down", "--state", str(first.state)).returncode == 0
        with LiveInstance("1x1", "demo", state=first.state) as second:
            assert until_ended(second, waiting)["outcome"] == "completed"


@pytest.mark.parametrize("victim", ["scheduler", "valkey-server", "redis-server"])
def test_a_dead_part_is_told_in_three_seconds(victim: str) -> None:
    """Scheduler or transport stopped: exit 4 in under 3 s; awake again, everything goes on."""
    with LiveInstance("1x1", "demo") as instance:
        instance.set_users("ann")
        pids = [pid for pid in instance.processes() if victim in command_of(pid)]
        if not pids:
            assert victim != "scheduler"
            return  # the other server is the one in use here
        os.kill(pids[0], signal.SIGSTOP)
        try:
            began = time.monotonic()
            done = fairtier("submit", "--state", str(instance.state), "--user", "ann", "--", "true")
            took = time.monotonic() - began
        finally:
            os.kill(pids[0], signal.SIGCONT)
        assert done.returncode == 4, done.stderr
        assert took < 3
        done = fairtier("submit", "--state", str(instance.state), "--user", "ann", "--", "true")
        assert done.returncode == 0, done.stderr


def command_of(pid: int) -> str:
    """Program and first arguments of a process."""
    try:
        return " ".join(Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:5])
    except OSError:
        return ""


def test_no_instance_is_told_at_once(tmp_path: Path) -> None:
    """Exit 4, and what to do."""
    began = time.monotonic()
    done = fairtier("queue", "--state", str(tmp_path))
    assert done.returncode == 4
    assert "fairtier up" in done.stderr
    assert time.monotonic() - began < 3
