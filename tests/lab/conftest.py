"""Tests of the lab run wherever its programs are, and say so where they are not."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import parts
from tests.lab.fleet import Fleet, fleet
from tests.lab.whole import fill_shelf


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    why = "this is the lab" if "FIREBRICK_IN_LAB" in os.environ else parts.missing_program()
    here = Path(__file__).parent
    for item in items:
        if why and here in item.path.parents and item.get_closest_marker("needs_lab"):
            item.add_marker(pytest.mark.skip(reason=f"NOT RUN: {why}"))


@pytest.fixture(scope="module")
def machine() -> Iterator[Fleet]:
    """One outer machine for all tests of a file, that can have instances and tests of microVMs in it."""
    if os.geteuid() != 0:
        pytest.skip("NOT RUN: needs root (run the tests with sudo)")
    fill_shelf()
    with fleet(parts.CACHE / "up" / f"test-{uuid.uuid4().hex[:8]}") as found:
        yield found
