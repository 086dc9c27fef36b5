"""The ledger: the share tree with an account at every group and user, charged exactly and never in advance.

A session changes its user's charge rate, and that of every group above, when it starts, ends, is throttled or reports
another load; between such changes the integral is exact (`policies.usage`). Rates are integers, so that their sums do
not depend on the order of what happened.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from policies.model import Node, User
from policies.usage import DecayClock
from scheduler.errors import CoreError

if TYPE_CHECKING:
    from collections.abc import Iterator


def _check_shares(name: str, shares: float) -> None:
    if not 0 < shares < float("inf"):
        raise CoreError(f"shares of {name} must be a number > 0, not {shares}")


NodeT = TypeVar("NodeT", bound=Node)


class Ledger:
    """Groups and users with their accounts.

    Attributes:
        clock: the decay at the present instant.
        root: the organisation; its children are the top-level groups.
        groups, users: by name.
    """

    def __init__(self, clock: DecayClock) -> None:
        self.clock = clock
        self.root = Node("", None)
        self.groups: dict[str, Node] = {}
        self.users: dict[str, User] = {}

    def nodes(self) -> Iterator[Node]:
        """Every account."""
        yield from self.groups.values()
        yield from self.users.values()

    def advance(self, now_ms: int) -> bool:
        """Move the clock; True when every account had to be rescaled."""
        half_lives = self.clock.move(now_ms)
        if not half_lives:
            return False
        factor = 2.0**-half_lives
        for node in self.nodes():
            node.scaled *= factor
        return True

    def set_group(self, name: str, shares: float, parent: str | None = None) -> Node:
        """Create a group, or give it other shares; CoreError for shares that are not > 0 or another parent."""
        _check_shares(name, shares)
        above = self.root if parent is None else self.groups.get(parent)
        group = self.groups.get(name)
        if above is None or above is group:
            raise CoreError(f"group {name} cannot be below {parent!r}: no such group above it")
        if group is None:
            group = self.groups[name] = self._adopt(Node(name, above), above)
        elif parent is not None and group.parent is not above:
            raise CoreError(f"group {name} is below {group.parent.name if group.parent else ''!r}, not {parent!r}")
        self._set_shares(group, shares)
        return group

    def set_user(self, name: str, group: str, tier: str, shares: float = 1.0) -> User:
        """Create a user (and a group with one share where it is new), or give it other shares or another tier."""
        _check_shares(name, shares)
        user = self.users.get(name)
        if user is None:
            above = self.groups.get(group) or self.set_group(group, 1.0)
            user = self.users[name] = User(name, above, tier)
            self._adopt(user, above)
        elif user.group.name != group:
            raise CoreError(f"user {name} belongs to group {user.group.name}, not {group}")
        user.tier = tier
        if user.shares != shares:
            self._set_shares(user, shares)
        return user

    def change(self, user: User, rate_n: int, committed_n: int) -> None:
        """Add to the charge rate and the committed charge of a user and of every group above it (may be negative)."""
        if rate_n:
            set_rate = self.clock.set_rate
            for node in user.path:
                set_rate(node, node.rate_n + rate_n)
                node.committed_n += committed_n
        else:
            for node in user.path:
                node.committed_n += committed_n

    def add(self, user: User, gpu_h: float) -> None:
        """Charge a user, and every group above it, once; negative gives back, at most what there is."""
        clock = self.clock
        for node in user.path:
            clock.set_usage(node, max(0.0, clock.usage(node) + gpu_h))

    def set_usage(self, user: User, usage_gpu_h: float) -> None:
        """Correct a user's usage; the groups above change by the difference."""
        if not 0 <= usage_gpu_h < float("inf"):
            raise CoreError(f"usage of {user.name} must be a number of GPU-h >= 0, not {usage_gpu_h}")
        difference = usage_gpu_h - self.clock.usage(user)
        for node in user.path:
            usage = usage_gpu_h if node is user else max(0.0, self.clock.usage(node) + difference)
            self.clock.set_usage(node, usage)

    @staticmethod
    def _adopt(child: NodeT, parent: Node) -> NodeT:
        parent.children += 1
        parent.child_shares += child.shares
        return child

    @staticmethod
    def _set_shares(node: Node, shares: float) -> None:
        parent = node.parent
        if parent is not None:
            parent.child_shares += shares - node.shares
        node.shares = shares
