"""What `fairtier` imports before it knows what to do: nothing heavy, so that help and completion feel instant."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

HEAVY = (
    "asyncio",
    "fairtier.policy_cli",
    "hypothesis",
    "policies.catalogue",
    "policies.decide",
    "policies.shares",
    "pytest",
    "rich",
    "scheduler.core",
    "scheduler.journal",
    "scheduler.output",
    "simulations",
    "sortedcontainers",
    "sqlalchemy",
    "sqlite3",
)
CORE = ("rich", "hypothesis", "policies.decide", "scheduler.core", "simulations.loop", "simulations.run")


def imported(*arguments: str) -> set[str]:
    """Every module that a command loads, from `python -X importtime`."""
    code = "from fairtier.cli import main; main(prog_name='fairtier')"
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code, *arguments], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}


def loaded_of(heavy: tuple[str, ...], modules: set[str]) -> set[str]:
    return {name for name in modules for wanted in heavy if name == wanted or name.startswith(f"{wanted}.")}


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["completion", "bash"]])
def test_the_command_itself_imports_nothing_heavy(arguments: list[str]) -> None:
    """Commands are imported when they are called, libraries when they are needed."""
    modules = imported(*arguments)
    assert "fairtier.cli" in modules
    assert loaded_of(HEAVY, modules) == set()


@pytest.mark.parametrize(
    "arguments", [["policy", "--help"], ["simulate", "--help"], ["simulate", "run", "--help"], ["policy", "presets"]]
)
def test_help_of_a_command_does_not_import_the_core(arguments: list[str]) -> None:
    """The help lists scenarios and policies from their files alone."""
    modules = imported(*arguments)
    assert loaded_of(CORE, modules) == set()


def test_the_probe_sees_what_is_imported() -> None:
    """A run does import the core: the tests above can fail."""
    assert {"policies.decide", "scheduler.core", "simulations.run"} <= imported(
        "simulate", "run", "busy", "--days", ".01"
    )
