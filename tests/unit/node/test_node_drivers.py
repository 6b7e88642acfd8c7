"""Which runtimes a node offers, and which images it has."""

from pathlib import Path

import pytest

from firebrick.clock import SystemClock
from firebrick.main.node_drivers import StoredImages, offered_runtimes
from firebrick.model.errors import NotFound, Unavailable
from firebrick.model.ids import BuildId
from firebrick.model.machine import RuntimeName
from firebrick.runtimes.base import Runtime
from firebrick.runtimes.sim.runtime import SimRuntime

GVISOR, CONTAINER = RuntimeName.GVISOR, RuntimeName.CONTAINER
ANY: Runtime = SimRuntime(SystemClock())


def test_auto_offers_all_that_work_strongest_first() -> None:
    """What is not proven or not installed is not offered."""
    both = {CONTAINER: ANY, GVISOR: ANY}
    assert offered_runtimes("auto", both, frozenset({CONTAINER, GVISOR})) == (GVISOR, CONTAINER)
    assert offered_runtimes("auto", both, frozenset({CONTAINER})) == (CONTAINER,)
    assert offered_runtimes("auto", {CONTAINER: ANY}, frozenset({CONTAINER, GVISOR})) == (CONTAINER,)


def test_a_wish_is_granted_or_refused_never_replaced() -> None:
    """Who asked for gvisor does not get a container."""
    both = {CONTAINER: ANY, GVISOR: ANY}
    assert offered_runtimes("container", both, frozenset({CONTAINER, GVISOR})) == (CONTAINER,)
    with pytest.raises(Unavailable, match="gvisor"):
        offered_runtimes("gvisor", both, frozenset({CONTAINER}))
    with pytest.raises(Unavailable, match="doctor"):
        offered_runtimes("auto", both, frozenset())


@pytest.mark.parametrize("build_id", ["", "..", "../templates/b", "/etc", "half", "absent"])
def test_only_finished_builds_have_an_image(tmp_path: Path, build_id: str) -> None:
    """An id that is a path, a build that is half written, one that is not there."""
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "rootfs.erofs").touch()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "build.json").touch()
    images = StoredImages(tmp_path)
    assert images.image(BuildId("b")) == tmp_path / "b" / "rootfs.erofs"
    with pytest.raises(NotFound):
        images.image(BuildId(build_id))
