"""Snapshots between instances: out as one file, and in again. The format is in `snapshot_archive.py`."""

import asyncio
from collections.abc import AsyncIterator, Sequence

from firebrick.control.actor import note_object
from firebrick.control.audit import OK, AuditService
from firebrick.control.platform import Platform
from firebrick.control.snapshot_archive import ArchiveHead, OpenedArchive, open_archive, write_archive
from firebrick.control.snapshots import parse_name
from firebrick.control.templates import DEFAULT_TAG, TemplateService
from firebrick.control.workflows.snapshot_import import SnapshotImport, import_snapshot
from firebrick.model.errors import Forbidden, Invalid, NoCapacity, NotFound, Unavailable
from firebrick.model.ids import NodeId, new_snapshot_id, new_template_id
from firebrick.model.node import NodeState, NodeView
from firebrick.model.snapshot import Snapshot, SnapshotState
from firebrick.model.team import Team
from firebrick.rpc.node_api import ImportSnapshot
from firebrick.store.templates import build_is_known

SILENCE_S = 60.0
"""An archive of which nothing comes for so long is given up."""

AT_ONCE_COUNT = 4
"""Archives that come in at the same time: each holds some 20 MiB here."""


def home_of(head: ArchiveHead, nodes: Sequence[NodeView]) -> NodeId:
    """The node that is to have it: of those that can start it, the one with most disk left.

    Raises: Unavailable — no node answers; NotFound — none has its build; Invalid — none has its runtime.
    """
    ready = [node for node in nodes if node.state is NodeState.READY]
    if not ready:
        raise Unavailable("No node answers at the moment. Try again in a moment.")
    with_build = [node for node in ready if head.build_id in node.builds]
    if not with_build:
        raise NotFound(
            f"The snapshot was made of the template build {head.build_id}, which is not here. Copy its directory, "
            f"templates/{head.build_id} in the data directory there, to the data directory here, and restart."
        )
    fitting = [node for node in with_build if head.runtime in node.runtimes]
    if not fitting:
        raise Invalid(f"The snapshot starts on the runtime '{head.runtime}' only, which does not work here.")
    best = max(fitting, key=lambda node: (node.disk_mib - node.reserved_disk_mib, node.node_id))
    if best.disk_mib == 0:
        raise NoCapacity("The disk of every node that could have it is nearly full. Free space there.")
    return best.node_id


class MovingService:
    def __init__(
        self, platform: Platform, templates: TemplateService, audit: AuditService, seal_key: bytes
    ) -> None:  # fmt: skip
        self._platform = platform
        self._templates = templates
        self._audit = audit
        self._seal_key = seal_key
        self._arriving_count = 0

    async def export(self, team: Team, name: str) -> AsyncIterator[bytes]:
        """The snapshot of that id or name as an archive, piece by piece; what fails later cuts it off.

        Raises: NotFound, Unavailable, NoCapacity, Internal.
        """
        source = await self._templates.resolve(team, name)
        snapshot = source.snapshot
        if snapshot is None or snapshot.is_private or snapshot.team_id != team.team_id:
            raise NotFound("There is no such snapshot of your team; a template that was built is not exported.")
        parts = self._platform.nodes.client(snapshot.node_id).export_snapshot(snapshot.snapshot_id)
        archive = write_archive(snapshot, parts, self._seal_key)
        # NOTE: what cannot be read at all is refused while it still can be.
        first = await anext(archive)
        await self._audit.record(
            "snapshot.export", team_id=team.team_id, object_id=snapshot.shown_id, outcome=OK
        )  # fmt: skip
        return _after(first, archive)

    async def take_in(
        self, team: Team, stream: AsyncIterator[bytes], *, name: str | None, is_operator: bool
    ) -> tuple[Snapshot, str]:
        """Make a snapshot of the team's of an archive, under `name` or the one that it had. Beside it why nothing goes
        on from its memory here; "": it has none, or it does.

        Raises: Invalid — it is damaged, cut off or of another kind; Forbidden — nobody whom this instance trusts made
            it, and it is not the operator who brings it; NotFound — its build is not here; LimitExceeded, NoCapacity,
            Unavailable, AlreadyExists, Internal.
        """
        if self._arriving_count >= AT_ONCE_COUNT:
            raise Unavailable(f"{AT_ONCE_COUNT} snapshots are being imported already. Try again when one is done.")
        self._arriving_count += 1
        try:
            archive = await open_archive(self._patient(stream), self._seal_key)
            if not archive.is_sealed and not is_operator:
                raise Forbidden(
                    "Nothing was imported: the archive was not sealed by an instance that this one trusts. The "
                    "operator can import it (`firebrick snapshot import --trust`), or give both the same "
                    "snapshot-seal.seed."
                )
            return await self._import(team, archive, name)
        except Invalid as exc:
            raise Invalid(f"Nothing was imported. {exc.message}", detail=exc.detail) from exc
        finally:
            self._arriving_count -= 1

    async def _import(self, team: Team, archive: OpenedArchive, name: str | None) -> tuple[Snapshot, str]:
        head, platform = archive.head, self._platform
        node_id = home_of(head, await platform.nodes.list_views())
        async with platform.database.read() as tx:
            if not await build_is_known(tx, head.build_id):
                raise NotFound(f"The template build {head.build_id} is not known here yet. Restart the control plane.")
        named = name if name is not None else head.name and f"{head.name}:{head.tag}"
        full, tag = (None, DEFAULT_TAG) if named is None else parse_name(named, team)
        snapshot = Snapshot(
            snapshot_id=new_snapshot_id(),
            template_id=new_template_id(),
            team_id=team.team_id,
            state=SnapshotState.CREATING,
            build_id=head.build_id,
            source_id=head.source_id,
            node_id=node_id,
            runtime=head.runtime,
            limits=head.limits,
            created_at=platform.clock.now(),
            name=full,
            tag=tag,
            disk_bytes=head.data_bytes,
        )
        note_object(snapshot.shown_id)
        wanted = ImportSnapshot(
            snapshot_id=snapshot.snapshot_id,
            build_id=head.build_id,
            runtime=head.runtime,
            limits=head.limits,
            keeps_memory=head.keeps_memory,
            data_bytes=head.data_bytes,
        )
        parts = _after(archive.manifest, archive.parts)
        return await import_snapshot(
            SnapshotImport(platform=platform, snapshot=snapshot, wanted=wanted, parts=parts)
        )  # fmt: skip

    async def _patient(self, stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        silence_s = self._platform.config.patient_s(SILENCE_S)
        while True:
            try:
                async with asyncio.timeout(silence_s):
                    piece = await anext(stream, None)
            except TimeoutError as exc:
                raise Invalid(f"It is cut off: nothing came of it for {silence_s:.0f} seconds.") from exc
            if piece is None:
                return
            yield piece


async def _after(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for piece in rest:
        yield piece
