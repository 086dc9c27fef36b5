"""The `fairtier` command: groups that are imported only when used, and what the exit code means.

Exit codes: 0 ok, 1 failed, 2 usage or bad input, 3 not found, 4 store unreachable, 5 refused or conflict,
130 interrupted.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

import click
from click.shell_completion import get_completion_class

from policies.params import PolicyError
from scheduler.errors import BadInput, FairTierError, Refused

INTERRUPTED = 130

COMMANDS: Mapping[str, tuple[str, str]] = {
    "api": ("scheduler.api_cli:api", "Serve the HTTP API of an instance (`up` starts it)."),
    "appeal": ("scheduler.appeal_cli:appeal", "Appeals against what a rule did: file, list, answer."),
    "backup": ("scheduler.backup_cli:backup", "Copy an instance's records into one file, running or not."),
    "calendar": ("scheduler.calendar_cli:calendar", "Reservations and maintenance: list, add, remove, check."),
    "cancel": ("scheduler.session_cli:cancel", "End sessions, waiting or running."),
    "demo": ("fairtier.demo_cli:demo", "Watch a small emulated cluster with real processes."),
    "doctor": ("fairtier.doctor_cli:doctor", "Check what this machine offers, and what an instance needs."),
    "down": ("fairtier.up_cli:down", "End the instance that `up` runs."),
    "enforcer": ("workers.cli:enforcer", "Freeze, thaw and end sessions for a worker, which starts it."),
    "evict": ("scheduler.session_cli:evict", "Take the GPUs from running sessions."),
    "extend": ("scheduler.session_cli:extend", "Say that running sessions are still needed."),
    "history": ("scheduler.report_cli:history", "What was decided, and why."),
    "hold": ("scheduler.session_cli:hold", "Keep waiting sessions from starting."),
    "host": ("scheduler.admin_cli:host", "Hosts: list, show, drain, resume."),
    "init": ("fairtier.init_cli:init", "Make a directory with a commented policy and service files."),
    "logs": ("fairtier.up_cli:logs", "Show the logs of an instance's processes."),
    "policy": ("fairtier.policy_cli:policy", "Show, check, compare and change policies; rank users of a share tree."),
    "queue": ("scheduler.report_cli:queue", "Sessions that wait, in order."),
    "restore": ("scheduler.backup_cli:restore", "Put a backup in the place of an instance's records."),
    "scheduler": ("scheduler.daemon_cli:scheduler", "Decide for an instance (`up` starts it)."),
    "session": ("scheduler.session_cli:session", "One session: everything known, or its output."),
    "sessions": ("scheduler.report_cli:sessions", "Sessions that have not ended, or all."),
    "shares": ("scheduler.report_cli:shares", "Every user's usage, credit and place."),
    "simulate": ("simulations.cli:simulate", "Run policies on traces and generated workloads in virtual time."),
    "status": ("scheduler.report_cli:status", "Whether the instance works, on one page."),
    "submit": ("scheduler.submit_cli:submit", "Ask for a session: a command, or a notebook server."),
    "task": ("scheduler.admin_cli:task", "Background work: run, list, show."),
    "tasks": ("fairtier.tasks:tasks", "Do an instance's background work (`up` starts it)."),
    "unhold": ("scheduler.session_cli:unhold", "Let held sessions wait again, in their old place."),
    "up": ("fairtier.up_cli:up", "Run a whole instance on this machine."),
    "usage": ("scheduler.report_cli:usage", "GPU-hours by user."),
    "user": ("scheduler.admin_cli:user", "Users: list, set, restrict, pardon."),
    "why": ("scheduler.session_cli:why", "Why a session waits, was warned, or ended."),
    "worker": ("workers.cli:worker", "Serve the GPUs of one host (`up` starts emulated ones)."),
}
"""Name to where the command is and its line in `fairtier --help`."""


DAEMONS = ("api", "scheduler", "tasks", "up", "worker")
"""Commands that go on running: they refuse to start where a name they import belongs to somebody else."""


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called; its help imports none of them."""

    def __init__(self, *args: Any, lazy: Mapping[str, tuple[str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all commands, sorted."""
        return sorted({*super().list_commands(ctx), *self.lazy})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a name, imported now if it is a lazy one."""
        if cmd_name not in self.lazy:
            return super().get_command(ctx, cmd_name)
        if cmd_name in DAEMONS:
            _refuse_foreign_names()
        module, _, attribute = self.lazy[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"{module}:{attribute} is no command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands in the help, from the table alone."""
        rows = []
        for name in self.list_commands(ctx):
            own = self.commands.get(name)
            rows.append((name, own.get_short_help_str(limit=100) if own else self.lazy[name][1]))
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; what went wrong becomes a message and an exit code instead of a traceback."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()  # a reader that has gone away shows here, not at exit
        except PolicyError as error:
            _leave(ctx, BadInput.exit_code, *(f"error: {mistake}" for mistake in error.errors))
        except FairTierError as error:
            _leave(ctx, error.exit_code, f"error: {error.message}", *([f"hint: {error.hint}"] if error.hint else []))
        except KeyboardInterrupt:
            _leave(ctx, INTERRUPTED, "interrupted")
        return result


def _refuse_foreign_names() -> None:
    """A package of somebody else under a name of ours would run, or be run, in our place."""
    from fairtier.import_names import foreign_names  # noqa: PLC0415

    foreign = foreign_names()
    if foreign:
        raise Refused("; ".join(map(str, foreign)), "install FairTier into a virtual environment of its own")


def _leave(ctx: click.Context, code: int, *lines: str) -> NoReturn:
    """Say why on standard error and end the command with an exit code."""
    for line in lines:
        click.echo(line, err=True)
    ctx.exit(code)


@click.group(cls=LazyGroup, lazy=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fairtier", prog_name="fairtier")
def main() -> None:
    """Fair-share GPU quota scheduler for free tiers.

    Exit codes: 0 ok, 1 failed, 2 usage or bad input, 3 not found, 4 store unreachable, 5 refused, 130 interrupted.
    """


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that makes a shell complete `fairtier` commands.

    \b
    bash: eval "$(fairtier completion bash)"    in ~/.bashrc
    zsh:  eval "$(fairtier completion zsh)"     in ~/.zshrc
    fish: fairtier completion fish > ~/.config/fish/completions/fairtier.fish
    """
    kind = get_completion_class(shell)
    if kind is None:
        raise FairTierError(f"this version of click completes nothing in {shell}")
    click.echo(kind(main, {}, "fairtier", "_FAIRTIER_COMPLETE").source())
