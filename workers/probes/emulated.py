"""Emulated GPUs, for machines without one: their load is what a session's processes really get from the CPU.

A session asks for as much GPU as its tasks run or wait to run (/proc/PID/task/TID/schedstat, fields 1 and 2). Waiting
counts because the emulated GPU does not depend on how many cores the machine has; being frozen is not waiting. A GPU
cannot be busier than wholly: when r is what its sessions ask for, one of them gets r_i * min(1, 1 / sum of r).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from workers.probes.base import Sample, Watched

if TYPE_CHECKING:
    from collections.abc import Mapping

    from workers.containment import Containment


@dataclass(slots=True)
class _Seen:
    """A session at its last sample: when, every task's time so far, all CPU time so far, and what it asks for."""

    at_ns: int
    gpus: tuple[int, ...]
    tasks: dict[str, int] = field(default_factory=dict)
    usage_ns: int | None = 0
    rate: float = 0.0


class EmulatedProbe:
    """GPUs that exist as a rule of sharing only."""

    def __init__(
        self, containment: Containment, gpus: int, model: str | None = None, memory_mib: int | None = None
    ) -> None:
        self.gpus, self.model, self.memory_mib = gpus, model, memory_mib
        self._containment = containment
        self._seen: dict[str, _Seen] = {}

    def sample(self, now_ns: int, sessions: Mapping[str, Watched]) -> dict[str, Sample]:
        """Measure these sessions; others share with the rate that they had when they were measured."""
        known = {name: self._measure(now_ns, name, watched) for name, watched in sessions.items()}
        asked = self._asked()
        return {name: self._shared(name, asked, *took) for name, took in known.items()}

    def forget(self, session: str) -> None:
        """It asks for nothing any more."""
        self._seen.pop(session, None)

    def _measure(self, now_ns: int, session: str, watched: Watched) -> tuple[int, bool]:
        """Bring one session's record up to now: nanoseconds since its last sample, and whether it could be read."""
        before = self._seen.get(session)
        began = watched.since_ns if before is None else before.at_ns
        tasks, usage = self._times(session), self._containment.usage_ns(session)
        elapsed = 0 if began is None else max(0, now_ns - began)
        old = before or _Seen(now_ns, watched.gpus)
        used = _used(tasks, usage, old) if tasks is not None and elapsed else 0
        rate = used / elapsed if elapsed else old.rate
        self._seen[session] = _Seen(now_ns, watched.gpus, old.tasks if tasks is None else tasks, usage, rate)
        return elapsed, tasks is not None and began is not None

    def _times(self, session: str) -> dict[str, int] | None:
        """Run and wait time of every task, in nanoseconds; None = the kernel does not tell."""
        tasks: dict[str, int] = {}
        for pid in self._containment.pids(session):
            try:
                with os.scandir(f"/proc/{pid}/task") as found:
                    tasks |= {task.path: _run_and_wait(task.path + "/schedstat") for task in found}
            except (FileNotFoundError, ProcessLookupError):
                continue
            except (OSError, ValueError, IndexError):
                return None
        return tasks

    def _asked(self) -> dict[int, float]:
        """What is asked of each GPU."""
        asked: dict[int, float] = {}
        for seen in self._seen.values():
            for gpu in seen.gpus:
                asked[gpu] = asked.get(gpu, 0.0) + min(1.0, seen.rate / len(seen.gpus))
        return asked

    def _shared(self, session: str, asked: Mapping[int, float], elapsed_ns: int, known: bool) -> Sample:
        """What the session gets of its GPUs."""
        seen = self._seen[session]
        rate = min(1.0, seen.rate / len(seen.gpus))
        got = sum(rate * min(1.0, 1.0 / asked[gpu]) for gpu in seen.gpus) if rate else 0.0
        return Sample(round(got * elapsed_ns), True) if known else Sample(0, False)


def _used(tasks: Mapping[str, int], usage_ns: int | None, before: _Seen) -> int:
    """Time that the tasks ran or waited since then.

    A task that came since counts from 0. One that has gone is in no list; the cgroup's own account, which knows running
    but not waiting, is then the least that is true.
    """
    told = sum(max(0, time - before.tasks.get(task, 0)) for task, time in tasks.items())
    if usage_ns is None or before.usage_ns is None:
        return told
    return max(told, usage_ns - before.usage_ns)


def _run_and_wait(file: str) -> int:
    handle = os.open(file, os.O_RDONLY)
    try:
        run, wait, _ = os.read(handle, 128).split()
    finally:
        os.close(handle)
    return int(run) + int(wait)
