"""Show something again and again: in place on a terminal, one after another elsewhere."""

from __future__ import annotations

import contextlib
import io
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO, TypeVar

import click

Show = Callable[[TextIO], None]
"""Writes the present state of things to a stream."""
F = TypeVar("F", bound=Callable[..., Any])

SHORTEST_S, USUAL_S = 0.2, 2.0


def watch_option(command: F) -> F:
    """Add `--watch [SECONDS]`, passed as `watch`; None = once."""
    return click.option(
        "--watch",
        is_flag=False,
        flag_value=USUAL_S,
        type=click.FloatRange(min=SHORTEST_S, max=86_400),
        metavar="[SECONDS]",
        help=f"Show it again every so many seconds ({USUAL_S:g}), until Ctrl-C.",
    )(command)


def watch_or_once(show: Show, seconds: float | None) -> None:
    """Show once; or every so many seconds until Ctrl-C, which is how that ends well."""
    if seconds is None:
        show(sys.stdout)
        return
    with contextlib.suppress(KeyboardInterrupt):
        (_in_place if sys.stdout.isatty() else _one_after_another)(show, seconds)


def _one_after_another(show: Show, seconds: float) -> None:
    while True:
        show(sys.stdout)
        sys.stdout.flush()
        time.sleep(seconds)


def _in_place(show: Show, seconds: float) -> None:
    from rich.live import Live  # noqa: PLC0415 - rich takes longer to import than a command takes to run
    from rich.text import Text  # noqa: PLC0415

    with Live(auto_refresh=False, screen=True, vertical_overflow="crop") as live:
        while True:
            text = io.StringIO()
            show(text)
            live.update(Text(text.getvalue(), no_wrap=True), refresh=True)
            time.sleep(seconds)
