"""`fairtier calendar`: what is agreed for certain times."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from scheduler import tables_text as tables
from scheduler.calendar_file import check_overlaps, read_calendar
from scheduler.duration import Duration, InstantOrAfter, When
from scheduler.live_cli import live
from scheduler.output import output_option

if TYPE_CHECKING:
    from scheduler.client import Client

_NOW = When(None, 0)


@click.group(short_help="Reservations and maintenance: what is agreed for certain times.")
def calendar() -> None:
    """Reservations of GPUs for a group, and maintenance of hosts: list, add, remove, check."""


@calendar.command(name="list")
@click.option("--all", "everything", is_flag=True, help="Also what is over or was removed.")
@output_option
@live
def list_entries(client: Client, output: str, everything: bool) -> None:
    """List what is agreed, earliest first.

    State: planned; near (GPUs are kept, or hosts get nothing new, already); on; over; removed.
    """
    found = client.get("calendar", all="true" if everything else None)["entries"]
    tables.show_table(found, tables.CALENDAR, output, "entries")


@calendar.group(name="add", invoke_without_command=True)
@click.option(
    "--file", "file", type=click.Path(path_type=Path), metavar="FILE", help="All entries of a TOML file, or none."
)
@live
def add(client: Client, file: Path | None) -> None:
    """Agree on a reservation, on maintenance, or (with --file) on everything that a file says."""
    ctx = click.get_current_context()
    if (file is None) == (ctx.invoked_subcommand is None):
        raise click.UsageError("give one of: reservation NAME ..., maintenance NAME ..., --file FILE", ctx)
    if file is not None:
        entries = read_calendar(file)
        check_overlaps(entries, str(file))
        for found in client.plan([entry.asked for entry in entries])["entries"]:
            click.echo(_agreed(found))


def _entry_command(kind: str, text: str) -> Callable[[Callable[..., dict[str, Any]]], click.Command]:
    """A command of `add`: the function gives the members of its kind."""

    def make(members: Callable[..., dict[str, Any]]) -> click.Command:
        @add.command(name=kind, help=text)
        @click.argument("name", metavar="NAME")
        @click.option(
            "--from", "begin", type=InstantOrAfter(), default=_NOW, metavar="TIME",
            help="Begin: 2026-12-01T22:00Z, or +30m from now.  [default: now]",
        )  # fmt: skip
        @click.option(
            "--until", "end", type=InstantOrAfter(), required=True, metavar="TIME",
            help="End: 2026-12-02T02:00Z, or +2h after the begin.",
        )  # fmt: skip
        @click.option("--text", default="", metavar="TEXT", help="What people are told.")
        @live
        @functools.wraps(members)
        def command(client: Client, name: str, begin: When, end: When, text: str, **own: Any) -> None:
            asked = {
                "entry": name, "kind": kind, "from_ms": begin.at_ms, "from_s": begin.after_s, "until_ms": end.at_ms,
                "until_s": end.after_s, "text": text, **members(**own),
            }  # fmt: skip
            [found] = client.plan([{member: value for member, value in asked.items() if value is not None}])["entries"]
            click.echo(_agreed(found))

        return command

    return make


@_entry_command("reservation", "Keep GPUs free for the users of a group, from one time to another.")
@click.option("--group", required=True, metavar="G", help="For whose users.")
@click.option("--gpus", type=click.IntRange(1), required=True, metavar="N", help="How many GPUs.")
def reservation(group: str, gpus: int) -> dict[str, Any]:
    """Members of a reservation."""
    return {"group": group, "gpus": gpus}


@_entry_command("maintenance", "Clear hosts for work on them: sessions there are told ahead, and end when it begins.")
@click.option("--host", "hosts", multiple=True, metavar="H", help="One of the hosts; again for more.  [default: all]")
@click.option(
    "--drain", "drain_s", type=Duration(), default="1h", show_default=True, metavar="TIME",
    help="So long before the begin nothing new is placed there.",
)  # fmt: skip
def maintenance(hosts: tuple[str, ...], drain_s: int) -> dict[str, Any]:
    """Members of a maintenance window."""
    return {"hosts": list(hosts), "drain_s": drain_s}


@calendar.command(name="remove")
@click.argument("name", metavar="NAME")
@click.option("--reason", default="", metavar="TEXT", help="Stands in the record.")
@live
def remove(client: Client, name: str, reason: str) -> None:
    """Take an entry out; what it kept or closed is free again at once."""
    found = client.unplan(name, reason)
    click.echo(f"{found['kind']} {found['entry']} removed")


@calendar.command(name="check")
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE")
@click.option("--offline", is_flag=True, help="The file alone, without asking an instance.")
@live
def check(client: Client, file: Path, offline: bool) -> None:
    """Check a calendar file: every mistake at once, and whether the instance would agree to it.

    Exit code 2 for mistakes in the file, 5 where entries are in each other's way, or in that of what is agreed.
    """
    entries = read_calendar(file)
    check_overlaps(entries, str(file))
    if not offline:
        client.plan([entry.asked for entry in entries], check=True)
    where = "the file alone was checked" if offline else "the instance would agree to all of it"
    click.echo(f"{file}: ok, {len(entries)} {'entry' if len(entries) == 1 else 'entries'}; {where}")


def _agreed(entry: dict[str, Any]) -> str:
    """What was agreed, in words."""
    if entry["kind"] == "reservation":
        what = f"{entry['gpus']:g} GPU{'' if entry['gpus'] == 1 else 's'} for group {entry['group']}"
    else:
        what = ", ".join(entry["hosts"]) or "all hosts"
    return f"{entry['kind']} {entry['entry']}: {what} from {entry['from']} until {entry['until']} ({entry['state']})"
