"""Build the directory that every machine sees read-only at AGENT_MOUNT: the guest agent with its own Python.

    Debian packages ── extract ──▶ interpreter, its own ld.so and libraries ── compile ──▶ one bundle of modules

Nothing in it depends on the machine's image: the loader is started by name and told where its libraries are,
so the agent runs in an image with another C library, or with none. Commands of users inherit none of this,
for all of it is in arguments and not in the environment.
"""

import asyncio
import fcntl
import hashlib
import importlib.util
import json
import os
import platform
import shlex
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from firebrick.builder.apt_sources import carried_options, os_release, suite_sources
from firebrick.linux.process import CommandFailed, run
from firebrick.log import get_log
from firebrick.model.errors import Internal
from firebrick.runtimes.base import AGENT_MOUNT, SUDO_NAME, SUDO_SOCKET

log = get_log("builder")

SUITE = "bookworm"
PACKAGES = (
    "python3.11-minimal",
    "libpython3.11-minimal",
    "libpython3.11-stdlib",
    "libc6",
    "zlib1g",
    "libexpat1",
    "libffi8",
)
KEY_NAME = "agent-image.json"
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Changed when what is built from the same sources changes.
LAYOUT = 2
_LOADERS = {"x86_64": "ld-linux-x86-64.so.2", "aarch64": "ld-linux-aarch64.so.1"}
_LIBRARIES = ("libc.so.6", "libm.so.6", "libz.so.1", "libexpat.so.1", "libffi.so.8")
_DOWNLOAD_TIMEOUT_S = 600.0
_LOCK_POLL_S = 0.2


class AgentImageFailed(Internal):
    """The guest agent's image could not be built; the message says what to look at."""


def agent_argv(prefix: str = AGENT_MOUNT) -> tuple[str, ...]:
    """Program and arguments of the guest agent, as paths inside the machine."""
    python = f"{prefix}/bin/python3.11"
    return (*_python_argv(prefix, python), f"{prefix}/agent.pyc")


def agent_env(control_token: str) -> dict[str, str]:
    """The agent's whole environment. `control_token` is what the host will show it; secret, one per machine."""
    # More arenas than one only waste memory in a program with one busy thread.
    return {"FIREBRICK_CONTROL_TOKEN": control_token, "MALLOC_ARENA_MAX": "1", "PATH": SEARCH_PATH}


async def build_agent_image(target: Path, *, mirror: str | None) -> None:
    """Make `target` hold the image of this version's agent.

    Args:
        target: directory; its parent is created. Replaced as a whole when it is of another version.
        mirror: where to get Debian packages; None: from where this machine gets its own.

    Raises: AgentImageFailed; then `target` is as it was.
    Effects: `target`; a temporary directory and a lock file beside it (a crash leaves both).
    Idempotent: yes, on the agent's sources and the names of the packages. Builders wait for one another.
    The version before stays beside it as `.<name>.old`, for machines that were started with it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    async with _only_builder(target.parent / f".{target.name}.lock"):
        key = await asyncio.to_thread(_key)
        if await asyncio.to_thread(_built_key, target) == key:
            return
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            packages = await _build(scratch, mirror)
            await asyncio.to_thread(_publish, scratch, target, key, packages)
        except CommandFailed as exc:
            raise AgentImageFailed(
                "The guest agent's image could not be built. Check that this machine reaches its Debian mirror and "
                "that mmdebstrap is installed, then run the same command again.",
                detail=str(exc),
            ) from exc
        except OSError as exc:
            raise AgentImageFailed(f"The guest agent's image could not be written: {exc}.") from exc
        finally:
            await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)
    log.info("agent_image.built", target=str(target), packages=packages)


async def _build(scratch: Path, mirror: str | None) -> dict[str, str]:
    """Fill scratch/image; the versions of the packages it was made from."""
    root, image = scratch / "root", scratch / "image"
    argv = ["mmdebstrap", "--quiet", "--variant=extract", "--format=directory", f"--include={','.join(PACKAGES)}"]
    dump = await run(["apt-config", "dump", "Acquire"])
    argv += [f"--aptopt={option}" for option in carried_options(dump.stdout)]
    listing = scratch / "packages"
    argv += [f'--extract-hook=ls "$1/var/cache/apt/archives" > {shlex.quote(str(listing))}', SUITE, str(root)]
    argv += [mirror] if mirror else await asyncio.to_thread(_machine_sources)
    await run(argv, timeout_s=_DOWNLOAD_TIMEOUT_S)
    await asyncio.to_thread(_assemble, root, image)
    python = f"{image}/bin/python3.11"
    script = Path(__file__).with_name("agent_compile.py")
    # Without debug ranges the code is a third smaller; tracebacks still tell lines.
    await run([*_python_argv(str(image), python), "-X", "no_debug_ranges", script, image, _sources().parent])
    await asyncio.to_thread(_write_sudo, image / SUDO_NAME)
    # Without its token the agent says so and ends: proof that loader, libraries and bundle fit together.
    proof = await run(agent_argv(str(image)), env={}, check=False)
    if proof.returncode != 2 or "FIREBRICK_CONTROL_TOKEN" not in proof.stderr:
        raise CommandFailed(agent_argv(str(image)), proof.returncode, proof.stderr)
    return await asyncio.to_thread(_versions, listing)


def _assemble(root: Path, image: Path) -> None:
    architecture = platform.machine()
    folders = [root / place / f"{architecture}-linux-gnu" for place in ("lib", "usr/lib")]
    (image / "bin").mkdir(parents=True)
    (image / "lib").mkdir()
    shutil.copy(root / "usr/bin/python3.11", image / "bin/python3.11")
    for name in (_LOADERS[architecture], *_LIBRARIES):
        source = next((folder / name for folder in folders if (folder / name).is_file()), None)
        if source is None:
            raise FileNotFoundError(f"{name} is in none of the packages")
        shutil.copy(source, image / "lib" / ("ld.so" if name.startswith("ld-") else name))
    ignored = shutil.ignore_patterns("__pycache__", "test", "lib2to3", "sitecustomize.py")
    shutil.copytree(root / "usr/lib/python3.11", image / "lib/python3.11", ignore=ignored)


def _write_sudo(path: Path) -> None:
    """A script, for a first line has room for one argument only; the image's shell costs a few milliseconds."""
    command = shlex.join([*agent_argv(), SUDO_SOCKET])
    # As with the real one, nothing is preloaded; what fits the image's C library would not fit ours.
    path.write_text(f'#!/bin/sh\nunset LD_PRELOAD LD_AUDIT\nexec {command} "$0" "$@"\n')
    path.chmod(0o755)


