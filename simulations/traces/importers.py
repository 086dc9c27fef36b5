"""Public trace formats by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from simulations.traces.helios import import_helios
from simulations.traces.philly import import_philly
from simulations.traces.row import Imported
from simulations.traces.swf import import_swf

IMPORTERS: Final[dict[str, Callable[[Path], Imported]]] = {
    "helios": import_helios,
    "philly": import_philly,
    "swf": import_swf,
}


def import_trace(source: str, path: Path) -> Imported:
    """The rows of a public file in the format named `source`, sorted by submit time, and what was left out and why.

    The whole file is held in memory: these files need sorting.

    Raises:
        ValueError: no importer of that name.
        TraceError: the file is not as the format has it.
    """
    if source not in IMPORTERS:
        raise ValueError(f"format {source!r} is unknown: must be one of {', '.join(IMPORTERS)}")
    return IMPORTERS[source](path)
