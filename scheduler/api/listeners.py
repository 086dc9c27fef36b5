"""The sockets that the API listens on: one in the state directory for those who may everything, one on loopback."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING

from scheduler.errors import FairTierError, Refused

if TYPE_CHECKING:
    from pathlib import Path

LOOPBACK = "127.0.0.1"
BACKLOG = 512


@contextlib.contextmanager
def tcp_listener(port: int) -> Iterator[socket.socket]:
    """A socket on a port of loopback, 0 = a free one; `Refused` when somebody has it."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((LOOPBACK, port))
            listener.listen(BACKLOG)
        except OSError as error:
            raise Refused(
                f"cannot listen on {LOOPBACK}:{port}: {error.strerror}", "--http 0 picks a free port"
            ) from None
        listener.setblocking(False)
        yield listener
    finally:
        listener.close()


@contextlib.contextmanager
def unix_listener(path: Path) -> Iterator[socket.socket]:
    """A socket at a path, for its owner alone (0600); gone from the disk at the end.

    What a dead process left there is replaced; `Refused` while somebody listens.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _only_one(path), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        _clear(path)
        before = os.umask(0o177)  # so that there is no moment in which others may connect
        try:
            listener.bind(str(path))
        except OSError as error:
            raise FairTierError(f"cannot listen on {path}: {error.strerror}") from None
        finally:
            os.umask(before)
        try:
            listener.listen(BACKLOG)
            listener.setblocking(False)
            yield listener
        finally:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _only_one(path: Path) -> Iterator[None]:
    """Hold the lock beside the socket: two that start at once must not take each other's socket for a dead one's."""
    handle = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise _taken(path) from None
    finally:
        os.close(handle)


def _clear(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.ECONNREFUSED:
                raise _taken(path) from None
            path.unlink(missing_ok=True)
            return
    raise _taken(path)


def _taken(path: Path) -> Refused:
    return Refused(f"somebody listens on {path} already", "fairtier status says what runs; fairtier down ends it")
