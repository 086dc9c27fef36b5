"""Another policy on a service that runs: versions on record, all or nothing, and who decided by which."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import pytest

from policies.catalogue import make_policy
from policies.params import HeadroomParams, Params, TelemetryParams, TierParams
from scheduler import activation, checkpoint, journal
from scheduler import events as ev
from scheduler.adapters.memory import MemoryStore
from scheduler.checkpoint import dump
from scheduler.core import Core
from scheduler.ports import Batch, StoreDown, StoreFull
from scheduler.replica import Replica
from scheduler.requests import Activate, Answer, Close, Rollback
from tests.scheduler.test_service import QUICK, HandClock, Host, House

HASTY = dataclasses.replace(QUICK, name="hasty", ladder=dataclasses.replace(QUICK.ladder, warn_ms=500))
CALM = dataclasses.replace(QUICK, name="calm", ladder=dataclasses.replace(QUICK.ladder, warn_ms=9_000))


class Killed(BaseException):
    """The scheduler is killed at this point."""


class Failing(MemoryStore):
    """The next commit that has a version in it fails: before anything is written, or after all of it was."""

    fail = ""

    def commit(self, batch: Batch) -> None:
        fail = self.fail if batch.policies else ""
        if fail:
            self.fail = ""
        if fail == "full":
            raise StoreFull("the disk is full")
        if fail == "down":
            raise StoreDown("the disk is away")
        if fail == "killed before":
            raise Killed
        super().commit(batch)
        if fail == "down after":
            raise StoreDown("the disk went away while it wrote")
        if fail == "killed after":
            raise Killed


@pytest.fixture
def house() -> Iterator[House]:
    """Two GPUs; afterwards the journal is replayed, and a replica that followed from the start holds the same state."""
    clock = HandClock()
    made = House(store=Failing(clock.now_ms))
    replica = Replica(made.store)
    replica.catch_up()
    yield made
    assert all(isinstance(line, int) for line in journal.replay(list(made.store.journal()), "journal"))
    core = replica.catch_up()
    assert core is not None
    assert dump(core) == dump(made.service._core)


def activate(house: House, params: Params, **more: Any) -> Answer:
    return house.ask(Activate(toml=params.to_toml(), **more))


def versions(house: House) -> list[tuple[int, str, str]]:
    return [(row["version"], row["name"], row["source"]) for row in house.store.policies()]


def in_force(house: House) -> Params:
    return house.service._core.params


# ---- versions


def test_the_first_start_makes_version_1(house: House) -> None:
    assert versions(house) == [(1, "fair-share", "start")]
    [row] = house.store.policies()
    assert row["toml"] == QUICK.to_toml()


def test_a_database_from_before_versions_gets_its_first_at_the_next_start(house: House) -> None:
    """Also where that start brings another policy: then the old one is version 1."""
    house.store.data.policies.clear()
    house.restart()
    assert versions(house) == [(1, "fair-share", "start")]
    house.store.data.policies.clear()
    house.params = HASTY
    house.restart()
    assert versions(house) == [(1, "fair-share", "start"), (2, "hasty", "start")]


def test_an_activated_policy_decides_from_the_next_pass_on(house: House) -> None:
    """A session runs on; who was warned before was warned by version 1, who is warned after by version 2."""
    sids = [house.submit("ann"), house.submit("ann")]
    house.seconds(20)
    answer = activate(house, HASTY, note="too slow")
    assert not answer.error, answer.message
    assert answer.body["changed"]
    assert in_force(house) == HASTY
    house.submit("bob")
    house.seconds(12)
    assert versions(house) == [(1, "fair-share", "start"), (2, "hasty", "activate")]
    row = house.store.policies()[1]
    assert (row["who"], row["note"], row["at_ms"] > 0) == ("tests", "too slow", True)
    by = {(row["action"], row["policy_version"]) for row in house.store.decisions()}
    assert ("start", 1) in by
    assert {("warn", 2), ("grace", 2), ("evict", 2), ("start", 2)} <= by
    assert ("warn", 1) not in by
    steps = {row["action"]: row["at_ms"] for row in house.store.decisions() if row["session"] in sids}
    assert 500 <= steps["grace"] - steps["warn"] < 2_000  # QUICK's warning takes 2 s
    assert house.store.decisions_by_version()[2] == sum(row["policy_version"] == 2 for row in house.store.decisions())


def test_what_happens_in_the_same_pass_is_decided_by_the_old_policy(house: House) -> None:
    """A request and an activation arrive at once: the start has version 1, and the journal's head follows it."""
    house.post(Activate(toml=HASTY.to_toml()))
    sid = house.submit("ann")
    assert {row["policy_version"] for row in house.store.decisions(session=sid)} == {1}
    last = [json.loads(line) for line in house.store.journal()]
    assert "journal" in last[-1]
    assert "cycle" in last[-2]


