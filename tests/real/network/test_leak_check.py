"""The leak check itself: what it watches, it finds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from firebrick.linux import netns
from firebrick.linux.nft import Nft
from tests.support.lab import call_in
from tests.support.leaks import HostInventory

pytestmark = pytest.mark.needs_root


def test_each_kind_of_object_is_named(instance: str, tmp_path: Path) -> None:
    """A process, a namespace with its mount, a table, a file and a descriptor of ours all appear, and go."""
    before = HostInventory.take((instance,), (tmp_path,))
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    netns.prepare_names()
    call_in(Path("/proc/self/ns/net"), lambda: (netns.unshare(), netns.name_own(f"fb-{instance}-s0")))
    with Nft() as nft:
        nft.run(f"table inet firebrick_{instance} {{}}")
    descriptor = os.open(tmp_path / "left", os.O_CREAT | os.O_WRONLY)
    try:
        found = HostInventory.take((instance,), (tmp_path,)).diff(before)
    finally:
        os.close(descriptor)
        (tmp_path / "left").unlink()
        netns.remove(f"fb-{instance}-s0")
        with Nft() as nft:
            nft.run(f"delete table inet firebrick_{instance}")
        child.communicate(b"\n")
    kinds = [line.split()[0] for line in found]
    assert sorted(kinds) == ["descriptor", "file", "mount", "netns", "nft", "process"]
    assert HostInventory.take((instance,), (tmp_path,)).diff(before) == []
