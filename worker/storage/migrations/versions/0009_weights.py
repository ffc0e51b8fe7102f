"""The weight of a batch: its share of the endpoint's tokens beside other batches. Empty: 1.

A worker of an older version shares by jobs and not by tokens, whatever the weight.
"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("batches", sa.Column("weight", sa.Float(), nullable=True))


def downgrade() -> None:
    op.drop_column("batches", "weight")
