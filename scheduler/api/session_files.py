"""What a session wrote: its log, and the address of its notebook server.

The files belong to whoever ran the session, so nothing here trusts them: no link is followed, nothing but a regular
file is read, and no more of it than asked.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from typing import TYPE_CHECKING, NamedTuple

from scheduler.errors import FairTierError
from scheduler.state_dir import session_dir

if TYPE_CHECKING:
    from pathlib import Path

LOG_LIMIT = 1024 * 1024
"""Bytes of a log given at once."""
_RUNTIME_LIMIT = 64 * 1024
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO)


class Piece(NamedTuple):
    """A piece of a log: where it begins, its bytes, and how long the log is."""

    offset: int
    content: bytes
    size: int


def read_log(state: Path, session: str, offset: int, limit: int) -> Piece:
    """Bytes of a session's log from `offset` on; negative: so many before its end.

    A log that was cut meanwhile (it is kept below a cap) is read from its begin.
    """
    return _read(session_dir(state, session) / "log", offset, min(limit, LOG_LIMIT)) or Piece(0, b"", 0)


def notebook_url(state: Path, session: str) -> str | None:
    """Address of a session's notebook server, with its token; None while it has not said."""
    runtime = session_dir(state, session) / "runtime"
    try:
        paths = sorted(runtime.glob("jpserver-*.json"))
    except OSError:
        return None
    found = (_url(_read(path, 0, _RUNTIME_LIMIT)) for path in paths)
    return next((url for url in found if url), None)


def _url(piece: Piece | None) -> str | None:
    try:
        server = json.loads(piece.content if piece else b"")
        url, token = server["url"], server["token"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None  # half written: asked again soon
    if not (isinstance(url, str) and url.startswith(("http://", "https://")) and isinstance(token, str)):
        return None
    return f"{url}?token={token}" if token else url


def _read(path: Path, offset: int, limit: int) -> Piece | None:
    """A piece of a regular file; None where there is none."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise FairTierError(f"{path} cannot be read: {error.strerror}") from None
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            return None
        begin = max(0, status.st_size + offset) if offset < 0 else offset if offset <= status.st_size else 0
        return Piece(begin, os.pread(handle, limit, begin), status.st_size)
    finally:
        os.close(handle)
