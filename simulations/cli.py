"""`fairtier simulate`: run, import, generate, replay."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from scheduler.errors import BadInput, FairTierError, NotFound
from scheduler.output import emit, emit_json, output_option
from scheduler.policy_files import DEFAULT_PRESET, PolicyNotFound, read_policy
from simulations import cluster_spec
from simulations.progress import Progress
from simulations.traces.importers import IMPORTERS, import_trace
from simulations.traces.row import TraceError
from simulations.workloads.scenario import ScenarioError, load_scenario, scenario_names
from simulations.workloads.workload import TraceWorkload

if TYPE_CHECKING:
    from policies.params import Params
    from scheduler.events import HostJoined
    from simulations.traces.row import Row
    from simulations.workloads.generated import GeneratedWorkload
    from simulations.workloads.workload import Workload

WAIT_COLUMNS = ("kind", "mean", "p50", "p95", "p99")


@click.group()
def simulate() -> None:
    """Run policies on traces and generated workloads, with the code that runs in production.

    \b
    fairtier simulate run busy                               a generated week on 64 GPUs
    fairtier simulate run T.csv --hosts 16x8 --policy fifo   a trace on 16 hosts of 8 GPUs
    """


@simulate.command()
@click.argument("trace", metavar="T.csv|SCENARIO")
@click.option("--gpus", type=int, metavar="N", help="One pool of N GPUs without host boundaries.")
@click.option("--hosts", metavar="HxG[:MODEL:GIB]", help="H hosts of G GPUs each; several groups joined by commas.")
@click.option("--shared", type=click.IntRange(min=0), metavar="N", help="At most N GPUs are shared. [default: any]")
@click.option("--policy", default=DEFAULT_PRESET, show_default=True, metavar="P", help="A preset or a .toml file.")
@click.option("--seed", type=click.IntRange(min=0), default=1, show_default=True, help="Decides a generated run.")
@click.option("--days", type=float, metavar="D", help="Length of a generated run.  [default: the scenario's, 7]")
@click.option(
    "--on-evict",
    type=click.Choice(["resume", "restart", "end"]),
    default="resume",
    show_default=True,
    help="What a trace's evicted session does: go on from its last checkpoint, begin again, or give up.",
)
@click.option("--journal", type=click.Path(path_type=Path), metavar="J.jsonl", help="Write a journal for replay.")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Write sessions.csv, decisions.jsonl, ...")
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

    Scenarios: calm (offered load .8), busy (1.0), overload (1.3), flood (2.0), on 64 GPUs unless --gpus or --hosts says
    otherwise. The same seed gives the same digest.
    """
    from simulations.run import Plan  # noqa: PLC0415 - the core is not needed to show help
    from simulations.run import run as run_plan  # noqa: PLC0415

    params, workload, cluster = _inputs(trace, policy, seed, days, on_evict, gpus, hosts)
    with Progress("sessions", _expected(trace)) as progress:
        plan = Plan(
            workload=workload,
            params=params,
            hosts=cluster,
            policy=policy,
            seed=seed,
            stopwatch=time.perf_counter,
            progress=lambda simulation, batch: progress.show(simulation.ended, batch.now_ms, workload),
            shared_limit=shared,
            out=out,
            journal=journal,
        )
        try:
            summary, example = run_plan(plan)
        except TraceError as error:
            raise BadInput(str(error)) from error
    if output == "json":
        emit_json(summary)
    else:
        _show(summary, example, out)


def _inputs(
    trace: str, policy: str, seed: int, days: float | None, on_evict: str, gpus: int | None, hosts: str | None
) -> tuple[Params, Workload, tuple[HostJoined, ...]]:
    """Policy, workload and cluster from what the command line says; everything is checked before anything runs."""
    if gpus is not None and hosts is not None:
        raise BadInput("--gpus and --hosts are two ways to say the same", "give one of them")
    params = _policy(policy)
    cluster = cluster_spec.hosts(hosts) if hosts is not None else cluster_spec.pool(gpus) if gpus is not None else None
    if trace in scenario_names() or trace.endswith(".toml"):
        generated = _scenario(trace, seed, days)
        return params, generated, cluster or cluster_spec.pool(generated.gpus)
    if days is not None:
        raise BadInput("--days is for scenarios; a trace is as long as it is")
    if cluster is None:
        raise BadInput(f"how large is the cluster for {trace}?", "give --gpus N or --hosts HxG")
    return params, _trace(trace, on_evict), cluster


def _policy(name: str) -> Params:
    try:
        return read_policy(name)
    except PolicyNotFound as error:
        raise NotFound(str(error)) from error


def _scenario(name: str, seed: int, days: float | None, scale: float = 1.0) -> GeneratedWorkload:
    try:
        return load_scenario(name, seed=seed, days=days, scale=scale)
    except ScenarioError as error:
        raise BadInput(str(error)) from error
    except FileNotFoundError as error:
        raise NotFound(f"no such file: {name}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{name} cannot be read: {error}") from error


def _trace(name: str, on_evict: str) -> TraceWorkload:
    from simulations.traces.csv_trace import read_trace  # noqa: PLC0415

    path = Path(name)
    if not path.exists():
        known = ", ".join(scenario_names())
        raise NotFound(f"no such trace: {name}", f"a file in the trace format, or a scenario: {known}")
    try:
        return TraceWorkload(path.name, read_trace(path), on_evict)  # type: ignore[arg-type]  # click checked it
    except TraceError as error:
        raise BadInput(str(error)) from error
    except OSError as error:
        raise BadInput(f"{name} cannot be read: {error.strerror}") from error


def _expected(trace: str) -> int | None:
    """Sessions in a trace file, for the progress bar; None where only time can tell."""
    path = Path(trace)
    if not path.is_file() or trace.endswith((".toml", ".gz")):
        return None
    with path.open("rb") as file:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))


