"""A crowd through the official SDK: 50 sandboxes created, paused, resumed and killed by 20 clients at once.

Every answer must be right. "Twenty at once at most three times one" is told in both its meanings, for each step:
    (a) latency     p50 of one among twenty at once / p50 of one alone
    (b) total       twenty at once until all are done / twenty times one alone; below 1: they help each other
and what a life costs in processor time, alone and in the crowd: by role, of the machines, of the clients here.
    python -m benchmarks.crowd --runtime gvisor
"""

import argparse
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
from e2b import Sandbox

from benchmarks.figures import Figures, machine
from tests.support.instance import Instance, instance

SANDBOX_COUNT = 50
CLIENT_COUNT = 20
ALONE_COUNT = 8
STEPS = ("create", "pause", "connect", "kill")
SETTLE_S = 20.0


class Life:
    """One sandbox, step by step; its state is checked at each."""

    def __init__(self, found: Instance) -> None:
        self._found = found
        self._box: Sandbox | None = None

    @property
    def box(self) -> Sandbox:
        assert self._box is not None
        return self._box

    def create(self) -> None:
        self._box = Sandbox.create(timeout=600, **self._found.sdk)

    def use(self) -> None:
        self.box.files.write("/home/user/mark", self.box.sandbox_id)
        self._pid = self.box.commands.run("sleep 1000", background=True).pid

    def pause(self) -> None:
        assert self.box.pause() is True

    def connect(self) -> None:
        Sandbox.connect(self.box.sandbox_id, timeout=600, **self._found.sdk)

    def check(self) -> None:
        assert self.box.files.read("/home/user/mark") == self.box.sandbox_id
        assert self._pid in {item.pid for item in self.box.commands.list()}

    def kill(self) -> None:
        assert self.box.kill() is True

    def live(self, timed: Callable[[str], object]) -> None:
        for step in ("create", "use", "pause", "connect", "check", "kill"):
            with timed(step):  # type: ignore[attr-defined]
                getattr(self, step)()


def alone(found: Instance, figures: Figures) -> None:
    Life(found).live(lambda step: figures.timed(f"alone: {step}"))


def burst(found: Instance, figures: Figures, prefix: str) -> dict[str, float]:
    """Twenty lives in step: each step begins for all at once. {step: ms until the last was done}."""
    lives = [Life(found) for _ in range(CLIENT_COUNT)]
    totals: dict[str, float] = {}
    with ThreadPoolExecutor(CLIENT_COUNT) as pool:
        for step in ("create", "use", "pause", "connect", "check", "kill"):
            barrier = threading.Barrier(CLIENT_COUNT + 1)

            def one(life: Life, step: str = step, barrier: threading.Barrier = barrier) -> None:
                barrier.wait()
                with figures.timed(f"{prefix}: {step}"):
                    getattr(life, step)()

            waiting = [pool.submit(one, life) for life in lives]
            barrier.wait()
            started = time.perf_counter()
            for done in waiting:
                done.result()
            totals[step] = (time.perf_counter() - started) * 1000
    return totals


class CpuMeter:
    """Processor time of everything an instance runs, and of this process."""

    def __init__(self, found: Instance) -> None:
        self._pids = found.pids()
        self._machines = found.data_dir / "node" / "machines"
        self._groups: dict[Path, float] = {}

    def look_for_groups(self) -> None:
        """The groups above all machines: theirs counts what ended ones used, too."""
        names = {path.name for path in self._machines.iterdir()}
        for pattern in ("/sys/fs/cgroup/cpuacct/firebrick-*/*", "/sys/fs/cgroup/firebrick-*/*"):
            for path in Path("/").glob(pattern[1:]):
                if path.name in names:
                    self._groups.setdefault(path.parent, 0.0)

    def read(self) -> dict[str, float]:
        """{who: seconds}. Children that were waited for count as their parents'."""
        own = os.times()
        seconds = {"clients": own.user + own.system, "machines": sum(map(_group_s, self._groups))}
        for role, pid in self._pids.items():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            seconds[role] = sum(int(field) for field in fields[11:15]) / os.sysconf("SC_CLK_TCK")
        return seconds


