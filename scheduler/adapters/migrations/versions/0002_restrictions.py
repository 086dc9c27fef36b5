"""Until when a user is restricted."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Nobody is restricted so far."""
    op.add_column("users", sa.Column("restricted_until_ms", BIG, nullable=True))
