"""The tables of the truth: what FairTier knows about sessions, users, hosts, and how it came to know it.

Times are integer milliseconds since 1970, GPU time is GPU-milliseconds, `fraction_m` and `granted_m` are thousandths of
a GPU. A column that may be empty is unknown or does not apply when it is. Text called JSON is written by the service.

Writes go through `scheduler.adapters.sql_writes`, whole rows by primary key. A new column needs a migration as well
(`scheduler/adapters/migrations`); a test holds the two equal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import BigInteger, Index, Integer, Text, UniqueConstraint, text
from sqlalchemy.orm import registry
from sqlmodel import Field, SQLModel

if TYPE_CHECKING:
    from sqlalchemy import MetaData, Table

# SQLite numbers rows by itself only in a column declared INTEGER; other databases need the wide type for milliseconds.
_BIG: Any = BigInteger().with_variant(Integer(), "sqlite")
_TEXT: Any = Text


class _Truth(SQLModel, registry=registry()):
    """Tables of ours alone, whatever else uses SQLModel in the same process."""


class SessionRow(_Truth, table=True):
    """One session from request to end."""

    __tablename__ = "sessions"
    __table_args__ = (
        Index("ix_sessions_state", "state"),
        Index("ix_sessions_user", "user"),
        Index("ix_sessions_submitted_ms", "submitted_ms"),
        Index("ix_sessions_ended_ms", "ended_ms"),
    )

    session: str = Field(primary_key=True)
    user: str
    group: str
    tier: str
    state: str
    outcome: str | None = None
    ladder: str
    gpus: int
    fraction_m: int
    gpu_type: str | None = None
    memory_mib: int | None = Field(default=None, sa_type=_BIG)
    submitted_ms: int = Field(sa_type=_BIG)
    started_ms: int | None = Field(default=None, sa_type=_BIG)
    running_ms: int | None = Field(default=None, sa_type=_BIG)
    ended_ms: int | None = Field(default=None, sa_type=_BIG)
    granted_m: int | None = None
    allocation: str | None = Field(default=None, sa_type=_TEXT)  # JSON
    busy_ms: int = Field(default=0, sa_type=_BIG)
    granted_ms: int = Field(default=0, sa_type=_BIG)
    load: float | None = None
    exit_code: int | None = None
    error: str = Field(default="", sa_type=_TEXT)
    argv: str = Field(default="[]", sa_type=_TEXT)  # JSON
    notebook: bool = False
    grace_signal: str | None = None
    ending: str | None = None
    reason: str | None = Field(default=None, sa_type=_TEXT)  # JSON
    submitted_by: str = ""
    resubmitted_from: str | None = None


class UserRow(_Truth, table=True):
    """A person: what the entitlement is and where notices go."""

    __tablename__ = "users"

    user: str = Field(primary_key=True)
    group: str
    tier: str
    shares: float
    mail: str | None = None
    created_ms: int = Field(sa_type=_BIG)
    restricted_until_ms: int | None = Field(default=None, sa_type=_BIG)  # policies.limits.FOR_EVER_MS = until pardoned


class HostRow(_Truth, table=True):
    """A machine with GPUs, as its worker last described it."""

    __tablename__ = "hosts"

    host: str = Field(primary_key=True)
    gpus: int
    model: str | None = None
    memory_mib: int | None = Field(default=None, sa_type=_BIG)
    boot: str
    epoch: int = Field(sa_type=_BIG)
    seq: int = Field(sa_type=_BIG)
    drained: bool = False
    joined_ms: int = Field(sa_type=_BIG)
    reported_ms: int = Field(sa_type=_BIG)


class TaskRow(_Truth, table=True):
    """Background work; what carries it may be lost, this may not."""

    __tablename__ = "tasks"
    __table_args__ = (Index("ix_tasks_state", "state"),)

    task: str = Field(primary_key=True)
    kind: str
    arguments: str = Field(default="{}", sa_type=_TEXT)  # JSON
    state: str
    created_ms: int = Field(sa_type=_BIG)
    attempts: int = 0
    next_ms: int = Field(default=0, sa_type=_BIG)
    result: str | None = Field(default=None, sa_type=_TEXT)  # JSON
    error: str = Field(default="", sa_type=_TEXT)


class AppealRow(_Truth, table=True):
    """A user says that a rule of acceptable use was wrong; answered once. `session` is empty where it is about none."""

    __tablename__ = "appeals"
    __table_args__ = (Index("ix_appeals_user", "user"),)

    appeal: str = Field(primary_key=True)
    user: str
    session: str
    state: str
    text: str = Field(sa_type=_TEXT)
    filed_ms: int = Field(sa_type=_BIG)
    filed_by: str = ""
    answered_ms: int | None = Field(default=None, sa_type=_BIG)
    answered_by: str = ""
    answer: str = Field(default="", sa_type=_TEXT)
    rule: str = ""
    allowed_until_ms: int | None = Field(default=None, sa_type=_BIG)


class DecisionRow(_Truth, table=True):
    """What was decided about whom, and why; `body` is `scheduler.journal.decision_dict`.

    An operator's act on a user has an empty `session`. `policy_version` is the policy in force then.
    """

    __tablename__ = "decisions"
    __table_args__ = (
        Index("ix_decisions_session", "session"),
        Index("ix_decisions_user", "user"),
        Index("ix_decisions_at_ms", "at_ms"),
        Index("ix_decisions_policy_version", "policy_version"),
    )

    seq: int | None = Field(default=None, primary_key=True, sa_type=_BIG)
    at_ms: int = Field(sa_type=_BIG)
    session: str
    user: str
    action: str
    rule: str
    body: str = Field(sa_type=_TEXT)  # JSON
    policy_version: int | None = None


class CommandRow(_Truth, table=True):
    """A command to a host: to be sent again until it is settled."""

    __tablename__ = "commands"
    __table_args__ = (
        UniqueConstraint("action", name="uq_commands_action"),
        Index("ix_commands_open", "seq", sqlite_where=text("result IS NULL"), postgresql_where=text("result IS NULL")),
    )

    seq: int | None = Field(default=None, primary_key=True, sa_type=_BIG)
    action: str
    host: str
    session: str
    kind: str
    body: str = Field(sa_type=_TEXT)  # JSON
    issued_ms: int = Field(sa_type=_BIG)
    expires_ms: int = Field(sa_type=_BIG)
    result: str | None = None
    detail: str = Field(default="", sa_type=_TEXT)


class AnswerRow(_Truth, table=True):
    """The first answer to a request is the answer to each repetition of it."""

    __tablename__ = "answers"
    __table_args__ = (Index("ix_answers_at_ms", "at_ms"),)

    key: str = Field(primary_key=True)
    at_ms: int = Field(sa_type=_BIG)
    body: str = Field(sa_type=_TEXT)  # JSON


class CursorRow(_Truth, table=True):
    """How far a stream has been taken in."""

    __tablename__ = "cursors"

    stream: str = Field(primary_key=True)
    id: str


class JournalRow(_Truth, table=True):
    """A line of the journal: an event or a cycle."""

    __tablename__ = "journal"

    seq: int = Field(primary_key=True, sa_type=_BIG, sa_column_kwargs={"autoincrement": False})
    at_ms: int = Field(sa_type=_BIG)
    line: str = Field(sa_type=_TEXT)  # JSON


class CheckpointRow(_Truth, table=True):
    """The core's state after a line of the journal."""

    __tablename__ = "checkpoints"

    seq: int = Field(primary_key=True, sa_type=_BIG, sa_column_kwargs={"autoincrement": False})
    at_ms: int = Field(sa_type=_BIG)
    head: str = Field(sa_type=_TEXT)  # JSON


