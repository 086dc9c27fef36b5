"""The numbers that any implementation of these rules must reproduce: charging, order, eviction, rotation."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from policies.model import HOUR_MS, Action, Decision
from policies.usage import credit_gone_h, decayed, retry_after_h, swap_period_h
from scheduler import events as ev
from tests.policies.harness import MINUTE_MS, SECOND_MS, Machine, make_params

K_24 = 24 / math.log(2)


def evictions(decisions: list[Decision]) -> list[str]:
    return [decision.session for decision in decisions if decision.action is Action.EVICT]


# -- the ledger: T7 to T10 -----------------------------------------------------------------------------------------


def charge_by_reports(steps: int, hours: float, half_life_h: float = 24.0) -> Machine:
    """One session at load 1 for `hours`, whose load is measured `steps` times: the account is touched each time."""
    machine = Machine(make_params(half_life_h=half_life_h))
    machine.submit("s", "ann")
    machine.cycle()
    for step in range(1, steps + 1):
        at_ms = round(hours * HOUR_MS * step / steps)
        machine.apply(ev.LoadReported(at_ms, "s", 0.5), ev.LoadReported(at_ms, "s", 1.0))
    return machine


def charge_by_sessions(steps: int, hours: float) -> Machine:
    """The same work done by `steps` sessions, one after another without a gap."""
    machine = Machine(make_params())
    for step in range(steps):
        machine.submit(f"s{step}", "ann")
        machine.cycle()
        machine.now_ms = round(hours * HOUR_MS * (step + 1) / steps)
        machine.end(f"s{step}")
    return machine


def test_t7_closed_form() -> None:
    """T7: usage after 12 h and 24 h at rate 1, and the level it tends to, by the exact integral."""
    assert decayed(0, 1, 12, 24) == pytest.approx(10.141334, abs=5e-7)
    assert decayed(0, 1, 24, 24) == pytest.approx(17.312340, abs=5e-7)
    assert decayed(0, 1, 24_000, 24) == pytest.approx(34.624681, abs=5e-7)


@pytest.mark.parametrize("steps", [1, 24, 8640])
@pytest.mark.parametrize("charge", [charge_by_reports, charge_by_sessions])
@pytest.mark.parametrize(("hours", "expected"), [(12, 10.141334), (24, 17.312340)])
def test_t7_through_events(charge: type, steps: int, hours: float, expected: float) -> None:
    """T7: the ledger charges the same however often it is looked at and into however many sessions work is cut."""
    machine = charge(steps, hours)
    assert machine.usage("ann") == pytest.approx(expected, abs=5e-7)
    assert machine.usage("ann") == pytest.approx(decayed(0, 1, hours, 24), abs=1e-9)
    group = machine.core.ledger.groups["default"]
    assert machine.core.ledger.clock.usage(group) == pytest.approx(machine.usage("ann"), abs=1e-9)


@pytest.mark.parametrize("steps", [1, 150, 8640])
def test_t7_steady_state_beyond_the_landmark(steps: int) -> None:
    """T7: 150 half-lives at rate 1 end at K, also where the decay clock moved its landmark on the way."""
    assert charge_by_reports(steps, 150 * 24.0).usage("ann") == pytest.approx(K_24, abs=1e-9)
    assert pytest.approx(34.624681, abs=5e-7) == K_24


def test_t8_short_half_life_by_reports() -> None:
    """T8: half-life 10 min, a report each 300 s: usage after 1 h and in the steady state."""
    assert decayed(0, 1, 1, 1 / 6) == pytest.approx(0.2366921551, abs=5e-11)
    assert charge_by_reports(12, 1, 1 / 6).usage("ann") == pytest.approx(0.2366921551, abs=5e-11)
    assert charge_by_reports(12 * 24, 24, 1 / 6).usage("ann") == pytest.approx(0.2404491735, abs=5e-11)


def test_t9_credit_by_closed_form() -> None:
    """T9: baseline .25 is worth 8.656170 GPU-h, gone after 9.960900 h at rate 1 and after 24 h at rate .5."""
    cap = 0.25 * K_24
    assert cap == pytest.approx(8.656170, abs=5e-7)
    assert credit_gone_h(cap, 1.0, 24) == pytest.approx(9.960900, abs=5e-7)
    assert credit_gone_h(cap, 0.5, 24) == pytest.approx(24, abs=1e-9)
    assert credit_gone_h(cap, 0.25, 24) is None


@pytest.mark.parametrize(("load", "hours"), [(1.0, 9.960900), (0.0, 24.0)])
def test_t9_credit_through_events(load: float, hours: float) -> None:
    """T9: the notice names the instant at which credit will be gone, and there it is gone, to the millisecond."""
    machine = Machine(make_params(baseline=0.25), load=load)
    machine.submit("s", "ann")
    machine.cycle()
    notices = [decision for decision in machine.run_h(hours - 0.01) if decision.action is Action.NOTICE]
    assert len(notices) == 1
    gone_ms = notices[0].reason.until_ms
    assert gone_ms is not None
    assert gone_ms == pytest.approx(hours * HOUR_MS, abs=2 + 5e-7 * HOUR_MS)
    user = machine.core.ledger.users["ann"]
    machine.run_until(gone_ms - 2)
    assert user.in_credit
    assert machine.usage("ann") < 0.25 * K_24
    machine.run_until(gone_ms + 2)
    assert not user.in_credit


def test_t10_back_at_the_limit() -> None:
    """T10: usage 12 with a limit of 10 is back at the limit after 6.3128 h, by the closed form and by the ledger."""
    hours = retry_after_h(12, 10, 24)
    assert hours == pytest.approx(6.3128, abs=5e-5)
    machine = Machine(make_params())
    machine.apply(ev.UserSet(0, "ann"))
    machine.set_usage(ann=12)
    machine.run_h(hours)
    assert machine.usage("ann") == pytest.approx(10, abs=1e-6)


# -- order: T11 ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("baseline", [0.0, 0.25])
def test_t11_committed_charge_lets_two_take_turns(baseline: float) -> None:
    """T11: A (usage .1) asks 10, B (.05) asks 1000, 10 slots: B A B A ..., five each, in and out of credit."""
    machine = Machine(make_params(baseline=baseline), [("pool", 10)])
    machine.apply(ev.UserSet(0, "A"), ev.UserSet(0, "B"))
    machine.set_usage(A=0.1, B=0.05)
    for number in range(1000):
        machine.submit(f"B{number:04}", "B")
    for number in range(10):
        machine.submit(f"A{number}", "A")
    machine.cycle()
    assert "".join(session[0] for _, session in machine.starts) == "BABABABABA"


# -- eviction: T12, T14 --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asking", ["bob", "bea"])
def test_t12_eviction_loop(asking: str) -> None:
    """T12: one eviction makes room, the evicted comes back at once, and nothing more happens in 50 cycles."""
    machine = Machine(make_params(rotate_delta=0.5), [("pool", 5)])
    machine.apply(ev.GroupSet(0, "A", 3), ev.GroupSet(0, "B", 5))
    machine.apply(*(ev.UserSet(0, user, group) for user, group in (("ann", "A"), ("bob", "B"), ("bea", "B"))))
    machine.submit("p1", "ann", 4, "A")
    machine.submit("p2", "bob", 1, "B")
    machine.cycle()
    machine.run_h(0.51)
    machine.submit("p3", asking, 4, "B")
    machine.set_usage(ann=0, bob=0, bea=0)
    evicted: list[str] = []
    for cycle in range(50):
        gone = evictions(machine.tick(1))
        evicted += gone
        for session in gone:
            machine.submit(f"{session}.again{cycle}", "ann", 4, "A")
    assert evicted == ["p1"]
    assert set(machine.running) == {"p2", "p3"}


@pytest.mark.parametrize(("gpus", "victims", "final"), [(4, 2, {"P1": 4, "P2": 4}), (5, 0, {"P1": 8})])
@pytest.mark.parametrize("usage", [0.5, 3.0])
def test_t14_a_set_of_victims_is_tested_as_a_whole(
    gpus: int, victims: int, final: dict[str, int], usage: float
) -> None:
    """T14: P2's session of 4 takes exactly two of P1's four sessions of 2, its session of 5 takes none."""
    machine = Machine(make_params(rotate_delta=0.5))
    machine.apply(ev.UserSet(0, "P2"))
    for number in range(4):
        machine.submit(f"P1-{number}", "P1", 2)
    machine.cycle()
    machine.run_h(0.51)
    machine.set_usage(P1=usage, P2=usage)
    machine.submit("P2-0", "P2", gpus)
    assert len(evictions(machine.cycle())) == victims
    held: dict[str, int] = {}
    for session, count in machine.running.items():
        held[session[:2]] = held.get(session[:2], 0) + count
    assert held == final
    assert evictions(machine.tick(20)) == []


# -- rotation: T15, T16 --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("grace_s", "period_h"), [(0, 1.00007), (300, 1.16417)])
def test_t15_swap_period(grace_s: int, period_h: float) -> None:
    """T15: two greedy users on one GPU swap each 1.00007 h, with 5 min of grace each 1.16417 h, within 2 cycles."""
    machine = Machine(make_params(rotate_delta=0.5, grace_s=grace_s), [("pool", 1)])
    machine.submit("ann0", "ann")
    machine.submit("bob0", "bob")
    machine.cycle()
    swaps: list[int] = []
    while len(swaps) < 8:
        for session in evictions(machine.tick(1)):
            swaps.append(machine.now_ms)
            machine.submit(f"{session[:3]}{len(swaps)}", session[:3])
        assert machine.now_ms < 12 * HOUR_MS, f"only {len(swaps)} swaps in 12 h"
    periods = [later - earlier for earlier, later in pairwise(swaps)][1:]
    assert len(periods) >= 6
    assert periods == pytest.approx([period_h * HOUR_MS] * len(periods), abs=2 * SECOND_MS)


def test_t15_swap_period_by_closed_form() -> None:
    """T15: the closed form for two equal users without grace."""
    assert swap_period_h(24, 0.5) == pytest.approx(1.00007, abs=5e-6)
    assert make_params(rotate_delta=0.5).swap_period_ms == round(swap_period_h(24, 0.5) * HOUR_MS)


def crowd() -> Machine:
    """Eight fresh users hold eight GPUs, eighty more wait."""
    machine = Machine(make_params(rotate_delta=0.25, grace_s=300))
    for number in range(8):
        machine.submit(f"h{number}", f"holder{number}")
    machine.cycle()
    for number in range(80):
        machine.submit(f"w{number:02}", f"waiter{number:02}")
    return machine


def test_t16_everybody_gets_a_turn_by_deadlines() -> None:
    """T16: 80 fresh users wait for 8 GPUs held by fresh users: waits 35, 70, ... 350 min, eight each, mean 192.5."""
    machine = crowd()
    machine.run_until(351 * MINUTE_MS)
    waits = [at_ms / MINUTE_MS for at_ms, session in machine.starts if session.startswith("w")]
    assert waits == pytest.approx([35.0 * (1 + number // 8) for number in range(80)], abs=0.02)
    assert sum(waits) / 80 == pytest.approx(192.5, abs=0.02)


def test_t16_everybody_gets_a_turn_in_cycles_of_a_second() -> None:
    """T16 again, with a cycle each second: within 2 cycles."""
    machine = crowd()
    machine.tick(351 * 60)
    waits = [at_ms / MINUTE_MS for at_ms, session in machine.starts if session.startswith("w")]
    assert waits == pytest.approx([35.0 * (1 + number // 8) for number in range(80)], abs=2 / 60)
