from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Ack(_message.Message):
    __slots__ = ("revision",)
    REVISION_FIELD_NUMBER: _ClassVar[int]
    revision: int
    def __init__(self, revision: _Optional[int] = ...) -> None: ...

class Change(_message.Message):
    __slots__ = ("revision", "is_snapshot", "routes", "tombstones")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    IS_SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    ROUTES_FIELD_NUMBER: _ClassVar[int]
    TOMBSTONES_FIELD_NUMBER: _ClassVar[int]
    revision: int
    is_snapshot: bool
    routes: _containers.RepeatedCompositeFieldContainer[Route]
    tombstones: _containers.RepeatedCompositeFieldContainer[Tombstone]
    def __init__(self, revision: _Optional[int] = ..., is_snapshot: _Optional[bool] = ..., routes: _Optional[_Iterable[_Union[Route, _Mapping]]] = ..., tombstones: _Optional[_Iterable[_Union[Tombstone, _Mapping]]] = ...) -> None: ...

class Route(_message.Message):
    __slots__ = ("sandbox_id", "machine_id", "address", "access_token", "state", "traffic_token", "mask_host", "https_ports")
    SANDBOX_ID_FIELD_NUMBER: _ClassVar[int]
    MACHINE_ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    ACCESS_TOKEN_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    TRAFFIC_TOKEN_FIELD_NUMBER: _ClassVar[int]
    MASK_HOST_FIELD_NUMBER: _ClassVar[int]
    HTTPS_PORTS_FIELD_NUMBER: _ClassVar[int]
    sandbox_id: str
    machine_id: str
    address: str
    access_token: str
    state: str
    traffic_token: str
    mask_host: str
    https_ports: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, sandbox_id: _Optional[str] = ..., machine_id: _Optional[str] = ..., address: _Optional[str] = ..., access_token: _Optional[str] = ..., state: _Optional[str] = ..., traffic_token: _Optional[str] = ..., mask_host: _Optional[str] = ..., https_ports: _Optional[_Iterable[int]] = ...) -> None: ...

class WakeRequest(_message.Message):
    __slots__ = ("sandbox_id",)
    SANDBOX_ID_FIELD_NUMBER: _ClassVar[int]
    sandbox_id: str
    def __init__(self, sandbox_id: _Optional[str] = ...) -> None: ...

class WakeReply(_message.Message):
    __slots__ = ("code", "message")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class Tombstone(_message.Message):
    __slots__ = ("sandbox_id", "reason")
    SANDBOX_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    sandbox_id: str
    reason: str
    def __init__(self, sandbox_id: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...
