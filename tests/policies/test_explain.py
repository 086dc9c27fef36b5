"""Every rule that a decision can name has its sentence, and the sentence holds the decision's numbers."""

from __future__ import annotations

import ast
import dataclasses
import re
from functools import lru_cache
from pathlib import Path

import pytest

from policies.catalogue import make_policy
from policies.explain import CHANGES, RULES, block_words, day_clock, sentence
from policies.limits import CODE_OF, Block
from policies.model import Action, Allocation, Decision, Ladder, Reason
from policies.params import Params
from scheduler.core import Core
from scheduler.policy_files import read_policy
from simulations.cluster_spec import pool
from simulations.loop import Simulation
from simulations.workloads.scenario import load_scenario

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [*(ROOT / "policies").rglob("*.py"), *(ROOT / "scheduler").rglob("*.py")]
TABLES = "order|ladder|host|limit|lifetime|idle|reclaim|maintenance"
RULE = re.compile(rf"(?:{TABLES})\.[a-z]+(?:-[a-z]+)*|use\.RULE|never-fits")


def strings(path: Path) -> set[str]:
    """The string constants of a source file, docstrings included (they never are a rule as a whole)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def rules_in_sources() -> set[str]:
    """Every string in the sources that has the form of a rule, where rules are made."""
    return {text for path in SOURCES if path.name != "explain.py" for text in strings(path) if RULE.fullmatch(text)}


def test_every_rule_of_the_sources_has_a_sentence_and_the_other_way_round() -> None:
    """`RULES` is neither short of a rule that some policy names nor does it hold one that none names."""
    assert rules_in_sources() == {*RULES, *CODE_OF}
    assert len(set(RULES)) == len(RULES)


def test_every_change_of_the_sources_has_its_text_and_the_other_way_round() -> None:
    """The codes given as `change=` are the keys of `CHANGES`."""
    named: set[str] = set()
    for path in SOURCES:
        named |= strings(path) & set(CHANGES) if path.name != "explain.py" else set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "change" and isinstance(node.value, ast.Constant):
                assert node.value.value in {"", *CHANGES}
    assert named == set(CHANGES)


# -- by hand: every rule with numbers that cannot be there by chance ------------------------------------------------

T = 90_061_000  # day 1 01:01:01
UNTIL = T + 3_600_000
OVER = Reason("", 11.9012, 8.6601, "gpu_h", UNTIL, "pause-or-finish")
SPOT = Allocation((("gpu-07", (3, 5)),), 1000, 0)
USED = ("11.90", "8.66", "3.24 past")
WARNED = OVER._replace(numbers=(("deficit_gpus", 7.0), ("waiting", 13.0)))
OWED = Reason("", 5.0, 8.0, "gpu", UNTIL, "save-and-resubmit")
BY_HAND: dict[str, tuple[Action, Reason, dict[str, object], tuple[str, ...]]] = {
    "order.in-credit": (
        Action.START,
        Reason("", 1.25, 8.66, "gpu_h"),
        {"allocation": SPOT},
        ("1.25", "8.66", "gpu-07"),
    ),
    "order.out-of-credit": (
        Action.START,
        Reason("", 9.75, 8.66, "gpu_h"),
        {"allocation": SPOT},
        ("9.75", "8.66", "3, 5"),
    ),
    "order.nominated": (Action.START, Reason("", 321.0, None, "s"), {"allocation": SPOT}, ("gpu-07", "3, 5")),
    "order.waited-long": (Action.START, Reason("", 9000.0, 7200.0, "s"), {"allocation": SPOT}, ("2.50 h", "2.00 h")),
    "order.reserve": (Action.RESERVE, Reason("", 3.0, 8.0, "gpu"), {}, ("8 GPUs", "3 are kept")),
    "order.reserve-waited": (Action.RESERVE, Reason("", 3.0, 8.0, "gpu"), {}, ("8 GPUs", "3 are kept")),
    "order.reservation-over": (Action.WITHDRAW, Reason("", 321.0, None, "s"), {}, ("old place",)),
    "order.right": (
        Action.START,
        Reason("", 2.0, 8.0, "gpu", numbers=(("held_gpus", 5.0),)),
        {"allocation": SPOT},
        ("5 of 8", "gpu-07"),
    ),
    "maintenance.warn": (Action.NOTICE, Reason("", 1800.0, None, "s", UNTIL, "save-maintenance"), {}, ("02:01:01",)),
    "maintenance.end": (Action.EVICT, Reason("", None, None, "", UNTIL, "resubmit-maintenance"), {}, ("02:01:01",)),
    "reclaim.warn": (Action.WARN, OWED, {}, ("5 are in use", "of 8 GPUs", "02:01:01")),
    "reclaim.grace": (Action.GRACE, OWED, {"other": "s-77"}, ("s-77", "5 are in use", "02:01:01")),
    "reclaim.reserve": (Action.GRACE, OWED, {}, ("reserved", "of 8 GPUs", "02:01:01")),
    "reclaim.evict": (Action.EVICT, OWED._replace(until_ms=None), {"other": "s-77"}, ("s-77", "of 8 GPUs")),
    "order.arrival": (Action.START, Reason(""), {"allocation": SPOT}, ("gpu-07", "3, 5")),
    "order.duration": (Action.START, Reason(""), {"allocation": SPOT}, ("gpu-07", "3, 5")),
    "limit.model": (Action.REJECT, Reason("", change="other-model"), {}, ("model",)),
    "limit.queued-per-user": (Action.REJECT, Reason("", 7.0, 5.0, "sessions", change="fewer-waiting"), {}, ("7", "5")),
    "limit.gpus-per-user": (Action.REJECT, Reason("", 6.0, 4.0, "gpu", change="end-another"), {}, ("6", "4")),
    "limit.gpus-per-group": (Action.REJECT, Reason("", 19.0, 17.0, "gpu", change="others-of-group"), {}, ("19", "17")),
    "lifetime.warn": (Action.NOTICE, Reason("", 8.51, 9.01, "h", UNTIL, "save-now"), {}, ("8.51", "9.01")),
    "lifetime.end": (Action.EVICT, Reason("", 9.01, 9.01, "h", change="resubmit-lifetime"), {}, ("9.01",)),
    "idle.warn": (Action.NOTICE, Reason("", 121.0, 120.0, "min", UNTIL, "use-or-extend"), {}, ("121",)),
    "idle.end": (Action.EVICT, Reason("", 183.0, 181.0, "min", change="resubmit-idle"), {}, ("183", "181")),
    "never-fits": (Action.REJECT, Reason("", 99.0, 64.0, "gpu", change="ask-for-less"), {}, ("99", "64")),
    "host.lost": (Action.LOSE, Reason("", change="resubmit"), {}, ("lost",)),
    "ladder.notice": (
        Action.NOTICE,
        Reason("", 6.5012, 6.4951, "gpu_h", UNTIL, "pause-or-finish", (("cap_gpu_h", 8.6601),)),
        {},
        ("6.50", "8.66", "day 1 02:01:01"),
    ),
    "ladder.warn": (Action.WARN, WARNED, {}, (*USED, "7 GPUs", "13 sessions", "day 1 02:01:01")),
    "ladder.rotate-warn": (Action.WARN, OVER, {}, ("11.90", "3.24 more", "day 1 02:01:01")),
    "ladder.throttle": (Action.THROTTLE, OVER, {"granted_m": 375}, (*USED, "37.5 %", "day 1 02:01:01")),
    "ladder.grace": (Action.GRACE, OVER, {"other": "s-77"}, (*USED, "s-77", "day 1 02:01:01")),
    "ladder.headroom": (Action.GRACE, OVER, {}, (*USED, "headroom", "day 1 02:01:01")),
    "ladder.rotate": (Action.GRACE, OVER, {"other": "s-77"}, ("11.90", "3.24 more", "s-77", "day 1 02:01:01")),
    "ladder.evict": (Action.EVICT, OVER._replace(change="resubmit"), {"other": "s-77"}, (*USED, "s-77", "02:01:01")),
    "ladder.evict-rotate": (
        Action.EVICT,
        OVER._replace(change="resubmit"),
        {"other": "s-77"},
        ("11.90", "3.24 more", "s-77", "02:01:01"),
    ),
    "ladder.evict-headroom": (Action.EVICT, OVER._replace(change="resubmit"), {}, (*USED, "headroom", "02:01:01")),
    "use.RULE": (
        Action.NOTICE,
        Reason("", 11.0, 10.0, "min", UNTIL, "use-stop", (("next", 4.0), ("for_h", 24.0)), "A title. Words."),
        {},
        ("11 min", "for 24 h", "day 1 02:01:01", "A title. Words."),
    ),
    "order.nomination-over": (Action.WITHDRAW, Reason("", 321.0, None, "s"), {}, ("old place",)),
    "ladder.withdraw": (Action.WITHDRAW, OVER._replace(change=""), {}, ("may stay",)),
    "ladder.recover": (Action.RECOVER, OVER._replace(change=""), {"granted_m": 500}, ("one step back",)),
}


def by_hand(rule: str) -> Decision:
    action, reason, more, _ = BY_HAND[rule]
    made = Decision(T, action, "s-42", "ann", reason._replace(rule=rule), Ladder.OK)
    return made._replace(**more)  # type: ignore[arg-type]


@pytest.mark.parametrize("rule", RULES)
def test_a_sentence_says_when_who_and_the_numbers(rule: str) -> None:
    """Time, session, user, every figure that belongs to the rule, and what would change it."""
    assert rule in BY_HAND, "a new rule: give it a decision by hand"
    decision = by_hand(rule)
    text = sentence(decision)
    assert text.startswith("day 1 01:01:01  s-42 of ann: ")
    for figure in BY_HAND[rule][3]:
        assert figure in text
    if decision.reason.change:
        assert text.endswith(CHANGES[decision.reason.change])
    assert rule not in text
    for slip in ("None", "nan", "  of", "{", "Action."):
        assert slip not in text


def test_an_unknown_rule_is_still_told() -> None:
    """A rule without a text gives its name and action instead of failing."""
    assert "start (order.guarantee)" in sentence(by_hand("order.arrival")._replace(reason=Reason("order.guarantee")))


def test_use_below_the_cap_is_told_as_such() -> None:
    """Not 'past' by a negative number."""
    text = sentence(by_hand("ladder.grace")._replace(reason=OVER._replace(rule="ladder.grace", value=8.0)))
    assert "8.00 GPU-h used, 0.66 below the credit cap of 8.66" in text


def test_one_of_a_thing_is_singular() -> None:
    """'1 GPU', '1 session'."""
    numbers = (("deficit_gpus", 1.0), ("waiting", 1.0))
    text = sentence(by_hand("ladder.warn")._replace(reason=WARNED._replace(rule="ladder.warn", numbers=numbers)))
    assert "1 GPU " in text
    assert "1 session " in text


def test_many_gpus_are_counted_instead_of_listed() -> None:
    """Four numbers, then how many more; several hosts one after another."""
    wide = Allocation((("a", tuple(range(8))), ("b", (0, 1))), 1000, 0)
    text = sentence(by_hand("order.arrival")._replace(allocation=wide))
    assert "a GPU 0, 1, 2, 3 and 4 more; b GPU 0, 1" in text


@pytest.mark.parametrize(
    ("at_ms", "text"),
    [(0, "day 0 00:00:00"), (86_399_999, "day 0 23:59:59"), (86_400_000, "day 1 00:00:00"), (T, "day 1 01:01:01")],
)
def test_virtual_time_is_shown_as_day_and_time_of_day(at_ms: int, text: str) -> None:
    """To the second, rounded down; days count from 0."""
    assert day_clock(at_ms) == text


def test_another_clock_shows_every_time() -> None:
    """Both the instant of the decision and its deadline go through the clock given."""
    text = sentence(by_hand("ladder.warn"), lambda at_ms: f"<{at_ms}>")
    assert f"<{T}>" in text
    assert f"<{UNTIL}>" in text


# -- from a real run -----------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def decisions_of_two_days() -> tuple[Decision, ...]:
    """The scenario `overload` for two days on its 64 GPUs, by the default policy."""
    params: Params = read_policy("research-first")
    workload = load_scenario("overload", seed=1, days=2.0)
    core = Core(make_policy(dataclasses.replace(params)), workload.start_ms)
    for host in pool(workload.gpus):
        core.apply(host)
    return tuple(decision for batch in Simulation(core, workload).run() for decision in batch.decisions)


def test_a_real_run_names_rules_that_have_sentences_with_numbers() -> None:
    """Each decision of two overloaded days: a known rule, and its figures, to two decimals, in its sentence."""
    decisions = decisions_of_two_days()
    assert len(decisions) > 500
    assert {d.reason.rule for d in decisions} <= set(RULES)
    assert {"order.in-credit", "ladder.notice", "ladder.warn", "ladder.grace"} <= {d.reason.rule for d in decisions}
    shown = ("ladder.warn", "ladder.grace", "ladder.headroom", "ladder.evict", "order.in-credit")
    for decision in decisions:
        text = sentence(decision)
        reason = decision.reason
        assert text.startswith(f"{day_clock(decision.at_ms)}  {decision.session} of {decision.user}: ")
        assert "None" not in text
        if reason.rule in shown:
            assert reason.value is not None
            assert reason.threshold is not None
            assert f"{reason.value:.2f}" in text
            assert f"{reason.threshold:.2f}" in text
        if reason.until_ms is not None:
            assert day_clock(reason.until_ms) in text
        if decision.other is not None:
            assert decision.other in text


@pytest.mark.parametrize("rule", sorted(set(CODE_OF) - {"limit.model", "limit.queued-per-user"}))
def test_what_blocks_is_said_with_its_numbers(rule: str) -> None:
    """Every limit that keeps sessions waiting says what was measured, what is allowed and until when."""
    words = block_words(Block(rule, 31.25, 30.5, "gpu_h", UNTIL), day_clock)
    assert day_clock(UNTIL) in words
    assert rule == "limit.restricted" or ("31.2" in words and "30.5" in words)
