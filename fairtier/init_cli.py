"""`fairtier init`: files that an administrator starts from."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(short_help="Make a directory with a commented policy and service files.")
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@click.option("--host", is_flag=True, help="For a GPU host: the service file of its worker.")
def init(folder: Path, *, host: bool) -> None:
    """Make DIR with a policy to edit, a systemd service file and a README that says what to do next.

    Nothing is ever overwritten: exit code 5 when one of the files is there already. Nothing outside DIR is changed.
    """
    from fairtier.init import README, make  # noqa: PLC0415

    made = make(folder.expanduser().absolute(), host=host)
    for path in made:
        click.echo(f"made {path}")
    click.echo(f"next: {made[0].parent / README}")
