"""The agent's entry inside a machine: load all modules from one file, then run.

Each import from a directory costs half a dozen system calls, which are dear on gVisor; here one read serves
all of them. The builder compiles this file and writes the others, `{name: (is_package, marshalled code)}`: one for
the agent, a small one for the `sudo` that some machines get, which is started with arguments.
"""

import marshal
import sys
from _frozen_importlib import ModuleSpec

# Nothing but what is built in can be imported yet, not even what types are called.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType


class BundleFinder:
    """A finder and loader of sys.meta_path. A module's code is dropped from the bundle once it is loaded."""

    def __init__(self, modules: dict[str, tuple[bool, bytes]]) -> None:
        self._modules = modules

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        found = self._modules.get(name)
        return ModuleSpec(name, self, origin="bundle", is_package=found[0]) if found else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> "ModuleType | None":
        return None

    def exec_module(self, module: "ModuleType") -> None:
        exec(marshal.loads(self._modules.pop(module.__name__)[1]), module.__dict__)


def boot(arguments: list[str]) -> int:
    with open(f"{sys.prefix}/{'sudo' if arguments else 'agent'}.modules", "rb", buffering=0) as file:
        modules = marshal.loads(file.readall())
    # NOTE: after the built-in and frozen modules, before the directories that hold what is not code.
    sys.meta_path.insert(2, BundleFinder(modules))
    if arguments:
        from firebrick_guest import sudo

        return sudo.main(arguments)
    from firebrick_guest.main import main

    return main()


if __name__ == "__main__":
    sys.exit(boot(sys.argv[1:]))
