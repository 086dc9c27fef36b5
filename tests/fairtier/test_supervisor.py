"""The supervisor with real children: started again, given up at a start only, and ended by the signals that end it."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fairtier.instance_lock import NAME, InstanceLock
from fairtier.supervisor import Child, ChildEnded, Supervisor
from scheduler.errors import Refused


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def supervisor(said: list[str]) -> Iterator[Supervisor]:
    made = Supervisor(dict(os.environ), said.append)
    yield made
    made.close()
    made.release_signals()


def child(folder: Path, script: str) -> Child:
    return Child("part", ["sh", "-c", script], folder / "part.log")


def test_a_refusal_at_the_start_is_final(supervisor: Supervisor, tmp_path: Path) -> None:
    """Another start would be refused as well: the message and the exit code are the child's."""
    supervisor.start(child(tmp_path, "echo 'error: no room' >&2; exit 5"))
    with pytest.raises(ChildEnded, match="no room") as raised:
        supervisor.wait(5)
    assert raised.value.exit_code == 5


def test_a_refusal_later_on_is_tried_again(supervisor: Supervisor, said: list[str], tmp_path: Path) -> None:
    """Once everything ran, a part that is refused (a full disk) is started again until it is not."""
    supervisor.settled = True
    supervisor.start(child(tmp_path, f"[ -e {tmp_path}/room ] && exec sleep 60; touch {tmp_path}/room; exit 5"))
    assert not supervisor.wait(1)
    assert [line for line in said if "exit code 5" in line]
    assert (tmp_path / "room").exists()


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_end_it(supervisor: Supervisor, end: signal.Signals) -> None:
    """Also the one that a closed terminal sends."""
    signal.pthread_kill(threading.get_ident(), end)  # to this thread: others of the test runner do not block it
    assert supervisor.wait(5)


def test_a_second_request_to_end_does_not_cut_the_end_short(said: list[str]) -> None:
    """Two `down`s at once: the second signal waits until everything is cleared, and is dropped then."""
    made = Supervisor(dict(os.environ), said.append)
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
    assert made.wait(5)
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
    made.close()
    made.release_signals()
    assert not signal.sigpending()


def test_nohup_is_respected(tmp_path: Path) -> None:
    """Started with the hang-up ignored, it goes on, and so do its children."""
    script = (
        "import os, signal; signal.signal(signal.SIGHUP, signal.SIG_IGN);"
        "from fairtier.supervisor import Supervisor; made = Supervisor({}, print);"
        "os.kill(os.getpid(), signal.SIGHUP); print(made.wait(0.2)); made.close()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_look_at_the_lock_does_not_keep_an_instance_from_starting(tmp_path: Path) -> None:
    """`down` and `status` hold the lock for a moment to see whether anybody does."""
    with (tmp_path / NAME).open("w") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        threading.Timer(0.05, lambda: fcntl.flock(looking, fcntl.LOCK_UN)).start()
        with InstanceLock(tmp_path):
            pass
        time.sleep(0.1)


def test_a_second_instance_is_refused(tmp_path: Path) -> None:
    """It says who runs there."""
    with InstanceLock(tmp_path), pytest.raises(Refused, match=str(os.getpid())), InstanceLock(tmp_path):
        pass
