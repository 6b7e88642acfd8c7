"""Build the base template from Debian packages: no registry, no image to download, one EROFS file comes out.

    mmdebstrap ──▶ making/root ── finish.sh ──▶ mkfs.erofs ──▶ <build_id>/rootfs.erofs ──▶ build.json

The image is not compressed, for gVisor cannot read a compressed one. With lz4hc it would be 0.53 of the size, and
Python and Node would start 10 to 20 % faster from a cold disk; with a warm page cache there is no difference.
"""

import asyncio
import fcntl
import os
import platform
import shlex
import shutil
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from firebrick.builder.apt_sources import carried_options, os_release, suite_sources
from firebrick.builder.definition import Definition, load_definition
from firebrick.builder.progress import PACKAGES_END, InstallProgress
from firebrick.builder.template_store import LocalBuild, commit_build, image_path, list_builds
from firebrick.clock import SystemClock
from firebrick.config import Config
from firebrick.linux.erofs import mkfs_command
from firebrick.linux.process import CommandFailed, run, run_lines
from firebrick.log import get_log
from firebrick.model.errors import Internal
from firebrick.model.ids import BuildId
from firebrick.model.machine import Limits

log = get_log("builder")

Progress = Callable[[str, float], None]

_BUILD_TIMEOUT_S = 1800.0
_IMAGE_TIMEOUT_S = 600.0
_LOCK_POLL_S = 0.5
# The unpacked tree takes 0.8 GiB, fetched packages 0.2, the image 0.8.
_NEEDED_MIB = 2048


class BuildFailed(Internal):
    """The template could not be built; the message says at which step and what to do."""


def find_base_template(config: Config) -> LocalBuild | None:
    """The newest build of the definition we ship, if there is one. Costs milliseconds."""
    key = load_definition("base", architecture=platform.machine()).key
    return next((build for build in list_builds(config.templates_dir) if build.key == key), None)


async def build_base_template(config: Config, *, progress: Progress, mirror: str | None = None) -> BuildId:
    """Build `base`, or find it built.

    Args:
        progress: called with what is being done and a share of 0..1 that never falls.
        mirror: URL of a Debian mirror; None takes the machine's own, where it is a Debian machine.

    Raises: BuildFailed.
    Effects: a directory below `templates_dir`; what a crash leaves in `making` the next build removes.
    Idempotent: yes, on the definition's content. Builds wait for one another, also between processes.
    """
    definition = load_definition("base", architecture=platform.machine())
    config.templates_dir.mkdir(parents=True, exist_ok=True)
    making = config.templates_dir / "making"
    async with _only_builder(config.templates_dir / ".lock", progress):
        found = await asyncio.to_thread(find_base_template, config)
        if found is not None:
            progress("base template is there", 1.0)
            return found.build_id
        await asyncio.to_thread(shutil.rmtree, making, ignore_errors=True)
        try:
            _check_room(config.templates_dir)
            making.mkdir()
            return await _build(config, definition, making, progress, mirror)
        except CommandFailed as exc:
            raise BuildFailed(
                f"The base template could not be built: {_last_line(exc.stderr)}. Check that this machine reaches "
                "its Debian mirror, then run the same command again.",
                detail=str(exc),
            ) from exc
        except OSError as exc:
            raise BuildFailed(f"The base template could not be written: {exc.strerror}.", detail=str(exc)) from exc
        finally:
            await asyncio.to_thread(shutil.rmtree, making, ignore_errors=True)


