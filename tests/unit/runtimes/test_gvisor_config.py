"""What a gVisor machine is made of, and what it never takes from a tree that a guest has written."""

import os
from pathlib import Path

import pytest

from firebrick.model.ids import new_machine_id
from firebrick.model.machine import Limits
from firebrick.runtimes.base import MachineSpec
from firebrick.runtimes.gvisor.driver import gvisor_config, known_flags, runsc_flags

SUDO = ("/usr/bin/sudo", "FIREBRICK_SUDO_SOCKET=firebrick-sudo")


@pytest.fixture
def spec(tmp_path: Path) -> MachineSpec:
    for name in ("rootfs/usr/bin", "rootfs/tmp", "agent"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "agent" / "sudo").write_text("#!/bin/sh\n")
    return MachineSpec(
        machine_id=new_machine_id(), directory=tmp_path, rootfs=tmp_path / "rootfs", agent_dir=tmp_path / "agent",
        netns=tmp_path / "netns", argv=("/bin/true",), env={}, hostname="sandbox",
        limits=Limits(millicpu=1000, memory_mib=512, disk_mib=1024, process_count=64),
    )  # fmt: skip


def mounted(spec: MachineSpec, *, honours_setuid: bool = False) -> dict[str, str]:
    """{inside: what of the host's}, and the environment's lines as keys."""
    config = gvisor_config(spec, honours_setuid=honours_setuid)
    found = {mount["destination"]: mount["source"] for mount in config["mounts"]}
    return found | dict.fromkeys(config["process"]["env"], "")


def test_our_sudo_stands_in_for_one_that_cannot_work(spec: MachineSpec) -> None:
    """For a setuid sudo under a runsc that ignores setuid, and for nothing else."""
    sudo = spec.rootfs / "usr/bin/sudo"
    assert not set(SUDO) & set(mounted(spec))
    sudo.write_bytes(b"")
    sudo.chmod(0o755)
    assert not set(SUDO) & set(mounted(spec))
    sudo.chmod(0o4755)
    assert mounted(spec)[SUDO[0]] == str(spec.agent_dir / "sudo")
    assert set(SUDO) <= set(mounted(spec))
    assert not set(SUDO) & set(mounted(spec, honours_setuid=True))
    sudo.rename(sudo.with_name("real"))
    sudo.symlink_to("real")
    assert not set(SUDO) & set(mounted(spec))


def test_a_runsc_that_can_is_told_to_honour_setuid() -> None:
    """By its flag, where it has one."""
    known = known_flags("  -allow-suid\n    \tlet programs be setuid\n  -root string\n")
    assert "--allow-suid=true" in runsc_flags(known, Path("/r"), "systrap")
    assert "--allow-suid=true" not in runsc_flags(known_flags("  -root string\n"), Path("/r"), "systrap")


def test_tmp_never_leads_out_of_the_machines_own_tree(spec: MachineSpec) -> None:
    """A guest may have made /tmp a link before its disk came to this machine; the host would follow it."""
    assert mounted(spec)["/tmp"] == str(spec.rootfs / "tmp")
    os.rmdir(spec.rootfs / "tmp")
    (spec.rootfs / "tmp").symlink_to("/")
    assert "/tmp" not in mounted(spec)
