"""Set Firecracker up: the pinned release, a guest kernel that it boots, and our initramfs, in one directory.

    release (checked) ──▶ firecracker, jailer
    Debian's cloud kernel ──▶ vmlinux; its modules + busybox + our init ──▶ initrd

Nothing of it is installed on the machine, and nothing of it is in a template's image: any image boots.
"""

import asyncio
import hashlib
import json
import platform
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from firebrick.builder.debian_package import PackageSource, open_source
from firebrick.builder.firecracker_release import (
    PROGRAMS,
    RELEASE,
    check_architecture,
    fetch_archive,
    no_room,
    release_url,
    unpack_programs,
)
from firebrick.builder.guest_kernel import kernel_elf, load_order, module_name, module_object
from firebrick.builder.initramfs import MODULES, init_script, initramfs
from firebrick.linux.process import CommandFailed, run
from firebrick.log import get_log
from firebrick.model.errors import Unavailable
from firebrick.runtimes.firecracker.plan import Tools

SUITE = "trixie"
"""Its kernel has a driver for VMGenID, which bookworm's has not: machines that go on from one save are told of it, and
draw other random numbers."""
KERNELS = {"x86_64": "linux-image-cloud-amd64"}
_RECORD = "tools.json"
# Changed when the same sources are put together in another way.
_LAYOUT = 2

log = get_log("builder")

Tell = Callable[[str, float], None]


async def install_firecracker(
    target: Path, *, path: Path | None, mirror: str | None, tell: Tell, release: str | None = None
) -> Tools:
    """Make `target` hold all that microVMs need; what is there already and of this version is kept.

    Args:
        path: a directory with `firecracker` and `jailer` to take instead of the release, and perhaps a `vmlinux` to
            take instead of Debian's; that one must have built in what MODULES names.
        mirror: a Debian mirror; None: the machine's own.
        release: a URL of the release's archive; None: upstream's. Its programs must be the pinned ones all the same.
        tell: called with what is being done and a share of 0..1.

    Raises: Unavailable — something is not to be had; the message says what and how to give it.
    Effects: `target`, by rename; a temporary directory that is gone afterwards. Idempotent. What runs already keeps the
    files that it has open.
    """
    tools = Tools(directory=target)
    wanted = await asyncio.to_thread(_key, path)
    if await asyncio.to_thread(_record_of, target) == wanted and all(file.is_file() for file in tools.files):
        return tools
    check_architecture(platform.machine())
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".firecracker.", dir=target.parent))
    try:
        made = Tools(directory=scratch / "made")
        made.directory.mkdir(mode=0o755)
        tell("programs", 0.0)
        await _programs(made, path, scratch, release)
        tell("guest kernel", 0.3)
        await _guest(made, path, scratch, mirror)
        tell("putting it in place", 0.95)
        (made.directory / _RECORD).write_text(json.dumps({"key": wanted}))
        await asyncio.to_thread(_publish, made, target)
    except OSError as exc:
        if (full := no_room(exc, target.parent)) is not None:
            raise full from exc
        raise
    finally:
        await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)
    log.info("firecracker.installed", target=str(target))
    return tools


async def _programs(made: Tools, path: Path | None, scratch: Path, release: str | None) -> None:
    if path is not None:
        for name in PROGRAMS:
            if not (path / name).is_file():
                raise Unavailable(f"{path} has no '{name}'. Give a directory with firecracker and jailer in it.")
        await asyncio.to_thread(shutil.copy, path / "firecracker", made.firecracker)
        await asyncio.to_thread(shutil.copy, path / "jailer", made.jailer)
    else:
        archive, machine = scratch / "release.tgz", platform.machine()
        await fetch_archive(release or release_url(machine), archive)
        await asyncio.to_thread(unpack_programs, archive, made.directory, machine)
        archive.unlink()
    for program in (made.firecracker, made.jailer):
        program.chmod(0o755)
        try:
            await run([program, "--version"], timeout_s=60.0)
        except CommandFailed as exc:
            raise Unavailable(f"{program.name} does not start on this machine.", detail=str(exc)) from exc


async def _guest(made: Tools, path: Path | None, scratch: Path, mirror: str | None) -> None:
    """The kernel and the initramfs."""
    try:
        source = await open_source(scratch, SUITE, mirror=mirror)
        busybox = (await source.unpack("busybox-static")) / "usr" / "bin" / "busybox"
        modules: dict[str, bytes] = {}
        if path is not None and (path / "vmlinux").is_file():
            kernel = await asyncio.to_thread((path / "vmlinux").read_bytes)
        else:
            kernel, modules = await _debian_kernel(source)
        await asyncio.to_thread(_write_guest, made, kernel, busybox, modules)
    except (CommandFailed, OSError, ValueError) as exc:
        if isinstance(exc, OSError) and no_room(exc, scratch) is not None:
            raise
        raise Unavailable(
            "A guest kernel could not be made from Debian's packages. Check that this machine reaches its Debian "
            "mirror, and run the same command again.",
            detail=str(exc),
        ) from exc


async def _debian_kernel(source: PackageSource) -> tuple[bytes, dict[str, bytes]]:
    package = await source.first_dependency(KERNELS[platform.machine()], "linux-image-")
    tree = await source.unpack(package)
    image = next((tree / "boot").glob("vmlinuz-*"))

    def read() -> tuple[bytes, dict[str, bytes]]:
        files = {module_name(str(file)): file for file in (tree / "usr" / "lib" / "modules").rglob("*.ko*")}

        def load(name: str) -> bytes | None:
            return module_object(files[name].read_bytes()) if name in files else None

        order = load_order(MODULES, load)
        return image.read_bytes(), {name: module_object(files[name].read_bytes()) for name in order}

    return await asyncio.to_thread(read)


def _write_guest(made: Tools, kernel: bytes, busybox: Path, modules: dict[str, bytes]) -> None:
    made.kernel.write_bytes(kernel_elf(kernel))
    made.initramfs.write_bytes(initramfs(busybox=busybox.read_bytes(), init=init_script(), modules=modules))
    # Every monitor reads them as a user of its own.
    for file in (made.kernel, made.initramfs):
        file.chmod(0o644)


def _publish(made: Tools, target: Path) -> None:
    former = target.with_name(f".{target.name}.old")
    shutil.rmtree(former, ignore_errors=True)
    if target.exists():
        target.rename(former)
    made.directory.rename(target)
    target.chmod(0o755)
    shutil.rmtree(former, ignore_errors=True)


def _key(path: Path | None) -> str:
    """What the tools are made from; a directory of the user's counts by what lies in it."""
    material = [str(_LAYOUT), RELEASE, SUITE, " ".join(MODULES), hashlib.sha256(init_script()).hexdigest()]
    if path is not None:
        for name in ("firecracker", "jailer", "vmlinux"):
            if (path / name).is_file():
                material.append(f"{name} {hashlib.sha256((path / name).read_bytes()).hexdigest()}")
    return hashlib.sha256("\n".join(material).encode()).hexdigest()


def _record_of(target: Path) -> str:
    try:
        return str(json.loads((target / _RECORD).read_text())["key"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
