"""Whether a snapshot that comes from elsewhere may be one of this node's: pure. Its manifest was made by whom nobody
knows, so nothing of it is taken that was not said before or cannot be checked."""

import json
import re

from firebrick.blobs.manifest import (
    MOST_MANIFEST_BYTES,
    DamagedBlob,
    Manifest,
    check_shape,
    data_bytes,
    decode_manifest,
)
from firebrick.model.errors import Invalid
from firebrick.model.ids import is_sandbox_id
from firebrick.node.snapshot_records import MemoryOrigin, SnapshotRecord, decode_record
from firebrick.rpc.node_api import ImportSnapshot

DISK = "disk"
_MEMORY_FILE = re.compile(r"memory/[a-z][a-z0-9_.-]{0,31}\Z")
_MOST_MEMORY_FILES = 8
_SLACK_BYTES = 1 << 30
"""Beside disk and memory: what names and owners take of an archive of a disk; the drive with the guest agent."""

_TOKEN = re.compile(r"[0-9a-f]{32}\Z")


def arriving(stored: bytes, wanted: ImportSnapshot) -> tuple[Manifest, MemoryOrigin | None]:
    """The manifest that was sent, and whose memory is in it; None: it has only a disk. Raises Invalid."""
    if len(stored) > MOST_MANIFEST_BYTES:
        raise Invalid("Its list of chunks is longer than any that we write.")
    try:
        manifest = decode_manifest(wanted.snapshot_id, stored)
        record = decode_record(json.dumps(manifest.about["snapshot"]))
    except (DamagedBlob, ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise Invalid("It is damaged: its list of chunks cannot be read.", detail=repr(exc)) from exc
    _check_record(record, wanted)
    check_shape(manifest, _most_bytes(manifest, wanted))
    names = {file.name for file in manifest.files}
    if DISK not in names or (len(names) > 1) != wanted.keeps_memory or len(names) > 1 + _MOST_MEMORY_FILES:
        raise Invalid("It names other files than it should have.")
    if data_bytes(manifest) > wanted.data_bytes:
        raise Invalid("Its files hold more than its head says.")
    return manifest, record.memory


def _check_record(record: SnapshotRecord, wanted: ImportSnapshot) -> None:
    told = (wanted.build_id, wanted.runtime, wanted.limits.disk_mib, wanted.keeps_memory)
    if (record.build_id, record.runtime, record.disk_mib, record.memory is not None) != told:
        raise Invalid("Its list of chunks is of another snapshot than its head.")
    memory = record.memory
    if memory is None:
        return
    sandbox_id = memory.sandbox_id
    is_ours = isinstance(memory.control_token, str) and _TOKEN.match(memory.control_token)
    if not is_ours or not (sandbox_id is None or (isinstance(sandbox_id, str) and is_sandbox_id(sandbox_id))):
        raise Invalid("It is damaged: whose memory is in it cannot be read.")
    if memory.limits != wanted.limits:
        raise Invalid("Its memory was saved under other limits than its head says.")


def _most_bytes(manifest: Manifest, wanted: ImportSnapshot) -> dict[str, int]:
    """How large each file may be that may be there."""
    limits = wanted.limits
    most = {DISK: (limits.disk_mib << 20) * 5 // 4 + _SLACK_BYTES}
    if wanted.keeps_memory:
        names = [file.name for file in manifest.files if _MEMORY_FILE.match(file.name)]
        most |= {name: (limits.memory_mib << 20) + _SLACK_BYTES for name in names}
    return most
