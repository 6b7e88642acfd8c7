"""Real tests make kernel objects: each is checked for leaks, and skipped loudly where it cannot run."""

import os
from pathlib import Path

import pytest

from tests.support.leaks import LeakCheck, no_leaks

__all__ = ["no_leaks"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without root nothing here can run: say so for each test, instead of passing over it."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents and item.get_closest_marker("needs_root") and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="NOT RUN: needs root (run the tests with sudo)"))


@pytest.fixture(autouse=True)
def _leak_checked(no_leaks: LeakCheck) -> None:
    """Check every real test, whether it asks or not."""
