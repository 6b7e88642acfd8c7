"""Factories of stored things: valid by default, changed by keyword."""

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from firebrick.model.ids import BuildId, NodeId, TeamId, TemplateId, new_sandbox_id
from firebrick.model.machine import Limits, RuntimeName
from firebrick.model.node import NodeState, NodeView
from firebrick.model.sandbox import Sandbox, SandboxState
from firebrick.model.team import Team
from firebrick.model.template import Build, BuildState, Template
from firebrick.store.nodes import node_upsert
from firebrick.store.teams import team_insert
from firebrick.store.templates import build_upsert, template_insert

NOW = datetime(2026, 11, 24, 12, 0, 0, 123456, tzinfo=UTC)
LIMITS = Limits(millicpu=1000, memory_mib=512, disk_mib=1024, process_count=100)
TEAM_ID = TeamId("team_a")
TEMPLATE_ID = TemplateId("tpl_base")
BUILD_ID = BuildId("bld_1")
NODE_ID = NodeId("nod_1")


def make_team(**changes: Any) -> Team:
    values: dict[str, Any] = {
        "team_id": TEAM_ID, "name": "a", "created_at": NOW, "max_sandboxes": 20, "max_timeout_s": 86_400,
    }  # fmt: skip
    return Team(**values | changes)


def make_node(**changes: Any) -> NodeView:
    values: dict[str, Any] = {
        "node_id": NODE_ID, "state": NodeState.READY, "runtimes": (RuntimeName.SIM,),
        "builds": frozenset({BUILD_ID}), "millicpu": 16_000, "memory_mib": 8192, "disk_mib": 100_000,
        "reserved_millicpu": 0, "reserved_memory_mib": 0, "reserved_disk_mib": 0, "starting_count": 0,
        "free_slot_count": 50,
    }  # fmt: skip
    return NodeView(**values | changes)


def make_sandbox(**changes: Any) -> Sandbox:
    values: dict[str, Any] = {
        "sandbox_id": new_sandbox_id(), "team_id": TEAM_ID, "template_id": TEMPLATE_ID, "build_id": BUILD_ID,
        "state": SandboxState.RUNNING, "generation": 1, "limits": LIMITS, "created_at": NOW, "started_at": NOW,
        "expires_at": NOW + timedelta(seconds=300), "timeout_s": 300, "template_alias": "base",
    }  # fmt: skip
    return Sandbox(**values | changes)


def make_template(**changes: Any) -> Template:
    return Template(**{"template_id": TEMPLATE_ID, "alias": "base", "team_id": None, "created_at": NOW} | changes)


def make_build(**changes: Any) -> Build:
    values: dict[str, Any] = {
        "build_id": BUILD_ID, "template_id": TEMPLATE_ID, "state": BuildState.READY, "limits": LIMITS,
        "created_at": NOW,
    }  # fmt: skip
    return Build(**values | changes)


async def insert_ground(tx: AsyncConnection) -> None:
    """What a sandbox row stands on: a team, a template with a ready build, a node."""
    await team_insert(tx, make_team())
    await template_insert(tx, make_template())
    await build_upsert(tx, make_build())
    await node_upsert(tx, make_node(), seen_at=NOW)
