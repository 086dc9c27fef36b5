"""Hard limits, tested before any order: who may not start now, whatever is free, and until when.

A limit blocks a user's waiting sessions of one shape together (a *cell* of the queue). Blocked sessions keep their
place and make nobody give way; they come back to the order when the limit lets them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from policies.model import WHOLE_M, Node, Shape, User
from policies.quota import Holdings, Window, gpu_h_of, limit_of, window
from policies.rights import occupied_m
from policies.usage import NEVER_MS

if TYPE_CHECKING:
    from policies.model import Session
    from policies.params import Params, TierParams

FOR_EVER_MS = NEVER_MS
"""A restriction that nothing but a pardon ends."""

CODE_OF = {
    "limit.restricted": "Restricted",
    "limit.quota": "QuotaExhausted",
    "limit.sessions-per-user": "UserLimit",
    "limit.gpus-per-user": "UserLimit",
    "limit.gpus-per-group": "GroupLimit",
    "limit.queued-per-user": "UserLimit",
    "limit.model": "NoMatchingGpu",
}
"""Rule of each limit, and the code of the reason."""

CHANGE_OF = {
    "limit.restricted": "ask-operator",
    "limit.quota": "wait-for-quota",
    "limit.sessions-per-user": "end-another",
    "limit.gpus-per-user": "end-another",
    "limit.gpus-per-group": "others-of-group",
    "limit.queued-per-user": "fewer-waiting",
    "limit.model": "other-model",
}
"""Rule of each limit, and the code of the one change that lifts it."""

Pool = tuple[Node, str]
"""A group's users of one tier."""


class Block(NamedTuple):
    """Why sessions may not start now.

    Attributes:
        rule: the limit's name.
        value, threshold: measured and allowed, in `unit`.
        until_ms: when it ends by itself; None = when something else changes.
    """

    rule: str
    value: float | None
    threshold: float | None
    unit: str
    until_ms: int | None = None

    @property
    def code(self) -> str:
        """Of the reason, see docs/policies.md."""
        return CODE_OF[self.rule]


