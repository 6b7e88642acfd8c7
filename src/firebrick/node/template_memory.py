"""Memory of a ready machine that was nobody's, from which new machines of its kind go on in place of a boot.

    cold machine ready ── capture ──▶ making/<id>/ ── rename ──▶ <id>/ {memory.json, disk, memory/} ──▶ starts from it
                                                                     └── a start failed · the build is gone · another
                                                                         agent, kernel, monitor, name servers: removed

A cache: whatever is missing, damaged or doubtful is removed, and the next machine that boots makes it anew. What goes
on from one maps the same files, which nobody writes to, and keeps them open when they are removed.
"""

import asyncio
import hashlib
import json
import os
import shutil
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

from firebrick.log import get_log
from firebrick.model.errors import FirebrickError, Internal
from firebrick.model.ids import BuildId, MachineId, is_machine_id
from firebrick.model.machine import Limits, RuntimeName
from firebrick.node.drivers import NodeDrivers, NodeSettings, WarmKey
from firebrick.node.guest_files import HOSTNAME, guest_files
from firebrick.node.machine import DiskSource, Machine
from firebrick.node.records import MachineRecord, flush_directory, key_of
from firebrick.node.saved_memory import SavedMemory, keeper_of, memory_bytes, memory_of
from firebrick.node.task_owner import TaskOwner

MOST_FAILURES = 2
"""Of a kind, one after the other: saves, or starts from them; then its machines boot until the node's next start."""

RECORD_NAME = "memory.json"

log = get_log("node")


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateMemory:
    """One memory. `made_from`: the machine that was saved, which names its directory too; `identity`: of all that is in
    the memory beside the key."""

    made_from: MachineId
    key: WarmKey
    identity: str
    control_token: str = field(repr=False)


