"""How soon the command answers: `fairtier --help`, whole process, best of many; the interpreter alone beside it."""

from __future__ import annotations

import subprocess
import sys
import time

from benchmarks.figure import Figure

RUNS = 10


def measure() -> list[Figure]:
    """All figures."""
    code = "from fairtier.cli import main; main(['--help'])"
    return [
        Figure(figure="fairtier --help", value=_best(["-c", code]), unit="s", bound=0.3, at_most=True),
        Figure(figure="the interpreter alone", value=_best(["-c", "pass"]), unit="s"),
    ]


def _best(arguments: list[str]) -> float:
    return min(_seconds(arguments) for _ in range(RUNS))


def _seconds(arguments: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began
