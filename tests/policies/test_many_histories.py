"""Ten thousand random small clusters: nobody swaps too soon, nothing hangs, and everything accepted ends in the end.

The runs are those of `test_invariants.py`, with other random numbers, without the second account of every figure. Then
arrivals stop: hosts come back, held sessions are let go, what runs ends, again and again until nobody is left.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import Phase, given, seed, settings

from policies.model import HOUR_MS, Action, State
from policies.order import FairQueue
from scheduler import events as ev
from scheduler.core import Core
from tests.policies.checkers import check_i7, check_i14
from tests.policies.harness import Machine
from tests.policies.test_invariants import (
    FAMILIES,
    GREEDY,
    HELD,
    MOST,
    QUICK,
    Plant,
    Play,
    Reported,
    Scenario,
    both,
    due_now,
    method,
    nothing,
    scenarios,
)

EACH, PARTS = 1000, 2

"""Random runs of one test, and tests of one family: 10,000 in all."""

ONES = settings(QUICK, max_examples=EACH, derandomize=False, phases=[Phase.generate])
LONGEST = 20 * MOST
"""Entries on record of a run that ends; the longest seen has 3,000."""


class Hung(Exception):
    """Nobody is left who could end, somebody waits, and nobody starts."""


def wind_down(play: Play) -> None:
    """Arrivals have stopped: everybody is served in turn, hour by hour.

    Raises:
        Hung: they are not.
    """
    machine, core = play.machine, play.machine.core
    for number in range(2 * play.submitted + 2):
        now = machine.now_ms
        for entry in list(core.view.calendar.entries):  # what is reserved may stand idle beside whoever waits
            machine.apply(ev.CalendarEntryRemoved(now, entry))
        for host, _ in play.scenario.hosts:
            machine.apply(ev.HostResumed(now, host))
            if play.scenario.reporting:
                machine.apply(ev.HostReported(now, host))
        for session in list(core.sessions.values()):
            if session.state is State.HELD:
                machine.apply(ev.SessionUnheld(now, session.id))
            elif session.state in HELD:
                machine.end(session.id)
        machine.cycle()
        if not core.sessions:
            return
        # Now nobody held anything before this cycle: whoever waits fits, since what never fits was refused.
        if not any(session.state in HELD for session in core.sessions.values()):
            raise Hung(f"round {number}, {now} ms: {sorted(core.sessions)} wait, and nobody starts on an empty machine")
        machine.run_until(now + HOUR_MS // 2 if not play.scenario.reporting else now + 60_000)
    raise Hung(f"{sorted(core.sessions)} have not ended")


def play(scenario: Scenario) -> tuple[dict[str, list[str]], Machine]:
    """What is wrong with one history, by rule, and the machine with its record."""
    machine = Machine(scenario.params, (), load=scenario.load, most=LONGEST)
    run = Play(scenario, machine)
    hung: list[str] = []
    try:
        run.run()
        wind_down(run)
    except (Hung, AssertionError, ValueError) as error:
        hung.append(str(error))
    ended = {sid for _, sid, _ in machine.ends}
    hung += [f"{sid} started and never ended" for _, sid in machine.starts if sid not in ended]
    found = {"no deadlock": hung, "I7": check_i7(machine.record), "I14": check_i14(machine.record)}
    return {rule: what for rule, what in found.items() if what}, machine


@pytest.mark.slow
@pytest.mark.shows("I7", "I14", "no deadlock", examples=(EACH, EACH))
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("family", FAMILIES)
def test_ten_thousand_histories(family: str, part: int) -> None:
    """A thousand runs of one family: every check holds, and much has happened in them."""
    seen: Counter[Action] = Counter()

    @ONES
    @seed(part)
    @given(scenarios(FAMILIES[family]))
    def runs(scenario: Scenario) -> None:
        found, machine = play(scenario)
        assert found == {}
        seen.update(decision.action for decision in machine.record.decisions)

    runs()
    check_mix(family, seen)


def check_mix(family: str, seen: Counter[Action]) -> None:
    """A thousand runs in which hardly anything happens would show hardly anything."""
    least = {Action.START: 5000, Action.WARN: 300, Action.GRACE: 100, Action.EVICT: 100}
    if family == "shared GPUs":
        least[Action.THROTTLE] = 100
    if family == "hosts that fall silent":
        least[Action.LOSE] = 100
    for action, count in least.items():
        assert seen[action] >= count, f"{family}: {seen[action]} of {action} in {EACH} runs"


def builtin(module: str, name: str, broken: Callable[..., object]) -> Plant:
    """A fault: a module has another function in place of one that is built in."""
    return lambda patch: patch.setattr(importlib.import_module(module), name, broken, raising=False)


FAULTS: tuple[tuple[str, str, str, Plant], ...] = (
    ("no deadlock", "nobody is ever found first", "credit", method(FairQueue, "best", nothing)),
    ("no deadlock", "the headroom is kept from those who ask for all", "credit",
     builtin("policies.decide", "min", lambda stock_m, _: stock_m)),
    ("no deadlock", "a session that ends stays in its user's hands", "credit",
     method(Core, "_close", lambda real, core, session, outcome: None)),
    ("I14", "a call for now", "credit", method(Core, "cycle", due_now)),
    ("I7", "no cooldown, over and over", "rotation", both(GREEDY, method(FairQueue, "cool_down", nothing))),
)  # fmt: skip


@pytest.mark.parametrize(("rule", "fault", "family", "plant"), FAULTS, ids=[f"{f[0]}: {f[1]}" for f in FAULTS])
def test_a_planted_fault_is_reported(
    rule: str, fault: str, family: str, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some history out of a thousand shows each of these faults, and is right without it."""

    @settings(ONES, derandomize=True)
    @given(scenarios(FAMILIES[family]))
    def runs(scenario: Scenario) -> None:
        found: dict[str, list[str]] = {}
        with monkeypatch.context() as patch, suppress(KeyError):
            plant(patch)
            found = play(scenario)[0]
        if rule in found and play(scenario)[0] == {}:
            raise Reported

    with pytest.raises(Reported):
        runs()


def test_a_quiet_thousand_is_found_out() -> None:
    """Planted fault: runs in which sessions start and nothing else happens."""
    with pytest.raises(AssertionError, match="0 of warn"):
        check_mix("credit", Counter({Action.START: 10_000}))
