"""`fairtier simulate`: run, import, generate, replay."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from scheduler.errors import BadInput, FairTierError, NotFound
from scheduler.output import emit_json, output_option
from scheduler.policy_files import DEFAULT_PRESET, preset_names, read_policy
from simulations import cluster_spec
from simulations.places import PLACE, printing
from simulations.progress import Progress
from simulations.replay_cli import replay
from simulations.stoppable import Stoppable
from simulations.summary_text import path_text, show
from simulations.traces.importers import IMPORTERS, import_trace
from simulations.traces.row import TraceError
from simulations.workloads.scenario import ScenarioError, load_scenario, read_scenario, scenario_names
from simulations.workloads.workload import TraceWorkload

if TYPE_CHECKING:
    from policies.params import Params
    from scheduler.events import HostJoined
    from simulations.traces.row import Row
    from simulations.workloads.generated import GeneratedWorkload
    from simulations.workloads.workload import Workload

SEED_HELP = "A whole number >= 0 that decides everything generated."


class _RunCommand(click.Command):
    """A command whose help ends with what is shipped."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Scenarios and policies by name, from their files."""
        del ctx
        with formatter.section("Scenarios"):
            formatter.write_dl([(name, read_scenario(name).title) for name in scenario_names()])
        with formatter.section("Policies"):
            formatter.write_dl([(name, read_policy(name).summary) for name in preset_names()])


@click.group(cls=Stoppable)
def simulate() -> None:
    """Run policies on traces and generated workloads, with the code that runs in production.

    \b
    fairtier simulate run busy                               a generated week on 64 GPUs
    fairtier simulate run T.csv --hosts 16x8 --policy fifo   a trace on 16 hosts of 8 GPUs
    """


@simulate.command(cls=_RunCommand, short_help="Schedule a trace or a generated workload.")
@click.argument("trace", metavar="T.csv|SCENARIO")
@click.option("--gpus", type=int, metavar="N", help="One pool of N GPUs without host boundaries.")
@click.option("--hosts", metavar="HxG[:MODEL:GIB]", help="H hosts of G GPUs each; several groups joined by commas.")
@click.option("--shared", type=click.IntRange(min=0), metavar="N", help="At most N GPUs are shared.  [default: any]")
@click.option(
    "--policy", default=DEFAULT_PRESET, show_default=True, metavar="P", help="A policy below or a .toml file."
)
@click.option("--seed", type=click.IntRange(min=0), default=1, show_default=True, metavar="S", help=SEED_HELP)
@click.option("--days", type=float, metavar="D", help="Length of a generated run.  [default: the scenario's, 7]")
@click.option(
    "--on-evict",
    type=click.Choice(["resume", "restart", "end"]),
    default="resume",
    show_default=True,
    help="What a trace's evicted session does: go on from its last checkpoint, begin again, or give up.",
)
@click.option("--journal", type=PLACE, metavar="J.jsonl", help="Write a journal for simulate replay.")
@click.option("--out", type=PLACE, metavar="DIR", help="Write sessions.csv, decisions.jsonl and summary.json.")
@output_option(formats=("table", "json"))
def run(
    trace: str,
    gpus: int | None,
    hosts: str | None,
    shared: int | None,
    policy: str,
    seed: int,
    days: float | None,
    on_evict: str,
    journal: Path | None,
    out: Path | None,
    output: str,
) -> None:
    """Schedule a trace, or a generated workload whose users react, and say how it went.

    A trace needs --gpus or --hosts; a scenario has a cluster of its own. The same seed gives the same digest. Files
    appear when the run is complete, all or none.
    """
    from simulations.run import Plan  # noqa: PLC0415 - the core is not needed to show help
    from simulations.run import run as run_plan  # noqa: PLC0415

    if journal is not None:
        _not_an_input(journal, trace, policy)
    params, workload, cluster = _inputs(trace, policy, seed, days, on_evict, gpus, hosts)
    with Progress("sessions", _expected(trace), timed=_is_scenario(trace)) as progress:
        plan = Plan(
            workload=workload,
            params=params,
            hosts=cluster,
            policy=policy,
            seed=seed,
            stopwatch=time.perf_counter,
            progress=lambda ended, now_ms: progress.show(ended, now_ms, workload),
            shared_limit=shared,
            out=out,
            journal=journal,
        )
        try:
            result = run_plan(plan)
        except TraceError as error:
            raise BadInput(str(error)) from error
    with printing():
        if output == "json":
            emit_json(result.summary)
        else:
            show(result, out, journal)


def _inputs(
    trace: str, policy: str, seed: int, days: float | None, on_evict: str, gpus: int | None, hosts: str | None
) -> tuple[Params, Workload, tuple[HostJoined, ...]]:
    """Policy, workload and cluster from what the command line says; everything is checked before anything runs."""
    if gpus is not None and hosts is not None:
        raise BadInput("--gpus and --hosts are two ways to say the same", "give one of them")
    params = read_policy(policy)
    cluster = cluster_spec.hosts(hosts) if hosts is not None else cluster_spec.pool(gpus) if gpus is not None else None
    if _is_scenario(trace):
        generated = _scenario(trace, seed, days)
        return params, generated, cluster or cluster_spec.pool(generated.gpus)
    if not Path(trace).exists():
        known = ", ".join(scenario_names())
        raise NotFound(f"no such trace: {path_text(trace)}", f"a file in the trace format, or a scenario: {known}")
    if days is not None:
        raise BadInput("--days is for scenarios; a trace is as long as it is", "leave it out")
    if cluster is None:
        raise BadInput(f"how large is the cluster for {path_text(trace)}?", "give --gpus N or --hosts HxG")
    return params, _trace(trace, on_evict), cluster


