"""Where the commands write: paths that are not empty, and a standard output that may be full."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from scheduler.errors import FairTierError


class _Place(click.Path):
    """A path that is not empty: an unset variable (`--out "$RESULTS"`) must not mean the folder of now."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path, as `click.Path` has it."""
        if value == "":
            self.fail("the name is empty", param, ctx)
        return super().convert(value, param, ctx)


PLACE = _Place(path_type=Path)


@contextlib.contextmanager
def printing() -> Iterator[None]:
    """Standard output that cannot be written (a full disk) is said in one line; one that nobody reads is click's."""
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        with contextlib.suppress(OSError):
            sys.stdout.close()  # what is left in it would fail once more at exit
        sys.stdout = None  # as Python has it where there is none
        raise FairTierError(
            f"cannot write to standard output: {error.strerror}", "files of --out are complete"
        ) from None
