"""The simulation: the production core in virtual time, fed by a workload whose users react.

The loop itself is `scheduler.forecast.VirtualLoop`; here are the sessions that arrive, run, are shrunk or evicted, give
up, come back, and what is counted on the way. Ends that were put off or brought forward are told apart by a generation
number.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, NamedTuple

from policies.acceptable_use import seen
from policies.give_way import is_heavy
from policies.model import WHOLE_M, Action
from scheduler import events as ev
from scheduler.forecast import ARRIVAL, FAR_MS, RELEASE, TIMER, VirtualLoop
from simulations.traces.row import Row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from policies.model import Decision
    from scheduler.core import Core, Step
    from scheduler.events import Event
    from simulations.workloads.workload import Workload

BATCH = 8192
"""Decisions after which the loop hands over what it has."""


class Work:
    """One row of the trace and what became of it, over all its attempts; times in ms, GPU time in GPU-ms x 1000."""

    __slots__ = (
        "attempts",
        "busy_m_ms",
        "done_ms",
        "end_ms",
        "evictions",
        "generation",
        "gpu_m_ms",
        "granted_m",
        "host",
        "outcome",
        "row",
        "session",
        "since_ms",
        "start_ms",
        "throttled_ms",
        "warnings",
    )

    def __init__(self, row: Row) -> None:
        self.row = row
        self.session = row.session_id
        self.attempts = 1
        self.start_ms = -1
        self.end_ms = -1
        self.outcome = ""
        self.host = ""
        self.generation = 0
        self.done_ms = 0
        self.since_ms = -1
        self.granted_m = 0
        self.gpu_m_ms = 0
        self.busy_m_ms = 0.0
        self.throttled_ms = 0
        self.warnings = 0
        self.evictions = 0


class Batch(NamedTuple):
    """What happened since the last batch: decisions in order, rows that arrived, and how far the run is."""

    decisions: list[Decision]
    arrived: list[Work]
    now_ms: int


class Sight(NamedTuple):
    """A host's next report will say which rules of acceptable use a session's command line matches."""

    session: str
    rules: tuple[str, ...]


class Policing(NamedTuple):
    """Counts of what the ladder did; `false_warnings`: to researchers and students."""

    notices: int = 0
    warnings: int = 0
    throttles: int = 0
    evictions: int = 0
    wrongful_evictions: int = 0
    false_warnings: int = 0


class Simulation(VirtualLoop):
    """One run.

    Args:
        core: with its hosts joined.
        workload: where sessions come from.
        tap: is given every event and cycle in order (a journal), or None.

    Attributes:
        ended: sessions that reached an outcome.
        area_m_ms, busy_area_m_ms: GPU time held and busy up to the last submit, thousandths of a GPU x ms.
    """

    def __init__(self, core: Core, workload: Workload, tap: Callable[[Event | Step, int], None] | None = None) -> None:
        super().__init__(core, tap)
        self.workload = workload
        self.ended = 0
        self.counts: dict[Action, int] = dict.fromkeys(Action, 0)
        self.wrongful_evictions = 0
        self.false_warnings = 0
        self.first_ms = -1
        self.last_submit_ms = -1
        self.area_m_ms = 0
        self.busy_area_m_ms = 0.0
        self._by_session: dict[str, Work] = {}
        self._decisions: list[Decision] = []
        self._arrived: list[Work] = []
        self._seen: dict[str, tuple[str, ...]] = {}
        self._rows = workload.arrivals()
        self._next_row = next(self._rows, None)
        self._held_m = 0
        self._busy_m = 0.0
        self._area_since_ms = 0
        self._area = 0
        self._busy_area = 0.0

    def run(self) -> Iterator[Batch]:
        """Run to the end of the last session; yields whenever a batch is full, and at the end."""
        for now_ms in self.instants():
            if len(self._decisions) >= BATCH or len(self._arrived) >= BATCH:
                yield self._hand_over(now_ms)
        yield self._hand_over(self.core.now_ms)

    def _hand_over(self, now_ms: int) -> Batch:
        batch = Batch(self._decisions, self._arrived, now_ms)
        self._decisions, self._arrived = [], []
        return batch

    def elapse(self, now_ms: int) -> None:
        """GPU time held and busy since the last instant."""
        span = now_ms - self._area_since_ms
        self._area += self._held_m * span
        self._busy_area += self._busy_m * span
        self._area_since_ms = now_ms

    # -- what happens --------------------------------------------------------------------------------------------

    def next_arrival_ms(self) -> int:
        """Submit time of the workload's next row."""
        return FAR_MS if self._next_row is None else self._next_row.submit_ms

    def arrive(self, now_ms: int) -> None:
        """Every row of this instant."""
        self.last_submit_ms = now_ms
        if self.first_ms < 0:
            self.first_ms = now_ms
        self.area_m_ms, self.busy_area_m_ms = self._area, self._busy_area
        while self._next_row is not None and self._next_row.submit_ms == now_ms:
            work = Work(self._next_row)
            self._next_row = next(self._rows, None)
            self._arrived.append(work)
            self._submit(work, now_ms)

    def _submit(self, work: Work, now_ms: int) -> None:
        row = work.row
        self._by_session[work.session] = work
        memory = row.memory_gib
        self.apply(
            ev.SessionSubmitted(
                now_ms,
                work.session,
                row.user,
                row.group,
                row.tier,
                row.gpus,
                WHOLE_M if row.fraction == 1 else round(row.fraction * WHOLE_M),
                row.gpu_type,
                None if memory is None else round(memory * 1024),
                row.duration_ms - work.done_ms,
            )
        )
        if row.patience_ms is not None:
            self.push(now_ms + max(1, row.patience_ms), TIMER, work, work.generation)

    def fire(self, rank: int, subject: Work | Sight, generation: int, now_ms: int) -> None:
        """A session ends, a follow-up arrives, a waiter's patience ends, or a host reports a rule that matches."""
        if isinstance(subject, Sight):
            self._report_rules(subject, now_ms)
        elif rank == ARRIVAL:
            if subject.attempts == 1:
                self._arrived.append(subject)
            self._submit(subject, now_ms)
        elif subject.generation != generation:
            return
        elif rank == RELEASE:
            self._account(subject, now_ms)
            self.apply(ev.SessionEnded(now_ms, subject.session, "completed"))
            self._close(subject, "completed", now_ms)
        else:
            self.apply(ev.SessionAbandoned(now_ms, subject.session))
            self._close(subject, "abandoned", now_ms)

    def _report_rules(self, sight: Sight, now_ms: int) -> None:
        """If the session still runs: it is told apart by its id, which no other attempt has."""
        if sight.session in self._by_session:
            for rule in sight.rules:
                self.apply(ev.RuleMatched(now_ms, sight.session, rule))

    def _rules_of(self, argv: str) -> tuple[str, ...]:
        """The rules that a command line matches; most sessions run one of a few."""
        rules = self._seen.get(argv)
        if rules is None:
            rules = self._seen[argv] = tuple(seen(self.core.params.rules, shlex.split(argv)))
        return rules

    def _account(self, work: Work, now_ms: int) -> None:
        """Book the stretch since the last change of grant, and stop counting it as held."""
        row, span = work.row, now_ms - work.since_ms
        held = row.gpus * work.granted_m
        load = 1.0 if row.load is None else row.load
        whole_m = WHOLE_M if row.fraction == 1 else round(row.fraction * WHOLE_M)
        work.gpu_m_ms += held * span
        work.busy_m_ms += held * span * load
        if work.granted_m == whole_m:
            work.done_ms += span
        else:
            work.done_ms += span * work.granted_m // whole_m
            work.throttled_ms += span
        work.since_ms = -1
        self._held_m -= held
        self._busy_m -= held * load

    def _hold(self, work: Work, granted_m: int, now_ms: int) -> None:
        """Go on from now with this grant; the end follows from the work left."""
        row = work.row
        work.since_ms, work.granted_m = now_ms, granted_m
        work.generation += 1
        held = row.gpus * granted_m
        self._held_m += held
        self._busy_m += held * (1.0 if row.load is None else row.load)
        left = row.duration_ms - work.done_ms
        whole_m = WHOLE_M if row.fraction == 1 else round(row.fraction * WHOLE_M)
        if granted_m != whole_m:
            left = -(-left * whole_m // granted_m)
        self.push(now_ms + max(1, left), RELEASE, work, work.generation)

    def _close(self, work: Work, outcome: str, now_ms: int) -> None:
        """A session ended; its user may come back."""
        work.generation += 1
        work.end_ms = now_ms
        work.outcome = outcome
        self.ended += 1
        del self._by_session[work.session]
        follow = self.workload.after(work.row, outcome, now_ms, min(work.done_ms, work.row.duration_ms))
        if follow is None:
            return
        if isinstance(follow, Row):
            self.push(follow.submit_ms, ARRIVAL, Work(follow), 0)
            return
        self.ended -= 1
        work.outcome = ""
        work.attempts += 1
        work.session = f"{work.row.session_id}#{work.attempts}"  # no id of a trace has a #
        work.done_ms = work.row.duration_ms - follow.duration_ms
        self.push(follow.at_ms, ARRIVAL, work, 0)

    # -- what was decided ----------------------------------------------------------------------------------------

    def carry_out(self, step: Step, now_ms: int) -> bool:
        """Do what a cycle decided; True when GPUs were freed or loads reported, so that another cycle is due."""
        decisions = step.decisions
        self._decisions += decisions
        counts, again = self.counts, False
        for decision in decisions:
            action = decision.action
            counts[action] += 1
            work = self._by_session[decision.session]
            if action is Action.START:
                self._started(work, decision, now_ms)
                again |= work.row.load is not None
            elif action is Action.EVICT:
                again = True
                self._evicted(work, decision, now_ms)
            elif action is Action.WARN:
                work.warnings += 1
                self.false_warnings += work.row.kind in ("researcher", "student")
            elif decision.granted_m is not None:
                self._account(work, now_ms)
                self._hold(work, decision.granted_m, now_ms)
            elif action is Action.REJECT:
                self._close(work, "rejected", now_ms)
        return again

    def _started(self, work: Work, decision: Decision, now_ms: int) -> None:
        row = work.row
        if work.start_ms < 0:
            work.start_ms = now_ms
        if decision.allocation is not None:
            hosts = decision.allocation.parts
            work.host = hosts[0][0] if len(hosts) == 1 else "+".join([host for host, _ in hosts])
        self._hold(work, WHOLE_M if row.fraction == 1 else round(row.fraction * WHOLE_M), now_ms)
        self.apply(ev.SessionStarted(now_ms, work.session))
        if row.load is not None:
            self.apply(ev.LoadReported(now_ms, work.session, row.load))
        params = self.core.params
        if params.rules and (rules := self._rules_of(self.workload.argv(row))):
            self.push(now_ms + params.telemetry.report_ms, TIMER, Sight(work.session, rules), 0)

    def _evicted(self, work: Work, decision: Decision, now_ms: int) -> None:
        session = self.core.sessions[decision.session]
        by_ladder = decision.reason.rule.startswith("ladder.")
        if by_ladder and session.user.in_credit and not is_heavy(session, now_ms, self.core.params):
            self.wrongful_evictions += 1
        work.evictions += 1
        self._account(work, now_ms)
        self.apply(ev.SessionEnded(now_ms, work.session, "evicted"))
        self._close(work, "evicted", now_ms)

    # -- afterwards ----------------------------------------------------------------------------------------------

    def policing(self) -> Policing:
        """What the ladder did."""
        counts = self.counts
        return Policing(
            counts[Action.NOTICE],
            counts[Action.WARN],
            counts[Action.THROTTLE],
            counts[Action.EVICT],
            self.wrongful_evictions,
            self.false_warnings,
        )