def test_guarantees_above_what_there_is_are_refused(house: House) -> None:
    """Two GPUs cannot guarantee three; the policy in force stays. Credit above two GPUs is a warning."""
    house.submit("ann")
    house.submit("bob")
    greedy = dataclasses.replace(HASTY, tiers={**HASTY.tiers, "pro": TierParams(guaranteed_gpus=3)})
    answer = activate(house, greedy)
    assert answer.error == "refused"
    assert "3 GPUs are guaranteed in all, and there are 2" in answer.message
    assert in_force(house) == QUICK
    kind = dataclasses.replace(HASTY, tiers={"free": TierParams(baseline_gpus=5)})
    answer = activate(house, kind)
    assert (answer.error, answer.body["changed"]) == ("", True)
    (warning,) = answer.body["warnings"]
    assert "2 users may use 10 GPUs and stay in credit, and there are 2" in warning


def test_what_is_in_force_already_changes_nothing(house: House) -> None:
    lines = house.store.last_seq()
    answer = activate(house, QUICK)
    assert (answer.error, answer.body["changed"], answer.body["policy"]["version"]) == ("", False, 1)
    assert (len(versions(house)), house.store.last_seq()) == (1, lines)


def test_a_policy_with_mistakes_is_refused_with_all_of_them(house: House) -> None:
    """And the one in force goes on."""
    text = "[usage]\nhalf_life_h = 0\nidle_charge = 2\n[ladder]\nwarn = 3\n"
    answer = house.ask(Activate(toml=text))
    assert answer.error == "bad-input"
    for mistake in ("policy:2: usage.half_life_h", "policy:3: usage.idle_charge", "policy:5: ladder.warn"):
        assert mistake in answer.message
    assert in_force(house) == QUICK
    assert len(versions(house)) == 1
    house.submit("ann")


def test_a_policy_for_faster_hosts_is_refused_while_the_slow_ones_run(house: House) -> None:
    """Workers report at the pace of their start: silence must not be believed before their second report."""
    faster = TelemetryParams(report_ms=200, stale_ms=1_000, lost_ms=2_000)
    answer = activate(house, dataclasses.replace(QUICK, telemetry=faster))
    assert (answer.error, len(versions(house))) == ("refused", 1)
    assert "the workers that run report each 1 s" in answer.message


def test_of_two_at_once_the_second_is_refused(house: House) -> None:
    first = house.post(Activate(toml=HASTY.to_toml()))
    second = house.post(Activate(toml=CALM.to_toml()))
    house.turn()
    assert (house.answer(first).error, house.answer(second).error) == ("", "refused")
    assert in_force(house) == HASTY


def test_a_stopping_instance_keeps_its_policy(house: House) -> None:
    house.ask(Close())
    assert activate(house, HASTY).error == "refused"
    assert in_force(house) == QUICK


