"""How one machine is started and torn down.

    record → slot → rootfs → directory, console, files → runtime.start → guest agent answers
    record ◀─ slot ◀─ rootfs ◀───────────────────────── runtime.destroy ◀────────┘

It may begin with a disk that a former machine wrote, or a snapshot's. Where the runtime keeps what a machine writes to
itself, that is an archive of the guest agent's, which takes it in once it runs.

There is one way back, whatever began it: a failed or cancelled start, a kill, an exit, a restart. Each of its
steps is idempotent and the next is taken only when the one before worked, so that a slot or a rootfs is never
given to someone else while a guest may still use it; `Machine.record` remembers how far it is.
"""

import asyncio
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from firebrick.guestlink.base import AGENT_PORT, GuestLink, GuestRenewal, GuestSilent
from firebrick.linux.loop import copy_file
from firebrick.log import get_log
from firebrick.model.egress import OPEN, Egress
from firebrick.model.errors import Internal, WrongState
from firebrick.model.ids import MachineId
from firebrick.network.base import Slot
from firebrick.node.drivers import NodeDrivers, NodeSettings
from firebrick.node.guest_files import HOSTNAME, guest_files
from firebrick.node.records import MachineRecord, MachineRecords, MachineState
from firebrick.node.saved_memory import SavedMemory, check_room, keeper_of, memory_of, store_memory
from firebrick.rootfs.base import Rootfs
from firebrick.runtimes.base import (
    CONSOLE_NAME,
    AgentLine,
    Capability,
    Freezer,
    MachineSpec,
    MemoryGiver,
    MemoryKeeper,
    Runtime,
)

log = get_log("node")

ID_COUNT = 65_536
FIRST_ID_SHIFT = 0x7000_0000
"""Above every range that accounts, subuid tables and systemd's containers use."""

ALIVE_TIMEOUT_S = 3.0
"""How long an agent that ran already may take to say so."""
READY_TIMEOUT_S = 45.0
FLUSH_TIMEOUT_S = 60.0
HOLD_S = 30.0
"""How long processes stay stopped beyond what the host takes to freeze them; and, in a machine that goes on from saved
memory, until they are let go. What is waited for in between must together be less."""
RENEW_TIMEOUT_S = 10.0
ENTROPY_BYTES = 64
ARCHIVE_SLACK_BYTES = 64 << 20
LINE_VARIABLE = "FIREBRICK_AGENT_VSOCK_PORT"
"""Tells a guest agent to listen for the host on a vsock too: only where that leads to this machine and no other."""
_RUNTIME_DIRECTORY = "runtime"
_FILES_DIRECTORY = "files"


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskSource:
    """What a machine's disk begins with: a file of the rootfs driver's or an archive of the guest agent's, as the
    runtime has it. `shares`: the file is a kept one and is taken over. `is_clean` False: it must be mended before.

    `memory`: the machine goes on from there in place of a start; then the disk is never mended. `note`: why it does not
    although that was wanted, as a sentence for the sandbox's owner."""

    path: Path
    shares: bool = False
    is_clean: bool = True
    memory: SavedMemory | None = None
    note: str = ""


