"""Where an instance keeps its things: names below the state directory, and how long a socket's path may be."""

from __future__ import annotations

import os
import re
from pathlib import Path

from scheduler.errors import BadInput

DEFAULT_STATE = Path("~/.local/state/fairtier")
_PLAIN = re.compile(r'(?:(?![?#%"\\])[!-~])+')
"""Paths travel in URLs (? # %), in lists of key=value (blanks) and in quotes."""
LONGEST_SOCKET = 107
"""Bytes of a unix socket's path: `sun_path` of unix(7) has 108, one of them for the final NUL."""


def socket_path(state: Path, name: str) -> Path:
    """A socket in the state directory; `BadInput` when the kernel would not take a path of that length."""
    path = state.expanduser() / name
    if not _PLAIN.fullmatch(str(path)):
        raise BadInput(
            f"the state directory {str(path.parent)!r} has a character in its name that not every part of an instance"
            " can pass on",
            'use printable ASCII without blanks and without ? # % " \\',
        )
    length = len(os.fsencode(path))
    if length > LONGEST_SOCKET:
        raise BadInput(
            f"the socket {path} would have a path of {length} bytes, the kernel takes {LONGEST_SOCKET}",
            f"name a state directory of at most {LONGEST_SOCKET - len(os.fsencode(name)) - 1} bytes with --state",
        )
    return path


def api_socket(state: Path) -> Path:
    """The API's socket."""
    return socket_path(state, "api.sock")


def redis_socket(state: Path) -> Path:
    """The socket of the instance's own Redis-compatible server."""
    return socket_path(state, "redis.sock")


def database(state: Path) -> Path:
    """The truth."""
    return state.expanduser() / "fairtier.db"


def session_dir(state: Path, session: str) -> Path:
    """What a session leaves behind: log, work, runtime."""
    return state.expanduser() / "sessions" / session
