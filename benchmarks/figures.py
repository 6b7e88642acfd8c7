"""Take times, name them, print them beside what they are compared with."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(slots=True)
class Figures:
    """One benchmark's rows: {name: times in ms}, and the bare tool's row each is compared with."""

    title: str
    rows: dict[str, list[float]] = field(default_factory=dict)
    against: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.rows.setdefault(name, []).append((time.perf_counter() - start) * 1000)

    def repeat(self, name: str, count: int, act: Callable[[], object]) -> None:
        """Run once unmeasured, then `count` times."""
        act()
        for _ in range(count):
            with self.timed(name):
                act()

    def crowd(self, name: str, width: int, act: Callable[[], object], *, count: int = 300) -> None:
        """Note how many a second there are when `width` threads do `count` of them."""
        start = time.perf_counter()
        with ThreadPoolExecutor(width) as pool:
            list(pool.map(lambda _: act(), range(count)))
        rate = count / (time.perf_counter() - start)
        self.notes.append(f"{count} × {name}, {width} at a time: {rate:.0f} a second.")

    def p50(self, name: str) -> float:
        return statistics.median(self.rows[name])

    def show(self) -> None:
        print(f"\n## {self.title}\n")
        print("| what | n | p50 ms | p95 ms | ratio | to |\n|---|--:|--:|--:|--:|---|")
        for name, times in self.rows.items():
            ordered = sorted(times)
            p95 = ordered[min(len(ordered) - 1, round(0.95 * len(ordered)))]
            base = self.against.get(name)
            ratio = f"{self.p50(name) / self.p50(base):.2f}" if base else ""
            print(f"| {name} | {len(times)} | {self.p50(name):.1f} | {p95:.1f} | {ratio} | {base or ''} |")
        for note in self.notes:
            print(f"\n{note}")

    def write(self, path: Path | None) -> None:
        if path is not None:
            document = {"title": self.title, "machine": machine(), "rows": self.rows, "against": self.against,
                        "notes": self.notes}  # fmt: skip
            path.write_text(json.dumps(document, indent=1))


def machine() -> str:
    """What the figures were taken on."""
    return f"{os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}"
