"""Hard limits: each one alone, which of several speaks, and groups' counts against sums over everybody."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import limits as limits_module
from policies.explain import CHANGES, block_words, refusal_words
from policies.lanes import Cell
from policies.limits import CHANGE_OF, CODE_OF, FOR_EVER_MS, Block, Limits
from policies.model import HOUR_MS, WHOLE_M, Node, Session, Shape, User
from policies.params import Params, TierParams
from policies.quota import WEEK_MS, Holdings
from policies.usage import NEVER_MS

ROOT = Node("", None)
ONE, TWO, HALF, TENTH = Shape(1), Shape(2), Shape(1, 500), Shape(1, 100)


def user_of(name: str = "ann", group: Node | None = None, tier: str = "free") -> User:
    return User(name, Node("g", ROOT) if group is None else group, tier)


def session_of(user: User, shape: Shape = ONE, granted_m: int | None = None) -> Session:
    session = Session(f"{user.name}-{len(user.held) + len(user.nominated)}", user, shape, 0, 0, None)
    if granted_m is not None:
        session.granted_m = granted_m
    return session


def hold(user: User, *shapes: Shape) -> None:
    for shape in shapes:
        session = session_of(user, shape)
        user.held[session.id] = session


def nominate(user: User, *shapes: Shape) -> None:
    for shape in shapes:
        session = session_of(user, shape)
        user.nominated[session.id] = session


def limits_of(*, others: TierParams | None = None, **free: Any) -> Limits:
    tiers = {"free": TierParams(**free)}
    return Limits(Params(tiers=tiers if others is None else tiers | {"lab": others}))


# -- one limit at a time ---------------------------------------------------------------------------------------------


def test_without_limits_nobody_is_blocked() -> None:
    """However much is held, and nothing is kept about it."""
    limits, user = limits_of(), user_of()
    hold(user, *[Shape(8)] * 20)
    assert limits.holds(user, 0) == []
    assert (limits.against(user, Shape(100), 0), limits.refusal(user, Shape(100), 1000)) == (None, None)
    assert limits.next_ms(user, 0) == NEVER_MS
    assert user.holdings is None


def test_sessions_that_hold_gpus_are_counted_with_those_nominated() -> None:
    """Two of two block a third, whatever their shapes; one of two does not."""
    limits, user = limits_of(sessions_per_user=2), user_of()
    hold(user, HALF)
    assert limits.against(user, TWO, 0) is None
    nominate(user, TWO)
    assert limits.against(user, TENTH, 0) == Block("limit.sessions-per-user", 2, 2, "sessions")
    assert limits.next_ms(user, 0) == NEVER_MS


def test_gpus_of_a_user_include_what_is_asked() -> None:
    """Up to the limit and not beyond, by what sessions asked for: a throttled one keeps its room to grow back."""
    limits, user = limits_of(gpus_per_user=2.5), user_of()
    throttled = session_of(user, HALF, granted_m=125)
    user.held[throttled.id] = throttled
    nominate(user, ONE)
    assert limits.against(user, ONE, 0) is None
    assert limits.against(user, TWO, 0) == Block("limit.gpus-per-user", 1.5, 2.5, "gpu")


@pytest.mark.parametrize("limit_m", range(2, 1200, 7))
def test_parts_of_gpus_add_up_exactly(limit_m: int) -> None:
    """What a user and a group hold up to their limit is within it: .1 + .2 is .3 here."""
    limit = limit_m / WHOLE_M
    first, rest = Shape(1, limit_m // 3 or 1), Shape(1, limit_m - (limit_m // 3 or 1))
    for limits in (limits_of(gpus_per_user=limit), limits_of(gpus_per_group=limit)):
        user = user_of()
        hold(user, first)
        limits.holds(user, 0)
        assert limits.against(user, rest, 0) is None
        assert limits.against(user, Shape(1, rest.fraction_m + 1), 0) is not None
        assert limits.refusal(user, Shape(1, limit_m), 0) is None
        assert limits.refusal(user, Shape(1, limit_m + 1), 0) is not None


def test_a_group_is_counted_over_its_users_of_one_tier() -> None:
    """Other groups, and other tiers of the same group, count apart."""
    limits = limits_of(gpus_per_group=3, others=TierParams(gpus_per_group=1))
    group, elsewhere = Node("g", ROOT), Node("e", ROOT)
    ann, bob, cem = (user_of(name, group) for name in ("ann", "bob", "cem"))
    lab, far = user_of("lab", group, "lab"), user_of("far", elsewhere)
    hold(ann, ONE)
    nominate(bob, ONE)
    hold(lab, ONE)
    hold(far, ONE, ONE, ONE)
    for user in (ann, bob, lab, far):
        limits.holds(user, 0)
    assert limits.against(cem, ONE, 0) is None
    assert limits.against(cem, TWO, 0) == Block("limit.gpus-per-group", 2.0, 3, "gpu")
    assert limits.against(lab, TENTH, 0) == Block("limit.gpus-per-group", 1.0, 1, "gpu")
    assert limits.against(far, TENTH, 0) == Block("limit.gpus-per-group", 3.0, 3, "gpu")


def test_a_tier_that_is_not_listed_has_the_limits_of_free() -> None:
    """Blocked, refused, and counted like it."""
    limits, user = limits_of(sessions_per_user=1, queued_per_user=1, others=TierParams()), user_of(tier="unheard-of")
    hold(user, ONE)
    assert limits.against(user, ONE, 0) is not None
    assert limits.refusal(user, ONE, 1) is not None
    user.tier = "lab"
    assert (limits.against(user, ONE, 0), limits.refusal(user, ONE, 1)) == (None, None)


def test_a_restriction_ends_by_itself_or_never() -> None:
    """At its instant it is over; without one nothing is foretold. It needs no tier with limits."""
    limits, user = limits_of(), user_of()
    user.restricted_until_ms = 500
    assert limits.against(user, ONE, 499) == Block("limit.restricted", None, None, "", 500)
    assert limits.next_ms(user, 499) == 500
    assert (limits.against(user, ONE, 500), limits.next_ms(user, 500)) == (None, NEVER_MS)
    user.restricted_until_ms = FOR_EVER_MS
    assert limits.against(user, ONE, 499) == Block("limit.restricted", None, None, "")
    assert limits.next_ms(user, 499) == NEVER_MS


def test_a_rolling_quota_blocks_from_the_limit_on() -> None:
    """1 GPU-h in 2 h: used up after an hour, and back a millisecond after the first use begins to leave the window."""
    limits, user = limits_of(quota_gpu_h=1.0, quota_window="2h"), user_of()
    assert limits.against(user, ONE, 0) is None  # nothing held yet
    hold(user, ONE)
    limits.holds(user, 0)
    assert limits.next_ms(user, 0) == HOUR_MS
    assert limits.against(user, ONE, HOUR_MS - 1) is None
    assert limits.against(user, ONE, HOUR_MS) == Block("limit.quota", 1.0, 1.0, "gpu_h")  # it runs on: no end in sight
    user.held.clear()
    limits.holds(user, HOUR_MS)
    back = 2 * HOUR_MS + 1
    assert limits.against(user, ONE, HOUR_MS) == Block("limit.quota", 1.0, 1.0, "gpu_h", back)
    assert limits.next_ms(user, HOUR_MS) == back
    assert limits.against(user, ONE, back - 1) is not None
    assert limits.against(user, ONE, back) is None


def test_a_daily_quota_is_back_at_midnight() -> None:
    """Whether a session runs on or not."""
    limits, user = limits_of(quota_gpu_h=1.0, quota_window="daily"), user_of()
    midnight = 24 * HOUR_MS
    hold(user, ONE)
    limits.holds(user, 5 * HOUR_MS)
    assert limits.next_ms(user, 5 * HOUR_MS) == 6 * HOUR_MS
    assert limits.against(user, ONE, 7 * HOUR_MS) == Block("limit.quota", 2.0, 1.0, "gpu_h", midnight)
    assert limits.against(user, ONE, midnight - 1) is not None
    assert limits.against(user, ONE, midnight) is None
    assert limits.next_ms(user, midnight) == midnight + HOUR_MS


def test_each_tier_has_its_own_window() -> None:
    """One user held the same for a day: the window of its tier decides what counts."""
    limits = limits_of(quota_gpu_h=30.0, quota_window="7d", others=TierParams(quota_gpu_h=4.0, quota_window="3h"))
    user = user_of()
    hold(user, TWO)
    limits.holds(user, 0)
    day = 24 * HOUR_MS
    assert limits.against(user, ONE, day) == Block("limit.quota", 48.0, 30.0, "gpu_h")
    user.tier = "lab"
    assert limits.against(user, ONE, day) == Block("limit.quota", 6.0, 4.0, "gpu_h")


def test_a_throttled_session_uses_its_quota_more_slowly() -> None:
    """Hours are counted by what is granted."""
    limits, user = limits_of(quota_gpu_h=1.0, quota_window="7d"), user_of()
    session = session_of(user, HALF)
    user.held[session.id] = session
    limits.holds(user, 0)
    session.granted_m = 250
    limits.holds(user, HOUR_MS)
    assert user.holdings is not None
    assert user.holdings.knots == [(0, 500), (HOUR_MS, 250)]
    assert limits.next_ms(user, HOUR_MS) == 3 * HOUR_MS


def test_holdings_are_kept_for_the_longest_window() -> None:
    """Also of users whose own tier has no quota: their tier may change."""
    limits, user = limits_of(others=TierParams(quota_gpu_h=1.0, quota_window="3h")), user_of()
    hold(user, ONE)
    limits.holds(user, 0)
    user.held.clear()
    limits.holds(user, HOUR_MS)
    assert limits.against(user, ONE, HOUR_MS) is None
    user.tier = "lab"
    assert limits.against(user, ONE, HOUR_MS) is not None
    hold(user, ONE)
    limits.holds(user, 3 * WEEK_MS)
    assert user.holdings is not None
    assert user.holdings.knots == [(HOUR_MS, 0), (3 * WEEK_MS, 1000)]


# -- which one speaks ------------------------------------------------------------------------------------------------

EVERYTHING: dict[str, Any] = {
    "sessions_per_user": 1,
    "gpus_per_user": 1.0,
    "gpus_per_group": 1.0,
    "quota_gpu_h": 1.0,
    "quota_window": "7d",
}


def test_the_first_of_several_limits_speaks() -> None:
    """Restricted, quota, sessions, GPUs of the user, GPUs of the group: take one away and the next one speaks."""
    user = user_of()
    hold(user, ONE)
    user.holdings = Holdings([(0, 1000)])
    user.restricted_until_ms = FOR_EVER_MS
    left, rules = dict(EVERYTHING), []
    now = 2 * HOUR_MS
    for key in (None, "quota_gpu_h", "sessions_per_user", "gpus_per_user", "gpus_per_group"):
        limits = limits_of(**left)
        limits.holds(user, now)
        block = limits.against(user, ONE, now)
        assert block is not None
        rules.append(block.rule)
        if key is None:
            user.restricted_until_ms = 0
            block = limits.against(user, ONE, now)
            assert block is not None
            rules.append(block.rule)
        else:
            del left[key]
    assert limits_of(**left).against(user, ONE, now) is None
    assert list(dict.fromkeys(rules)) == [
        "limit.restricted",
        "limit.quota",
        "limit.sessions-per-user",
        "limit.gpus-per-user",
        "limit.gpus-per-group",
    ]


def test_the_earlier_of_two_ends_is_foretold() -> None:
    """A restriction that ends before the quota is used up, and one that ends after."""
    limits, user = limits_of(quota_gpu_h=1.0, quota_window="2h"), user_of()
    hold(user, ONE)
    limits.holds(user, 0)
    for until_ms in (HOUR_MS - 1, HOUR_MS + 1, FOR_EVER_MS):
        user.restricted_until_ms = until_ms
        assert limits.next_ms(user, 0) == min(until_ms, HOUR_MS)


def test_every_rule_has_its_code_its_change_and_its_words() -> None:
    """None is missing from either table."""
    assert CODE_OF.keys() == CHANGE_OF.keys()
    assert set(CHANGE_OF.values()) <= CHANGES.keys()
    for rule, code in CODE_OF.items():
        block = Block(rule, 2.0, 1.0, "gpu", 0)
        assert block.code == code
        words = block_words if rule not in ("limit.queued-per-user", "limit.model") else None
        text = refusal_words(block) if words is None else words(block, lambda at_ms: "then")
        assert text
        assert "None" not in text


# -- at submission ---------------------------------------------------------------------------------------------------


def test_a_model_that_the_tier_may_not_use_is_refused() -> None:
    """None named is refused as well: the core fills in the tier's first before it asks."""
    limits, user = limits_of(gpu_models=("T4", "L4"), queued_per_user=1), user_of()
    assert limits.refusal(user, Shape(1, gpu_type="L4"), 0) is None
    for model in ("A100", None):
        assert limits.refusal(user, Shape(1, gpu_type=model), 1) == Block("limit.model", None, None, "")


