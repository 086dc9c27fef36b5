"""`fairtier demo`: the whole life of a small cluster, in a minute, with real processes."""

from __future__ import annotations

import sys

import click

from fairtier.demo_script import DEFAULT_S, LONGEST_S, SHORTEST_S
from scheduler.output import emit, emit_json, output_option

COLUMNS = ("session", "user", "gpus", "waited_s", "ran_s", "outcome")


@click.command(short_help="Watch a small emulated cluster with real processes.")
@click.option(
    "--seconds",
    type=click.FloatRange(SHORTEST_S, LONGEST_S),
    default=DEFAULT_S,
    show_default=True,
    metavar="N",
    help=f"Length, {SHORTEST_S:g} to {LONGEST_S:g}.",
)
@output_option(formats=("table", "json"))
def demo(seconds: float, output: str) -> None:
    """Run 2 emulated hosts of 2 GPUs, six users and their sessions; everything is ended and removed afterwards.

    A GPU's load is what the session's processes get of the CPU. The policy is `demo`: the rules of `research-first`
    with times of seconds. The journal is kept, for `fairtier simulate replay`.
    """
    from fairtier.demo import Interrupted, run  # noqa: PLC0415

    try:
        shown = run(seconds, lambda text: click.echo(text, err=output == "json"))
    except Interrupted:
        raise KeyboardInterrupt from None
    if output == "json":
        emit_json(shown._asdict())
        return
    click.echo()
    emit([_row(session) for session in shown.sessions], COLUMNS, right=("waited_s", "ran_s"))
    click.echo()
    for entry in shown.throttle:
        click.echo(f"{entry['session']} was granted {entry['granted']:.1%} of its GPU and got {entry['measured']:.1%}")
    click.echo(f"ledger: at most {shown.ledger_error_s:.2f} GPU-seconds from what the sessions really computed")
    left = ", ".join(f"{count} {what}" for what, count in shown.leftover.items())
    click.echo(f"left over: {left}")
    click.echo(f"run its decisions again: fairtier simulate replay {shown.journal}")
    if any(shown.leftover.values()):
        sys.exit(1)


def _row(session: dict[str, object]) -> dict[str, object]:
    gpus = session["gpus"]
    where = ", ".join(f"{gpu['gpu']} x{gpu['fraction']:g}" for gpu in gpus) if isinstance(gpus, list) else ""
    return {
        "session": session["session"],
        "user": session["user"],
        "gpus": f"{session['host'] or '-'} {where}".strip(),
        "waited_s": _between(session["submitted_at"], session["started_at"]),
        "ran_s": _between(session["started_at"], session["ended_at"]),
        "outcome": session["outcome"] or session["state"],
    }


def _between(begin: object, end: object) -> float | None:
    """Seconds between two ISO times, None where one is missing."""
    from datetime import datetime  # noqa: PLC0415

    if not isinstance(begin, str) or not isinstance(end, str):
        return None
    return round((datetime.fromisoformat(end) - datetime.fromisoformat(begin)).total_seconds(), 1)
