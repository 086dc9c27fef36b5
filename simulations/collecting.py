"""The garbage collector while a simulation runs."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

NEW_OBJECTS = 100_000
"""New objects between two looks (CPython's default: 700 to 2,000)."""


@contextmanager
def collected_rarely() -> Iterator[None]:
    """Let the collector look less often: a simulation makes millions of values and drops hardly any in a cycle.

    What is in no cycle is freed at once as ever. As it was on leaving.
    """
    before = gc.get_threshold()
    gc.set_threshold(NEW_OBJECTS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
