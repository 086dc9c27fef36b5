"""A session's processes can be found, frozen and ended, however they fork; and nobody else's."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.workers.rig import BURN, runnable_ns, until
from workers.containment import Cgroups, Containment, ContainmentError, ProcessGroups, choose

REFORKING = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
trace = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
for _ in range(8):
    if os.fork() == 0:
        os.setsid()
        while os.path.exists(sys.argv[1]):
            if os.fork():
                os._exit(0)
            os.write(trace, b".")
            time.sleep(0.001)
        os._exit(0)
time.sleep(60)
"""
"""Eight chains of processes, each of which lives for a millisecond and has left its kernel session.

They leave a trace in a file while they live, and end when somebody takes the file away.
"""


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


def grows(trace: Path) -> bool:
    before = trace.stat().st_size
    time.sleep(0.1)
    return trace.stat().st_size > before


def test_a_tree_that_forks_faster_than_anyone_counts_is_ended(cgroups: Cgroups, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    process = run_in(cgroups, "s-1", sys.executable, "-S", "-c", REFORKING, str(trace))
    until(lambda: trace.exists() and trace.stat().st_size > 200)
    cgroups.kill("s-1")
    process.wait(2)
    until(lambda: not cgroups.populated("s-1"), 2)
    assert not grows(trace)
    assert until(lambda: cgroups.remove("s-1"))


def test_process_groups_lose_such_a_tree_which_is_why_they_are_the_second_choice(tmp_path: Path) -> None:
    """The test before can fail: the same tree outlives the weaker containment."""
    trace, groups = tmp_path / "trace", ProcessGroups()
    process = run_in(groups, "s-1", sys.executable, "-S", "-c", REFORKING, str(trace))
    until(lambda: trace.exists() and trace.stat().st_size > 200)
    try:
        groups.kill("s-1")
        process.wait(2)
        assert grows(trace)
    finally:
        trace.unlink()


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
