"""The share tree: who is entitled to what part, and who is furthest below it.

Two orders over one tree. `rank_fair_tree` compares siblings level by level, exactly, with the documented tie rules
(Slurm's documentation, fair_tree.html); it is the order of this project. `rank_multifactor` is the classic formula
(Slurm's documentation, classic_fair_share.html), kept to compare with.

Everything that decides an order is a rational number, so a tie is a tie whatever the order of the input; floats count
as their decimal text, .1 is one tenth. Only the figures shown (`level_fs`, `factor`) are floats.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from itertools import groupby

DEEPEST = 32
"""Most levels below the root."""
LONGEST_NAME = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareNode:
    """A user or an account of the tree.

    Attributes:
        name: users' names differ all over the tree, accounts' among siblings.
        shares: entitlement weight among its siblings, >= 0; the root's means nothing.
        usage: of a user, >= 0, any one unit. Of the root of `rank_multifactor`: the total that users' usage is a part
            of. None elsewhere: the usage of an account is that of all its users.
        children: None for a user; an account without users has its part of the shares and no rank.
    """

    name: str
    shares: float = 1
    usage: float | None = None
    children: tuple[ShareNode, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """The place of one user.

    Attributes:
        user: the name.
        path: names from the root, joined by `/`.
        level_fs: part of the siblings' shares / part of their usage; None = infinite (shares, and no usage).
        rank: n for the best of n users down to 1; tied users have the same.
        factor: 0..1, higher goes first. Fair Tree: rank / n. Multifactor: 2 ** (-effective usage / shares).
    """

    user: str
    path: str
    level_fs: float | None
    rank: int
    factor: float


class TreeError(ValueError):
    """A tree cannot be used; `path` names the node, `problem` says why."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path
        self.problem = problem


def parse_tree(data: object) -> ShareNode:
    """A tree from JSON-like data: `{"name", "shares", "usage"?, "children"?}`.

    A node without the key `children` is a user, whose usage is 0 unless given. `"children": []` is an account without
    users. The root is an account; its `shares` may be left out and it may carry `usage`, the total.

    Raises:
        TreeError: at the first node that is wrong, deeper than `DEEPEST` or named twice.
    """
    users: dict[str, str] = {}
    root = _parse(data, "", 0, users)
    if root.children is None:
        raise TreeError(root.name, 'the root must be an account: it has no member "children"')
    return root


def rank_fair_tree(root: ShareNode) -> list[Ranked]:
    """Every user by Fair Tree, best first, ties by path.

    Among siblings `LF = S / U`, S = shares / sum of the siblings' shares (all siblings, also accounts without users),
    U = usage / sum of the siblings' usage; S = 0 gives 0, else U = 0 gives infinity. Depth first by LF descending,
    users get ranks n, n - 1, ... Ties as documented: tied users share a rank; a user tied with an account takes the
    rank of the account's best user; the children of tied accounts are merged and sorted as one set. The usage of the
    root is not looked at.
    """
    top = _weigh(root)
    ranks = _Ranks(top.users)
    ranks.walk(top.children)
    return _sorted([_ranked(leaf, rank, rank / top.users) for leaf, rank in ranks.given])


def rank_multifactor(root: ShareNode) -> list[Ranked]:
    """Every user by the classic formula F = 2 ** (-UE / S), best first, ties by path.

    S is the product, from the top level down, of shares / sum of siblings' shares; S = 0 gives F = 0. UA is the usage
    of a node (of an account: of all its users) as a part of the total, which is the usage of the root where given,
    else the sum. `UE = UA` for the children of the root, `UE = UA + (UE_parent - UA) x shares / siblings' shares`
    below. `level_fs` is the figure of `rank_fair_tree`.

    Raises:
        TreeError: the total given is less than what the users have used.
    """
    top = _weigh(root)
    total = top.usage if root.usage is None else top.own
    if total * (10**9 + 1) < top.usage * 10**9:  # totals that were added up in floats may be a hair short
        raise TreeError(root.name, f"its usage {root.usage} is the total, and less than its users have used")
    quotients: list[tuple[_Node, Fraction | None]] = []
    for child in top.children:
        _classic(child, child.part, Fraction(child.usage, total or 1), total or 1, quotients)
    quotients.sort(key=lambda item: (item[1] is None, *_ascending(item[1] or Fraction(0))))
    ranked: list[Ranked] = []
    for quotient, tied in groupby(quotients, key=lambda item: item[1]):
        rank = top.users - len(ranked)
        factor = 0.0 if quotient is None else 2.0 ** -_as_float(quotient)
        ranked += [_ranked(leaf, rank, factor) for leaf, _ in tied]
    return _sorted(ranked)


