"""What a microVM is made of: configuration, jail, and what is told of its end."""

import io
import subprocess
import tarfile
from ipaddress import IPv4Interface
from pathlib import Path

import pytest

from firebrick.model.ids import MachineId
from firebrick.model.machine import ExitCause, Limits
from firebrick.runtimes.base import MachineSpec
from firebrick.runtimes.firecracker.driver import OVERHEAD_MIB, exit_of, host_limits
from firebrick.runtimes.firecracker.plan import (
    REPORT_BYTES,
    Jail,
    Network,
    Rates,
    Report,
    Tools,
    bound_files,
    config_sha256,
    cpu_count,
    jailer_argv,
    machine_config,
    machine_script,
    parse_report,
    rate_changes,
    spec_archive,
)

LIMITS = Limits(millicpu=1500, memory_mib=256, disk_mib=1024, process_count=100)
NETWORK = Network(mac="02:fb:a9:fe:00:15", address=IPv4Interface("169.254.0.21/30"), gateway="169.254.0.22")
MACHINE = MachineId("m0123456789abcdefghi")
TOOLS = Tools(directory=Path("/tools"))


def spec(*argv: str, **changes: object) -> MachineSpec:
    given: dict[str, object] = {
        "machine_id": MACHINE, "directory": Path("/m"), "rootfs": Path("/r"), "agent_dir": Path("/agent"),
        "netns": Path("/run/netns/g1"), "argv": argv or ("/bin/true",), "env": {}, "hostname": "sandbox",
        "limits": LIMITS, "user_id": 70_000,
    }  # fmt: skip
    return MachineSpec(**(given | changes))  # type: ignore[arg-type]


def test_the_configuration() -> None:
    """Whole CPUs, the guest's memory, drives in the order that the init script knows, and no metadata service."""
    config = machine_config(LIMITS, network=NETWORK, rates=Rates(), tracks=False)
    expected = {"vcpu_count": 2, "mem_size_mib": 256, "smt": False, "track_dirty_pages": False, "huge_pages": "None"}
    assert config["machine-config"] == expected
    drives = [(drive["drive_id"], drive["is_read_only"]) for drive in config["drives"]]
    assert drives == [("image", True), ("disk", False), ("agent", True), ("spec", True), ("report", False)]
    assert config["network-interfaces"] == [
        {"iface_id": "eth0", "host_dev_name": "tap0", "guest_mac": "02:fb:a9:fe:00:15"}
    ]
    assert "mmds-config" not in config
    assert "entropy" in config
    assert config["vsock"] == {"guest_cid": 3, "uds_path": "/vsock.sock"}


def test_a_changed_configuration_has_another_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    """By which memory that was saved before an update is known to be of another kind of machine."""
    before = config_sha256()
    assert config_sha256() == before
    monkeypatch.setattr("firebrick.runtimes.firecracker.plan.BOOT_ARGUMENTS", ("quiet",))
    assert config_sha256() != before


def test_huge_pages_have_no_balloon() -> None:
    """The monitor refuses one beside them."""
    assert "balloon" in machine_config(LIMITS, network=NETWORK, rates=Rates())
    config = machine_config(LIMITS, network=NETWORK, rates=Rates(), is_huge=True)
    assert config["machine-config"]["huge_pages"] == "2M"
    assert "balloon" not in config


def test_rates_limit_every_drive_and_both_ways() -> None:
    """A tenth of a second's worth, ten times a second; a whole one's where that would be less than one request."""
    rates = Rates(disk_bytes_per_s=100 << 20, network_bytes_per_s=1 << 20)
    config = machine_config(LIMITS, network=NETWORK, rates=rates, tracks=True)
    assert all(d["rate_limiter"] == {"bandwidth": {"size": 10 << 20, "refill_time": 100}} for d in config["drives"])
    (interface,) = config["network-interfaces"]
    assert interface["rx_rate_limiter"] == interface["tx_rate_limiter"]
    assert interface["rx_rate_limiter"] == {"bandwidth": {"size": 1 << 20, "refill_time": 1000}}


def test_rates_of_a_restored_machine_are_changed_to_ours() -> None:
    """Every drive and both ways; a limit that is gone is a bucket without a size."""
    changes = dict(rate_changes(Rates(disk_bytes_per_s=1000), has_network=True))
    assert changes["/drives/disk"] == {
        "drive_id": "disk", "rate_limiter": {"bandwidth": {"size": 1000, "refill_time": 1000}}
    }  # fmt: skip
    none = {"bandwidth": {"size": 0, "refill_time": 0}}
    assert changes["/network-interfaces/eth0"] == {
        "iface_id": "eth0", "rx_rate_limiter": none, "tx_rate_limiter": none
    }  # fmt: skip
    assert len(changes) == 6
    assert len(rate_changes(Rates(), has_network=False)) == 5


def test_a_machine_that_goes_on_from_a_save_is_not_configured() -> None:
    """Its monitor is told by its API, has the save's files read-only, and no kernel."""
    jail = Jail(top=Path("/j"), machine_id=MACHINE)
    argv = jailer_argv(TOOLS, jail, user_id=1, netns=Path("/n"), largest_file_bytes=1, is_configured=False)
    assert "--config-file" not in argv
    files = {
        file.name: file
        for file in bound_files(TOOLS, jail, image=Path("/i"), disk=Path("/d"), save=Path("/save"))
    }  # fmt: skip
    assert (files["memory"].source, files["memory"].read_only) == (Path("/save/memory"), True)
    assert (files["state"].source, files["state"].read_only) == (Path("/save/state"), True)
    assert not {"vmlinux", "initrd"} & files.keys()


