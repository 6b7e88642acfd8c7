"""From a Debian kernel package to what a microVM boots: the ELF kernel, and modules in the order they are loaded.

Firecracker boots an ELF kernel. A distribution's /boot/vmlinuz is that ELF, compressed, behind a small loader whose
header tells where it lies (Documentation/arch/x86/boot.rst). Pure: bytes in, bytes out.
"""

import lzma
import re
import struct
from collections.abc import Callable, Iterable

import zstandard

_SETUP_SECTORS, _HEADER_MAGIC, _PAYLOAD = 0x1F1, 0x202, 0x248
_ZSTD_MAGIC, _XZ_MAGIC = b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\0"
_ELF_MAGIC = b"\x7fELF"
_DEPENDS = re.compile(rb"\0depends=([a-z0-9_,-]*)\0", re.IGNORECASE)


def kernel_elf(image: bytes) -> bytes:
    """The ELF kernel within a bzImage; one that is ELF already is returned as it is.

    Raises: ValueError — it is no kernel, or its payload is compressed by something else than zstd.
    Cost: half a second for Debian's cloud kernel (11 MB packed, 58 MB unpacked).
    """
    if image.startswith(_ELF_MAGIC):
        return image
    if image[_HEADER_MAGIC : _HEADER_MAGIC + 4] != b"HdrS":
        raise ValueError("this is no Linux kernel image")
    offset, length = struct.unpack_from("<II", image, _PAYLOAD)
    begin = (max(image[_SETUP_SECTORS], 1) + 1) * 512 + offset
    payload = image[begin : begin + length]
    if not payload.startswith(_ZSTD_MAGIC):
        raise ValueError("its payload is not compressed by zstd")
    try:
        # What follows the frame is the kernel's note of the unpacked size.
        elf = zstandard.ZstdDecompressor().decompressobj().decompress(payload)
    except zstandard.ZstdError as exc:
        raise ValueError("its payload is damaged") from exc
    if not elf.startswith(_ELF_MAGIC):
        raise ValueError("its payload is no ELF file")
    return elf


def module_object(module: bytes) -> bytes:
    """A module's file as it is loaded: Debian ships them packed by xz. Raises ValueError: it is damaged."""
    if not module.startswith(_XZ_MAGIC):
        return module
    try:
        return lzma.decompress(module)
    except lzma.LZMAError as exc:
        raise ValueError("a module is damaged") from exc


def module_name(file: str) -> str:
    """`virtio-rng.ko` and `virtio_rng` are one module."""
    return file.rpartition("/")[2].partition(".")[0].replace("-", "_")


def depends(module: bytes) -> tuple[str, ...]:
    """What a module says that it needs. The package has no modules.dep: that is made where it is installed."""
    found = _DEPENDS.search(module)
    return tuple(name.replace("-", "_") for name in found[1].decode().split(",") if name) if found else ()


def load_order(wanted: Iterable[str], read: Callable[[str], bytes | None]) -> tuple[str, ...]:
    """These modules with all that they need, each after what it needs.

    Args:
        read: a module's file by name; None: it is built in or not there.

    Raises: ValueError — they need one another in a circle.
    """
    order: list[str] = []
    pending: list[str] = []

    def add(name: str) -> None:
        if name in order:
            return
        if name in pending:
            raise ValueError(f"modules need one another in a circle: {', '.join(pending)}")
        module = read(name)
        if module is None:
            return
        pending.append(name)
        for needed in depends(module):
            add(needed)
        pending.remove(name)
        order.append(name)

    for name in wanted:
        add(name)
    return tuple(order)
