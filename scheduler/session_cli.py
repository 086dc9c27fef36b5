"""Commands about single sessions: `cancel hold unhold evict session why`."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import click

from scheduler.client import part
from scheduler.errors import FairTierError
from scheduler.live_cli import live
from scheduler.output import emit, emit_json, output_option

if TYPE_CHECKING:
    from scheduler.client import Client

FOLLOW_S = 0.3


def _act(op: str, summary: str, text: str) -> click.Command:
    """A command that does one thing to sessions; it goes on after one that failed, and ends as the first one did."""

    @click.command(name=op, short_help=summary, help=text)
    @click.argument("sessions", nargs=-1, required=True, metavar="SESSION...")
    @click.option("--reason", default="", metavar="TEXT", help="Stands in the record, and is shown to the user.")
    @live
    def command(client: Client, sessions: tuple[str, ...], reason: str) -> None:
        failed: list[FairTierError] = []
        for session in sessions:
            try:
                found = client.act(session, op, reason)
                click.echo(
                    f"{found['session']} {found['state']}" + (f" ({found['outcome']})" if found["outcome"] else "")
                )
            except FairTierError as error:
                failed.append(error)
                if error.exit_code == 4:  # nobody answers: the next one would only take as long
                    break
        _raise_first(failed)

    return command


def _raise_first(failed: list[FairTierError]) -> None:
    """Tell all that went wrong; the first decides the exit code."""
    if failed:
        first = failed[0]
        for other in failed[1:]:
            click.echo(f"error: {other.message}", err=True)
        raise first


cancel = _act("cancel", "End sessions, or their wait.", "End sessions that run, or the wait of those that do not yet.")
hold = _act("hold", "Keep waiting sessions from starting.", "Keep waiting sessions from starting until unhold.")
unhold = _act("unhold", "Let held sessions wait again.", "Let held sessions wait again, in their old place.")
extend = _act(
    "extend",
    "Say that running sessions are still needed.",
    "Say that sessions are still needed: their idle time begins anew, and their lifetime where the tier allows it.",
)
evict = _act(
    "evict",
    "Take the GPUs from running sessions.",
    "Take the GPUs from sessions that run: they get a notice, SIGTERM, and a few seconds.",
)


@click.command(short_help="One session: everything known, or its output.")
@click.argument("session", metavar="SESSION")
@click.option("--log", "show_log", is_flag=True, help="Its output instead.")
@click.option("-f", "--follow", is_flag=True, help="With --log: go on until it has ended, or Ctrl-C.")
@output_option(formats=("table", "json"))
@live
def session(client: Client, session: str, show_log: bool, follow: bool, output: str) -> None:
    """Show everything known of a session; or, with --log, what it wrote."""
    if show_log or follow:
        _log(client, session, follow=follow)
        return
    found = client.get(f"sessions/{part(session)}")
    del found["schema"]
    if output == "json":
        emit_json(found)
    else:
        emit([{"what": name, "value": value} for name, value in found.items()], ("what", "value"), "table")


def _log(client: Client, session: str, *, follow: bool) -> None:
    """Print a log from its begin; following, until the session has ended and everything was printed."""
    offset, state = 0, "running"
    while True:
        if follow:
            state = client.get(f"sessions/{part(session)}")["state"]
        offset = _print_rest(client, session, offset)
        if not follow or state == "ended":
            return
        time.sleep(FOLLOW_S)


def _print_rest(client: Client, session: str, offset: int) -> int:
    """What a log has from `offset` on; where it ends."""
    while True:
        piece = client.log(session, offset)
        sys.stdout.buffer.write(piece.content)
        sys.stdout.flush()
        offset = piece.offset + len(piece.content)
        if not piece.content or offset >= piece.size:
            return offset


@click.command(short_help="Why a session waits, was warned, or ended.")
@click.argument("session", metavar="SESSION")
@output_option(formats=("table", "json"))
@live
def why(client: Client, session: str, output: str) -> None:
    """Why a session is where it is: the rule, the numbers, until when, and what would change it."""
    found = client.get(f"sessions/{part(session)}/why")
    del found["schema"]
    if output == "json":
        emit_json(found)
    else:
        _explain(found)


def _explain(found: dict[str, Any]) -> None:
    place = f" at position {found['position']}" if found["position"] is not None else ""
    click.echo(_line(f"{found['session']} is {found['state']}{place}"))
    for reason in found["reasons"]:
        click.echo(_line(f"  {reason['code']}: {reason.get('text') or reason['rule']}"))
        if reason["change"] and str(reason["change"]).startswith("--"):
            click.echo(_line(f"    would start now: fairtier submit {reason['change']}"))


def _line(text: str) -> str:
    """Text on one line, without control characters: users' words are in it."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
