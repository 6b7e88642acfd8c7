"""The probes on the machine that runs the tests: they decide, in time, and leave nothing."""

import os
import shutil
import socket
from pathlib import Path

import pytest

from firebrick.config import load_config
from firebrick.doctor.doctor import examine
from firebrick.doctor.feature_probes import probe_rootfs
from firebrick.doctor.host_reading import read_host
from firebrick.doctor.machine_probes import probe_port
from firebrick.doctor.result import ProbeStatus
from firebrick.doctor.virtualisation import Virtualisation, kind_of
from firebrick.linux.loop import backing_files

needs_root = pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mkfs.erofs"), reason="needs root, erofs-utils")


async def test_examine_answers_every_probe(tmp_path: Path) -> None:
    """One result per probe with distinct names, and none that failed says nothing about it."""
    report = await examine(load_config({}, data_dir=tmp_path), runtime_probes=())
    names = [result.name for result in report.results]
    assert len(names) == len(set(names))
    assert {"kernel", "rights", "cgroups", "rootfs", "network", "disk", "virtualisation", "cpu"} <= set(names)
    assert [result.name for result in report.results if result.status is ProbeStatus.FAIL and not result.why] == []


@pytest.mark.skipif("FIREBRICK_IN_LAB" not in os.environ, reason="NOT RUN: only the lab is known to be emulated")
def test_the_lab_is_told_for_what_it_is(tmp_path: Path) -> None:
    """Its processor is a program, its KVM is AMD's with nested page tables, and its devices open."""
    host = read_host(load_config({}, data_dir=tmp_path))
    assert kind_of(host) is Virtualisation.EMULATED
    assert host.kvm_parameters["kvm_amd"]["npt"] in ("1", "Y")
    assert host.kvm.opens
    assert host.tun.opens
    assert not any(host.modules.lacks(name) for name in ("tun", "nft_fwd_netdev", "dm_thin_pool"))


@pytest.mark.skipif(not Path("/sys/module/kvm_pvm").exists(), reason="NOT RUN: KVM here is none of page tables only")
def test_page_table_virtualised_kvm_is_told(tmp_path: Path) -> None:
    assert kind_of(read_host(load_config({}, data_dir=tmp_path))) is Virtualisation.PAGE_TABLE


@needs_root
@pytest.mark.needs_root
async def test_rootfs_probe_proves_and_leaves_nothing() -> None:
    """A disk is really cloned, and its loop devices and mounts are gone after."""
    assert (await probe_rootfs()).status is ProbeStatus.OK
    assert "firebrick-doctor-" not in Path("/proc/self/mountinfo").read_text()
    assert not any("firebrick-doctor-" in file for file in backing_files().values())


def test_a_taken_port_names_its_holder() -> None:
    """A port that another program holds fails, and the report says which program and which setting."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        config = load_config({}, api_port=server.getsockname()[1])
        found = probe_port(config, "api_port")
    assert found.status is ProbeStatus.FAIL
    assert "held by" in found.summary
    assert "FIREBRICK_API_PORT" in found.why
