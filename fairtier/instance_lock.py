"""One instance per state directory: a lock that the kernel drops with its holder, and the holder's process id in it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import time
from pathlib import Path
from typing import Self

from scheduler.errors import FairTierError, Refused

NAME = "lock"


class InstanceLock:
    """Held from `__enter__` to `__exit__`; `Refused` when another instance holds it.

    Args:
        state: the state directory; must exist.
    """

    def __init__(self, state: Path) -> None:
        self._path = state / NAME
        self._fd = -1

    def __enter__(self) -> Self:
        try:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise FairTierError(f"the lock {self._path} cannot be opened: {error.strerror}") from error
        if not self._taken():
            pid = os.pread(self._fd, 32, 0).decode(errors="replace").strip()
            os.close(self._fd)
            raise Refused(
                f"an instance runs already on {self._path.parent} (process {pid or 'unknown'})",
                "fairtier status shows it, fairtier down ends it; or name another directory with --state",
            )
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)
        return self

    def _taken(self) -> bool:
        """Whether the lock is ours; once more after a moment: who only looks (`holder`) holds it for that long."""
        for pause_s in (0.02, 0.1, 0.0):
            with contextlib.suppress(OSError):
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            time.sleep(pause_s)
        return False

    def __exit__(self, *_: object) -> None:
        os.ftruncate(self._fd, 0)
        os.close(self._fd)


def holder(state: Path) -> int | None:
    """Process id of the instance that runs on a state directory; None = none does."""
    try:
        fd = os.open(state / NAME, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        pid = os.pread(fd, 32, 0).decode(errors="replace").strip()
        return int(pid) if pid.isdigit() else None
    finally:
        os.close(fd)
    return None


def end(state: Path, timeout_s: float) -> bool:
    """Tell the instance to stop and wait until it has; False = none runs. `FairTierError` when it takes too long."""
    pid = holder(state)
    if pid is None:
        return False
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        if holder(state) != pid:
            return False  # it ended between the two looks, and the number may be somebody else's now
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        if not select.select([pidfd], [], [], timeout_s)[0]:
            raise FairTierError(f"the instance (process {pid}) has not ended after {timeout_s:g} s", "fairtier logs")
    finally:
        os.close(pidfd)
    return True
