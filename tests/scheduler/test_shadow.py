"""The shadow: what another policy would decide on a recorded past, cycle by cycle, and nothing besides."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import Phase, given, settings

from policies.catalogue import make_policy
from policies.params import Params
from scheduler import checkpoint, journal
from scheduler.core import Core, Step
from scheduler.journal import cycle_line, event_line, head_line
from scheduler.shadow import Key, Shadow
from tests.policies.harness import Cycle, Machine, Record, make_params
from tests.policies.test_invariants import FAMILIES, QUICK, Play, Scenario, scenarios

MINUTE_MS = 60_000
FEW = settings(QUICK, max_examples=8)


def lines_of(record: Record, params: Params) -> list[str]:
    """The journal of a run."""
    lines = [head_line(Core(make_policy(params)))]
    for entry in record.entries:
        if isinstance(entry, Cycle):
            lines.append(cycle_line(Step(list(entry.decisions), None), entry.at_ms))
        else:
            lines.append(event_line(entry))
    return lines


def seen_by(params: Params, lines: list[str], every_ms: int = 0, since_ms: int = 0) -> Shadow:
    """A shadow that has been shown a whole journal, which must replay equal all the same."""
    shadow = Shadow(params, every_ms, since_ms)
    assert all(isinstance(result, int) for result in journal.replay(lines, "j", None, shadow.look))
    return shadow


def renamed(params: Params) -> Params:
    return dataclasses.replace(params, name="another-name")


def departures(scenario: Scenario, shadow: Params) -> list[Any]:
    lines = lines_of(Play(scenario).run().record, scenario.params)
    return seen_by(shadow, lines).departures


# ---- the policy that is in force differs in nothing


@pytest.mark.parametrize("family", FAMILIES)
def test_the_active_policy_differs_in_nothing_from_itself(family: str) -> None:
    """Random runs, every cycle looked at: as itself, and under another name, which goes the whole way of activation."""

    @settings(FEW)
    @given(scenarios(FAMILIES[family], 30))
    def runs(scenario: Scenario) -> None:
        lines = lines_of(Play(scenario).run().record, scenario.params)
        assert seen_by(scenario.params, lines).departures == []
        # An activation looks at everybody's credit once; who was not told while telemetry was stale is told then.
        other = seen_by(renamed(scenario.params), lines).departures
        assert [found for found in other if found.decision.reason.rule != "ladder.notice"] == []

    runs()


@pytest.mark.parametrize("fault", ["memory", "promises", "restored"])
def test_a_state_that_is_not_carried_over_whole_is_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: what a policy remembered, or what nominated waiters are charged, is forgotten on the way."""
    if fault == "memory":
        monkeypatch.setattr(checkpoint, "_remembered", lambda *_: dict.fromkeys(checkpoint._MEMORY) | {"baselines": {}})
    elif fault == "promises":
        monkeypatch.setattr(Core, "_commit_again", lambda *_: None)
    else:
        restore = checkpoint.restore

        def forgetful(data: Any, policy: Any) -> Core:
            return restore(data | {"memory": data["memory"] | {"calm_from_ms": None}}, policy)

        monkeypatch.setattr(checkpoint, "restore", forgetful)
    family, name = {"memory": ("credit", "x"), "promises": ("rotation", "x"), "restored": ("credit", "")}[fault]

    @settings(QUICK, max_examples=300, phases=[Phase.generate])
    @given(scenarios(FAMILIES[family]))
    def runs(scenario: Scenario) -> None:
        params = scenario.params
        lines = lines_of(Play(scenario).run().record, params)
        found = seen_by(dataclasses.replace(params, name=name), lines).departures
        assert [one for one in found if one.decision.reason.rule != "ladder.notice"] == []

    with pytest.raises(AssertionError):
        runs()


# ---- one that is different


def crowded(contention_s: float) -> tuple[list[str], Params, int]:
    """Four GPUs of ann's, who is out of credit; bob asks for one after an hour: warned `contention_s` later."""
    params = make_params(baseline=0.05, warn_s=300, grace_s=60, min_run_s=600, contention_s=contention_s)
    machine = Machine(params, [("host", 4)])
    for number in range(4):
        machine.submit(f"s{number}", "ann")
    machine.cycle()
    machine.set_usage(ann=20)
    machine.cycle()
    machine.run_h(1)
    asked_ms = machine.now_ms
    machine.submit("b1", "bob")
    machine.cycle()
    machine.run_h(1)
    return lines_of(machine.record, params), params, asked_ms


def test_a_policy_that_warns_earlier_would_have_warned_these_sessions() -> None:
    """Recorded: ten minutes of contention before the first warning. The shadow waits for none: all four at once.

    At most 3 x deficit + 2 = 5 are warned at a time, so all of ann's four, as soon as bob asks; each of them is warned
    ten minutes later on record. One of them is evicted for bob six minutes after that.
    """
    lines, params, asked_ms = crowded(600)
    hasty = dataclasses.replace(params, name="hasty", ladder=dataclasses.replace(params.ladder, contention_ms=0))
    warned = {
        decision["session"]: entry["cycle"]
        for entry in map(json.loads, lines)
        for decision in entry.get("decisions", ())
        if decision["action"] == "warn"
    }
    assert set(warned.values()) == {asked_ms + 600_000}
    shadow = seen_by(hasty, lines)
    would = [found for found in shadow.departures if found.key.action == "warn"]
    assert {found.key.session for found in would} == set(warned) == {"s0", "s1", "s2", "s3"}
    assert {(found.at_ms, found.later_ms) for found in would} == {(asked_ms, asked_ms + 600_000)}
    assert shadow.counts()[0] == {"would": True, "action": "warn", "sessions": 4, "later": 4, "times": 4}
    assert "waits" in would[0].text or "wait" in would[0].text
    assert shadow.looks == shadow.cycles
    assert shadow.compared == shadow.decided


def test_a_policy_that_warns_later_would_not_have_warned_them() -> None:
    """The other way round: at the recorded warning the shadow still waits."""
    lines, params, asked_ms = crowded(0)
    calm = dataclasses.replace(params, name="calm", ladder=dataclasses.replace(params.ladder, contention_ms=600_000))
    found = seen_by(calm, lines).departures
    assert {one.key for one in found if one.key.action == "warn"} == {
        Key(f"s{n}", "warn", would=False) for n in range(4)
    }
    assert {one.at_ms for one in found if one.key.action == "warn"} == {asked_ms}


def test_looks_are_at_most_so_often_and_not_before_since() -> None:
    """One look a minute of recorded time; the cycles before `since` are neither looked at nor counted."""
    lines, params, asked_ms = crowded(600)
    shadow = seen_by(renamed(params), lines, every_ms=30 * MINUTE_MS)
    assert 2 <= shadow.looks <= 5
    late = seen_by(renamed(params), lines, since_ms=asked_ms)
    assert late.first_ms == asked_ms
    assert 0 < late.cycles < seen_by(params, lines).cycles


def test_looking_changes_nothing() -> None:
    """The core that is shown is the same afterwards, byte for byte, for a policy of any sort."""
    lines, params, _ = crowded(600)
    for policy in (params, renamed(params), Params(policy="fifo")):
        shadow = Shadow(policy, 0)

        def look(core: Core, now_ms: int, entry: Any, shadow: Shadow = shadow) -> None:
            before = json.dumps(checkpoint.dump(core))
            shadow.look(core, now_ms, entry)
            assert json.dumps(checkpoint.dump(core)) == before

        assert all(isinstance(result, int) for result in journal.replay(lines, "j", None, look))
