"""What is made of Debian's kernel, without a kernel."""

import struct

import pytest

from tests.lab.kernel import LZ4_LEGACY_MAGIC, cpio, load_order, packed_kernel, parse_modules_dep

MODULES_DEP = """\
a/virtio.ko: a/ring.ko
a/ring.ko:
a/pci.ko: a/legacy.ko a/virtio.ko a/ring.ko
a/legacy.ko:
"""


def bzimage(payload: bytes) -> bytes:
    """The least that has a setup header: one setup sector more than the boot sector."""
    header = bytearray(1024)
    header[0x1F1] = 1
    struct.pack_into("<II", header, 0x248, 16, len(payload))
    return bytes(header) + bytes(16) + payload + b"behind"


def test_the_payload_is_cut_out() -> None:
    """Exactly the packed bytes: without the length behind them, and without what follows."""
    packed = LZ4_LEGACY_MAGIC + b"packed"
    assert packed_kernel(bzimage(packed + b"\x01\x02\x03\x04")) == packed


def test_another_packing_is_refused() -> None:
    """A kernel packed otherwise is named as such, not unpacked to nonsense."""
    with pytest.raises(ValueError, match="begins with 1f8b0800"):
        packed_kernel(bzimage(b"\x1f\x8b\x08\x00 gzip"))


def test_modules_come_after_what_they_need() -> None:
    """The order in which insmod takes them."""
    order = load_order("a/pci.ko", parse_modules_dep(MODULES_DEP))
    assert order == ["a/ring.ko", "a/virtio.ko", "a/legacy.ko", "a/pci.ko"]


def test_an_archive_is_what_cpio_reads() -> None:
    """Fields and padding are those of the "newc" form."""
    made = cpio({"lab": None, "lab/odd": b"12345", "init": b"#!/bin/sh\n"})
    assert len(made) % 4 == 0
    names, at = {}, 0
    while True:
        assert made[at : at + 6] == b"070701"
        fields = [int(made[at + 6 + 8 * index : at + 14 + 8 * index], 16) for index in range(13)]
        name = made[at + 110 : at + 110 + fields[11] - 1].decode()
        data_at = -(-(at + 110 + fields[11]) // 4) * 4
        if name == "TRAILER!!!":
            break
        names[name] = made[data_at : data_at + fields[6]]
        at = -(-(data_at + fields[6]) // 4) * 4
    assert names == {"lab": b"", "lab/odd": b"12345", "init": b"#!/bin/sh\n"}
