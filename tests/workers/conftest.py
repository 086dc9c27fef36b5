"""A server for a module, a worker for a test; nothing is left behind by either."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.workers.rig import Rig, Server


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
