"""The demo as its users run it: what it shows, and that nothing is left, whenever it is ended."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from policies.model import Action, State
from scheduler.journal import begin, read_event

pytestmark = pytest.mark.slow

REPORT_S = 1.0
GRACE_MS = 5_000


@pytest.fixture(scope="module")
def shown() -> dict[str, Any]:
    """One demo's JSON."""
    done = subprocess.run(
        [sys.executable, "-m", "fairtier", "demo", "-o", "json"],
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def steps(shown: dict[str, Any], to: str) -> list[dict[str, Any]]:
    """The events that lead to a state or rung."""
    return [event for event in shown["events"] if event["to"] == to]


def test_twelve_sessions_of_six_users_are_admitted(shown: dict[str, Any]) -> None:
    """Started, and on GPUs of two hosts."""
    started = [session for session in shown["sessions"] if session["started_at"]]
    assert len(started) >= 12
    assert len({session["user"] for session in started}) == 6
    assert len({session["host"] for session in started}) == 2


def test_every_step_of_the_ladder_is_seen(shown: dict[str, Any]) -> None:
    """At least one warned, throttled and evicted."""
    for to in ("warn", "throttle", "grace", "evicted"):
        assert steps(shown, to), to


def test_an_eviction_comes_after_the_whole_grace_and_not_before(shown: dict[str, Any]) -> None:
    """And within two seconds of it, since it stays due."""
    graces = {event["session"]: event["at_ms"] for event in steps(shown, "grace")}
    evicted = steps(shown, "stopping")
    assert evicted
    for event in evicted:
        assert GRACE_MS <= event["at_ms"] - graces[event["session"]] < GRACE_MS + 2_000


def test_a_waiter_starts_on_the_freed_gpu(shown: dict[str, Any]) -> None:
    """Within a second of an eviction, on the same host and GPU."""
    sessions = {session["session"]: session for session in shown["sessions"]}
    ends = [(event["at_ms"], sessions[event["session"]]) for event in steps(shown, "evicted")]
    followed = 0
    for at_ms, gone in ends:
        for event in steps(shown, "running"):
            heir = sessions[event["session"]]
            same = heir["host"] == gone["host"] and heir["gpus"][0]["gpu"] == gone["gpus"][0]["gpu"]
            followed += same and 0 <= event["at_ms"] - at_ms <= 1_000
    assert followed


def test_a_throttle_gives_what_was_granted(shown: dict[str, Any]) -> None:
    """The share measured by the session itself is within 5 points of the granted fraction."""
    assert shown["throttle"]
    for entry in shown["throttle"]:
        assert abs(entry["measured"] - entry["granted"]) <= 0.05, entry


def test_the_ledger_is_within_one_report_of_the_truth(shown: dict[str, Any]) -> None:
    """For every user."""
    assert shown["ledger_error_s"] <= REPORT_S


def test_nothing_is_left(shown: dict[str, Any]) -> None:
    """No process, cgroup or socket."""
    assert shown["leftover"] == {"processes": 0, "cgroups": 0, "sockets": 0}


def test_the_order_of_starts_is_fair(shown: dict[str, Any]) -> None:
    """Run again with a checker of its own: whoever starts had the lowest usage + committed of those that wait alike."""
    core, checked = None, 0
    for line in Path(shown["journal"]).read_text().splitlines():
        entry = json.loads(line)
        if core is None:
            core = begin(entry, None)
        elif "event" in entry:
            core.apply(read_event(entry))
        else:
            waiting = [s for s in core.sessions.values() if s.state is State.QUEUED and s.claim is None]
            now = core.view.clock
            standings = {s.id: now.usage(s.user) + s.user.committed_n / 1e9 for s in waiting}
            shapes = {s.id: s.shape for s in waiting}
            submitted = defaultdict(int, {s.id: s.submit_ms for s in waiting})
            step = core.cycle(entry["cycle"])
            first = next((d for d in step.decisions if d.action is Action.START and d.session in standings), None)
            if first is None or first is not step.decisions[0]:
                continue
            for other, standing in standings.items():
                if shapes[other] == shapes[first.session]:
                    mine = (round(standings[first.session], 9), submitted[first.session])
                    assert mine <= (round(standing, 9) + 1e-6, submitted[other])
                    checked += 1
    assert checked >= 12


def test_its_journal_replays_byte_for_byte(shown: dict[str, Any]) -> None:
    """With the command."""
    command = [sys.executable, "-m", "fairtier", "simulate", "replay", shown["journal"]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("moment_s", [0.2, 0.8, 1.5, 2.5, 6.0, 16.0, 27.0])
def test_ctrl_c_leaves_nothing(moment_s: float) -> None:
    """At moments of the start, of the calm and of the ladder."""
    before = set(Path("/tmp").glob("fairtier-demo-*"))
    process = subprocess.Popen(
        [sys.executable, "-m", "fairtier", "demo"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    time.sleep(moment_s)
    process.send_signal(signal.SIGINT)
    assert process.wait(15) == 130 or moment_s < 0.5
    left = subprocess.run(["pgrep", "-af", "fairtier-demo-"], capture_output=True, text=True, check=False).stdout
    assert not left
    assert set(Path("/tmp").glob("fairtier-demo-*")) <= before
