"""The README tells the truth: its blocks of output are what the commands print.

`UPDATE_README=1 pytest tests/test_readme.py` writes the blocks anew.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from policies.explain import sentence
from scheduler.journal import decision_line
from tests.readme_example import example

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
SPEED = re.compile(r"^took .*$", re.MULTILINE)


def block(name: str) -> str:
    """The text between a block's fences."""
    found = re.search(rf"<!-- output:{name} -->\n```\w*\n(.*?)```\n<!-- /output -->", README.read_text(), re.DOTALL)
    assert found is not None, f"README has no block {name}"
    return found[1]


def compare(name: str, text: str, *, ignore: re.Pattern[str] | None = None) -> None:
    """The block is this text, apart from lines that `ignore` matches; with UPDATE_README it becomes this text."""
    if os.environ.get("UPDATE_README"):
        old = README.read_text()
        new = re.sub(
            rf"(<!-- output:{name} -->\n```\w*\n).*?(```\n<!-- /output -->)",
            lambda match: match[1] + text + match[2],
            old,
            flags=re.DOTALL,
        )
        README.write_text(new)
    shown, real = block(name), text
    if ignore is not None:
        shown, real = ignore.sub("", shown), ignore.sub("", real)
    assert shown == real


def test_the_first_command_prints_what_the_readme_shows() -> None:
    """`fairtier simulate run busy`: the same seed, the same summary, the same digest; only the speed differs."""
    code = "from fairtier.cli import main; main(['simulate', 'run', 'busy'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "fairtier simulate run busy" in README.read_text()
    compare("run", done.stdout, ignore=SPEED)


def test_the_second_command_runs_the_steps_the_readme_shows() -> None:
    """`python3 check.py` has exactly the steps that the README lists (the test run itself is one of them)."""
    steps = re.findall(r'^    run\("(\w+)"', (ROOT / "check.py").read_text(), re.MULTILINE)
    shown = re.findall(r"^== (\w+): ok", block("check"), re.MULTILINE)
    assert shown == steps


def test_a_decision_reads_as_the_readme_says() -> None:
    """The eviction shown in words and as JSON is one that the `busy` week really has."""
    decision = example()
    compare("decision", sentence(decision) + "\n")
    compare("decision-json", decision_line(decision) + "\n")
    assert json.loads(block("decision-json"))["action"] == "evict"


@pytest.mark.parametrize("name", ["run", "check", "decision", "decision-json"])
def test_every_block_is_filled(name: str) -> None:
    """No block of the README is empty."""
    assert block(name).strip()
