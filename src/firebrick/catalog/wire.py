"""Between the words of the seam and the messages of api/catalog.proto."""

from collections.abc import Iterable

from firebrick.catalog import catalog_pb2 as pb
from firebrick.catalog.base import Route, RouteState, Tombstone
from firebrick.model.ids import MachineId, SandboxId

OPTIONS = (
    # A snapshot holds every route and 10,000 tombstones: about 2 MB, but nothing should break at 4.
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    ("grpc.max_send_message_length", 64 * 1024 * 1024),
    # Each attempt to connect stands alone; a shared subchannel would bring its own, slower backoff.
    ("grpc.use_local_subchannel_pool", 1),
)


def to_message(revision: int, changes: Iterable[Route | Tombstone], *, is_snapshot: bool = False) -> pb.Change:
    message = pb.Change(revision=revision, is_snapshot=is_snapshot)
    for change in changes:
        match change:
            case Route():
                message.routes.add(
                    sandbox_id=change.sandbox_id,
                    machine_id=change.machine_id,
                    address=change.address,
                    access_token=change.access_token,
                    state=change.state,
                    traffic_token=change.traffic_token,
                    mask_host=change.mask_host,
                    https_ports=sorted(change.https_ports),
                )
            case Tombstone():
                message.tombstones.add(sandbox_id=change.sandbox_id, reason=change.reason)
    return message


def from_message(message: pb.Change) -> tuple[tuple[Route, ...], tuple[Tombstone, ...]]:
    routes = tuple(
        Route(
            sandbox_id=SandboxId(item.sandbox_id),
            machine_id=MachineId(item.machine_id),
            address=item.address,
            access_token=item.access_token,
            state=RouteState(item.state),
            traffic_token=item.traffic_token,
            mask_host=item.mask_host,
            https_ports=frozenset(item.https_ports),
        )
        for item in message.routes
    )
    tombstones = tuple(
        Tombstone(sandbox_id=SandboxId(item.sandbox_id), reason=item.reason) for item in message.tombstones
    )
    return routes, tombstones
