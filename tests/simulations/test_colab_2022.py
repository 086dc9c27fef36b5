"""The week of `colab-2022`: who is warned, who is restricted, who is left alone, and that names protect nobody."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import statistics
import time
from collections import Counter
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pytest

from policies.params import Params
from scheduler import events as ev
from scheduler.policy_files import read_policy
from simulations.run import Plan, run
from simulations.workloads.kinds import KINDS
from simulations.workloads.scenario import Scenario, ScenarioError, parse_scenario, read_scenario

SEEDS = (1, 2, 3, 4)
NAME = "colab-2022"


class Week(NamedTuple):
    """One run.

    Attributes:
        decisions: of rules of acceptable use, with the `role` of their user.
        gpu_h: GPU-hours by role; wanted_gpus: held on average if everyone were served at once, by role.
        p95_s: what researchers waited.
    """

    decisions: list[dict[str, Any]]
    gpu_h: Counter[str]
    wanted_gpus: Counter[str]
    p95_s: float


def scenario(renamed_runs: str | None = None) -> Scenario:
    """The shipped one, with another command line for those who renamed what they run."""
    made = read_scenario(NAME)
    if renamed_runs is None:
        return made
    people = [
        dataclasses.replace(role, argv=renamed_runs) if role.name == "dfl-renamed" else role for role in made.people
    ]
    return dataclasses.replace(made, people=tuple(people))


@cache
def week(seed: int, *, rules: bool = True, renamed_runs: str | None = None, days: float = 7) -> Week:
    """A run of the scenario under its preset, or under the same without any rule."""
    params = read_policy(NAME) if rules else without_rules()
    workload = scenario(renamed_runs).workload(seed=seed, days=days)
    roles = {user: person.role for person in workload.people for user in person.users}
    with TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        run(
            Plan(
                workload=workload,
                params=params,
                hosts=(ev.HostJoined(0, "pool", workload.gpus),),
                policy=NAME,
                seed=seed,
                stopwatch=time.perf_counter,
                progress=lambda *_: None,
                out=out,
            )
        )
        with (out / "sessions.csv").open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        decisions = [json.loads(line) for line in (out / "decisions.jsonl").read_text(encoding="utf-8").splitlines()]
    gpu_h: Counter[str] = Counter()
    wanted: Counter[str] = Counter()
    for row in rows:
        gpu_h[roles[row["user"]]] += float(row["gpu_s"]) / 3600  # type: ignore[assignment]
    for person in workload.people:
        wanted[person.role] += KINDS[person.kind].mean_gpus(person, workload.setting.cap_ms)  # type: ignore[assignment]
    waits = sorted(float(row["wait_s"]) for row in rows if row["wait_s"] and roles[row["user"]] == "researcher")
    about = [entry | {"role": roles[entry["user"]]} for entry in decisions if entry["rule"].startswith("use.")]
    return Week(about, gpu_h, wanted, waits[math.ceil(0.95 * len(waits)) - 1])


def without_rules() -> Params:
    """A policy that differs from the preset in nothing but its rules."""
    return dataclasses.replace(read_policy(NAME), rules=())


def done(found: Week, role: str) -> set[tuple[str, str]]:
    """(rule, action) of everything that was decided about people of a role."""
    return {(entry["rule"], entry["action"]) for entry in found.decisions if entry["role"] == role}


def test_every_rule_has_its_examples() -> None:
    """At least three command lines that it matches, and five that it does not."""
    for rule in read_policy(NAME).rules:
        assert len(rule.positive) >= 3, rule.id
        assert len(rule.negative) >= 5, rule.id


def test_what_each_tier_may_not() -> None:
    """As the service listed it: mining and file sharing everywhere, deepfakes and attacks on free."""
    rules = read_policy(NAME).rules
    of = {tier: {rule.category for rule in rules if rule.applies(tier)} for tier in ("free", "pro", "pro-plus")}
    assert of["pro"] == of["pro-plus"] == {"mining", "sharing"}
    assert of["free"] == {"mining", "sharing", "deepfake", "attack"}


def test_deepfacelab_is_warned_first_and_restricted_later() -> None:
    """On free, in every session that is restricted for it, an hour earlier; by its shape it is only on trial."""
    found = week(1, days=2)
    assert done(found, "dfl") == {
        ("use.deepfacelab-train", "observe"),
        ("use.deepfacelab-train", "notice"),
        ("use.deepfacelab-train", "restrict"),
        ("use.deepfacelab-shape", "observe"),
    }
    mine = [entry for entry in found.decisions if entry["rule"] == "use.deepfacelab-train"]
    warned = {entry["session"]: entry["at_ms"] for entry in mine if entry["action"] == "notice"}
    restricted = [entry for entry in mine if entry["action"] == "restrict"]
    assert restricted
    for entry in restricted:
        assert entry["at_ms"] - warned[entry["session"]] >= 3_600_000
        assert entry["until_ms"] - entry["at_ms"] == 86_400_000


@pytest.mark.parametrize(
    ("role", "rules"), [("faceswap", {"use.faceswap-train"}), ("deepfacelive", {"use.deepfacelive"})]
)
def test_what_is_only_observed(role: str, rules: set[str]) -> None:
    assert done(week(1, days=2), role) == {(rule, "observe") for rule in rules}


def test_nothing_is_done_about_pro_users_or_people_whom_no_rule_is_about() -> None:
    """Pro users who train the very same are left alone; so is whoever renamed it."""
    found = week(1, days=2)
    assert {entry["role"] for entry in found.decisions} == {
        "dfl", "faceswap", "deepfacelive", "mines", "shares-files"
    }  # fmt: skip


def test_miners_are_ended_by_two_signals() -> None:
    """The program's name and the pool's address; warned a quarter of an hour before."""
    mines = [entry for entry in week(1, days=2).decisions if entry["role"] == "mines"]
    ended = [entry for entry in mines if entry["action"] == "evict"]
    warned = {entry["session"]: entry["at_ms"] for entry in reversed(mines) if entry.get("change") == "use-stop"}
    assert ended
    assert all(entry["at_ms"] - warned[entry["session"]] == 1_200_000 for entry in ended)


@pytest.mark.slow
@pytest.mark.xfail(strict=True, reason="not met: 650 s without rules against 126 s with them, mean of four weeks")
def test_without_any_name_researchers_wait_as_long() -> None:
    """The ledger protects them, not the list: p95 within 20 % or 60 s, mean of four weeks."""
    with_rules = statistics.fmean(week(seed).p95_s for seed in SEEDS)
    without = statistics.fmean(week(seed, rules=False).p95_s for seed in SEEDS)
    assert without <= max(1.2 * with_rules, with_rules + 60)


@pytest.mark.slow
def test_renaming_gains_nothing_over_honest_training() -> None:
    """GPU-hours against an honest trainer's: per GPU wanted in the same weeks, and of the same people training else."""
    ratios, paired = [], []
    for seed in SEEDS:
        found, honest = week(seed), week(seed, renamed_runs="python train.py --data imagenet")
        served = {role: found.gpu_h[role] / found.wanted_gpus[role] for role in ("dfl-renamed", "trainer")}
        ratios.append(served["dfl-renamed"] / served["trainer"])
        paired.append(found.gpu_h["dfl-renamed"] / honest.gpu_h["dfl-renamed"])
    assert statistics.fmean(ratios) <= 1.05
    assert statistics.fmean(paired) <= 1.05


