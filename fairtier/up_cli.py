"""`fairtier up`, `down` and `logs`: an instance on this machine."""

from __future__ import annotations

import json
import re
import sqlite3
import sys
import time
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import click

from fairtier import instance_lock
from fairtier.supervisor import LOG_LIMIT
from policies.params import Params, PolicyError, load
from scheduler.errors import BadInput, NotFound
from scheduler.live_cli import state_option
from scheduler.policy_files import DEFAULT_PRESET, read_policy
from scheduler.state_dir import database

MOST_HOSTS, MOST_GPUS = 64, 1024
DOWN_S = 15.0


def emulated(text: str) -> tuple[tuple[str, int], ...]:
    """(name, GPUs) of the hosts that `--emulate HOSTSxGPUS` asks for; `BadInput` when it is not that."""
    found = re.fullmatch(r"(\d{1,4})x(\d{1,4})", text)
    hosts, gpus = (int(found[1]), int(found[2])) if found else (0, 0)
    if not (1 <= hosts <= MOST_HOSTS and 1 <= gpus <= MOST_GPUS):
        raise BadInput(
            f"--emulate {text!r} is not HOSTSxGPUS with 1 to {MOST_HOSTS} hosts and 1 to {MOST_GPUS} GPUs each",
            "for example: --emulate 2x4",
        )
    return tuple((f"gpu-{number:02}", gpus) for number in range(1, hosts + 1))


def policy_on_record(state: Path) -> Params | None:
    """The policy that the instance on a state directory had last; None = it has no records, or none of this version.

    With the standard library: what `up` imports stays in memory for as long as the instance runs.
    """
    path = database(state)
    if not path.exists():
        return None
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as records:
            row = records.execute("SELECT head FROM checkpoints ORDER BY seq DESC LIMIT 1").fetchone()
        return load(json.loads(row[0])["policy"], "the policy on record") if row else None
    except (sqlite3.Error, ValueError, KeyError, PolicyError):
        return None  # the scheduler will say what is wrong with the records


@click.command(short_help="Run a whole instance on this machine.")
@state_option
@click.option("--emulate", metavar="HxG", help="H emulated hosts of G GPUs each, whose load is their sessions' CPU.")
@click.option(
    "--policy", metavar="P", help=f"A preset or a .toml file.  [default: the one on record, or {DEFAULT_PRESET}]"
)
@click.option("--http", type=click.IntRange(0, 65535), metavar="PORT", help="Status and metrics on 127.0.0.1; 0: any.")
def up(state: Path, emulate: str | None, policy: str | None, http: int | None) -> None:
    """Run scheduler, API, workers and their Redis-compatible server until Ctrl-C, SIGTERM or `fairtier down`.

    Prints one line, `ready URL STATE`, when a submit would be accepted.

    \b
    fairtier up --emulate 2x2 --policy demo      try it without a GPU
    """
    from fairtier.up import Instance, Plan  # noqa: PLC0415

    if emulate is None:
        raise BadInput("this version measures no real GPUs yet", "fairtier up --emulate 2x2 runs it on emulated ones")
    folder = state.expanduser().absolute()
    hosts = emulated(emulate)
    given, on_record = None if policy is None else read_policy(policy), policy_on_record(folder)
    known = [params for params in (given, on_record) if params is not None] or [read_policy(DEFAULT_PRESET)]
    # Which of the two is in force the scheduler decides: reports at the faster pace suit both.
    plan = Plan(folder, hosts, policy, http, min(params.telemetry.report_ms for params in known) / 1000)
    try:
        with Instance(plan, lambda text: click.echo(text, err=True)) as instance:
            click.echo(f"ready {instance.url} {plan.state}")
            _say_which(given, policy_on_record(folder))
            if sys.stdout is not None and sys.stdout.isatty():
                click.echo("next, in another terminal: fairtier user set alice; fairtier submit --user alice -- CMD")
            instance.wait()
    except KeyboardInterrupt:
        click.echo("ended before it was ready", err=True)


def _say_which(given: Params | None, in_force: Params | None) -> None:
    """Where the policy of the command line is not in force because another one was activated in its place."""
    if given is not None and in_force is not None and given.to_toml() != in_force.to_toml():
        click.echo(
            f"the policy {in_force.name or in_force.policy} stays in force: it was activated in the place of"
            f" {given.name or given.policy}; fairtier policy versions lists them, activate changes it",
            err=True,
        )


@click.command(short_help="End the instance that `up` runs.")
@state_option
def down(state: Path) -> None:
    """End the instance on a state directory: sessions first, then everything else. Ends within 10 seconds.

    Sessions that wait keep their place; they are on record and wait again after the next `fairtier up`.
    """
    folder = state.expanduser().absolute()
    ended = instance_lock.end(folder, DOWN_S)
    click.echo(f"ended the instance on {folder}" if ended else f"no instance runs on {folder}")


@click.command(short_help="Show the logs of an instance's processes.")
@state_option
@click.argument("names", metavar="[PROCESS]...", nargs=-1)
@click.option("-n", "--lines", type=click.IntRange(0, 100_000), default=50, show_default=True, help="Last lines.")
@click.option("-f", "--follow", is_flag=True, help="Go on with what is written from now on, until Ctrl-C.")
def logs(state: Path, names: tuple[str, ...], lines: int, follow: bool) -> None:
    """Show what the processes of an instance logged: scheduler, api, tasks, redis, worker-HOST."""
    folder = state.expanduser().absolute() / "log"
    found = {path.stem: path for path in sorted(folder.glob("*.log"))}
    unknown = [name for name in names if name not in found]
    if unknown or not found:
        raise NotFound(
            f"no log of {', '.join(unknown) or 'any process'} in {folder}", f"there are: {', '.join(found) or 'none'}"
        )
    chosen = {name: found[name] for name in (names or found)}
    ends = {name: _tail(name, path, lines, alone=len(chosen) == 1) for name, path in chosen.items()}
    while follow:
        time.sleep(0.3)
        for name, path in chosen.items():
            ends[name] = _more(name, path, ends[name], alone=len(chosen) == 1)


def _tail(name: str, path: Path, lines: int, *, alone: bool) -> int:
    with path.open("rb") as log:
        size = log.seek(0, 2)
        log.seek(max(0, size - LOG_LIMIT))
        content = log.read().decode(errors="replace").splitlines()
    for line in content[len(content) - lines :] if lines else ():
        _show(name, line, alone=alone)
    return size


def _more(name: str, path: Path, at: int, *, alone: bool) -> int:
    size = path.stat().st_size
    if size < at:
        at = 0  # the log was cut
    with path.open("rb") as log:
        log.seek(at)
        content = log.read()
    whole = content[: content.rfind(b"\n") + 1]
    for line in whole.decode(errors="replace").splitlines():
        _show(name, line, alone=alone)
    return at + len(whole)


def _show(name: str, line: str, *, alone: bool) -> None:
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)
    click.echo(text if alone else f"{name}: {text}")
