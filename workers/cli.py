"""`fairtier worker` and the process that it starts for itself, `fairtier enforcer`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from workers.settings import Settings


@click.command()
@click.option("--redis", help="Where the transport is: unix:///PATH or redis://HOST. With a password: FAIRTIER_REDIS.")
@click.option("--host", help="This host's name in the cluster.  [default: the machine's name]")
@click.option("--emulate", type=click.IntRange(1, 1024), metavar="N", help="Have N emulated GPUs.")
@click.option("--model", help="Model of the GPUs.")
@click.option("--memory-mib", type=click.IntRange(min=1), help="Memory of each GPU.")
@click.option("--state", type=click.Path(path_type=Path), envvar="FAIRTIER_STATE", help="Folder of the instance.")
@click.option("--report-s", type=float, help="Seconds between full reports.  [default: 10]")
@click.option("--sample-s", type=float, help="Seconds between measurements while sessions run.  [default: 1]")
@click.option("--instance", help="Name that tells two instances on one machine apart.  [default: from --state]")
def worker(emulate: int | None, **given: str | Path | float | None) -> None:
    """Run this host's part: start sessions, measure them, report, obey. Ends with SIGTERM; sessions go on."""
    from pydantic import ValidationError  # noqa: PLC0415 - help must not wait for it

    from workers import settings  # noqa: PLC0415

    if emulate is None:
        raise click.UsageError("no GPU probe for this machine is available yet; --emulate N runs with N emulated GPUs")
    if settings.holds_password(str(given["redis"] or "")):
        raise click.UsageError("--redis holds a password, which everybody can read; put it into FAIRTIER_REDIS")
    try:
        chosen = settings.Settings(
            gpus=emulate,
            **{name: value for name, value in given.items() if value is not None},  # type: ignore[arg-type]
        )
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = ".".join(map(str, first["loc"]))
        raise click.UsageError(f"--{name.replace('_', '-')}: {first['msg']}") from None
    _run(chosen)


def _run(settings: Settings) -> None:
    # structlog's printer for terminals, unused here, would load rich: 3.5 MiB in every worker.
    sys.modules.setdefault("rich", None)  # type: ignore[arg-type]  # what `import` takes for "there is none"
    from workers import agent, containment, log  # noqa: PLC0415
    from workers.journal import JournalError  # noqa: PLC0415
    from workers.probes.emulated import EmulatedProbe  # noqa: PLC0415

    log.configure()
    try:
        held = containment.choose(settings.name, settings.host, settings.own)
        agent.run(settings, held, EmulatedProbe(held, settings.gpus, settings.model, settings.memory_mib))
    except (JournalError, OSError) as error:
        raise click.ClickException(str(error)) from None


@click.command(hidden=True, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def enforcer(arguments: tuple[str, ...]) -> None:
    """Freeze, thaw, signal and kill for the worker at the other end of an inherited socket. Not for people."""
    from workers import enforcer as process  # noqa: PLC0415

    raise SystemExit(process.main(list(arguments)))


if __name__ == "__main__":
    worker()
