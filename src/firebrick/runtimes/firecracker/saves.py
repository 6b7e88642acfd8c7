"""Saves of a node's machines: how a monitor is told to make one, whether one can go on here, how one goes on.

`memory` decides, `saving` moves the files; here is the order in which monitor, files and tools are asked.
"""

import asyncio
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from firebrick.linux.process import CommandFailed, run
from firebrick.runtimes.base import MachineSpec, RuntimeFailed
from firebrick.runtimes.firecracker.api import ApiFailed, MachineApi
from firebrick.runtimes.firecracker.filling import read_started
from firebrick.runtimes.firecracker.memory import (
    AGENT,
    Host,
    SaveFacts,
    Started,
    misfit,
    read_processor,
    refusal,
    state_version,
    tracks_from_start,
)
from firebrick.runtimes.firecracker.plan import (
    MEMORY,
    SAVE,
    STATE,
    Jail,
    Rates,
    Tools,
    config_sha256,
    cpu_count,
    rate_changes,
)
from firebrick.runtimes.firecracker.saving import (
    SavePlace,
    describe_files,
    finish_save,
    give_agent,
    keep_base,
    read_save,
)

FIRST_ENTRY_BYTES = 1 << 14
"""Several times what the kernel says of one processor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFacts:
    """What of the tools a save tells, and may be refused for."""

    guest_kernel_sha256: str
    initramfs_sha256: str
    snapshot_version: str


class Saves:
    """Args: start_timeout_s: what a program of the tools may take, and a save for each GiB."""

    def __init__(self, *, tools: Tools, rates: Rates, start_timeout_s: float, huge_pages: bool = False) -> None:
        self._tools = tools
        self._rates = rates
        self._huge_pages = huge_pages
        self._start_timeout_s = start_timeout_s
        self._tool_facts: tuple[object, ToolFacts] | None = None

    async def save(self, jail: Jail, api: MachineApi, directory: Path) -> None:
        """Write a frozen machine's memory and devices into an empty directory, flushed. Raises RuntimeFailed."""
        place = SavePlace(directory=jail.save_place)
        try:
            started = await asyncio.to_thread(read_started, jail)
            if started.is_huge:
                raise ValueError("it is in huge pages, and nothing could go on from a save of them")
            if (state := await api.state()) != "Paused":
                raise ValueError(f"it is not frozen but {state.lower()}")
            version = await api.version()
            is_diff = started.tracks and jail.base.exists()
            await asyncio.to_thread(place.open_for, started.user_id, jail.base if is_diff else None)
            # NOTE: before the monitor is asked, for it forgets what was written although the save may fail: then the
            # next one writes everything.
            jail.base.unlink(missing_ok=True)
            try:
                timeout_s = save_timeout_s(started.memory_mib, self._start_timeout_s)
                await api.save(
                    memory=f"/{SAVE}/{MEMORY}", state=f"/{SAVE}/{STATE}", timeout_s=timeout_s, is_diff=is_diff
                )
                await asyncio.to_thread(_take_out, jail, directory, started, version)
            finally:
                await asyncio.to_thread(place.clear)
        except (ApiFailed, OSError, ValueError) as exc:
            raise RuntimeFailed(f"The memory of {jail.machine_id} could not be saved.", detail=str(exc)) from exc

    async def load(self, api: MachineApi, save: SaveFacts, *, is_alive: Callable[[], bool]) -> None:
        """Let a monitor that waits go on from the save that lies in its jail. Raises ApiFailed."""
        changes: tuple[tuple[str, dict[str, object]], ...] = ()
        if save.started.rates != self._rates:
            changes = rate_changes(self._rates, has_network=save.started.network is not None)
        await api.wait_state("Not started", is_alive=is_alive)
        await api.load(memory=f"/{MEMORY}", state=f"/{STATE}", resumes=not changes, tracks=True)
        for path, body in changes:
            await api.change(path, body)
        if changes:
            await api.resume()

    async def version(self) -> str:
        """Of kernel, initramfs, format, and what else a guest meets at its boot. Raises RuntimeFailed: the tools cannot
        be used."""
        facts = await self._read_tools()
        return "/".join((facts.guest_kernel_sha256, facts.initramfs_sha256, facts.snapshot_version, config_sha256()))

    async def refusal(self, directory: Path) -> str:
        """Why a save cannot go on here; "": it can. Raises RuntimeFailed: the tools cannot be used."""
        try:
            return (await self._judge(directory))[1]
        except ValueError as exc:
            return str(exc)

    async def usable(self, spec: MachineSpec) -> SaveFacts:
        """The save that a machine is to go on from. Raises RuntimeFailed, with the reason in its message."""
        assert spec.memory is not None
        try:
            save, why = await self._judge(spec.memory)
            why = why or misfit(save, cpu_count=cpu_count(spec.limits), memory_mib=spec.limits.memory_mib)
            if not why:
                return save
        except ValueError as exc:
            why = str(exc)
        raise RuntimeFailed(f"The machine {spec.machine_id} cannot go on from its memory. {why}")

    async def _judge(self, directory: Path) -> tuple[SaveFacts, str]:
        """A save, and why it cannot go on here. Raises RuntimeFailed, ValueError: it is damaged, as a sentence."""
        facts = await self._read_tools()
        save = await asyncio.to_thread(read_save, directory)
        return save, refusal(save, await asyncio.to_thread(_host, facts.snapshot_version))

    async def started(self, spec: MachineSpec, save: SaveFacts | None) -> Started:
        """How a machine is started, but for its network. Raises RuntimeFailed: the tools cannot be used."""
        facts = await self._read_tools()
        if save is not None:
            return replace(save.started, user_id=spec.user_id, rates=self._rates, is_restored=True, tracks=True)
        return Started(
            user_id=spec.user_id,
            cpu_count=cpu_count(spec.limits),
            memory_mib=spec.limits.memory_mib,
            guest_kernel_sha256=facts.guest_kernel_sha256,
            initramfs_sha256=facts.initramfs_sha256,
            network=None,
            rates=self._rates,
            is_restored=False,
            tracks=not self._huge_pages and tracks_from_start(await asyncio.to_thread(_large_pages)),
            is_huge=self._huge_pages,
        )

    async def _read_tools(self) -> ToolFacts:
        """Read once for each version of the tools. Raises RuntimeFailed."""
        tools = self._tools
        try:
            key = [(file, found.st_ino, found.st_mtime_ns) for file in tools.files if (found := file.stat())]
            if self._tool_facts is None or self._tool_facts[0] != key:
                said = await run([tools.firecracker, "--snapshot-version"], timeout_s=self._start_timeout_s)
                facts = ToolFacts(
                    guest_kernel_sha256=await asyncio.to_thread(_sha256, tools.kernel),
                    initramfs_sha256=await asyncio.to_thread(_sha256, tools.initramfs),
                    snapshot_version=said.stdout.partition("\n")[0].strip().removeprefix("v"),
                )
                self._tool_facts = (key, facts)
        except (OSError, CommandFailed) as exc:
            raise RuntimeFailed("Firecracker's files cannot be used.", detail=str(exc)) from exc
        return self._tool_facts[1]


