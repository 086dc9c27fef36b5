"""Rules of acceptable use as data: what a command line must be like, and every mistake in a policy file at once."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.acceptable_use import LONGEST_ARGUMENT, MOST_ARGUMENTS, Match, compiled, matches, seen
from policies.param_file import ParamError, PolicyError
from policies.params import Params, load
from policies.rule_words import rule_parts

RULE = """
[[rule]]
id = "dfl-train"
title = "DeepFaceLab training"
category = "deepfake"
tiers = ["free"]
signal = "structure"
message = "This tier may not train it."
steps = [
    {action = "observe"},
    {action = "warn", after_s = 60},
    {action = "throttle", after_s = 120},
    {action = "evict", after_s = 300, confirm = "second-signal"},
    {action = "restrict", after_s = 600, for_s = 86400},
]
allow = [{user = "u-1", until = 2027-01-01}, {group = "lab-a"}]
positive = ["python main.py train --training-data-src-dir a --model-dir b"]
negative = ["git clone https://example.org/DeepFaceLab", "python main.py merge --training-data-src-dir a --model-dir b"]
[rule.match]
words = ["train"]
any_flags = ["--training-data-src-dir", "--training-data-dst-dir", "--model-dir"]
min_flags = 2
"""


def params(text: str) -> Params:
    """A policy from the text of its file."""
    return load(text, "site.toml")


def mistakes(text: str) -> dict[str, ParamError]:
    """Every mistake in a file, by key."""
    with pytest.raises(PolicyError) as caught:
        params(text)
    return {error.key: error for error in caught.value.errors}


def changed(old: str, new: str) -> dict[str, ParamError]:
    """The mistakes that one change of the rule makes."""
    assert old in RULE
    return mistakes(RULE.replace(old, new, 1))


# ---- what a command line must be like

MINER = Match(programs=("xmrig",))
IN_FOLDER = Match(paths=("deepfacelab[^ ]*/main.py",), words=("train",))
POOL = Match(begins=("stratum+tcp://",))


@pytest.mark.parametrize(
    ("match", "command", "expected"),
    [
        (MINER, "xmrig -o pool.example.org:3333", True),
        (MINER, "/opt/tools/XMRig.exe --donate-level 1", True),
        (MINER, "bash ./xmrig", True),
        (MINER, "python -X dev -u /srv/u/xmrig --x", True),
        (MINER, "grep xmrig log", False),
        (MINER, "mkdir xmrig", False),
        (MINER, "python train.py --out xmrig", False),
        (MINER, "python -c xmrig", False),
        (MINER, "xmrig-notes", False),
        (MINER, "", False),
        (IN_FOLDER, "python /srv/u/DeepFaceLab_Linux/main.py train", True),
        (IN_FOLDER, "python3.11 C:\\DeepFaceLab\\main.py train", False),  # the shell eats the backslashes
        (IN_FOLDER, "python3.11 'C:\\DeepFaceLab\\main.py' train", True),
        (IN_FOLDER, "python /srv/u/my-deepfacelab/main.py train", False),
        (IN_FOLDER, "python /srv/u/deepfacelab/main.py.old train", False),
        (IN_FOLDER, "python /srv/u/deepfacelab/sub/main.py train", False),
        (IN_FOLDER, "git clone https://example.org/DeepFaceLab/main.py train", False),
        (POOL, "anything -o stratum+tcp://pool:3333", True),
        (POOL, "anything --url=STRATUM+tcp://pool:3333", True),
        (POOL, "grep stratum+tcp:// log", False),
        (Match(any_flags=("-a", "-b"), min_flags=2), "x -a 1 -b=2", True),
        (Match(any_flags=("-a", "-b"), min_flags=2), "x -a 1 -a 2", False),
        (Match(any_flags=("-A",)), "x -a", False),
        (Match(all_flags=("--data-src", "--data-dst")), "x --data-src 1", False),
        (Match(argument_paths=("data_src/aligned",)), "x --faces=/w/data_src/aligned/", True),
        (Match(argument_paths=("data_src/aligned",)), "x --faces /w/data_src/aligned2", False),
        (Match(programs=("facefusion",)), "python -m tools.facefusion run", True),
    ],
)  # fmt: skip
def test_what_a_command_line_must_be_like(match: Match, command: str, expected: bool) -> None:
    """Programs go by what runs, patterns fit whole names of a path, options are exact, file tools match nothing."""
    assert matches(match, command) is expected


def test_only_rules_that_match_are_seen() -> None:
    """In the order of the policy; what follows the first arguments is not looked at."""
    rules = params(RULE).rules
    argv = ["python", "main.py", "train", "--model-dir", "m", "--training-data-src-dir", "s"]
    assert seen(rules, argv) == ["dfl-train"]
    assert seen(rules, [*argv[:3], *["x"] * MOST_ARGUMENTS, *argv[3:]]) == []
    assert seen(rules, []) == []


@given(st.lists(st.text(max_size=40), max_size=12))
def test_any_command_line_has_an_answer(argv: list[str]) -> None:
    """Whatever users run, the matcher answers, and twice the same."""
    rules = params(RULE).rules
    assert seen(rules, argv) == seen(rules, list(argv))


def test_matching_stays_fast_on_hostile_command_lines() -> None:
    """The worst pattern that is allowed, against long arguments made to make it try again and again."""
    match = Match(argument_paths=("[^b]*a[^b]*c",), any_flags=("-x",))
    argv = ["run", "-x", *["/".join(["a" * 250] * 16)[:LONGEST_ARGUMENT]] * (MOST_ARGUMENTS - 2)]
    rule = params(RULE).rules[0]
    began = time.perf_counter()
    assert not seen([type(rule)(**{**_members(rule), "match": match})], argv)
    assert time.perf_counter() - began < 10


def _members(rule: object) -> dict[str, object]:
    return {name: getattr(rule, name) for name in rule.__dataclass_fields__}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "pattern",
    ["", "(a+)+b", "a**", "(?=a)", "a{2,}", "(a|b)*c", "^a", "a$", "a//b", "/a", "[", "(", r"a\d", r"(a)\1", "a" * 121,
     "a*b*c*"],
)  # fmt: skip
def test_patterns_that_could_be_slow_or_mean_something_else_are_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        compiled(pattern)


@pytest.mark.parametrize("pattern", ["deepfacelab.*", "a/b", "(sae|amp)", "lol-?miner", r"a\.py", "[0-9]+x[ab]*"])
def test_plain_patterns_are_taken(pattern: str) -> None:
    assert compiled(pattern)


# ---- the file


def test_a_policy_with_rules_says_the_same_when_it_is_written_again() -> None:
    """Round trip, with every key of a rule in use."""
    once = params(RULE)
    again = load(once.to_toml(), "again.toml")
    assert again == once
    (rule,) = once.rules
    assert [step.action for step in rule.steps] == ["observe", "warn", "throttle", "evict", "restrict"]
    assert rule.steps[-1].for_ms == 86_400_000
    assert [entry.until for entry in rule.allow] == ["2027-01-01", None]


CASES = [
    ('id = "dfl-train"', 'id = "Bad Id"', "rule.0.id"),
    ('title = "DeepFaceLab training"', "title = 3", "rule.0.title"),
    ('category = "deepfake"', "", "rule.0.category"),
    ('tiers = ["free"]', "tiers = []", "rule.0.tiers"),
    ('signal = "structure"', 'signal = "smell"', "rule.0.signal"),
    ("min_flags = 2", "min_flags = 4", "rule.0.match.min_flags"),
    ('words = ["train"]', 'words = ["train"]\npath = ["x"]', "rule.0.match.path"),
    ('words = ["train"]', 'paths = ["(a+)+"]', "rule.0.match.paths"),
    ('"--model-dir"]', '"model-dir"]', "rule.0.match.any_flags"),
    ('{action = "observe"}', '{action = "look"}', "rule.0.steps.0.action"),
    ("after_s = 60", "after_s = -1", "rule.0.steps.1.after_s"),
    ("after_s = 60", "after = 60", "rule.0.steps.1.after"),
    ("after_s = 120", "after_s = 30", "rule.0.steps.2.after_s"),
    ('action = "throttle"', 'action = "observe"', "rule.0.steps.2.action"),
    (', confirm = "second-signal"', "", "rule.0.steps.3.confirm"),
    (', confirm = "second-signal"', ', confirm = "no"', "rule.0.steps.3.confirm"),
    (", for_s = 86400", "", "rule.0.steps.4.for_s"),
    (", for_s = 86400", ", for_s = 0", "rule.0.steps.4.for_s"),
    ("after_s = 60", "after_s = 60, for_s = 5", "rule.0.steps.1.for_s"),
    ('user = "u-1", until = 2027-01-01', 'user = "u-1", group = "g"', "rule.0.allow.0"),
    ("until = 2027-01-01", 'until = "soon"', "rule.0.allow.0.until"),
    ('positive = ["python main.py train', 'positive = ["python main.py merge', "rule.0.positive.0"),
    ("main.py merge", "main.py train", "rule.0.negative.1"),
    ("git clone https", "'git clone https", "rule.0.negative.0"),
    ("[[rule]]", "[rule]", "rule"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "key"), CASES, ids=[f"{key}-{number}" for number, (*_, key) in enumerate(CASES)]
)
def test_each_mistake_is_told_with_its_place(old: str, new: str, key: str) -> None:
    """One change of a rule that is right, one mistake, at its own line."""
    found = changed(old, new)
    assert list(found) == [key]
    text = RULE.replace(old, new, 1)
    line = text.splitlines()[found[key].line - 1]
    assert line == "[[rule]]" or found[key].line > 2 or key == "rule"


def test_every_mistake_at_once() -> None:
    """Two rules of one name, no negative examples, and steps that are not there."""
    text = RULE.replace("negative =", "negatives =", 1) + RULE.replace('{action = "observe"},', '{actions = "x"},', 1)
    keys = mistakes(text)
    assert list(keys) == [
        "rule.0.negative",
        "rule.0.negatives",
        "rule.1.id",
        "rule.1.steps.0.action",
        "rule.1.steps.0.actions",
    ]
    assert "did you mean negative?" in keys["rule.0.negatives"].allowed


def test_a_match_by_words_alone_is_refused() -> None:
    """An argument that is called `train` says nothing by itself."""
    text = RULE.partition("any_flags =")[0]
    assert "rule.0.match" in mistakes(text)


def test_plain_orders_have_no_rules() -> None:
    assert list(mistakes('policy = "fifo"\n' + RULE)) == ["rule"]


def test_rules_in_words() -> None:
    """What `policy show` and `policy diff` say."""
    parts = rule_parts(params(RULE).rules[0])
    assert parts[""][0] == (
        "record it at once; after 1 min warn; after 2 min throttle on a shared GPU; after 5 min end the session given "
        "a second, independent signal; after 10 min let nothing new of the user start for 24 h"
    )
    assert parts["allow"][0] == "user u-1 until 2027-01-01, group lab-a"
    assert "with at least 2 of the options" in parts["match"][0]


@settings(max_examples=30)
@given(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=30), st.text(st.characters(exclude_categories=["Cs"]))
)
def test_any_text_survives_the_round_trip(message: str, title: str) -> None:
    """A message is printed as it is, so what could not be printed is refused."""
    text = RULE.replace("This tier may not train it.", "MESSAGE").replace("DeepFaceLab training", "TITLE")
    quoted = text.replace('"MESSAGE"', _quoted(message)).replace('"TITLE"', _quoted(title))
    if not all(text and text.isprintable() for text in (message, title)):
        assert mistakes(quoted).keys() <= {"rule.0.message", "rule.0.title"}
        return
    once = params(quoted)
    assert load(once.to_toml(), "again.toml").rules == once.rules
    assert (once.rules[0].message, once.rules[0].title) == (message, title)


def _quoted(text: str) -> str:
    return '"' + "".join(f"\\U{ord(letter):08x}" for letter in text) + '"'
