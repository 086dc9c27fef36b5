"""`fairtier policy`: presets, what a policy says, whether a file is right, and the order of users in a share tree."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from fairtier.policy_shadow_cli import shadow
from policies.param_keys import KEYS, LONGEST_S, POLICIES, WEIGHT, Setting, keys_of
from policies.params import DEFAULT_TIER, ParamError, Params, PolicyError
from policies.promises import doubts
from policies.rule_words import rule_parts
from policies.shares import Ranked, ShareNode, TreeError, parse_tree, rank_fair_tree, rank_multifactor
from policies.toml_locate import locate
from scheduler.client import Client
from scheduler.errors import BadInput, NotFound
from scheduler.live_cli import state_option
from scheduler.output import emit, emit_json, output_option
from scheduler.policy_change_cli import activate, rollback, versions
from scheduler.policy_files import DEFAULT_PRESET, PolicyNotFound, policy_text, preset_names, read_policy
from scheduler.policy_live_text import show_live
from scheduler.why_words import span

LARGEST_TREE = 64 * 1024 * 1024
"""Bytes."""

METHODS: dict[str, Callable[[ShareNode], list[Ranked]]] = {"fair-tree": rank_fair_tree, "multifactor": rank_multifactor}


@click.group()
def policy() -> None:
    """Show, check, compare and change policies; rank users of a share tree."""


for command in (activate, rollback, shadow, versions):
    policy.add_command(command)


@policy.command()
@output_option
def presets(output: str) -> None:
    """List the policies that are shipped."""
    rows = [
        {"name": name, "default": name == DEFAULT_PRESET, "policy": params.policy, "summary": params.summary}
        for name, params in ((name, read_policy(name)) for name in preset_names())
    ]
    emit(rows, ("name", "default", "policy", "summary"), output, key="presets")


@policy.command()
@click.argument("name", metavar="NAME|FILE", required=False)
@click.option("--live", "is_live", is_flag=True, help="What is in force on the instance, with its figures of now.")
@state_option
@output_option(formats=("table", "json", "jsonl", "csv", "toml"))
def show(name: str | None, is_live: bool, state: Path, output: str) -> None:
    """Show every value of a preset or a .toml file; or, with --live, what is in force.

    Values that the file does not give are the defaults. With -o toml the file itself is printed, with its comments.
    --live shows version, credit caps and baselines of the tiers, and what today's headroom follows from.
    """
    if is_live:
        _show_live(name, state, output)
        return
    if name is None:
        raise BadInput("which policy?", "name a preset or a .toml file, or give --live")
    params = read_policy(name)
    if output == "toml":
        click.echo(policy_text(name), nl=False)
    elif output == "json":
        emit_json({"policy": params.as_dict(), "derived": _derived(params)})
    else:
        emit(_rows(params), ("key", "value", "unit", "does"), output, key="values", unknown="off")


def _show_live(name: str | None, state: Path, output: str) -> None:
    if name is not None:
        raise BadInput(f"--live shows what is in force, not {name}", "leave one of the two out")
    if output not in ("table", "json"):
        raise BadInput(f"--live has no -o {output}", "-o json has every figure")
    with Client(state) as client:
        found = client.get("policy")
    del found["schema"]
    if output == "json":
        emit_json(found)
    else:
        show_live(found)


@policy.command()
@click.argument("old", metavar="A")
@click.argument("new", metavar="B")
@output_option
def diff(old: str, new: str, output: str) -> None:
    """Say in words what is different in policy B.

    A and B are presets or .toml files. Values that a file does not give are the defaults; a tier that only one of them
    lists is held against what it would be in the other.
    """
    rows = _differences(read_policy(old), read_policy(new))
    if output != "table":
        emit(rows, ("key", "a", "b", "unit", "does"), output, key="differences")
        return
    click.echo(f"{new} differs from {old} in {len(rows)} value{'' if len(rows) == 1 else 's'}{':' if rows else '.'}")
    for row in rows:
        a, b = (_in_words(row[side], row["unit"]) for side in ("a", "b"))
        click.echo(f"\n  {row['key']}: {a} -> {b}\n    {row['does']}")


@policy.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@click.option("--gpus", type=click.FloatRange(min=0), help="GPUs there are: what is promised has to add up to that.")
@click.option("--users", type=click.IntRange(min=0), help="Users of the tier free there are, for the same.")
@output_option(formats=("table", "json"))
def check(files: tuple[str, ...], gpus: float | None, users: int | None, output: str) -> None:
    """Check policy files and report every mistake at once.

    Each mistake comes with its file, line, key, value and what is allowed. Exit code 2 when there are mistakes, 3 when
    a file does not exist. With --gpus, guarantees above what there is are a mistake; with --users too, more credit than
    GPUs is a warning.
    """
    errors: list[ParamError] = []
    warnings: list[str] = []
    missing: list[PolicyNotFound] = []
    for file in files:
        try:
            doubtful, broken = _doubts(file, read_policy(file), gpus, users)
        except PolicyError as error:
            errors += error.errors
        except PolicyNotFound as error:
            missing.append(error)
        else:
            errors += broken
            warnings += doubtful
            if output == "table" and not broken:
                click.echo(f"{file}: ok")
    if output == "table":
        for warning in warnings:
            click.echo(f"warning: {warning}", err=True)
    if output == "json":
        absent = [ParamError(error.name, 1, "", error.message, "an existing file") for error in missing]
        listed = [dataclasses.asdict(error) for error in (*errors, *absent)]
        emit_json({"ok": not listed, "errors": listed} | ({} if gpus is None else {"warnings": warnings}))
    _fail(errors, missing, silent=output == "json")


def _doubts(file: str, params: Params, gpus: float | None, users: int | None) -> tuple[list[str], list[ParamError]]:
    """(what is doubtful about a policy's promises, what of them cannot be kept) on so many GPUs."""
    if gpus is None:
        return [], []
    warnings, errors = [], []
    lines = locate(policy_text(file))
    for doubt in doubts(params, gpus, {DEFAULT_TIER: users or 0}):
        if doubt.broken:
            key = doubt.keys[0]
            line = lines.get(tuple(key.split(".")), 1)
            errors.append(
                ParamError(file, line, key, doubt.promised, f"at most {gpus:g} GPUs, with all other guarantees")
            )
        else:
            warnings.append(f"{file}: {doubt}")
    return warnings, errors


def _fail(errors: list[ParamError], missing: list[PolicyNotFound], *, silent: bool) -> None:
    """Leave with the exit code that the mistakes ask for; silent when they have been printed already."""
    if not errors and not missing:
        return
    code = 2 if errors else NotFound.exit_code
    if not silent:
        for line in (*map(str, errors), *(f"{error.message}: {error.hint}" for error in missing)):
            click.echo(f"error: {line}", err=True)
    sys.exit(code)


@policy.command()
@click.argument("tree", metavar="TREE.json|-")
@click.option("--method", type=click.Choice(list(METHODS)), default="fair-tree", show_default=True, help="The order.")
@output_option
def rank(tree: str, method: str, output: str) -> None:
    """Rank the users of a share tree, best first.

    TREE is a JSON object {"name", "shares", "usage"?, "children"?}, or one that holds it in its member "tree"; - reads
    it from standard input. A node without the key children is a user. level_fs null (a table says inf) is infinite.
    For multifactor the root may carry the total usage of the cluster.
    """
    file = "standard input" if tree == "-" else tree
    try:
        ranked = METHODS[method](_tree(_parse_json(_read(tree), file)))
    except TreeError as error:
        raise BadInput(f"{file}: {error.path}: {error.problem}") from None
    rows = [dataclasses.asdict(user) for user in ranked]
    emit(rows, ("user", "path", "level_fs", "rank", "factor"), output, key="users", unknown="inf")


def _read(file: str) -> bytes:
    """A file or standard input, whole, within the limit."""
    try:
        if file == "-":
            content = sys.stdin.buffer.read(LARGEST_TREE + 1)
        else:
            with Path(file).open("rb") as stream:
                content = stream.read(LARGEST_TREE + 1)
    except FileNotFoundError:
        raise NotFound(f"{file}: no such file") from None
    except (OSError, ValueError) as error:
        raise BadInput(f"{file}: {getattr(error, 'strerror', None) or error}") from None
    if len(content) > LARGEST_TREE:
        raise BadInput(f"{file}: larger than {LARGEST_TREE // 1024**2} MiB")
    return content


def _parse_json(content: bytes, file: str) -> object:
    """JSON in which no name stands twice in one object; the tree refuses NaN and says where."""

    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise ValueError(f"the member {name!r} stands twice in the object named {found.get('name')!r}")
            found[name] = value
        return found

    try:
        return json.loads(content.decode("utf-8"), object_pairs_hook=members)
    except UnicodeDecodeError as error:
        raise BadInput(f"{file}: not UTF-8 (byte {error.start})") from None
    except RecursionError:
        raise BadInput(f"{file}: nested too deeply") from None
    except ValueError as error:
        raise BadInput(f"{file}: not JSON: {error}") from None


def _tree(data: object) -> ShareNode:
    """The tree itself, also where a file wraps it in the member `tree`."""
    wrapped = isinstance(data, dict) and "tree" in data and "name" not in data
    return parse_tree(data["tree"] if wrapped and isinstance(data, dict) else data)


def _derived(params: Params) -> dict[str, float] | None:
    """What follows from the values; nothing for the plain orders."""
    if params.policy != POLICIES[0]:
        return None
    return {"steady_gpu_h": params.steady_gpu_h, "swap_period_s": params.swap_period_ms / 1000}


def _rows(params: Params) -> list[dict[str, Any]]:
    """One row a value, in the order of the file's tables, then what follows from them."""
    values = params.as_dict()
    rows = [_row("policy", values["policy"], "", "What orders the queue.")]
    derived = _derived(params)
    if derived is None:
        return rows
    rows += [_row_of(key, f"{key.table}.{key.name}", values[key.table][key.name]) for key in KEYS]
    rows += [_row_of(WEIGHT, f"gpu_weight.{model}", weight) for model, weight in values["gpu_weight"].items()]
    rows += [
        _row_of(keys_of("tiers")[name], f"tiers.{tier}.{name}", value)
        for tier, given in values["tiers"].items()
        for name, value in given.items()
    ]
    rows += [
        _row(f"rule.{rule.id}{part and '.'}{part}", value, "", does)
        for rule in params.rules
        for part, (value, does) in rule_parts(rule).items()
    ]
    steady = "What the usage of one busy GPU tends to: half_life_h / ln 2."
    swap = "Two equal users on one GPU change places no faster than this."
    rows.append(_row("steady_gpu_h", derived["steady_gpu_h"], "GPU-h", steady))
    rows.append(_row("swap_period_s", derived["swap_period_s"], "s", swap))
    return rows


def _differences(old: Params, new: Params) -> list[dict[str, Any]]:
    """What differs, in the order of the file's tables; tiers and weights that one of them lacks as it treats them."""
    tiers = {**old.tiers, **new.tiers}
    models = {**old.gpu_weight, **new.gpu_weight}
    sides = []
    for params in (old, new):
        whole = dataclasses.replace(
            params,
            tiers={name: params.tier(name) for name in tiers},
            gpu_weight={model: params.weight(model) for model in models},
        )
        sides.append({row["key"]: row for row in _rows(whole)})
    a, b = sides
    return [
        {"key": key, "a": a.get(key, {}).get("value"), "b": b.get(key, {}).get("value")}
        | {name: (b.get(key) or a[key])[name] for name in ("unit", "does")}
        for key in {**a, **b}
        if a.get(key, {}).get("value") != b.get(key, {}).get("value") and not _part_of_another(key, a, b)
    ]


def _part_of_another(key: str, a: dict[str, Any], b: dict[str, Any]) -> bool:
    """A part of a rule that only one of the policies has: the rule itself stands for it."""
    rule, dot, _ = key.rpartition(".")
    return bool(dot) and key.startswith("rule.") and ((rule in a) != (rule in b))


def _in_words(value: Any, unit: str) -> str:
    """A value for people: 'off', '30 min', '6 GPUs', 'standing'."""
    if value is None:
        return "off"
    if unit == "s":
        return "never" if value >= LONGEST_S else span(round(value * 1000))
    text = ", ".join(value) if isinstance(value, list) else f"{value:g}" if isinstance(value, float) else str(value)
    if not unit or isinstance(value, str):
        return text
    return f"{text} {unit.removesuffix('s') if value == 1 and unit in ('GPUs', 'sessions') else unit}"


def _row_of(key: Setting, name: str, value: object) -> dict[str, Any]:
    return _row(name, value, key.unit, key.does)


def _row(key: str, value: object, unit: str, does: str) -> dict[str, Any]:
    return {"key": key, "value": value, "unit": unit, "does": does}
