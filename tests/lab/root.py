"""What an outer machine boots from: kernel, initramfs and root, built once and kept in the cache.

The root is made by mmdebstrap and finished by this file, which it calls as its last hook: as root or, for others,
inside mmdebstrap's own user namespace, so that owners are right in the image either way.
"""

import hashlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from tests.lab import kernel, parts

INSIDE = Path(__file__).parent / "inside"
ROOT_GIB = 16
"""Sparse: it bounds what tests may write."""
BUILD_TIMEOUT_S = 900
KEPT_BUILDS = 3
DISK_DRIVERS = ("kernel/drivers/virtio/virtio_pci.ko", "kernel/drivers/block/virtio_blk.ko")
ENVIRONMENT = "/venv"
CHECKOUT_INSIDE = "/firebrick"
COMMAND = f"""\
#!{ENVIRONMENT}/bin/python
import sys
from firebrick.cli.__main__ import main
sys.exit(main())
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """The files of a finished build."""

    folder: Path

    @property
    def root(self) -> Path:
        return self.folder / "root.ext4"

    @property
    def kernel(self) -> Path:
        return self.folder / "vmlinuz"

    def initramfs(self) -> bytes:
        """What boots the root, with our own files of this checkout: those need no new build."""
        entries: dict[str, bytes | None] = {"lab": None}
        for name, contents in inside_files().items():
            entries["init" if name == "initramfs-init.sh" else f"lab/{name}"] = contents
        # The kernel unpacks one archive after the other.
        return (self.folder / "initramfs").read_bytes() + kernel.cpio(entries)

    @property
    def token(self) -> str:
        """The word that opens the channel of every machine that starts from this build."""
        return (self.folder / "token").read_text()


def inside_files() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(INSIDE.iterdir()) if path.is_file()}


def key(requirements: str) -> str:
    """Names a build by all that decides what is in it."""
    digest = hashlib.sha256(requirements.encode())
    for path in (Path(__file__), Path(parts.__file__), Path(kernel.__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def build(cache: Path) -> Build:
    """The build for this checkout, made now if the cache has none. The caller holds the cache's lock.

    Effects: a folder in `cache`, made under another name and renamed when it is whole; builds before the last few go.
    """
    requirements = parts.locked_requirements()
    folder = cache / f"build-{key(requirements)}"
    if not folder.exists():
        making = Path(tempfile.mkdtemp(prefix="making-", dir=cache))
        try:
            _make(making)
            making.rename(folder)
        finally:
            shutil.rmtree(making, ignore_errors=True)
    os.utime(folder)
    for old in sorted(cache.glob("build-*"), key=lambda path: path.stat().st_mtime)[:-KEPT_BUILDS]:
        shutil.rmtree(old)
    return Build(folder=folder)


def _make(making: Path) -> None:
    making.chmod(0o755)
    parts.fetch_firecracker(making)
    parts.fetch_python_packages(making / "packages")
    (making / "token").write_text(secrets.token_hex(16))
    hook = f'env PYTHONPATH={parts.CHECKOUT}:{parts.CHECKOUT}/src {sys.executable} -m tests.lab.root "$1" {making}'
    argv = ["mmdebstrap", "--variant=minbase", "--format=null", f"--include={','.join(parts.ROOT_PACKAGES)}"]
    # No documentation and no translations: nobody reads them there.
    argv += [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "locale", "man")]
    # The tree is thrown away; only the image must be whole.
    argv += ["--dpkgopt=force-unsafe-io", f"--customize-hook={hook}", parts.SUITE, "-"]
    if os.geteuid() == 0:
        # mmdebstrap mounts /proc and others in the tree; if it is killed, they go with this namespace.
        argv = ["unshare", "--mount", "--propagation", "private", *argv]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S)
    if done.returncode != 0:
        raise parts.PartMissing(f"building the outer machine's root failed: {' '.join(argv)}\n{done.stderr[-3000:]}")
    shutil.rmtree(making / "packages")


def finish(tree: Path, making: Path) -> None:
    """Turn mmdebstrap's tree into a build in `making`. Runs inside mmdebstrap."""
    release = _add_kernel(tree, making)
    _add_ours(tree, making)
    _add_environment(tree, making)
    modules = tree / "usr/lib/modules" / release
    (making / "initramfs").write_bytes(_initramfs(modules, (tree / "usr/bin/busybox").read_bytes()))
    for folder in ("var/lib/apt/lists", "var/cache/apt"):
        for file in (tree / folder).rglob("*"):
            if file.is_file() and file.name != "lock":
                file.unlink()
    image = making / "root.ext4"
    # The tree without what is mounted in it: a plain bind mount leaves those out.
    bare = making / "bare"
    bare.mkdir()
    subprocess.run(["mount", "--bind", str(tree), str(bare)], check=True)
    try:
        argv = ["mke2fs", "-q", "-t", "ext4", "-m", "0", "-d", str(bare), str(image), f"{ROOT_GIB}G"]
        subprocess.run(argv, check=True)
    finally:
        subprocess.run(["umount", str(bare)], check=True)
    bare.rmdir()


