"""Runs migrations inside the transaction of who asked for them: all of them or none."""

from __future__ import annotations

from alembic import context

from scheduler.adapters.tables import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    transactional_ddl=True,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