@dataclass(slots=True)
class _Node:
    """A node with its exact figures.

    Attributes:
        own: the usage that the node itself carries, in the tree's integer unit.
        usage: of all its users, in that unit.
        users: how many users it is or holds.
        part: its part of the siblings' shares.
        level_fs: LF; None = infinite.
    """

    name: str
    path: str
    own: int
    usage: int
    users: int
    is_user: bool
    children: list[_Node]
    part: Fraction = Fraction(0)
    level_fs: Fraction | None = Fraction(0)


class _Ranks:
    """Gives out the ranks n, n - 1, ... while Fair Tree walks the tree."""

    def __init__(self, users: int) -> None:
        self.next = users
        self.given: list[tuple[_Node, int]] = []

    def walk(self, siblings: Sequence[_Node], ahead: Sequence[_Node] = ()) -> None:
        """Rank one set of siblings, which may come from several tied accounts.

        Args:
            siblings: any order. Accounts without users have done their part (in `part`) and are passed over.
            ahead: users tied with the account above, who take the rank of the best user found here.
        """
        present = sorted((node for node in siblings if node.users), key=_best_first)
        for _, group in groupby(present, key=_best_first):
            tied = list(group)
            users = [*ahead, *(node for node in tied if node.is_user)]
            inside = [child for node in tied for child in node.children]
            ahead = ()
            if inside:
                self.walk(inside, users)
            else:
                self.given += [(node, self.next) for node in users]
                self.next -= len(users)


def _best_first(node: _Node) -> tuple[bool, int, Fraction]:
    """Sorts by LF descending, infinite first."""
    return (node.level_fs is not None, *_ascending(-(node.level_fs or Fraction(0))))


def _ascending(number: Fraction) -> tuple[int, Fraction]:
    """Sorts as the number does; comparing whole numbers first is ten times as fast as comparing fractions."""
    return (number.numerator << 64) // number.denominator, number


def _weigh(root: ShareNode) -> _Node:
    """The tree with its exact figures. Usage is scaled to integers, which changes no quotient and is quick to add."""
    scale = math.lcm(1, *(_exact(usage)[1] for usage in _usages(root)))
    return _weigh_below(root, root.name, scale)


def _usages(node: ShareNode) -> Iterator[float]:
    if node.usage is not None:
        yield node.usage
    for child in node.children or ():
        yield from _usages(child)


def _weigh_below(node: ShareNode, path: str, scale: int) -> _Node:
    """A subtree, children first; its own part and LF are left to its parent, who knows the siblings."""
    own = _scaled(node.usage or 0, scale)
    if node.children is None:
        return _Node(node.name, path, own, own, 1, True, [])
    children = [_weigh_below(child, f"{path}/{child.name}", scale) for child in node.children]
    usage = sum(child.usage for child in children)
    fine = math.lcm(1, *(_exact(child.shares)[1] for child in node.children))
    shares = [_scaled(child.shares, fine) for child in node.children]
    all_shares = sum(shares) or 1
    for child, part in zip(children, shares, strict=True):
        child.part = Fraction(part, all_shares)
        if part and not child.usage:
            child.level_fs = None
        elif part:
            child.level_fs = Fraction(part * usage, all_shares * child.usage)
    return _Node(node.name, path, own, usage, sum(child.users for child in children), False, children)


