"""`commands.run("true")` through the official SDK in a running sandbox, against the plain runtime's `exec`.

python -m benchmarks.exec --runtime gvisor
"""

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from e2b import Sandbox

from benchmarks.figures import Figures, machine
from benchmarks.plain import LOGIN_TRUE, base_image, plain
from tests.support.instance import instance


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runtime", choices=("gvisor", "container"), default="gvisor")
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    figures = Figures(f"exec, {options.runtime} ({machine()})")
    with (
        instance(runtime=options.runtime, warm_count="0") as found,
        Sandbox.create(timeout=300, **found.sdk) as box,
    ):
        run = box.commands.run
        figures.repeat("SDK commands.run('true')", options.count, lambda: run("true"))
        figures.repeat("SDK commands.run('true') as root", options.count, lambda: run("true", user="root"))
        start = time.perf_counter()
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda _: run("true"), range(100)))
        rate = 100 / (time.perf_counter() - start)
        figures.notes.append(f"100 × commands.run('true'), 16 at a time: {rate:.0f} a second.")
    with plain(options.runtime, base_image()) as bare, bare.running():
        figures.repeat(f"plain {options.runtime} exec true", options.count, lambda: bare.exec("true"))
        figures.repeat(f"plain {options.runtime} exec bash -l -c true", options.count, lambda: bare.exec(*LOGIN_TRUE))
    for name in list(figures.rows)[:2]:
        figures.against[name] = f"plain {options.runtime} exec true"
    figures.show()
    figures.write(options.json)


if __name__ == "__main__":
    main()
