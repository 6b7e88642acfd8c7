"""What the saved memory of a sandbox that rests takes on its node's disk."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("reservations", sa.Column("saved_mib", sa.BigInteger(), nullable=False, server_default="0"))
