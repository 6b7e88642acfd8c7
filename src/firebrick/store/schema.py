"""Every table, once. Migrations bring a database to this shape; a contract test compares the two.

Times are whole microseconds since 1970 in a BIGINT: exact, sortable and equal on both databases. A sandbox's
`is_listed` repeats what `lifecycle.is_visible` says of its state, so that the list of a team is one index range.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    false,
    true,
)

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
ONE_US = timedelta(microseconds=1)


class UtcTime(TypeDecorator[datetime]):
    """A UTC datetime as microseconds since 1970."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        return None if value is None else (value - EPOCH) // ONE_US

    def process_result_value(self, value: int | None, dialect: Dialect) -> datetime | None:
        return None if value is None else EPOCH + timedelta(microseconds=value)


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _id(name: str, **options: Any) -> Column[str]:
    return Column(name, String(64), **options)


def _limits() -> list[Column[Any]]:
    names = ("millicpu", "memory_mib", "disk_mib", "process_count")
    return [Column(name, BigInteger, nullable=False) for name in names]


teams = Table(
    "teams",
    metadata,
    _id("team_id", primary_key=True),
    Column("name", String(128), nullable=False, unique=True),
    Column("created_at", UtcTime, nullable=False),
    Column("max_sandboxes", Integer, nullable=False),
    Column("max_timeout_s", Integer, nullable=False),
    # 0: no limit of the team's own.
    Column("max_millicpu", BigInteger, nullable=False, server_default="0"),
    Column("max_memory_mib", BigInteger, nullable=False, server_default="0"),
    Column("max_disk_mib", BigInteger, nullable=False, server_default="0"),
    Column("max_creates_per_s", Float, nullable=False, server_default="0"),
    # The token bucket behind max_creates_per_s: creates that were allowed at that time.
    Column("create_allowance", Float, nullable=False, server_default="0"),
    Column("create_allowance_at", UtcTime, nullable=True),
)

users = Table(
    "users",
    metadata,
    _id("user_id", primary_key=True),
    Column("email", String(254), nullable=False, unique=True),
    # `<issuer> <sub>` at an identity provider, if one names the user.
    Column("subject", String(512), nullable=True, unique=True),
    Column("created_at", UtcTime, nullable=False),
)

team_members = Table(
    "team_members",
    metadata,
    Column("team_id", String(64), ForeignKey("teams.team_id"), primary_key=True),
    Column("user_id", String(64), ForeignKey("users.user_id"), primary_key=True, index=True),
    Column("is_default", Boolean, nullable=False),
)

access_tokens = Table(
    "access_tokens",
    metadata,
    _id("token_id", primary_key=True),
    Column("user_id", String(64), ForeignKey("users.user_id"), nullable=False),
    Column("name", String(128), nullable=False),
    Column("hash", String(64), nullable=False, unique=True),
    Column("mask", String(64), nullable=False),
    Column("created_at", UtcTime, nullable=False),
)

api_keys = Table(
    "api_keys",
    metadata,
    _id("key_id", primary_key=True),
    Column("team_id", String(64), ForeignKey("teams.team_id"), nullable=False, index=True),
    Column("name", String(128), nullable=False),
    Column("hash", String(64), nullable=False, unique=True),
    Column("mask", String(64), nullable=False),
    Column("created_at", UtcTime, nullable=False),
    _id("created_by", nullable=True),
    Column("last_used_at", UtcTime, nullable=True),
)

templates = Table(
    "templates",
    metadata,
    _id("template_id", primary_key=True),
    Column("team_id", String(64), ForeignKey("teams.team_id"), nullable=True),
    Column("alias", String(128), nullable=False, unique=True),
    Column("created_at", UtcTime, nullable=False),
    Column("is_snapshot", Boolean, nullable=False, server_default=false()),
)

