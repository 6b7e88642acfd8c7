"""The guest agent inside a sandbox: its start, its memory, commands side by side, output to a client.

python -m benchmarks.agent --runtime container
"""

import argparse
import shlex
import time
from pathlib import Path

from e2b import Sandbox

from benchmarks.figures import Figures, machine
from firebrick.builder.agent_image import agent_argv
from tests.support.instance import instance

# A second agent beside the first, from its exec to the line that says that it listens.
START = (
    "begin=$(date +%s%N); "
    f"FIREBRICK_CONTROL_TOKEN=x FIREBRICK_AGENT_PORT=0 MALLOC_ARENA_MAX=1 {shlex.join(agent_argv())} > /tmp/said & "
    "until [ -s /tmp/said ]; do :; done; end=$(date +%s%N); "
    "kill $!; wait; rm /tmp/said; echo $(( (end - begin) / 1000 )); times > /tmp/spent; tail -1 /tmp/spent"
)
MEMORY = "awk '/^VmRSS/ {print $2}' /proc/1/status"
LINES = "python3 -c 'import os\nfor _ in range(60000): os.write(1, b\"1234567\\n\")'"
OUTPUT_BYTES = 200_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runtime", choices=("gvisor", "container"), default="container")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    figures = Figures(f"guest agent, {options.runtime} ({machine()})")
    with (
        instance(runtime=options.runtime, warm_count="0") as found,
        Sandbox.create(timeout=600, **found.sdk) as box,
    ):
        run = box.commands.run
        figures.notes.append(f"Idle: {int(run(MEMORY).stdout) / 1024:.1f} MiB resident.")
        for _ in range(options.count):
            elapsed_us, *processor = run(START, user="root").stdout.split()
            figures.rows.setdefault("agent start", []).append(int(elapsed_us) / 1000)
            # As bash tells it, user and system: 0m0.050s 0m0.010s.
            spent_ms = sum(float(part[2:-1]) * 1000 for part in processor)
            figures.rows.setdefault("agent start, processor time (with its end)", []).append(spent_ms)
        for width in (16, 100):
            figures.crowd("commands.run('true')", width, lambda: run("true", timeout=0))
        figures.repeat("60,000 lines of eight bytes", 5, lambda: run(LINES))
        start = time.perf_counter()
        run(f"head -c {OUTPUT_BYTES} /dev/zero", timeout=0)
        rate = OUTPUT_BYTES / 1e6 / (time.perf_counter() - start)
        figures.notes.append(f"Output of one command through edge and SDK: {rate:.0f} MB/s.")
        figures.notes.append(f"After all this: {int(run(MEMORY).stdout) / 1024:.1f} MiB resident.")
    figures.show()
    figures.write(options.json)


if __name__ == "__main__":
    main()
