"""What starting a program costs inside a sandbox, without SDK, network and agent: the floor under `commands.run`.

python -m benchmarks.shell --runtime gvisor
"""

import argparse
import json
from pathlib import Path

from e2b import Sandbox

from benchmarks.figures import Figures, machine
from tests.support.instance import instance

LOGIN = ("/bin/bash", "-l", "-c", "true")
ARCHIVE = "/usr/lib/locale/locale-archive"
TIMER = """
import json, os, sys, time
argv, count, env = sys.argv[2:], int(sys.argv[1]), {"PATH": os.environ["PATH"], "HOME": "/home/user", "USER": "user"}
times = []
for _ in range(count):
    began = time.perf_counter()
    os.waitpid(os.posix_spawn(argv[0], argv, env), 0)
    times.append((time.perf_counter() - began) * 1000)
print(json.dumps(times))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runtime", choices=("gvisor", "container"), default="gvisor")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    figures = Figures(f"starting programs, {options.runtime} ({machine()})")
    with (
        instance(runtime=options.runtime, warm_count="0") as found,
        Sandbox.create(timeout=300, **found.sdk) as box,
    ):
        box.files.write("/tmp/timer.py", TIMER)

        def measure(what: str, *argv: str) -> None:
            shown = box.commands.run(f"python3 /tmp/timer.py {options.count} {' '.join(argv)}", timeout=120).stdout
            figures.rows.setdefault(what, []).extend(json.loads(shown))

        # Twice, in turn: what disturbs the machine disturbs all of them.
        for _ in range(2):
            measure("true", "/bin/true")
            measure("bash -c true", "/bin/bash", "-c", "true")
            measure("bash -l -c true", *LOGIN)
            box.commands.run(f"mv {ARCHIVE} {ARCHIVE}.away", user="root")
            measure("bash -l -c true, locale in 13 files", *LOGIN)
            box.commands.run(f"mv {ARCHIVE}.away {ARCHIVE}", user="root")
            measure("sudo -n true", "/usr/bin/sudo", "-n", "true")
    for name in list(figures.rows)[1:]:
        figures.against[name] = "true"
    figures.show()
    figures.write(options.json)


if __name__ == "__main__":
    main()
