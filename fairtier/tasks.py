"""The allow-list of background work, put together: what each kind runs, and the process that runs it.

A kind's code is imported in the process of its task only, so that a waiting worker stays small.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from scheduler.adapters.task_process import Allowed, Context
from scheduler.task_rows import KINDS
from scheduler.tasks_cli import tasks_command

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    Run = Callable[[Context, dict[str, Any]], dict[str, Any]]


def usage_report(context: Context, arguments: dict[str, Any]) -> dict[str, Any]:
    """Write `report.csv` or `report.json` from the sessions on record."""
    from scheduler import state_dir, usage_report  # noqa: PLC0415
    from scheduler.adapters.sql_reader import SqlReader  # noqa: PLC0415
    from scheduler.tasks import UsageReport, check_arguments  # noqa: PLC0415

    asked = check_arguments("usage-report", arguments)
    assert isinstance(asked, UsageReport)  # noqa: S101 - for the type checker
    reader = SqlReader(state_dir.database(context.state))
    try:
        entries = usage_report.usage(reader, asked.since_ms, asked.until_ms, time.time_ns() // 1_000_000)
    finally:
        reader.close()
    if asked.format == "csv":
        text = usage_report.as_csv(entries)
    else:
        text = usage_report.as_json(entries, asked.since_ms, asked.until_ms)
    (context.folder / f"report.{asked.format}").write_text(text, encoding="utf-8")
    return {"files": [f"report.{asked.format}"], "users": len(entries)}


def simulate(context: Context, arguments: dict[str, Any]) -> dict[str, Any]:
    """Run a scenario by name."""
    from scheduler.tasks import Simulate, check_arguments  # noqa: PLC0415
    from simulations import background  # noqa: PLC0415

    asked = check_arguments("simulate", arguments)
    assert isinstance(asked, Simulate)  # noqa: S101 - for the type checker
    folder = context.folder
    return background.simulate(folder, asked.scenario, asked.policy, asked.seed, asked.days, time.perf_counter)


def notify(context: Context, arguments: dict[str, Any]) -> dict[str, Any]:
    """Send one notice by one channel, as configured now."""
    from scheduler import notify, notify_config  # noqa: PLC0415
    from scheduler.adapters import senders  # noqa: PLC0415
    from scheduler.tasks import Notify, check_arguments  # noqa: PLC0415

    asked = check_arguments("notify", arguments)
    assert isinstance(asked, Notify)  # noqa: S101 - for the type checker
    config = notify_config.load_config(context.state / notify_config.FILE)
    target = getattr(config, asked.channel, None)
    if target is None:
        return {"sent": False, "reason": f"no {asked.channel} is configured any more"}
    if isinstance(target, notify_config.Webhook):
        senders.send_webhook(target, context.task, notify.payload(asked, context.task))
    else:
        text, to = notify.body(asked), asked.mail or ""
        mail = senders.make_mail(target.sender, to, notify.subject(asked), text, context.task, asked.at_ms)
        senders.send_mail(target, to, mail)
    return {"sent": True}


_RUNS: Mapping[str, Run] = {"notify": notify, "simulate": simulate, "usage-report": usage_report}
ALLOWED: Mapping[str, Allowed] = {name: Allowed(_RUNS[name], kind.timeout_s) for name, kind in KINDS.items()}
"""Everything that a worker runs."""


def run_worker(url: str, state: Path) -> bool:
    """Work until SIGTERM or SIGINT; False when it ended for any other reason, so that it is started again."""
    from scheduler.adapters.strict_rq import StrictWorker, connect  # noqa: PLC0415 - not needed to show help

    connection = connect(url)
    try:
        return StrictWorker(connection, ALLOWED, state).run()
    finally:
        connection.close()


tasks = tasks_command(run_worker)
