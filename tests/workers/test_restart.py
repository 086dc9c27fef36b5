"""A worker may die at any moment: sessions live on, nothing runs twice, no exit code is lost, nobody stays frozen."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from pathlib import Path

from tests.workers.rig import BURN, Rig, runnable_ns, until


def test_an_exit_code_survives_the_death_of_the_worker(rig: Rig) -> None:
    rig.start()
    rig.running("s-1", argv=("sh", "-c", "sleep 0.3; exit 9"))
    rig.kill()
    until((rig.folder("s-1") / "exit").exists)
    time.sleep(0.5)
    rig.start()
    ended = rig.ended("s-1")
    assert (ended.outcome, ended.exit_code) == ("failed", 9)
    assert 250 <= ended.granted_ms <= 600, "granted until it ended, not until somebody looked"
    assert rig.left() == {"processes": 0, "cgroups": 0}


def test_a_running_session_is_taken_over_and_its_counters_go_on(rig: Rig) -> None:
    rig.start()
    rig.running("s-1", argv=BURN)
    until(lambda: rig.session("s-1").busy_ms > 400)
    before, pids = rig.session("s-1"), rig.pids("s-1")
    rig.kill()
    time.sleep(0.3)
    rig.start()
    until(lambda: rig.session("s-1").busy_ms > before.busy_ms + 200)
    assert rig.reports[-1].epoch == 2
    assert rig.pids("s-1") == pids
    first = next(s for r in rig.reports if r.epoch == 2 for s in r.sessions)
    assert first.known is False, "what it computed while nobody looked is not known"
    assert first.granted_ms >= before.granted_ms
    rig.send("stop", "s-1", outcome="cancelled", wait_ms=1000)
    assert rig.ended("s-1").outcome == "cancelled"


def test_commands_read_again_after_a_restart_are_answered_and_start_nothing(rig: Rig) -> None:
    rig.start()
    start = rig.send("start", "s-1", argv=("sh", "-c", "echo once"))
    rig.ended("s-1")
    assert rig.stop() == 0
    rig.start()
    until(lambda: any(r.action == start.action for report in rig.read() if report.epoch == 2 for r in report.results))
    assert (rig.folder("s-1") / "log").read_text() == "once\n"


def test_a_start_written_down_but_never_carried_out_is_carried_out(rig: Rig) -> None:
    """As when the worker died between the two."""
    rig.start()
    assert rig.stop() == 0
    start = rig.command("start", "s-1", argv=("sh", "-c", "echo once"))
    late = rig.command("start", "s-2", argv=("true",), expires_ms=1)
    with sqlite3.connect(rig.settings.own / "journal.sqlite") as db:
        for command in (start, late):
            row = (command.action, command.model_dump_json(), 0)
            db.execute("INSERT INTO actions (action, command, accepted_ms) VALUES (?, ?, ?)", row)
    db.close()
    rig.start()
    assert rig.ended("s-1").outcome == "completed"
    assert (rig.folder("s-1") / "log").read_text() == "once\n"
    assert until(lambda: rig.result(late)).result == "expired"
    assert rig.session("s-2") is None


def test_a_start_carried_out_but_not_noted_is_not_carried_out_again(rig: Rig) -> None:
    """As when the worker died right after: the pid file tells."""
    rig.start()
    start = rig.send("start", "s-1", argv=("sh", "-c", "echo once; sleep 60"))
    until(lambda: rig.result(start))
    rig.kill()
    with sqlite3.connect(rig.settings.own / "journal.sqlite") as db:
        db.execute("UPDATE actions SET result = NULL, command = ?", (start.model_dump_json(),))
        db.execute("DELETE FROM sessions")
    db.close()
    pids = rig.pids("s-1")
    rig.start()
    until(lambda: rig.session("s-1") and rig.reports[-1].epoch == 2)
    assert rig.pids("s-1") == pids
    assert (rig.folder("s-1") / "log").read_text() == "once\n"


def test_a_session_that_vanished_has_failed_and_says_so(rig: Rig) -> None:
    rig.start()
    rig.running("s-1", argv=("sleep", "60"))
    rig.kill()
    rig.containment().kill("s-1")
    until(lambda: not rig.containment().populated("s-1"))
    rig.start()
    ended = rig.ended("s-1")
    assert (ended.outcome, ended.exit_code) == ("failed", None)
    assert ended.error == "vanished while the worker was away"


def test_nobody_stays_frozen_when_the_worker_is_killed(rig: Rig) -> None:
    rig.start()
    rig.running("s-1", argv=BURN)
    rig.send("throttle", "s-1", granted_m=10, lease_ms=60_000)
    until(lambda: rig.session("s-1").granted_m == 10)
    time.sleep(0.3)
    rig.kill()
    time.sleep(0.2)
    used = runnable_ns(rig.pids("s-1"))
    time.sleep(0.5)
    assert runnable_ns(rig.pids("s-1")) - used > 400_000_000
    rig.start()
    until(lambda: rig.reports[-1].epoch == 2 and rig.session("s-1").granted_m == 10, 5, "the lease goes on")


def test_sessions_go_on_when_the_worker_is_asked_to_end(rig: Rig) -> None:
    rig.start()
    rig.running("s-1", argv=BURN)
    rig.send("throttle", "s-1", granted_m=10, lease_ms=60_000)
    until(lambda: rig.session("s-1").granted_m == 10)
    assert rig.stop() == 0
    used = runnable_ns(rig.pids("s-1"))
    time.sleep(0.3)
    assert runnable_ns(rig.pids("s-1")) - used > 200_000_000


def test_a_stop_that_a_worker_died_over_is_finished_by_the_next(rig: Rig) -> None:
    rig.start()
    rig.running("s-1", argv=("sh", "-c", "trap '' TERM; while :; do sleep 0.1; done"))
    stop = rig.send("stop", "s-1", outcome="evicted", wait_ms=400)
    time.sleep(0.2)
    rig.kill()
    rig.start()
    assert rig.ended("s-1").outcome == "evicted"
    assert until(lambda: rig.result(stop)).result == "done"


def test_an_enforcer_that_dies_is_replaced_and_throttles_go_on(rig: Rig) -> None:
    rig.start()
    rig.running("s-1", argv=BURN)
    rig.send("throttle", "s-1", granted_m=200, lease_ms=60_000)
    until(lambda: rig.session("s-1").granted_m == 200)
    os.kill(_enforcer(rig), signal.SIGKILL)
    until(lambda: "enforcer died" in rig.log())
    time.sleep(1.0)
    used = runnable_ns(rig.pids("s-1"))
    time.sleep(1.0)
    assert 0.1 < (runnable_ns(rig.pids("s-1")) - used) / 1e9 < 0.3
    rig.send("stop", "s-1", outcome="cancelled", wait_ms=1000)
    assert rig.ended("s-1").outcome == "cancelled"


def _enforcer(rig: Rig) -> int:
    assert rig.process is not None
    children = Path(f"/proc/{rig.process.pid}/task/{rig.process.pid}/children").read_text().split()
    return next(int(p) for p in children if b"workers.enforcer" in Path(f"/proc/{p}/cmdline").read_bytes())


def test_leftovers_are_counted_and_swept_also_those_that_left_the_cgroup(rig: Rig) -> None:
    rig.start()
    rig.running("s-1", argv=("sh", "-c", "sleep 60 & sleep 60"))
    until(lambda: len(rig.pids("s-1")) == 4)
    rig.kill()
    (rig.settings.own / "cgroup").unlink()
    assert rig.left() == {"processes": 4, "cgroups": 1}
    assert rig.close() == {"processes": 0, "cgroups": 0}
    assert rig.left() == {"processes": 0, "cgroups": 0}
