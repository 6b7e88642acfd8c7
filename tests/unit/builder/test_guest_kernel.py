"""A kernel is cut out of what a distribution ships, and modules come after what they need."""

import lzma
import struct

import pytest
import zstandard

from firebrick.builder.guest_kernel import depends, kernel_elf, load_order, module_name, module_object

ELF = b"\x7fELF" + b"kernel " * 40 + bytes(3000) + b"end"


def bz_image(payload: bytes) -> bytes:
    """A setup part of three sectors, 16 bytes of loader, the payload, and the size that the kernel's build adds."""
    head = bytearray(0x250)
    head[0x1F1] = 2
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", head, 0x248, 16, len(payload))
    return bytes(head).ljust(3 * 512, b"\0") + b"loader".ljust(16, b"\0") + payload + b"tail"


def packed(data: bytes) -> bytes:
    """A frame, and the kernel's note of the unpacked size behind it."""
    return zstandard.ZstdCompressor().compress(data) + struct.pack("<I", len(data))


def test_the_kernel_is_cut_out() -> None:
    """Out of its loader, and unpacked; what comes after the frame is not its."""
    assert kernel_elf(bz_image(packed(ELF))) == ELF


def test_a_kernel_that_is_cut_out_already_stays() -> None:
    assert kernel_elf(ELF) == ELF


@pytest.mark.parametrize(
    ("image", "why"),
    [
        (b"#!/bin/sh", "no Linux kernel"),
        (bz_image(b"\x1f\x8b gzip"), "not compressed by zstd"),
        (bz_image(packed(b"no elf at all")), "no ELF"),
        (bz_image(packed(ELF)[:8] + b"\xff" * 40), "damaged"),
    ],
)
def test_what_is_no_kernel_is_told(image: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        kernel_elf(image)


def test_a_module_is_unpacked() -> None:
    """One that is packed by xz; one that is not stays; a damaged one is told."""
    assert module_object(lzma.compress(ELF)) == module_object(ELF) == ELF
    with pytest.raises(ValueError, match="damaged"):
        module_object(lzma.compress(ELF)[:-20] + bytes(20))


def test_modules_come_after_what_they_need() -> None:
    """In one list, each once; what the kernel has built in is left out."""
    files = {
        "virtio_net": b"\0license=GPL\0depends=net_failover,virtio,virtio-ring\0",
        "net_failover": b"\0depends=failover\0",
        "failover": b"\0depends=\0",
        "virtio": b"\0depends=virtio_ring\0",
        "virtio_ring": b"\0depends=\0",
    }
    assert load_order(["virtio_net", "ext4", "virtio"], files.get) == (
        "failover",
        "net_failover",
        "virtio_ring",
        "virtio",
        "virtio_net",
    )


def test_modules_in_a_circle_are_refused() -> None:
    with pytest.raises(ValueError, match="circle"):
        load_order(["a"], {"a": b"\0depends=b\0", "b": b"\0depends=a\0"}.get)


def test_names_of_modules() -> None:
    assert module_name("kernel/drivers/char/hw_random/virtio-rng.ko") == "virtio_rng"
    assert depends(b"no section") == ()