def test_a_state_that_cannot_be_carried_over_refuses_and_serves_on(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A defect in the way to another policy costs that request alone: the rest of the pass is committed."""

    def broken(*_: object) -> None:
        raise AssertionError("an index disagrees")

    monkeypatch.setattr(activation.checkpoint, "under", broken)
    key = house.post(Activate(toml=HASTY.to_toml()))
    sid = house.submit("ann")
    assert house.answer(key).error == "refused"
    assert "an index disagrees" in house.answer(key).message
    assert house.row(sid)["state"] == "starting"
    assert in_force(house) == QUICK


# ---- rollback


def test_a_rollback_is_a_version_of_its_own(house: House) -> None:
    activate(house, HASTY)
    answer = house.ask(Rollback(note="no"))
    assert (answer.error, answer.body["policy"]["rolled_back_to"]) == ("", 1)
    assert in_force(house) == QUICK
    house.ask(Rollback())
    assert in_force(house) == HASTY
    assert [row["rolled_back_to"] for row in house.store.policies()] == [None, None, 1, 2]
    house.ask(Rollback(version=3))
    assert in_force(house) == QUICK


def test_a_rollback_to_nothing_is_not_found(house: House) -> None:
    assert house.ask(Rollback()).error == "not-found"
    assert house.ask(Rollback(version=7)).error == "not-found"
    assert len(versions(house)) == 1


# ---- all or nothing


@pytest.mark.parametrize("fail", ["full", "down", "killed before", "down after", "killed after"])
@pytest.mark.parametrize("to", [HASTY, Params(policy="fifo")])
def test_the_old_or_the_new_one_is_wholly_in_force(house: House, fail: str, to: Params) -> None:
    """Whatever happens to the commit: version, head, checkpoint and the core agree afterwards, and it serves on."""
    for _ in range(2):
        house.submit("ann")
    house.seconds(20)
    house.submit("bob")
    while not house.service._core.view.claims:
        house.seconds(0.2)
    house.store.fail = fail
    key = house.post(Activate(toml=to.to_toml()))
    try:
        house.turn()
    except Killed:
        house.restart()
    happened = fail.endswith("after")
    assert in_force(house).to_toml() == (to if happened else QUICK).to_toml()
    assert len(versions(house)) == (2 if happened else 1)
    assert sum('"journal"' in line[:12] for line in house.store.journal()) == (2 if happened else 1)
    answer = house.store.answer(key)
    assert (answer is not None and answer.body["changed"]) is happened
    house.seconds(3)
    assert {row["policy_version"] for row in house.store.decisions()} <= {1, len(versions(house))}
    house.service._core.validate()


@pytest.mark.parametrize("policy", ["fifo", "fair-share"])
def test_going_over_leaves_the_old_core_as_it_was(policy: str) -> None:
    """Promised GPUs are given up in the new state only: a pass that fails afterwards must not have lost them."""
    house = House(Host("h1", 2))
    for _ in range(2):
        house.submit("ann")
    house.seconds(20)
    house.submit("bob")
    while not house.service._core.view.claims:
        house.seconds(0.2)
    core = house.service._core
    before = dump(core)
    activation.successor(core, Params(policy=policy, name="other"))
    assert dump(core) == before


# ---- starts


def test_a_start_does_not_undo_what_was_activated_since(house: House) -> None:
    """A scheduler that died is started again with its old command line: the activated policy stays."""
    activate(house, HASTY)
    house.restart()  # with QUICK, as the first time
    assert in_force(house) == HASTY
    house.params = None
    house.restart()
    assert in_force(house) == HASTY
    house.params = CALM
    house.restart()  # somebody wrote another policy into the command line
    assert in_force(house) == CALM
    house.params = QUICK
    house.restart()
    assert in_force(house) == QUICK
    assert [source for _, _, source in versions(house)] == ["start", "activate", "start", "start"]


def test_a_start_does_not_undo_a_rollback(house: House) -> None:
    """The activated policy had been written into the command line before it was rolled back."""
    activate(house, HASTY)
    house.params = HASTY
    house.restart()
    house.ask(Rollback())
    house.restart()
    assert in_force(house) == QUICK


def test_a_store_that_comes_back_does_not_bring_the_first_policy_back(house: House) -> None:
    """Loading again after a failure is no start: the policy of the command line is not looked at."""
    activate(house, HASTY)
    house.service._reload()
    assert in_force(house) == HASTY
    assert len(versions(house)) == 2


def test_what_means_the_same_is_remembered() -> None:
    """Contention, baselines, stock and notices go on under another name; each anew where it means another thing."""
    params = Params(headroom=HeadroomParams(confidence=0.9))
    core = Core(make_policy(params), 0)
    core.apply(ev.HostJoined(0, "h", 4, None, None))
    core.apply(ev.UserSet(0, "ann", "g", "free"))
    core.apply(ev.SessionSubmitted(0, "s", "ann", "g", "free", 1, 1000))
    core.cycle(0)
    memory = core.view.memory
    memory.contention_since_ms, core.ledger.users["ann"].noticed = 5, True
    assert memory.baselines
    assert memory.stock_m is not None

    def kept(**changes: Any) -> tuple[bool, ...]:
        other = checkpoint.under(core, make_policy(dataclasses.replace(params, name="other", **changes)))
        after = other.view.memory
        return (
            after.contention_since_ms == 5,
            (after.baselines, after.baseline_due_ms) == (memory.baselines, memory.baseline_due_ms),
            (after.stock_m, after.stock_due_ms) == (memory.stock_m, memory.stock_due_ms),
            other.ledger.users["ann"].noticed,
        )

    assert kept() == (True, True, True, True)
    assert kept(headroom=HeadroomParams(confidence=0.8)) == (True, True, False, True)
    assert kept(tiers={"free": TierParams(baseline_gpus=1.0)}) == (True, False, True, True)
    assert kept(policy="fifo")[:3] == (False, False, False)


def test_a_copy_of_the_state_shares_nothing_with_it() -> None:
    """A copy that moves its automatic baselines leaves the original's as they are."""
    core = Core(make_policy(Params()), 0)
    core.apply(ev.HostJoined(0, "h", 4, None, None))
    core.apply(ev.UserSet(0, "ann", "g", "free"))
    core.cycle(0)
    before = json.dumps(dump(core))
    copy = checkpoint.restore(dump(core), core.policy)
    copy.view.memory.baselines["free"] = 7.0
    assert json.dumps(dump(core)) == before


def test_a_nominated_waiter_stays_charged_for_what_it_asks() -> None:
    """In the new state as in the old one, by the new minimum run."""
    house = House(Host("h1", 2))
    for _ in range(2):
        house.submit("ann")
    house.seconds(20)
    house.submit("bob")
    while not house.service._core.view.claims:
        house.seconds(0.2)
    core = house.service._core
    [waiter] = [claim.waiter for claim in core.view.claims.values() if claim.waiter is not None]
    longer = dataclasses.replace(QUICK, ladder=dataclasses.replace(QUICK.ladder, min_run_ms=8_000))
    for params, factor in ((HASTY, 1), (longer, 2)):
        other = activation.successor(core, params)
        user = other.ledger.users[waiter.user.name]
        assert other.sessions[waiter.id].committed_n == factor * waiter.committed_n > 0
        assert user.committed_n == factor * waiter.user.committed_n
