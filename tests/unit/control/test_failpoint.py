"""Faults at a chosen step: struck once, at that step and no other."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from firebrick.control import failpoint


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    failpoint.arm(str(tmp_path / "at"))
    yield tmp_path / "at"
    failpoint.arm("")


def test_another_step_is_not_struck(file: Path) -> None:
    """Who passes by leaves the file as it is."""
    file.write_text("create.start.before wait")
    failpoint.reached("create.start.after")
    assert file.exists()


def test_the_step_waits_until_the_damage_is_done(file: Path) -> None:
    """The mark says that it is reached; the step goes on when the mark is gone, and is not struck again."""
    file.write_text("create.start.before wait")
    step = threading.Thread(target=failpoint.reached, args=("create.start.before",))
    step.start()
    mark = file.with_suffix(".reached")
    while not mark.exists():
        pass
    assert step.is_alive()
    assert not file.exists()
    mark.unlink()
    step.join(failpoint.WAIT_S)
    assert not step.is_alive()
    failpoint.reached("create.start.before")
