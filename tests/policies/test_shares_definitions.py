"""Fair Tree is what its definition says, for any tree; and each of these properties can fail.

`by_definition` is a second way to the same order: every user has the LFs on its way down, compared like words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import count
from typing import Any

import pytest
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

from policies.shares import ShareNode, rank_fair_tree


def user(name: str, usage: float, shares: float) -> ShareNode:
    return ShareNode(name=name, shares=shares, usage=usage)


def account(name: str, shares: float, *children: ShareNode) -> ShareNode:
    return ShareNode(name=name, shares=shares, children=children)


Rank = Callable[[ShareNode], dict[str, int]]
Signature = tuple[tuple[bool, Fraction], ...]


def level_fs(node: ShareNode, siblings: tuple[ShareNode, ...]) -> tuple[bool, Fraction]:
    """LF as something that sorts: infinite is (True, 0)."""
    shares = sum(Fraction(s.shares) for s in siblings)
    used = sum(usage_of(s) for s in siblings)
    if not node.shares:
        return (False, Fraction(0))
    if not usage_of(node):
        return (True, Fraction(0))
    return (False, Fraction(node.shares) / shares / (usage_of(node) / used))


def usage_of(node: ShareNode) -> Fraction:
    return Fraction(node.usage or 0) if node.children is None else sum(map(usage_of, node.children), Fraction(0))


def users_of(node: ShareNode) -> Iterator[str]:
    if node.children is None:
        yield node.name
    for child in node.children or ():
        yield from users_of(child)


def signatures(node: ShareNode, above: Signature = ()) -> dict[str, Signature]:
    """The LFs on the way to every user."""
    found: dict[str, Signature] = {}
    for child in node.children or ():
        own = (*above, level_fs(child, node.children or ()))
        found |= {child.name: own} if child.children is None else signatures(child, own)
    return found


def by_definition(root: ShareNode) -> dict[str, int]:
    """Ranks from signatures: a user whose signature others continue is as good as the best of those."""
    own = signatures(root)

    def best(signature: Signature) -> Signature:
        length = len(signature)
        longer = [s[length] for s in own.values() if len(s) > length and s[:length] == signature]
        return best((*signature, max(longer))) if longer else signature

    effective = {name: best(signature) for name, signature in own.items()}
    return {name: len(own) - sum(o > mine for o in effective.values()) for name, mine in effective.items()}


def fair_tree(root: ShareNode) -> dict[str, int]:
    return {r.user: r.rank for r in rank_fair_tree(root)}


@st.composite
def trees(draw: st.DrawFn) -> ShareNode:
    """Small trees of small numbers, so that ties, zeros and accounts without users are common."""
    names = count()

    def nodes(depth: int) -> tuple[ShareNode, ...]:
        return tuple(node(depth) for _ in range(draw(st.integers(0 if depth < 3 else 1, 4))))

    def node(depth: int) -> ShareNode:
        name, shares = f"n{next(names)}", draw(st.integers(0, 3))
        if depth and draw(st.booleans()):
            return account(name, shares, *nodes(depth - 1))
        return user(name, draw(st.integers(0, 4)), shares)

    return account("root", 1, *nodes(3))


def siblings_of(node: ShareNode) -> Iterator[tuple[ShareNode, ...]]:
    if node.children is not None:
        yield node.children
        for child in node.children:
            yield from siblings_of(child)


def check_dominance(rank: Rank, tree: ShareNode) -> None:
    """I4: every user of the sibling with the higher LF goes before every user of the other."""
    ranks = rank(tree)
    for siblings in siblings_of(tree):
        for one in siblings:
            for other in siblings:
                if level_fs(one, siblings) > level_fs(other, siblings):
                    below = [ranks[name] for name in users_of(other)]
                    assert all(ranks[name] > max(below, default=0) for name in users_of(one))


def check_ties(rank: Rank, tree: ShareNode) -> None:
    """I4: tied users share a rank, the rank below counts them all; merged accounts and best users as defined."""
    ranks = rank(tree)
    for siblings in siblings_of(tree):
        tied: dict[object, set[int]] = {}
        for one in siblings:
            if one.children is None:
                tied.setdefault(level_fs(one, siblings), set()).add(ranks[one.name])
        assert all(len(same) == 1 for same in tied.values())
    assert ranks == by_definition(tree)


def check_permutation(rank: Rank, tree: ShareNode) -> None:
    """I4: the order of the input does not matter."""

    def turned(node: ShareNode) -> ShareNode:
        if node.children is None:
            return node
        return account(node.name, node.shares, *map(turned, reversed(node.children)))

    assert rank(turned(tree)) == rank(tree)


def check_more_use_never_helps(rank: Rank, tree: ShareNode) -> None:
    """I3: who has used more, all else equal, has no better place."""

    def used(node: ShareNode, name: str) -> ShareNode:
        if node.children is None:
            return user(node.name, (node.usage or 0) + (node.name == name), node.shares)
        return account(node.name, node.shares, *(used(child, name) for child in node.children))

    before = rank(tree)
    for name in before:
        assert rank(used(tree, name))[name] <= before[name]


CHECKS = [check_dominance, check_ties, check_permutation, check_more_use_never_helps]


@pytest.mark.shows("I3", "I4", examples=(300, 300))
@pytest.mark.parametrize("check", CHECKS)
@settings(max_examples=300, deadline=None)
@given(tree=trees())
def test_i3_i4_definitions(check: Callable[[Rank, ShareNode], None], tree: ShareNode) -> None:
    check(fair_tree, tree)


@settings(max_examples=300, deadline=None)
@given(trees(), st.integers(1, 10**6), st.sampled_from(["1", "0.1", "0.7", "1e-9", "1e9"]))
def test_only_proportions_matter(tree: ShareNode, times: int, unit: str) -> None:
    def scaled(node: ShareNode) -> ShareNode:
        if node.children is None:
            return user(node.name, float(Fraction(node.usage or 0) * Fraction(unit)), node.shares * times)
        return account(node.name, node.shares * times, *map(scaled, node.children))

    assert rank_fair_tree(scaled(tree)) == rank_fair_tree(tree)


def ranks_by(keys: dict[str, Any]) -> dict[str, int]:
    return {name: len(keys) - sum(o > mine for o in keys.values()) for name, mine in keys.items()}


def ignores_groups(root: ShareNode) -> dict[str, int]:
    return ranks_by({name: signature[-1] for name, signature in signatures(root).items()})


def breaks_ties_by_input_order(root: ShareNode) -> dict[str, int]:
    return ranks_by({name: (signature, i) for i, (name, signature) in enumerate(signatures(root).items())})


def does_not_merge_tied_accounts(root: ShareNode) -> dict[str, int]:
    def keys(node: ShareNode, above: tuple[Any, ...]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for i, child in enumerate(node.children or ()):
            fs = level_fs(child, node.children or ())
            found |= {child.name: (*above, fs)} if child.children is None else keys(child, (*above, fs, (True, i)))
        return found

    return ranks_by(keys(root, ()))


def puts_tied_users_behind_accounts(root: ShareNode) -> dict[str, int]:
    return ranks_by(signatures(root))


def counts_tied_users_once(root: ShareNode) -> dict[str, int]:
    right = by_definition(root)
    steps = sorted(set(right.values()), reverse=True)
    return {name: len(right) - steps.index(rank) for name, rank in right.items()}


def rewards_use(root: ShareNode) -> dict[str, int]:
    return {name: len(ranks) + 1 - rank for ranks in [by_definition(root)] for name, rank in ranks.items()}


@pytest.mark.parametrize(
    ("rule", "fault", "check"),
    [
        ("I4", ignores_groups, check_dominance),
        ("I4", breaks_ties_by_input_order, check_ties),
        ("I4", breaks_ties_by_input_order, check_permutation),
        ("I4", does_not_merge_tied_accounts, check_ties),
        ("I4", does_not_merge_tied_accounts, check_permutation),
        ("I4", puts_tied_users_behind_accounts, check_ties),
        ("I4", counts_tied_users_once, check_ties),
        ("I4", rewards_use, check_dominance),
        ("I3", rewards_use, check_more_use_never_helps),
    ],
)
def test_planted_faults_are_caught(rule: str, fault: Rank, check: Callable[[Rank, ShareNode], None]) -> None:
    def refutes(tree: ShareNode) -> bool:
        try:
            check(fault, tree)
        except AssertionError:
            return True
        return False

    find(
        trees(), refutes, settings=settings(max_examples=300, phases=[Phase.generate], derandomize=True, deadline=None)
    )
