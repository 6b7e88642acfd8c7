"""Benchmarks are run by hand and rarely: what they take of the project must still be there."""

import importlib
from pathlib import Path

import pytest

PROGRAMS = sorted(path.stem for path in (Path(__file__).parents[2] / "benchmarks").glob("[a-z]*.py"))


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_benchmark_can_be_started(name: str) -> None:
    """All that it imports is there, and nothing is run by that."""
    assert importlib.import_module(f"benchmarks.{name}")
