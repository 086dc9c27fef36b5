"""Charges by cumulative counters: whatever was lost or doubled on the way, the ledger ends at what was computed."""

from __future__ import annotations

import random

import pytest

from policies.catalogue import make_policy
from policies.params import Params, TierParams, UsageParams
from scheduler import checkpoint
from scheduler import events as ev
from scheduler.core import Core, CoreError
from scheduler.metering import PER_GPU_H, Meter

SLOW = Params(usage=UsageParams(half_life_h=8_760), tiers={"free": TierParams(baseline_gpus=1)})
"""A half-life of a year: within an hour the ledger is a plain sum."""
HOUR_MS = 3_600_000


def started(params: Params = SLOW, **asked: object) -> Core:
    """A core with one session that runs since 0 on a host of two GPUs."""
    core = Core(make_policy(params))
    core.apply(ev.HostJoined(0, "h", 2))
    core.apply(ev.SessionSubmitted(0, "s", "u", **asked))  # type: ignore[arg-type]
    core.cycle(0)
    core.apply(ev.SessionStarted(0, "s"))
    return core


def charged_gpu_h(core: Core) -> float:
    """Of user u."""
    return core.view.clock.usage(core.ledger.users["u"])


@pytest.mark.parametrize("seed", range(30))
def test_lost_and_doubled_reports_change_nothing_in_the_end(seed: int) -> None:
    """Random load, random gaps, repetitions and old reports: after the last one the charge is exact (1e-4)."""
    chance = random.Random(seed)
    core, busy, told = started(gpus=2), 0.0, []
    for second in range(1, 1201):
        busy += 2_000 * chance.choice((0, 0.3, 1))
        if chance.random() < 0.2 or second == 1200:
            told.append((int(busy), second * 2_000))
            core.apply(ev.UsageMeasured(second * 1_000, "s", *told[-1]))
            if chance.random() < 0.3:
                core.apply(ev.UsageMeasured(second * 1_000, "s", *chance.choice(told)))
            core.validate()
    held_gpu_h = 2 * 1_200_000 / HOUR_MS
    assert charged_gpu_h(core) == pytest.approx(0.5 * held_gpu_h + 0.5 * busy / HOUR_MS, rel=1e-4)


def test_between_reports_the_last_load_is_charged() -> None:
    """A minute at load 1 is reported; the next minute is charged at load 1 before anything is said of it."""
    core = started()
    core.apply(ev.UsageMeasured(60_000, "s", 60_000, 60_000))
    core.cycle(120_000)
    assert charged_gpu_h(core) == pytest.approx(120_000 / HOUR_MS, rel=1e-4)
    core.apply(ev.UsageMeasured(120_000, "s", 60_000, 120_000))  # it had been idle
    assert charged_gpu_h(core) == pytest.approx(90_000 / HOUR_MS, rel=1e-4)


def test_unknown_load_is_charged_as_idle_and_is_no_load() -> None:
    """`known` = False: half the price, load None."""
    core = started()
    core.apply(ev.UsageMeasured(60_000, "s", 0, 60_000, known=False))
    assert core.sessions["s"].load is None
    assert charged_gpu_h(core) == pytest.approx(30_000 / HOUR_MS, rel=1e-4)


def test_a_throttled_session_pays_its_smaller_part() -> None:
    """Counters count what is granted: 600 thousandths for a minute."""
    core = started(fraction_m=600)
    core.apply(ev.UsageMeasured(60_000, "s", 36_000, 36_000))
    assert core.sessions["s"].load == 1.0
    assert charged_gpu_h(core) == pytest.approx(36_000 / HOUR_MS, rel=1e-4)


@pytest.mark.parametrize("counters", [(-1, 10), (11, 10)])
def test_impossible_counters_are_refused(counters: tuple[int, int]) -> None:
    """Below nothing, or more than was granted: an error, and nothing is charged."""
    core = started()
    with pytest.raises(CoreError):
        core.apply(ev.UsageMeasured(0, "s", *counters))
    assert not core.meters


def test_counters_survive_a_checkpoint() -> None:
    """The restored core charges what the original would."""
    core = started()
    core.apply(ev.UsageMeasured(60_000, "s", 20_000, 60_000))
    again = checkpoint.restore(checkpoint.dump(core), make_policy(SLOW))
    for one in (core, again):
        one.apply(ev.UsageMeasured(200_000, "s", 100_000, 200_000))
    assert charged_gpu_h(core) == charged_gpu_h(again)


def test_a_session_that_ended_has_no_meter() -> None:
    """Nothing grows."""
    core = started()
    core.apply(ev.UsageMeasured(1_000, "s", 1_000, 1_000))
    core.apply(ev.SessionEnded(1_000, "s"))
    assert not core.meters


def test_the_meter_owes_nothing_twice() -> None:
    """Asked twice at one instant, the second answer is nothing."""
    meter = Meter(0)
    meter.take(1_000, 2_000)
    assert meter.owed_gpu_h(0, 0.5) == pytest.approx(500 * 1e9 / PER_GPU_H)
    assert meter.owed_gpu_h(0, 0.5) == 0


def test_another_policy_keeps_usage_and_charges_its_own_rates_from_then_on() -> None:
    """Half-life, idle charge and weights of the new policy: usage is the same at the change, the rate is not."""
    core = started()
    core.apply(ev.UsageMeasured(60_000, "s", 60_000, 60_000))
    dear = Params(usage=UsageParams(half_life_h=8_760, idle_charge=1.0), gpu_weight={"T4": 2.0})
    other = checkpoint.under(core, make_policy(dear))
    other.validate()
    assert charged_gpu_h(other) == pytest.approx(charged_gpu_h(core), abs=1e-12)
    other.cycle(120_000)
    other.apply(ev.UsageMeasured(120_000, "s", 60_000, 120_000))
    assert charged_gpu_h(other) == pytest.approx(120_000 / HOUR_MS, rel=1e-4)
    again = checkpoint.restore(checkpoint.dump(other), make_policy(dear))
    assert charged_gpu_h(again) == charged_gpu_h(other)
