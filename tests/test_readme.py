"""The README tells the truth: its blocks of output are what the commands print, and its commands work.

`UPDATE_README=1 pytest tests/test_readme.py` writes the blocks anew, but for that of the demo: no two demos are alike,
so it shows one that was real, shortened, and what must be in every demo is checked in both.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
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
TIME = r"^ *\d+\.\d s  s-\d+ of \w+: "
DEMO = {
    "ready": r"^ready: 2 emulated hosts of 2 GPUs",
    "a request": TIME + r"asks for ",
    "a start": TIME + r"starts on gpu-0\d GPU \d: first in order",
    "a warning": TIME + r"has to give way from ",
    "a throttle": TIME + r"is granted [\d.]+ % of a GPU",
    "a grace": TIME + r"is asked to save and gives way for s-\d+",
    "an eviction": TIME + r"gives way for s-\d+: [\d.]+ GPU-h used",
    "a waiter's start": TIME + r"starts on .*: the GPUs were freed for it",
    "the table": r"^session +user +gpus +waited_s +ran_s +outcome$",
    "somebody evicted": r"^s-\d+ +\w+ +gpu-0\d .* evicted$",
    "a measured throttle": r"^s-\d+ was granted [\d.]+% of its GPU and got [\d.]+%$",
    "the ledger": r"^ledger: at most \d+\.\d+ GPU-seconds from what the sessions really computed$",
    "nothing left": r"^left over: 0 processes, 0 cgroups, 0 sockets$",
    "the journal": r"^run its decisions again: fairtier simulate replay (\S+\.jsonl)$",
}
"""What a demo shows, by what it is: a pattern of one of its lines."""


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


def check_demo(text: str) -> list[str]:
    """What is missing in the output of a demo."""
    return [what for what, pattern in DEMO.items() if not re.search(pattern, text, re.MULTILINE)]


@pytest.mark.slow
def test_the_first_command_shows_what_the_readme_shows() -> None:
    """`fairtier demo` ends with exit code 0, has every step of the ladder, and leaves nothing."""
    command = re.search(r"```sh\n(.*?)```", README.read_text(), re.DOTALL)
    assert command is not None
    assert command[1].rstrip().endswith("&& .venv/bin/fairtier demo")
    code = "from fairtier.cli import main; main(['demo'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=150)
    journal = re.search(DEMO["the journal"], done.stdout, re.MULTILINE)
    if journal is not None:
        shutil.rmtree(Path(journal[1]).parent)
    assert done.returncode == 0, done.stderr
    assert check_demo(done.stdout) == []


def test_the_demo_of_the_readme_has_what_every_demo_has() -> None:
    assert check_demo(block("demo")) == []


@pytest.mark.parametrize("what", DEMO)
def test_a_demo_without_one_of_them_is_found_out(what: str) -> None:
    """Planted faults: each line of the sample is needed for what it shows."""
    kept = [line for line in block("demo").splitlines() if not re.search(DEMO[what], line)]
    assert what in check_demo("\n".join(kept))


@pytest.mark.slow
def test_the_commands_of_an_instance_work(tmp_path: Path) -> None:
    """Those under "An instance", one after another; the first goes on until the last ends it."""
    found = re.search(r"^## An instance$.*?```sh\n(.*?)```", README.read_text(), re.DOTALL | re.MULTILINE)
    assert found is not None
    first, *others = [shlex.split(line, comments=True) for line in found[1].splitlines()]
    assert first[-1] == "&"
    environment = os.environ | {"FAIRTIER_STATE": str(tmp_path / "s")}
    python = [sys.executable, "-m"]
    up = subprocess.Popen([*python, *first[:-1]], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert up.stdout is not None
        assert up.stdout.readline().startswith("ready ")
        for command in others:
            done = subprocess.run([*python, *command], capture_output=True, text=True, env=environment, check=False)
            assert done.returncode == 0, (command, done.stderr)
        assert others[-1] == ["fairtier", "down"]
        assert up.wait(10) == 0
    finally:
        up.terminate()
        up.communicate()


def test_the_simulation_prints_what_the_readme_shows() -> None:
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
    """The eviction shown in words and as JSON is one that the `overload` week really has."""
    decision = example()
    compare("decision", sentence(decision) + "\n")
    compare("decision-json", decision_line(decision) + "\n")
    assert json.loads(block("decision-json"))["action"] == "evict"


@pytest.mark.parametrize("name", ["demo", "run", "check", "decision", "decision-json"])
def test_every_block_is_filled(name: str) -> None:
    """No block of the README is empty."""
    assert block(name).strip()