def _show(summary: dict[str, Any], example: str, out: Path | None) -> None:
    """The summary for people."""
    sessions, gpu, policing, speed = (summary[key] for key in ("sessions", "gpu", "policing", "speed"))
    click.echo(f"{summary['trace']} under {summary['policy']}, seed {summary['seed']}")
    click.echo(", ".join(f"{count:,} {what}" for what, count in sessions.items()))
    click.echo()
    click.echo("wait, seconds")
    waits = [{"kind": kind} | values for kind, values in summary["wait_s"]["by_kind"].items()]
    waits.append({"kind": "all"} | {key: summary["wait_s"][key] for key in WAIT_COLUMNS[1:]})
    rounded = [{k: round(v, 1) if isinstance(v, float) else v for k, v in row.items()} for row in waits]
    emit(rounded, WAIT_COLUMNS, "table", key="waits")
    click.echo()
    unknown = " (unknown load counted as busy)" if gpu["busy_counts_unknown_load_as_1"] else ""
    click.echo(f"GPUs allocated {_percent(gpu['allocated'])}, busy {_percent(gpu['busy'])}{unknown}")
    click.echo(", ".join(f"{policing[what]:,} {what.replace('_', ' ')}" for what in list(policing)[:5]))
    fairness = summary["fairness"]
    click.echo(f"served / entitled over users: Jain {_figure(fairness['jain'])}, Gini {_figure(fairness['gini'])}")
    click.echo()
    if example:
        click.echo("one decision, explained")
        click.echo(f"  {example}")
        click.echo()
    click.echo(f"digest {summary['digest']}")
    rate = f"{speed['sessions_per_s']:,.0f} sessions/s" if speed["sessions_per_s"] else "-"
    click.echo(f"{speed['wall_s']:.2f} s, {rate}, {speed['cycles']:,} cycles")
    if out is not None:
        click.echo(f"files in {out}: sessions.csv, decisions.jsonl, summary.json")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


@simulate.command()
@click.argument("scenario")
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="T.csv", help="Trace to write.")
@click.option("--seed", type=click.IntRange(min=0), default=1, show_default=True, help="Decides everything.")
@click.option("--days", type=float, metavar="D", help="Length.  [default: the scenario's, 7]")
@click.option("--scale", type=float, default=1.0, show_default=True, metavar="X", help="Multiplies people and GPUs.")
def generate(scenario: str, out: Path, seed: int, days: float | None, scale: float) -> None:
    """Write a scenario's sessions as a trace: what its users ask for if everybody is served at once."""
    from simulations.workloads.offered import open_loop  # noqa: PLC0415

    workload = _scenario(scenario, seed, days, scale)
    with Progress("sessions", None) as progress:
        count = _write(out, progress.counting(open_loop(workload), lambda row: row.submit_ms, workload))
    click.echo(f"{out}: {count:,} sessions of {scenario}, seed {seed}, for {workload.gpus} GPUs")


@simulate.command(name="import")
@click.argument("format", type=click.Choice(sorted(IMPORTERS)))
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="T.csv", help="Trace to write.")
def import_(format: str, file: Path, out: Path) -> None:
    """Turn a public trace into the trace format."""
    if not file.exists():
        raise NotFound(f"no such file: {file}")
    try:
        imported = import_trace(format, file)
    except TraceError as error:
        raise BadInput(str(error)) from error
    except OSError as error:
        raise BadInput(f"{file} cannot be read: {error.strerror}") from error
    count = _write(out, iter(imported.rows))
    click.echo(f"{out}: {count:,} sessions from {file.name}")
    for why, rows in imported.left_out.items():
        click.echo(f"left out: {rows:,} rows, {why}")


def _write(out: Path, rows: Iterator[Row]) -> int:
    from simulations.traces.csv_trace import write_trace  # noqa: PLC0415

    try:
        return write_trace(out, rows)
    except OSError as error:
        raise BadInput(f"cannot write {out}: {error.strerror}", "choose a place that can be written") from error


@simulate.command()
@click.argument("journal", type=click.Path(path_type=Path), metavar="JOURNAL.jsonl")
@click.option("--policy", metavar="P", help="Decide by another policy and stop where it differs.")
@output_option(formats=("table", "json"))
def replay(journal: Path, policy: str | None, output: str) -> None:
    """Run a recorded journal through the core and compare every decision byte for byte.

    Exit code 1 at the first cycle that differs.
    """
    from scheduler.journal import Difference  # noqa: PLC0415
    from scheduler.journal import replay as replay_lines  # noqa: PLC0415

    if journal.is_dir():
        raise BadInput(f"{journal} is a directory", "name a journal file, written by simulate run --journal")
    if not journal.exists():
        raise NotFound(f"no such journal: {journal}")
    cycles, difference = 0, None
    params = None if policy is None else _policy(policy)
    with journal.open(encoding="utf-8", errors="surrogateescape") as lines, Progress("cycles", None) as progress:
        for result in replay_lines(lines, str(journal), params):
            if isinstance(result, Difference):
                difference = result
            else:
                cycles += 1
                progress.tick(cycles)
    if output == "json":
        found = None if difference is None else difference._asdict()
        emit_json({"journal": str(journal), "cycles": cycles, "equal": difference is None, "difference": found})
    elif difference is None:
        click.echo(f"{journal}: {cycles:,} cycles replayed, every decision equal")
    if difference is not None:
        if output != "json":
            click.echo(f"recorded  {difference.recorded}\nreplayed  {difference.replayed}")
        raise FairTierError(f"{journal}:{difference.line}: the decisions differ, after {cycles:,} equal cycles")
