"""A release is taken only with the programs that were pinned."""

import io
import tarfile

import pytest

from firebrick.builder import firecracker_tools
from firebrick.builder.firecracker_tools import CHECKSUMS, release_programs
from firebrick.model.errors import Unavailable


def release(**programs: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, data in programs.items():
            member = tarfile.TarInfo(f"release-v1.12.1-x86_64/{name}-v1.12.1-x86_64")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


def test_a_changed_program_is_refused() -> None:
    """The message says which, what was found, and what to do."""
    with pytest.raises(Unavailable, match=r"fetched firecracker .* not " + CHECKSUMS["x86_64"]["firecracker"]):
        release_programs(release(firecracker=b"changed", jailer=b"too"), "1.12.1", "x86_64")


@pytest.mark.parametrize("archive", [b"<html>", release(firecracker=b"alone"), b""])
def test_what_is_no_release_is_told(archive: bytes) -> None:
    with pytest.raises(Unavailable, match="no release of Firecracker"):
        release_programs(archive, "1.12.1", "x86_64")


def test_every_pin_is_a_sha256() -> None:
    assert firecracker_tools.RELEASE
    for programs in CHECKSUMS.values():
        assert programs.keys() == {"firecracker", "jailer"}
        assert all(len(bytes.fromhex(checksum)) == 32 for checksum in programs.values())
