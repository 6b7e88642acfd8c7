"""The runtime seam: one driver starts, watches and destroys machines of one kind.

Life of a machine, as a driver sees it:

    start ──▶ running ──▶ (exit, by itself or by destroy) ──▶ destroyed

- A driver owns what it makes for a machine: processes, cgroups, the runtime's own state, files below
  `spec.directory`. It does not own the rootfs mount, the network slot or the agent mount: those are handed
  in ready and taken back by the caller after `destroy`.
- A machine never depends on our process: it is started detached, inherits no pipe, socket or terminal of
  ours, and `recover` finds it after a restart. Killing the node agent ends no machine.
- `destroy` is two promises: when it returns, nothing of the guest runs any more; what the runtime needs
  long for (runsc deletes in over a second) is finished behind it, and `recover` finishes it after a crash.
- Optional power is a Capability, never a method that says it is not there.
- Foreign errors are translated here: RuntimeFailed says what was being done to which machine and why.
"""

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from firebrick.model.errors import Internal
from firebrick.model.ids import MachineId
from firebrick.model.machine import Limits, MachineExit, RuntimeName, Usage

AGENT_MOUNT = "/.firebrick"
"""Where the guest agent's read-only runtime appears inside every machine."""

SUDO_NAME = "sudo"
"""In the agent's directory: a `sudo` for machines whose runtime ignores setuid programs. It asks the agent, which
listens when SUDO_VARIABLE is in its environment, on the abstract socket of that name."""
SUDO_VARIABLE = "FIREBRICK_SUDO_SOCKET"
SUDO_SOCKET = "firebrick-sudo"

CONSOLE_NAME = "console"
"""FIFO in `spec.directory` that the machine's standard output and error go to. The driver opens it read-write
for the machine, so a machine never blocks on a reader and never gets SIGPIPE; the node drains it into a
bounded file. A regular file would let a guest fill the host's disk."""


class RuntimeFailed(Internal):
    """The runtime's own tool failed. `message` is safe for callers; `detail` holds the command and its output."""


class Capability(StrEnum):
    """What some drivers can do and others cannot."""

    USER_NAMESPACE = "user_namespace"
    """Inside's root is an unprivileged user of the host: the rootfs must be prepared with an id shift."""

    FREEZE = "freeze"
    """The driver is a `Freezer` too."""

    WRITES_INSIDE = "writes_inside"
    """What the machine writes to its disk is the runtime's own and ends with it: whoever wants to keep it asks the
    guest agent for it before. Otherwise the rootfs driver has it."""

    OWN_KERNEL = "own_kernel"
    """The machine mounts image and disk file by itself: the host must not mount them. What it has written may be in its
    memory alone until the guest agent has flushed it. It has started when its kernel runs: a program that is not there
    is an exit, not a failed start."""

    AGENT_LINE = "agent_line"
    """The driver is an `AgentLine` too."""

    GIVES_BACK = "gives_back"
    """The driver is a `MemoryGiver` too."""

    KEEPS_MEMORY = "keeps_memory"
    """The driver is a `MemoryKeeper` too; it is a `Freezer` as well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSpec:
    """Everything a driver needs to start one machine.

    Attributes:
        machine_id: fixed length, see `model.ids`.
        directory: exists, empty but for the console FIFO, on the host; the driver's to fill, the caller's to remove.
        rootfs: mounted and writable tree to use as `/`; not there for runtimes with OWN_KERNEL.
        image: what `rootfs` was cloned from, for runtimes that read an image themselves and leave `rootfs` alone.
        disk: directory on the machine's own bounded disk, where such a runtime keeps what the machine writes.
        disk_file: the disk itself, a filesystem in a file, not mounted; for runtimes with OWN_KERNEL.
        user_id: a user of the host whom no other living machine of this host has, for what must not be root; 0: none.
        id_shift: host id of inside's root and owner of its files; > 0 for runtimes with USER_NAMESPACE, else 0.
        agent_dir: host directory, mounted read-only at AGENT_MOUNT.
        netns: path of a network namespace that already holds the inside address and routes.
        argv: program and arguments, run as root inside with `/` as its directory: the guest agent.
        env: its whole environment.
        hostname: at most 63 characters.
        files: extra read-only files, {absolute inside path: host file}, such as /etc/resolv.conf.
        memory: what `save_memory` wrote of another machine: this one goes on from there, in place of a start. Its disk
            is as that one's was then, its image and limits are the same, and `argv`, `env`, `files` are as remembered.
            The machine keeps what is mapped of it open: the directory may be removed. None: it starts.
    """

    machine_id: MachineId
    directory: Path
    rootfs: Path
    agent_dir: Path
    netns: Path
    argv: tuple[str, ...]
    env: Mapping[str, str]
    hostname: str
    limits: Limits
    id_shift: int = 0
    image: Path | None = None
    disk: Path | None = None
    disk_file: Path | None = None
    user_id: int = 0
    files: Mapping[str, Path] = field(default_factory=dict)
    memory: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineStatus:
    """What `inspect` saw. `pid` is the host process whose end is the machine's end; None when it is gone."""

    machine_id: MachineId
    is_running: bool
    pid: int | None


