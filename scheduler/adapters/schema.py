"""Which shape a database has, and bringing an older one to ours.

Alembic is imported only when there is something to migrate: a start with a current database does not pay for it.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import insert, inspect, select, text

from scheduler.adapters.tables import table
from scheduler.errors import Refused
from scheduler.ports import NewerDatabase, StoreDown

if TYPE_CHECKING:
    from sqlalchemy import Connection

REVISIONS = ("0001", "0002", "0003", "0004")
"""Every revision, oldest first; the files are in `migrations/versions`."""
HEAD = REVISIONS[-1]
APPLICATION = "fairtier"

_SCRIPTS = Path(__file__).parent / "migrations"


def product() -> str:
    """Version of the program that runs."""
    try:
        return metadata.version("fairtier")
    except metadata.PackageNotFoundError:
        return "unknown"


def revision(connection: Connection) -> str | None:
    """The revision of a database, None for an empty one; `Refused` when it is somebody else's."""
    found = inspect(connection)
    names = found.get_table_names()
    if not names:
        return None
    if not {"meta", "alembic_version"} <= set(names) or _meta(connection).get("application") != APPLICATION:
        raise Refused(f"no FairTier database: its tables are {', '.join(names[:5])}", "give the path of another file")
    return str(connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one())


def check(connection: Connection, name: str) -> None:
    """For readers: `NewerDatabase`, or `StoreDown` for one that its owner has not brought to our shape yet."""
    found = revision(connection)
    refuse_newer(connection, found, name)
    if found != HEAD:
        state = "has no tables yet" if found is None else f"has the older schema {found}, ours is {HEAD}"
        raise StoreDown(f"{name} {state}", "start the scheduler: it prepares its database")


def prepare(connection: Connection, name: str, now_ms: int) -> None:
    """For the writer, inside its transaction: make the tables, or migrate them; `NewerDatabase` if they are newer."""
    found = revision(connection)
    refuse_newer(connection, found, name)
    if found != HEAD:
        _upgrade(connection)
        _sign(connection, now_ms)


def refuse_newer(connection: Connection, found: str | None, name: str) -> None:
    """Refuse what a newer version wrote: we would misread it."""
    if found is None or found in REVISIONS:
        return
    theirs = _meta(connection).get("version", "unknown")
    raise NewerDatabase(
        f"{name} was written by FairTier {theirs} (schema {found}); this is {product()} (schema {HEAD})",
        f"run FairTier {theirs} or newer, or restore a backup made before the upgrade",
    )


def _meta(connection: Connection) -> dict[str, str]:
    meta = table("meta")
    return {row.key: row.value for row in connection.execute(select(meta.c.key, meta.c.value))}


def _sign(connection: Connection, now_ms: int) -> None:
    meta = table("meta")
    old = _meta(connection)
    new = {"application": APPLICATION, "created_ms": str(now_ms), **old, "version": product()}
    connection.execute(meta.delete())
    connection.execute(insert(meta), [{"key": key, "value": value} for key, value in new.items()])


def _upgrade(connection: Connection) -> None:
    from alembic import command  # noqa: PLC0415 - half a second that only a migration needs

    command.upgrade(alembic_config(connection), "head")


def alembic_config(connection: Connection) -> Any:
    """Alembic's configuration for this database and our migrations, without a file."""
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
