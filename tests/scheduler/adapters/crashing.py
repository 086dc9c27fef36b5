"""Commits that are killed (SIGKILL) at each of their statements in turn, for `test_sql_store.py`.

`python -m tests.scheduler.adapters.crashing DATABASE none` prints for each whether it was killed and what was on record
then; `... DATABASE autocommit` plants the fault that the test must find: no transaction. `... DATABASE endless` commits
until somebody kills it and prints the number of each commit after it.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import sys
from pathlib import Path

from sqlalchemy import event

from scheduler.adapters import database
from scheduler.adapters.sql_store import SqlStore
from scheduler.ports import Batch
from scheduler.requests import Answer
from tests.contract import world as w

_MOST_STATEMENTS = 40


def batch(number: int) -> Batch:
    """One of everything, all carrying the same number."""
    name = f"s-{number}"
    return w.batch(
        lines=[f"line {number}"],
        sessions=w.sessions(name),
        users={name: w.USER | {"user": name}},
        hosts={name: w.HOST | {"host": name}},
        tasks={name: w.TASK | {"task": name}},
        appeals={name: w.APPEAL | {"appeal": name}},
        decisions=[w.DECISION | {"session": name}],
        commands=[w.command(name)],
        answers=[Answer(key=name)],
        cursors={"ft:inbox": f"{number}-0"},
        policies=[w.POLICY | {"version": number}],
        checkpoint=f"head {number}",
    )


def counts(store: SqlStore) -> list[int]:
    """How many of each thing are on record; all the same if every commit was whole."""
    with sqlite3.connect(store.path) as connection:
        answers = connection.execute("SELECT count(*) FROM answers").fetchone()[0]
    connection.close()
    past = store.past()
    return [
        store.last_seq(),
        past.seq,
        len(store.sessions()),
        len(store.users()),
        len(store.hosts()),
        len(store.tasks()),
        len(store.appeals()),
        len(store.decisions()),
        len(store.outbox()),
        len(store.policies()),
        answers,
        int(store.cursors().get("ft:inbox", "0-0").partition("-")[0]),
    ]


def killed_at(path: Path, number: int, statement: int, fault: str) -> bool:
    """Commit in a process of its own that kills itself before its n-th statement; False when there are fewer."""
    child = os.fork()
    if child == 0:
        store = SqlStore(path, w.Clock())
        store.lead("one")
        _commit_and_die(store, number, statement, fault)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def _commit_and_die(store: SqlStore, number: int, statement: int, fault: str) -> None:
    assert store._connection is not None
    raw = store._connection.connection.driver_connection
    assert isinstance(raw, sqlite3.Connection)
    seen = 0

    def count(_: str) -> None:
        nonlocal seen
        seen += 1
        if seen > statement:
            os.kill(os.getpid(), signal.SIGKILL)

    if fault == "autocommit":
        event.remove(store._writing, "begin", database._begin_write)
    raw.set_trace_callback(count)
    store.commit(batch(number))


def endless(path: Path) -> None:
    """Commit after commit, continuing what is there."""
    store = SqlStore(path, w.Clock())
    store.lead("one")
    number = store.last_seq()
    while True:
        number += 1
        store.commit(batch(number))
        print(number, flush=True)


def main() -> None:
    """One commit killed at each statement, until one has no more statements to be killed at."""
    path, fault = Path(sys.argv[1]), sys.argv[2]
    if fault == "endless":
        endless(path)
    SqlStore(path, w.Clock()).close()
    found, number = [], 1
    for statement in range(_MOST_STATEMENTS):
        killed = killed_at(path, number, statement, fault)
        store = SqlStore(path, w.Clock())
        found.append({"killed": killed, "counts": counts(store)})
        store.close()
        if not killed:
            break
    print(json.dumps(found))


if __name__ == "__main__":
    main()
