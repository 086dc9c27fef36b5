"""A duty cycle keeps its fraction, ends with its lease and with the worker; requests out of bounds do nothing."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.workers.rig import BURN, runnable_ns, until
from workers.containment import Cgroups
from workers.enforcer import Duty, Enforcer

PERIOD_NS = 200_000_000


class Peer:
    """An enforcer as its own process, and our end of its socket."""

    def __init__(self, root: Path) -> None:
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(5)
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "workers.enforcer", "--fd", str(theirs.fileno()), "--cgroups", str(root)],
            pass_fds=[theirs.fileno()],
        )
        theirs.close()

    def ask(self, request: str) -> str:
        self.socket.send(f"7 {request}".encode())
        return self.socket.recv(4096).decode().removeprefix("7 ")

    def close(self) -> None:
        self.socket.close()
        self.process.wait(5)


@pytest.fixture
def burning(cgroups: Cgroups) -> Iterator[subprocess.Popen[bytes]]:
    folder = cgroups.create("s-1")
    join = 'echo 0 >"$0/cgroup.procs"; exec "$@"'
    with subprocess.Popen(["/bin/sh", "-c", join, folder, *BURN]) as process:
        until(lambda: runnable_ns([process.pid]) > 20_000_000)
        yield process
        cgroups.kill("s-1")


@pytest.fixture
def peer(cgroups: Cgroups, burning: subprocess.Popen[bytes]) -> Iterator[Peer]:
    peer = Peer(cgroups.root)
    assert peer.ask(f"add s-1 {burning.pid}") == "ok"
    yield peer
    peer.close()


def share(pid: int, seconds: float) -> float:
    before, began = runnable_ns([pid]), time.monotonic_ns()
    time.sleep(seconds)
    return (runnable_ns([pid]) - before) / (time.monotonic_ns() - began)


@pytest.mark.parametrize("granted_m", [250, 500, 750])
def test_a_throttled_session_runs_its_fraction_of_the_time(peer: Peer, burning, granted_m: int) -> None:
    assert peer.ask(f"duty s-1 {granted_m} 60000") == "ok"
    time.sleep(0.2)
    assert share(burning.pid, 2.0) == pytest.approx(granted_m / 1000, abs=0.05)


def test_without_a_throttle_it_runs_all_the_time(peer: Peer, burning) -> None:
    """The measure used above can tell the difference."""
    assert share(burning.pid, 0.5) > 0.9
    assert peer.ask("duty s-1 100 60000") == "ok"
    time.sleep(0.2)
    assert share(burning.pid, 0.5) < 0.3
    assert peer.ask("lift s-1") == "ok"
    assert share(burning.pid, 0.5) > 0.9


def test_a_lease_that_is_over_thaws(peer: Peer, burning) -> None:
    assert peer.ask("duty s-1 1 300") == "ok"
    assert share(burning.pid, 0.25) < 0.3
    time.sleep(0.15)
    assert share(burning.pid, 0.4) > 0.9


def test_when_the_worker_is_gone_everything_is_thawed_at_once(peer: Peer, burning, cgroups: Cgroups) -> None:
    assert peer.ask("duty s-1 1 60000") == "ok"
    until(lambda: "frozen 1" in (cgroups.root / "s-1" / "cgroup.events").read_text())
    began = time.monotonic()
    peer.socket.close()
    until(lambda: "frozen 0" in (cgroups.root / "s-1" / "cgroup.events").read_text(), 1)
    assert time.monotonic() - began < 0.5
    assert peer.process.wait(2) == 0


def test_an_enforcer_that_starts_thaws_what_one_before_it_left(cgroups: Cgroups, burning) -> None:
    cgroups.freeze("s-1")
    peer = Peer(cgroups.root)
    until(lambda: "frozen 0" in (cgroups.root / "s-1" / "cgroup.events").read_text(), 2)
    peer.close()


def test_an_idle_enforcer_does_not_wake_up(peer: Peer) -> None:
    switches = Path(f"/proc/{peer.process.pid}/status")
    time.sleep(0.2)
    before = switches.read_text().split("voluntary_ctxt_switches:")[1].split()[0]
    time.sleep(1.0)
    assert switches.read_text().split("voluntary_ctxt_switches:")[1].split()[0] == before


@pytest.mark.parametrize(
    "request_",
    [
        "duty s-2 500 1000",
        "kill ../..",
        "kill .",
        "kill s-1 now",
        "add ../x 5",
        "add s-3 1x",
        "add s-3 -5",
        "duty s-1 1001 1000",
        "duty s-1 0 1000",
        "duty s-1 500 99999999999",
        "duty s-1",
        "signal s-1 KILL all",
        "signal s-1 TERM everybody",
        "freeze s-1",
        "",
        "é \x00",
    ],
)
def test_a_request_out_of_bounds_is_refused_and_does_nothing(peer: Peer, burning, request_: str) -> None:
    assert peer.ask(request_).startswith("no ")
    assert burning.poll() is None
    assert share(burning.pid, 0.1) > 0.5


def test_late_wake_ups_do_not_add_up() -> None:
    """Every thaw and every freeze comes late by something else, over a hundred seconds of a clock of our own."""
    for granted_m in (50, 250, 500, 900):
        duty, now, ran = Duty(granted_m, 1 << 62, 0), 0, 0
        for n in range(1000):
            frozen = duty.step(now, PERIOD_NS)
            later = duty.next_ns + (n * 7919 % 13) * 1_000_000
            ran += 0 if frozen else later - now
            now = later
        assert ran / now == pytest.approx(granted_m / 1000, abs=0.01)


def test_a_session_that_ran_far_too_long_is_not_frozen_for_long() -> None:
    """After a minute in which the enforcer itself was stopped, debts are forgiven down to ten periods."""
    duty = Duty(500, 1 << 62, 0)
    duty.step(0, PERIOD_NS)
    now = 60_000_000_000
    frozen_ns = 0
    while duty.step(now, PERIOD_NS):
        frozen_ns += duty.next_ns - now
        now = duty.next_ns
    assert 0 < frozen_ns <= 21 * PERIOD_NS


def test_the_enforcer_waits_for_nothing_when_nobody_is_throttled(cgroups: Cgroups) -> None:
    assert Enforcer(cgroups, PERIOD_NS).wait_s(0) is None
