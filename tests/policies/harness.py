"""A machine to try the core on: its hosts obey at once, and everything that happened is on record.

`Machine` feeds events to a core, cycles it and plays the hosts: what is started runs and reports its load at the same
instant, what is evicted is gone at the same instant. `Record` is all that the checkers of `tests.policies.checkers`
look at; `replay` feeds one to another core.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from policies.catalogue import make_policy
from policies.model import HOUR_MS, NANO, Action, Decision
from policies.order import FairQueue
from policies.params import HeadroomParams, LadderParams, OrderParams, Params, TelemetryParams, TierParams, UsageParams
from policies.snapshot import Policy
from scheduler import checkpoint
from scheduler import events as ev
from scheduler.core import Core, Step

SECOND_MS, MINUTE_MS = 1000, 60_000


class Seen(NamedTuple):
    """What the core's indexes said at the end of a cycle: thousandths of a GPU, and GPU-h by name."""

    total_m: int
    free_m: int
    set_aside_m: int
    leaving_m: int
    held_m: int
    usage: dict[str, float]
    committed: dict[str, float]
    group_usage: dict[str, float]
    caps: dict[str, float]


def look(core: Core) -> Seen:
    """The figures that the core keeps, as they are now."""
    view, ledger = core.view, core.ledger
    usage = ledger.clock.usage
    return Seen(
        core.cluster.total_m,
        core.cluster.free_m,
        view.set_aside_m,
        view.leaving_m,
        sum(session.held_m for session in view.holders.values()),
        {name: usage(user) for name, user in ledger.users.items()},
        {name: user.committed_n / NANO for name, user in ledger.users.items()},
        {name: usage(group) for name, group in ledger.groups.items()},
        {tier: core.queue.caps[tier] for tier in ("free",)} if isinstance(core.queue, FairQueue) else {},
    )


class Cycle(NamedTuple):
    """One pass of the policy: when, what it decided, when it asked to be called again, and its figures then."""

    at_ms: int
    decisions: tuple[Decision, ...]
    next_deadline_ms: int | None
    seen: Seen


Entry = ev.Event | Cycle


class Record(NamedTuple):
    """Everything that went into a core and came out of it, in order."""

    params: Params
    entries: list[Entry]

    @property
    def decisions(self) -> list[Decision]:
        """The decisions of all cycles."""
        return [decision for entry in self.entries if isinstance(entry, Cycle) for decision in entry.decisions]

    @property
    def end_ms(self) -> int:
        """The last instant on record."""
        return self.entries[-1].at_ms if self.entries else 0


def make_params(
    *,
    half_life_h: float = 24.0,
    idle_charge: float = 0.5,
    baseline: float | None = 0.0,
    group_baseline: float | None = None,
    headroom: float = 0.0,
    max_fraction: float = 1.0,
    warn_s: float = 0,
    grace_s: float = 0,
    min_run_s: float = 1800,
    patience_s: float = 600,
    throttle_step_s: float = 300,
    recover_s: float = 300,
    contention_s: float = 0,
    stale_s: float = 30,
    lost_s: float = 45,
    rotate_delta: float | None = None,
    max_wait_s: float = 1e9,
    reserve_after_s: float = 1e9,
    guaranteed: Mapping[str, float] | None = None,
) -> Params:
    """Parameters with the defaults of the numbers to reproduce: h 24 h, no headroom, no warning, no grace."""
    return Params(
        usage=UsageParams(half_life_h=half_life_h, idle_charge=idle_charge),
        tiers={
            "free": TierParams(baseline_gpus=baseline, group_baseline_gpus=group_baseline),
            **{
                tier: TierParams(baseline_gpus=baseline, guaranteed_gpus=gpus)
                for tier, gpus in (guaranteed or {}).items()
            },
        },
        order=OrderParams(
            max_wait_ms=round(max_wait_s * SECOND_MS), reserve_after_ms=round(reserve_after_s * SECOND_MS)
        ),
        headroom=HeadroomParams(fixed_gpus=headroom, max_fraction=max_fraction),
        ladder=LadderParams(
            warn_ms=round(warn_s * SECOND_MS),
            grace_ms=round(grace_s * SECOND_MS),
            min_run_ms=round(min_run_s * SECOND_MS),
            patience_ms=round(patience_s * SECOND_MS),
            throttle_step_ms=round(throttle_step_s * SECOND_MS),
            recover_ms=round(recover_s * SECOND_MS),
            contention_ms=round(contention_s * SECOND_MS),
            rotate_delta_gpu_h=rotate_delta,
        ),
        telemetry=TelemetryParams(stale_ms=round(stale_s * SECOND_MS), lost_ms=round(lost_s * SECOND_MS)),
    )