builds = Table(
    "builds",
    metadata,
    _id("build_id", primary_key=True),
    Column("template_id", String(64), ForeignKey("templates.template_id"), nullable=False),
    Column("state", String(16), nullable=False),
    *_limits(),
    Column("created_at", UtcTime, nullable=False),
    Index(None, "template_id", "created_at"),
)

nodes = Table(
    "nodes",
    metadata,
    _id("node_id", primary_key=True),
    Column("state", String(16), nullable=False),
    Column("runtimes", JSON, nullable=False),
    Column("builds", JSON, nullable=False),
    Column("millicpu", BigInteger, nullable=False),
    Column("memory_mib", BigInteger, nullable=False),
    Column("disk_mib", BigInteger, nullable=False),
    Column("starting_count", Integer, nullable=False),
    Column("free_slot_count", Integer, nullable=False),
    Column("seen_at", UtcTime, nullable=False),
    Column("is_draining", Boolean, nullable=False, server_default=false()),
)

sandboxes = Table(
    "sandboxes",
    metadata,
    _id("sandbox_id", primary_key=True),
    Column("team_id", String(64), ForeignKey("teams.team_id"), nullable=False),
    Column("template_id", String(64), ForeignKey("templates.template_id"), nullable=False),
    Column("build_id", String(64), ForeignKey("builds.build_id"), nullable=False),
    Column("state", String(16), nullable=False),
    Column("is_listed", Boolean, nullable=False),
    Column("generation", BigInteger, nullable=False),
    *_limits(),
    Column("created_at", UtcTime, nullable=False),
    Column("started_at", UtcTime, nullable=False),
    Column("expires_at", UtcTime, nullable=False),
    Column("timeout_s", Integer, nullable=False),
    Column("template_alias", String(128), nullable=True),
    Column("metadata", JSON, nullable=False),
    Column("env", JSON, nullable=False),
    Column("secure", Boolean, nullable=False),
    Column("runtime", String(32), nullable=True),
    _id("node_id", nullable=True),
    _id("machine_id", nullable=True),
    Column("address", String(64), nullable=True),
    Column("allow_internet_access", Boolean, nullable=True),
    Column("ended_at", UtcTime, nullable=True),
    Column("end_reason", String(16), nullable=True),
    Column("end_detail", Text, nullable=False),
    Column("on_timeout", String(16), nullable=False, server_default="kill"),
    Column("auto_pause_memory", Boolean, nullable=False, server_default=true()),
    Column("auto_resume", Boolean, nullable=False, server_default=false()),
    Column("idle_timeout_s", Integer, nullable=True),
    Column("paused_at", UtcTime, nullable=True),
    Column("keeps_memory", Boolean, nullable=True),
    Column("recoverable_until", UtcTime, nullable=True, index=True),
    _id("snapshot_id", nullable=True),
    Column("network", JSON, nullable=True),
    Column("silent_at_pause", Boolean, nullable=True),
    # A team's list, newest first, and its counts, from the index alone.
    Index("ix_sandboxes_list", "team_id", "is_listed", "started_at", "sandbox_id", "state"),
    Index("ix_sandboxes_due", "state", "expires_at"),
    Index(None, "ended_at"),
)

# What a sandbox's metadata can be found by; written with the row, gone with it.
sandbox_metadata = Table(
    "sandbox_metadata",
    metadata,
    _id("team_id", primary_key=True),
    Column("pair", String(32), primary_key=True),
    Column("sandbox_id", String(64), ForeignKey("sandboxes.sandbox_id", ondelete="CASCADE"), primary_key=True),
    # The cascade looks for them by sandbox.
    Index(None, "sandbox_id"),
)

reservations = Table(
    "reservations",
    metadata,
    Column("sandbox_id", String(64), ForeignKey("sandboxes.sandbox_id", ondelete="CASCADE"), primary_key=True),
    Column("node_id", String(64), ForeignKey("nodes.node_id"), nullable=False, index=True),
    Column("millicpu", BigInteger, nullable=False),
    Column("memory_mib", BigInteger, nullable=False),
    Column("disk_mib", BigInteger, nullable=False),
    # What the memory of a sandbox that rests takes in files, beside its disk: counted in quotas, refused by none.
    Column("saved_mib", BigInteger, nullable=False, server_default="0"),
)

