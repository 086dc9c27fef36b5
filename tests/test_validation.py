"""The tables of docs/validation.md are those that the tests themselves give."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.invariants_table import INVARIANTS, PAGE, Found, Shown, unproven, written


def collected() -> str:
    """What the command prints; in a process of its own, since it collects tests."""
    command = [sys.executable, "-m", "tests.invariants_table"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=PAGE.parents[1])
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_tables_are_up_to_date() -> None:
    """`python -m tests.invariants_table --write` writes them anew; each invariant has a test and a planted fault."""
    page = PAGE.read_text(encoding="utf-8")
    assert written(page, collected()) == page


def everything() -> Found:
    found = Found()
    test = Shown("tests/x.py", "test_x", None, slow=False, cases=1)
    for rule in INVARIANTS:
        found.shown[rule] = {"x": test}
        found.planted[rule] = {"fault": None}
    return found


@pytest.mark.parametrize(("part", "wrong"), [("shown", "no test shows I7"), ("planted", "no fault is planted for I7")])
def test_what_nothing_shows_is_found_out(part: str, wrong: str) -> None:
    """Planted faults: an invariant without a test, one without a fault, and a mark with an unknown name."""
    found = everything()
    assert unproven(found) == []
    del getattr(found, part)["I7"]
    assert unproven(found) == [wrong]
    getattr(found, part)["I77"] = {}
    assert "I77 is unknown" in unproven(found)
