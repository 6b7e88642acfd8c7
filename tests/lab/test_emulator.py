"""Which qemu outer machines run in."""

import pytest

from tests.lab.emulator import Emulator, backports_mirror, release

DEBIAN = "ID=debian\nVERSION_CODENAME=bookworm\n"
SOURCES = """
Types: deb
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main
"""


@pytest.mark.parametrize(
    ("said", "is_sound"),
    [
        ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)", False),
        ("QEMU emulator version 8.0.5", False),
        ("QEMU emulator version 8.1.0", True),
        ("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)", True),
        ("", False),
    ],
)
def test_releases_before_8_1_are_not_trusted(said: str, is_sound: bool) -> None:
    """By number, and not by letter; what says nothing is not trusted."""
    assert Emulator(words=("qemu",), version=said).is_sound is is_sound
    assert release("QEMU emulator version 10.0.2") == (10, 0)


def test_newer_packages_come_from_the_machines_own_mirror() -> None:
    """Its backports; no other distribution's, and nothing where its apt names no Debian mirror."""
    found = backports_mirror(DEBIAN, [("debian.sources", SOURCES)])
    assert found == ("http://mirror.example/debian", "bookworm-backports")
    assert backports_mirror("ID=ubuntu\nVERSION_CODENAME=jammy\n", [("debian.sources", SOURCES)]) is None
    assert backports_mirror(DEBIAN, [("other.list", "deb http://other.example stable extra\n")]) is None
