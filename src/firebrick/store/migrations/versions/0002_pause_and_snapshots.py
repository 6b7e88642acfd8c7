"""Pause, resume and the grace bin; snapshots; samples of use."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("templates", sa.Column("is_snapshot", sa.Boolean(), nullable=False, server_default=sa.false()))
    for column in (
        sa.Column("on_timeout", sa.String(length=16), nullable=False, server_default="kill"),
        sa.Column("auto_pause_memory", sa.Boolean(), nullable=False, server_default=sa.true()),
        sa.Column("auto_resume", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("idle_timeout_s", sa.Integer(), nullable=True),
        sa.Column("paused_at", sa.BigInteger(), nullable=True),
        sa.Column("keeps_memory", sa.Boolean(), nullable=True),
        sa.Column("recoverable_until", sa.BigInteger(), nullable=True),
        sa.Column("snapshot_id", sa.String(length=64), nullable=True),
        sa.Column("network", sa.JSON(), nullable=True),
    ):
        op.add_column("sandboxes", column)
    op.create_index(op.f("ix_sandboxes_recoverable_until"), "sandboxes", ["recoverable_until"], unique=False)
    op.create_table(
        "snapshots",
        sa.Column("snapshot_id", sa.String(length=64), nullable=False),
        sa.Column("template_id", sa.String(length=64), nullable=False),
        sa.Column("team_id", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("tag", sa.String(length=128), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=True),
        sa.Column("build_id", sa.String(length=64), nullable=False),
        sa.Column("source_id", sa.String(length=64), nullable=False),
        sa.Column("node_id", sa.String(length=64), nullable=False),
        sa.Column("runtime", sa.String(length=32), nullable=True),
        sa.Column("millicpu", sa.BigInteger(), nullable=False),
        sa.Column("memory_mib", sa.BigInteger(), nullable=False),
        sa.Column("disk_mib", sa.BigInteger(), nullable=False),
        sa.Column("process_count", sa.BigInteger(), nullable=False),
        sa.Column("keeps_memory", sa.Boolean(), nullable=False),
        sa.Column("is_private", sa.Boolean(), nullable=False),
        sa.Column("disk_bytes", sa.BigInteger(), nullable=False),
        sa.Column("stored_bytes", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["template_id"], ["templates.template_id"], name=op.f("fk_snapshots_template_id")),
        sa.ForeignKeyConstraint(["team_id"], ["teams.team_id"], name=op.f("fk_snapshots_team_id")),
        sa.ForeignKeyConstraint(["build_id"], ["builds.build_id"], name=op.f("fk_snapshots_build_id")),
        sa.PrimaryKeyConstraint("snapshot_id", name=op.f("pk_snapshots")),
    )
    op.create_index(op.f("ix_snapshots_template_id"), "snapshots", ["template_id"], unique=False)
    op.create_index(op.f("ix_snapshots_state"), "snapshots", ["state"], unique=False)
    op.create_index("ix_snapshots_list", "snapshots", ["team_id", "created_at", "snapshot_id"], unique=False)
    op.create_table(
        "usage_samples",
        sa.Column("sandbox_id", sa.String(length=64), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("cpu_used_pct", sa.Float(), nullable=False),
        sa.Column("memory_bytes", sa.BigInteger(), nullable=False),
        sa.Column("memory_limit_bytes", sa.BigInteger(), nullable=False),
        sa.Column("disk_bytes", sa.BigInteger(), nullable=False),
        sa.Column("disk_limit_bytes", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("sandbox_id", "at", name=op.f("pk_usage_samples")),
    )
    op.create_index(op.f("ix_usage_samples_at"), "usage_samples", ["at"], unique=False)
    op.create_table(
        "team_samples",
        sa.Column("team_id", sa.String(length=64), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("running_count", sa.Integer(), nullable=False),
        sa.Column("start_rate", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("team_id", "at", name=op.f("pk_team_samples")),
    )
    op.create_index(op.f("ix_team_samples_at"), "team_samples", ["at"], unique=False)