def _publish(scratch: Path, target: Path, key: str, packages: dict[str, str]) -> None:
    image = scratch / "image"
    (image / KEY_NAME).write_text(json.dumps({"key": key, "packages": packages}, indent=1))
    image.chmod(0o755)
    if target.exists():
        # Machines that run have this very directory mounted and may still read from it, so the version before is
        # kept; nobody can still use the one before that but a machine that lived through two upgrades.
        old = target.with_name(f".{target.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    image.rename(target)


def _python_argv(prefix: str, python: str) -> tuple[str, ...]:
    loader = (f"{prefix}/lib/ld.so", "--inhibit-cache", "--library-path", f"{prefix}/lib", "--argv0", python, python)
    return (*loader, "-I", "-S", "-B", "-X", "utf8")


def _sources() -> Path:
    spec = importlib.util.find_spec("firebrick_guest")
    if spec is None or spec.origin is None:
        raise AgentImageFailed("The guest agent's sources are not installed; install the firebrick package again.")
    return Path(spec.origin).parent


def _key() -> str:
    digest = hashlib.sha256(json.dumps([LAYOUT, SUITE, PACKAGES, platform.machine()]).encode())
    ours = [Path(__file__).with_name("agent_compile.py"), *sorted(_sources().glob("*.py"))]
    for path in ours:
        content = path.read_bytes()
        digest.update(f"{path.name}:{len(content)}:".encode() + content)
    return digest.hexdigest()


def agent_version(target: Path) -> str:
    """What is in the image at `target`; "" when that cannot be told."""
    return _built_key(target) or ""


def _built_key(target: Path) -> str | None:
    try:
        return str(json.loads((target / KEY_NAME).read_text())["key"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _versions(listing: Path) -> dict[str, str]:
    """What was extracted: the fetched files are called <package>_<version>_<architecture>.deb."""
    names = [line.split("_") for line in listing.read_text().splitlines() if line.endswith(".deb")]
    return {name[0]: name[1].replace("%3a", ":") for name in names if name[0] in PACKAGES}


def _machine_sources() -> list[str]:
    release = os_release(Path("/etc/os-release").read_text())
    if release.get("ID") != "debian" or "VERSION_CODENAME" not in release:
        return []
    apt = Path("/etc/apt")
    files = [*apt.glob("sources.list"), *apt.glob("sources.list.d/*.list"), *apt.glob("sources.list.d/*.sources")]
    texts = [(item.name, item.read_text()) for item in sorted(files)]
    return list(suite_sources(texts, host_suite=release["VERSION_CODENAME"], suite=SUITE))


@asynccontextmanager
async def _only_builder(path: Path) -> AsyncIterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(_LOCK_POLL_S)
        yield
    finally:
        os.close(descriptor)
