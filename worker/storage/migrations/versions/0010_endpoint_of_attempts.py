"""Which endpoint each attempt called, where jobs may go to several.

A worker of an older version leaves the column empty, as attempts of before have it: the endpoint of the job.
"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("attempts", sa.Column("endpoint", sa.String(), nullable=True))


def downgrade() -> None:
    op.drop_column("attempts", "endpoint")
