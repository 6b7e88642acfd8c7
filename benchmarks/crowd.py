"""A crowd through the official SDK: 50 sandboxes created, paused, resumed and killed by 20 clients at once.

Every answer must be right, and twenty at once may take three times one alone.
    python -m benchmarks.crowd --runtime gvisor
"""

import argparse
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from e2b import Sandbox

from benchmarks.figures import Figures
from tests.support.instance import Instance, instance

SANDBOX_COUNT = 50
CLIENT_COUNT = 20
ALONE_COUNT = 5


def life(found: Instance, figures: Figures, prefix: str) -> None:
    """One sandbox from create to kill; its state is checked at each step."""

    def timed(name: str, act: Callable[[], object]) -> object:
        with figures.timed(f"{prefix}: {name}"):
            return act()

    box = timed("create", lambda: Sandbox.create(timeout=600, **found.sdk))
    assert isinstance(box, Sandbox)
    box.files.write("/home/user/mark", box.sandbox_id)
    handle = box.commands.run("sleep 1000", background=True)
    assert timed("pause", box.pause) is True
    assert box.get_info().state.value == "paused"
    timed("connect (resumes)", lambda: Sandbox.connect(box.sandbox_id, timeout=600, **found.sdk))
    with figures.timed(f"{prefix}: first file after it"):
        assert box.files.read("/home/user/mark") == box.sandbox_id
    assert handle.pid in {item.pid for item in box.commands.list()}
    assert timed("kill", box.kill) is True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runtime", default="container")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    figures = Figures(f"{SANDBOX_COUNT} sandboxes by {CLIENT_COUNT} clients ({options.runtime})")
    with instance(runtime=options.runtime, slot_count="64") as found:
        life(found, Figures(""), "warm-up")
        for _ in range(ALONE_COUNT):
            life(found, figures, "alone")
        started = time.perf_counter()
        with ThreadPoolExecutor(CLIENT_COUNT) as pool:
            list(pool.map(lambda _: life(found, figures, "crowd"), range(SANDBOX_COUNT)))
        figures.notes.append(f"All {SANDBOX_COUNT} lives: {time.perf_counter() - started:.1f} s, no error.")
        left = found.api("GET", "/v2/sandboxes").json()
        assert left == [], left
    figures.against = {name: name.replace("crowd", "alone") for name in figures.rows if name.startswith("crowd")}
    figures.show()
    figures.write(options.json)


if __name__ == "__main__":
    main()
