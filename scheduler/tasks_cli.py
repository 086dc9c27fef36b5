"""`fairtier tasks`: the daemon that does background work."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import click

from scheduler import state_dir
from scheduler.errors import BadInput, FairTierError

RunWorker = Callable[[str, Path], bool]


def tasks_command(run_worker: RunWorker) -> click.Command:
    """The command; `run_worker(url, state)` works until it is told to stop, and says whether it was."""

    @click.command(short_help="Do background work: notices, reports, simulations.")
    @click.option(
        "--state",
        type=click.Path(path_type=Path),
        default=state_dir.DEFAULT_STATE,
        envvar="FAIRTIER_STATE",
        show_envvar=True,
        show_default=True,
        metavar="DIR",
        help="The instance's state directory.",
    )
    @click.option(
        "--redis",
        "url",
        envvar="FAIRTIER_REDIS_URL",
        show_envvar=True,
        metavar="URL",
        help="The server that carries the work; a URL with a password goes into the variable.  "
        "[default: STATE/redis.sock]",
    )
    @click.pass_context
    def tasks(ctx: click.Context, state: Path, url: str | None) -> None:
        """Do background work until SIGTERM or Ctrl-C: one task at a time, each in a process of its own.

        Start as many as needed. A task that is stopped in the middle runs again from its beginning. Exit code 0 when
        told to stop; anything else means that it should be started again.
        """
        if ctx.get_parameter_source("url") is click.core.ParameterSource.COMMANDLINE:
            _check_argument(url or "")
        state = state.expanduser().absolute()
        _log_to_stderr()
        if not run_worker(url or f"unix://{state_dir.redis_socket(state)}", state):
            raise FairTierError("background work has ended unexpectedly; what was open will be run again")

    return tasks


def _check_argument(url: str) -> None:
    """Refuse a password where every user of the machine can read it."""
    if urlsplit(url).password:
        raise BadInput("--redis holds a password, which others can read there", "put it into FAIRTIER_REDIS_URL")


class _JsonLines(logging.Formatter):
    """Lines of the form that `scheduler.logs` has, RQ's own among them."""

    def format(self, record: logging.LogRecord) -> str:
        """One JSON object."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat().replace("+00:00", "Z")
        line = {"component": "tasks", "event": record.getMessage(), "level": record.levelname.lower(), "timestamp": at}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
