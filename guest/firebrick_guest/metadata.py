"""Users' metadata on files: extended attributes `user.e2b.<key>`."""

import os
from errno import ENODATA, ENOTSUP, EPERM

from firebrick_guest.errors import HttpError

PREFIX = "user.e2b."
HEADER_PREFIX = "x-metadata-"
MAX_NAME_BYTES = 255
MAX_TOTAL_BYTES = 4096
# Some filesystems have no attributes, and symbolic links never have users' ones: then there is no metadata.
_NONE_HERE = (ENOTSUP, EPERM, ENODATA)


def from_headers(headers: dict[str, str]) -> dict[str, str]:
    """What an upload's X-Metadata-<key> headers say. Raises HttpError 400."""
    found = {name[len(HEADER_PREFIX) :]: text for name, text in headers.items() if name.startswith(HEADER_PREFIX)}
    total = 0
    for key, value in found.items():
        if not key or len(PREFIX + key) > MAX_NAME_BYTES:
            raise HttpError(400, f"metadata key '{key[:40]}' must have 1 to {MAX_NAME_BYTES - len(PREFIX)} characters")
        if not (value.isascii() and (value.isprintable() or not value)):
            raise HttpError(400, f"metadata value of '{key[:40]}' must be printable ASCII")
        total += len(key) + len(value)
    if total > MAX_TOTAL_BYTES:
        raise HttpError(400, f"metadata is longer than {MAX_TOTAL_BYTES} bytes in all")
    return found


def read(target: int | str) -> dict[str, str]:
    """Metadata of an open file, or of a path whose last link is not followed."""
    follow = isinstance(target, int)
    try:
        names = sorted(name for name in os.listxattr(target, follow_symlinks=follow) if _is_ours(name))
        values = [os.getxattr(target, name, follow_symlinks=follow).decode("utf-8", "replace") for name in names]
    except OSError as exc:
        if exc.errno in _NONE_HERE:
            return {}
        raise
    return {name[len(PREFIX) :]: value for name, value in zip(names, values, strict=True)}


def replace(descriptor: int, wanted: dict[str, str]) -> None:
    """Make `wanted` the whole metadata of an open file."""
    try:
        for name in os.listxattr(descriptor):
            if _is_ours(name) and name[len(PREFIX) :] not in wanted:
                os.removexattr(descriptor, name)
        for key, value in wanted.items():
            os.setxattr(descriptor, PREFIX + key, value.encode("ascii"))
    except OSError as exc:
        if exc.errno not in _NONE_HERE:
            raise


def _is_ours(name: str) -> bool:
    return name.startswith(PREFIX)
