"""Which test shows which invariant: `python -m tests.invariants_table` prints the tables of docs/validation.md.

Collected from the tests themselves: `@pytest.mark.shows(INVARIANT, ..., examples=(on every change, in CI))` on a test,
`@pytest.mark.plants(INVARIANT, FAULT)` on one that plants a fault, and the parameters `rule` and `fault` of those that
plant many. `--write` brings the page up to date.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "validation.md"

INVARIANTS = {
    "I1": "The order of users with nothing running does not change while time passes.",
    "I2": "What is charged does not depend on sampling, splitting or merging.",
    "I3": "More past use never improves a place.",
    "I4": "Groups are compared before users; ties are ties; the order of the input does not matter.",
    "I5": "Nobody is evicted but for a waiter that then runs, or to refill the headroom, never past what it lacks.",
    "I6": "A warning runs its full time, a grace too or until acknowledged; nobody goes before the minimum run.",
    "I7": "Evictions on one exclusive GPU are a minimum run and a grace apart; no two swap within the swap period.",
    "I8": "No GPU idles for more than a cycle beside a waiter that may have it.",
    "I9": "By rotation, the j-th fresh waiter for G GPUs waits at most ceil(j / G) turns.",
    "I10": "Splitting one unverified user into many leaves its group's GPU-hours as they were.",
    "I11": "Stale or unknown telemetry never escalates anything.",
    "I12": "A replay equals the live decisions byte for byte.",
    "I13": "What `why` suggests flips the decision.",
    "I14": "A timer is strictly later than the instant that sets it.",
    "order": "Whoever starts is the one that must start next, found by comparing all that wait.",
    "band": "Of any four consecutive starts at most one is the bounded-wait band's.",
    "reservations": "What is free is kept for one wide session at a time that has waited and may have it.",
    "who gives way": "Only those give way who may, by the classes of victim and waiter.",
    "contention": "Without contention nothing goes beyond a notice; warnings stay within 3 x deficit + 2.",
    "no wake missed": "Nothing is decided at an instant that the core had not asked for, unless something happened.",
    "no GPU double-booked": "No GPU carries more than itself.",
    "conservation": "What is free, set aside and held adds up to the machine.",
    "no deadlock": "While anybody who waits fits on what is free, somebody starts; every session ends in the end.",
}
"""What each says, in the order of the table."""

OPEN = {"I10": "not met: measured by `python -m benchmarks split`, see below"}

NUMBER = re.compile(r"test_(t\d+)(?:_|$)")


class Shown(NamedTuple):
    """One test function: where, how many examples (on every change, in CI), and its number of cases."""

    file: str
    name: str
    examples: tuple[int, int] | None
    slow: bool
    cases: int


class Found:
    """A pytest plug-in that keeps what the tests say of themselves."""

    def __init__(self) -> None:
        self.shown: dict[str, dict[str, Shown]] = {}
        self.planted: dict[str, dict[str, None]] = {}
        self.numbers: dict[str, dict[str, Shown]] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Look at every test that was collected."""
        for item in items:
            assert isinstance(item, pytest.Function)
            for mark in item.iter_markers("shows"):
                for rule in mark.args:
                    _add(self.shown.setdefault(rule, {}), item, mark.kwargs.get("examples"))
            for rule, fault in _faults(item):
                self.planted.setdefault(rule, {})[fault] = None
            number = NUMBER.match(item.originalname)
            if number is not None:
                _add(self.numbers.setdefault(number[1].upper(), {}), item, None)


def _add(tests: dict[str, Shown], item: pytest.Function, examples: tuple[int, int] | None) -> None:
    file = item.path.relative_to(ROOT).as_posix()
    key = f"{file} {item.originalname}"
    known = tests.get(key)
    cases = 1 if known is None else known.cases + 1
    tests[key] = Shown(file, item.originalname, examples, item.get_closest_marker("slow") is not None, cases)


def _faults(item: pytest.Function) -> Iterator[tuple[str, str]]:
    for mark in item.iter_markers("plants"):
        yield mark.args[0], mark.args[1]
    params = item.callspec.params if hasattr(item, "callspec") else {}
    if "rule" in params and "fault" in params and not list(item.iter_markers("shows")):
        fault = params["fault"]
        yield str(params["rule"]), fault if isinstance(fault, str) else fault.__name__.replace("_", " ")


def collect() -> Found:
    """What all tests of policies and the core say."""
    found = Found()
    folders = [str(ROOT / "tests" / name) for name in ("policies", "scheduler")]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        code = pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", *folders], plugins=[found])
    if code != pytest.ExitCode.OK:
        raise RuntimeError(f"the tests cannot be collected:\n{said.getvalue()}")
    return found


def unproven(found: Found) -> list[str]:
    """What the tables would be silent about."""
    wrong = [f"{rule} is unknown" for rule in {*found.shown, *found.planted} - INVARIANTS.keys()]
    for rule in INVARIANTS.keys() - OPEN.keys():
        wrong += [f"no test shows {rule}"] if rule not in found.shown else []
        wrong += [f"no fault is planted for {rule}"] if rule not in found.planted else []
    return sorted(wrong)


def tables(found: Found) -> str:
    """Both tables, in Markdown."""
    lines = ["| Invariant | It says | Shown by | Random examples: every change / CI | Planted faults that it reports |"]
    lines += ["|---|---|---|---|---|"]
    for rule, says in INVARIANTS.items():
        tests = list(found.shown.get(rule, {}).values())
        shown = "<br>".join(_link(test) for test in tests) or OPEN.get(rule, "")
        examples = "<br>".join(_examples(test) for test in tests)
        lines.append(f"| {rule} | {says} | {shown} | {examples} | {'; '.join(found.planted.get(rule, {}))} |")
    lines += ["", "| Number | Shown by |", "|---|---|"]
    for number in sorted(found.numbers, key=lambda name: int(name[1:])):
        lines.append(f"| {number} | {'<br>'.join(_link(test) for test in found.numbers[number].values())} |")
    return "\n".join(lines) + "\n"


def _link(test: Shown) -> str:
    return f"[`{test.name}`](../{test.file})"


def _examples(test: Shown) -> str:
    if test.examples is None:
        return "no random ones" if test.cases == 1 else f"{test.cases} cases"
    quick, often = test.examples
    many = f"{test.cases} x " if test.cases > 1 else ""
    return f"{many}{often:,}, slow suite" if test.slow else f"{many}{quick:,} / {many}{often:,}"


def written(page: str, text: str) -> str:
    """The page with these tables between its marks."""
    marks = re.compile(r"(<!-- tables -->\n).*?(<!-- /tables -->\n)", re.DOTALL)
    return marks.sub(lambda match: match[1] + text + match[2], page)


def main() -> int:
    """Print the tables, or write them."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.invariants_table", description="Tables of docs/validation.md"
    )
    parser.add_argument("--write", action="store_true", help="write them into docs/validation.md")
    options = parser.parse_args()
    found = collect()
    if options.write:
        PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), tables(found)), encoding="utf-8")
    else:
        print(tables(found), end="")
    for problem in unproven(found):
        print(problem, file=sys.stderr)
    return 1 if unproven(found) else 0


if __name__ == "__main__":
    sys.exit(main())
