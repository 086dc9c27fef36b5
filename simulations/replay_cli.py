"""`fairtier simulate replay`: run a recorded journal again and compare."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from scheduler.errors import BadInput, FairTierError, NotFound
from scheduler.output import emit_json, output_option
from scheduler.policy_files import read_policy
from simulations.places import PLACE, printing
from simulations.progress import Progress
from simulations.summary_text import path_text

if TYPE_CHECKING:
    from scheduler.journal import Difference


@click.command(short_help="Check that a recorded journal decides the same again.")
@click.argument("journal", type=PLACE, metavar="[JOURNAL.jsonl]", required=False)
@click.option("--state", type=PLACE, metavar="DIR", help="The journal of the instance with this state directory.")
@click.option("--policy", metavar="P", help="Decide by another policy and stop where it differs.")
@output_option(formats=("table", "json"))
def replay(journal: Path | None, state: Path | None, policy: str | None, output: str) -> None:
    """Run a recorded journal through the core and compare every decision byte for byte.

    Exit code 1 at the first cycle that differs. An instance may go on running while its journal is read.
    """
    from scheduler import journal as journals  # noqa: PLC0415

    if (journal is None) == (state is None):
        raise BadInput("name one journal: a file, or an instance with --state DIR")
    place = journal or state or Path()
    name, cycles, difference = path_text(place), 0, None
    params = None if policy is None else read_policy(policy)
    with _lines(journal, state) as lines, Progress("cycles", None) as progress:
        for result in journals.replay(lines, name, params):
            if isinstance(result, journals.Difference):
                difference = result
            else:
                cycles += 1
                progress.tick(cycles)
    with printing():
        _show_replay(name, cycles, difference, output)
    if difference is not None:
        raise FairTierError(f"{name}:{difference.line}: the decisions differ, after {cycles:,} equal cycles")


@contextlib.contextmanager
def _lines(journal: Path | None, state: Path | None) -> Iterator[Iterator[str]]:
    """The lines of a journal, from a file or from an instance's records."""
    if journal is not None:
        with file_lines(journal) as lines:
            yield lines
        return
    from scheduler.adapters.sql_reader import SqlReader  # noqa: PLC0415 - half a second that a file does not need
    from scheduler.state_dir import database  # noqa: PLC0415

    path = database(state or Path())
    if not path.exists():
        raise NotFound(
            f"no instance has kept records in {path_text(path.parent)}", "fairtier up --state DIR makes them"
        )
    reader = SqlReader(path)
    try:
        yield reader.journal()
    finally:
        reader.close()


@contextlib.contextmanager
def file_lines(journal: Path) -> Iterator[Iterator[str]]:
    """The lines of a journal file; what cannot be read is a mistake that says why."""
    from scheduler.journal import LINE_LIMIT  # noqa: PLC0415

    name = path_text(journal)
    if journal.is_dir():
        raise BadInput(f"{name} is a folder", "name a journal file, or an instance's folder with --state")
    try:
        with journal.open(encoding="utf-8", errors="replace") as file:
            yield iter(lambda: file.readline(LINE_LIMIT + 1), "")  # a longer one is refused, not held
    except FileNotFoundError:
        raise NotFound(f"no such journal: {name}", "one is written by simulate run --journal") from None
    except OSError as error:
        raise BadInput(f"{name} cannot be read: {error.strerror}") from None


def _show_replay(name: str, cycles: int, difference: Difference | None, output: str) -> None:
    if output == "json":
        found = None if difference is None else difference._asdict()
        emit_json({"journal": name, "cycles": cycles, "equal": difference is None, "difference": found})
    elif difference is None:
        click.echo(f"{name}: {cycles:,} cycles replayed, every decision equal")
    else:
        recorded, replayed = _where_they_part(difference.recorded, difference.replayed)
        click.echo(f"recorded  {recorded}\nreplayed  {replayed}")


def _where_they_part(one: str, other: str, around: int = 160) -> tuple[str, str]:
    """Two lines cut to what a screen can show, around the first character that differs."""
    equal = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    begin = max(0, equal - around)

    def cut(text: str) -> str:
        shown = text[begin : begin + 3 * around]
        return ("..." if begin else "") + shown + ("..." if begin + 3 * around < len(text) else "")

    return cut(one), cut(other)
