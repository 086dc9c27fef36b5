"""The policy in force, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from scheduler.output import emit
from scheduler.tables_text import version_by
from scheduler.why_words import count, span

if TYPE_CHECKING:
    from collections.abc import Iterator

Json = dict[str, Any]
_TIERS = ("tier", "baseline_gpus", "auto", "users", "users_counted", "credit_cap_gpu_h", "moves_at")


def show_live(found: Json) -> None:
    """Print what `GET /v1/policy` answers."""
    click.echo(f"{found['name']}: version {found.get('version', '-')}, in force since {_to_second(found.get('since'))}")
    if "version" in found:
        who = f" by {found['who']}" if found["who"] else ""
        note = f": {found['note']}" if found["note"] else ""
        click.echo(f"  {version_by(found)}{who}{note}")
    headroom = found["headroom"]
    if headroom is None:
        click.echo(f"  {found['policy']}: a plain order, without tiers and headroom")
        return
    click.echo("\nTiers, and what their users are entitled to\n")
    rows = [row | {"moves_at": _to_second(row["moves_at"])} for row in found["tiers"]]
    numbers = ("baseline_gpus", "users", "users_counted", "credit_cap_gpu_h")
    emit(rows, _TIERS, right=numbers)
    click.echo("\nHeadroom, the GPUs kept free for requests in credit\n")
    emit([{"what": what, "value": value} for what, value in _headroom(headroom)], ("what", "value"))
    click.echo(
        f"\nGPUs asked for in credit per hour of the day (UTC), learned; the prior says {headroom['prior_per_h']:g}\n"
    )
    emit(_hours(headroom["hours"]), ("hour", "per_h", "hour ", "per_h "), right=("per_h", "per_h ", "hour", "hour "))


def _headroom(found: Json) -> Iterator[tuple[str, str]]:
    goal = found["by"] == "goal"
    how = f"by the goal of finding a free GPU with {100 * found['confidence']:g} %" if goal else "a fixed number"
    yield "kept free", f"{count(found['stock_gpus'], 'GPU')} of {found['total_gpus']:g}, {how}"
    if found["wanted_gpus"] > found["stock_gpus"]:
        yield "wanted", f"{count(found['wanted_gpus'], 'GPU')}; max_fraction allows no more"
    yield "at most", f"{count(found['most_gpus'], 'GPU')} ({100 * found['max_fraction']:g} % of all)"
    yield "free now", f"{count(found['free_gpus'], 'GPU')}; with what is on its way {found['coming_gpus']:g}"
    yield "asked for now", f"{count(found['asked_gpus'], 'GPU')} by waiters in credit that do not fit"
    yield "missing now", count(found["deficit_gpus"], "GPU")
    yield "lead time", f"{span(round(found['lead_time_s'] * 1000))}: a warning and its grace"
    yield "expected in it", f"{found['expected_gpus']:.2f} GPUs asked for, {found['departures_gpus']:.2f} given back"
    learned = f"{found['rate_per_h']:.2f} GPUs asked for per hour, variance / mean {found['dispersion']:.1f}"
    yield "at this hour", f"{learned} (prior {found['prior_per_h']:g} and {found['prior_dispersion']:g})"
    if goal:
        yield "computed again", str(_to_second(found["next_at"]))


def _hours(hours: list[Json]) -> list[Json]:
    """Morning and afternoon side by side."""
    half = len(hours) // 2
    return [
        {"hour": am["hour"], "per_h": f"{am['per_h']:.2f}", "hour ": pm["hour"], "per_h ": f"{pm['per_h']:.2f}"}
        for am, pm in zip(hours[:half], hours[half:], strict=True)
    ]


def _to_second(at: str | None) -> str | None:
    return None if at is None else at[:19].replace("T", " ") + "Z"
