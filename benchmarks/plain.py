"""The bare tool: plain `runsc` and `runc` on the same root filesystem, without anything of ours."""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.instance import CACHE

LOGIN_TRUE = ("/bin/bash", "-l", "-c", "true")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plain:
    """A bundle and the command line of the runtime's program up to its verb."""

    name: str
    command: tuple[str, ...]
    bundle: Path

    def run(self, *argv: str) -> None:
        """Start a container with `argv` as its process, wait for its end and delete it: the plain tool's `run`."""
        self._configure(argv)
        self._call("run", "--bundle", str(self.bundle), "bench000000000000001")

    @contextmanager
    def running(self) -> Iterator[None]:
        """A container that sleeps, for `exec`."""
        self._configure(("sleep", "100000"))
        self._call("run", "--detach", "--bundle", str(self.bundle), "bench000000000000002")
        try:
            yield
        finally:
            self._call("kill", "bench000000000000002", "KILL")
            self._call("delete", "--force", "bench000000000000002")

    def exec(self, *argv: str) -> None:
        self._call("exec", "bench000000000000002", *argv)

    def _call(self, verb: str, *args: str) -> None:
        subprocess.run(
            [*self.command, verb, *args],
            check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def _configure(self, argv: tuple[str, ...]) -> None:
        kinds = ("pid", "mount", "ipc", "uts", "network")
        (self.bundle / "config.json").write_text(
            json.dumps(
                {
                    "ociVersion": "1.0.2",
                    "process": {
                        "user": {"uid": 0, "gid": 0},
                        "args": argv,
                        "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"],
                        "cwd": "/",
                    },
                    "root": {"path": str(self.bundle / "rootfs")},
                    "hostname": "plain",
                    "mounts": [
                        {"destination": "/proc", "type": "proc", "source": "proc"},
                        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
                    ],
                    "linux": {"namespaces": [{"type": kind} for kind in kinds]},
                }
            )
        )


@contextmanager
def plain(runtime: str, image: Path) -> Iterator[Plain]:
    """A bundle on the same EROFS image with an overlay of its own."""
    directory = Path(tempfile.mkdtemp(prefix="firebrick-plain-", dir="/var/tmp"))
    for name in ("lower", "upper", "work", "bundle/rootfs", "state"):
        (directory / name).mkdir(parents=True)
    lower, rootfs = directory / "lower", directory / "bundle" / "rootfs"
    subprocess.run(["mount", "-t", "erofs", "-o", "ro", str(image), str(lower)], check=True)
    try:
        options = f"lowerdir={lower},upperdir={directory / 'upper'},workdir={directory / 'work'}"
        subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", str(rootfs)], check=True)
        try:
            yield Plain(name=runtime, command=_command(runtime, directory / "state"), bundle=directory / "bundle")
        finally:
            subprocess.run(["umount", str(rootfs)], check=True)
    finally:
        subprocess.run(["umount", str(lower)], check=True)
        shutil.rmtree(directory)


def _command(runtime: str, state: Path) -> tuple[str, ...]:
    if runtime == "container":
        program = shutil.which("runc") or shutil.which("crun")
        assert program, "neither runc nor crun is installed"
        return (program, "--root", str(state))
    own = CACHE / "tools" / "runsc"
    program = str(own) if own.exists() else shutil.which("runsc")
    assert program, "no runsc is installed"
    return (program, "--root", str(state), "--network=none", "--overlay2=none", "--ignore-cgroups")


def base_image() -> Path:
    """The base template's image of the shared cache."""
    return next((CACHE / "templates").glob("*/rootfs.erofs"))