async def _build(
    config: Config, definition: Definition, making: Path, progress: Progress, mirror: str | None
) -> BuildId:
    root = making / "root"
    installed = InstallProgress()

    def on_line(line: str) -> None:
        before = installed.share
        if installed.read(line) > before:
            progress(installed.doing, installed.share)

    progress(installed.doing, 0.0)
    argv = await _bootstrap_argv(definition, root, mirror)
    await run_lines(argv, on_line, env=_environment(), timeout_s=_BUILD_TIMEOUT_S)
    progress("writing the image", PACKAGES_END)
    build_id = BuildId(str(uuid.uuid4()))
    draft = making / "rootfs.erofs"
    await run(mkfs_command(draft, root, "-U", build_id), timeout_s=_IMAGE_TIMEOUT_S)
    progress("cleaning up", 0.97)
    packages = await asyncio.to_thread(_installed_packages, root)
    image = image_path(config.templates_dir, build_id)
    image.parent.mkdir()
    draft.rename(image)
    build = LocalBuild(
        build_id=build_id, alias=definition.alias, key=definition.key, image=image,
        limits=_limits(config), created_at=SystemClock().now(),
    )  # fmt: skip
    facts = {"architecture": platform.machine(), "image_bytes": image.stat().st_size, "packages": packages}
    await asyncio.to_thread(commit_build, config.templates_dir, build, facts=facts)
    await asyncio.to_thread(shutil.rmtree, root)
    log.info("template.built", build_id=build_id, image_bytes=facts["image_bytes"], package_count=len(packages))
    progress("base template is built", 1.0)
    return build_id


async def _bootstrap_argv(definition: Definition, root: Path, mirror: str | None) -> list[str]:
    # A mount namespace of its own: if we are killed, the chroot's /proc and /sys go with it.
    argv = ["unshare", "--mount", "--propagation", "private", "mmdebstrap", "--verbose", "--mode=root"]
    argv += ["--format=directory", "--variant=minbase", f"--include={','.join(definition.packages)}"]
    dump = await run(["apt-config", "dump", "Acquire"])
    argv += [f"--aptopt={option}" for option in carried_options(dump.stdout)]
    # What a sandbox installs later need not survive a crash of the host either, hence no syncs.
    argv += ["--dpkgopt=force-unsafe-io"]
    argv += [f"--dpkgopt=path-exclude={pattern}" for pattern in definition.path_excludes]
    argv += [f"--dpkgopt=path-include={pattern}" for pattern in definition.path_includes]
    hook = f'sh {shlex.quote(str(definition.finish))} "$1" {shlex.quote(str(definition.files))}'
    argv += [f"--customize-hook={hook}", definition.suite, str(root)]
    return argv + ([mirror] if mirror else await asyncio.to_thread(_machine_sources, definition.suite))


def _machine_sources(suite: str) -> list[str]:
    release = os_release(Path("/etc/os-release").read_text())
    if release.get("ID") != "debian" or "VERSION_CODENAME" not in release:
        return []
    apt = Path("/etc/apt")
    files = [*apt.glob("sources.list"), *apt.glob("sources.list.d/*.list"), *apt.glob("sources.list.d/*.sources")]
    texts = [(item.name, item.read_text()) for item in sorted(files)]
    return list(suite_sources(texts, host_suite=release["VERSION_CODENAME"], suite=suite))


def _environment() -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}


def _installed_packages(root: Path) -> dict[str, str]:
    packages = {}
    name = ""
    for line in (root / "var/lib/dpkg/status").read_text(errors="replace").splitlines():
        field, _, value = line.partition(": ")
        if field == "Package":
            name = value
        elif field == "Version":
            packages[name] = value
    return packages


def _limits(config: Config) -> Limits:
    return Limits(
        millicpu=config.default_millicpu,
        memory_mib=config.default_memory_mib,
        disk_mib=config.default_disk_mib,
        process_count=config.default_process_count,
    )


def _check_room(directory: Path) -> None:
    free_mib = shutil.disk_usage(directory).free >> 20
    if free_mib < _NEEDED_MIB:
        raise BuildFailed(
            f"Building the base template needs {_NEEDED_MIB} MiB of disk; {free_mib} MiB are free in {directory}. "
            "Free some, or set data_dir to a larger disk."
        )


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.startswith("E:")] or text.strip().splitlines()
    return lines[-1].removeprefix("E:").strip() if lines else "no output"


@asynccontextmanager
async def _only_builder(path: Path, progress: Progress) -> AsyncIterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                progress("waiting for another build", 0.0)
                await asyncio.sleep(_LOCK_POLL_S)
        yield
    finally:
        os.close(descriptor)
