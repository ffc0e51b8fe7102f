"""How many calls a worker has in flight, beside the jobs in its hands that wait for a permit, and since when.

A worker of an older version leaves both empty: its claimed jobs count as calls, up to its slots.
"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("workers", sa.Column("calls", sa.Integer(), nullable=True))
    op.add_column("workers", sa.Column("oldest_call_ms", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    op.drop_column("workers", "oldest_call_ms")
    op.drop_column("workers", "calls")
