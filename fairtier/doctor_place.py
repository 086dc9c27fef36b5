"""Checks of the place where an instance keeps its things: directory, sockets, room, disk."""

from __future__ import annotations

import os
import re
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy import Connection

from fairtier.finding import FAIL, OK, WARN, Result, owner_name

PROC = Path("/proc")
ROOM_WARN, ROOM_FAIL = 1024**3, 50 * 1024**2
"""Bytes free: records, logs and what sessions leave behind grow there."""
COMMITS = 5
SLOW_COMMIT_MS = 50.0
"""A cycle commits once, and a submit is answered after it; above this people begin to feel the disk."""
NETWORK = (
    *("9p", "afs", "beegfs", "ceph", "cifs", "gfs2", "glusterfs", "gpfs", "lustre", "nfs", "nfs4", "ocfs2", "smb3"),
    *("smbfs", "virtiofs", "fuse.ceph", "fuse.glusterfs", "fuse.s3fs", "fuse.sshfs"),
)
VOLATILE = ("tmpfs", "ramfs")


def check_directory(state: Path) -> Result:
    """Who may use the state directory."""
    base = _nearest(state)
    writable = os.access(base, os.R_OK | os.W_OK | os.X_OK)
    if base != state:
        found = f"{state} is not there yet"
        return (
            Result(OK, found) if writable else Result(FAIL, f"{found}, {base} is not writable", "--state names another")
        )
    about = state.stat()
    mode = about.st_mode & 0o7777
    if about.st_uid != os.geteuid():
        owner = owner_name(about.st_uid)
        level = WARN if os.geteuid() == 0 else FAIL
        return Result(level, f"{state} belongs to {owner}, you are {owner_name(os.geteuid())}", f"run this as {owner}")
    if not writable:
        return Result(FAIL, f"{state} is not writable (mode {mode:04o})", f"chmod 700 {state}, or a writable disk")
    if mode & 0o077:
        return Result(FAIL if mode & 0o022 else WARN, f"{state} is open to others ({mode:04o})", f"chmod 700 {state}")
    return Result(OK, f"{state}, yours alone")


def check_sockets(state: Path) -> Result:
    """Whether paths of sockets fit into what the kernel takes."""
    from scheduler.state_dir import LONGEST_SOCKET, api_socket, redis_socket  # noqa: PLC0415

    length = max(len(os.fsencode(socket)) for socket in (api_socket(state), redis_socket(state)))
    return Result(OK, f"paths of {length} bytes, the kernel takes {LONGEST_SOCKET}")


def check_space(state: Path) -> Result:
    """Room for records, logs and sessions."""
    free = shutil.disk_usage(_nearest(state)).free
    found = f"{free / 1024**3:.1f} GiB free" if free >= ROOM_WARN else f"{free / 1024**2:.0f} MiB free"
    level = OK if free >= ROOM_WARN else WARN if free >= ROOM_FAIL else FAIL
    return Result(level, found, "" if level == OK else f"free some space: df {_nearest(state)}")


def check_file_system(state: Path) -> Result:
    """Where the records are: SQLite's log needs shared memory and locks, which network file systems lack or fake."""
    point, kind = mount_of(_nearest(state).resolve(), (PROC / "self" / "mountinfo").read_text(encoding="utf-8"))
    found = f"{kind} at {point}"
    if kind in NETWORK:
        return Result(WARN, f"{found} is a network file system: records may be damaged", "--state on a local disk")
    if kind in VOLATILE:
        return Result(WARN, f"{found} is memory: records end with the machine", "--state on a disk")
    return Result(OK, found)


def check_commit(state: Path) -> Result | None:
    """Whether a write-ahead log works there, and how long a commit takes that is on disk."""
    from sqlalchemy import text  # noqa: PLC0415

    from scheduler.adapters import database  # noqa: PLC0415

    base = _nearest(state)
    if not os.access(base, os.W_OK | os.X_OK):
        return None
    with tempfile.TemporaryDirectory(prefix=".fairtier-doctor-", dir=base) as folder:
        trial = Path(folder) / "trial.db"
        database.create(trial)
        with database.telling(trial), database.writer(trial).connect() as connection:
            mode = connection.execute(text("PRAGMA journal_mode")).scalar_one()
            connection.execute(text("CREATE TABLE trial (n INTEGER)"))
            connection.commit()
            median_ms = statistics.median(_commit_ms(connection) for _ in range(COMMITS))
    if mode != "wal":
        return Result(FAIL, f"SQLite keeps no write-ahead log there (it says {mode})", "--state on a local disk")
    slow = median_ms > SLOW_COMMIT_MS
    return Result(
        WARN if slow else OK,
        f"a write-ahead log works, {median_ms:.1f} ms a commit",
        "a faster disk: each cycle waits" if slow else "",
    )


def mount_of(path: Path, mountinfo: str) -> tuple[Path, str]:
    """The mount point that a path is on and its file system's type, from the text of /proc/self/mountinfo."""
    found = (Path("/"), "unknown")
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        point = Path(re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), left.split(" ")[4]))
        if path.is_relative_to(point) and len(point.parts) >= len(found[0].parts):
            found = point, right.split(" ")[0]  # of two at the same place the later one lies on top
    return found


def _commit_ms(connection: Connection) -> float:
    began_s = time.perf_counter()
    connection.exec_driver_sql("INSERT INTO trial VALUES (1)")
    connection.commit()
    return (time.perf_counter() - began_s) * 1000


def _nearest(state: Path) -> Path:
    """The directory, or the nearest one above it that exists."""
    return next(folder for folder in (state, *state.parents) if os.access(folder, os.F_OK))


PLACE = (
    ("state directory", check_directory),
    ("sockets", check_sockets),
    ("space", check_space),
    ("file system", check_file_system),
    ("commits", check_commit),
)
