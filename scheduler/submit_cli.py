"""`fairtier submit`: ask for a session, and wait for it if wanted."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from scheduler.duration import Memory
from scheduler.errors import BadInput, FairTierError
from scheduler.live_cli import live
from scheduler.output import emit_json, output_option

if TYPE_CHECKING:
    from scheduler.client import Client

FIRST_S, MOST_S = 0.1, 2.0
"""Pauses between two looks at a session that is waited for: they grow."""


@click.command(short_help="Ask for a session: a command, or a notebook server.")
@click.option("--user", required=True, metavar="U", help="Whose session it is.")
@click.option("--group", metavar="G", help="Checked against the user's record.")
@click.option("--tier", metavar="T", help="Checked against the user's record.")
@click.option("--gpus", type=int, default=1, show_default=True, metavar="N", help="Number of GPUs.")
@click.option(
    "--fraction", type=float, default=1.0, show_default=True, metavar="F", help="Part of one GPU, 0.001 to 1."
)
@click.option("--gpu-type", metavar="M", help="GPU model.  [default: any]")
@click.option("--memory", type=Memory(), metavar="SIZE", help="GPU memory needed on each GPU, such as 8GiB.")
@click.option(
    "--grace-signal",
    type=click.Choice(["HUP", "INT", "USR1", "USR2"]),
    help="Sent to the program when it should save: it has the grace's time left.",
)
@click.option("--notebook", is_flag=True, help="Start a Jupyter server instead of a command.")
@click.option("--wait", is_flag=True, help="Wait for its end; with --notebook, until its server runs.")
@output_option(formats=("table", "json"))
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[-- CMD...]")
@live
def submit(
    client: Client, wait: bool, output: str, command: tuple[str, ...], memory: int | None, notebook: bool, **asked: Any
) -> None:
    """Ask for a session; prints its name and where it stands, or the address of its notebook server.

    \b
    fairtier submit --user ann -- python train.py
    fairtier submit --user ann --fraction 0.5 --notebook

    With --wait the exit code is 0 when the command completed and 1 otherwise. A notebook that starts at once is waited
    for without it.
    """
    if bool(command) == notebook:
        raise BadInput("a session runs either a command or a notebook server", "give --notebook, or -- CMD...")
    session = client.submit(**asked, memory_mib=memory, notebook=notebook, argv=[_text(word) for word in command])
    begins = notebook and session["state"] != "queued"
    if wait and output != "json":
        click.echo(f"{session['session']} submitted", err=True)
    if wait or begins:
        try:
            session = _wait(client, session["session"], for_url=notebook)
        except KeyboardInterrupt:
            name = session["session"]
            click.echo(f"{name} goes on; fairtier cancel {name} ends it", err=True)
            raise
    elif session["state"] == "queued":
        session = client.get(f"sessions/{session['session']}")
    if output == "json":
        emit_json({name: value for name, value in session.items() if name != "schema"})
    else:
        click.echo(_where(session))
    if (wait or begins) and session["state"] == "ended" and session["outcome"] != "completed":
        raise FairTierError(_ended(session), f"fairtier why {session['session']}")


def _text(word: str) -> str:
    """An argument as the program will get it; one that is no text cannot travel."""
    try:
        word.encode()
    except UnicodeEncodeError:
        raise BadInput(f"the argument {word!r} is not UTF-8") from None
    return word


def _wait(client: Client, name: str, *, for_url: bool) -> dict[str, Any]:
    """The session once it has ended, or once its server has told its address."""
    pause_s = FIRST_S
    while True:
        session = client.get(f"sessions/{name}")
        if session["state"] == "ended" or (for_url and session["url"]):
            return session
        time.sleep(pause_s)
        pause_s = min(MOST_S, pause_s * 1.3)


def _where(session: dict[str, Any]) -> str:
    """One line: the name, and where it is."""
    name, state = session["session"], session["state"]
    if session.get("url"):
        return f"{name} {session['url']}"
    if session["host"] and state != "ended":
        return f"{name} {state} on {session['host']}"
    if session["position"] is not None:
        later = f"; its address, once it runs: fairtier session {name}" if session["notebook"] else ""
        return f"{name} {state} at position {session['position']} ({session['reason']}){later}"
    return f"{name} {state}" + (f" ({session['outcome']})" if session["outcome"] else "")


def _ended(session: dict[str, Any]) -> str:
    code = session.get("exit_code")
    return f"session {session['session']} ended: {session['outcome']}" + (
        f", exit code {code}" if code is not None else ""
    )
