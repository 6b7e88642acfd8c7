"""`lab-check`: tells for each thing that an outer machine is for whether it is there. Exit status 1 if one is not."""

import ctypes
import fcntl
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

KVM_GET_API_VERSION, TUNSETIFF = 0xAE00, 0x400454CA
IFF_TAP_NO_PI = 0x1002
USERFAULTFD = 323
"""The system call's number on x86-64."""
FILESYSTEMS = ("overlay", "erofs", "squashfs", "xfs", "ext4")


def kvm() -> None:
    with open("/dev/kvm", "rb", buffering=0) as device:
        assert fcntl.ioctl(device, KVM_GET_API_VERSION) == 12


def tun() -> None:
    with open("/dev/net/tun", "r+b", buffering=0) as device:
        fcntl.ioctl(device, TUNSETIFF, b"lab-check".ljust(16, b"\0") + IFF_TAP_NO_PI.to_bytes(2, "little") + bytes(14))


def vsock() -> None:
    assert os.access("/dev/vhost-vsock", os.R_OK | os.W_OK)
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as server, socket.socket(socket.AF_VSOCK) as client:
        server.bind((socket.VMADDR_CID_ANY, 7701))
        server.listen()
        client.connect((1, 7701))


def device_mapper() -> None:
    """A thin pool on files with one thin device in it, taken apart again."""
    undo: list[tuple[str, ...]] = []
    try:
        with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
            loops: list[str] = []
            for name, size_mib in (("metadata", 4), ("data", 64)):
                path = Path(directory) / name
                path.touch()
                os.truncate(path, size_mib << 20)
                loops.append(output("losetup", "--find", "--show", str(path)))
                undo.append(("losetup", "--detach", loops[-1]))
            sectors = 64 << 11
            dmsetup("create", "lab-pool", "--table", f"0 {sectors} thin-pool {loops[0]} {loops[1]} 128 0")
            undo.append(("dmsetup", "remove", "lab-pool"))
            dmsetup("message", "lab-pool", "0", "create_thin 0")
            dmsetup("create", "lab-thin", "--table", f"0 {sectors} thin /dev/mapper/lab-pool 0")
            undo.append(("dmsetup", "remove", "lab-thin"))
            with open("/dev/mapper/lab-thin", "r+b", buffering=0) as device:
                device.write(b"written".ljust(4096))
            while undo:
                output(*undo.pop())
    finally:
        for argv in reversed(undo):
            subprocess.run(argv, check=False)


def nbd() -> None:
    assert Path("/sys/block/nbd0").is_dir()


def cgroup_v2() -> None:
    there = Path("/sys/fs/cgroup/cgroup.subtree_control").read_text().split()
    assert {"cpu", "memory", "pids", "io"} <= set(there), there


def nf_tables() -> None:
    output("nft", "add table inet lab_check; delete table inet lab_check")


def filesystems() -> None:
    known = Path("/proc/filesystems").read_text().split()
    assert set(FILESYSTEMS) <= set(known), set(FILESYSTEMS) - set(known)


def userfaultfd() -> None:
    descriptor = ctypes.CDLL(None, use_errno=True).syscall(USERFAULTFD, os.O_CLOEXEC)
    assert descriptor >= 0, os.strerror(ctypes.get_errno())
    os.close(descriptor)


def firecracker() -> None:
    for name in ("firecracker", "jailer"):
        output(name, "--version")
    assert Path("/lab/vmlinux").read_bytes()[:4] == b"\x7fELF"


def dmsetup(verb: str, *args: str) -> None:
    output("dmsetup", verb, *args)


def output(*argv: str) -> str:
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def main() -> int:
    failed = 0
    for check in (
        kvm, tun, vsock, device_mapper, nbd, cgroup_v2, nf_tables, filesystems, userfaultfd, firecracker,
    ):  # fmt: skip
        try:
            check()
            print(f"ok       {check.__name__}")
        except (OSError, AssertionError, subprocess.CalledProcessError) as exc:
            failed = 1
            print(f"missing  {check.__name__}: {exc}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
