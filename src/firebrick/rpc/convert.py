"""Between protobuf messages and the dataclasses of node_api, both ways, in one place.

What arrives is checked as it is converted: an unknown runtime or cause is an error here, not later.
"""

from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv4Network

from firebrick.model.egress import Egress
from firebrick.model.ids import BuildId, MachineId, NodeId, SandboxId, SnapshotId, TemplateId
from firebrick.model.machine import ExitCause, Limits, RuntimeName
from firebrick.rpc import node_pb2 as pb
from firebrick.rpc.node_api import (
    ImportedSnapshot,
    ImportSnapshot,
    LogEntry,
    NodeDescription,
    NodeSandbox,
    NodeSandboxState,
    NodeSnapshot,
    PausedSandbox,
    PauseSandbox,
    SandboxExit,
    SandboxUsage,
    StartSandbox,
)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def to_us(moment: datetime) -> int:
    return (moment - _EPOCH) // _MICROSECOND


def from_us(count: int) -> datetime:
    return _EPOCH + timedelta(microseconds=count)


def description_to_wire(item: NodeDescription) -> pb.NodeDescription:
    return pb.NodeDescription(
        node_id=item.node_id,
        version=item.version,
        runtimes=[str(name) for name in item.runtimes],
        builds=sorted(item.builds),
        millicpu=item.millicpu,
        memory_mib=item.memory_mib,
        disk_mib=item.disk_mib,
        free_slot_count=item.free_slot_count,
        starting_count=item.starting_count,
        warm_count=item.warm_count,
        warm_wanted_count=item.warm_wanted_count,
    )


def description_from_wire(wire: pb.NodeDescription) -> NodeDescription:
    return NodeDescription(
        node_id=NodeId(wire.node_id),
        version=wire.version,
        runtimes=tuple(RuntimeName(name) for name in wire.runtimes),
        builds=frozenset(BuildId(build_id) for build_id in wire.builds),
        millicpu=wire.millicpu,
        memory_mib=wire.memory_mib,
        disk_mib=wire.disk_mib,
        free_slot_count=wire.free_slot_count,
        starting_count=wire.starting_count,
        warm_count=wire.warm_count,
        warm_wanted_count=wire.warm_wanted_count,
    )


def egress_to_wire(item: Egress) -> pb.Egress:
    return pb.Egress(
        allow=[str(network) for network in item.allow],
        deny=[str(network) for network in item.deny],
        dns=[str(address) for address in item.dns],
        names=item.names,
        default_dns=item.default_dns,
    )


def egress_from_wire(wire: pb.Egress) -> Egress:
    return Egress(
        allow=tuple(IPv4Network(text) for text in wire.allow),
        deny=tuple(IPv4Network(text) for text in wire.deny),
        dns=tuple(IPv4Address(text) for text in wire.dns),
        names=tuple(wire.names),
        default_dns=wire.default_dns,
    )


def limits_to_wire(item: Limits) -> pb.Limits:
    return pb.Limits(
        millicpu=item.millicpu,
        memory_mib=item.memory_mib,
        disk_mib=item.disk_mib,
        process_count=item.process_count,
    )


def limits_from_wire(wire: pb.Limits) -> Limits:
    return Limits(
        millicpu=wire.millicpu,
        memory_mib=wire.memory_mib,
        disk_mib=wire.disk_mib,
        process_count=wire.process_count,
    )


def start_to_wire(item: StartSandbox) -> pb.StartSandboxRequest:
    return pb.StartSandboxRequest(
        sandbox_id=item.sandbox_id,
        template_id=item.template_id,
        build_id=item.build_id,
        limits=limits_to_wire(item.limits),
        env=dict(item.env),
        metadata=dict(item.metadata),
        access_token=item.access_token,
        runtime=item.runtime or "",
        egress=egress_to_wire(item.egress),
        snapshot_id=item.snapshot_id or "",
        drop_memory=not item.keep_memory,
    )


