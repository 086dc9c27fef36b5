"""A server for a module, a worker for a test; nothing is left behind by either."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.workers.rig import Rig, Server, until
from workers.containment import Cgroups, available, choose


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def rig(server: Server, tmp_path: Path) -> Iterator[Rig]:
    with server.client() as client:
        client.flushall()
    rig = Rig(server, tmp_path / "state")
    yield rig
    assert rig.close() == {"processes": 0, "cgroups": 0}


@pytest.fixture
def cgroups(tmp_path: Path) -> Iterator[Cgroups]:
    """Real cgroups of our own."""
    works, why = available()
    if not works:
        pytest.skip(f"{why}; CI runs as root on a machine with cgroup v2")
    made = choose(f"test{os.getpid()}", "h1", tmp_path)
    assert isinstance(made, Cgroups)
    yield made
    for session in made.sessions():
        made.thaw(session)
        made.kill(session)
        until(lambda s=session: made.remove(s))
    for folder in (made.root, made.root.parent):
        with contextlib.suppress(FileNotFoundError):
            folder.rmdir()
