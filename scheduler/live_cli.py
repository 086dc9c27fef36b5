"""What the commands on a live instance have in common: which instance, and a client for it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from scheduler.client import Client
from scheduler.state_dir import DEFAULT_STATE

F = TypeVar("F", bound=Callable[..., Any])


class _Directory(click.Path):
    """A directory's path that is not empty: an unset variable must not mean the directory of now."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path, as `click.Path` has it."""
        if value == "":
            self.fail("the name is empty", param, ctx)
        return super().convert(value, param, ctx)


def state_option(command: F) -> F:
    """Add `--state DIR`, passed as `state`."""
    return click.option(
        "--state",
        type=_Directory(file_okay=False, path_type=Path),
        envvar="FAIRTIER_STATE",
        default=DEFAULT_STATE,
        metavar="DIR",
        help=f"State directory of the instance.  [env FAIRTIER_STATE; default: {DEFAULT_STATE}]",
    )(command)


def live(command: Callable[..., None]) -> Callable[..., None]:
    """Add `--state` and `--url`, and pass the command a `client` of that instance instead."""

    @state_option
    @click.option("--url", envvar="FAIRTIER_URL", metavar="URL", hidden=True)
    @functools.wraps(command)
    def with_client(state: Path, url: str | None, **others: Any) -> None:
        with Client(state, url) as client:
            command(client, **others)

    return with_client
