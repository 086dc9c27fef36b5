"""A place to try the API in: a real Redis-compatible server, a real API process, and a scheduler that only answers."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import redis

from scheduler.adapters.embedded import find_server
from scheduler.adapters.redis_bus import INBOX
from scheduler.requests import Answer, Request, read_request

SERVE = "from scheduler.api_cli import api; api()"
START_S = 15.0

Responder = Callable[[Request], Answer | None]


@contextlib.contextmanager
def short_directory() -> Iterator[Path]:
    """A directory whose sockets' paths are short enough."""
    path = Path(tempfile.mkdtemp(prefix="ft-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


class Transport:
    """A Redis-compatible server on `STATE/redis.sock`; may be stopped and started again, empty."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.url = f"unix://{state}/redis.sock"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        binary, _ = find_server()
        socket = self.state / "redis.sock"
        arguments = [
            "--port",
            "0",
            "--unixsocket",
            str(socket),
            "--save",
            "",
            "--appendonly",
            "no",
            "--dir",
            str(self.state),
        ]
        self._process = subprocess.Popen([binary, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(lambda: self.client().ping(), (redis.ConnectionError, OSError))

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def wait_until(true: Callable[[], object], errors: tuple[type[BaseException], ...] = ()) -> None:
    """Until a condition holds and raises none of these errors."""
    end = time.monotonic() + START_S
    while True:
        with contextlib.suppress(*errors):
            if true():
                return
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


class Scheduler:
    """Reads requests and answers them by a function; None = not at all. Remembers what it was told.

    Attributes:
        told: every request read, repetitions included.
    """

    def __init__(self, url: str, respond: Responder) -> None:
        self.told: list[Request] = []
        self.respond = respond
        self._redis: Any = redis.Redis.from_url(url, protocol=2)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Scheduler:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()
        self._redis.close()

    def _run(self) -> None:
        newest = self._redis.xrevrange(INBOX, count=1)
        cursor = newest[0][0].decode() if newest else "0"
        while not self._over.is_set():
            try:
                cursor = self._turn(cursor)
            except redis.RedisError:
                cursor = "0"
                time.sleep(0.02)

    def _turn(self, cursor: str) -> str:
        found = self._redis.xread({INBOX: cursor}, block=50)
        for entry_id, fields in found[0][1] if found else ():
            cursor = entry_id.decode()
            request = read_request(fields[b"m"])
            self.told.append(request)
            answer = self.respond(request)
            if answer is not None:
                self._redis.xadd(request.reply_to, {"m": answer.model_dump_json()})
        return cursor


class Api:
    """An API process on a state directory, and a plain HTTP client for it."""

    def __init__(self, state: Path, *arguments: str, environment: dict[str, str] | None = None) -> None:
        self.state = state
        self._ended: tuple[int, str] | None = None
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVE, "--state", str(state), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        assert self.process.stdout is not None
        self.ready = self.process.stdout.readline().split()
        self.http = httpx.Client(
            transport=httpx.HTTPTransport(uds=str(state / "api.sock")), base_url="http://fairtier", timeout=10
        )

    def __enter__(self) -> Api:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self, how: int = signal.SIGTERM) -> tuple[int, str]:
        """Its exit code, and what it wrote to standard error."""
        if self._ended is None:
            self.http.close()
            self.process.send_signal(how)
            _, told = self.process.communicate(timeout=10)
            self._ended = self.process.returncode, told
        return self._ended