def save_timeout_s(memory_mib: int, start_timeout_s: float) -> float:
    """A start's time, and as much again for each GiB that must reach the disk."""
    return start_timeout_s * (1 + memory_mib / 1024)


def _take_out(jail: Jail, directory: Path, started: Started, version: str) -> None:
    """Raises OSError, ValueError."""
    directory.chmod(0o700)
    place = SavePlace(directory=jail.save_place)
    state = place.read_state()
    host = _host(state_version(state))
    place.take_memory(directory / MEMORY, started.memory_mib << 20)
    give_agent(jail.agent, directory / AGENT)
    if started.tracks:
        keep_base(directory / MEMORY, jail.base)
    files = describe_files(directory, state)
    finish_save(directory, SaveFacts(firecracker=version, host=host, started=started, files=files), state)


def _large_pages() -> str:
    try:
        return Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        # A kernel without them.
        return ""


def _host(snapshot_version: str) -> Host:
    return Host(
        processor=read_processor(_first_processor()),
        kernel=os.uname().release,
        snapshot_version=snapshot_version,
    )


def _first_processor() -> str:
    # The kernel writes an entry for each of hundreds, at each start; the first is what counts.
    with Path("/proc/cpuinfo").open(errors="replace", buffering=FIRST_ENTRY_BYTES) as file:
        return file.read(FIRST_ENTRY_BYTES)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