def _is_scenario(trace: str) -> bool:
    return trace in scenario_names() or trace.endswith(".toml")


def _not_an_input(target: Path, *inputs: str) -> None:
    """Refuse to replace a file that the command reads."""
    for name in inputs:
        if target.exists() and Path(name).exists() and target.samefile(name):
            raise BadInput(f"{path_text(target)} is read by this command and would be replaced", "name another file")


def _scenario(name: str, seed: int, days: float | None, scale: float = 1.0) -> GeneratedWorkload:
    if not _is_scenario(name):
        raise NotFound(f"no such scenario: {path_text(name)}", f"one of {', '.join(scenario_names())}, or a .toml file")
    try:
        return load_scenario(name, seed=seed, days=days, scale=scale)
    except ScenarioError as error:
        raise BadInput(str(error).replace("\n", "\nerror: ")) from error
    except FileNotFoundError as error:
        raise NotFound(f"no such file: {path_text(name)}") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path_text(name)}: not UTF-8 (byte {error.start})") from error
    except OSError as error:
        raise BadInput(f"{path_text(name)} cannot be read: {error.strerror}") from error


def _trace(name: str, on_evict: str) -> TraceWorkload:
    from simulations.traces.csv_trace import read_trace  # noqa: PLC0415

    path = Path(name)
    try:
        return TraceWorkload(path_text(path.name), read_trace(path), on_evict)  # type: ignore[arg-type]  # click checked it
    except TraceError as error:
        hint = "other formats: fairtier simulate import --help" if error.field == "header" else None
        raise BadInput(str(error), hint) from error


def _expected(trace: str) -> int | None:
    """Sessions in a trace file, for the progress line; None where it cannot be told beforehand."""
    path = Path(trace)
    if _is_scenario(trace) or not path.is_file() or trace.endswith(".gz"):
        return None
    with path.open("rb") as file:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b"")) - 1


@simulate.command(short_help="Write a scenario's sessions as a trace.")
@click.argument("scenario")
@click.option("--out", type=PLACE, required=True, metavar="T.csv", help="Trace to write; gzip if it ends in .gz.")
@click.option("--seed", type=click.IntRange(min=0), default=1, show_default=True, metavar="S", help=SEED_HELP)
@click.option("--days", type=float, metavar="D", help="Length.  [default: the scenario's, 7]")
@click.option("--scale", type=float, default=1.0, show_default=True, metavar="X", help="Multiplies people and GPUs.")
def generate(scenario: str, out: Path, seed: int, days: float | None, scale: float) -> None:
    """Write a scenario's sessions as a trace: what its users ask for if everybody is served at once."""
    from simulations.workloads.offered import open_loop  # noqa: PLC0415

    _not_an_input(out, scenario)
    workload = _scenario(scenario, seed, days, scale)
    with Progress("sessions", None) as progress:
        count = _write(out, progress.counting(open_loop(workload), lambda row: row.submit_ms, workload))
    with printing():
        click.echo(f"{path_text(out)}: {count:,} sessions of {scenario}, seed {seed}, for {workload.gpus} GPUs")


@simulate.command(name="import", short_help="Turn a public trace into the trace format.")
@click.argument("format", type=click.Choice(sorted(IMPORTERS)), metavar="FORMAT")
@click.argument("file", type=PLACE)
@click.option("--out", type=PLACE, required=True, metavar="T.csv", help="Trace to write; gzip if it ends in .gz.")
def import_(format: str, file: Path, out: Path) -> None:
    """Turn a public trace into the trace format.

    FORMAT is helios (S-Lab Helios), philly (Microsoft Philly) or swf (Parallel Workloads Archive).
    """
    if not file.exists():
        raise NotFound(f"no such file: {path_text(file)}")
    _not_an_input(out, str(file))
    try:
        imported = import_trace(format, file)
    except TraceError as error:
        raise BadInput(str(error)) from error
    count = _write(out, iter(imported.rows))
    with printing():
        click.echo(f"{path_text(out)}: {count:,} sessions from {path_text(file.name)}")
        for why, rows in imported.left_out.items():
            click.echo(f"left out: {rows:,} rows, {why}")


def _write(out: Path, rows: Iterator[Row]) -> int:
    from simulations.recorder import check_target  # noqa: PLC0415 - needs the core
    from simulations.traces.csv_trace import write_trace  # noqa: PLC0415

    check_target(out)
    try:
        return write_trace(out.resolve(), rows)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        kind = FairTierError if full else BadInput
        hint = "free some space, or write to another disk" if full else "choose a place that can be written"
        raise kind(f"cannot write {path_text(out)}: {error.strerror}; nothing was changed", hint) from error


simulate.add_command(replay)
