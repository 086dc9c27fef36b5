"""What must hold of every run: random machines, users and events, each rule checked on the record of the run.

Every checker is also shown a run of a scheduler with a fault planted in it, and must report it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policies.model import HOUR_MS, State
from policies.params import Params
from scheduler import events as ev
from tests.policies.checkers import CHECKERS
from tests.policies.harness import Machine, make_params

QUICK = settings(
    max_examples=300, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
LONG = settings(QUICK, max_examples=3000)

# -- random runs -----------------------------------------------------------------------------------------------------

PAUSES_S = (0, 0, 0.001, 1, 7, 60, 300, 301, 600, 900, 1800, 2400, 3600, 7200)
LOADS = (None, 0.0, 0.2, 0.9, 1.0)
FRACTIONS_M = (250, 300, 500, 1000)
STALE_S, LOST_S = 900, 3600


class Family(NamedTuple):
    """What a set of random runs is about."""

    baselines: tuple[float | None, ...]
    rotations: tuple[float | None, ...]
    headrooms: tuple[int, ...] = (0, 0, 1, 3)
    fractions: bool = False
    reporting: bool = False


FAMILIES = {
    "credit": Family((0.05, 0.25, 1.0), (None,)),
    "rotation": Family((0.0, 0.0, 0.05), (0.1, 0.5), (0, 0, 1)),
    "shared GPUs": Family((0.0, 0.05, 0.25), (None, None, 0.25), fractions=True),
    "hosts that fall silent": Family((0.0, 0.05, 0.25), (None, 0.25), reporting=True),
    "automatic baselines": Family((None,), (None, 0.5)),
}


class Act(NamedTuple):
    """One thing that happens after a pause; `a`, `b`, `c` choose whom and what."""

    pause_s: float
    kind: str
    a: int
    b: int
    c: int


KINDS = (
    *("submit",) * 18,
    *("end",) * 2,
    *("load",) * 2,
    *("usage",) * 3,
    *("cancel", "abandon", "hold", "unhold", "unhold", "save", "acknowledge", "drain", "resume", "resume"),
    *("poll",) * 3,
)


class Scenario(NamedTuple):
    """A machine, its users and what happens to them."""

    params: Params
    hosts: tuple[tuple[str, int], ...]
    shares: tuple[int, ...]
    load: float | None
    fractions: bool
    reporting: bool
    acts: tuple[Act, ...]


def decode(number: int) -> Act:
    """An act from one number: drawing one number for each act is what keeps these runs quick."""
    number, pause = divmod(number, len(PAUSES_S))
    number, kind = divmod(number, len(KINDS))
    number, a = divmod(number, 16)
    b, c = divmod(number, 16)
    return Act(PAUSES_S[pause], KINDS[kind], a, b, c)


ACTS = st.integers(0, len(PAUSES_S) * len(KINDS) * 16**3 - 1).map(decode)


@st.composite
def scenarios(draw: st.DrawFn, family: Family, most: int = 50) -> Scenario:
    """Random runs of a family."""
    pick = draw(st.tuples(*[st.integers(0, 11)] * 9))
    half_life_h = (24.0, 2.0, 24.0)[pick[0] % 3]
    params = make_params(
        half_life_h=half_life_h,
        baseline=family.baselines[pick[1] % len(family.baselines)],
        rotate_delta=family.rotations[pick[2] % len(family.rotations)],
        headroom=family.headrooms[pick[3] % len(family.headrooms)],
        max_fraction=(1.0, 0.25)[pick[4] % 2],
        warn_s=(0, 300, 60)[pick[5] % 3],
        grace_s=(0, 300, 45)[pick[6] % 3],
        min_run_s=(1800, 600)[pick[7] % 2],
        contention_s=(0, 0, 0, 120)[pick[8] % 4],
        stale_s=STALE_S if family.reporting else 30,
        lost_s=LOST_S if family.reporting else 45,
    )
    sizes = draw(st.lists(st.sampled_from((2, 2, 3, 4, 8)), min_size=1, max_size=3))
    return Scenario(
        params,
        tuple((f"host{number}", size) for number, size in enumerate(sizes)),
        tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))),
        LOADS[draw(st.integers(0, len(LOADS) - 1))],
        family.fractions,
        family.reporting,
        tuple(draw(st.lists(ACTS, min_size=10, max_size=most))),
    )


class Play:
    """One run of a scenario; `machine` has the record."""

    def __init__(self, scenario: Scenario, machine: Machine | None = None) -> None:
        self.scenario = scenario
        self.machine = machine or Machine(scenario.params, (), load=scenario.load, validate=True)
        self.submitted = 0
        for host, gpus in scenario.hosts:
            self.machine.apply(ev.HostJoined(0, host, gpus, heartbeat=scenario.reporting))
        for number, shares in enumerate(scenario.shares):
            self.machine.apply(ev.GroupSet(0, f"g{number}", shares))

    def run(self) -> Machine:
        """All acts, then a quiet hour."""
        for act in self.scenario.acts:
            self._pause(round(act.pause_s * 1000), act.c)
            self._do(act)
            self.machine.cycle()
        self._pause(HOUR_MS, 0)
        return self.machine

    def _pause(self, pause_ms: int, missing: int) -> None:
        """Time passes; hosts report each 10 min and at the end, but for one that may be silent now."""
        machine, until_ms = self.machine, self.machine.now_ms + pause_ms
        while machine.now_ms < until_ms:
            machine.run_until(min(until_ms, machine.now_ms + 600_000) if self.scenario.reporting else until_ms)
            if self.scenario.reporting:
                for number, (host, _) in enumerate(self.scenario.hosts):
                    if missing != number + 1:
                        machine.apply(ev.HostReported(machine.now_ms, host))
                machine.cycle()

    def _do(self, act: Act) -> None:
        machine, now = self.machine, self.machine.now_ms
        if act.kind == "submit":
            user, group = act.a % 6, act.a % len(self.scenario.shares)
            fraction_m = FRACTIONS_M[act.c % 4] if self.scenario.fractions else 1000
            gpus = 1 if fraction_m < 1000 else (1, 1, 1, 2, 2, 3, 4, 11)[act.b % 8]
            self.submitted += 1
            machine.submit(f"s{self.submitted}", f"u{user}", gpus, f"g{group}", fraction_m)
        elif act.kind == "usage":
            users = sorted(machine.core.ledger.users)
            if users:
                machine.apply(ev.UsageSet(now, users[act.a % len(users)], (0, 0.1, 1, 8, 8, 30)[act.b % 6]))
        elif act.kind in ("drain", "resume"):
            host = self.scenario.hosts[act.a % len(self.scenario.hosts)][0]
            machine.apply(ev.HostDrained(now, host) if act.kind == "drain" else ev.HostResumed(now, host))
        elif act.kind != "poll":
            self._to_session(act, now)

    def _to_session(self, act: Act, now: int) -> None:
        states, make = SESSION_ACTS[act.kind]
        found = [sid for sid, session in self.machine.core.sessions.items() if session.state in states]
        if found:
            self.machine.apply(make(now, found[act.a % len(found)], LOADS[act.b % len(LOADS)]))


HELD = (State.RUNNING, State.STARTING, State.STOPPING)
SESSION_ACTS: dict[str, tuple[tuple[State, ...], Callable[[int, str, float | None], ev.Event]]] = {
    "end": (HELD, lambda now, sid, _: ev.SessionEnded(now, sid)),
    "load": (HELD, ev.LoadReported),
    "cancel": ((State.RUNNING, State.STARTING, State.QUEUED), lambda now, sid, _: ev.SessionCancelled(now, sid)),
    "abandon": ((State.QUEUED,), lambda now, sid, _: ev.SessionAbandoned(now, sid)),
    "hold": ((State.QUEUED,), lambda now, sid, _: ev.SessionHeld(now, sid)),
    "unhold": ((State.HELD,), lambda now, sid, _: ev.SessionUnheld(now, sid)),
    "save": (HELD, lambda now, sid, _: ev.SessionSaved(now, sid)),
    "acknowledge": (HELD, lambda now, sid, _: ev.SessionSaved(now, sid, acknowledged=True)),
}


def findings(scenario: Scenario) -> dict[str, list[str]]:
    """What the checkers have to say about one run."""
    record = Play(scenario).run().record
    return {name: found for name, check in CHECKERS.items() if (found := check(record))}


def check_all(family: str, limits: settings) -> None:
    @settings(limits)
    @given(scenarios(FAMILIES[family]))
    def runs(scenario: Scenario) -> None:
        assert findings(scenario) == {}

    runs()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_rule_holds_in_random_runs(family: str) -> None:
    """Three hundred random runs of each family pass every checker, and the core's own check after every event."""
    check_all(family, QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_rule_holds_in_many_random_runs(family: str) -> None:
    """The same with ten times as many runs."""
    check_all(family, LONG)
