"""`commands.run("true")` through the official SDK in a running sandbox, against `runsc exec` and the plain runtime's.

python -m benchmarks.exec --runtime gvisor
"""

import argparse
import os
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from e2b import Sandbox

from benchmarks.figures import Figures, machine
from benchmarks.plain import LOGIN_TRUE, base_image, plain
from tests.support.instance import instance

USUAL = "SDK commands.run('true')"
ROUNDS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runtime", choices=("gvisor", "container"), default="gvisor")
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    figures = Figures(f"exec, {options.runtime} ({machine()})")
    runtimes = sorted({"gvisor", options.runtime})
    with (
        instance(runtime=options.runtime, warm_count="0") as found,
        Sandbox.create(timeout=300, **found.sdk) as box,
        ExitStack() as stack,
    ):
        bare = {name: stack.enter_context(plain(name, base_image())) for name in runtimes}
        for tool in bare.values():
            stack.enter_context(tool.running())
        run = box.commands.run
        figures.notes.append(f"Load before: {os.getloadavg()[0]:.1f}.")
        # In turn: what disturbs the machine disturbs all of them.
        for _ in range(ROUNDS):
            count = options.count // ROUNDS
            figures.repeat(USUAL, count, lambda: run("true"))
            figures.repeat(f"{USUAL} as root", count, lambda: run("true", user="root"))
            for name, tool in bare.items():
                figures.repeat(f"plain {name} exec true", count, partial(tool.exec, "true"))
                figures.repeat(f"plain {name} exec bash -l -c true", count, partial(tool.exec, *LOGIN_TRUE))
        for width in (16, 100):
            figures.crowd("commands.run('true')", width, lambda: run("true", timeout=0))
    for name in list(figures.rows)[:2]:
        figures.against[name] = "plain gvisor exec true"
    if options.runtime != "gvisor":
        share = figures.p50(USUAL) / figures.p50(f"plain {options.runtime} exec true")
        figures.notes.append(f"{share:.2f} of plain {options.runtime} exec true.")
    figures.show()
    figures.write(options.json)


if __name__ == "__main__":
    main()