class Limits:
    """The limits of a policy's tiers, and what users and groups hold against them.

    Args:
        params: of the policy.

    Attributes:
        none: no tier has any limit; only restrictions are to be asked for.
        quotas: some tier has a quota, so holdings are kept.
    """

    def __init__(self, params: Params) -> None:
        self._params = params
        self._tiers = {name: _if_limited(tier) for name, tier in params.tiers.items()}
        self._other = self._tiers.get("free")  # a tier that is not listed
        self._windows: dict[str, Window] = {}
        self.none = all(tier is None for tier in self._tiers.values())
        self.quotas = any(tier.quota_gpu_h is not None for tier in params.tiers.values())
        self._groups = any(tier.gpus_per_group is not None for tier in params.tiers.values())
        self._keep_ms = max((window(tier.quota_window).length_ms for tier in params.tiers.values()), default=0)
        self._held_m: dict[Pool, int] = {}
        self._counted: dict[User, tuple[Pool, int]] = {}
        self._waiting: dict[Pool, dict[User, None]] = {}

    # -- what is held ----------------------------------------------------------------------------------------------

    def holds(self, user: User, now_ms: int) -> list[User]:
        """What a user holds, is nominated for or waits for has changed; others whose limits that may have changed."""
        if self.quotas:
            self._keep(user, now_ms)
        else:
            user.holdings = None  # of a policy before this one: it would know nothing of what is held under this one
        return self._count(user) if self._groups else []

    def _keep(self, user: User, now_ms: int) -> None:
        """Keep what the user holds from now on; only a change forgets, so that a restored core has the same knots."""
        holdings = user.holdings
        if holdings is None:
            holdings = user.holdings = Holdings()
        held_m = sum([session.held_m for session in user.held.values()])
        if held_m != holdings.held_m:
            holdings.hold(now_ms, held_m)
            holdings.forget(now_ms - self._keep_ms)

    def _count(self, user: User) -> list[User]:
        """Keep the count of the user's group; its other waiting users when the count has changed."""
        pool, held_m = (user.group, user.tier), occupied_m(user)
        before = self._counted.get(user)
        if user.cells:
            self._waiting.setdefault(pool, {})[user] = None
        else:
            self._waiting.get(pool, {}).pop(user, None)
        if before == (pool, held_m):
            return []
        if before is not None:
            self._held_m[before[0]] -= before[1]
            if before[0] != pool:
                self._waiting.get(before[0], {}).pop(user, None)
        self._held_m[pool] = self._held_m.get(pool, 0) + held_m
        self._counted[user] = (pool, held_m)
        touched = {pool: None} if before is None else {before[0]: None, pool: None}
        return [other for one in touched for other in self._waiting.get(one, {}) if other is not user]

    # -- questions -------------------------------------------------------------------------------------------------

    def against(self, user: User, shape: Shape, now_ms: int) -> Block | None:
        """What keeps a waiting session of this shape from starting now; None = no limit does."""
        if user.restricted_until_ms > now_ms:
            until = None if user.restricted_until_ms == FOR_EVER_MS else user.restricted_until_ms
            return Block("limit.restricted", None, None, "", until)
        tier = self._tiers.get(user.tier, self._other)
        if tier is None:
            return None
        if tier.quota_gpu_h is not None:
            block = self._quota(user, tier.quota_gpu_h, now_ms)
            if block is not None:
                return block
        running = len(user.held) + len(user.nominated)
        if tier.sessions_per_user is not None and running >= tier.sessions_per_user:
            return Block("limit.sessions-per-user", running, tier.sessions_per_user, "sessions")
        if tier.gpus_per_user is not None:
            held_m = occupied_m(user)
            if (held_m + shape.amount_m) / WHOLE_M > tier.gpus_per_user:
                return Block("limit.gpus-per-user", held_m / WHOLE_M, tier.gpus_per_user, "gpu")
        if tier.gpus_per_group is not None:
            held_m = self._held_m.get((user.group, user.tier), 0)
            if (held_m + shape.amount_m) / WHOLE_M > tier.gpus_per_group:
                return Block("limit.gpus-per-group", held_m / WHOLE_M, tier.gpus_per_group, "gpu")
        return None

    def against_nominated(self, user: User, now_ms: int) -> bool:
        """Whether a restriction or a quota keeps a waiter that is nominated already from starting."""
        tier = self._tiers.get(user.tier, self._other)
        if user.restricted_until_ms > now_ms:
            return True
        return (
            tier is not None
            and tier.quota_gpu_h is not None
            and self._quota(user, tier.quota_gpu_h, now_ms) is not None
        )

    def _quota(self, user: User, quota_gpu_h: float, now_ms: int) -> Block | None:
        holdings, counted = user.holdings, self.window_of(user)
        if holdings is None:
            return None
        used, limit = holdings.used(counted.start_ms(now_ms), now_ms), limit_of(quota_gpu_h)
        if used < limit:
            return None
        until = holdings.turns_ms(limit, counted, now_ms)
        return Block("limit.quota", gpu_h_of(used), quota_gpu_h, "gpu_h", until)

    def next_ms(self, user: User, now_ms: int) -> int:
        """When a limit of a user with waiting sessions changes by itself; `NEVER_MS` = never."""
        found = user.restricted_until_ms if user.restricted_until_ms > now_ms else NEVER_MS
        tier = self._tiers.get(user.tier, self._other)
        if tier is not None and tier.quota_gpu_h is not None and user.holdings is not None:
            turns = user.holdings.turns_ms(limit_of(tier.quota_gpu_h), self.window_of(user), now_ms)
            found = found if turns is None else min(found, turns)
        return found

    def window_of(self, user: User) -> Window:
        """The window of the user's quota."""
        text = self._params.tier(user.tier).quota_window
        found = self._windows.get(text)
        if found is None:
            found = self._windows[text] = window(text)
        return found

    def within(self, user: User, shape: Shape, count: int) -> int:
        """How many of `count` waiting sessions of a shape could start before a limit of their user's own stops them."""
        tier = self._tiers.get(user.tier, self._other)
        if tier is None:
            return count
        if tier.sessions_per_user is not None:
            count = min(count, tier.sessions_per_user - len(_running(user)))
        if tier.gpus_per_user is not None:
            count = min(count, (round(tier.gpus_per_user * WHOLE_M) - occupied_m(user)) // shape.amount_m)
        return max(0, count)

    # -- at submission -------------------------------------------------------------------------------------------------

    def refusal(self, user: User, shape: Shape, waiting: int) -> Block | None:
        """Why a request is refused outright, with so many of the user's sessions waiting already; None = it is not."""
        tier = self._tiers.get(user.tier, self._other)
        if tier is None:
            return None
        if tier.gpu_models is not None and shape.gpu_type not in tier.gpu_models:
            return Block("limit.model", None, None, "")
        if tier.queued_per_user is not None and waiting >= tier.queued_per_user:
            return Block("limit.queued-per-user", waiting, tier.queued_per_user, "sessions")
        if tier.gpus_per_user is not None and shape.amount_m / WHOLE_M > tier.gpus_per_user:
            return Block("limit.gpus-per-user", shape.amount_m / WHOLE_M, tier.gpus_per_user, "gpu")
        if tier.gpus_per_group is not None and shape.amount_m / WHOLE_M > tier.gpus_per_group:
            return Block("limit.gpus-per-group", shape.amount_m / WHOLE_M, tier.gpus_per_group, "gpu")
        return None


def _if_limited(tier: TierParams) -> TierParams | None:
    """The tier, or None where it has no limit: most sites have tiers without, and those are asked most often."""
    limits = (
        tier.sessions_per_user,
        tier.queued_per_user,
        tier.gpus_per_user,
        tier.gpus_per_group,
        tier.gpu_models,
        tier.quota_gpu_h,
    )
    return None if all(limit is None for limit in limits) else tier


def _running(user: User) -> list[Session]:
    return [*user.held.values(), *user.nominated.values()]
