"""Tests of the lab run wherever its programs are, and say so where they are not."""

import os
from pathlib import Path

import pytest

from tests.lab import parts


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    why = "this is the lab" if "FIREBRICK_IN_LAB" in os.environ else parts.missing_program()
    here = Path(__file__).parent
    for item in items:
        if why and here in item.path.parents and item.get_closest_marker("needs_lab"):
            item.add_marker(pytest.mark.skip(reason=f"NOT RUN: {why}"))