def _group_s(group: Path) -> float:
    usage = group / "cpuacct.usage"
    if usage.exists():
        return int(usage.read_text()) / 1e9
    stat = dict(line.split() for line in (group / "cpu.stat").read_text().splitlines())
    return int(stat["usage_usec"]) / 1e6


@contextmanager
def costs(figures: Figures, meter: CpuMeter, name: str, count: int) -> Iterator[None]:
    """Processor time for each of `count` lives, with what their ends take behind the answers."""
    before, started = meter.read(), time.perf_counter()
    yield
    wall_s = time.perf_counter() - started
    time.sleep(2.0)
    used = {who: (seconds - before[who]) * 1000 / count for who, seconds in meter.read().items()}
    told = ", ".join(f"{who} {ms:.0f}" for who, ms in sorted(used.items(), key=lambda item: -item[1]) if ms >= 1)
    all_ms, cores = sum(used.values()), os.cpu_count() or 1
    figures.notes.append(
        f"{name}: {count} lives, {count / wall_s:.1f} a second on the clock; processor time of each {all_ms:.0f} ms "
        f"({told}), so {cores} cores can do {cores * 1000 / all_ms:.1f} a second at most."
    )


def settle(found: Instance) -> int:
    """Until the pool of warm machines is as it will stay; how many wait."""
    seen: list[float] = []
    until = time.monotonic() + SETTLE_S
    while time.monotonic() < until:
        text = httpx.get(f"{found.api_url}/metrics", trust_env=False).text
        line = next(line for line in text.splitlines() if line.startswith("firebrick_node_warm_sandboxes{"))
        seen.append(float(line.split()[-1]))
        if len(seen) > 12 and len(set(seen[-12:])) == 1:
            break
        time.sleep(0.5)
    return int(seen[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runtime", default="container")
    parser.add_argument("--warm-memory-mib", default="512")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    figures = Figures(f"{SANDBOX_COUNT} sandboxes by {CLIENT_COUNT} clients ({options.runtime}; {machine()})")
    with instance(runtime=options.runtime, slot_count="64", warm_memory_mib=options.warm_memory_mib) as found:
        meter = CpuMeter(found)
        for _ in range(ALONE_COUNT):
            # Unmeasured: they make the pool grow to what the measured ones use.
            alone(found, Figures(""))
        settle(found)
        meter.look_for_groups()
        with costs(figures, meter, "One client", ALONE_COUNT):
            for _ in range(ALONE_COUNT):
                alone(found, figures)
        for prefix in ("first 20", "next 20"):
            waiting = settle(found)
            totals = burst(found, figures, prefix)
            ratios = "; ".join(
                f"{step} {figures.p50(f'{prefix}: {step}') / figures.p50(f'alone: {step}'):.1f}"
                f" / {totals[step] / 20 / figures.p50(f'alone: {step}'):.2f}"
                for step in STEPS
            )
            figures.notes.append(f"{prefix.capitalize()} at once, {waiting} warm: (a) latency / (b) total: {ratios}.")
        settle(found)
        with costs(figures, meter, f"{CLIENT_COUNT} clients", SANDBOX_COUNT), ThreadPoolExecutor(CLIENT_COUNT) as pool:
            work = lambda _: Life(found).live(lambda step: figures.timed(f"crowd: {step}"))  # noqa: E731
            list(pool.map(work, range(SANDBOX_COUNT)))
        left = found.api("GET", "/v2/sandboxes").json()
        assert left == [], left
        figures.notes.append(f"All {2 * ALONE_COUNT + 2 * CLIENT_COUNT + SANDBOX_COUNT} lives: no error, nothing left.")
    for name in figures.rows:
        if not name.startswith("alone"):
            figures.against[name] = f"alone: {name.rpartition(': ')[2]}"
    figures.show()
    figures.write(options.json)


if __name__ == "__main__":
    main()
