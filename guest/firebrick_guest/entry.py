"""What E2B tells of a file: EntryInfo."""

import os
import stat
import time

from firebrick_guest import metadata
from firebrick_guest.users import Accounts

_KINDS = (
    (stat.S_ISDIR, "d"),
    (stat.S_ISLNK, "L"),
    (stat.S_ISFIFO, "p"),
    (stat.S_ISSOCK, "S"),
    (stat.S_ISBLK, "D"),
    (stat.S_ISCHR, "Dc"),
)


def entry_info(path: str, accounts: Accounts) -> dict[str, object]:
    """Look at `path` itself; of a link, type and mode are those of what it leads to. Raises OSError."""
    own = os.lstat(path)
    target: os.stat_result | None = own
    entry: dict[str, object] = {"name": path.rpartition("/")[2] or "/"}
    if stat.S_ISLNK(own.st_mode):
        entry["isSymlink"] = True
        target, entry["symlinkTarget"] = _resolve(path)
    if target is not None:
        entry["type"] = "FILE_TYPE_DIRECTORY" if stat.S_ISDIR(target.st_mode) else "FILE_TYPE_FILE"
    entry["path"] = path
    if own.st_size:
        entry["size"] = str(own.st_size)
    entry["mode"] = stat.S_IMODE((target or own).st_mode) & 0o777
    entry["permissions"] = permissions(own.st_mode)
    entry["owner"] = accounts.user_name(own.st_uid)
    entry["group"] = accounts.group_name(own.st_gid)
    entry["modifiedTime"] = _timestamp(own.st_mtime_ns)
    found = metadata.read(path)
    if found:
        entry["metadata"] = found
    return entry


def permissions(mode: int) -> str:
    """`-rw-r--r--` in Go's dialect, where the kind and the special bits are letters in front."""
    letters = next((letter for test, letter in _KINDS if test(mode)), "")
    for bit, letter in ((stat.S_ISUID, "u"), (stat.S_ISGID, "g"), (stat.S_ISVTX, "t")):
        if mode & bit:
            letters += letter
    bits = "".join(letter if mode & (1 << (8 - place)) else "-" for place, letter in enumerate("rwxrwxrwx"))
    return (letters or "-") + bits


def _resolve(path: str) -> tuple[os.stat_result | None, str]:
    try:
        return os.stat(path), os.path.realpath(path, strict=True)
    except OSError:
        return None, path


def _timestamp(nanoseconds: int) -> str:
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{text}.{rest:09d}Z" if rest else f"{text}Z"
