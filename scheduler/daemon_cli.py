"""`fairtier scheduler`: the process that decides."""

from __future__ import annotations

import signal
from pathlib import Path

import click

from scheduler.adapters.clock import SystemClock
from scheduler.adapters.redis_bus import RedisBus
from scheduler.adapters.rq_tasks import RqTasks
from scheduler.adapters.sql_store import SqlStore
from scheduler.background import Background
from scheduler.live_cli import state_option
from scheduler.logs import configure
from scheduler.notify_config import FILE as NOTIFY
from scheduler.notify_config import load_config
from scheduler.policy_files import DEFAULT_PRESET, read_policy
from scheduler.service import Service
from scheduler.settings import read_settings
from scheduler.state_dir import database

HOLDER = "up"
"""Name of the leader of a one-machine instance: the lock on its state directory lets only one exist."""


@click.command()
@state_option
@click.option("--redis", metavar="URL", help="Transport.  [default: the instance's own]")
@click.option("--policy", metavar="P", help="A preset or a .toml file.  [default: the one on record, or the default]")
@click.option("--hosts", default="", metavar="A,B", help="Hosts whose reports are listened to.")
def scheduler(state: Path, redis: str | None, policy: str | None, hosts: str) -> None:
    """Decide: requests and reports in, one transaction a cycle, commands out.

    Started by `fairtier up`; by itself it needs a Redis-compatible server and one API beside it.
    """
    serve(state, redis, policy, [host for host in hosts.split(",") if host])


def serve(state: Path, redis: str | None, policy: str | None, hosts: list[str]) -> None:
    """Run the service until SIGTERM."""
    settings = read_settings(state=state, redis_url=redis)
    log = configure("scheduler")
    settings.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    clock = SystemClock()
    store = SqlStore(database(settings.state), clock.now_ms)
    bus = RedisBus(settings.transport, hosts)
    try:
        store.lead(HOLDER)
        params = read_policy(policy) if policy else None if store.last_seq() else read_policy(DEFAULT_PRESET)
        background = Background(RqTasks(settings.transport, settings.state), load_config(settings.state / NOTIFY))
        service = Service(store, bus, clock, params, log.warning, background, hosts)
        signal.signal(signal.SIGTERM, lambda *_: service.stop())
        signal.signal(signal.SIGINT, lambda *_: service.stop())
        log.info("started", policy=service.policy_name, seq=store.last_seq())
        service.run()
        log.info("stopped")
    finally:
        bus.close()
        store.close()
