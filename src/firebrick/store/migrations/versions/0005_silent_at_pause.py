"""Whether a sandbox's guest agent was silent when it was paused."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("sandboxes", sa.Column("silent_at_pause", sa.Boolean(), nullable=True))
