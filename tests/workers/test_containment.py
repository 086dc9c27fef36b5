"""A session's processes can be found, frozen and ended, however they fork; and nobody else's."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.workers.rig import BURN, runnable_ns, until
from workers.containment import Cgroups, Containment, ContainmentError, ProcessGroups, available, choose

REFORKING = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for _ in range(8):
    if os.fork() == 0:
        os.setsid()
        while True:
            if os.fork():
                os._exit(0)
            time.sleep(0.001)
time.sleep(60)
"""
"""Eight chains of processes, each of which lives for a millisecond and has left its kernel session."""


@pytest.fixture
def cgroups(tmp_path: Path) -> Iterator[Cgroups]:
    works, why = available()
    if not works:
        pytest.skip(why)
    made = choose(f"test{os.getpid()}", "h1", tmp_path)
    assert isinstance(made, Cgroups)
    yield made
    for session in made.sessions():
        made.thaw(session)
        made.kill(session)
        until(lambda s=session: made.remove(s))
    made.root.rmdir()
    made.root.parent.rmdir()


def run_in(containment: Containment, session: str, *argv: str) -> subprocess.Popen[bytes]:
    folder = containment.create(session)
    join = '[ -z "$0" ] || echo 0 >"$0/cgroup.procs"; exec "$@"'
    process = subprocess.Popen(["/bin/sh", "-c", join, folder, *argv], start_new_session=True)
    containment.attach(session, process.pid)
    until(lambda: containment.populated(session))
    return process


@pytest.fixture(params=["cgroup", "process group"])
def containment(request: pytest.FixtureRequest) -> Containment:
    if request.param == "cgroup":
        return request.getfixturevalue("cgroups")  # type: ignore[no-any-return]
    return ProcessGroups()


def test_freezing_stops_and_thawing_goes_on(containment: Containment) -> None:
    process = run_in(containment, "s-1", *BURN)
    assert containment.pids("s-1") == [process.pid]
    containment.freeze("s-1")
    time.sleep(0.05)
    frozen = runnable_ns([process.pid])
    time.sleep(0.2)
    assert runnable_ns([process.pid]) - frozen < 20_000_000
    containment.thaw("s-1")
    until(lambda: runnable_ns([process.pid]) - frozen > 50_000_000)
    containment.kill("s-1")
    assert process.wait(2) == -9
    assert until(lambda: containment.remove("s-1"))


def test_a_frozen_session_can_be_killed(containment: Containment) -> None:
    process = run_in(containment, "s-1", *BURN)
    containment.freeze("s-1")
    containment.kill("s-1")
    assert process.wait(2) == -9


def test_a_tree_that_forks_faster_than_anyone_counts_is_ended(cgroups: Cgroups) -> None:
    process = run_in(cgroups, "s-1", sys.executable, "-S", "-c", REFORKING)
    time.sleep(0.3)
    assert cgroups.populated("s-1")
    cgroups.kill("s-1")
    process.wait(2)
    until(lambda: not cgroups.populated("s-1"), 2)
    assert until(lambda: cgroups.remove("s-1"))


def test_process_groups_lose_such_a_tree_which_is_why_they_are_the_second_choice() -> None:
    """The test before can fail: the same tree outlives the weaker containment."""
    groups = ProcessGroups()
    marker = f"fairtier-test-{os.getpid()}"
    process = run_in(groups, "s-1", sys.executable, "-S", "-c", REFORKING, marker)
    time.sleep(0.3)
    groups.kill("s-1")
    process.wait(2)
    alive = [p for p in _running(marker)]
    assert alive
    deadline = time.monotonic() + 5
    while _running(marker) and time.monotonic() < deadline:
        for pid in _running(marker):
            _stop_and_kill(pid)


def _running(marker: str) -> list[int]:
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            try:
                if marker.encode() in Path(entry.path, "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                pass
    return found


def _stop_and_kill(pid: int) -> None:
    try:
        os.kill(pid, 9)
    except ProcessLookupError:
        pass


def test_what_exited_processes_used_is_not_lost(cgroups: Cgroups) -> None:
    cgroups.create("s-1")
    spin = "import time\nt=time.process_time()\nwhile time.process_time()-t<0.1: pass"
    process = run_in(cgroups, "s-1", sys.executable, "-S", "-c", spin)
    assert process.wait(5) == 0
    used = cgroups.usage_ns("s-1")
    assert used is not None
    assert used >= 100_000_000


@pytest.mark.parametrize("name", ["", "..", "../other", "a/b", ".hidden", "A", "a\n", "x" * 65])
def test_a_name_that_is_no_sessions_reaches_no_folder(containment: Containment, name: str) -> None:
    with pytest.raises(ContainmentError):
        containment.create(name)


def test_nobody_may_register_the_first_process_or_our_own_session() -> None:
    for pid in (0, 1, os.getsid(0)):
        with pytest.raises(ContainmentError):
            ProcessGroups().attach("s-1", pid)


def test_a_worker_started_elsewhere_stays_with_the_cgroups_that_hold_sessions(cgroups: Cgroups, tmp_path: Path) -> None:
    cgroups.create("s-1")
    again = choose("another-name", "h1", tmp_path)
    assert isinstance(again, Cgroups)
    assert again.root == cgroups.root
