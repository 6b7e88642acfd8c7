"""A kernel is cut out of what a distribution ships, and modules come after what they need."""

import shutil
import struct
import subprocess

import pytest

from firebrick.builder.guest_kernel import depends, kernel_elf, load_order, lz4_block, module_name

ELF = b"\x7fELF" + b"kernel " * 40 + bytes(3000) + b"end"


def bz_image(payload: bytes) -> bytes:
    """A setup part of three sectors, 16 bytes of loader, the payload, and the size that the kernel's build adds."""
    head = bytearray(0x250)
    head[0x1F1] = 2
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", head, 0x248, 16, len(payload))
    return bytes(head).ljust(3 * 512, b"\0") + b"loader".ljust(16, b"\0") + payload + b"tail"


def packed(*blocks: bytes) -> bytes:
    frame = b"".join(struct.pack("<I", len(block)) + block for block in blocks)
    return struct.pack("<I", 0x184C2102) + frame + struct.pack("<I", 0xFFFFFFFF)


def literals(data: bytes) -> bytes:
    """An LZ4 block that repeats nothing."""
    rest = len(data) - 15
    count = bytes([255] * (rest // 255) + [rest % 255]) if rest >= 0 else b""
    return bytes([min(len(data), 15) << 4]) + count + data


def test_the_kernel_is_cut_out() -> None:
    """Blocks follow one another; what comes after the last is not theirs."""
    assert kernel_elf(bz_image(packed(literals(ELF[:1000]), literals(ELF[1000:])))) == ELF


def test_a_kernel_that_is_cut_out_already_stays() -> None:
    assert kernel_elf(ELF) == ELF


@pytest.mark.parametrize(
    ("image", "why"),
    [
        (b"#!/bin/sh", "no Linux kernel"),
        (bz_image(b"\x1f\x8b gzip"), "not compressed by LZ4"),
        (bz_image(packed(literals(b"no elf at all"))), "no ELF"),
        (bz_image(packed(b"\xf0")), "damaged"),
    ],
)
def test_what_is_no_kernel_is_told(image: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        kernel_elf(image)


@pytest.mark.parametrize(
    ("block", "data"),
    [
        # Three bytes, then four more from three back: it repeats what it is writing. The last five are literal.
        (b"\x30abc\x03\x00\x50xxxxx", b"abcabcaxxxxx"),
        # One byte, then 4 + 15 + 2 times the same.
        (b"\x1fa\x01\x00\x02\x10b", b"a" * 22 + b"b"),
        (b"\x40abcd\x04\x00\x10z", b"abcdabcdz"),
    ],
)
def test_repetitions(block: bytes, data: bytes) -> None:
    assert lz4_block(block) == data


def test_a_block_of_the_real_program() -> None:
    """What lz4 packs we unpack, where it is installed."""
    program = shutil.which("lz4")
    if program is None:
        pytest.skip("NOT RUN: the program lz4 is not installed")
    data = b"".join(b"%d squared is %d\n" % (n, n * n) for n in range(9000))
    made = subprocess.run([program, "-l", "-9", "-c"], input=ELF[:4] + data, capture_output=True, check=True).stdout
    assert kernel_elf(bz_image(made + struct.pack("<I", 0xFFFFFFFF))) == ELF[:4] + data


def test_a_copy_from_before_the_beginning_is_refused() -> None:
    with pytest.raises(ValueError, match="damaged"):
        lz4_block(b"\x10a\x05\x00\x10b")


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
