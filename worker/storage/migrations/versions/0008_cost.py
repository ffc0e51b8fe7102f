"""What each answer cost, in nanodollars.

A worker of an older version leaves the column empty: a cost that is not known. So are those of earlier answers.
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("usage", sa.Column("cost_nano", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    op.drop_column("usage", "cost_nano")
