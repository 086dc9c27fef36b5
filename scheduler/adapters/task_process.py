"""The process of one task: what it may do, and that it leaves a result whatever happens.

It has no use for Redis, runs with low priority, and does not outlive its worker.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from rq.timeouts import JobTimeoutException, UnixSignalDeathPenalty

from scheduler.adapters import task_files
from scheduler.errors import FairTierError
from scheduler.task_rows import TryAgain

if TYPE_CHECKING:
    from scheduler.adapters.strict_job import Order

NICENESS = 10
_PR_SET_PDEATHSIG = 1

log = logging.getLogger("fairtier.tasks")


class Context(NamedTuple):
    """Where a task runs: its name, the folder for its files, the instance's state directory."""

    task: str
    folder: Path
    state: Path


class Allowed(NamedTuple):
    """One entry of the allow-list: a function that checks its arguments itself, and how long it may take.

    The function returns a result that JSON can hold, or raises: `TryAgain` for what may pass, `FairTierError` for the
    rest. It may run again after it was killed at any point, and must not mind.
    """

    run: Callable[[Context, dict[str, Any]], dict[str, Any]]
    timeout_s: int


def become(parent: int | None, work: Callable[[], None]) -> NoReturn:
    """Be the process of a task, in a fork of the worker `parent`: do the work and leave, 0 = a result is there."""
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _end_with(parent)
        os.nice(NICENESS)
        work()
        code = 0
    except BaseException:
        log.exception("a task left no result")
    finally:
        os._exit(code)


def perform(allowed: Allowed, order: Order, task: str, state: Path) -> None:
    """Run a task and put its result in place."""
    task_files.clear(state, task)
    context = Context(task, task_files.folder(state, task), state)
    outcome = blank(order) | _outcome(allowed, order, context)
    try:
        task_files.write_outcome(state, task, outcome)
    except (TypeError, ValueError) as error:  # a result that is not JSON, or too large
        outcome = blank(order) | {"error": str(error)}
        task_files.write_outcome(state, task, outcome)
    log.info("task %s: %s %s", task, order.kind, "done" if outcome["ok"] else f"failed: {outcome['error']}")


def blank(order: Order) -> dict[str, Any]:
    """An outcome before it is known, with what says whose it is."""
    return {"ok": False, "attempt": order.attempt, "made_ms": order.made_ms}


def _outcome(allowed: Allowed, order: Order, context: Context) -> dict[str, Any]:
    try:
        with UnixSignalDeathPenalty(allowed.timeout_s, JobTimeoutException):  # type: ignore[no-untyped-call]
            return {"ok": True, "result": allowed.run(context, order.arguments)}
    except FairTierError as error:
        hint = f" ({error.hint})" if error.hint else ""
        return {"error": f"{error.message}{hint}", "retry": isinstance(error, TryAgain)}
    except JobTimeoutException:
        return {"error": f"it took longer than {allowed.timeout_s} s"}
    except Exception as error:
        log.exception("task %s failed", context.task)
        return {"error": f"{type(error).__name__}: {error}"}


def _end_with(parent: int | None) -> None:
    """Ask the kernel to kill this process when its worker dies: nothing may run on unwatched."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != parent:
        os._exit(1)
