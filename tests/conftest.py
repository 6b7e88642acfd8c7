"""For all tests: hypothesis may take its time, because no test says anything about a busy machine; and what takes long
waits for the night."""

import os

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("firebrick", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("firebrick")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("FIREBRICK_TEST_NIGHTLY") == "1":
        return
    for item in items:
        if item.get_closest_marker("nightly"):
            item.add_marker(pytest.mark.skip(reason="NOT RUN: takes a quarter of an hour (FIREBRICK_TEST_NIGHTLY=1)"))