class TemplateMemories:
    """All of one node. `open` first, `close` last. `settings.template_memory_count` bounds them."""

    def __init__(self, drivers: NodeDrivers, settings: NodeSettings) -> None:
        self._drivers = drivers
        self._settings = settings
        self._root = settings.node_dir / "template_memory"
        self._memories: dict[WarmKey, TemplateMemory] = {}
        """The one that was used last is the last."""
        self._making: set[WarmKey] = set()
        self._failure_count: Counter[WarmKey] = Counter()
        self._work = TaskOwner()

    async def open(self) -> None:
        """Take up what an earlier process left, as far as it still fits; the rest is removed."""
        await asyncio.to_thread(shutil.rmtree, self._root / "making", ignore_errors=True)
        for directory in await asyncio.to_thread(_directories, self._root):
            memory = await asyncio.to_thread(_read, directory)
            if memory is not None and memory.key not in self._memories and await self._fits(memory):
                self._memories[memory.key] = memory
            else:
                await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)

    async def close(self) -> None:
        """What is not removed yet is, by the next process."""
        await self._work.close()

    def source(self, key: WarmKey) -> DiskSource | None:
        """What a new machine of this kind begins with; None: it boots."""
        memory = self._memories.pop(key, None)
        if memory is None:
            return None
        self._memories[key] = memory
        directory = self._directory(memory)
        saved = SavedMemory(directory=memory_of(directory), control_token=memory.control_token, sandbox_id=None)
        return DiskSource(path=directory / "disk", memory=saved)

    def wants(self, record: MachineRecord) -> bool:
        """Whether this machine, which has booted, is to be saved."""
        key = key_of(record)
        return (
            self._settings.template_memory_count > 0
            and keeper_of(self._drivers.runtimes[key.runtime]) is not None
            and key not in self._memories
            and key not in self._making
            and self._failure_count[key] < MOST_FAILURES
        )

    async def make(self, machine: Machine) -> bool:
        """Save a machine that is ready and nobody's; whether it could be saved. If not, nothing is left of it, and the
        machine may not run on as it did."""
        key = key_of(machine.record)
        place = self._root / "making" / machine.machine_id
        self._making.add(key)
        try:
            await asyncio.to_thread(place.mkdir, mode=0o700, parents=True)
            self._memories[key] = await self._save(machine, key, place)
        except (FirebrickError, OSError) as exc:
            self._failure_count[key] += 1
            log.warning("template_memory.not_made", build_id=key.build_id, reason=str(exc))
            return False
        finally:
            self._making.discard(key)
            await asyncio.to_thread(shutil.rmtree, place, ignore_errors=True)
        for spare in list(self._memories)[: -self._settings.template_memory_count]:
            self._remove(self._memories.pop(spare))
        return True

    async def _save(self, machine: Machine, key: WarmKey, place: Path) -> TemplateMemory:
        """Raises FirebrickError, OSError."""
        memory = TemplateMemory(
            made_from=machine.machine_id,
            key=key,
            # NOTE: read before the capture, so that the next process sees what changed meanwhile.
            identity=await self._identity(key),
            control_token=machine.record.control_token,
        )
        if not await machine.capture(place, keep_memory=True):
            raise Internal(f"The memory of machine {machine.machine_id} cannot be kept.")
        directory = self._directory(memory)
        await asyncio.to_thread(_commit, place, memory, directory)
        log.info("template_memory.made", build_id=key.build_id, memory_bytes=memory_bytes(directory))
        return memory

    def trust(self, machine: Machine) -> None:
        """It has become ready."""
        self._failure_count.pop(key_of(machine.record), None)

    def distrust(self, machine: Machine) -> None:
        """It did not become ready: no other goes on from what it went on from."""
        key = key_of(machine.record)
        self._failure_count[key] += 1
        memory = self._memories.get(key)
        if memory is not None and machine.source is not None and machine.source.path.parent == self._directory(memory):
            del self._memories[key]
            self._remove(memory)
        log.warning("template_memory.failed", build_id=key.build_id, failure_count=self._failure_count[key])

    def _remove(self, memory: TemplateMemory) -> None:
        removal = asyncio.to_thread(shutil.rmtree, self._directory(memory), ignore_errors=True)
        self._work.start(removal, name=f"remove the memory of {memory.made_from}")

    async def _fits(self, memory: TemplateMemory) -> bool:
        """Whether what goes on from it is as a machine that boots now."""
        key, runtime = memory.key, self._drivers.runtimes.get(memory.key.runtime)
        keeper = keeper_of(runtime) if runtime is not None else None
        has_room = len(self._memories) < self._settings.template_memory_count
        if not has_room or key.build_id not in self._drivers.images.builds():
            return False
        try:
            if keeper is None or await self._identity(key) != memory.identity:
                return False
            why = await keeper.memory_refusal(memory_of(self._directory(memory)))
        except FirebrickError as exc:
            why = exc.message
        if why:
            log.warning("template_memory.refused", build_id=key.build_id, reason=why)
        return not why

    async def _identity(self, key: WarmKey) -> str:
        """Of what a machine of this kind that boots now would have in its memory. Raises RuntimeFailed."""
        keeper, agent = keeper_of(self._drivers.runtimes[key.runtime]), self._drivers.agent
        assert keeper is not None
        facts = {
            "agent": [await asyncio.to_thread(agent.version), *agent.argv],
            "runtime": await keeper.memory_version(),
            "files": guest_files(HOSTNAME, self._settings.dns_servers),
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def _directory(self, memory: TemplateMemory) -> Path:
        return self._root / memory.made_from


def _directories(root: Path) -> list[Path]:
    return [entry for entry in root.iterdir() if is_machine_id(entry.name)] if root.is_dir() else []


def _commit(place: Path, memory: TemplateMemory, directory: Path) -> None:
    with os.fdopen(os.open(place / RECORD_NAME, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(_encode(memory))
        file.flush()
        os.fsync(file.fileno())
    flush_directory(place)
    place.rename(directory)
    flush_directory(directory.parent)


def _read(directory: Path) -> TemplateMemory | None:
    try:
        memory = _decode((directory / RECORD_NAME).read_text())
        return memory if memory.made_from == directory.name and (directory / "disk").is_file() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _encode(memory: TemplateMemory) -> str:
    return json.dumps(asdict(memory))


def _decode(text: str) -> TemplateMemory:
    """Raises ValueError, KeyError or TypeError for anything but a whole record."""
    raw = json.loads(text)
    key = raw["key"]
    return TemplateMemory(
        made_from=MachineId(raw["made_from"]),
        key=WarmKey(
            build_id=BuildId(key["build_id"]), runtime=RuntimeName(key["runtime"]), limits=Limits(**key["limits"])
        ),
        identity=str(raw["identity"]),
        control_token=str(raw["control_token"]),
    )
