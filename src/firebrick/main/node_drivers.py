"""Which drivers a node agent gets: chosen by the settings, by what is installed and by what was proven to work.

Every runtime whose program is there is built, because an earlier process may have left machines of it; offered
for new sandboxes are those that the doctor proved.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from firebrick.builder.agent_image import agent_argv, agent_env, agent_version
from firebrick.builder.template_store import IMAGE_NAME, RECORD_NAME, list_builds
from firebrick.clock import SystemClock
from firebrick.config import Config
from firebrick.doctor.doctor import find_firecracker, find_oci_runtime, find_runsc, working_runtimes
from firebrick.doctor.runtime_probes import probe_container, probe_gvisor, probe_microvms
from firebrick.guestlink.http import HttpGuestLink
from firebrick.guestlink.sim import SimGuests
from firebrick.linux.kernel_log import KernelLog
from firebrick.model.errors import Invalid, NotFound, Unavailable
from firebrick.model.ids import BuildId
from firebrick.model.machine import RuntimeName
from firebrick.network.layout import instance_name
from firebrick.network.pool import NativeSlotPool
from firebrick.network.sim import SimSlotPool
from firebrick.node.drivers import AgentImage, NodeDrivers, NodeSettings, WarmKey
from firebrick.node.identity import load_node_id
from firebrick.rootfs.disks import CloneKind, Disks, FileDisks
from firebrick.rootfs.overlay import OverlayRootfs
from firebrick.rootfs.sim import SimRootfs
from firebrick.rootfs.thin_disks import ThinDisks
from firebrick.runtimes.base import Runtime
from firebrick.runtimes.container.driver import ContainerRuntime
from firebrick.runtimes.firecracker.driver import FirecrackerRuntime
from firebrick.runtimes.firecracker.plan import Rates
from firebrick.runtimes.gvisor.driver import GvisorRuntime
from firebrick.runtimes.machines import START_TIMEOUT_S
from firebrick.runtimes.sim.runtime import SimRuntime

BASE_ALIAS = "base"


@dataclass(frozen=True, slots=True)
class StoredImages:
    """`TemplateImages` over the directory of template builds."""

    templates_dir: Path

    def builds(self) -> frozenset[BuildId]:
        return frozenset(build.build_id for build in list_builds(self.templates_dir))

    def image(self, build_id: BuildId) -> Path:
        directory = self.templates_dir / build_id
        # The id comes over the wire: only a child of the directory is a build.
        if directory.parent != self.templates_dir or not (directory / RECORD_NAME).is_file():
            raise NotFound(f"The template build '{build_id}' is not on this node.")
        return directory / IMAGE_NAME


def build_drivers(config: Config) -> NodeDrivers:
    """All drivers; nothing is touched yet. Raises Invalid for settings that cannot work."""
    clock = SystemClock()
    images = StoredImages(config.templates_dir)
    agent_dir = config.tools_dir / "agent"
    agent = AgentImage(directory=agent_dir, argv=agent_argv(), env=agent_env, version=partial(agent_version, agent_dir))
    if config.runtime == RuntimeName.SIM:
        return NodeDrivers(
            runtimes={RuntimeName.SIM: SimRuntime(clock)},
            rootfs=SimRootfs(),
            slots=SimSlotPool(size=config.slot_count),
            links=SimGuests().link,
            images=images,
            agent=agent,
            clock=clock,
        )
    instance = instance_name(config.data_dir)
    rootfs_dir = config.node_dir / "rootfs"
    return NodeDrivers(
        runtimes=build_runtimes(config, instance),
        rootfs=OverlayRootfs(
            root=rootfs_dir,
            instance=instance,
            disks=build_disks(config, rootfs_dir, instance),
            disk_mib=config.default_disk_mib,
        ),
        slots=NativeSlotPool(
            instance=instance,
            prefix=_prefix(config),
            size=config.slot_count,
            name_servers=_ipv4(_name_servers(config)),
            patience=config.patience,
        ),
        links=partial(HttpGuestLink, patience=config.patience),
        images=images,
        agent=agent,
        clock=clock,
        memory_kills=KernelLog(),
    )


def build_disks(config: Config, rootfs_dir: Path, instance: str) -> Disks:
    """How disks are cloned; files find out by themselves what their filesystem can."""
    if config.disk_clones == CloneKind.DEVMAPPER or config.disk_pool:
        device = Path(config.disk_pool) if config.disk_pool else None
        return ThinDisks(rootfs_dir / "thin", instance=instance, device=device)
    kind = None if config.disk_clones == "auto" else CloneKind(config.disk_clones)
    return FileDisks(rootfs_dir / "seeds", kind=kind)


def build_runtimes(config: Config, instance: str) -> Mapping[RuntimeName, Runtime]:
    """Every runtime whose program is installed."""
    runtimes: dict[RuntimeName, Runtime] = {}
    start_timeout_s = config.patient_s(START_TIMEOUT_S)
    if (runsc := find_runsc(config)) is not None:
        runtimes[RuntimeName.GVISOR] = GvisorRuntime(
            runsc=runsc, state_dir=config.node_dir / "gvisor", instance=instance, start_timeout_s=start_timeout_s
        )
    if (binary := find_oci_runtime(config)) is not None:
        runtimes[RuntimeName.CONTAINER] = ContainerRuntime(
            binary=binary, state_dir=config.node_dir / "container", instance=instance, start_timeout_s=start_timeout_s
        )
    if (tools := find_firecracker(config)) is not None:
        runtimes[RuntimeName.FIRECRACKER] = FirecrackerRuntime(
            tools=tools,
            state_dir=config.node_dir / "firecracker",
            instance=instance,
            rates=Rates(
                disk_bytes_per_s=config.firecracker_disk_mib_per_s << 20,
                network_bytes_per_s=config.firecracker_network_mib_per_s << 20,
            ),
            start_timeout_s=start_timeout_s,
            huge_pages=config.firecracker_huge_pages == "on",
        )
    return runtimes


async def build_settings(config: Config, drivers: NodeDrivers) -> NodeSettings:
    """Raises Unavailable when no runtime may be offered."""
    config.node_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
    offered = offered_runtimes(config.runtime, drivers.runtimes, await _proven(config, drivers.runtimes))
    return NodeSettings(
        node_id=load_node_id(config.node_dir),
        node_dir=config.node_dir,
        offered=offered,
        dns_servers=_name_servers(config),
        start_concurrency=config.start_concurrency,
        cpu_overcommit=config.cpu_overcommit,
        memory_overcommit=config.memory_overcommit,
        warm_count=config.warm_count,
        warm_memory_mib=config.warm_memory_mib,
        patience=config.patience,
        template_memory_count=config.template_memory_count,
        always_hot=_always_hot(config, offered[0]),
        ended_logs_kept_s=config.autopsy_hours * 3600.0,
        ended_logs_bytes=config.ended_logs_mib << 20,
    )


def offered_runtimes(
    wanted: str, built: Mapping[RuntimeName, Runtime], proven: frozenset[RuntimeName]
) -> tuple[RuntimeName, ...]:
    """What new sandboxes may use, strongest first: all that work for `auto`, else the one that was asked for."""
    if wanted == RuntimeName.SIM:
        return (RuntimeName.SIM,)
    working = sorted(proven & built.keys(), key=lambda name: -name.strength)
    offered = tuple(name for name in working if wanted in ("auto", name))
    if not offered:
        what = "No runtime works" if wanted == "auto" else f"The runtime '{wanted}' does not work"
        raise Unavailable(f"{what} on this machine; `firebrick doctor` tells why and what mends it.")
    return offered


async def _proven(config: Config, built: Mapping[RuntimeName, Runtime]) -> frozenset[RuntimeName]:
    """What `firebrick up` found to work; without its verdict, what works now."""
    if config.runtime == RuntimeName.SIM:
        return frozenset()
    try:
        verdict = json.loads((config.run_dir / "runtimes.json").read_text())
        return frozenset(RuntimeName(name) for name in verdict["runtimes"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    results = []
    if RuntimeName.FIRECRACKER in built and (tools := find_firecracker(config)) is not None:
        results.append(await probe_microvms(config, tools))
    if RuntimeName.GVISOR in built and (runsc := find_runsc(config)) is not None:
        results.append(await probe_gvisor(runsc, patience=config.patience))
    if RuntimeName.CONTAINER in built and (binary := find_oci_runtime(config)) is not None:
        results.append(await probe_container(binary, patience=config.patience))
    return frozenset(working_runtimes(results))


def _always_hot(config: Config, runtime: RuntimeName) -> tuple[WarmKey, ...]:
    """The newest base template, on the runtime that a create without a wish gets."""
    bases = [build for build in list_builds(config.templates_dir) if build.alias == BASE_ALIAS]
    return tuple(WarmKey(build_id=build.build_id, runtime=runtime, limits=build.limits) for build in bases[:1])


def _name_servers(config: Config) -> tuple[str, ...]:
    return tuple(server.strip() for server in config.dns_servers.split(",") if server.strip())


def _ipv4(texts: tuple[str, ...]) -> tuple[IPv4Address, ...]:
    """Those that a sandbox can reach: it has no IPv6."""
    found = []
    for text in texts:
        try:
            found.append(IPv4Address(text))
        except ValueError:
            continue
    return tuple(found)


def _prefix(config: Config) -> IPv4Network:
    try:
        return IPv4Network(config.network_prefix)
    except ValueError as exc:
        raise Invalid(f"Setting 'network_prefix' must be an IPv4 network, not '{config.network_prefix}'.") from exc