class PolicyRow(_Truth, table=True):
    """A policy that is or was in force, from `at_ms` until the next version's.

    `toml` spells out every value, so that going back means the same values in a later version of the program too.
    `source` is one of start, activate, rollback.
    """

    __tablename__ = "policy_versions"

    version: int = Field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    at_ms: int = Field(sa_type=_BIG)
    name: str
    toml: str = Field(sa_type=_TEXT)
    sha256: str
    source: str
    who: str = ""
    note: str = Field(default="", sa_type=_TEXT)
    rolled_back_to: int | None = None


class LeaderRow(_Truth, table=True):
    """One row: who may write, by fencing token, and until when nobody else may ask to."""

    __tablename__ = "leader"

    id: int = Field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    holder: str
    token: int = Field(sa_type=_BIG)
    expires_ms: int = Field(sa_type=_BIG)


class MetaRow(_Truth, table=True):
    """Whose database this is: `application`, `version` of the product that made or last migrated it, `created_ms`."""

    __tablename__ = "meta"

    key: str = Field(primary_key=True)
    value: str = Field(sa_type=_TEXT)


METADATA: MetaData = _Truth.metadata


def table(name: str) -> Table:
    """The SQLAlchemy table of a name."""
    return METADATA.tables[name]


def _defaults(name: str) -> dict[str, Any]:
    """What a row holds in columns that are not given: only of columns that may be left out, and that we may set."""
    found: dict[str, Any] = {}
    for column in table(name).columns:
        if column.default is not None and getattr(column.default, "is_scalar", False):
            found[column.name] = getattr(column.default, "arg", None)
        elif column.nullable:
            found[column.name] = None
    return found


DEFAULTS = {name: _defaults(name) for name in METADATA.tables}
COLUMNS = {
    name: tuple(column.name for column in entry.columns if column is not entry.autoincrement_column)
    for name, entry in METADATA.tables.items()
}
"""Columns that a writer gives, in order; numbers that the database makes are not among them."""


def whole(name: str, row: dict[str, Any]) -> dict[str, Any]:
    """A row with every column that a writer gives; ValueError for one that is missing, or that the table has not."""
    filled = DEFAULTS[name] | row
    if len(filled) != len(COLUMNS[name]) or not all(column in filled for column in COLUMNS[name]):
        missing = [column for column in COLUMNS[name] if column not in filled]
        unknown = [column for column in filled if column not in COLUMNS[name]]
        raise ValueError(f"a row of {name}: missing {missing}, unknown {unknown}")
    return filled
