"""An instance for measuring: started as its users do, in a folder of its own, and ended at the end."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

READY_S = 60.0


class LiveInstance:
    """`fairtier up` on emulated hosts; a context.

    Attributes:
        state: its state directory.
        process: of `up`.
        http: a warm client of its API.
    """

    def __init__(self, emulate: str, policy: str = "research-first", state: Path | None = None) -> None:
        self._emulate = emulate
        self._policy = policy
        self._folder = Path(tempfile.mkdtemp(prefix="fairtier-live-"))
        self.state = state or self._folder / "s"

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "fairtier", "up", "--state", str(self.state)]
        self.process = subprocess.Popen(
            [*command, "--emulate", self._emulate, "--policy", self._policy], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.startswith("ready "):
            raise RuntimeError(f"fairtier up did not get ready: {line!r}")
        self.http = self.client()
        return self

    def keep(self, target: Path) -> None:
        """Copy logs and records elsewhere, to look at after a failure."""
        shutil.copytree(self.state, target, ignore=shutil.ignore_patterns("*.sock"), dirs_exist_ok=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.http.close()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)
        if self.process.stdout is not None:
            self.process.stdout.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def client(self) -> httpx.Client:
        """Another client of the API's socket."""
        transport = httpx.HTTPTransport(uds=str(self.state / "api.sock"))
        return httpx.Client(transport=transport, base_url="http://fairtier", timeout=30)

    def set_users(self, *names: str) -> None:
        """Create users."""
        for name in names:
            self.http.put(f"/v1/users/{name}", json={}).raise_for_status()

    def processes(self) -> list[int]:
        """Process ids of the whole instance: `up` and everything below it."""
        below: dict[int, list[int]] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                except OSError:
                    continue
                below.setdefault(parent, []).append(int(entry.name))
        found, todo = [], [self.process.pid]
        while todo:
            pid = todo.pop()
            found.append(pid)
            todo += below.get(pid, [])
        return found

    def pss_mib(self) -> float:
        """Proportional set size of all processes."""
        total = 0
        for pid in self.processes():
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
        return total / 1024

    def cpu_s(self) -> float:
        """Processor time used by all processes so far."""
        ticks = 0
        for pid in self.processes():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")
