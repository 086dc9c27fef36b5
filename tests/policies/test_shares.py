"""The order of users in a share tree: documented numbers, real Slurm output, corners, and what is no tree."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from policies.shares import (
    DEEPEST,
    Ranked,
    ShareNode,
    TreeError,
    parse_tree,
    rank_fair_tree,
    rank_multifactor,
)

REFERENCE = Path(__file__).resolve().parents[2] / "../shared/reference/fairtree"
FILES = sorted(REFERENCE.glob("*.json"))


def user(name: str, usage: float, shares: float = 1) -> ShareNode:
    return ShareNode(name=name, shares=shares, usage=usage)


def account(name: str, shares: float, *children: ShareNode, usage: float | None = None) -> ShareNode:
    return ShareNode(name=name, shares=shares, usage=usage, children=children)


def factors(ranked: list[Ranked]) -> dict[str, float]:
    assert [r.rank for r in ranked] == sorted((r.rank for r in ranked), reverse=True)
    return {r.user: r.factor for r in ranked}


T1 = account(
    "root",
    1,
    account("A", 40, account("B", 30, user("u1", 0.2)), account("C", 10, user("u2", 0.25), user("u3", 0))),
    account("D", 60, account("E", 25, user("u4", 0.25)), account("F", 35, user("u5", 0))),
    usage=1.0,
)
T3 = account(
    "root",
    1,
    account("A", 50, user("a1", 0.5), user("a2", 0)),
    account("B", 50, user("b1", 0.25), user("b2", 0.1)),
    usage=1.0,
)


def test_t1_classic_multifactor() -> None:
    expected = {"u1": 0.408479, "u2": 0.022097, "u3": 0.125, "u4": 0.5, "u5": 0.749154}
    assert factors(rank_multifactor(T1)) == pytest.approx(expected, abs=5e-7)


def test_t2_the_same_tree_by_fair_tree() -> None:
    assert factors(rank_fair_tree(T1)) == {"u5": 1.0, "u4": 0.8, "u1": 0.6, "u3": 0.4, "u2": 0.2}


def test_t3_where_the_two_differ() -> None:
    expected = {"b2": 0.535887, "a2": 0.5, "b1": 0.435275, "a1": 0.25}
    assert factors(rank_multifactor(T3)) == pytest.approx(expected, abs=5e-7)
    assert factors(rank_fair_tree(T3)) == {"b2": 1.0, "b1": 0.75, "a2": 0.5, "a1": 0.25}


@pytest.mark.parametrize("turn", [1, -1])
def test_t4_tied_accounts_are_merged_in_either_order(turn: int) -> None:
    children = (account("A", 1, user("a1", 90), user("a2", 10)), account("B", 1, user("b1", 70), user("b2", 30)))
    ranked = factors(rank_fair_tree(account("root", 1, *children[::turn])))
    assert ranked == {"a2": 1.0, "b2": 0.75, "b1": 0.5, "a1": 0.25}


@pytest.mark.skipif(not FILES, reason="the folder `shared` is not beside this repository")
def test_t5_the_reference_trees_are_all_there() -> None:
    assert len(FILES) == 4


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_t5_every_user_of_a_tree_run_through_slurm(file: Path) -> None:
    reference = json.loads(file.read_text(encoding="utf-8"))
    ranked = {r.user: r for r in rank_fair_tree(parse_tree(reference["tree"]))}
    assert set(ranked) == {e["user"] for e in reference["expected"]}
    for expected in reference["expected"]:
        found = ranked[expected["user"]]
        assert found.factor == pytest.approx(expected["factor"], abs=1e-12), found.path
        level_fs = expected["level_fs"]
        assert found.level_fs == (None if level_fs is None else pytest.approx(level_fs, abs=1e-6)), found.path


def test_floats_count_as_their_decimal_text() -> None:
    """.1 + .2 and .3 are the same usage, although their floats differ."""
    tree = account("root", 1, account("A", 1, user("a", 0.1), user("b", 0.2)), account("B", 1, user("c", 0.3)))
    assert [(r.user, r.rank, r.level_fs) for r in rank_fair_tree(tree)] == [
        ("a", 3, 1.5),
        ("c", 2, 1.0),
        ("b", 1, 0.75),
    ]


def test_shares_of_nothing_go_last_and_use_of_nothing_goes_first() -> None:
    tree = account("root", 1, user("none", 0, 0), user("fresh", 0), user("old", 5), user("guest", 5, 0))
    assert [(r.user, r.level_fs, r.rank) for r in rank_fair_tree(tree)] == [
        ("fresh", None, 4),
        ("old", 1.0, 3),
        ("guest", 0.0, 2),
        ("none", 0.0, 2),
    ]
    assert {r.user: r.factor for r in rank_multifactor(tree)} == pytest.approx(
        {"fresh": 1.0, "old": 2**-1.0, "guest": 0, "none": 0}
    )


def test_an_account_without_users_counts_among_the_shares_and_has_no_rank() -> None:
    (ranked,) = rank_fair_tree(account("root", 1, user("a", 1, 1), account("empty", 3)))
    assert (ranked.level_fs, ranked.rank, ranked.factor) == (0.25, 1, 1.0)


def test_a_user_tied_with_an_account_takes_its_best_users_rank_however_deep() -> None:
    deep = account("A", 1, account("none", 1), account("B", 1, user("best", 1), user("worst", 3)))
    ranked = rank_fair_tree(account("root", 1, deep, user("tied", 4)))
    assert [(r.user, r.rank) for r in ranked] == [("best", 3), ("tied", 3), ("worst", 1)]


def test_trees_without_users_or_usage() -> None:
    assert rank_fair_tree(account("root", 1)) == rank_multifactor(account("root", 1, account("A", 1))) == []
    fresh = account("root", 1, user("a", 0), account("A", 1, user("b", 0)))
    for rank in (rank_fair_tree, rank_multifactor):
        assert [(r.path, r.level_fs, r.rank, r.factor) for r in rank(fresh)] == [
            ("root/A/b", None, 2, 1.0),
            ("root/a", None, 2, 1.0),
        ]


def test_multifactor_without_a_total_takes_the_sum() -> None:
    tree = account("root", 1, user("a", 3), user("b", 1))
    assert factors(rank_multifactor(tree)) == pytest.approx({"a": 2**-1.5, "b": 2**-0.5})


def test_multifactor_refuses_a_total_below_its_parts() -> None:
    with pytest.raises(TreeError, match=r"^root: its usage 3 is the total, and less"):
        rank_multifactor(account("root", 1, user("a", 3), user("b", 1), usage=3))
    assert rank_multifactor(account("root", 1, user("a", 0.1 + 0.2), usage=0.3))  # a hair of floats is forgiven


def test_numbers_of_any_size_are_exact() -> None:
    tree = account("root", 1, user("a", 1e-300), user("b", 1e300), user("c", 5e-324, 1e308), user("d", 10**400))
    ranked = rank_fair_tree(tree)
    assert [r.user for r in ranked] == ["c", "a", "b", "d"]
    assert all(r.level_fs is not None and r.level_fs < float("inf") for r in ranked)
    assert [r.user for r in rank_multifactor(tree)] == ["c", "a", "b", "d"]


def test_ten_thousand_users_take_well_under_a_second() -> None:
    """Measured on two busy cores: .15 s flat, .2 s in 100 groups, .3 s multifactor; the bound leaves a factor of 5."""
    groups = [
        account(f"g{i}", i + 0.5, *(user(f"u{i}-{j}", (i * 7919 + j * 104729) % 9973 / 7) for j in range(100)))
        for i in range(100)
    ]
    for rank in (rank_fair_tree, rank_multifactor):
        began = time.perf_counter()
        assert len(rank(account("root", 1, *groups))) == 10_000
        assert time.perf_counter() - began < 1.5


# Reading a tree


def nested(levels: int) -> dict[str, Any]:
    tree: dict[str, Any] = {"name": "u", "shares": 1}
    for level in range(levels):
        tree = {"name": f"a{level}", "shares": 1, "children": [tree]}
    return tree


def test_a_tree_is_read_as_it_stands() -> None:
    data = {
        "name": "root",
        "usage": 9,
        "children": [{"name": "a", "shares": 2}, {"name": "b", "shares": 0.5, "usage": 3}],
    }
    assert parse_tree(data) == account("root", 1, user("a", 0, 2), user("b", 3, 0.5), usage=9)


def test_depth_is_bounded() -> None:
    assert len(rank_fair_tree(parse_tree(nested(DEEPEST)))) == 1
    assert len(rank_multifactor(parse_tree(nested(DEEPEST)))) == 1
    with pytest.raises(TreeError, match="more than 32 levels"):
        parse_tree(nested(DEEPEST + 1))
    with pytest.raises(TreeError, match="more than 32 levels"):
        parse_tree(nested(50_000))


def root(*children: Any, **members: Any) -> dict[str, Any]:
    return {"name": "root", "shares": 1, "children": list(children)} | members


OK = {"name": "a", "shares": 1}


@pytest.mark.parametrize(
    ("data", "path", "problem"),
    [
        ([], "tree", "must be an object"),
        (None, "tree", "must be an object"),
        ({"shares": 1, "children": []}, "tree", 'the root has no "name"'),
        ({"name": "root", "shares": 1}, "root", "the root must be an account"),
        (root(OK, 3), "root", "not int"),
        (root({"shares": 1}), "root", 'a node in root has no "name"'),
        (root({"name": "", "shares": 1}), "root", 'no "name"'),
        (root({"name": 7, "shares": 1}), "root", 'no "name"'),
        (root({"name": "a/b", "shares": 1}), "root", "no /"),
        (root({"name": "a\x1b[2J", "shares": 1}), "root", "printable"),
        (root({"name": "a" * 201, "shares": 1}), "root", "at most 200"),
        (root({"name": "a"}), "root/a", "shares is missing"),
        (root({"name": "a", "shares": -1}), "root/a", "shares is -1"),
        (root({"name": "a", "shares": True}), "root/a", "shares is True"),
        (root({"name": "a", "shares": "1"}), "root/a", "shares is 1; it must be a number >= 0"),
        (root({"name": "a", "shares": None}), "root/a", "shares is None"),
        (root({"name": "a", "shares": float("nan")}), "root/a", "shares is nan"),
        (root({"name": "a", "shares": float("inf")}), "root/a", "shares is inf"),
        (root(OK | {"usage": -0.5}), "root/a", "usage is -0.5"),
        (root(OK | {"usage": None}), "root/a", "usage is None"),
        (root(usage=float("nan")), "root", "usage is nan"),
        (root(shares=-1), "root", "shares is -1"),
        (root(OK | {"share": 2}), "root/a", "unknown member 'share'"),
        (root(OK | {"children": None}), "root/a", "children must be a list"),
        (root(OK | {"children": {}}), "root/a", "children must be a list"),
        (root(OK | {"children": [], "usage": 1}), "root/a", "no usage of its own"),
        (root(OK, OK | {"children": []}), "root/a", "two siblings"),
        (root(OK, {"name": "b", "shares": 1, "children": [OK]}), "root/b/a", "exists already: root/a"),
    ],
)
def test_what_is_refused(data: object, path: str, problem: str) -> None:
    with pytest.raises(TreeError) as caught:
        parse_tree(data)
    assert caught.value.path == path
    assert problem in caught.value.problem
    assert str(caught.value) == f"{path}: {caught.value.problem}"
