"""Set Firecracker up: the pinned release, a guest kernel that it boots, and our initramfs, in one directory.

    release (checked) ──▶ firecracker, jailer
    Debian's cloud kernel ──▶ vmlinux; its modules + busybox + our init ──▶ initrd

Nothing of it is installed on the machine, and nothing of it is in a template's image: any image boots.
"""

import asyncio
import hashlib
import io
import json
import platform
import shutil
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import httpx

from firebrick.builder.debian_package import PackageSource, open_source
from firebrick.builder.guest_kernel import kernel_elf, load_order, module_name
from firebrick.builder.initramfs import MODULES, init_script, initramfs
from firebrick.linux.process import CommandFailed, run
from firebrick.log import get_log
from firebrick.model.errors import Unavailable
from firebrick.runtimes.firecracker.plan import Tools

RELEASE = "1.12.1"
RELEASE_URL = (
    "https://github.com/firecracker-microvm/firecracker/releases/download/v{release}/"
    "firecracker-v{release}-{architecture}.tgz"
)
CHECKSUMS = {
    "x86_64": {
        "firecracker": "b99ea49b8d8b7bfa307d3845585d6a97f7642aa17a985749900370070d8ca930",
        "jailer": "86622337f91df329cca72bb21cd1324fb8b6fa47931601d65ee4b2c72ef2cae5",
    }
}
"""sha256 of the programs themselves."""

SUITE = "bookworm"
KERNELS = {"x86_64": "linux-image-cloud-amd64"}
_RELEASE_MAX_BYTES = 256 << 20
_DOWNLOAD_TIMEOUT_S = 300.0
_RECORD = "tools.json"
# Changed when the same sources are put together in another way.
_LAYOUT = 1

log = get_log("builder")

Tell = Callable[[str, float], None]


async def install_firecracker(target: Path, *, path: Path | None, mirror: str | None, tell: Tell) -> Tools:
    """Make `target` hold all that microVMs need; what is there already and of this version is kept.

    Args:
        path: a directory with `firecracker` and `jailer` to take instead of the release, and perhaps a `vmlinux` to
            take instead of Debian's; that one must have built in what MODULES names.
        mirror: a Debian mirror; None: the machine's own.
        tell: called with what is being done and a share of 0..1.

    Raises: Unavailable — something is not to be had; the message says what and how to give it.
    Effects: `target`, by rename; a temporary directory that is gone afterwards. Idempotent. What runs already keeps the
    files that it has open.
    """
    tools = Tools(directory=target)
    wanted = await asyncio.to_thread(_key, path)
    if await asyncio.to_thread(_record_of, target) == wanted and all(file.is_file() for file in tools.files):
        return tools
    if platform.machine() not in CHECKSUMS:
        raise Unavailable(f"Firecracker is set up on x86-64 only as yet; this machine is {platform.machine()}.")
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".firecracker.", dir=target.parent))
    try:
        made = Tools(directory=scratch / "made")
        made.directory.mkdir(mode=0o755)
        tell("programs", 0.0)
        await _programs(made, path)
        tell("guest kernel", 0.3)
        await _guest(made, path, scratch, mirror)
        tell("putting it in place", 0.95)
        (made.directory / _RECORD).write_text(json.dumps({"key": wanted}))
        await asyncio.to_thread(_publish, made, target)
    finally:
        await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)
    log.info("firecracker.installed", target=str(target))
    return tools


async def _programs(made: Tools, path: Path | None) -> None:
    if path is not None:
        for name in ("firecracker", "jailer"):
            if not (path / name).is_file():
                raise Unavailable(f"{path} has no '{name}'. Give a directory with firecracker and jailer in it.")
        await asyncio.to_thread(shutil.copy, path / "firecracker", made.firecracker)
        await asyncio.to_thread(shutil.copy, path / "jailer", made.jailer)
    else:
        programs = release_programs(await _download_release(), RELEASE, platform.machine())
        await asyncio.to_thread(made.firecracker.write_bytes, programs["firecracker"])
        await asyncio.to_thread(made.jailer.write_bytes, programs["jailer"])
    for program in (made.firecracker, made.jailer):
        program.chmod(0o755)
        try:
            await run([program, "--version"], timeout_s=60.0)
        except CommandFailed as exc:
            raise Unavailable(f"{program.name} does not start on this machine.", detail=str(exc)) from exc


async def _download_release() -> bytes:
    url = RELEASE_URL.format(release=RELEASE, architecture=platform.machine())
    archive = b""
    try:
        async with (
            httpx.AsyncClient(follow_redirects=True, timeout=_DOWNLOAD_TIMEOUT_S) as client,
            client.stream("GET", url) as answer,
        ):
            answer.raise_for_status()
            async for piece in answer.aiter_bytes():
                archive += piece
                if len(archive) > _RELEASE_MAX_BYTES:
                    raise Unavailable(f"What {url} sends is no release of Firecracker: it does not end.")
    except httpx.HTTPError as exc:
        raise Unavailable(
            f"Firecracker's release could not be fetched from {url}. Fetch it elsewhere, unpack it, name the two "
            "programs 'firecracker' and 'jailer', and give their directory with --path.",
            detail=repr(exc),
        ) from exc
    return archive


def release_programs(archive: bytes, release: str, architecture: str) -> dict[str, bytes]:
    """The two programs of a release's archive, checked. Raises Unavailable."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
            for name in ("firecracker", "jailer"):
                member = tar.extractfile(f"release-v{release}-{architecture}/{name}-v{release}-{architecture}")
                found[name] = member.read() if member else b""
    except (tarfile.TarError, KeyError, OSError, EOFError) as exc:
        raise Unavailable("What was fetched is no release of Firecracker.", detail=repr(exc)) from exc
    for name, wanted in CHECKSUMS[architecture].items():
        got = hashlib.sha256(found[name]).hexdigest()
        if got != wanted:
            raise Unavailable(
                f"The fetched {name} is not the one that was pinned: its sha256 is {got}, not {wanted}. Somebody "
                "changed it on the way. If you trust it all the same, unpack it and give its directory with --path."
            )
    return found


async def _guest(made: Tools, path: Path | None, scratch: Path, mirror: str | None) -> None:
    """The kernel and the initramfs."""
    try:
        source = await open_source(scratch, SUITE, mirror=mirror)
        busybox = (await source.unpack("busybox-static")) / "bin" / "busybox"
        modules: dict[str, bytes] = {}
        if path is not None and (path / "vmlinux").is_file():
            kernel = await asyncio.to_thread((path / "vmlinux").read_bytes)
        else:
            kernel, modules = await _debian_kernel(source)
        await asyncio.to_thread(_write_guest, made, kernel, busybox, modules)
    except (CommandFailed, OSError, ValueError) as exc:
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
        files = {module_name(str(file)): file for file in (tree / "lib" / "modules").rglob("*.ko")}
        order = load_order(MODULES, lambda name: files[name].read_bytes() if name in files else None)
        return image.read_bytes(), {name: files[name].read_bytes() for name in order}

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