def _add_kernel(tree: Path, making: Path) -> str:
    """The kernel of the package without its installation, which would build an initramfs for a minute."""
    env = {**os.environ, "APT_CONFIG": os.environ["MMDEBSTRAP_APT_CONFIG"]}
    depends = subprocess.run(
        ["apt-cache", "depends", "--important", parts.KERNEL_PACKAGE],
        env=env,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    package = next(line.split()[-1] for line in depends.splitlines() if "linux-image-" in line and "Depends" in line)
    unpacked = making / "kernel"
    unpacked.mkdir()
    subprocess.run(["apt-get", "-qq", "download", package], cwd=unpacked, env=env, check=True)
    subprocess.run(["dpkg-deb", "-x", str(next(unpacked.glob("*.deb"))), str(unpacked)], check=True)
    bzimage = next((unpacked / "boot").glob("vmlinuz-*"))
    release = bzimage.name.removeprefix("vmlinuz-")
    shutil.copytree(unpacked / "lib/modules" / release, tree / "usr/lib/modules" / release, symlinks=True)
    subprocess.run(["chroot", str(tree), "depmod", release], check=True)
    (tree / "lab").mkdir(exist_ok=True)
    (tree / "lab/vmlinux").write_bytes(kernel.vmlinux(bzimage.read_bytes()))
    shutil.copy(bzimage, making / "vmlinuz")
    shutil.rmtree(unpacked)
    return release


def _add_ours(tree: Path, making: Path) -> None:
    (tree / "etc/inittab").symlink_to("/lab/inittab")
    check = tree / "usr/local/bin/lab-check"
    check.write_text("#!/bin/sh\nexec python3 /lab/check.py\n")
    check.chmod(0o755)
    token = tree / "lab/token"
    token.write_text((making / "token").read_text())
    token.chmod(0o600)
    for name in parts.FIRECRACKER_SHA256:
        shutil.copy(making / name, tree / "usr/local/bin" / name)


def _add_environment(tree: Path, making: Path) -> None:
    """A virtual environment with the locked packages and, by name, the checkout that will be put at /firebrick."""
    inside = ["chroot", str(tree), "/usr/bin/python3"]
    subprocess.run([*inside, "-m", "venv", "--without-pip", ENVIRONMENT], check=True)
    packages = tree / ENVIRONMENT[1:] / f"lib/python{parts.ROOT_PYTHON}/site-packages"
    shutil.copytree(making / "packages", packages, symlinks=True, dirs_exist_ok=True)
    (packages / "firebrick.pth").write_text(f"{CHECKOUT_INSIDE}/src\n{CHECKOUT_INSIDE}/guest\n")
    about = packages / "firebrick.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: firebrick\nVersion: {version('firebrick')}\n")
    command = tree / ENVIRONMENT[1:] / "bin/firebrick"
    command.write_text(COMMAND)
    command.chmod(0o755)
    # Emulated, this would take minutes.
    subprocess.run([*inside, "-m", "compileall", "-q", "-j", "0", ENVIRONMENT], stdout=subprocess.DEVNULL)
    for folder in (CHECKOUT_INSIDE, "/results"):
        (tree / folder[1:]).mkdir()


def _initramfs(modules: Path, busybox: bytes) -> bytes:
    dependencies = kernel.parse_modules_dep((modules / "modules.dep").read_text())
    order: list[str] = []
    for driver in DISK_DRIVERS:
        order += [name for name in kernel.load_order(driver, dependencies) if name not in order]
    entries: dict[str, bytes | None] = dict.fromkeys(("bin", "dev", "modules", "root"))
    entries["bin/busybox"] = busybox
    for name in order:
        entries[f"modules/{Path(name).name}"] = (modules / name).read_bytes()
    entries["modules/order"] = "".join(f"{Path(name).name}\n" for name in order).encode()
    return kernel.cpio(entries)


if __name__ == "__main__":
    finish(Path(sys.argv[1]), Path(sys.argv[2]))
