"""A site to try the core on, event by event: every step is audited, the hosts obey at once, the journal is kept."""

from __future__ import annotations

import json
from typing import Any

from policies.catalogue import make_policy
from policies.model import Action, Decision
from policies.params import Params
from scheduler import checkpoint
from scheduler import events as ev
from scheduler.core import Core
from scheduler.journal import Difference, cycle_line, event_line, head_line, replay

MINUTE_MS = 60_000


class Site:
    """Cores that are audited after every event and cycle, hosts that obey at once, and the journal of it all.

    After `fork` a core restored from a checkpoint gets the same, and must say the same.

    Args:
        hosts: that are there at time 0; one with one GPU if none is named.
        shared: how many GPUs may be shared at once; None = any.

    Attributes:
        deadline: when the core next asks to be called.
        made: all decisions.  cycled: instants of the cycles.  log: events, and the decisions of each cycle.
    """

    def __init__(self, params: Params, *hosts: ev.HostJoined, shared: int | None = None) -> None:
        self.cores = [Core(make_policy(params), shared_limit=shared)]
        self.lines = [head_line(self.core)]
        self.now = 0
        self.deadline: int | None = None
        self.made: list[Decision] = []
        self.cycled: list[int] = []
        self.log: list[tuple[int, ev.Event | list[Decision]]] = []
        self.apply(*(hosts or (ev.HostJoined(0, "h", 1),)))

    @property
    def core(self) -> Core:
        """The core, or the original of the two."""
        return self.cores[0]

    @core.setter
    def core(self, core: Core) -> None:
        self.cores = [core]

    def fork(self) -> None:
        """From now on the newest restored core runs beside the original."""
        self.cores = [self.core, checkpoint.restore(dumped(self.core), self.core.policy)]

    # -- what happens ------------------------------------------------------------------------------------------------

    def apply(self, *events: ev.Event) -> None:
        """Tell the cores; nothing is decided before the next cycle."""
        for event in events:
            self.now = max(self.now, event.at_ms)
            for core in self.cores:
                core.apply(event)
                core.validate()
            self.lines.append(event_line(event))
            self.log.append((self.now, event))
            self.deadline = self.core.next_deadline_ms()

    def submit(self, sid: str, user: str, **asked: Any) -> None:
        """A user asks for a session now."""
        self.apply(ev.SessionSubmitted(self.now, sid, user, **asked))

    def end(self, *sids: str, outcome: str = "completed") -> None:
        """Sessions end now."""
        self.apply(*(ev.SessionEnded(self.now, sid, outcome) for sid in sids))

    def use(self, user: str, gpu_h: float) -> None:
        """A user's usage is so much now."""
        self.apply(ev.UserSet(self.now, user), ev.UsageSet(self.now, user, gpu_h))

    def load(self, load: float | None) -> None:
        """Every session reports a load."""
        self.apply(*(ev.LoadReported(self.now, sid, load) for sid in list(self.core.view.holders)))

    # -- cycles ------------------------------------------------------------------------------------------------------

    def cycle(self, now: int | None = None) -> list[Decision]:
        """Decide at `now`, obey, and decide again until nothing more happens; what was decided."""
        self.now = self.now if now is None else now
        self.cycled.append(self.now)
        made: list[Decision] = []
        again = True
        while again:
            steps = [core.cycle(self.now) for core in self.cores]
            said = [cycle_line(step, self.now) for step in steps]
            assert said[-1] == said[0]
            for core in self.cores:
                core.validate()
            self.lines.append(said[0])
            self.log.append((self.now, steps[0].decisions))
            for decision in steps[0].decisions:
                self.obey(decision)
            made += steps[0].decisions
            again = bool(steps[0].decisions)
        deadlines = [core.next_deadline_ms() for core in self.cores]
        assert deadlines[-1] == deadlines[0]
        self.deadline = deadlines[0]
        self.made += made
        return made

    def obey(self, decision: Decision) -> None:
        """What the host of a session does at once."""
        if decision.action is Action.START:
            self.apply(ev.SessionStarted(self.now, decision.session))
        elif decision.action is Action.EVICT:
            self.apply(ev.SessionEnded(self.now, decision.session, "evicted"))

    def pass_until(self, when: int) -> list[Decision]:
        """Cycle at every deadline that the core asks for up to `when`, and at no other instant."""
        made: list[Decision] = []
        while self.deadline is not None and self.deadline <= when:
            assert self.deadline > self.now
            made += self.cycle(self.deadline)
        self.now = when
        return made

    # -- questions ---------------------------------------------------------------------------------------------------

    def host_of(self, sid: str) -> tuple[str, ...]:
        """The hosts of a session."""
        allocation = self.core.sessions[sid].allocation
        return () if allocation is None else allocation.hosts


def dumped(core: Core) -> dict[str, Any]:
    """The checkpoint of a core as it is read back."""
    data: dict[str, Any] = json.loads(json.dumps(checkpoint.dump(core), allow_nan=False))
    return data


def check_replay(lines: list[str]) -> None:
    """Read back and run again, every cycle says the same, byte for byte."""
    found = list(replay(lines, "journal"))
    assert not [one for one in found if isinstance(one, Difference)]
    assert len(found) == sum(1 for line in lines if line.startswith('{"cycle"'))


def did(decisions: list[Decision], action: Action) -> list[str]:
    """The sessions of the decisions of one kind."""
    return [decision.session for decision in decisions if decision.action is action]


def started(decisions: list[Decision]) -> list[str]:
    """The sessions that were started."""
    return did(decisions, Action.START)
