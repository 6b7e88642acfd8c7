"""Mounts, by mount(2) and its younger siblings: no process is started, so one costs tens of microseconds.

All functions block: call them from a thread. They raise OSError with the kernel's errno and the path; drivers
translate. Paths that go into an option string are escaped with `option_path`.
"""

import ctypes
import os
import struct
from dataclasses import dataclass
from pathlib import Path

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOATIME = 1024
MS_BIND = 4096
MS_SHARED = 1 << 20

_MS_REMOUNT = 32
_MS_PRIVATE = 1 << 18
_MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8
_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH = 4
_MOUNT_ATTR_IDMAP = 0x00100000
# The same on every architecture: system calls from 424 on have one number everywhere.
_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_MOUNT_SETATTR = 442

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class MountEntry:
    """One line of mountinfo. `options` are the mount's and the filesystem's, comma-separated."""

    target: Path
    fstype: str
    source: str
    options: str
    propagation: tuple[str, ...]

    @property
    def is_shared(self) -> bool:
        return any(tag.startswith("shared:") for tag in self.propagation)


def mount(source: str | Path, target: Path, fstype: str, *, flags: int = 0, options: str = "") -> None:
    """Mount. Undo: `unmount(target)`. Raises OSError."""
    result = _libc.mount(os.fsencode(source), os.fsencode(target), fstype.encode(), flags, os.fsencode(options))
    _check(result, target)


def unmount(target: Path, *, detach: bool = False) -> None:
    """Unmount what is on `target`; `detach` leaves the rest to the last user. Raises OSError (EBUSY: in use)."""
    _check(_libc.umount2(os.fsencode(target), _UMOUNT_NOFOLLOW | (_MNT_DETACH if detach else 0)), target)


def bind(source: Path, target: Path, *, read_only: bool = False) -> None:
    """Show `source` at `target` as well."""
    mount(source, target, "none", flags=MS_BIND)
    if read_only:
        # A flag of a bind counts only once the bind is there.
        mount("none", target, "none", flags=MS_BIND | _MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV)


def make_shared(target: Path) -> None:
    """Let mounts made below `target` later appear in, and vanish from, namespaces copied from ours."""
    mount("none", target, "none", flags=MS_SHARED)


def bind_idmapped(source: Path, target: Path, *, user_namespace: int) -> None:
    """Show the mount `source` at `target` with owners shifted as the user namespace's map says.

    Raises OSError: EINVAL where the filesystem cannot (overlayfs cannot; EROFS and ext4 can, from 5.19 on).
    """
    tree = _libc.syscall(_SYS_OPEN_TREE, _AT_FDCWD, os.fsencode(source), _OPEN_TREE_CLONE | os.O_CLOEXEC)
    _check(tree, source)
    try:
        # Private: a clone is a peer of its source, so what is later mounted on one would appear on the other too.
        attributes = struct.pack("=QQQQ", _MOUNT_ATTR_IDMAP, 0, _MS_PRIVATE, user_namespace)
        result = _libc.syscall(_SYS_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, attributes, len(attributes))
        _check(result, source)
        result = _libc.syscall(
            _SYS_MOVE_MOUNT, tree, b"", _AT_FDCWD, os.fsencode(target), _MOVE_MOUNT_F_EMPTY_PATH
        )  # fmt: skip
        _check(result, target)
    finally:
        os.close(tree)


def option_path(path: Path) -> str:
    """A path as overlayfs wants it in an option: its separators are `,` and `:`."""
    text = str(path)
    for special in ("\\", ",", ":"):
        text = text.replace(special, "\\" + special)
    return text


def mounts_below(root: Path) -> tuple[MountEntry, ...]:
    """What is mounted at or below `root` in our namespace, oldest first."""
    entries = parse_mountinfo(Path("/proc/self/mountinfo").read_text(errors="surrogateescape"))
    return tuple(entry for entry in entries if entry.target.is_relative_to(root))


def parse_mountinfo(text: str) -> tuple[MountEntry, ...]:
    """Read proc_pid_mountinfo(5)."""
    return tuple(_entry(line) for line in text.splitlines() if line)


def _entry(line: str) -> MountEntry:
    # id parent major:minor root target options [tag…] - type source options
    before, _, after = line.partition(" - ")
    left, right = before.split(" "), after.split(" ")
    return MountEntry(
        target=Path(_unescape(left[4])),
        fstype=right[0],
        source=_unescape(right[1]),
        options=f"{left[5]},{_unescape(right[2])}",
        propagation=tuple(left[6:]),
    )


def _unescape(text: str) -> str:
    for octal, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\043", "#"), ("\\134", "\\")):
        text = text.replace(octal, char)
    return text


def _check(result: int, path: Path) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(path))
