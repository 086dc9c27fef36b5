"""`fairtier backup` and `fairtier restore`: the records of an instance, copied and put back."""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from scheduler.errors import FairTierError, Refused
from scheduler.live_cli import state_option
from scheduler.state_dir import database

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scheduler.adapters.backup import Copied

LOCK = "lock"
"""File in the state directory that whoever runs an instance there holds a lock on."""


@click.command()
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
@state_option
def backup(out: Path, state: Path, *, force: bool) -> None:
    """Copy the records of an instance to OUT, whether it runs or not.

    The copy is of one instant, checked, and appears under its name when it is whole. It holds users' command lines and
    mail addresses: keep it as private as the state directory.
    """
    from scheduler.adapters import backup as copies  # noqa: PLC0415 - SQL takes longer to import than help to show

    click.echo(f"wrote {_text(copies.backup(database(state), out, force=force))}")


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--force", is_flag=True, help="Replace the records there are; they are kept as .before-restore.")
@state_option
def restore(file: Path, state: Path, *, force: bool) -> None:
    """Put the records of the backup FILE in the place of an instance's, which must not run."""
    from scheduler.adapters import backup as copies  # noqa: PLC0415

    state = state.expanduser()
    with _stopped(state):
        copied = copies.restore(file, database(state), force=force)
        moved = copies.set_aside_unknown(database(state), state / "sessions")
    click.echo(f"restored {_text(copied)}")
    if moved is not None:
        click.echo(f"folders of sessions that are not in these records are in {moved}")
    if copied.replaced is not None:
        click.echo(f"the records from before are {copied.replaced}")


def _text(copied: Copied) -> str:
    return f"{copied.file}: {copied.sessions} sessions, journal up to line {copied.journal_seq}, {copied.size} bytes"


@contextmanager
def _stopped(state: Path) -> Iterator[None]:
    """Make sure that no instance runs on a state directory, nor starts; `Refused` when one does."""
    handle = _lock_file(state)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(handle, 0)  # whose process id is left in it, after a crash, does not hold it
        yield
    except BlockingIOError:
        raise Refused(f"an instance runs on {state}: nothing was changed", "stop it first: fairtier down") from None
    finally:
        os.close(handle)


def _lock_file(state: Path) -> int:
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.open(state / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise FairTierError(
            f"{state} cannot be used as a state directory: {error.strerror}", "name another one with --state"
        ) from None
