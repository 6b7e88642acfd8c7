"""From what Debian ships to what boots: an ELF kernel out of a bzImage, and an initramfs. Pure but for `lz4`."""

import struct
import subprocess
from collections.abc import Mapping

SETUP_SECTORS_AT, PAYLOAD_AT = 0x1F1, 0x248
LZ4_LEGACY_MAGIC = bytes.fromhex("02214c18")
LENGTH_BYTES = 4
"""The kernel's build writes the length of what it packed behind the packed bytes."""


def packed_kernel(bzimage: bytes) -> bytes:
    """The LZ4 stream inside a bzImage (Documentation/arch/x86/boot.rst: payload_offset, payload_length).

    Raises:
        ValueError: it is packed in another way.
    """
    setup_sectors = bzimage[SETUP_SECTORS_AT] or 4
    offset, length = struct.unpack_from("<II", bzimage, PAYLOAD_AT)
    start = (setup_sectors + 1) * 512 + offset
    packed = bzimage[start : start + length - LENGTH_BYTES]
    if not packed.startswith(LZ4_LEGACY_MAGIC):
        raise ValueError(
            f"the kernel's payload begins with {packed[:4].hex()}, not with LZ4's {LZ4_LEGACY_MAGIC.hex()}"
        )
    return packed


def vmlinux(bzimage: bytes) -> bytes:
    """The ELF file that Firecracker boots."""
    done = subprocess.run(["lz4", "-d", "-c"], input=packed_kernel(bzimage), capture_output=True, check=True)
    if not done.stdout.startswith(b"\x7fELF"):
        raise ValueError("the unpacked kernel is not an ELF file")
    return done.stdout


def load_order(wanted: str, dependencies: Mapping[str, list[str]]) -> list[str]:
    """The modules to load for `wanted`, each after all it needs. Names as in modules.dep."""
    order: list[str] = []
    # modules.dep lists what is needed directly or indirectly, the last first.
    for name in reversed([wanted, *dependencies[wanted]]):
        if name not in order:
            order.append(name)
    return order


def parse_modules_dep(text: str) -> dict[str, list[str]]:
    return {line.partition(":")[0]: line.partition(":")[2].split() for line in text.splitlines()}


def cpio(entries: Mapping[str, bytes | None]) -> bytes:
    """An archive in the kernel's "newc" form: {path: contents, or None for a directory}; every file may be executed."""
    made = bytearray()
    names = [*entries, "TRAILER!!!"]
    for number, name in enumerate(names, 1):
        contents = entries.get(name)
        mode = 0o040755 if contents is None else 0o100755
        data = contents or b""
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        made += b"070701" + "".join(f"{field:08X}" for field in fields).encode() + name.encode() + b"\0"
        made += bytes(-len(made) % 4) + data
        made += bytes(-len(made) % 4)
    return bytes(made)
