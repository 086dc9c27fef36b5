"""Appeals against what a rule of acceptable use did."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Nobody has appealed so far."""
    op.create_table(
        "appeals",
        sa.Column("appeal", sa.String(), nullable=False),
        sa.Column("user", sa.String(), nullable=False),
        sa.Column("session", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("filed_ms", BIG, nullable=False),
        sa.Column("filed_by", sa.String(), nullable=False),
        sa.Column("answered_ms", BIG, nullable=True),
        sa.Column("answered_by", sa.String(), nullable=False),
        sa.Column("answer", sa.Text(), nullable=False),
        sa.Column("rule", sa.String(), nullable=False),
        sa.Column("allowed_until_ms", BIG, nullable=True),
        sa.PrimaryKeyConstraint("appeal"),
    )
    op.create_index("ix_appeals_user", "appeals", ["user"])
