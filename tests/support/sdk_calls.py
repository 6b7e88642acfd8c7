"""Which public methods of the official SDK a passing test called, on which runtime: what docs/compatibility.md tells.

The SDK is not touched: the interpreter reports every call, and those of its public methods are kept. The table is
made from a whole run of tests/e2e (`./dev sdk-table`); tests/e2e checks that it claims no more than that run showed.
"""

import inspect
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import e2b
from e2b.sandbox_sync.commands.command import Commands
from e2b.sandbox_sync.commands.pty import Pty
from e2b.sandbox_sync.filesystem.filesystem import Filesystem
from e2b.sandbox_sync.git import Git

PAGE = Path(__file__).parents[2] / "docs/compatibility.md"
RUNTIMES = ("gvisor", "container")
CLASSES: dict[str, type] = {
    "Sandbox": e2b.Sandbox, "commands": Commands, "pty": Pty, "files": Filesystem, "git": Git,
    "Template": e2b.Template, "Volume": e2b.Volume, "Secret": e2b.Secret,
}  # fmt: skip

NOT_OFFERED = {
    "Template": "templates cannot be built yet: 501; `exists` and `alias_exists` answer",
    "Volume": "volumes are not in this version: 501",
    "Secret": "secrets are not in this version: 501",
    "Sandbox.get_mcp_token": "the base template ships no MCP gateway; the option `mcp` is accepted",
}
"""A method, or all of a class, that no test can prove, and why."""

BEGIN = "<!-- Made by `./dev sdk-table`: do not edit from here -->\n"
END = "<!-- to here -->\n"


def public_methods() -> tuple[str, ...]:
    """`Sandbox.create`, `commands.run`, …: every public method of the installed SDK; properties need no server."""
    names = []
    for prefix, owner in CLASSES.items():
        for name in dir(owner):
            if not name.startswith("_") and _code_of(inspect.getattr_static(owner, name)) is not None:
                names.append(f"{prefix}.{name}")
    return tuple(names)


def why_not_offered(method: str) -> str | None:
    return NOT_OFFERED.get(method) or NOT_OFFERED.get(method.partition(".")[0])


@contextmanager
def calls_recorded(into: set[str]) -> Iterator[None]:
    """Add the public methods that are called meanwhile, in this thread and in those started meanwhile."""
    known = _codes()

    def look(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code in known:
            into.add(known[frame.f_code])

    before = sys.getprofile()
    threading.setprofile(look)
    sys.setprofile(look)
    try:
        yield
    finally:
        sys.setprofile(before)
        threading.setprofile(before)


def render(called: dict[str, set[str]]) -> str:
    """The table. `called`: {runtime: methods}."""
    lines = [f"| method | {' | '.join(RUNTIMES)} | |", "|---" * (len(RUNTIMES) + 2) + "|"]
    for method in public_methods():
        cells = ["yes" if method in called.get(runtime, ()) else "no" for runtime in RUNTIMES]
        reason = why_not_offered(method) if "no" in cells else None
        lines.append(f"| `{method}` | {' | '.join(cells)} | {reason or ''} |")
    return "\n".join(lines) + "\n"


def replaced(page: str, table: str) -> str:
    """`page` with `table` in the place of its own."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def claimed() -> dict[str, set[str]]:
    """What the page says: {runtime: methods}."""
    found: dict[str, set[str]] = {runtime: set() for runtime in RUNTIMES}
    table = PAGE.read_text().partition(BEGIN)[2].partition(END)[0]
    for line in table.splitlines():
        if line.startswith("| `"):
            cells = [cell.strip(" `") for cell in line.strip("|").split("|")]
            for runtime, cell in zip(RUNTIMES, cells[1:], strict=False):
                if cell == "yes":
                    found[runtime].add(cells[0])
    return found


def merge(path: Path, called: dict[str, set[str]]) -> dict[str, set[str]]:
    """Add to the results kept at `path` and return all."""
    kept = {key: set(value) for key, value in json.loads(path.read_text()).items()} if path.exists() else {}
    for runtime, methods in called.items():
        kept.setdefault(runtime, set()).update(methods)
    path.write_text(json.dumps({key: sorted(value) for key, value in kept.items()}, indent=1))
    return kept


def _codes() -> dict[CodeType, str]:
    codes = {}
    for method in public_methods():
        prefix, _, name = method.partition(".")
        owner = CLASSES[prefix]
        # A method that works on the class and on an instance is two functions behind one name.
        for variant in (name, f"_cls_{name}"):
            code = _code_of(inspect.getattr_static(owner, variant, None))
            if code is not None:
                codes[code] = method
    return codes


def _code_of(attribute: Any) -> CodeType | None:
    if isinstance(attribute, (staticmethod, classmethod)):
        attribute = attribute.__func__
    attribute = getattr(attribute, "method", attribute)
    try:
        return inspect.unwrap(attribute).__code__ if callable(attribute) else None
    except AttributeError:
        return None


if __name__ == "__main__":
    found = {runtime: set(methods) for runtime, methods in json.loads(Path(sys.argv[1]).read_text()).items()}
    PAGE.write_text(replaced(PAGE.read_text(), render(found)))
