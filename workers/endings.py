"""How a session ended: from the note of the shell that waited for it, or from the shell itself."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, NamedTuple

from workers import proc
from workers.launcher import NOT_STARTED, exit_code

if TYPE_CHECKING:
    from pathlib import Path

    from workers.session import Outcome, Session

_REAP_TRIES, _REAP_PAUSE_S = 200, 0.005


class Ending(NamedTuple):
    """Outcome, exit code of the program (None = unknown), and what went wrong if it was not the program's doing."""

    outcome: Outcome
    code: int | None
    error: str


def ending(session: Session, folder: Path, status: int | None) -> Ending:
    """How a session ended of which no process is left.

    Args:
        session: with the outcome of the Stop that it was ended by, if any.
        folder: the session's, with the exit code that its shell noted.
        status: how that shell ended: its exit code, minus the signal that killed it, None = nobody knows.
    """
    code, error = exit_code(folder), ""
    if code is None and status is not None and status >= 0:
        code = status
        error = "it could not be started; its log says why" if status == NOT_STARTED else ""
    elif code is None:
        code = None if status is None else 128 - status
        vanished = "vanished while the worker was away" if status is None else "all of it was killed from outside"
        error = "" if session.stop else vanished
    return Ending(session.stop or ("completed" if code == 0 else "failed"), code, error)


def leads(session: Session, pid: int, folder: Path, members: list[int]) -> bool:
    """Whether the process with this number is still the session's shell, and not another that got the number."""
    if session.ticks is not None and proc.start_ticks(pid) != session.ticks:
        return False
    told = proc.environment(pid).get("FAIRTIER_DIR") == str(folder)
    return proc.lives(pid) and (pid in members or told)


async def reaped(pid: int | None) -> int | None:
    """How a shell of ours ended: its exit code, or minus the signal; None = it was no child of ours.

    A process leaves its cgroup a moment before its parent can reap it.
    """
    for _ in range(_REAP_TRIES if pid else 0):
        try:
            done, status = os.waitpid(pid or 0, os.WNOHANG)
        except ChildProcessError:
            return None
        if done:
            return os.waitstatus_to_exitcode(status)
        await asyncio.sleep(_REAP_PAUSE_S)
    return None
