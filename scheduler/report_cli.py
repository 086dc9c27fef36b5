"""Commands that show the instance: `queue sessions shares usage history status`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TextIO

import click

from scheduler import tables_text as tables
from scheduler.duration import Duration
from scheduler.errors import Unreachable
from scheduler.live_cli import live
from scheduler.output import emit, emit_json, output_option
from scheduler.watch import watch_option, watch_or_once

if TYPE_CHECKING:
    from scheduler.client import Client

MOST = 10_000
limit_option = click.option(
    "--limit", type=click.IntRange(1, MOST), default=1000, show_default=True, metavar="N", help="At most the newest N."
)


@click.command(short_help="Sessions that wait, in order.")
@watch_option
@output_option
@live
def queue(client: Client, output: str, watch: float | None) -> None:
    """Sessions that wait, in the order in which they would start, and what each waits for."""

    def show(out: TextIO) -> None:
        tables.show_table(client.get("queue")["sessions"], tables.QUEUE, output, "sessions", out)

    watch_or_once(show, watch)


@click.command(short_help="Sessions that have not ended, or all.")
@click.option("--user", metavar="U", help="Of this user.")
@click.option("--all", "everything", is_flag=True, help="Also those that have ended.")
@limit_option
@watch_option
@output_option
@live
def sessions(client: Client, user: str | None, everything: bool, limit: int, output: str, watch: float | None) -> None:
    """Sessions, oldest first: who has what, how busy it is, and what the policy last said."""

    def show(out: TextIO) -> None:
        found = client.get("sessions", user=user, state="all" if everything else None, limit=limit)["sessions"]
        tables.show_table(found, tables.SESSIONS, output, "sessions", out)

    watch_or_once(show, watch)


@click.command(short_help="Every user's usage, credit and place.")
@watch_option
@output_option
@live
def shares(client: Client, output: str, watch: float | None) -> None:
    """Every user's shares, usage, credit and place, best place first; amounts in GPU-hours."""

    def show(out: TextIO) -> None:
        tables.show_table(client.get("shares")["users"], tables.SHARES, output, "users", out)

    watch_or_once(show, watch)


@click.command(short_help="GPU-hours by user.")
@click.option("--user", metavar="U", help="Of this user.")
@click.option("--since", type=Duration(), default="7d", show_default=True, metavar="TIME", help="The last 12h, 7d, ...")
@output_option
@live
def usage(client: Client, user: str | None, since: int, output: str) -> None:
    """GPU-hours allocated and busy by user in a period; decayed usage and credit as they are now."""
    found = client.get("usage", user=user, since_s=since)
    if output == "json":
        emit_json({"since": found["since"], "users": found["users"]})
    else:
        tables.show_table(found["users"], tables.USAGE, output, "users")


@click.command(short_help="What was decided, and why.")
@click.option("--user", metavar="U", help="About this user.")
@click.option("--session", metavar="S", help="About this session.")
@click.option("--since", type=Duration(), metavar="TIME", help="In the last 30m, 12h, 7d, ...")
@limit_option
@output_option
@live
def history(client: Client, user: str | None, session: str | None, since: int | None, limit: int, output: str) -> None:
    """Decisions of the policy and acts of operators, oldest first."""
    found = client.get("history", user=user, session=session, since_s=since, limit=limit)["decisions"]
    tables.show_table(found, tables.HISTORY, output, "decisions")


@click.command(short_help="Whether the instance works, on one page.")
@watch_option
@output_option(formats=("table", "json"))
@live
def status(client: Client, output: str, watch: float | None) -> None:
    """Sessions, GPUs and hosts in numbers, and whether the scheduler answers; exit code 4 when it does not."""

    def show(out: TextIO) -> None:
        problem = _silent(client)
        document = {"scheduler": "silent" if problem else "ok", **_without_schema(client.get("status"))}
        if output == "json":
            emit_json(document, out)
        else:
            emit(_lines(document), ("what", "value"), "table", stream=out)
        if problem is not None:
            raise problem

    watch_or_once(show, watch)


def _silent(client: Client) -> Unreachable | None:
    """Why the scheduler does not answer; None = it does."""
    try:
        client.ping()
    except Unreachable as error:
        return error
    return None


def _without_schema(document: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name != "schema"}


def _lines(document: dict[str, Any]) -> list[dict[str, Any]]:
    lines = [{"what": name.replace("_", " "), "value": _words(value)} for name, value in document.items()]
    return [line for line in lines if line["what"] != "announcements"] + [
        {"what": "announcement", "value": f"{told['from']} until {told['until']}: {told['text']}"}
        for told in document.get("announcements", ())
    ]


def _words(value: object) -> object:
    return ", ".join(f"{number:g} {what}" for what, number in value.items()) if isinstance(value, dict) else value