def start_from_wire(wire: pb.StartSandboxRequest) -> StartSandbox:
    return StartSandbox(
        sandbox_id=SandboxId(wire.sandbox_id),
        template_id=TemplateId(wire.template_id),
        build_id=BuildId(wire.build_id),
        limits=limits_from_wire(wire.limits),
        env=dict(wire.env),
        metadata=dict(wire.metadata),
        access_token=wire.access_token,
        runtime=RuntimeName(wire.runtime) if wire.runtime else None,
        egress=egress_from_wire(wire.egress),
        snapshot_id=SnapshotId(wire.snapshot_id) if wire.snapshot_id else None,
        keep_memory=not wire.drop_memory,
    )


def sandbox_to_wire(item: NodeSandbox) -> pb.NodeSandbox:
    return pb.NodeSandbox(
        sandbox_id=item.sandbox_id,
        machine_id=item.machine_id,
        runtime=item.runtime,
        address=item.address,
        started_at_us=to_us(item.started_at),
        from_warm=item.from_warm,
        state=item.state,
        keeps_memory=item.keeps_memory,
        kept_memory=item.kept_memory,
        paused_at_us=to_us(item.paused_at) if item.paused_at else 0,
        saved_bytes=item.saved_bytes,
    )


def sandbox_from_wire(wire: pb.NodeSandbox) -> NodeSandbox:
    return NodeSandbox(
        sandbox_id=SandboxId(wire.sandbox_id),
        machine_id=MachineId(wire.machine_id),
        runtime=RuntimeName(wire.runtime),
        address=wire.address,
        started_at=from_us(wire.started_at_us),
        from_warm=wire.from_warm,
        state=NodeSandboxState(wire.state) if wire.state else NodeSandboxState.RUNNING,
        keeps_memory=wire.keeps_memory,
        kept_memory=wire.kept_memory,
        paused_at=from_us(wire.paused_at_us) if wire.paused_at_us else None,
        saved_bytes=wire.saved_bytes,
    )


def pause_to_wire(item: PauseSandbox) -> pb.PauseSandboxRequest:
    return pb.PauseSandboxRequest(
        sandbox_id=item.sandbox_id, keep_memory=item.keep_memory, require_healthy=item.require_healthy
    )


def pause_from_wire(wire: pb.PauseSandboxRequest) -> PauseSandbox:
    return PauseSandbox(
        sandbox_id=SandboxId(wire.sandbox_id), keep_memory=wire.keep_memory, require_healthy=wire.require_healthy
    )


def paused_to_wire(item: PausedSandbox) -> pb.PausedSandbox:
    return pb.PausedSandbox(
        sandbox_id=item.sandbox_id,
        machine_id=item.machine_id,
        keeps_memory=item.keeps_memory,
        paused_at_us=to_us(item.paused_at),
        disk_bytes=item.disk_bytes,
        is_silent=item.is_silent,
    )


def paused_from_wire(wire: pb.PausedSandbox) -> PausedSandbox:
    return PausedSandbox(
        sandbox_id=SandboxId(wire.sandbox_id),
        machine_id=MachineId(wire.machine_id),
        keeps_memory=wire.keeps_memory,
        paused_at=from_us(wire.paused_at_us),
        disk_bytes=wire.disk_bytes,
        is_silent=wire.is_silent,
    )


def snapshot_to_wire(item: NodeSnapshot) -> pb.NodeSnapshot:
    return pb.NodeSnapshot(
        snapshot_id=item.snapshot_id,
        build_id=item.build_id,
        runtime=item.runtime,
        keeps_memory=item.keeps_memory,
        disk_bytes=item.disk_bytes,
        stored_bytes=item.stored_bytes,
        created_at_us=to_us(item.created_at),
    )


