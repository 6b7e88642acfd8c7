"""What a node agent is built from: drivers, images, settings. `main/node.py` fills it; tests fill it with sims."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from firebrick.clock import Clock
from firebrick.guestlink.base import GuestLinks
from firebrick.linux.kernel_log import MemoryKill
from firebrick.model.ids import BuildId, NodeId
from firebrick.model.machine import Limits, RuntimeName
from firebrick.network.base import SlotPool
from firebrick.rootfs.base import RootfsDriver
from firebrick.runtimes.base import Runtime


class MemoryKills(Protocol):
    """What the host's kernel killed for memory; see `linux.kernel_log`."""

    def fileno(self) -> int | None: ...

    def read_kills(self) -> Iterable[MemoryKill]: ...

    def close(self) -> None: ...


class TemplateImages(Protocol):
    """The template builds that lie on this node."""

    def builds(self) -> frozenset[BuildId]: ...

    def image(self, build_id: BuildId) -> Path:
        """The read-only image of a build. Raises NotFound."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentImage:
    """The guest agent as a machine gets it: a directory to mount and a command line to start it with. `version` reads
    what the directory's content is called now."""

    directory: Path
    argv: tuple[str, ...]
    env: Callable[[str], Mapping[str, str]]
    version: Callable[[], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmKey:
    """Machines with equal keys can stand in for one another."""

    build_id: BuildId
    runtime: RuntimeName
    limits: Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeDrivers:
    """`runtimes` holds every runtime that may have left machines here, offered or not. `memory_kills` None: nobody
    tells."""

    runtimes: Mapping[RuntimeName, Runtime]
    rootfs: RootfsDriver
    slots: SlotPool
    links: GuestLinks
    images: TemplateImages
    agent: AgentImage
    clock: Clock
    memory_kills: MemoryKills | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSettings:
    """`offered` are the runtimes for new sandboxes, strongest first; `always_hot` get warm machines unasked;
    `reclaim_after_s`: how often is looked for pauses whose memory can be given back;
    `template_memory_count`: of how many kinds of machines new ones go on from the memory of one that booted, where the
    runtime keeps memory."""

    node_id: NodeId
    node_dir: Path
    offered: tuple[RuntimeName, ...]
    dns_servers: tuple[str, ...]
    start_concurrency: int
    cpu_overcommit: float
    memory_overcommit: float
    warm_count: int
    warm_memory_mib: int
    patience: float = 1.0
    template_memory_count: int = 8
    reclaim_after_s: float = 60.0
    always_hot: tuple[WarmKey, ...] = ()
    ended_logs_kept_s: float = 48 * 3600.0
    ended_logs_bytes: int = 1 << 30

    @property
    def machines_dir(self) -> Path:
        return self.node_dir / "machines"

    @property
    def logs_dir(self) -> Path:
        """Logs of sandboxes that have ended."""
        return self.node_dir / "logs"
