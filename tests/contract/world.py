"""What the contract suite of the store needs: stores on common data, a clock, and rows with every column filled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from scheduler.adapters.memory import MemoryData, MemoryStore
from scheduler.adapters.sql_store import SqlStore
from scheduler.ports import Batch, Row

if TYPE_CHECKING:
    from pathlib import Path

    from scheduler.ports import Store

NOW_MS = 1_900_000_000_000
DAY_MS = 24 * 3600 * 1000


class Clock:
    """A clock that stands until it is told otherwise."""

    def __init__(self) -> None:
        self.now_ms = NOW_MS

    def __call__(self) -> int:
        return self.now_ms


class World(Protocol):
    """Where stores of one kind share data as processes would."""

    clock: Clock

    def open(self) -> Store:
        """Another connection to the same data."""

    def close(self) -> None:
        """Close every store opened."""


class _World:
    def __init__(self) -> None:
        self.clock = Clock()
        self._opened: list[Store] = []

    def _keep(self, store: Store) -> Store:
        self._opened.append(store)
        return store

    def close(self) -> None:
        """Close every store opened."""
        for store in self._opened:
            store.close()


class MemoryWorld(_World):
    """Stores in memory."""

    def __init__(self) -> None:
        super().__init__()
        self._data = MemoryData()

    def open(self) -> Store:
        """Another store on the same dictionaries."""
        return self._keep(MemoryStore(self.clock, self._data))


class SqlWorld(_World):
    """Stores on one SQLite file."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.path = directory / "fairtier.db"

    def open(self) -> Store:
        """Another connection to the same file."""
        return self._keep(SqlStore(self.path, self.clock))


SESSION: Row = {
    "session": "s-1",
    "user": "ann",
    "group": "bio",
    "tier": "free",
    "state": "ended",
    "outcome": "evicted",
    "ladder": "grace",
    "gpus": 2,
    "fraction_m": 500,
    "gpu_type": "A100",
    "memory_mib": 1 << 30,
    "submitted_ms": NOW_MS,
    "started_ms": NOW_MS + 1,
    "running_ms": NOW_MS + 2,
    "ended_ms": NOW_MS + 3,
    "granted_m": 250,
    "allocation": '[["h1",[0,1]]]',
    "busy_ms": 1 << 40,
    "granted_ms": 1 << 41,
    "load": 0.125,
    "exit_code": 137,
    "error": "killed: it said 'stop'; \u00fcber\n",
    "argv": '["python","-c","print(1)"]',
    "notebook": True,
    "grace_signal": "USR1",
    "ending": "evicted",
    "reason": '{"rule":"ladder.evict"}',
    "submitted_by": "root",
    "resubmitted_from": "s-0",
}
USER: Row = {
    "user": "ann",
    "group": "bio",
    "tier": "free",
    "shares": 1.5,
    "mail": "a@b.example",
    "created_ms": NOW_MS,
    "restricted_until_ms": 1 << 62,
}
HOST: Row = {
    "host": "h1",
    "gpus": 8,
    "model": "A100",
    "memory_mib": 81_920,
    "boot": "b-1",
    "epoch": 3,
    "seq": 1 << 40,
    "drained": True,
    "joined_ms": NOW_MS,
    "reported_ms": NOW_MS + 5,
}
TASK: Row = {
    "task": "t-1",
    "kind": "simulate",
    "arguments": '{"scenario":"busy"}',
    "state": "failed",
    "created_ms": NOW_MS,
    "attempts": 3,
    "next_ms": NOW_MS + 9,
    "result": "{}",
    "error": "no such scenario",
}
APPEAL: Row = {
    "appeal": "a-1",
    "user": "ann",
    "session": "s-1",
    "state": "granted",
    "text": "it is my thesis",
    "filed_ms": NOW_MS,
    "filed_by": "ann",
    "answered_ms": NOW_MS + 7,
    "answered_by": "ops",
    "answer": "sorry",
    "rule": "mining",
    "allowed_until_ms": 1 << 41,
}
DECISION: Row = {
    "at_ms": NOW_MS,
    "session": "s-1",
    "user": "ann",
    "action": "evict",
    "rule": "ladder.evict",
    "body": '{"value":0.5}',
    "policy_version": 3,
}
POLICY: Row = {
    "version": 1,
    "at_ms": NOW_MS,
    "name": "mine",
    "toml": "name = 'mine'\n# \u00fcber\n",
    "sha256": "00ff",
    "source": "rollback",
    "who": "root",
    "note": "it's three",
    "rolled_back_to": 7,
}
COMMAND: Row = {
    "action": "s-1:1:stop",
    "host": "h1",
    "session": "s-1",
    "kind": "stop",
    "body": '{"kind":"stop"}',
    "issued_ms": NOW_MS,
    "expires_ms": NOW_MS + 60_000,
    "result": None,
    "detail": "",
}


def sessions(*names: str, **values: Any) -> dict[str, Row]:
    """Rows of sessions that differ from `SESSION` in these values."""
    return {name: SESSION | values | {"session": name} for name in names}


def command(action: str, **values: Any) -> Row:
    """A command's row."""
    return COMMAND | values | {"action": action}


def batch(**parts: Any) -> Batch:
    """A batch of now."""
    return Batch(**({"now_ms": NOW_MS} | parts))
