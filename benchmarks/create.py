"""Create → first command through the official SDK: warm, cold, twenty at once; memory of an idle sandbox.

Compared with the plain runtime's `run` of the same command on the same root filesystem.
    python -m benchmarks.create --runtime gvisor
"""

import argparse
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from e2b import Sandbox

from benchmarks.figures import Figures, machine
from benchmarks.plain import LOGIN_TRUE, base_image, plain
from tests.support.instance import Instance, instance

SETTLE_S = 2.0


def create_and_run(found: Instance) -> None:
    box = Sandbox.create(timeout=120, **found.sdk)
    box.commands.run("true")


def end_all(found: Instance) -> None:
    for item in found.api("GET", "/v2/sandboxes").json():
        found.api("DELETE", f"/sandboxes/{item['sandboxID']}")


def measure_warm(figures: Figures, runtime: str, count: int) -> None:
    """One at a time, each with a machine that waits ready."""
    with instance(runtime=runtime, warm_count="2") as found:
        create_and_run(found)
        for _ in range(count):
            settle(found)
            with figures.timed("warm: create → first command"):
                create_and_run(found)
        end_all(found)
        figures.notes.append(
            f"Memory of an idle sandbox (PSS of all its host processes): {idle_pss_mib(found):.0f} MiB."
        )


def measure_cold(figures: Figures, runtime: str, count: int) -> None:
    """No warm pool: every create starts a machine."""
    with instance(runtime=runtime, warm_count="0") as found:
        create_and_run(found)
        for _ in range(count):
            settle(found)
            with figures.timed("cold: create → first command"):
                create_and_run(found)
        end_all(found)
        with figures.timed("cold: 20 at once, until all have run"), ThreadPoolExecutor(20) as pool:
            list(pool.map(lambda _: create_and_run(found), range(20)))
        end_all(found)


def settle(found: Instance) -> None:
    """End everything and let tear-down, slots and warm machines come to rest: what is timed is one create alone."""
    end_all(found)
    time.sleep(SETTLE_S)


def idle_pss_mib(found: Instance) -> float:
    """PSS of every process whose environment or cgroup belongs to one fresh sandbox."""
    box = Sandbox.create(timeout=120, **found.sdk)
    box.commands.run("true")
    time.sleep(2)  # let what the command used be given back
    machines = [path.name for path in (found.data_dir / "node" / "machines").iterdir()]
    per_machine = {name: pss for name in machines if (pss := _pss_of(name)) > 0}
    box.kill()
    return max(per_machine.values()) / 1024


def _pss_of(machine_id: str) -> int:
    total = 0
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if machine_id in (entry / "cgroup").read_text() and entry.name != str(os.getpid()):
                rollup = (entry / "smaps_rollup").read_text()
                total += int(rollup.split("Pss:")[1].split()[0])
        except (OSError, IndexError):
            continue
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runtime", choices=("gvisor", "container"), default="gvisor")
    parser.add_argument("--count", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    figures = Figures(f"create, {options.runtime} ({machine()})")
    measure_warm(figures, options.runtime, options.count)
    measure_cold(figures, options.runtime, options.count)
    with plain(options.runtime, base_image()) as bare:
        figures.repeat(f"plain {options.runtime} run", options.count, lambda: bare.run(*LOGIN_TRUE))
    for name in list(figures.rows)[:-1]:
        figures.against[name] = f"plain {options.runtime} run"
    figures.show()
    figures.write(options.json)


if __name__ == "__main__":
    main()
