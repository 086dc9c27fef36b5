"""Emulated GPUs compute what processes run, share when too much is asked, and say so when they cannot know."""

from __future__ import annotations

import sys

import pytest

from tests.workers.rig import Rig
from workers.probes.base import Watched
from workers.probes.emulated import EmulatedProbe, _Seen, _used

S = 1_000_000_000


class Told:
    """A containment without processes: the CPU time of its sessions is what a test says."""

    def __init__(self) -> None:
        self.usage: dict[str, int | None] = {}

    def pids(self, session: str) -> list[int]:
        del session
        return []

    def usage_ns(self, session: str) -> int | None:
        return self.usage.get(session, 0)


def probe() -> tuple[EmulatedProbe, Told]:
    told = Told()
    return EmulatedProbe(told, 4), told  # type: ignore[arg-type]


def test_two_sessions_that_ask_for_all_of_one_gpu_get_half_each() -> None:
    emulated, told = probe()
    watched = {"a": Watched((0,), 0), "b": Watched((0,), 0)}
    told.usage = {"a": S, "b": S}
    got = emulated.sample(S, watched)
    assert [got[name].busy_ns for name in "ab"] == [S // 2, S // 2]


def test_who_asks_for_little_loses_in_proportion() -> None:
    emulated, told = probe()
    told.usage = {"a": S, "b": S // 2}
    got = emulated.sample(S, {"a": Watched((0,), 0), "b": Watched((0,), 0)})
    assert got["a"].busy_ns == pytest.approx(S * 2 / 3, abs=2)
    assert got["b"].busy_ns == pytest.approx(S / 3, abs=2)


def test_a_session_on_two_gpus_spreads_and_no_gpu_is_busier_than_wholly() -> None:
    emulated, told = probe()
    told.usage = {"a": 3 * S, "b": S}
    got = emulated.sample(S, {"a": Watched((0, 1), 0), "b": Watched((2,), 0)})
    assert got["a"].busy_ns == 2 * S
    assert got["b"].busy_ns == S


def test_a_session_found_running_begins_unknown() -> None:
    emulated, told = probe()
    told.usage = {"a": 100 * S}
    assert emulated.sample(S, {"a": Watched((0,), None)})["a"] == (0, False)
    told.usage = {"a": 100 * S + S // 2}
    assert emulated.sample(2 * S, {"a": Watched((0,), None)})["a"] == (S // 2, True)


def test_tasks_that_vanish_count_at_least_what_the_cgroup_says() -> None:
    before = _Seen(0, (0,), {"1/1": 100, "1/2": 900}, 1000)
    assert _used({"1/1": 150, "1/3": 30}, 1100, before) == 100  # 80 seen, 100 used
    assert _used({"1/1": 450, "1/3": 30}, 1100, before) == 380  # waiting included
    assert _used({"1/1": 150}, None, before) == 50


def test_what_cannot_be_read_is_unknown_and_not_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(file: str) -> int:
        raise PermissionError(file)

    emulated, told = probe()
    told.pids = lambda session: [1]  # type: ignore[method-assign]
    monkeypatch.setattr("workers.probes.emulated._run_and_wait", unreadable)
    assert emulated.sample(S, {"a": Watched((0,), 0)})["a"].known is False


MEASURED = """
import os, resource, sys, time
end = time.monotonic() + 2.0
while time.monotonic() < end:
    stop = time.monotonic() + 0.05
    while time.monotonic() < stop: pass
    time.sleep(0.05)
"""


def test_the_load_told_is_what_the_process_used(rig: Rig) -> None:
    """A program that computes half of the time: the report is within 5 points of what the kernel charged it."""
    rig.start()
    rig.running("s-1", argv=(sys.executable, "-S", "-c", MEASURED + "print(sum(os.times()[:2]), flush=True)"))
    ended = rig.ended("s-1")
    used_s = float((rig.folder("s-1") / "log").read_text())
    assert ended.known
    assert used_s * 1000 - 100 <= ended.busy_ms <= 1000 + 150 + 0.05 * ended.granted_ms
    assert ended.granted_ms == pytest.approx(2050, abs=250)
