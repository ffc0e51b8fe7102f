"""What each answer cost, in nanodollars; and budgets of batches, with what is reserved for calls in flight.

A worker of an older version leaves the column empty: a cost that is not known. So are those of earlier answers. It knows
no budgets: what it takes of one is not held back.
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("usage", sa.Column("cost_nano", sa.BigInteger(), nullable=True))
    op.create_table(
        "budgets",
        sa.Column("batch_id", sa.String(), nullable=False),
        sa.Column("most_tokens", sa.BigInteger(), nullable=True),
        sa.Column("most_nano", sa.BigInteger(), nullable=True),
        sa.Column("spent_tokens", sa.BigInteger(), nullable=False),
        sa.Column("spent_nano", sa.BigInteger(), nullable=False),
        sa.Column("usual_tokens", sa.Integer(), nullable=True),
        sa.Column("waits_since_ms", sa.BigInteger(), nullable=True),
        sa.Column("wanted_tokens", sa.BigInteger(), nullable=True),
        sa.Column("wanted_nano", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("batch_id"),
    )
    op.create_index(
        "ix_budgets_waiting",
        "budgets",
        ["batch_id"],
        unique=False,
        sqlite_where=sa.text("waits_since_ms IS NOT NULL"),
        postgresql_where=sa.text("waits_since_ms IS NOT NULL"),
    )
    op.create_table(
        "reservations",
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("batch_id", sa.String(), nullable=False),
        sa.Column("token", sa.String(), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.Column("cost_nano", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("job_id"),
    )
    op.create_index("ix_reservations_batch", "reservations", ["batch_id"], unique=False)


def downgrade() -> None:
    op.drop_table("reservations")
    op.drop_table("budgets")
    op.drop_column("usage", "cost_nano")