PEOPLE = """
gpus = 4
offered_load = 0.5
cap_h = 6
[population]
student = 0.5
[people.dfl]
kind = "trainer"
share = 0.5
argv = "python main.py"
"""


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ('kind = "trainer"', 'kind = "robot"', "people.dfl.kind"),
        ('kind = "trainer"', "", "people.dfl.kind"),
        ("share = 0.5", "share = 2", "people.dfl.share"),
        ("share = 0.5", "share = 0.4", "population"),
        ('argv = "python main.py"', "argv = \"python 'main.py\"", "people.dfl.argv"),
        ('argv = "python main.py"', 'tier = "No Tier"', "people.dfl.tier"),
        ('argv = "python main.py"', 'arg = "python main.py"', "people.dfl.arg"),
        ("[people.dfl]", "[people.student]", "people.student"),
        ("[people.dfl]", "[[people]]", "people"),
    ],
)  # fmt: skip
def test_a_scenario_with_people_of_its_own(old: str, new: str, key: str) -> None:
    """They behave as their kind, in their tier; each mistake is told with its key."""
    made = parse_scenario(PEOPLE, name="x", file="x.toml")
    assert {person.role for person in made.workload(seed=1).people} == {"student", "dfl"}
    with pytest.raises(ScenarioError) as caught:
        parse_scenario(PEOPLE.replace(old, new, 1), name="x", file="x.toml")
    assert key in [mistake.key for mistake in caught.value.mistakes]
