"""What /proc says about a process. Everything here may vanish while it is read: the answer is then `None` or nothing.

Standard library only and few modules of it: the enforcer imports this and is to stay small.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

PROC = Path("/proc")
_STATE, _PARENT, _START = 0, 1, 19


def boot_id() -> str:
    """The kernel's name for the time since the host booted; process ids mean nothing across two of them."""
    return (PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def start_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since boot (10 ms): with its pid it is a process' identity."""
    fields = _stat(pid)
    return int(fields[_START]) if fields else None


def parent(pid: int) -> int | None:
    """The parent's pid."""
    fields = _stat(pid)
    return int(fields[_PARENT]) if fields else None


def lives(pid: int) -> bool:
    """Whether a process exists and is more than an unreaped exit code."""
    fields = _stat(pid)
    return fields is not None and fields[_STATE] not in ("Z", "X")


def all_pids() -> list[int]:
    """Every process on the host that we may see."""
    with os.scandir(PROC) as found:
        return [int(entry.name) for entry in found if entry.name.isdecimal()]


def environment(pid: int) -> dict[str, str]:
    """The environment that a process was started with; empty where we may not read it."""
    try:
        raw = (PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return {}
    pairs = (entry.partition("=") for entry in os.fsdecode(raw).split("\0"))
    return {name: value for name, equals, value in pairs if equals}


def send(pid: int, signum: int, still: Callable[[int], bool] | None = None) -> bool:
    """Signal the process that has this pid now; whether it was reached.

    Args:
        pid: the process.
        signum: the signal.
        still: called with the pid once it is pinned by a pidfd: False = it has become another process, leave it.
    """
    try:
        pinned = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        if still is not None and not still(pid):
            return False
        signal.pidfd_send_signal(pinned, signum)
    except OSError:
        return False
    finally:
        os.close(pinned)
    return True


def _stat(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat from the third on: the second, the name, may itself hold blanks and brackets."""
    try:
        text = (PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split() or None
