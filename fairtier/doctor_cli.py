"""`fairtier doctor`: what this machine offers, and what an instance needs."""

from __future__ import annotations

from pathlib import Path

import click

from scheduler.live_cli import state_option
from scheduler.output import emit, emit_json, output_option


@click.command(short_help="Check what this machine offers, and what an instance needs.")
@state_option
@output_option(formats=("table", "json"))
@click.pass_context
def doctor(ctx: click.Context, state: Path, output: str) -> None:
    """Check this machine and the instance on a state directory, running or not: ok, warn or FAIL, and what to do.

    An instance that runs is asked, not disturbed, and nothing of it is changed. Exit code 1 when anything is a FAIL.
    """
    from fairtier.doctor import examine  # noqa: PLC0415
    from fairtier.finding import FAIL, Finding  # noqa: PLC0415

    findings = examine(state.expanduser().absolute())
    ok = all(finding.level != FAIL for finding in findings)
    rows = [finding._asdict() for finding in findings]
    if output == "json":
        emit_json({"ok": ok, "checks": rows})
    else:
        emit(rows, Finding._fields, output)
    if not ok:
        ctx.exit(1)
