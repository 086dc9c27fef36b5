"""Commands of operators: `user`, `host`, `task`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TextIO

import click

from scheduler import tables_text as tables
from scheduler.client import part
from scheduler.duration import Duration, Instant, InstantOrAfter, When
from scheduler.errors import BadInput, NotFound
from scheduler.live_cli import live
from scheduler.output import emit, emit_json, output_option
from scheduler.watch import watch_option, watch_or_once

if TYPE_CHECKING:
    from scheduler.client import Client


@click.group(short_help="Users: who they are and what they are entitled to.")
def user() -> None:
    """Users: who they are and what they are entitled to."""


@user.command(name="list")
@output_option
@live
def list_users(client: Client, output: str) -> None:
    """List every user's record."""
    tables.show_table(client.get("users")["users"], tables.USERS, output, "users")


@user.command(name="set")
@click.argument("user", metavar="USER")
@click.option("--group", metavar="G", help="Group of the share tree.  [a new user's: default]")
@click.option("--tier", metavar="T", help="Class of users.  [a new user's: free]")
@click.option(
    "--until", "until", type=InstantOrAfter(), metavar="TIME",
    help="With --tier: then it is again what it was: 2026-12-01T00:00Z, or +30d.",
)  # fmt: skip
@click.option("--shares", type=float, metavar="N", help="Shares among the group's users.  [a new user's: 1]")
@click.option("--mail", metavar="ADDRESS", help="Where notices go.")
@output_option(formats=("table", "json"))
@live
def set_user(client: Client, user: str, output: str, until: When | None, **fields: Any) -> None:
    """Create a user, or change one; what is not given stays as it is.

    A tier without --until does not end by itself.
    """
    ends = {} if until is None else {"until_ms": until.at_ms, "until_s": until.after_s}
    _show_one(client.set_user(user, **fields, **ends), output)


_reason_option = click.option("--reason", default="", metavar="TEXT", help="Stands in the record.")


@user.command(name="restrict")
@click.argument("user", metavar="USER")
@click.option("--for", "for_s", type=Duration(), metavar="TIME", help="So long: 30m, 12h, 7d, ...")
@click.option("--until", "until_ms", type=Instant(), metavar="TIME", help="Until then: 2026-12-01T00:00Z.")
@_reason_option
@live
def restrict_user(client: Client, user: str, for_s: int | None, until_ms: int | None, reason: str) -> None:
    """Let nothing new of a user start.

    What runs goes on, and what waits keeps its place. With neither --for nor --until it lasts until fairtier user
    pardon. It takes the place of a restriction from before.
    """
    if for_s is not None and until_ms is not None:
        raise BadInput("a restriction lasts for a time or until an instant", "give --for or --until, or neither")
    found = client.restrict(user, for_s=for_s, until_ms=until_ms, reason=reason)
    until = tables.restricted(found)
    click.echo(
        f"{user} restricted until {'it is pardoned' if until == 'pardon' else until}: nothing new of it starts, what"
        f" runs goes on; fairtier user pardon {user} ends that"
    )


@user.command(name="pardon")
@click.argument("user", metavar="USER")
@_reason_option
@live
def pardon_user(client: Client, user: str, reason: str) -> None:
    """End a user's restriction, and the cooldown after an eviction."""
    if client.pardon(user, reason)["pardoned"]:
        click.echo(f"{user} pardoned: neither restricted nor cooling down any more")
    else:
        click.echo(f"{user} is neither restricted nor cooling down: nothing to pardon")


@click.group(short_help="Hosts: what they have, what runs on them, drain and resume.")
def host() -> None:
    """Hosts: what they have and what runs on them."""


@host.command(name="list")
@watch_option
@output_option
@live
def list_hosts(client: Client, output: str, watch: float | None) -> None:
    """List every host."""

    def show(out: TextIO) -> None:
        tables.show_table(client.get("hosts")["hosts"], tables.HOSTS, output, "hosts", out)

    watch_or_once(show, watch)


@host.command(name="show")
@click.argument("host", metavar="HOST")
@output_option(formats=("table", "json"))
@live
def show_host(client: Client, host: str, output: str) -> None:
    """Show a host and each of its GPUs."""
    found = client.get(f"hosts/{part(host)}")
    if output == "json":
        _show_one(found, output)
        return
    _show_one({name: value for name, value in found.items() if name != "devices"}, output)
    click.echo()
    tables.show_table(found["devices"], tables.DEVICES, output, "devices")


@host.command(name="drain")
@click.argument("host", metavar="HOST")
@live
def drain_host(client: Client, host: str) -> None:
    """Place nothing new on a host; what runs there goes on."""
    client.set_host(host, "drain")
    click.echo(f"{host} drained: nothing new is placed there; fairtier host resume {host} ends that")


@host.command(name="resume")
@click.argument("host", metavar="HOST")
@live
def resume_host(client: Client, host: str) -> None:
    """Let a drained host get sessions again."""
    client.set_host(host, "resume")
    click.echo(f"{host} resumed")


@click.group(short_help="Background work: reports, simulations.")
def task() -> None:
    """Background work: reports, simulations, notices."""


@task.command(name="run")
@click.argument("kind", metavar="KIND")
@click.argument("arguments", nargs=-1, metavar="[NAME=VALUE]...")
@output_option(formats=("table", "json"))
@live
def run_task(client: Client, kind: str, arguments: tuple[str, ...], output: str) -> None:
    """Start background work; a value is a number, true, false, or a text."""
    _show_one(client.run_task(kind, dict(_argument(text) for text in arguments)), output)


@task.command(name="list")
@output_option
@live
def list_tasks(client: Client, output: str) -> None:
    """List background work, oldest first."""
    tables.show_table(client.get("tasks")["tasks"], tables.TASKS, output, "tasks")


@task.command(name="show")
@click.argument("task", metavar="TASK")
@output_option(formats=("table", "json"))
@live
def show_task(client: Client, task: str, output: str) -> None:
    """Show one piece of background work and its result."""
    found = next((row for row in client.get("tasks")["tasks"] if row["task"] == task), None)
    if found is None:
        raise NotFound(f"no task {task[:100]!r}", "fairtier task list")
    _show_one(found, output)


def _argument(text: str) -> tuple[str, object]:
    """`NAME=VALUE`; a value that is JSON for a number or a truth value is one."""
    name, separator, value = text.partition("=")
    if not (name and separator):
        raise BadInput(f"{text[:100]!r} is not NAME=VALUE")
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        return name, value
    return name, parsed if isinstance(parsed, int | float | bool) else value


def _show_one(found: dict[str, Any], output: str) -> None:
    """One object: as JSON, or its members one below the other."""
    members = {name: value for name, value in found.items() if name != "schema"}
    if output == "json":
        emit_json(members)
    else:
        emit([{"what": name, "value": value} for name, value in members.items()], ("what", "value"), "table")
