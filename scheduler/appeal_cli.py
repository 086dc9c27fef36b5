"""`fairtier appeal`: say that a rule was wrong, and answer it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from scheduler import tables_text as tables
from scheduler.duration import Duration
from scheduler.errors import BadInput
from scheduler.live_cli import live
from scheduler.output import emit_json, output_option

if TYPE_CHECKING:
    from scheduler.client import Client


@click.group(short_help="Appeals against what a rule did: file, list, answer.")
def appeal() -> None:
    """Appeals against what a rule of acceptable use did: file, list, answer."""


@appeal.command(name="file")
@click.argument("session", metavar="[SESSION]", required=False)
@click.option("--user", metavar="U", help="Whose restriction it is about, instead of a session.")
@click.option("--text", required=True, metavar="TEXT", help="Why it was wrong.")
@output_option(formats=("table", "json"))
@live
def file_appeal(client: Client, session: str | None, user: str | None, text: str, output: str) -> None:
    """Say that a warning, a throttle, an eviction or a restriction was wrong.

    It is about a session, or with --user about a user. A person answers it; what has been decided goes on until then.
    """
    if (session is None) == (user is None):
        raise BadInput("an appeal is about a session or about a user", "give SESSION or --user, not both")
    found = client.file_appeal(session=session, user=user, text=text)
    if output == "json":
        emit_json(found)
    else:
        click.echo(f"{found['appeal']} of {found['user']} filed; fairtier appeal list shows the answer")


@appeal.command(name="list")
@click.option("--open", "open_", is_flag=True, help="Those that wait for an answer.")
@click.option("--user", metavar="U", help="Of one user.")
@output_option
@live
def list_appeals(client: Client, open_: bool, user: str | None, output: str) -> None:
    """List appeals, oldest first."""
    found = client.get("appeals", state="open" if open_ else None, user=user)["appeals"]
    tables.show_table(found, tables.APPEALS, output, "appeals")


@appeal.command(name="answer")
@click.argument("appeal", metavar="APPEAL")
@click.option("--grant/--deny", "grant", default=None, help="It was wrong, or it was right.")
@click.option("--text", required=True, metavar="TEXT", help="What the user reads.")
@click.option("--allow-for", "allow_for_s", type=Duration(), metavar="TIME", help="Only observe so long: 30d, 12h, ...")
@click.option("--rule", default="", metavar="RULE", help="Of one rule, with --allow-for.  [all rules]")
@output_option(formats=("table", "json"))
@live
def answer_appeal(
    client: Client,
    appeal: str,
    grant: bool | None,
    text: str,
    allow_for_s: int | None,
    rule: str,
    output: str,
) -> None:
    """Answer an appeal, once.

    Granting it ends the user's restriction and cooldown. With --allow-for the rule only observes the user for so long.
    """
    if grant is None:
        raise BadInput("an appeal is granted or denied", "give --grant or --deny")
    found = client.answer_appeal(appeal, "grant" if grant else "deny", text=text, allow_for_s=allow_for_s, rule=rule)
    if output == "json":
        emit_json(found)
        return
    until = found["allowed_until"]
    more = "" if until is None else f"; {found['rule'] or 'every rule'} only observes {found['user']} until {until}"
    click.echo(f"{appeal} of {found['user']} {found['state']}{more}")