def test_more_waiting_sessions_than_allowed_are_refused() -> None:
    """The one that makes the limit is not, the next one is."""
    limits, user = limits_of(queued_per_user=2, gpus_per_user=1.0), user_of()
    assert limits.refusal(user, ONE, 1) is None
    assert limits.refusal(user, TWO, 2) == Block("limit.queued-per-user", 2, 2, "sessions")


def test_what_could_never_start_is_refused() -> None:
    """A request beyond the user's limit, or the group's, alone; what is held plays no part."""
    user = user_of()
    hold(user, ONE)
    for limits, rule in (
        (limits_of(gpus_per_user=1.5), "limit.gpus-per-user"),
        (limits_of(gpus_per_group=1.5), "limit.gpus-per-group"),
    ):
        limits.holds(user, 0)
        assert limits.refusal(user, ONE, 0) is None
        assert limits.refusal(user, TWO, 0) == Block(rule, 2.0, 1.5, "gpu")
    both = limits_of(gpus_per_user=1.5, gpus_per_group=1.5)
    block = both.refusal(user, TWO, 0)
    assert block is not None
    assert block.rule == "limit.gpus-per-user"


def test_limits_on_running_refuse_nothing() -> None:
    """Sessions, quota and restriction let a request wait."""
    limits, user = limits_of(sessions_per_user=1, quota_gpu_h=0.001), user_of()
    hold(user, ONE)
    user.holdings = Holdings([(0, 1000)])
    user.restricted_until_ms = FOR_EVER_MS
    assert limits.refusal(user, ONE, 100) is None


