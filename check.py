"""The one command: format, lint, types, layers and tests, from a bare Python.

    python3 check.py           everything a change must pass (at most 8 minutes)
    python3 check.py --slow    the slower suites and the benchmarks
    python3 check.py --fix     let ruff format and mend first

It makes `.venv` beside this file when there is none, installs the project with its development tools, and stops at
the first step that fails. Needs Python 3.11 to 3.13 and nothing else.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
BIN = ROOT / ".venv" / "bin"


def run(title: str, *command: str, must: bool = True) -> None:
    """Run one step, say how long it took, leave with its exit code when it fails and it `must` pass."""
    print(f"== {title}: {' '.join(command)}", flush=True)
    began = time.monotonic()
    done = subprocess.run([str(BIN / command[0]), *command[1:]], cwd=ROOT, check=False)
    print(f"== {title}: {'ok' if done.returncode == 0 else 'FAILED'} in {time.monotonic() - began:.1f} s", flush=True)
    if done.returncode and must:
        sys.exit(done.returncode)


def prepare() -> None:
    """Make the virtual environment once; install again only when pyproject.toml is newer than the last install."""
    if not (BIN / "python").exists():
        venv.create(ROOT / ".venv", with_pip=True)
    stamp, project = ROOT / ".venv" / "installed", ROOT / "pyproject.toml"
    if not stamp.exists() or stamp.stat().st_mtime < project.stat().st_mtime:
        run("install", "python", "-m", "pip", "install", "-q", "--disable-pip-version-check", "-e", ".[dev]")
        stamp.touch()


def main() -> None:
    """Parse the three flags and run the steps in order."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--slow", action="store_true", help="run the slow suites and the benchmarks instead")
    parser.add_argument("--fix", action="store_true", help="format and mend what ruff can mend, then check")
    options = parser.parse_args()
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        sys.exit(f"Python {sys.version.split()[0]} found, 3.11 to 3.13 needed; try: python3.13 check.py")
    prepare()
    workers = str(min(4, os.cpu_count() or 1))
    if options.slow:
        live = ("tests/e2e", "tests/chaos")
        apart = [f"--ignore={folder}" for folder in live]
        run("slow tests", "pytest", "-q", "-m", "slow", "-n", workers, *apart)
        # One at a time: they start whole instances with real processes, and measure what those get of the processor.
        run("live tests", "pytest", "-q", "-s", "-m", "slow", *live)
        # Reported, not required: rates on a machine shared with others vary more than any margin that means something.
        for name in ("simulator", "core", "start", "live"):
            run(f"benchmark {name}", "python", "-m", "benchmarks", name, must=False)
        return
    if options.fix:
        run("mend", "ruff", "check", "-q", "--fix", ".")
        run("format", "ruff", "format", "-q", ".")
    run("format", "ruff", "format", "--check", ".")
    run("lint", "ruff", "check", ".")
    run("types", "mypy")
    run("layers", "lint-imports", "--no-cache")
    run("tests", "pytest", "-q", "-m", "not slow", "-n", workers)


if __name__ == "__main__":
    main()