class Machine:
    """A core and hosts that obey at once.

    Args:
        params: of the policy, which is made from them unless `policy` is given.
        hosts: what joins at time 0: (name, GPUs).
        load: what a session reports as soon as it runs; None = nothing is reported.
        validate: ask the core after every event and cycle whether its indexes agree with its state.
        most: entries on record after which a run is taken for one that never ends.

    Attributes:
        record: everything so far.
        starts: (ms, session) in order.
        ends: (ms, session, outcome) in order, of sessions that ran.
        running: sessions that hold GPUs now, with the GPUs they asked for.
    """

    def __init__(
        self,
        params: Params,
        hosts: Sequence[tuple[str, int]] = (("pool", 8),),
        *,
        load: float | None = 1.0,
        policy: Policy | None = None,
        validate: bool = False,
        most: int = 1_000_000,
    ) -> None:
        self.core = Core(policy or make_policy(params), now_ms=0)
        self.now_ms = 0
        self.load = load
        self.deadline_ms: int | None = None
        self.record = Record(params, [])
        self.starts: list[tuple[int, str]] = []
        self.ends: list[tuple[int, str, str]] = []
        self.running: dict[str, int] = {}
        self._asked: dict[str, int] = {}
        self._validate = validate
        self._most = most
        for name, gpus in hosts:
            self.apply(ev.HostJoined(0, name, gpus))

    # -- what happens --------------------------------------------------------------------------------------------

    def apply(self, *events: ev.Event) -> None:
        """Tell the core; nothing is decided before the next cycle."""
        for event in events:
            self.now_ms = event.at_ms
            self.core.apply(event)
            self.record.entries.append(event)
            if isinstance(event, ev.SessionSubmitted):
                self._asked[event.session] = event.gpus
            elif isinstance(event, ev.SessionEnded):
                del self.running[event.session]
                self.ends.append((event.at_ms, event.session, event.outcome))
            self._check()

    def submit(
        self,
        session: str,
        user: str,
        gpus: int = 1,
        group: str = "default",
        fraction_m: int = 1000,
        tier: str = "free",
    ) -> None:
        """A user asks for a session now."""
        self.apply(ev.SessionSubmitted(self.now_ms, session, user, group, tier, gpus=gpus, fraction_m=fraction_m))

    def set_usage(self, **usage_gpu_h: float) -> None:
        """Users' usage is so much now."""
        for user, usage in usage_gpu_h.items():
            self.apply(ev.UsageSet(self.now_ms, user, usage))

    def end(self, *sessions: str) -> None:
        """Sessions end by themselves now."""
        for session in sessions:
            self.apply(ev.SessionEnded(self.now_ms, session))

    # -- cycles --------------------------------------------------------------------------------------------------

    def cycle(self) -> list[Decision]:
        """Decide now, and once more for every round of reports and releases that followed; all that was decided."""
        made: list[Decision] = []
        while True:
            step = self.core.cycle(self.now_ms)
            self.record.entries.append(self._cycled(step))
            self._check()
            made += step.decisions
            if not self._carry_out(step):
                self.deadline_ms = step.next_deadline_ms
                return made

    def _cycled(self, step: Step) -> Cycle:
        return Cycle(self.now_ms, tuple(step.decisions), step.next_deadline_ms, look(self.core))

    def tick(self, seconds: int, every_ms: int = SECOND_MS) -> list[Decision]:
        """Let time pass in cycles of 1 s; the decisions made."""
        made: list[Decision] = []
        for _ in range(seconds * SECOND_MS // every_ms):
            self.now_ms += every_ms
            made += self.cycle()
        return made

    def run_until(self, until_ms: int) -> list[Decision]:
        """Let time pass, cycling only when the core asked to be called, and at the end; the decisions made."""
        made: list[Decision] = []
        while self.now_ms < until_ms:
            due = until_ms if self.deadline_ms is None else min(self.deadline_ms, until_ms)
            assert due > self.now_ms, f"asked at {self.now_ms} ms to be called at {due} ms"
            self.now_ms = due
            made += self.cycle()
        return made

    def run_h(self, hours: float) -> list[Decision]:
        """`run_until` so many hours from now."""
        return self.run_until(self.now_ms + round(hours * HOUR_MS))

    # -- questions -----------------------------------------------------------------------------------------------

    def usage(self, user: str) -> float:
        """A user's usage now, GPU-h."""
        return self.core.ledger.clock.usage(self.core.ledger.users[user])

    def counts(self, action: Action) -> int:
        """How many decisions of a kind there were."""
        return sum(decision.action is action for decision in self.record.decisions)

    # -- the hosts -----------------------------------------------------------------------------------------------

    def _carry_out(self, step: Step) -> bool:
        """Do what a cycle decided; True when the hosts reported something, so that another cycle is due."""
        reported = False
        for decision in step.decisions:
            sid = decision.session
            if decision.action is Action.START:
                self.running[sid] = self._asked[sid]
                self.starts.append((self.now_ms, sid))
                self.apply(ev.SessionStarted(self.now_ms, sid))
                if self.load is not None:
                    self.apply(ev.LoadReported(self.now_ms, sid, self.load))
                reported = True
            elif decision.action is Action.EVICT:
                self.apply(ev.SessionEnded(self.now_ms, sid, "evicted"))
                reported = True
            elif decision.action is Action.LOSE:
                del self.running[sid]
                self.ends.append((self.now_ms, sid, "lost"))
        return reported

    def _check(self) -> None:
        assert len(self.record.entries) <= self._most, f"{self._most} entries at {self.now_ms} ms: it does not end"
        if self._validate:
            self.core.validate()


def replay(record: Record, policy: Policy | None = None, restore_every: int = 0) -> list[Cycle]:
    """Feed the events and cycles of a record to a fresh core; the cycles it answers.

    After each `restore_every` cycles the core is replaced by one that is restored from its checkpoint; 0 = never.
    """
    core = Core(policy or make_policy(record.params), now_ms=0)
    answered: list[Cycle] = []
    for entry in record.entries:
        if isinstance(entry, Cycle):
            step = core.cycle(entry.at_ms)
            answered.append(Cycle(entry.at_ms, tuple(step.decisions), step.next_deadline_ms, look(core)))
            if restore_every and len(answered) % restore_every == 0:
                core = checkpoint.restore(json.loads(json.dumps(checkpoint.dump(core))), core.policy)
        else:
            core.apply(entry)
    return answered


def cycles_of(entries: Iterable[Entry]) -> list[Cycle]:
    """The cycles among the entries of a record."""
    return [entry for entry in entries if isinstance(entry, Cycle)]
