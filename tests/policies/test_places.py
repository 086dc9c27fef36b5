"""The waiting order is the order in which a copy of the core starts the same sessions once it has room for all."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from policies.catalogue import make_policy
from policies.model import Action, Session, State
from policies.params import Params, TierParams
from policies.places import _Account, places
from scheduler import checkpoint
from scheduler import events as ev
from scheduler.core import Core
from tests.policies.random_sites import FAIR, POLICIES, acts_of, copy_of, settle, site_of

RICH = Params(tiers={"free": TierParams(baseline_gpus=1.0)})


def started_on_a_copy(core: Core) -> list[str]:
    """Ids in the order in which a copy starts them once an endless host that serves everything has joined."""
    copy, now = copy_of(core), core.now_ms
    for session in list(copy.view.unplaceable):  # the endless host would serve them as well
        copy.apply(ev.SessionCancelled(now, session.id))
    copy.apply(ev.HostJoined(now, "endless", 10_000))
    return [d.session for d in copy.cycle(now).decisions if d.action is Action.START]


def check_places(core: Core, found: list[Session]) -> None:
    """The order found is that of the copy."""
    assert [session.id for session in found] == started_on_a_copy(core)


def site(params: Params, gpus: int = 1) -> Core:
    """A core with one host."""
    core = Core(make_policy(params))
    core.apply(ev.HostJoined(0, "h", gpus))
    return core


def submit(core: Core, sid: str, user: str, group: str = "default", **asked: Any) -> None:
    core.apply(ev.SessionSubmitted(core.now_ms, sid, user, group, **asked))


def ids(core: Core) -> list[str]:
    found = places(core.view)
    check_places(core, found)
    return [session.id for session in found]


# -- examples --------------------------------------------------------------------------------------------------------


def test_users_with_equal_shares_take_turns() -> None:
    """One session of ann runs, four of hers and two of bob wait: each start sends its user behind the other."""
    core = site(RICH)
    for number in range(5):
        submit(core, f"a{number}", "ann")
    for number in range(2):
        submit(core, f"b{number}", "bob")
    settle(core)
    assert ids(core) == ["b0", "a1", "b1", "a2", "a3", "a4"]


def test_groups_take_turns_before_their_users_do() -> None:
    """One user of a group alone gets as much as three of another together."""
    core = site(RICH)
    for number in range(6):
        submit(core, f"a{number}", f"ann{number % 3}", "big")
    for number in range(4):
        submit(core, f"b{number}", "bob", "small")
    assert ids(core) == ["a0", "b0", "a1", "b1", "a2", "b2", "a3", "b3", "a4", "a5"]


def test_who_runs_out_of_credit_on_the_way_goes_behind_all_that_are_in_credit() -> None:
    """The cap of 3.46 GPU-h holds six sessions of half a GPU-h: the seventh comes after the poorest in credit."""
    core = site(Params(tiers={"free": TierParams(baseline_gpus=0.05)}))
    for number in range(8):
        submit(core, f"a{number}", "ann")
    submit(core, "b", "bob")
    core.apply(ev.UsageSet(0, "bob", 2.9))
    assert ids(core) == ["a0", "a1", "a2", "a3", "a4", "a5", "b", "a6", "a7"]


def test_a_wide_session_stands_behind_a_narrow_one_of_the_same_user() -> None:
    """What a session would commit counts in its place, at every level of the tree."""
    core = site(RICH, gpus=8)
    submit(core, "wide", "ann", gpus=8)
    submit(core, "narrow", "ann")
    assert ids(core) == ["narrow", "wide"]


def test_nominated_waiters_are_first_and_held_and_hopeless_ones_are_left_out() -> None:
    """Nominated by rotation: before a session with a better place that came later."""
    core = site(FAIR)
    submit(core, "r", "rich", "default", tier="free")
    core.apply(ev.UsageSet(0, "rich", 50.0))
    settle(core)
    core.cycle(700_000)
    submit(core, "n", "new")
    core.apply(ev.UsageSet(700_000, "new", 1.0))
    settle(core)
    assert core.sessions["n"].claim is not None
    submit(core, "later", "third")
    submit(core, "hopeless", "third", gpus=9)
    submit(core, "held", "third")
    core.apply(ev.SessionHeld(core.now_ms, "held"))
    assert ids(core) == ["n", "later"]


@pytest.mark.parametrize(
    ("policy", "order"), [("fifo", ["b", "c", "a"]), ("fifo-skip", ["b", "c", "a"]), ("sjf", ["a", "c", "b"])]
)
def test_arrival_orders(policy: str, order: list[str]) -> None:
    """A session that was held and came back keeps its place, once; `sjf` orders by declared run time."""
    core = site(Params(policy=policy))
    submit(core, "runs", "x")
    settle(core)
    for sid, minutes in (("b", None), ("c", 30), ("a", 5)):
        submit(core, sid, "ann", expected_ms=None if minutes is None else minutes * 60_000)
    core.apply(ev.SessionHeld(0, "b"))
    assert ids(core) == [sid for sid in order if sid != "b"]
    core.apply(ev.SessionUnheld(0, "b"))
    assert ids(core) == order


def test_a_queue_of_another_type_is_refused() -> None:
    """Its order is not known; no guess is made."""
    core = site(RICH)
    core.view.queue = object()  # type: ignore[assignment]
    with pytest.raises(TypeError, match="order of a object is not known"):
        places(core.view)


# -- every order -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
def test_the_order_is_that_of_the_admissions(policy: str) -> None:
    """Whatever happened before: the same sessions in the same order, and not a bit of the state is changed."""
    long = 0
    for seed in range(50):
        core = site_of(POLICIES[policy], acts_of(seed))
        before, found = checkpoint.dump(core), places(core.view)
        assert [s.id for s in found] == started_on_a_copy(core), f"seed {seed}"
        assert checkpoint.dump(core) == before
        core.validate()
        long += len(found) >= 4
    assert long >= 15  # or the test shows little


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("commit", lambda self, charge_n: None),
        ("standing", lambda self, extra_n: self.usage + self.committed_n),
        ("standing", lambda self, extra_n: 0.0),
    ],
    ids=["starts commit nothing", "shares and own charge left out", "arrival only"],
)
def test_planted_faults_are_caught(monkeypatch: pytest.MonkeyPatch, name: str, fault: Callable[..., Any]) -> None:
    """A static order, an order without shares, and one by arrival alone each differ from the admissions."""
    core = site(RICH)
    core.apply(ev.GroupSet(0, "small", 0.3))
    for number in range(12):
        user = f"u{number % 4}"
        submit(core, f"s{number}", user, "small" if number % 4 == 3 else "big", gpus=1)
    core.apply(ev.UsageSet(0, "u0", 3.0))
    check_places(core, places(core.view))
    monkeypatch.setattr(_Account, name, fault)
    with pytest.raises(AssertionError):
        check_places(core, places(core.view))


def test_a_long_queue_takes_less_than_half_a_second() -> None:
    """10,000 sessions of 2,000 users in 60 groups, three shapes."""
    core = site(RICH, gpus=8)
    for number in range(10_000):
        user = number * 7 % 2000
        submit(core, f"s{number:05}", f"u{user}", f"g{user % 60}", gpus=(1, 1, 2, 4)[number % 4])
    took_s = []
    for _ in range(3):
        begin_s = time.perf_counter()
        found = places(core.view)
        took_s.append(time.perf_counter() - begin_s)
    assert len(found) == 10_000
    assert min(took_s) < 0.5
    assert core.sessions["s00000"].state is State.QUEUED
