"""A whole instance on one machine: its server, scheduler, API, tasks and workers, from a lock to a clean end."""

from __future__ import annotations

import contextlib
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from fairtier.instance_lock import InstanceLock
from fairtier.knock import knock, listens
from fairtier.supervisor import Child, Supervisor, child_environment
from scheduler import state_dir
from scheduler.adapters.embedded import find_server, write_config
from scheduler.errors import FairTierError, Refused

READY_S = 60.0
"""A start that takes longer than this has failed."""
CLOSE_S = 4.0
"""Time that sessions have to end when the instance does; all of `down` takes at most 10 s."""
LOOPBACK = "127.0.0.1"


class Plan(NamedTuple):
    """What to run.

    Attributes:
        state: the state directory, absolute.
        hosts: (name, emulated GPUs) of each worker.
        policy: preset or file; None = the one on record, or the default.
        http_port: for status and metrics on the loopback interface; 0 = a free one, None = none.
        report_s: time between two reports of a worker.
    """

    state: Path
    hosts: tuple[tuple[str, int], ...]
    policy: str | None
    http_port: int | None
    report_s: float


class Instance:
    """A running instance; use as a context.

    Args:
        plan: what to run.
        say: told what happens, one line each.

    Raises:
        Refused: another instance runs on the state directory, or the port is taken.
        BadInput: the state directory's name is too long for a socket.
    """

    def __init__(self, plan: Plan, say: Callable[[str], None]) -> None:
        self.plan = plan
        self._say = say
        self._stack = contextlib.ExitStack()
        self.url = ""

    def __enter__(self) -> Instance:
        state = self.plan.state
        api, redis = state_dir.api_socket(state), state_dir.redis_socket(state)
        _make(state)
        with self._stack as stack:
            stack.enter_context(InstanceLock(state))
            port = None if self.plan.http_port is None else _free_port(self.plan.http_port)
            self.url = f"unix://{api}" if port is None else f"http://{LOOPBACK}:{port}"
            self._supervisor = Supervisor(child_environment(), self._say)
            stack.callback(self._supervisor.release_signals)
            stack.callback(_clear, self.plan, [api, redis])
            stack.callback(self._supervisor.close)
            self._start(api, redis, port)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._end_sessions()
            self._supervisor.end([name for name in self._supervisor.names if name != "redis"], 2.0)
        finally:
            self._stack.close()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Keep everything running for a while (None = until told); True = the instance is to end."""
        return self._supervisor.wait(timeout_s)

    # -- begin -------------------------------------------------------------------------------------------------------

    def _start(self, api: Path, redis: Path, port: int | None) -> None:
        """Server first, then the rest at once; returns when a submit would be accepted."""
        server, _ = find_server()
        redis.unlink(missing_ok=True)
        # Without the directory, which is the server's own: in what it says of its clients a space parts the members.
        self._child("redis", [server, str(write_config(self.plan.state, Path(redis.name)))])
        self._until(lambda: listens(redis), "the Redis-compatible server does not listen")
        hosts = ",".join(host for host, _ in self.plan.hosts)
        http = [] if port is None else ["--http", str(port)]
        policy = [] if self.plan.policy is None else ["--policy", self.plan.policy]
        self._child("scheduler", self._ours("scheduler", *policy, "--hosts", hosts))
        self._child("api", self._ours("api", *http))
        for host, gpus in self.plan.hosts:
            more = ["--redis", f"unix://{redis}", "--report-s", f"{self.plan.report_s:g}"]
            self._child(f"worker-{host}", self._ours("worker", "--host", host, "--emulate", str(gpus), *more))
        self._child("tasks", self._ours("tasks"))
        self._until(lambda: self._is_ready(api), "the instance does not get ready")
        self._supervisor.settled = True

    def _ours(self, command: str, *more: str) -> list[str]:
        return [sys.executable, "-P", "-m", "fairtier", command, "--state", str(self.plan.state), *more]

    def _child(self, name: str, argv: list[str]) -> None:
        self._supervisor.start(Child(name, argv, self.plan.state / "log" / f"{name}.log"))

    def _is_ready(self, api: Path) -> bool:
        """The way to the scheduler and back works, and every host has joined."""
        if not listens(api) or knock(api, "POST", "/v1/ping") is None:
            return False
        joined = knock(api, "GET", "/v1/hosts") or {}
        return {host for host, _ in self.plan.hosts} <= {
            row.get("host") for row in joined.get("hosts", []) if row.get("state") != "lost"
        }

    def _until(self, condition: Callable[[], bool], failure: str) -> None:
        until = time.monotonic() + READY_S
        while not condition():
            if self._supervisor.wait(0.03):
                raise KeyboardInterrupt
            if time.monotonic() > until:
                raise FairTierError(f"{failure} within {READY_S:g} s", f"see the logs in {self.plan.state / 'log'}")

    # -- end ---------------------------------------------------------------------------------------------------------

    def _end_sessions(self) -> None:
        """Have the scheduler end every session and note it, while everybody who is needed for that still runs."""
        api = state_dir.api_socket(self.plan.state)
        self._supervisor.end(["tasks"], 2.0)
        until = time.monotonic() + CLOSE_S
        if knock(api, "POST", "/v1/close") is None:
            return
        while time.monotonic() < until:
            status = knock(api, "GET", "/v1/status") or {}
            if not sum(status.get("sessions", {}).get(state, 0) for state in ("starting", "running", "stopping")):
                return
            time.sleep(0.05)


def _make(state: Path) -> None:
    try:
        for folder in (state, state / "log", state / "sessions"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        state.chmod(0o700)
    except OSError as error:
        raise FairTierError(f"the state directory {state} cannot be used: {error.strerror}") from error


def _free_port(port: int) -> int:
    """The port, when it can be had; 0 = a free one. `Refused` when it is taken."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            raise Refused(
                f"port {port} on {LOOPBACK} cannot be had: {error.strerror}", "name another with --http, or --http 0"
            ) from None
        chosen: int = probe.getsockname()[1]
        return chosen


def _clear(plan: Plan, sockets: list[Path]) -> None:
    """What ended processes can leave behind: sessions of a worker that was killed, sockets."""
    from workers.leftovers import sweep  # noqa: PLC0415 - at the end only
    from workers.settings import instance_of  # noqa: PLC0415

    sweep(instance_of(plan.state), plan.state)
    for path in sockets:
        path.unlink(missing_ok=True)
