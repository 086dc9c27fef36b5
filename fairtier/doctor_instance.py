"""Checks of the instance on a state directory; one that runs is not disturbed."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

if TYPE_CHECKING:
    from sqlalchemy import Connection

from fairtier.finding import FAIL, OK, WARN, Result, owner_name

CHECK_S = 10.0
"""Longest time for reading through the records: a running instance's disk is not ours to keep busy."""


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
        return Result(
            WARN, f"{FILE} belongs to {owner_name(path.stat().st_uid)} and was not read", "run this as that user"
        )
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


INSTANCE = (
    ("instance", check_instance),
    ("api", check_api),
    ("scheduler", check_scheduler),
    ("records", check_database),
    ("policy", check_policy),
    ("notices", check_notices),
)
