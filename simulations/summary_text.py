"""A run's summary for people: one screen, waits by kind, one decision explained."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from scheduler.output import emit
from simulations.progress import duration_text

if TYPE_CHECKING:
    from simulations.run import Result

WAIT_COLUMNS = ("wait", "sessions", "mean", "p50", "p95", "p99")


def path_text(path: str | Path) -> str:
    """A path as a message can show it, whatever bytes it is made of."""
    return os.fsencode(path).decode(errors="replace")


def show(result: Result, out: Path | None, journal: Path | None) -> None:
    """The summary for people: one screen."""
    summary = result.summary
    sessions, speed = summary["sessions"], summary["speed"]
    click.echo(f"{summary['trace']} under {summary['policy']}, seed {summary['seed']}\n")
    shown = [f"{count:,} {what}" for what, count in sessions.items() if count or what in ("submitted", "started")]
    _line("sessions", ", ".join(shown) + _never_started(sessions))
    if sessions["submitted"]:
        _show_measures(result)
    click.echo()
    rate = f", {speed['sessions_per_s']:,.0f} sessions/s" if speed["sessions_per_s"] else ""
    _line("took", f"{duration_text(speed['wall_s'])}{rate}, {speed['cycles']:,} cycles")
    _line("digest", summary["digest"])
    if out is not None:
        _line("files", f"sessions.csv, decisions.jsonl and summary.json in {path_text(out)}")
    if journal is not None:
        _line("journal", path_text(journal))


def _show_measures(result: Result) -> None:
    """GPUs, policing, fairness, waits and a decision; there were sessions."""
    summary, gpu, fairness = result.summary, result.summary["gpu"], result.summary["fairness"]
    unknown = " (unknown load counts as busy)" if gpu["busy_counts_unknown_load_as_1"] else ""
    _line("GPUs", f"{_percent(gpu['allocated'])} allocated, {_percent(gpu['busy'])} busy{unknown}")
    if policing := _policing(summary["policing"]):
        _line("policing", policing)
    part = f", least {_percent(fairness['min_served_over_entitled'])}"
    _line(
        "fairness",
        f"served / entitled of users: Jain {_figure(fairness['jain'])}, Gini {_figure(fairness['gini'])}{part}",
    )
    if result.waited:
        click.echo()
        emit(_waits(result), WAIT_COLUMNS, "table", right=WAIT_COLUMNS[1:])
    if result.example:
        click.echo("\none decision, explained")
        width = min(100, shutil.get_terminal_size().columns)
        click.echo(click.wrap_text(result.example, width, initial_indent="  ", subsequent_indent="  "))


def _line(title: str, text: str) -> None:
    click.echo(f"{title:<10}{text}")


def _never_started(sessions: dict[str, int]) -> str:
    """Sessions that neither ran nor left: still in the queue when nothing more can happen."""
    left = sessions["submitted"] - sessions["started"] - sessions["abandoned"] - sessions["rejected"]
    return f", {left:,} still waiting" if left > 0 else ""


def _policing(counts: dict[str, Any]) -> str:
    """What the ladder did, empty when it did nothing."""
    shown = [f"{counts[what]:,} {what.replace('_', ' ')}" for what in list(counts)[:4] if counts[what]]
    if counts["evictions"]:
        shown[-1] += f" ({counts['wrongful_evictions']:,} wrongful)"
    if counts["false_warnings_per_1000"] is not None and counts["warnings"]:
        shown.append(f"{counts['false_warnings_per_1000']:.3g} false warnings per 1,000")
    return ", ".join(shown)


def _waits(result: Result) -> list[dict[str, Any]]:
    """One row a kind, and one for all where there are several."""
    waits = result.summary["wait_s"]
    kinds = [(kind, result.waited[kind], values) for kind, values in waits["by_kind"].items()]
    if len(kinds) != 1:
        kinds.append(("all", sum(result.waited.values()), waits))
    return [
        {"wait": kind, "sessions": f"{count:,}"} | {key: duration_text(values[key]) for key in WAIT_COLUMNS[2:]}
        for kind, count, values in kinds
    ]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
