"""`fairtier policy activate|rollback|versions`: another policy on an instance that runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from scheduler import tables_text as tables
from scheduler.live_cli import live
from scheduler.output import emit_json, output_option
from scheduler.policy_files import read_policy

if TYPE_CHECKING:
    from scheduler.client import Client

note_option = click.option("--note", default="", metavar="TEXT", help="Why; stands in the list of versions.")


@click.command()
@click.argument("name", metavar="NAME|FILE")
@note_option
@output_option(formats=("table", "json"))
@live
def activate(client: Client, name: str, note: str, output: str) -> None:
    """Put another policy in force on the instance that runs.

    NAME is a preset, FILE a .toml file; every mistake in it is told at once (exit code 2), and nothing is changed. What
    runs goes on, what waits keeps its place. What is in force already changes nothing. Look before: policy shadow.
    """
    params = read_policy(name)
    _show(client.activate_policy(params.to_toml(), note), output)


@click.command()
@click.argument("version", type=click.IntRange(min=1), required=False)
@note_option
@output_option(formats=("table", "json"))
@live
def rollback(client: Client, version: int | None, note: str, output: str) -> None:
    """Put the policy before the present one in force again, or that of VERSION.

    It becomes a version of its own, so that a rollback can be rolled back. Exit code 3 where there is none before.
    """
    _show(client.rollback_policy(version, note), output)


@click.command()
@output_option
@live
def versions(client: Client, output: str) -> None:
    """List every policy that is or was in force, and how many decisions were made under it."""
    tables.show_table(client.get("policy/versions")["versions"], tables.VERSIONS, output, "versions")


def _show(found: dict[str, Any], output: str) -> None:
    del found["schema"]
    for warning in found["warnings"]:
        click.echo(f"warning: {warning}", err=True)
    if output == "json":
        emit_json(found)
    elif found["changed"]:
        click.echo(f"version {found['version']} is in force: {_origin(found)}; fairtier policy rollback goes back")
    else:
        click.echo(f"{found['name']} is in force already, as version {found['version']}: nothing changed")


def _origin(found: dict[str, Any]) -> str:
    back = found["rolled_back_to"]
    return f"{found['name']}" if back is None else f"{found['name']}, as in version {back}"
