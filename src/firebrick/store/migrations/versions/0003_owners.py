"""Users, memberships, access tokens; quotas of teams; who did what (events, audit log); draining nodes."""

import uuid

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_HEAD = {"head_id": 1, "first_sequence": 1, "before_mac": "", "last_sequence": 0, "last_mac": "", "mac": ""}


def upgrade() -> None:
    for column in (
        sa.Column("max_millicpu", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("max_memory_mib", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("max_disk_mib", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("max_creates_per_s", sa.Float(), nullable=False, server_default="0"),
        sa.Column("create_allowance", sa.Float(), nullable=False, server_default="0"),
        sa.Column("create_allowance_at", sa.BigInteger(), nullable=True),
    ):
        op.add_column("teams", column)
    op.create_table(
        "users",
        sa.Column("user_id", sa.String(length=64), nullable=False),
        sa.Column("email", sa.String(length=254), nullable=False),
        sa.Column("subject", sa.String(length=512), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("user_id", name=op.f("pk_users")),
        sa.UniqueConstraint("email", name=op.f("uq_users_email")),
        sa.UniqueConstraint("subject", name=op.f("uq_users_subject")),
    )
    op.create_table(
        "team_members",
        sa.Column("team_id", sa.String(length=64), nullable=False),
        sa.Column("user_id", sa.String(length=64), nullable=False),
        sa.Column("is_default", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["team_id"], ["teams.team_id"], name=op.f("fk_team_members_team_id")),
        sa.ForeignKeyConstraint(["user_id"], ["users.user_id"], name=op.f("fk_team_members_user_id")),
        sa.PrimaryKeyConstraint("team_id", "user_id", name=op.f("pk_team_members")),
    )
    op.create_index(op.f("ix_team_members_user_id"), "team_members", ["user_id"], unique=False)
    op.create_table(
        "access_tokens",
        sa.Column("token_id", sa.String(length=64), nullable=False),
        sa.Column("user_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("mask", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["users.user_id"], name=op.f("fk_access_tokens_user_id")),
        sa.PrimaryKeyConstraint("token_id", name=op.f("pk_access_tokens")),
        sa.UniqueConstraint("hash", name=op.f("uq_access_tokens_hash")),
    )
    op.add_column("api_keys", sa.Column("created_by", sa.String(length=64), nullable=True))
    op.add_column("api_keys", sa.Column("last_used_at", sa.BigInteger(), nullable=True))
    op.create_index(op.f("ix_api_keys_team_id"), "api_keys", ["team_id"], unique=False)
    # E2B's generated clients read a key's id as a UUID; nothing refers to the ids of before.
    keys = sa.table("api_keys", sa.column("key_id"))
    for (key_id,) in op.get_bind().execute(sa.select(keys.c.key_id)).all():
        op.execute(keys.update().where(keys.c.key_id == key_id).values(key_id=str(uuid.uuid4())))
    op.add_column("nodes", sa.Column("is_draining", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("events", sa.Column("actor", sa.String(length=128), nullable=False, server_default=""))
    op.add_column("events", sa.Column("facts", sa.JSON(), nullable=True))
    op.create_index("ix_events_team", "events", ["team_id", "kind", "at"], unique=False)
    op.create_table(
        "audit_log",
        sa.Column("sequence", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.String(length=128), nullable=False),
        sa.Column("team_id", sa.String(length=64), nullable=False),
        sa.Column("action", sa.String(length=128), nullable=False),
        sa.Column("object_id", sa.String(length=256), nullable=False),
        sa.Column("request_id", sa.String(length=128), nullable=False),
        sa.Column("outcome", sa.String(length=64), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("mac", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("sequence", name=op.f("pk_audit_log")),
    )
    op.create_index(op.f("ix_audit_log_at"), "audit_log", ["at"], unique=False)
    op.create_table(
        "audit_head",
        sa.Column("head_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("first_sequence", sa.BigInteger(), nullable=False),
        sa.Column("before_mac", sa.String(length=64), nullable=False),
        sa.Column("last_sequence", sa.BigInteger(), nullable=False),
        sa.Column("last_mac", sa.String(length=64), nullable=False),
        sa.Column("mac", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("head_id", name=op.f("pk_audit_head")),
    )
    head = sa.table("audit_head", *(sa.column(name) for name in _HEAD))
    op.execute(head.insert().values(**_HEAD))
