"""Standing, the one figure that orders the queue and compares who gives way; and credit.

`standing = (U + sum c) x mean(siblings' shares) / shares`, GPU-h, among the children of one node; lower goes first.
U is decayed usage, c the committed charge of each session held or being considered. A user's place is the tuple of
standings along its path from below the root to itself, compared from the top: Fair Tree order (depth first).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from policies.model import NANO

if TYPE_CHECKING:
    from policies.model import Node, User
    from policies.usage import DecayClock


AUTO_BASELINE_MIN, AUTO_BASELINE_MAX = 0.05, 0.5
"""Bounds of an automatic baseline, GPUs per user."""


def standing(node: Node, clock: DecayClock, extra_n: int = 0) -> float:
    """Standing of a group or user among its siblings now, GPU-h, with `extra_n` nano GPU-h committed in addition."""
    return weighed(node, clock.compared(node) * NANO + (node.committed_n + extra_n))


def weighed(node: Node, charge_n: float) -> float:
    """`charge_n` nano GPU-h of a node x mean(siblings' shares) / its shares, GPU-h.

    Whole numbers are divided once: what is equal as a fraction is equal here, so that ties are ties.
    """
    parent = node.parent
    assert parent is not None, "the root has no siblings"  # noqa: S101 - programmer's error
    return charge_n * parent.child_shares / (parent.children * node.shares) / NANO


def sibling_factor(node: Node) -> float:
    """Mean of the siblings' shares / the node's shares: 1 among equals."""
    parent = node.parent
    return 1.0 if parent is None else parent.child_shares / parent.children / node.shares


def place(user: User, clock: DecayClock, extra_n: int = 0) -> tuple[float, ...]:
    """Standings along the user's path, topmost first: smaller tuples go first."""
    return tuple([standing(node, clock, extra_n) for node in user.path])


def branches(a: User, b: User) -> tuple[Node, Node] | None:
    """The children of the lowest common ancestor on the side of `a` and of `b`; None for one and the same user."""
    for left, right in zip(a.path, b.path, strict=False):
        if left is not right:
            return left, right
    return None


def credit_cap_gpu_h(baseline_gpus: float, clock: DecayClock) -> float:
    """Usage up to which a user is in credit: `baseline x K`, GPU-h (the level that running `baseline` GPUs holds)."""
    return baseline_gpus * clock.steady_gpu_h


def auto_baseline(pool_gpus: float, users: int, before: float | None) -> float:
    """GPUs per user that the credit of a tier is worth: its GPUs / its users, within .05 and .5.

    Args:
        pool_gpus: GPUs left to the tier.  users: users counted (seen so far, or active in the last 7 days).
        before: yesterday's value, from which it moves at most 10 %; None in the first 7 days: no bound.
    """
    wanted = min(AUTO_BASELINE_MAX, max(AUTO_BASELINE_MIN, pool_gpus / max(1, users)))
    return wanted if before is None else min(before * 1.1, max(before * 0.9, wanted))