# -- groups' counts --------------------------------------------------------------------------------------------------

GROUP_LIMITS = {"free": TierParams(gpus_per_group=2.5), "lab": TierParams(gpus_per_group=4.0), "any": TierParams()}
SHAPES = (ONE, TWO, HALF, TENTH)
KINDS = ("start", "start", "end", "wait", "leave", "nominate", "drop", "tier", "throttle")
Op = tuple[str, int, int]


class Crowd:
    """Six users of two groups; after each change the count of every pool is compared with a sum over everybody."""

    def __init__(self) -> None:
        self.limits = Limits(Params(tiers=GROUP_LIMITS))
        self.groups = [Node("g", ROOT), Node("h", ROOT)]
        self.users = [user_of(f"u{n}", self.groups[n % 2], ("free", "lab", "any")[n % 3]) for n in range(6)]
        self.count = 0

    def held_m(self, group: Node, tier: str) -> int:
        return sum(
            session.shape.gpus * session.shape.fraction_m
            for user in self.users
            if user.group is group and user.tier == tier
            for session in (*user.held.values(), *user.nominated.values())
        )

    def blocks(self) -> dict[tuple[str, Shape], Block | None]:
        """As sums over everybody have them."""
        found: dict[tuple[str, Shape], Block | None] = {}
        for user in self.users:
            most, held_m = GROUP_LIMITS[user.tier].gpus_per_group, self.held_m(user.group, user.tier)
            for shape in user.cells:
                over = most is not None and held_m + shape.amount_m > round(most * 1000)
                block = Block("limit.gpus-per-group", held_m / 1000, most, "gpu") if over else None
                found[user.name, shape] = block
        return found

    def play(self, op: Op) -> None:
        kind, x, y = op
        user, shape = self.users[x % 6], SHAPES[y % 4]
        before = self.blocks()
        if kind in ("start", "nominate"):
            self.count += 1
            session = Session(f"s{self.count}", user, shape, 0, 0, None)
            (user.held if kind == "start" else user.nominated)[session.id] = session
        elif kind in ("end", "drop"):
            these = user.held if kind == "end" else user.nominated
            if these:
                del these[list(these)[y % len(these)]]
        elif kind == "wait":
            user.cells.setdefault(shape, Cell(user, shape, 0))
        elif kind == "leave":
            user.cells.pop(shape, None)
        elif kind == "tier":
            user.tier = ("free", "lab", "any")[y % 3]
        else:
            for session in user.held.values():
                session.granted_m = session.shape.fraction_m // 2
        told = self.limits.holds(user, 0)
        self.check(user, before, told)

    def check(self, changed: User, before: dict[tuple[str, Shape], Block | None], told: list[User]) -> None:
        """Every waiting user's block, and that everybody whose block is another now has been named."""
        after = self.blocks()
        for user in self.users:
            for shape in user.cells:
                assert self.limits.against(user, shape, 0) == after[user.name, shape]
        names = {user.name for user in told}
        assert changed not in told
        assert len(names) == len(told)
        for (name, shape), block in after.items():
            if name != changed.name and before[name, shape] != block:
                assert name in names


