"""Metadata can be found: a digest for each pair, filled for the sandboxes that are there."""

import hashlib
import json

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "sandbox_metadata",
        sa.Column("team_id", sa.String(length=64), nullable=False),
        sa.Column("pair", sa.String(length=32), nullable=False),
        sa.Column("sandbox_id", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(
            ["sandbox_id"], ["sandboxes.sandbox_id"], name=op.f("fk_sandbox_metadata_sandbox_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("team_id", "pair", "sandbox_id", name=op.f("pk_sandbox_metadata")),
    )
    op.create_index(op.f("ix_sandbox_metadata_sandbox_id"), "sandbox_metadata", ["sandbox_id"], unique=False)
    connection = op.get_bind()
    target = sa.table("sandbox_metadata", sa.column("team_id"), sa.column("pair"), sa.column("sandbox_id"))
    for team_id, sandbox_id, metadata in connection.execute(
        sa.text("SELECT team_id, sandbox_id, metadata FROM sandboxes")
    ).all():
        pairs = json.loads(metadata) if isinstance(metadata, str) else metadata
        rows = [
            {"team_id": team_id, "pair": _digest(key, value), "sandbox_id": sandbox_id} for key, value in pairs.items()
        ]
        if rows:
            connection.execute(sa.insert(target), rows)


def _digest(key: str, value: str) -> str:
    name = key.encode("utf-8", "surrogatepass")
    text = b"%d:%s%s" % (len(name), name, value.encode("utf-8", "surrogatepass"))
    return hashlib.blake2b(text, digest_size=16).hexdigest()
