"""Tiers that end by themselves: until when a user is of its tier, and of which one it is then."""

from __future__ import annotations

from typing import NamedTuple

from policies.usage import NEVER_MS
from scheduler.why_words import utc


class Membership(NamedTuple):
    """Until when (exclusive) a user is of its tier, and of which it is from then on."""

    until_ms: int
    then_tier: str


def membership_json(membership: Membership | None) -> dict[str, str | None]:
    """Until when a user is of its tier, and of which one then; None where it does not end."""
    if membership is None:
        return {"tier_until": None, "then_tier": None}
    return {"tier_until": utc(membership.until_ms), "then_tier": membership.then_tier}


class Memberships:
    """Those that end, by user.

    Attributes:
        of: by user's name.
        next_ms: when the next one ends; `NEVER_MS` = none does.
    """

    def __init__(self) -> None:
        self.of: dict[str, Membership] = {}
        self.next_ms = NEVER_MS

    def set(self, user: str, membership: Membership | None) -> None:
        """A user's tier ends, or (None) does not end by itself."""
        if membership is None:
            self.of.pop(user, None)
        else:
            self.of[user] = membership
        self._look_ahead()

    def over(self, now_ms: int) -> list[tuple[str, str]]:
        """(user, its tier from now on) of those that are over, which are forgotten; the earliest first."""
        if self.next_ms > now_ms:
            return []
        found = sorted((m.until_ms, user, m.then_tier) for user, m in self.of.items() if m.until_ms <= now_ms)
        for _, user, _ in found:
            del self.of[user]
        self._look_ahead()
        return [(user, tier) for _, user, tier in found]

    def _look_ahead(self) -> None:
        self.next_ms = min((membership.until_ms for membership in self.of.values()), default=NEVER_MS)