def snapshot_from_wire(wire: pb.NodeSnapshot) -> NodeSnapshot:
    return NodeSnapshot(
        snapshot_id=SnapshotId(wire.snapshot_id),
        build_id=BuildId(wire.build_id),
        runtime=RuntimeName(wire.runtime),
        keeps_memory=wire.keeps_memory,
        disk_bytes=wire.disk_bytes,
        stored_bytes=wire.stored_bytes if wire.HasField("stored_bytes") else None,
        created_at=from_us(wire.created_at_us),
    )


def import_to_wire(item: ImportSnapshot) -> pb.ImportSnapshotHead:
    return pb.ImportSnapshotHead(
        snapshot_id=item.snapshot_id,
        build_id=item.build_id,
        runtime=item.runtime,
        limits=limits_to_wire(item.limits),
        keeps_memory=item.keeps_memory,
        data_bytes=item.data_bytes,
    )


def import_from_wire(wire: pb.ImportSnapshotHead) -> ImportSnapshot:
    """Raises ValueError: a runtime that is not known here."""
    return ImportSnapshot(
        snapshot_id=SnapshotId(wire.snapshot_id),
        build_id=BuildId(wire.build_id),
        runtime=RuntimeName(wire.runtime),
        limits=limits_from_wire(wire.limits),
        keeps_memory=wire.keeps_memory,
        data_bytes=wire.data_bytes,
    )


def imported_to_wire(item: ImportedSnapshot) -> pb.ImportedSnapshot:
    return pb.ImportedSnapshot(snapshot=snapshot_to_wire(item.snapshot), memory_refusal=item.memory_refusal)


def imported_from_wire(wire: pb.ImportedSnapshot) -> ImportedSnapshot:
    return ImportedSnapshot(snapshot=snapshot_from_wire(wire.snapshot), memory_refusal=wire.memory_refusal)


def usage_to_wire(item: SandboxUsage) -> pb.SandboxUsage:
    return pb.SandboxUsage(
        timestamp_us=to_us(item.timestamp),
        cpu_ns=item.cpu_ns,
        cpu_used_pct=item.cpu_used_pct,
        memory_bytes=item.memory_bytes,
        memory_limit_bytes=item.memory_limit_bytes,
        disk_bytes=item.disk_bytes,
        disk_limit_bytes=item.disk_limit_bytes,
        process_count=item.process_count,
    )


def usage_from_wire(wire: pb.SandboxUsage) -> SandboxUsage:
    return SandboxUsage(
        timestamp=from_us(wire.timestamp_us),
        cpu_ns=wire.cpu_ns,
        cpu_used_pct=wire.cpu_used_pct,
        memory_bytes=wire.memory_bytes,
        memory_limit_bytes=wire.memory_limit_bytes,
        disk_bytes=wire.disk_bytes,
        disk_limit_bytes=wire.disk_limit_bytes,
        process_count=wire.process_count,
    )


def log_to_wire(item: LogEntry) -> pb.LogEntry:
    return pb.LogEntry(
        timestamp_us=to_us(item.timestamp), level=item.level, message=item.message, fields=dict(item.fields)
    )


def log_from_wire(wire: pb.LogEntry) -> LogEntry:
    return LogEntry(
        timestamp=from_us(wire.timestamp_us), level=wire.level, message=wire.message, fields=dict(wire.fields)
    )


def exit_to_wire(item: SandboxExit) -> pb.SandboxExit:
    return pb.SandboxExit(
        sandbox_id=item.sandbox_id,
        machine_id=item.machine_id,
        cause=item.cause,
        exit_code=item.exit_code,
        detail=item.detail,
    )


def exit_from_wire(wire: pb.SandboxExit) -> SandboxExit:
    return SandboxExit(
        sandbox_id=SandboxId(wire.sandbox_id),
        machine_id=MachineId(wire.machine_id),
        cause=ExitCause(wire.cause),
        exit_code=wire.exit_code,
        detail=wire.detail,
    )