class Runtime(Protocol):
    """One driver. All methods may be called at the same time for different machines; per machine the caller
    makes one call at a time, but for `wait_exit` and `usage`, which may run beside any other."""

    @property
    def name(self) -> RuntimeName: ...

    @property
    def capabilities(self) -> frozenset[Capability]: ...

    async def start(self, spec: MachineSpec) -> MachineStatus:
        """Start the machine; return when its first process runs (not when the guest agent answers).

        Raises: RuntimeFailed — the machine is not there and nothing is left of it.
        Cancel: as RuntimeFailed.
        """
        ...

    async def destroy(self, machine_id: MachineId) -> None:
        """End the machine now. Idempotent: a machine that is not there is fine.

        Effects: every process of the guest is gone when this returns, the rootfs is no longer in use and may
        be unmounted. Slow bookkeeping goes on behind (`close` waits for it).
        """
        ...

    async def inspect(self, machine_id: MachineId) -> MachineStatus:
        """Look, cheaply (no command is run). An unknown machine is `is_running=False`."""
        ...

    async def wait_exit(self, machine_id: MachineId) -> MachineExit:
        """Return when the machine has ended and why: OOM if its cgroup saw an OOM kill of the first process,
        LOST if nothing is known. Also for machines that an earlier process of ours started."""
        ...

    async def usage(self, machine_id: MachineId) -> Usage | None:
        """One reading from the host's side (`disk_bytes` is 0: the rootfs driver knows it). None when gone."""
        ...

    async def recover(self) -> tuple[MachineId, ...]:
        """Find what an earlier process of ours left: return the machines that run, finish what was half made
        or half destroyed. Called once, before anything else."""
        ...

    async def close(self) -> None:
        """Wait for bookkeeping behind. Machines go on running."""
        ...


class Freezer(Protocol):
    """Optional power, told by `Capability.FREEZE`: machines that stand still with all they hold.

    A frozen machine uses no CPU. What is sent to it waits: connections stay, and are answered after the thaw. Clocks
    go on. It stays frozen when our process ends, and an adopted one may be frozen: whoever recovers says which it
    wants. `destroy` ends a frozen machine like any other.
    """

    async def freeze(self, machine_id: MachineId) -> None:
        """Nothing of it runs when this returns. Idempotent. Raises RuntimeFailed: it runs on."""
        ...

    async def thaw(self, machine_id: MachineId) -> None:
        """It runs when this returns. Idempotent, and fine for one that was never frozen. Raises RuntimeFailed."""
        ...

    async def reclaim(self, machine_id: MachineId) -> int:
        """Give memory of a frozen machine back that can be read again from files or swap; answers how many bytes."""
        ...


class AgentLine(Protocol):
    """Optional power, told by `Capability.AGENT_LINE`: a way from the host to the guest agent that is not the guest's
    network, and none from the guest to the host. The agent listens there on the port that its environment names."""

    async def dial(self, machine_id: MachineId, port: int) -> socket.socket:
        """A stream to a port of the machine's, connected and without blocking; the caller closes it. Who sits at the
        other end may be anybody who broke out of the guest.

        Raises: FileNotFoundError: the machine has no such line, for an earlier version of ours started it; OSError:
        nobody answers, which `TimeoutError` is too.
        """
        ...


class MemoryGiver(Protocol):
    """Optional power, told by `Capability.GIVES_BACK`: machines whose guests free memory that the host cannot see."""

    async def take_back(self, machine_id: MachineId) -> int:
        """Let the host have what a running machine's guest has freed; how many bytes. The guest may use all of its
        memory as before when this returns, or soon after. Takes a moment where there is something to be had, and next
        to nothing where not. Never fails: what is not given back stays the guest's. Cancel: as when it returns."""
        ...


class MemoryKeeper(Protocol):
    """Optional power, told by `Capability.KEEPS_MEMORY`: machines whose memory and devices outlive them as files.

    What goes on from one save goes on equal in all things: processes, connections, clocks, random numbers, the guest
    agent's token. Whoever starts from it tells the guest agent what has changed before anything else inside runs.
    """

    async def save_memory(self, machine_id: MachineId, directory: Path) -> None:
        """Write a frozen machine's memory and devices into an empty directory, flushed; it stays frozen, and its disk
        is the caller's to copy before it is thawed. Raises RuntimeFailed: the directory's content is of no use."""
        ...

    async def memory_version(self) -> str:
        """Of what a machine that is started now has in its memory by the runtime alone: its kernel, its first programs,
        the format of a save. A save that had another can go on all the same. Raises RuntimeFailed."""
        ...

    async def memory_refusal(self, directory: Path) -> str:
        """Why a save cannot go on here: another kind of processor, another version, a damaged file; as a sentence for
        the sandbox's owner. "": it can."""
        ...
