"""The ledger charges exactly at every level of the tree, however long it has been asleep, and forgets nothing."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.catalogue import make_policy
from policies.model import HOUR_MS, NANO, Node
from policies.params import OrderParams, Params, TierParams, UsageParams
from policies.standing import place
from policies.usage import REBASE_HALF_LIVES, DecayClock, decayed
from scheduler import checkpoint
from scheduler import events as ev
from scheduler.core import Core
from scheduler.ledger import Ledger

HALF_LIFE_H = 1.0


def ledger(half_life_h: float = HALF_LIFE_H) -> Ledger:
    return Ledger(DecayClock(round(half_life_h * HOUR_MS)))


def usage(book: Ledger, node: Node) -> float:
    return book.clock.usage(node)


def tree() -> Ledger:
    """org > (lab > (vision > (ann, bob), speech > cem), school > dee); three levels above ann."""
    book = ledger()
    book.set_group("org", 1.0)
    book.set_group("lab", 3.0, "org")
    book.set_group("school", 1.0, "org")
    book.set_group("vision", 2.0, "lab")
    book.set_group("speech", 1.0, "lab")
    for user, group in (("ann", "vision"), ("bob", "vision"), ("cem", "speech"), ("dee", "school")):
        book.set_user(user, group, "free")
    return book


# -- the tree ------------------------------------------------------------------------------------------------------


def test_a_user_three_groups_deep_is_charged_at_every_level() -> None:
    """The path names every node below the root, and a charge arrives at each of them and nowhere else."""
    book = tree()
    ann = book.users["ann"]
    assert [node.name for node in ann.path] == ["org", "lab", "vision", "ann"]
    book.change(ann, NANO, 5)
    book.advance(HOUR_MS)
    one_hour = decayed(0.0, 1.0, 1.0, HALF_LIFE_H)
    for name in ("org", "lab", "vision"):
        assert usage(book, book.groups[name]) == pytest.approx(one_hour, rel=1e-12)
        assert (book.groups[name].rate_n, book.groups[name].committed_n) == (NANO, 5)
    assert usage(book, ann) == pytest.approx(one_hour, rel=1e-12)
    for node in (book.groups["speech"], book.groups["school"], book.users["bob"], book.users["dee"]):
        assert (usage(book, node), node.rate_n, node.committed_n) == (0.0, 0, 0)


def test_shares_are_counted_among_siblings_and_follow_a_change() -> None:
    """`child_shares` and `children` of each parent are the sum and the number of its children, also after changes."""
    book = tree()
    book.set_group("lab", 5.0)
    book.set_user("ann", "vision", "free", 4.0)
    book.set_user("ann", "vision", "paid", 4.0)
    nodes = list(book.nodes())
    for parent in (book.root, *book.groups.values()):
        children = [node for node in nodes if node.parent is parent]
        assert parent.children == len(children)
        assert parent.child_shares == sum(node.shares for node in children)
    assert book.users["ann"].tier == "paid"


def test_a_group_keeps_its_parent() -> None:
    """Without a parent named it stays where it is; another parent is refused with both names."""
    book = tree()
    assert book.set_group("vision", 7.0).parent is book.groups["lab"]
    with pytest.raises(ValueError, match=r"vision.*lab.*org"):
        book.set_group("vision", 7.0, "org")
    with pytest.raises(ValueError, match=r"ann.*vision.*speech"):
        book.set_user("ann", "speech", "free")


@pytest.mark.parametrize("shares", [0.0, -1.0, math.nan, math.inf])
def test_shares_that_are_no_number_above_zero_are_refused(shares: float) -> None:
    """Zero, negative, infinite and undefined shares are refused for what exists already, which keeps its own."""
    book = tree()
    with pytest.raises(ValueError, match="lab"):
        book.set_group("lab", shares)
    with pytest.raises(ValueError, match="ann"):
        book.set_user("ann", "vision", "free", shares)
    assert (book.groups["lab"].shares, book.users["ann"].shares) == (3.0, 1.0)


@pytest.mark.parametrize("shares", [0.0, math.nan])
def test_a_refused_newcomer_leaves_no_trace(shares: float) -> None:
    """A group or user that is refused for its shares does not exist afterwards, nor do its siblings notice."""
    book = tree()
    org = book.groups["org"]
    before = (org.children, org.child_shares)
    with pytest.raises(ValueError, match="arts"):
        book.set_group("arts", shares, "org")
    with pytest.raises(ValueError, match="eve"):
        book.set_user("eve", "music", "free", shares)
    assert "arts" not in book.groups
    assert "music" not in book.groups
    assert "eve" not in book.users
    assert (org.children, org.child_shares) == before


# -- corrections ---------------------------------------------------------------------------------------------------


def test_a_corrected_usage_moves_the_groups_above_by_the_difference() -> None:
    """bob's correction changes vision, lab and org by as much, and neither ann nor anybody's rate."""
    book = tree()
    ann, bob = book.users["ann"], book.users["bob"]
    book.change(ann, NANO, 0)
    book.change(bob, NANO // 2, 0)
    book.advance(3 * HOUR_MS)
    before = {node.name: usage(book, node) for node in book.nodes()}
    book.set_usage(bob, 10.0)
    for node in book.nodes():
        moved = 10.0 - before["bob"] if node in bob.path else 0.0
        assert usage(book, node) == pytest.approx(before[node.name] + moved, rel=1e-12)
    assert (ann.rate_n, bob.rate_n) == (NANO, NANO // 2)
    book.advance(4 * HOUR_MS)
    assert usage(book, bob) == pytest.approx(decayed(10.0, 0.5, 1.0, HALF_LIFE_H), rel=1e-12)
    vision = decayed(before["ann"] + 10.0, 1.5, 1.0, HALF_LIFE_H)
    assert usage(book, book.groups["vision"]) == pytest.approx(vision, rel=1e-12)


@pytest.mark.parametrize("wrong", [-0.1, math.nan, math.inf])
def test_a_usage_that_is_none_is_refused(wrong: float) -> None:
    """Negative, undefined and infinite usage are refused and nothing moves."""
    book = tree()
    with pytest.raises(ValueError, match="ann"):
        book.set_usage(book.users["ann"], wrong)
    assert all(usage(book, node) == 0.0 for node in book.nodes())


# -- a long sleep: the landmark moves --------------------------------------------------------------------------------


def aged(hours: list[float]) -> tuple[Ledger, float]:
    """ann starts with 8 GPU-h and runs at rate 1 for the first hour; then only time passes, in the given steps."""
    book = tree()
    ann = book.users["ann"]
    book.set_usage(ann, 8.0)
    book.set_usage(book.users["bob"], 2.0)
    book.change(ann, NANO, 0)
    book.advance(HOUR_MS)
    book.change(ann, -NANO, 0)
    now = 1.0
    for step in hours:
        now += step
        book.advance(round(now * HOUR_MS))
    return book, now


@pytest.mark.parametrize(
    "hours",
    [[10.0], [63.5], [64.0], [65.0], [40.0, 40.0], [100.0], [0.5] * 300, [60.0] * 10],
    ids=["10", "63.5", "64", "65", "40x2", "100", "0.5x300", "60x10"],
)
def test_usage_is_the_closed_form_across_moves_of_the_landmark(hours: list[float]) -> None:
    """However the time is cut, usage after more than 64 half-lives is what the formula says (relative error 1e-9)."""
    book, now = aged(hours)
    first = decayed(8.0, 1.0, 1.0, HALF_LIFE_H)
    assert usage(book, book.users["ann"]) == pytest.approx(decayed(first, 0.0, now - 1, HALF_LIFE_H), rel=1e-9)
    assert usage(book, book.users["bob"]) == pytest.approx(2.0 * 2.0**-now, rel=1e-9)
    org = usage(book, book.groups["org"])
    assert org == pytest.approx(usage(book, book.users["ann"]) + usage(book, book.users["bob"]), rel=1e-9)


@pytest.mark.parametrize("hours", [129, 200, 1000, 1090, 5000, 100_000])
def test_one_long_silence_is_as_good_as_many_short_ones(hours: int) -> None:
    """A single step over many times 64 half-lives ends where steps of one half-life end, and does not overflow."""
    book = tree()
    book.change(book.users["ann"], NANO, 0)
    book.set_usage(book.users["bob"], 2.0)
    book.advance(hours * HOUR_MS)
    assert usage(book, book.users["ann"]) == pytest.approx(1 / math.log(2), rel=1e-9)
    assert usage(book, book.users["bob"]) == pytest.approx(2.0 * 2.0**-hours, rel=1e-9, abs=1e-300)
    age = (book.clock.now_ms - book.clock.landmark_ms) / book.clock.half_life_ms
    assert age <= REBASE_HALF_LIVES


@pytest.mark.parametrize("hours", [65, 129, 400])
def test_a_checkpoint_after_a_long_silence_keeps_every_usage(hours: int) -> None:
    """Restored from its checkpoint a core with half-life 1 h knows the same usage after any silence."""
    core = Core(make_policy(Params(usage=UsageParams(half_life_h=HALF_LIFE_H))))
    core.apply(ev.UserSet(0, "ann"))
    core.apply(ev.UsageSet(0, "ann", 100.0))
    core.cycle(hours * HOUR_MS)
    again = checkpoint.restore(json.loads(json.dumps(checkpoint.dump(core))), core.policy)
    wanted = usage(core.ledger, core.ledger.users["ann"])
    assert usage(again.ledger, again.ledger.users["ann"]) == wanted
    assert wanted == pytest.approx(100.0 * 2.0**-hours, rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    used=st.lists(st.integers(1, 10**6), min_size=2, max_size=8, unique=True),
    hours=st.lists(st.floats(0.01, 60.0), min_size=1, max_size=6),
)
def test_the_order_of_users_with_nothing_running_never_changes(used: list[int], hours: list[float]) -> None:
    """I1: equal shares, nothing running: whoever stood better still does, across any number of rebases."""
    book = ledger()
    book.set_group("g", 1.0)
    for number, thousandths in enumerate(used):
        book.set_usage(book.set_user(f"u{number}", "g", "free"), thousandths / 1000)
    wanted = sorted(book.users, key=lambda name: used[int(name[1:])])
    now = 0
    for step in hours:
        now += round(step * HOUR_MS)
        book.advance(now)
        assert sorted(book.users, key=lambda name: place(book.users[name], book.clock)) == wanted
        for left, right in pairwise(wanted):
            assert book.users[left].scaled < book.users[right].scaled


def test_a_core_with_a_waiting_queue_survives_the_move_of_the_landmark() -> None:
    """Waiting users keep their order when every account is rescaled under them; indexes and state still agree."""
    params = Params(
        usage=UsageParams(half_life_h=HALF_LIFE_H),
        tiers={"free": TierParams(baseline_gpus=0.5)},
        order=OrderParams(max_wait_ms=10**12),
    )
    core = Core(make_policy(params))
    core.apply(ev.HostJoined(0, "h", 1))
    core.apply(ev.SessionSubmitted(0, "run", "runner"))
    core.cycle(0)
    for number, used in enumerate((5.0, 1.0, 3.0, 2.0)):
        core.apply(ev.UserSet(0, f"u{number}"))
        core.apply(ev.UsageSet(0, f"u{number}", used))
        core.apply(ev.SessionSubmitted(0, f"s{number}", f"u{number}"))
    core.cycle(0)
    started: list[str] = []
    for hour in range(13, 13 * 16, 13):
        core.cycle(hour * HOUR_MS)
        core.validate()
    assert core.view.clock.landmark_ms > 0
    now, running = core.now_ms, "run"
    for _ in range(4):
        core.apply(ev.SessionEnded(now, running))
        (decision,) = core.cycle(now).decisions
        running = decision.session
        started.append(running)
        core.validate()
    assert started == ["s1", "s3", "s2", "s0"]


# -- what is over is over ------------------------------------------------------------------------------------------

CHANGES = st.lists(
    st.tuples(st.integers(0, 3), st.integers(1, 4), st.sampled_from([0.1, 1 / 3, 0.7, 1.0]), st.integers(0, 5_000_000)),
    min_size=1,
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(CHANGES)
def test_rates_and_committed_charges_sum_to_zero_after_everything_ended(
    changes: list[tuple[int, int, float, int]],
) -> None:
    """Whatever loads and models there were, no billionth is left over at any node once nobody runs anything."""
    params = Params(gpu_weight={"T4": 1.0, "A100": 3.3}, tiers={"free": TierParams(baseline_gpus=0.5)})
    core = Core(make_policy(params))
    for name, parent in (("org", None), ("lab", "org"), ("vision", "lab")):
        core.apply(ev.GroupSet(0, name, 1.0, parent))
    core.apply(ev.HostJoined(0, "a", 32, "A100"))
    core.apply(ev.HostJoined(0, "t", 32, "T4"))
    now = 0
    for number, (who, gpus, load, span) in enumerate(changes):
        core.apply(ev.SessionSubmitted(now, f"s{number}", f"u{who}", "vision" if who < 3 else "other", gpus=gpus))
        core.cycle(now)
        now += span
        for sid in list(core.view.holders)[:3]:
            core.apply(ev.LoadReported(now, sid, load if sid != f"s{number}" else None))
        core.validate()
    total = sum(node.rate_n for node in core.ledger.users.values())
    roots = [node for node in core.ledger.groups.values() if node.parent is core.ledger.root]
    assert total == sum(node.rate_n for node in roots) > 0
    for sid in list(core.view.holders):
        core.apply(ev.SessionEnded(now, sid))
    assert not core.sessions
    for node in core.ledger.nodes():
        assert (node.rate_n, node.committed_n, node.steady) == (0, 0, 0.0)
    core.validate()
