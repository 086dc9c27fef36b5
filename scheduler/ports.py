"""What the service needs of the world, as protocols: a store that is the truth and a bus that is transport.

Adapters are in `scheduler.adapters`; each passes the contract suite of its port in tests/contract.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from scheduler.errors import FairTierError, Refused, Unreachable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from scheduler.requests import Answer, Request
    from workers.protocol import Forget, Notice, Report, Start, Stop, Throttle

    HostCommand = Start | Throttle | Notice | Stop | Forget

Row = dict[str, Any]
"""A row of the truth, by column name (`scheduler.adapters.tables` has the columns)."""


class StoreDown(Unreachable):
    """The store cannot be reached. Exit code 4."""


class StoreFull(Refused):
    """The store has no room: nothing was written, nothing accepted before is lost. Exit code 5."""


class Fenced(FairTierError):
    """Another scheduler has taken over; this one must stop. Exit code 1."""


class NewerDatabase(Refused):
    """The database was written by a newer version of FairTier. Exit code 5."""


class BusDown(Unreachable):
    """The transport cannot be reached. Exit code 4."""


@dataclass(slots=True)
class Batch:
    """Everything that one cycle writes, in one transaction.

    Attributes:
        now_ms: the instant.
        lines: of the journal, in order.
        sessions, users, hosts, tasks, appeals: rows to insert or to overwrite whole, by primary key.
        decisions: rows to append.
        commands: rows of the outbox to append; settled: (action, result, detail) of those that are done.
        answers: to requests, by idempotency key.
        cursors: the last message taken in, by stream.
        policies: rows of policy versions to append.
        checkpoint: the core's state after the last line, or None.
    """

    now_ms: int
    lines: list[str] = field(default_factory=list)
    sessions: dict[str, Row] = field(default_factory=dict)
    users: dict[str, Row] = field(default_factory=dict)
    hosts: dict[str, Row] = field(default_factory=dict)
    tasks: dict[str, Row] = field(default_factory=dict)
    appeals: dict[str, Row] = field(default_factory=dict)
    decisions: list[Row] = field(default_factory=list)
    commands: list[Row] = field(default_factory=list)
    settled: list[tuple[str, str, str]] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    cursors: dict[str, str] = field(default_factory=dict)
    policies: list[Row] = field(default_factory=list)
    checkpoint: str | None = None


class Past(NamedTuple):
    """A state of the core and what came after it.

    Attributes:
        seq: number of the last journal line that `head` includes; 0 = none.
        head: a journal's first line (`scheduler.journal.head_line`); None = the journal is empty.
        lines: (number, line) of what follows, in order.
    """

    seq: int
    head: str | None
    lines: Iterator[tuple[int, str]]


class Reader(Protocol):
    """The truth, read. Every call sees all that was committed before it."""

    def past(self, after: int = -1) -> Past:
        """From the newest checkpoint on; or, with `after` >= 0 and no newer checkpoint worth it, the lines after it."""

    def last_seq(self) -> int:
        """Number of the last journal line, 0 = none."""

    def journal(self) -> Iterator[str]:
        """Every line kept, in order, the first one a head line."""

    def recorded(self, since_ms: int) -> Past:
        """From the newest checkpoint at or before an instant on, or the oldest; lines are read page by page."""

    def session(self, session: str) -> Row | None:
        """One session's row."""

    def sessions(
        self,
        *,
        states: Sequence[str] = (),
        user: str | None = None,
        since_ms: int = 0,
        limit: int | None = None,
    ) -> list[Row]:
        """Rows of sessions, oldest first; `since_ms`: those not ended before it; `limit`: the newest so many."""

    def decisions(
        self, *, session: str | None = None, user: str | None = None, since_ms: int = 0, limit: int | None = None
    ) -> list[Row]:
        """Rows of decisions, oldest first; `limit`: the newest so many."""

    def users(self) -> list[Row]:
        """Rows of users, by name."""

    def hosts(self) -> list[Row]:
        """Rows of hosts, by name."""

    def tasks(self, *, states: Sequence[str] = ()) -> list[Row]:
        """Rows of tasks, oldest first."""

    def policies(self) -> list[Row]:
        """Rows of policy versions, oldest first."""

    def decisions_by_version(self) -> dict[int, int]:
        """Number of decisions on record by the version of the policy in force."""

    def appeals(self, *, user: str | None = None, states: Sequence[str] = ()) -> list[Row]:
        """Rows of appeals, oldest first."""

    def close(self) -> None:
        """Let go of the connection."""


class Store(Reader, Protocol):
    """The truth, written by one leader."""

    def lead(self, holder: str) -> int:
        """Become the leader; the fencing token. `Refused` while another holder's lease lasts."""

    def renew(self) -> None:
        """Lead on, with nothing to write. `Fenced` when another one leads, `StoreDown`, `StoreFull`."""

    def commit(self, batch: Batch) -> None:
        """All or nothing, on disk when it returns. `StoreFull`, `StoreDown`, or `Fenced` when the token is stale."""

    def answer(self, key: str) -> Answer | None:
        """The answer on record for an idempotency key."""

    def cursors(self) -> dict[str, str]:
        """The last message taken in, by stream."""

    def outbox(self) -> list[Row]:
        """Commands not settled, in order."""

    def prune(self, before_ms: int) -> int:
        """Drop journal lines, settled commands and answers older than this which nothing needs; how many."""


class Message(NamedTuple):
    """Something that arrived: a request, a report, or (None) something unreadable, and why."""

    stream: str
    id: str
    content: Request | Report | None
    raw: bytes = b""
    error: str = ""


class Bus(Protocol):
    """Transport between API, service and hosts; may lose everything at any moment."""

    def receive(self, cursors: Mapping[str, str], timeout_ms: int) -> list[Message]:
        """Messages after the cursors, waiting at most `timeout_ms` for the first. `BusDown`."""

    def send(self, commands: Iterable[tuple[str, HostCommand]]) -> None:
        """(host, command) pairs, each to its host's stream. `BusDown`."""

    def answer(self, answers: Iterable[tuple[str, Answer]]) -> None:
        """(reply_to, answer) pairs, each to who waits for it. `BusDown`."""

    def discard(self, stream: str, ids: Sequence[str]) -> None:
        """These messages are never to be read again. `BusDown`."""

    def trim(self, cursors: Mapping[str, str]) -> None:
        """Nothing up to the cursors is needed any more."""
