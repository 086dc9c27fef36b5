"""The service through random misfortune: whatever fails, nothing accepted is lost, doubled or charged wrongly.

`tests/scheduler/service_world.py` has the world and what must hold in it. Every planted fault is found by it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from policies.params import HeadroomParams, Params, TierParams, UsageParams
from scheduler import checkpoint, service
from scheduler.adapters.memory import MemoryStore
from scheduler.dispatch import Dispatch
from scheduler.errors import CoreError, FairTierError
from scheduler.intake import Intake
from scheduler.lifecycle import IllegalMove
from scheduler.metering import Meter
from scheduler.moment import Moment
from scheduler.roster import Roster
from scheduler.service import Service
from scheduler.telemetry import Telemetry
from tests.scheduler.service_world import QUICK, RandomHost, World
from workers.protocol import Forget

EACH = 25
FAST, ALL = 200, 3_000
ENOUGH = 400
"""Seeds within which every planted fault is found."""


@pytest.fixture(autouse=True)
def _checkpoints_are_frequent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "CHECKPOINT_LINES", 40)


@pytest.mark.parametrize("first", range(0, FAST, EACH))
def test_everything_accepted_comes_to_one_end(first: int) -> None:
    """Messages lost, doubled, late; kills, restarts, wipes, failed commits: checked after every step and at the end."""
    for seed in range(first, first + EACH):
        survive(seed)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(FAST, ALL, 200))
def test_everything_accepted_comes_to_one_end_for_many_seeds(first: int) -> None:
    """The same with other seeds."""
    for seed in range(first, first + 200):
        survive(seed)


def survive(seed: int, **options: Any) -> None:
    """Run a world; a failure names its seed."""
    try:
        World(seed, **options).run()
    except Exception as error:
        raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error


SLOWER = Params(
    usage=UsageParams(half_life_h=1.0, idle_charge=0.0),
    tiers={"free": TierParams(baseline_gpus=0.5)},
    headroom=HeadroomParams(fixed_gpus=1),
    telemetry=QUICK.telemetry,
)
OTHERS = (Params(policy="fifo"), Params(policy="fifo-skip"), Params(policy="sjf"), SLOWER)


@pytest.mark.parametrize("first", range(0, 50, EACH))
def test_another_policy_at_any_moment(first: int) -> None:
    """The scheduler restarts with another policy, sessions on every rung: all the same holds, and everybody ends."""
    for seed in range(first, first + EACH):
        policy = OTHERS[seed % len(OTHERS)]
        survive(seed, params=(QUICK, policy, QUICK))


@pytest.mark.parametrize("first", range(0, 50, EACH))
def test_another_policy_activated_at_any_moment(first: int) -> None:
    """While it runs, and taken back, among all the other faults: versions, journal and decisions agree."""
    for seed in range(first, first + EACH):
        survive(seed, others=(OTHERS[seed % len(OTHERS)],))


# -- planted faults ----------------------------------------------------------------------------------------------------

Plant = Callable[[pytest.MonkeyPatch], None]
FAULTS: dict[str, Plant] = {}


def fault(plant: Plant) -> Plant:
    """A mistake that the world must find."""
    FAULTS[plant.__name__] = plant
    return plant


def before_commit(patch: pytest.MonkeyPatch, act: Callable[[Service, Moment], None]) -> None:
    """Do something before a pass is on record that belongs after it."""
    commit = Service._commit

    def wrong(self: Service, moment: Moment) -> None:
        act(self, moment)
        commit(self, moment)

    patch.setattr(Service, "_commit", wrong)


@fault
def cursor_is_advanced_before_the_commit(patch: pytest.MonkeyPatch) -> None:
    before_commit(patch, lambda self, moment: self._store.data.cursors.update(moment.batch.cursors))


@fault
def commands_are_sent_before_the_commit(patch: pytest.MonkeyPatch) -> None:
    before_commit(patch, lambda self, moment: self._bus.send(self._dispatch.to_send(moment.now_ms)))


@fault
def answers_are_told_before_the_commit(patch: pytest.MonkeyPatch) -> None:
    before_commit(patch, lambda self, moment: self._bus.answer(moment.answered))


@fault
def ends_are_forgotten_before_the_commit(patch: pytest.MonkeyPatch) -> None:
    def forget(self: Service, moment: Moment) -> None:
        self._bus.send([(host, command) for host, command in moment.commands if isinstance(command, Forget)])

    before_commit(patch, forget)


@fault
def the_outbox_is_not_loaded_at_a_start(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(MemoryStore, "outbox", lambda self: [])


@fault
def a_commit_that_failed_late_is_told_as_none(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Service, "_verdict", lambda self, request, error, sort: service._refusal(request, error, sort))


@fault
def the_core_is_kept_after_a_failed_commit(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Service, "_reload", lambda self: None)


@fault
def a_host_obeys_a_doubled_start(patch: pytest.MonkeyPatch) -> None:
    made = RandomHost.__init__

    def forgetful(self: RandomHost, name: str, gpus: int, chance: random.Random) -> None:
        made(self, name, gpus, chance)
        self.forgetful = True

    patch.setattr(RandomHost, "__init__", forgetful)


@fault
def missing_sessions_are_not_noticed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Telemetry, "_missing", lambda self, moment, report: None)


@fault
def sessions_whose_start_is_under_way_are_missed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Dispatch, "is_pending", lambda self, sid: False)


@fault
def what_a_lost_host_still_runs_goes_on(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Dispatch, "quell", lambda self, moment, host, sid: None)


@fault
def ends_are_never_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Dispatch, "forget", lambda self, moment, host, sid: None)


@fault
def old_reports_are_believed(patch: pytest.MonkeyPatch) -> None:
    hear = Telemetry._hear
    patch.setattr(Telemetry, "_hear", lambda self, moment, report: hear(self, moment, report) or True)


@fault
def counters_are_summed(patch: pytest.MonkeyPatch) -> None:
    def summed(self: Meter, busy_ms: int, granted_ms: int) -> float | None:
        self.busy_ms += busy_ms
        self.granted_ms = max(self.granted_ms, granted_ms)
        return min(1.0, busy_ms / granted_ms) if granted_ms else 0.0

    patch.setattr(Meter, "take", summed)


@fault
def an_end_without_news_keeps_what_was_charged_ahead(patch: pytest.MonkeyPatch) -> None:
    take = Meter.take
    patch.setattr(
        Meter, "take", lambda self, busy, granted: take(self, busy, granted) if granted > self.granted_ms else None
    )


@fault
def counters_are_not_in_a_checkpoint(patch: pytest.MonkeyPatch) -> None:
    dump = checkpoint.dump
    patch.setattr(checkpoint, "dump", lambda core: dump(core) | {"meters": {}})


@fault
def a_key_is_done_as_often_as_it_is_told(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(MemoryStore, "answer", lambda self, key: None)


@fault
def a_key_told_twice_in_one_batch_is_done_twice(patch: pytest.MonkeyPatch) -> None:
    take = Intake.take

    def forgetful(self: Intake, moment: Moment, request: Any) -> None:
        moment.keys.clear()
        take(self, moment, request)

    patch.setattr(Intake, "take", forgetful)


@fault
def commands_outlive_their_session(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Dispatch, "ended", lambda self, moment, sid: None)


@fault
def an_older_notice_is_sent_after_a_newer_one(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Dispatch, "_supersede", lambda self, moment, command: None)


@fault
def silence_while_nobody_listened_counts(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Telemetry, "heard_anew", lambda self, moment, *more: None)


@fault
def a_clock_set_back_is_believed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Service, "_now_ms", lambda self: self._clock.now_ms())


@fault
def a_row_does_not_follow_its_session(patch: pytest.MonkeyPatch) -> None:
    touch = Roster.touch

    def deaf(self: Roster, batch: Any, row: Any, **changes: Any) -> Any:
        changes.pop("granted_m", None)
        return touch(self, batch, row, **changes)

    patch.setattr(Roster, "touch", deaf)


@fault
def a_drained_host_is_not_on_record(patch: pytest.MonkeyPatch) -> None:
    keep = Roster.keep_host

    def deaf(self: Roster, batch: Any, host: str, **changes: Any) -> Any:
        changes.pop("drained", None)
        return keep(self, batch, host, **changes)

    patch.setattr(Roster, "keep_host", deaf)


@fault
def a_pardon_is_not_on_record(patch: pytest.MonkeyPatch) -> None:
    restrict = Roster.restrict
    patch.setattr(Roster, "restrict", lambda self, batch, user, until: restrict(self, batch, user, until or 1 << 62))


FOUND = (AssertionError, FairTierError, CoreError, IllegalMove, KeyError)
"""How a fault shows: a broken invariant, a replica that departs, or a service that dies of its own state."""


def seeds_until_found(limit: int = ENOUGH) -> int:
    """How many seeds it takes until a run fails; more than `limit`: none did."""
    for seed in range(limit):
        try:
            World(seed).run()
        except FOUND:
            return seed + 1
    return limit + 1


@pytest.mark.parametrize("name", FAULTS)
def test_planted_faults_are_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each mistake makes some run fail."""
    FAULTS[name](monkeypatch)
    assert seeds_until_found() <= ENOUGH, f"{name} was not found"
