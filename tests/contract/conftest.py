"""Every adapter of a port runs the same suite."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.contract.world import MemoryWorld, SqlWorld, World

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from scheduler.ports import Store


@pytest.fixture(params=["sql", "memory"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    """Data without a leader."""
    made: World = SqlWorld(tmp_path) if request.param == "sql" else MemoryWorld()
    yield made
    made.close()


@pytest.fixture
def store(world: World) -> Store:
    """A store that leads."""
    made = world.open()
    made.lead("one")
    return made