@given(st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 11), st.integers(0, 11)), max_size=40))
@settings(max_examples=300)
def test_a_groups_count_is_the_sum_over_its_users(ops: list[Op]) -> None:
    """Whatever starts, ends, waits or changes its tier; and whose limits that changes is told."""
    crowd = Crowd()
    for op in ops:
        crowd.play(op)


def play_seeds(number: int) -> None:
    """So many random histories, the same each time."""
    for seed in range(number):
        draw, crowd = random.Random(seed), Crowd()
        for _ in range(40):
            crowd.play((draw.choice(KINDS), draw.randrange(12), draw.randrange(12)))


def test_without_a_fault_nothing_is_found() -> None:
    """The same histories pass on the code as it is."""
    play_seeds(30)


honest_count = Limits._count


def by_group_alone(self: Limits, user: User) -> list[User]:
    """All tiers of a group in one pool."""
    tier, user.tier = user.tier, "free"
    found = honest_count(self, user)
    user.tier = tier
    return found


FAULTS: dict[str, tuple[object, str, Callable[..., Any]]] = {
    "tiers are not told apart": (Limits, "_count", by_group_alone),
    "nobody is told": (Limits, "_count", lambda self, user: honest_count(self, user) and []),
    "the nominated are not counted": (
        limits_module,
        "occupied_m",
        lambda user: sum(s.shape.amount_m for s in user.held.values()),
    ),
    "what is granted is counted": (
        limits_module,
        "occupied_m",
        lambda user: sum(s.held_m for s in user.held.values()),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_caught(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of these mistakes is found within a hundred random histories."""
    owner, name, wrong = FAULTS[fault]
    monkeypatch.setattr(owner, name, wrong)
    with pytest.raises(AssertionError):
        play_seeds(100)