class Machine:
    """One machine and its record. Only its actor calls it, one call at a time."""

    def __init__(
        self,
        record: MachineRecord,
        drivers: NodeDrivers,
        settings: NodeSettings,
        records: MachineRecords,
        *,
        source: DiskSource | None = None,
    ) -> None:
        self.record = record
        self.source = source
        self._drivers = drivers
        self.settings = settings
        self._records = records
        self._link: GuestLink | None = None
        self.step_ms: dict[str, float] = {}

    @property
    def machine_id(self) -> MachineId:
        return self.record.machine_id

    @property
    def runtime(self) -> Runtime:
        name = self.record.runtime
        if name not in self._drivers.runtimes:
            raise Internal(f"The runtime {name} of machine {self.machine_id} is no longer installed.")
        return self._drivers.runtimes[name]

    @property
    def slot(self) -> Slot:
        if self.record.slot_index is None:
            raise Internal(f"The machine {self.machine_id} holds no slot.")
        return self._drivers.slots.slot(self.record.slot_index)

    @property
    def link(self) -> GuestLink:
        if self._link is None:
            self._link = self._link_with(self.record.control_token)
        return self._link

    @property
    def directory(self) -> Path:
        return self._records.directory(self.machine_id)

    @property
    def archive(self) -> Path:
        """Where what a machine writes is kept when its runtime keeps it to itself."""
        return archive_of(self.directory)

    @property
    def disk(self) -> Path:
        """The file with what it has written, once `secure_disk` made it or it is kept."""
        return self.archive if self.writes_inside else self._drivers.rootfs.disk(self.machine_id)

    @property
    def writes_inside(self) -> bool:
        return Capability.WRITES_INSIDE in self.runtime.capabilities

    @property
    def has_own_kernel(self) -> bool:
        return Capability.OWN_KERNEL in self.runtime.capabilities

    @property
    def has_agent_line(self) -> bool:
        return Capability.AGENT_LINE in self.runtime.capabilities

    @property
    def gives_back(self) -> bool:
        """Whether its guest frees memory that the host cannot see, and can be asked for it."""
        return Capability.GIVES_BACK in self.runtime.capabilities

    @property
    def freezer(self) -> Freezer | None:
        can = Capability.FREEZE in self.runtime.capabilities
        return cast(Freezer, self.runtime) if can else None

    @property
    def keeper(self) -> MemoryKeeper | None:
        return keeper_of(self.runtime)

    @property
    def goes_on(self) -> bool:
        """Whether it began with a sandbox's memory."""
        return self.source is not None and self.source.memory is not None and not self.is_from_template

    @property
    def is_from_template(self) -> bool:
        """Whether it began with the memory of a machine that had been nobody's."""
        memory = self.source.memory if self.source else None
        return memory is not None and memory.sandbox_id is None

    @property
    def may_leave_memory(self) -> bool:
        """Whether its memory can be saved as it is: frozen, its processes held."""
        return self.keeper is not None and self.record.state is MachineState.PAUSED and self.record.is_held

    @property
    def console(self) -> Path:
        return self.directory / _RUNTIME_DIRECTORY / CONSOLE_NAME

    def save(self, **changes: Any) -> None:
        """Change the record, on the disk first."""
        changed = replace(self.record, **changes)
        self._records.write(changed)
        self.record = changed

    async def start(self, egress: Egress = OPEN) -> None:
        """Return when its first process runs; `wait_ready` tells when its guest agent answers. Its slot has the rules
        `egress` before.

        Raises: whatever the failing driver raised. Then, and when cancelled, `destroy` and `release` undo it.
        """
        image = self._drivers.images.image(self.record.build_id)
        self.save(state=MachineState.STARTING)
        with self._step("slot_ms"):
            slot = await self._drivers.slots.acquire()
        # NOTE: no await before the index is kept, or a cancellation here would lose the slot.
        self.record = replace(self.record, slot_index=slot.index)
        self.save()
        if not egress.is_open:
            await self._drivers.slots.restrict(slot, egress)
        with self._step("rootfs_ms"):
            rootfs = await self._prepare(image, slot)
        with self._step("runtime_ms"):
            await self.runtime.start(self._spec(rootfs, slot))

    async def _prepare(self, image: Path, slot: Slot) -> Rootfs:
        driver, source = self._drivers.rootfs, None if self.writes_inside else self.source
        is_mended = source is not None and not source.is_clean and source.memory is None
        if is_mended and not self.has_own_kernel and source is not None:
            await driver.mend(source.path)
        rootfs = await driver.prepare(
            self.machine_id,
            image,
            disk_mib=self.record.limits.disk_mib,
            id_shift=self._id_shift(slot),
            disk=source.path if source else None,
            shares=source is not None and source.shares,
            is_mounted=not self.has_own_kernel,
        )
        if is_mended and self.has_own_kernel:
            # Its own clone: what it was cloned from may belong to a memory.
            await driver.mend(driver.disk(self.machine_id))
        return rootfs

    async def check_agent(self) -> None:
        """Raises WrongState when its guest agent does not answer."""
        try:
            await self.link.wait_ready(timeout_s=ALIVE_TIMEOUT_S * self.settings.patience)
        except GuestSilent as exc:
            raise WrongState("The sandbox's guest agent does not answer.", detail=exc.message) from exc

    async def is_silent(self) -> bool:
        """Whether its guest agent does not answer; asked at a pause."""
        try:
            await self.link.wait_ready(timeout_s=ALIVE_TIMEOUT_S * self.settings.patience)
        except GuestSilent:
            return True
        return False

    async def wait_ready(self) -> None:
        """Return when the guest agent answers and has taken in what it begins with. Raises GuestSilent."""
        if self.source is not None and self.source.memory is not None:
            await self._renew(self.source.memory)
            return
        with self._step("agent_ms"):
            await self.link.wait_ready(timeout_s=READY_TIMEOUT_S * self.settings.patience)
        if self.source is not None and self.writes_inside:
            await self.take_in(self.source)

    async def _renew(self, memory: SavedMemory) -> None:
        """Make a machine that goes on one of its own. Its processes are held until it has its settings. Raises
        GuestSilent; then it must not go on."""
        former = self._link_with(memory.control_token)
        timeout_s = RENEW_TIMEOUT_S * self.settings.patience
        with self._step("agent_ms"):
            await former.wait_ready(timeout_s=timeout_s)
            renewal = GuestRenewal(
                control_token=self.record.control_token,
                timestamp=self._drivers.clock.now(),
                entropy=os.urandom(ENTROPY_BYTES),
                is_other=self.is_from_template or memory.sandbox_id != self.record.sandbox_id,
            )
            await former.renew(renewal, timeout_s=timeout_s)

    async def take_in(self, source: DiskSource) -> None:
        """Let the guest agent write what another machine had written; only where a machine writes inside. Raises
        GuestSilent; then it is good for nothing any more."""
        with self._step("disk_ms"):
            await self.link.import_disk(source.path)

    async def save_archive(self, target: Path, *, holds: bool) -> None:
        """Ask the guest agent for all that was written, into a new file, flushed. With `holds` processes inside stay
        stopped afterwards, for `freeze` or the machine's end to follow. Raises GuestSilent, Internal; then they go on.
        """
        since_s = self._drivers.images.image(self.record.build_id).stat().st_mtime
        # What a name and an owner take comes on top of what the files hold.
        most_bytes = (self.record.limits.disk_mib << 20) * 5 // 4 + ARCHIVE_SLACK_BYTES
        try:
            await self.link.export_disk(target, since_s=since_s, most_bytes=most_bytes, holds=holds)
        except OSError as exc:
            target.unlink(missing_ok=True)
            raise Internal(f"What machine {self.machine_id} wrote could not be saved.", detail=str(exc)) from exc
        except BaseException:
            target.unlink(missing_ok=True)
            raise

    async def freeze(self, paused_at: datetime, *, is_silent: bool) -> None:
        """From running to paused, its disk safe beside it. Raises FirebrickError; then it runs on."""
        freezer = self.freezer
        assert freezer is not None
        is_held = self.keeper is not None and not is_silent
        try:
            if self.writes_inside:
                await self.save_archive(self.archive, holds=True)
            if is_held:
                await self._hold()
            else:
                await self._flush_inside(must=not is_silent)
            await freezer.freeze(self.machine_id)
            if not self.writes_inside:
                await self._drivers.rootfs.flush(self.machine_id)
            self.save(state=MachineState.PAUSED, paused_at=paused_at, is_silent=is_silent, is_held=is_held)
        except BaseException:
            await freezer.thaw(self.machine_id)
            if self.writes_inside or is_held:
                await self.link.go_on()
            raise

    async def _hold(self) -> None:
        """Let all inside but the guest agent stand still, its disk flushed; what it has freed is not saved. Raises
        GuestSilent."""
        await self.take_back()
        await self.link.hold(for_s=HOLD_S * self.settings.patience, timeout_s=FLUSH_TIMEOUT_S * self.settings.patience)

    async def take_back(self) -> None:
        """Of a running machine: the host has what its guest freed, where the runtime can do that."""
        if not self.gives_back:
            return
        freed_bytes = await cast(MemoryGiver, self.runtime).take_back(self.machine_id)
        if freed_bytes:
            log.info("machine.gave_back", machine_id=self.machine_id, freed_bytes=freed_bytes)

    async def leave_memory(self) -> None:
        """Before `destroy`, and only when it `may_leave_memory`: from now on its files count. Raises FirebrickError;
        then it is as it was."""
        self.record = await store_memory(self._drivers, self._records, self.record)

    async def leave_disk(self, paused_at: datetime, *, is_killed: bool, is_silent: bool) -> None:
        """Before `destroy`: from now on only what it wrote counts. Raises FirebrickError; then it is as it was."""
        if self.writes_inside and self.record.state is not MachineState.PAUSED:
            await self.save_archive(self.archive, holds=True)
        if self.record.state is not MachineState.PAUSED:
            await self._flush_inside(must=not is_silent and not is_killed)
        since = self.record.paused_at or paused_at
        self.save(state=MachineState.KEPT, paused_at=since, is_killed=is_killed, is_silent=is_silent)

    async def capture(self, place: Path, *, keep_memory: bool) -> bool:
        """Copy what it has written to `place/disk` and, if wanted and possible, its memory of the same moment to
        `place/memory`; whether it did. Afterwards it is as it was. Raises FirebrickError, OSError; then what is in
        `place` is of no use."""
        freezer, is_paused = self.freezer, self.record.state is MachineState.PAUSED
        if not keep_memory or self.keeper is None or freezer is None or (is_paused and not self.record.is_held):
            await self.capture_disk(place / "disk")
            return False
        check_room(place, self.record)
        if is_paused:
            await self._capture_both(place)
            return True
        try:
            await self._hold()
            await freezer.freeze(self.machine_id)
            await self._capture_both(place)
        finally:
            await freezer.thaw(self.machine_id)
            await self.link.go_on()
        return True

    async def _capture_both(self, place: Path) -> None:
        assert self.keeper is not None
        memory_of(place).mkdir(mode=0o700)
        await self.keeper.save_memory(self.machine_id, memory_of(place))
        await self._drivers.rootfs.capture(self.machine_id, place / "disk")

    async def capture_disk(self, target: Path) -> None:
        """Copy what it has written to a new file, while it stands still; afterwards it is as it was, running or
        paused. Raises FirebrickError; then `target` is not there."""
        freezer = self.freezer
        if self.writes_inside:
            if self.record.state is MachineState.PAUSED:
                await asyncio.to_thread(copy_file, self.archive, target)
            else:
                await self.save_archive(target, holds=False)
        elif freezer is None or self.record.state is MachineState.PAUSED:
            await self._drivers.rootfs.capture(self.machine_id, target)
        else:
            try:
                await self._flush_inside()
                await freezer.freeze(self.machine_id)
                await self._drivers.rootfs.capture(self.machine_id, target)
            finally:
                await freezer.thaw(self.machine_id)

    async def _flush_inside(self, *, must: bool = True) -> None:
        """A kernel of the machine's own holds what was written until it is told. Raises GuestSilent if it `must`; of a
        guest that does not answer the disk holds what its kernel wrote by itself, at most half a minute ago."""
        if not self.has_own_kernel:
            return
        try:
            timeout_s = FLUSH_TIMEOUT_S if must else ALIVE_TIMEOUT_S
            await self.link.flush(timeout_s=timeout_s * self.settings.patience)
        except GuestSilent as exc:
            if must:
                raise
            log.warning("machine.not_flushed", machine_id=self.machine_id, reason=exc.message)

    async def destroy(self) -> None:
        """When this returns, nothing of the guest runs. Idempotent."""
        if self._link is not None:
            self._link.close()
        await self.runtime.destroy(self.machine_id)

    async def release(self) -> None:
        """After `destroy`: give back what it held; its directory goes last. Of a kept one its disk stays, and the
        record. Repeat it until it works."""
        is_kept = self.record.state is MachineState.KEPT
        if is_kept and not self.writes_inside:
            await self._drivers.rootfs.keep(self.machine_id)
        else:
            await self._drivers.rootfs.remove(self.machine_id)
        if self.record.slot_index is not None:
            slot = self.slot
            await self._drivers.slots.release(slot)
            # NOTE: a repetition must not release it again: by then it may be another machine's.
            self.record = replace(self.record, slot_index=None)
        if is_kept:
            # NOTE: a kernel of its own never unmounted it: whoever takes the disk without its memory mends it.
            self.save(slot_index=None, is_clean=not self.has_own_kernel)
        else:
            await asyncio.to_thread(self._records.remove, self.machine_id)

    @contextmanager
    def _step(self, name: str) -> Iterator[None]:
        """Keep how long a step of the start took, for the one line that tells of all."""
        clock = self._drivers.clock
        began_s = clock.monotonic_s()
        try:
            yield
        finally:
            self.step_ms[name] = round((clock.monotonic_s() - began_s) * 1000, 1)

    def _link_with(self, control_token: str) -> GuestLink:
        dial = self._dial if self.has_agent_line else None
        return self._drivers.links(str(self.slot.address), control_token, dial=dial)

    def _line_env(self) -> dict[str, str]:
        return {LINE_VARIABLE: str(AGENT_PORT)} if self.has_agent_line else {}

    async def _dial(self) -> socket.socket:
        return await cast(AgentLine, self.runtime).dial(self.machine_id, AGENT_PORT)

    def _id_shift(self, slot: Slot) -> int:
        return id_shift_of(slot) if Capability.USER_NAMESPACE in self.runtime.capabilities else 0

    def _spec(self, rootfs: Rootfs, slot: Slot) -> MachineSpec:
        self.console.parent.mkdir(mode=0o711)
        os.mkfifo(self.console, 0o600)
        agent = self._drivers.agent
        return MachineSpec(
            machine_id=self.machine_id,
            directory=self.console.parent,
            rootfs=rootfs.path,
            id_shift=rootfs.id_shift,
            image=rootfs.image,
            disk=rootfs.disk,
            disk_file=rootfs.disk_file,
            user_id=id_shift_of(slot),
            agent_dir=agent.directory,
            netns=slot.netns,
            argv=agent.argv,
            env={**agent.env(self.record.control_token), **self._line_env()},
            hostname=HOSTNAME,
            limits=self.record.limits,
            files=self._write_files(),
            memory=self.source.memory.directory if self.source and self.source.memory else None,
        )

    def _write_files(self) -> Mapping[str, Path]:
        directory = self.directory / _FILES_DIRECTORY
        directory.mkdir(mode=0o711)
        files: dict[str, Path] = {}
        for inside, text in guest_files(HOSTNAME, self.settings.dns_servers).items():
            files[inside] = directory / Path(inside).name
            files[inside].write_text(text)
            files[inside].chmod(0o644)
        return files


def archive_of(directory: Path) -> Path:
    """The archive in a machine's directory."""
    return directory / "disk.archive"


def id_shift_of(slot: Slot) -> int:
    """The host ids of a machine in a user namespace: no other living machine of this host has them.

    Slots have two addresses each and no two instances on a host share any, so half the address tells them apart.
    """
    return FIRST_ID_SHIFT + (int(slot.address) & 0xFFFF) // 2 * ID_COUNT
