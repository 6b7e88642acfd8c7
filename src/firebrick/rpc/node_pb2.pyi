from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class NodeDescription(_message.Message):
    __slots__ = ("node_id", "version", "runtimes", "builds", "millicpu", "memory_mib", "disk_mib", "free_slot_count", "starting_count", "warm_count", "warm_wanted_count")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    RUNTIMES_FIELD_NUMBER: _ClassVar[int]
    BUILDS_FIELD_NUMBER: _ClassVar[int]
    MILLICPU_FIELD_NUMBER: _ClassVar[int]
    MEMORY_MIB_FIELD_NUMBER: _ClassVar[int]
    DISK_MIB_FIELD_NUMBER: _ClassVar[int]
    FREE_SLOT_COUNT_FIELD_NUMBER: _ClassVar[int]
    STARTING_COUNT_FIELD_NUMBER: _ClassVar[int]
    WARM_COUNT_FIELD_NUMBER: _ClassVar[int]
    WARM_WANTED_COUNT_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    version: str
    runtimes: _containers.RepeatedScalarFieldContainer[str]
    builds: _containers.RepeatedScalarFieldContainer[str]
    millicpu: int
    memory_mib: int
    disk_mib: int
    free_slot_count: int
    starting_count: int
    warm_count: int
    warm_wanted_count: int
    def __init__(self, node_id: _Optional[str] = ..., version: _Optional[str] = ..., runtimes: _Optional[_Iterable[str]] = ..., builds: _Optional[_Iterable[str]] = ..., millicpu: _Optional[int] = ..., memory_mib: _Optional[int] = ..., disk_mib: _Optional[int] = ..., free_slot_count: _Optional[int] = ..., starting_count: _Optional[int] = ..., warm_count: _Optional[int] = ..., warm_wanted_count: _Optional[int] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("millicpu", "memory_mib", "disk_mib", "process_count")
    MILLICPU_FIELD_NUMBER: _ClassVar[int]
    MEMORY_MIB_FIELD_NUMBER: _ClassVar[int]
    DISK_MIB_FIELD_NUMBER: _ClassVar[int]
    PROCESS_COUNT_FIELD_NUMBER: _ClassVar[int]
    millicpu: int
    memory_mib: int
    disk_mib: int
    process_count: int
    def __init__(self, millicpu: _Optional[int] = ..., memory_mib: _Optional[int] = ..., disk_mib: _Optional[int] = ..., process_count: _Optional[int] = ...) -> None: ...

class Egress(_message.Message):
    __slots__ = ("allow", "deny", "dns", "names", "default_dns")
    ALLOW_FIELD_NUMBER: _ClassVar[int]
    DENY_FIELD_NUMBER: _ClassVar[int]
    DNS_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_DNS_FIELD_NUMBER: _ClassVar[int]
    allow: _containers.RepeatedScalarFieldContainer[str]
    deny: _containers.RepeatedScalarFieldContainer[str]
    dns: _containers.RepeatedScalarFieldContainer[str]
    names: _containers.RepeatedScalarFieldContainer[str]
    default_dns: bool
    def __init__(self, allow: _Optional[_Iterable[str]] = ..., deny: _Optional[_Iterable[str]] = ..., dns: _Optional[_Iterable[str]] = ..., names: _Optional[_Iterable[str]] = ..., default_dns: _Optional[bool] = ...) -> None: ...

class StartSandboxRequest(_message.Message):
    __slots__ = ("sandbox_id", "build_id", "limits", "env", "access_token", "runtime", "egress", "metadata", "template_id", "snapshot_id", "drop_memory")
    class EnvEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    SANDBOX_ID_FIELD_NUMBER: _ClassVar[int]
    BUILD_ID_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    ENV_FIELD_NUMBER: _ClassVar[int]
    ACCESS_TOKEN_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_FIELD_NUMBER: _ClassVar[int]
    EGRESS_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    TEMPLATE_ID_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_ID_FIELD_NUMBER: _ClassVar[int]
    DROP_MEMORY_FIELD_NUMBER: _ClassVar[int]
    sandbox_id: str
    build_id: str
    limits: Limits
    env: _containers.ScalarMap[str, str]
    access_token: str
    runtime: str
    egress: Egress
    metadata: _containers.ScalarMap[str, str]
    template_id: str
    snapshot_id: str
    drop_memory: bool
    def __init__(self, sandbox_id: _Optional[str] = ..., build_id: _Optional[str] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., env: _Optional[_Mapping[str, str]] = ..., access_token: _Optional[str] = ..., runtime: _Optional[str] = ..., egress: _Optional[_Union[Egress, _Mapping]] = ..., metadata: _Optional[_Mapping[str, str]] = ..., template_id: _Optional[str] = ..., snapshot_id: _Optional[str] = ..., drop_memory: _Optional[bool] = ...) -> None: ...

class NodeSandbox(_message.Message):
    __slots__ = ("sandbox_id", "machine_id", "runtime", "address", "started_at_us", "from_warm", "state", "keeps_memory", "kept_memory", "paused_at_us", "saved_bytes")
    SANDBOX_ID_FIELD_NUMBER: _ClassVar[int]
    MACHINE_ID_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_US_FIELD_NUMBER: _ClassVar[int]
    FROM_WARM_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    KEEPS_MEMORY_FIELD_NUMBER: _ClassVar[int]
    KEPT_MEMORY_FIELD_NUMBER: _ClassVar[int]
    PAUSED_AT_US_FIELD_NUMBER: _ClassVar[int]
    SAVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    sandbox_id: str
    machine_id: str
    runtime: str
    address: str
    started_at_us: int
    from_warm: bool
    state: str
    keeps_memory: bool
    kept_memory: bool
    paused_at_us: int
    saved_bytes: int
    def __init__(self, sandbox_id: _Optional[str] = ..., machine_id: _Optional[str] = ..., runtime: _Optional[str] = ..., address: _Optional[str] = ..., started_at_us: _Optional[int] = ..., from_warm: _Optional[bool] = ..., state: _Optional[str] = ..., keeps_memory: _Optional[bool] = ..., kept_memory: _Optional[bool] = ..., paused_at_us: _Optional[int] = ..., saved_bytes: _Optional[int] = ...) -> None: ...

class PauseSandboxRequest(_message.Message):
    __slots__ = ("sandbox_id", "keep_memory", "require_healthy")
    SANDBOX_ID_FIELD_NUMBER: _ClassVar[int]
    KEEP_MEMORY_FIELD_NUMBER: _ClassVar[int]
    REQUIRE_HEALTHY_FIELD_NUMBER: _ClassVar[int]
    sandbox_id: str
    keep_memory: bool
    require_healthy: bool
    def __init__(self, sandbox_id: _Optional[str] = ..., keep_memory: _Optional[bool] = ..., require_healthy: _Optional[bool] = ...) -> None: ...

class PausedSandbox(_message.Message):
    __slots__ = ("sandbox_id", "machine_id", "keeps_memory", "paused_at_us", "disk_bytes", "is_silent")
    SANDBOX_ID_FIELD_NUMBER: _ClassVar[int]
    MACHINE_ID_FIELD_NUMBER: _ClassVar[int]
    KEEPS_MEMORY_FIELD_NUMBER: _ClassVar[int]
    PAUSED_AT_US_FIELD_NUMBER: _ClassVar[int]
    DISK_BYTES_FIELD_NUMBER: _ClassVar[int]
    IS_SILENT_FIELD_NUMBER: _ClassVar[int]
    sandbox_id: str
    machine_id: str
    keeps_memory: bool
    paused_at_us: int
    disk_bytes: int
    is_silent: bool
    def __init__(self, sandbox_id: _Optional[str] = ..., machine_id: _Optional[str] = ..., keeps_memory: _Optional[bool] = ..., paused_at_us: _Optional[int] = ..., disk_bytes: _Optional[int] = ..., is_silent: _Optional[bool] = ...) -> None: ...

class DiscardSandboxRequest(_message.Message):
    __slots__ = ("sandbox_id",)
    SANDBOX_ID_FIELD_NUMBER: _ClassVar[int]
    sandbox_id: str
    def __init__(self, sandbox_id: _Optional[str] = ...) -> None: ...

class DiscardSandboxResponse(_message.Message):
    __slots__ = ("was_here",)
    WAS_HERE_FIELD_NUMBER: _ClassVar[int]
    was_here: bool
    def __init__(self, was_here: _Optional[bool] = ...) -> None: ...

class SnapshotSandboxRequest(_message.Message):
    __slots__ = ("sandbox_id", "snapshot_id", "keep_memory")
    SANDBOX_ID_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_ID_FIELD_NUMBER: _ClassVar[int]
    KEEP_MEMORY_FIELD_NUMBER: _ClassVar[int]
    sandbox_id: str
    snapshot_id: str
    keep_memory: bool
    def __init__(self, sandbox_id: _Optional[str] = ..., snapshot_id: _Optional[str] = ..., keep_memory: _Optional[bool] = ...) -> None: ...

class NodeSnapshot(_message.Message):
    __slots__ = ("snapshot_id", "build_id", "runtime", "keeps_memory", "disk_bytes", "stored_bytes", "created_at_us")
    SNAPSHOT_ID_FIELD_NUMBER: _ClassVar[int]
    BUILD_ID_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_FIELD_NUMBER: _ClassVar[int]
    KEEPS_MEMORY_FIELD_NUMBER: _ClassVar[int]
    DISK_BYTES_FIELD_NUMBER: _ClassVar[int]
    STORED_BYTES_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_US_FIELD_NUMBER: _ClassVar[int]
    snapshot_id: str
    build_id: str
    runtime: str
    keeps_memory: bool
    disk_bytes: int
    stored_bytes: int
    created_at_us: int
    def __init__(self, snapshot_id: _Optional[str] = ..., build_id: _Optional[str] = ..., runtime: _Optional[str] = ..., keeps_memory: _Optional[bool] = ..., disk_bytes: _Optional[int] = ..., stored_bytes: _Optional[int] = ..., created_at_us: _Optional[int] = ...) -> None: ...

class DeleteSnapshotRequest(_message.Message):
    __slots__ = ("snapshot_id",)
    SNAPSHOT_ID_FIELD_NUMBER: _ClassVar[int]
    snapshot_id: str
    def __init__(self, snapshot_id: _Optional[str] = ...) -> None: ...

class DeleteSnapshotResponse(_message.Message):
    __slots__ = ("was_here",)
    WAS_HERE_FIELD_NUMBER: _ClassVar[int]
    was_here: bool
    def __init__(self, was_here: _Optional[bool] = ...) -> None: ...

class ListSnapshotsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListSnapshotsResponse(_message.Message):
    __slots__ = ("snapshots",)
    SNAPSHOTS_FIELD_NUMBER: _ClassVar[int]
    snapshots: _containers.RepeatedCompositeFieldContainer[NodeSnapshot]
    def __init__(self, snapshots: _Optional[_Iterable[_Union[NodeSnapshot, _Mapping]]] = ...) -> None: ...

class ExportSnapshotRequest(_message.Message):
    __slots__ = ("snapshot_id",)
    SNAPSHOT_ID_FIELD_NUMBER: _ClassVar[int]
    snapshot_id: str
    def __init__(self, snapshot_id: _Optional[str] = ...) -> None: ...

class SnapshotPart(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class ImportSnapshotHead(_message.Message):
    __slots__ = ("snapshot_id", "build_id", "runtime", "limits", "keeps_memory", "data_bytes")
    SNAPSHOT_ID_FIELD_NUMBER: _ClassVar[int]
    BUILD_ID_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    KEEPS_MEMORY_FIELD_NUMBER: _ClassVar[int]
    DATA_BYTES_FIELD_NUMBER: _ClassVar[int]
    snapshot_id: str
    build_id: str
    runtime: str
    limits: Limits
    keeps_memory: bool
    data_bytes: int
    def __init__(self, snapshot_id: _Optional[str] = ..., build_id: _Optional[str] = ..., runtime: _Optional[str] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., keeps_memory: _Optional[bool] = ..., data_bytes: _Optional[int] = ...) -> None: ...

class ImportSnapshotRequest(_message.Message):
    __slots__ = ("head", "part", "is_whole")
    HEAD_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    IS_WHOLE_FIELD_NUMBER: _ClassVar[int]
    head: ImportSnapshotHead
    part: SnapshotPart
    is_whole: bool
    def __init__(self, head: _Optional[_Union[ImportSnapshotHead, _Mapping]] = ..., part: _Optional[_Union[SnapshotPart, _Mapping]] = ..., is_whole: _Optional[bool] = ...) -> None: ...

class ImportSnapshotAnswer(_message.Message):
    __slots__ = ("imported", "refusal")
    IMPORTED_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    imported: ImportedSnapshot
    refusal: Refusal
    def __init__(self, imported: _Optional[_Union[ImportedSnapshot, _Mapping]] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("code", "message")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class ImportedSnapshot(_message.Message):
    __slots__ = ("snapshot", "memory_refusal")
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    MEMORY_REFUSAL_FIELD_NUMBER: _ClassVar[int]
    snapshot: NodeSnapshot
    memory_refusal: str
    def __init__(self, snapshot: _Optional[_Union[NodeSnapshot, _Mapping]] = ..., memory_refusal: _Optional[str] = ...) -> None: ...

class KillSandboxRequest(_message.Message):
    __slots__ = ("sandbox_id", "keep_disk")
    SANDBOX_ID_FIELD_NUMBER: _ClassVar[int]
    KEEP_DISK_FIELD_NUMBER: _ClassVar[int]
    sandbox_id: str
    keep_disk: bool
    def __init__(self, sandbox_id: _Optional[str] = ..., keep_disk: _Optional[bool] = ...) -> None: ...

class KillSandboxResponse(_message.Message):
    __slots__ = ("was_running",)
    WAS_RUNNING_FIELD_NUMBER: _ClassVar[int]
    was_running: bool
    def __init__(self, was_running: _Optional[bool] = ...) -> None: ...

class ListSandboxesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListSandboxesResponse(_message.Message):
    __slots__ = ("sandboxes",)
    SANDBOXES_FIELD_NUMBER: _ClassVar[int]
    sandboxes: _containers.RepeatedCompositeFieldContainer[NodeSandbox]
    def __init__(self, sandboxes: _Optional[_Iterable[_Union[NodeSandbox, _Mapping]]] = ...) -> None: ...

class UpdateNetworkRequest(_message.Message):
    __slots__ = ("sandbox_id", "egress")
    SANDBOX_ID_FIELD_NUMBER: _ClassVar[int]
    EGRESS_FIELD_NUMBER: _ClassVar[int]
    sandbox_id: str
    egress: Egress
    def __init__(self, sandbox_id: _Optional[str] = ..., egress: _Optional[_Union[Egress, _Mapping]] = ...) -> None: ...

class UpdateNetworkResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReadUsageRequest(_message.Message):
    __slots__ = ("sandbox_id",)
    SANDBOX_ID_FIELD_NUMBER: _ClassVar[int]
    sandbox_id: str
    def __init__(self, sandbox_id: _Optional[str] = ...) -> None: ...

class SandboxUsage(_message.Message):
    __slots__ = ("timestamp_us", "cpu_ns", "memory_bytes", "memory_limit_bytes", "disk_bytes", "disk_limit_bytes", "process_count", "cpu_used_pct")
    TIMESTAMP_US_FIELD_NUMBER: _ClassVar[int]
    CPU_NS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    PROCESS_COUNT_FIELD_NUMBER: _ClassVar[int]
    CPU_USED_PCT_FIELD_NUMBER: _ClassVar[int]
    timestamp_us: int
    cpu_ns: int
    memory_bytes: int
    memory_limit_bytes: int
    disk_bytes: int
    disk_limit_bytes: int
    process_count: int
    cpu_used_pct: float
    def __init__(self, timestamp_us: _Optional[int] = ..., cpu_ns: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., memory_limit_bytes: _Optional[int] = ..., disk_bytes: _Optional[int] = ..., disk_limit_bytes: _Optional[int] = ..., process_count: _Optional[int] = ..., cpu_used_pct: _Optional[float] = ...) -> None: ...

class ReadLogsRequest(_message.Message):
    __slots__ = ("sandbox_id", "start_ms", "limit")
    SANDBOX_ID_FIELD_NUMBER: _ClassVar[int]
    START_MS_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    sandbox_id: str
    start_ms: int
    limit: int
    def __init__(self, sandbox_id: _Optional[str] = ..., start_ms: _Optional[int] = ..., limit: _Optional[int] = ...) -> None: ...

class LogEntry(_message.Message):
    __slots__ = ("timestamp_us", "level", "message", "fields")
    class FieldsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    TIMESTAMP_US_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    timestamp_us: int
    level: str
    message: str
    fields: _containers.ScalarMap[str, str]
    def __init__(self, timestamp_us: _Optional[int] = ..., level: _Optional[str] = ..., message: _Optional[str] = ..., fields: _Optional[_Mapping[str, str]] = ...) -> None: ...

class ReadLogsResponse(_message.Message):
    __slots__ = ("entries",)
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[LogEntry]
    def __init__(self, entries: _Optional[_Iterable[_Union[LogEntry, _Mapping]]] = ...) -> None: ...

class WatchExitsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SandboxExit(_message.Message):
    __slots__ = ("sandbox_id", "machine_id", "cause", "exit_code", "detail")
    SANDBOX_ID_FIELD_NUMBER: _ClassVar[int]
    MACHINE_ID_FIELD_NUMBER: _ClassVar[int]
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    EXIT_CODE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    sandbox_id: str
    machine_id: str
    cause: str
    exit_code: int
    detail: str
    def __init__(self, sandbox_id: _Optional[str] = ..., machine_id: _Optional[str] = ..., cause: _Optional[str] = ..., exit_code: _Optional[int] = ..., detail: _Optional[str] = ...) -> None: ...