events = Table(
    "events",
    metadata,
    Column("event_id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    _id("sandbox_id", nullable=False, index=True),
    _id("team_id", nullable=False),
    Column("at", UtcTime, nullable=False, index=True),
    Column("kind", String(32), nullable=False),
    Column("reason", String(32), nullable=False),
    Column("detail", Text, nullable=False),
    Column("actor", String(128), nullable=False, server_default=""),
    Column("facts", JSON, nullable=True),
    Index("ix_events_team", "team_id", "kind", "at"),
)

audit_log = Table(
    "audit_log",
    metadata,
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("at", UtcTime, nullable=False, index=True),
    Column("actor", String(128), nullable=False),
    _id("team_id", nullable=False),
    Column("action", String(128), nullable=False),
    Column("object_id", String(256), nullable=False),
    Column("request_id", String(128), nullable=False),
    Column("outcome", String(64), nullable=False),
    Column("detail", Text, nullable=False),
    Column("mac", String(64), nullable=False),
)

audit_head = Table(
    "audit_head",
    metadata,
    Column("head_id", Integer, primary_key=True, autoincrement=False),
    Column("first_sequence", BigInteger, nullable=False),
    Column("before_mac", String(64), nullable=False),
    Column("last_sequence", BigInteger, nullable=False),
    Column("last_mac", String(64), nullable=False),
    Column("mac", String(64), nullable=False),
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("team_id", String(64), ForeignKey("teams.team_id"), primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("body_hash", String(64), nullable=False),
    _id("sandbox_id", nullable=False),
    Column("created_at", UtcTime, nullable=False, index=True),
)

# A snapshot is also a row of `templates`, so that sandboxes are created from it as from any template. Snapshots that
# were taken under one name share that row and differ by their tag.
snapshots = Table(
    "snapshots",
    metadata,
    _id("snapshot_id", primary_key=True),
    Column("template_id", String(64), ForeignKey("templates.template_id"), nullable=False, index=True),
    Column("team_id", String(64), ForeignKey("teams.team_id"), nullable=False),
    Column("state", String(16), nullable=False, index=True),
    Column("tag", String(128), nullable=False),
    Column("name", String(128), nullable=True),
    Column("build_id", String(64), ForeignKey("builds.build_id"), nullable=False),
    _id("source_id", nullable=False),
    _id("node_id", nullable=False),
    Column("runtime", String(32), nullable=True),
    *_limits(),
    Column("keeps_memory", Boolean, nullable=False),
    Column("is_private", Boolean, nullable=False),
    Column("disk_bytes", BigInteger, nullable=False),
    Column("stored_bytes", BigInteger, nullable=True),
    Column("created_at", UtcTime, nullable=False),
    Index("ix_snapshots_list", "team_id", "created_at", "snapshot_id"),
)

usage_samples = Table(
    "usage_samples",
    metadata,
    _id("sandbox_id", primary_key=True),
    Column("at", UtcTime, primary_key=True),
    Column("cpu_used_pct", Float, nullable=False),
    Column("memory_bytes", BigInteger, nullable=False),
    Column("memory_limit_bytes", BigInteger, nullable=False),
    Column("disk_bytes", BigInteger, nullable=False),
    Column("disk_limit_bytes", BigInteger, nullable=False),
    Index(None, "at"),
)

team_samples = Table(
    "team_samples",
    metadata,
    _id("team_id", primary_key=True),
    Column("at", UtcTime, primary_key=True),
    Column("running_count", Integer, nullable=False),
    Column("start_rate", Float, nullable=False),
    Index(None, "at"),
)

leases = Table(
    "leases",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("holder", String(64), nullable=False),
    Column("until", UtcTime, nullable=False),
)