def _classic(
    node: _Node, shares: Fraction, effective: Fraction, total: int, found: list[tuple[_Node, Fraction | None]]
) -> None:
    """Collect UE / S of every user of a subtree, None where S = 0."""
    if node.is_user:
        found.append((node, effective / shares if shares else None))
    for child in node.children:
        actual = Fraction(child.usage, total)
        below = actual + (effective - actual) * child.part
        _classic(child, shares * child.part, below, total, found)


def _exact(number: float) -> tuple[int, int]:
    """Numerator and denominator: an integer as it is, a float as its decimal text says."""
    return (number, 1) if isinstance(number, int) else Decimal(str(number)).as_integer_ratio()


def _scaled(number: float, scale: int) -> int:
    """A number times a multiple of its denominator."""
    numerator, denominator = _exact(number)
    return numerator * (scale // denominator)


def _as_float(number: Fraction) -> float:
    """The nearest float; the largest there is for what is larger still."""
    try:
        return float(number)
    except OverflowError:
        return sys.float_info.max


def _ranked(node: _Node, rank: int, factor: float) -> Ranked:
    level_fs = None if node.level_fs is None else _as_float(node.level_fs)
    return Ranked(user=node.name, path=node.path, level_fs=level_fs, rank=rank, factor=factor)


def _sorted(ranked: list[Ranked]) -> list[Ranked]:
    return sorted(ranked, key=lambda user: (-user.rank, user.path))


def _parse(data: object, above: str, depth: int, users: dict[str, str]) -> ShareNode:
    """One node and what is below it; `users` maps the names seen so far to their paths."""
    if not isinstance(data, Mapping):
        raise TreeError(above or "tree", f"a node must be an object with a name and shares, not {type(data).__name__}")
    name = _name(data.get("name"), above)
    path = f"{above}/{name}" if above else name
    unknown = [str(key) for key in data if key not in ("name", "shares", "usage", "children")]
    if unknown:
        raise TreeError(path, f"unknown member {unknown[0]!r}; known: name, shares, usage, children")
    shares = _amount(data, "shares", path, 1 if depth == 0 else None)
    if "children" not in data:
        if name in users:
            raise TreeError(path, f"a user of this name exists already: {users[name]}")
        users[name] = path
        return ShareNode(name=name, shares=shares, usage=_amount(data, "usage", path, 0))
    if depth and "usage" in data:
        raise TreeError(path, "an account carries no usage of its own: it is the sum of its users'")
    usage = _amount(data, "usage", path, None) if "usage" in data else None
    return ShareNode(name=name, shares=shares, usage=usage, children=_children(data["children"], path, depth, users))


def _children(data: object, path: str, depth: int, users: dict[str, str]) -> tuple[ShareNode, ...]:
    if not isinstance(data, list | tuple):
        raise TreeError(path, f"children must be a list of nodes, not {type(data).__name__}")
    if data and depth == DEEPEST:
        raise TreeError(path, f"the tree has more than {DEEPEST} levels below the root")
    children = tuple(_parse(child, path, depth + 1, users) for child in data)
    seen: set[str] = set()
    for child in children:
        if child.name in seen:
            raise TreeError(f"{path}/{child.name}", "two siblings have this name")
        seen.add(child.name)
    return children


def _name(name: object, above: str) -> str:
    where = f"a node in {above}" if above else "the root"
    if not isinstance(name, str) or not name:
        raise TreeError(above or "tree", f'{where} has no "name" (a text)')
    if "/" in name or not name.isprintable() or len(name) > LONGEST_NAME:
        raise TreeError(
            above or "tree", f"{where} has the name {name[:40]!r}: at most {LONGEST_NAME} printable letters, no /"
        )
    return name


def _amount(data: Mapping[str, object], member: str, path: str, default: float | None) -> float:
    """A number from 0 up, finite; `default` where it is absent, None = it must be there."""
    value = data.get(member, default) if member in data or default is not None else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        shown = "is missing" if member not in data else f"is {str(value)[:40]}"
        raise TreeError(path, f"{member} {shown}; it must be a number >= 0")
    return value