def test_a_machine_without_a_link_has_no_interface() -> None:
    assert machine_config(LIMITS, network=None, rates=Rates(), tracks=False)["network-interfaces"] == []


@pytest.mark.parametrize(("millicpu", "count"), [(1, 1), (1000, 1), (1001, 2), (64_000, 32)])
def test_cpus_are_whole(millicpu: int, count: int) -> None:
    limits = Limits(millicpu=millicpu, memory_mib=1, disk_mib=1, process_count=1)
    assert cpu_count(limits) == count
    assert host_limits(limits).millicpu == millicpu


def test_the_host_grants_what_the_monitor_needs_beside_the_guest() -> None:
    assert host_limits(LIMITS).memory_bytes == (256 + OVERHEAD_MIB) << 20


def test_the_jailers_command_line() -> None:
    """A user, a root directory, a network and a process namespace of its own; seccomp stays on; no cgroup is told."""
    jail = Jail(top=Path("/state/jails"), machine_id=MACHINE)
    argv = jailer_argv(TOOLS, jail, user_id=70_000, netns=Path("/run/netns/g1"), largest_file_bytes=1 << 30)
    jailer, _, monitor = " ".join(argv).partition(" -- ")
    assert jailer == (
        f"/tools/jailer --id {MACHINE} --exec-file /tools/firecracker --uid 70000 --gid 70000 "
        "--chroot-base-dir /state/jails --netns /run/netns/g1 --resource-limit fsize=1073741824 --new-pid-ns"
    )
    assert monitor == "--api-sock /api.sock --config-file /config.json --level Warning"
    assert str(jail.pid_file) == f"/state/jails/firecracker/{MACHINE}/root/firecracker.pid"


def test_root_runs_no_monitor() -> None:
    with pytest.raises(ValueError, match="user of its own"):
        jailer_argv(TOOLS, Jail(top=Path("/j"), machine_id=MACHINE), user_id=0, netns=Path("/n"), largest_file_bytes=1)


def test_only_the_machines_own_disk_can_be_written() -> None:
    jail = Jail(top=Path("/state/jails"), machine_id=MACHINE)
    files = bound_files(TOOLS, jail, image=Path("/image"), disk=Path("/disk"))
    assert [file.name for file in files if not file.read_only] == ["disk", "save"]


def test_a_shell_starts_exactly_the_program(tmp_path: Path) -> None:
    """Arguments and variables with quotes, newlines and dollars reach it as they are; nothing else is in its world."""
    argv = ("/bin/prog", "-c", 'it\'s "$HOME"\nand `id`', "")
    script = machine_script(spec(*argv, env={"A": "b c\n$d'"}), NETWORK)
    (tmp_path / "machine").write_text(script.replace("exec /bin/busybox", 'printf "%s\\0"'))
    seen = subprocess.run(
        ["/bin/sh", "-c", f". {tmp_path}/machine; program; printf '%s|%s|%s' $hostname $address $process_count"],
        capture_output=True, text=True, check=True,
    ).stdout.split("\0")  # fmt: skip
    assert seen == ["env", "-i", "A=b c\n$d'", "/bin/busybox", "chroot", ".", *argv, "sandbox|169.254.0.21/30|100"]


@pytest.mark.parametrize("changes", [{"hostname": "a;reboot"}, {"env": {"A;reboot": "1"}}])
def test_what_is_no_name_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="not a"):
        machine_script(spec(**changes), None)


def test_files_travel_in_the_archive() -> None:
    """Under `files`, by their path inside; one that would climb out is refused."""
    archive = spec_archive(spec(), None, {"/etc/resolv.conf": b"nameserver 9.9.9.9\n"})
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        assert tar.getnames() == ["machine", "files/etc/resolv.conf"]
    assert len(archive) % 512 == 0
    with pytest.raises(ValueError, match="absolute"):
        spec_archive(spec(), None, {"/etc/../../init": b""})


@pytest.mark.parametrize(
    ("said", "report"),
    [
        (b"exit 7 0\n", Report(exit_code=7)),
        (b"exit 137 2\n", Report(exit_code=137, oom_kill_count=2)),
        (b"exit 999 0\n", Report(exit_code=255)),
        (b"failed the disk cannot be mounted\n", Report(failure="the disk cannot be mounted")),
        (b"", None),
        (b"exit -1 0\n", None),
        (b"exit 0 0", None),
        (b"failed \x1b[2J\n", None),
        (b"exit 1 99999999999999999999\n", None),
    ],
)
def test_the_guests_word_is_words_only(said: bytes, report: Report | None) -> None:
    assert parse_report(said.ljust(REPORT_BYTES, b"\0")) == report


@pytest.mark.parametrize(
    ("report", "status", "cause", "code"),
    [
        (Report(exit_code=0), 0, ExitCause.GUEST_EXIT, 0),
        (Report(exit_code=137, oom_kill_count=1), 0, ExitCause.OOM, 137),
        (Report(exit_code=137), 0, ExitCause.GUEST_EXIT, 137),
        (Report(exit_code=1, oom_kill_count=3), None, ExitCause.GUEST_EXIT, 1),
        (Report(failure="no disk"), 0, ExitCause.LOST, None),
        (None, -11, ExitCause.LOST, None),
        (None, None, ExitCause.LOST, None),
    ],
)
def test_why_it_ended(report: Report | None, status: int | None, cause: ExitCause, code: int | None) -> None:
    """A monitor that dies without a word of its guest's is no exit of the guest's."""
    ended = exit_of(MACHINE, report, status)
    assert (ended.cause, ended.exit_code) == (cause, code)
