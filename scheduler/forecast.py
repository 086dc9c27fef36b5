"""The core run forward in virtual time.

`VirtualLoop` is the loop that the simulator extends with workloads; `forecast` is its plainest use: who starts when, if
every session ends when it is assumed to and nobody else comes. At one instant: releases, reports, arrivals, timers,
then one cycle, and one more for each round of evictions, whose GPUs are free at once. Between events nothing is polled:
the core says when it wants to be called (`Step.next_deadline_ms`).
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any

from policies.model import Action, State
from scheduler import events as ev

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from scheduler.core import Core, Step
    from scheduler.events import Event

RELEASE, ARRIVAL, TIMER = 0, 2, 3
"""Ranks of what happens at one instant (1 is for reports)."""

FAR_MS = 1 << 62

Entry = tuple[int, int, int, Any, int]
"""(instant, rank, order of pushing, subject, generation): a subject whose generation has moved on is left alone."""

Tap = "Callable[[Event | Step, int], None]"


class VirtualLoop:
    """Merged arrivals and one heap for everything else that will happen; integer milliseconds.

    Args:
        core: driven by this loop alone.
        tap: is given every event and every step in order (a journal), or None.
    """

    def __init__(self, core: Core, tap: Callable[[Event | Step, int], None] | None = None) -> None:
        self.core = core
        self.cycles = 0
        self.deadline_ms = FAR_MS
        self._tap = tap
        self._heap: list[Entry] = []
        self._pushed = 0

    # -- for subclasses ------------------------------------------------------------------------------------------

    def next_arrival_ms(self) -> int:
        """Instant of the next arrival from outside; `FAR_MS` when none comes any more."""
        return FAR_MS

    def arrive(self, now_ms: int) -> None:
        """Take in the arrivals of this instant."""

    def fire(self, rank: int, subject: Any, generation: int, now_ms: int) -> None:
        """Something pushed earlier happens now."""
        raise AssertionError(f"nothing was pushed, yet {subject} is due (rank {rank}, {generation}, {now_ms})")

    def carry_out(self, step: Step, now_ms: int) -> bool:
        """Play the hosts: do what was decided; True when GPUs were freed by it, so that another cycle is due."""
        raise AssertionError(f"decisions at {now_ms} ms with nobody to carry them out: {step.decisions}")

    def elapse(self, now_ms: int) -> None:
        """Time moves on to `now_ms`; what was true until then has been true for the whole stretch."""

    # -- the loop ------------------------------------------------------------------------------------------------

    def push(self, at_ms: int, rank: int, subject: Any, generation: int) -> None:
        """Let something happen later."""
        self._pushed += 1
        heappush(self._heap, (at_ms, rank, self._pushed, subject, generation))

    def apply(self, event: Event) -> None:
        """Give an event to the core, and to the tap."""
        self.core.apply(event)
        if self._tap is not None:
            self._tap(event, event.at_ms)

    def instants(self) -> Iterator[int]:
        """Run until nothing more will happen; yields each instant once it is over."""
        heap = self._heap
        while True:
            # 1. The next instant at which anything happens; a deadline alone does not keep the loop alive.
            arrival_ms = self.next_arrival_ms()
            now = arrival_ms
            if heap and heap[0][0] < now:
                now = heap[0][0]
            if now == FAR_MS:
                return
            if self.deadline_ms < now:
                now = self.deadline_ms
            self.elapse(now)
            # 2. Releases, then arrivals, then timers.
            while heap and heap[0][0] == now and heap[0][1] < ARRIVAL:
                _, rank, _, subject, generation = heappop(heap)
                self.fire(rank, subject, generation, now)
            if arrival_ms == now:
                self.arrive(now)
            while heap and heap[0][0] == now:
                _, rank, _, subject, generation = heappop(heap)
                self.fire(rank, subject, generation, now)
            # 3. One cycle, and one more for every round of evictions.
            self.decide(now)
            yield now

    def decide(self, now_ms: int) -> None:
        """One cycle, and one more for as long as carrying it out changed something that a cycle should look at."""
        again = True
        while again:
            step = self.core.cycle(now_ms)
            self.cycles += 1
            if self._tap is not None:
                self._tap(step, now_ms)
            again = bool(step.decisions) and self.carry_out(step, now_ms)
        deadline = self.core.next_deadline_ms() if step.decisions else step.next_deadline_ms
        self.deadline_ms = FAR_MS if deadline is None else deadline


class _Ahead(VirtualLoop):
    """Sessions that end when they are assumed to."""

    def __init__(self, core: Core, left_ms: Mapping[str, int], run_ms: Callable[[str], int]) -> None:
        super().__init__(core)
        self.starts: dict[str, int] = {}
        self._run_ms = run_ms
        for sid, session in core.sessions.items():
            if session.allocation is not None:
                at_ms = core.now_ms + max(1, left_ms[sid] if sid in left_ms else run_ms(sid))
                self.push(at_ms, RELEASE, sid, 0)

    def fire(self, rank: int, subject: str, generation: int, now_ms: int) -> None:
        """A session ends, unless it is gone already."""
        del rank, generation
        if subject in self.core.sessions:
            self.apply(ev.SessionEnded(now_ms, subject))

    def carry_out(self, step: Step, now_ms: int) -> bool:
        """Start what was started, end what was evicted."""
        freed = False
        for decision in step.decisions:
            if decision.action is Action.START:
                self.starts[decision.session] = now_ms
                self.apply(ev.SessionStarted(now_ms, decision.session))
                self.push(now_ms + max(1, self._run_ms(decision.session)), RELEASE, decision.session, 0)
            elif decision.action is Action.EVICT:
                self.apply(ev.SessionEnded(now_ms, decision.session, "evicted"))
                freed = True
        return freed


def forecast(core: Core, left_ms: Mapping[str, int], run_ms: Callable[[str], int]) -> dict[str, int]:
    """When each waiting session would start if nobody else came, ms; sessions that would not start are left out.

    Args:
        core: a copy made for this purpose (`checkpoint.restore(checkpoint.dump(core), policy)`): it is used up.
        left_ms: assumed remaining run time of running sessions, by id.
        run_ms: assumed run time of any session that `left_ms` does not name.
    """
    loop = _Ahead(core, left_ms, run_ms)
    waiting = {sid for sid, session in core.sessions.items() if session.state is State.QUEUED}
    core.hosts.reported_ms.clear()  # hosts are assumed to go on reporting
    loop.decide(core.now_ms)
    for _ in loop.instants():
        if len(loop.starts) == len(waiting):
            break
    return {sid: at_ms for sid, at_ms in loop.starts.items() if sid in waiting}
