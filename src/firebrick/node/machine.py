"""How one machine is started and torn down.

    record → slot → rootfs → directory, console, files → runtime.start → guest agent answers
    record ◀─ slot ◀─ rootfs ◀───────────────────────── runtime.destroy ◀────────┘

There is one way back, whatever began it: a failed or cancelled start, a kill, an exit, a restart. Each of its
steps is idempotent and the next is taken only when the one before worked, so that a slot or a rootfs is never
given to someone else while a guest may still use it; `Machine.record` remembers how far it is.
"""

import asyncio
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from firebrick.guestlink.base import GuestLink
from firebrick.model.errors import Internal
from firebrick.model.ids import MachineId
from firebrick.network.base import Slot
from firebrick.node.drivers import NodeDrivers, NodeSettings
from firebrick.node.records import MachineRecord, MachineRecords, MachineState
from firebrick.rootfs.base import Rootfs
from firebrick.runtimes.base import CONSOLE_NAME, Capability, MachineSpec, Runtime

HOSTNAME = "sandbox"
"""The same in every machine: a warm one is started before its sandbox is known, and /etc/hosts must agree."""

ID_COUNT = 65_536
FIRST_ID_SHIFT = 0x7000_0000
"""Above every range that accounts, subuid tables and systemd's containers use."""

READY_TIMEOUT_S = 45.0
_RUNTIME_DIRECTORY = "runtime"
_FILES_DIRECTORY = "files"


class Machine:
    """One machine and its record. Only its actor calls it, one call at a time."""

    def __init__(
        self, record: MachineRecord, drivers: NodeDrivers, settings: NodeSettings, records: MachineRecords
    ) -> None:
        self.record = record
        self._drivers = drivers
        self._settings = settings
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
            self._link = self._drivers.links(str(self.slot.address), self.record.control_token)
        return self._link

    @property
    def directory(self) -> Path:
        return self._records.directory(self.machine_id)

    @property
    def console(self) -> Path:
        return self.directory / _RUNTIME_DIRECTORY / CONSOLE_NAME

    def save(self, **changes: Any) -> None:
        """Change the record, on the disk first."""
        changed = replace(self.record, **changes)
        self._records.write(changed)
        self.record = changed

    async def start(self) -> None:
        """Return when its first process runs; `wait_ready` tells when its guest agent answers.

        Raises: whatever the failing driver raised. Then, and when cancelled, `destroy` and `release` undo it.
        """
        image = self._drivers.images.image(self.record.build_id)
        self.save(state=MachineState.STARTING)
        with self._step("slot_ms"):
            slot = await self._drivers.slots.acquire()
        # NOTE: no await before the index is kept, or a cancellation here would lose the slot.
        self.record = replace(self.record, slot_index=slot.index)
        self.save()
        disk_mib = self.record.limits.disk_mib
        with self._step("rootfs_ms"):
            rootfs = await self._drivers.rootfs.prepare(
                self.machine_id, image, disk_mib=disk_mib, id_shift=self._id_shift(slot)
            )
        with self._step("runtime_ms"):
            await self.runtime.start(self._spec(rootfs, slot))

    async def wait_ready(self) -> None:
        """Return when the guest agent answers. Raises GuestSilent."""
        with self._step("agent_ms"):
            await self.link.wait_ready(timeout_s=READY_TIMEOUT_S)

    async def destroy(self) -> None:
        """When this returns, nothing of the guest runs. Idempotent."""
        if self._link is not None:
            self._link.close()
        await self.runtime.destroy(self.machine_id)

    async def release(self) -> None:
        """After `destroy`: give back what it held; its directory goes last. Repeat it until it works."""
        await self._drivers.rootfs.remove(self.machine_id)
        if self.record.slot_index is not None:
            slot = self.slot
            await self._drivers.slots.release(slot)
            # NOTE: a repetition must not release it again: by then it may be another machine's.
            self.record = replace(self.record, slot_index=None)
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
            agent_dir=agent.directory,
            netns=slot.netns,
            argv=agent.argv,
            env=agent.env(self.record.control_token),
            hostname=HOSTNAME,
            limits=self.record.limits,
            files=self._write_files(),
        )

    def _write_files(self) -> Mapping[str, Path]:
        directory = self.directory / _FILES_DIRECTORY
        directory.mkdir(mode=0o711)
        files: dict[str, Path] = {}
        for inside, text in guest_files(HOSTNAME, self._settings.dns_servers).items():
            files[inside] = directory / Path(inside).name
            files[inside].write_text(text)
            files[inside].chmod(0o644)
        return files


def id_shift_of(slot: Slot) -> int:
    """The host ids of a machine in a user namespace: no other living machine of this host has them.

    Slots have two addresses each and no two instances on a host share any, so half the address tells them apart.
    """
    return FIRST_ID_SHIFT + (int(slot.address) & 0xFFFF) // 2 * ID_COUNT


def guest_files(hostname: str, dns_servers: tuple[str, ...]) -> dict[str, str]:
    """Files that every guest sees in place of its image's. Its own name must resolve, or `sudo` complains."""
    hosts = f"127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n127.0.1.1 {hostname}\n"
    return {
        "/etc/hosts": hosts,
        "/etc/hostname": f"{hostname}\n",
        "/etc/resolv.conf": "".join(f"nameserver {server}\n" for server in dns_servers),
    }
