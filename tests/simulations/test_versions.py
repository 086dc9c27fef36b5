"""The same seed gives the same bytes on every Python that is supported."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SUPPORTED = ("3.11", "3.12", "3.13")
RUN = "from fairtier.cli import main; main(['simulate', 'run', 'overload', '--days', '3', '-o', 'json'])"


def others() -> Iterator[tuple[str, dict[str, str]]]:
    """(command, environment) of interpreters of other supported versions on this machine, newest first."""
    mine = f"{sys.version_info[0]}.{sys.version_info[1]}"
    managed = []
    if shutil.which("pyenv"):
        listed = subprocess.run(["pyenv", "versions", "--bare"], capture_output=True, text=True, check=False)
        managed = listed.stdout.split()
    for version in reversed([version for version in SUPPORTED if version != mine]):
        for name in ["", *(full for full in managed if full.startswith(f"{version}."))]:
            environment = os.environ | ({"PYENV_VERSION": name} if name else {})
            command = shutil.which(f"python{version}", path=environment["PATH"])
            if command and subprocess.run([command, "-c", ""], env=environment, capture_output=True).returncode == 0:
                yield command, environment
                break


def digest(python: str | Path, environment: dict[str, str]) -> str:
    """Of three days of the `overload` scenario."""
    done = subprocess.run(
        [str(python), "-c", RUN], env=environment, capture_output=True, text=True, check=True, cwd=ROOT
    )
    found: str = json.loads(done.stdout)["digest"]
    return found


@pytest.mark.slow
def test_another_python_gives_the_same_digest(tmp_path: Path) -> None:
    """Floats, sums, hashes and streams do not depend on the version (the newest other one on this machine is asked)."""
    found = next(others(), None)
    if found is None:
        pytest.skip("no other supported Python on this machine")
    command, environment = found
    subprocess.run([command, "-m", "venv", str(tmp_path / "venv")], env=environment, check=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", str(ROOT)]
    subprocess.run(install, env=environment, check=True, capture_output=True)
    assert digest(python, environment) == digest(sys.executable, dict(os.environ))
