"""Compile the guest agent and what it needs of the standard library, with the interpreter that will run it.

A script: `python3.11 -I -S -B -X no_debug_ranges agent_compile.py <prefix> <guest sources>`, run by the very
interpreter that is being packed, so that the code has the right format whatever Python the host has. It imports
nothing of ours but the agent. Afterwards <prefix> needs no source, and no module file but the few that the interpreter
wants before it can read the bundle.
"""

import importlib
import marshal
import os
import shutil
import sys
from importlib.util import MAGIC_NUMBER

# Only what the agent imports itself may be imported above: what is loaded when the agent is, is packed.

# The agent works without these, and OpenSSL alone would add 6 MB to the image and 3 MB to the memory of each.
UNWANTED = ("ssl", "_ssl", "_hashlib", "bz2", "_bz2", "lzma", "_lzma")
# All but the first are imported when first used, and so are not seen by importing the agent.
BUNDLES = {
    "sudo": ("firebrick_guest.sudo",),
    "agent": ("firebrick_guest.main", "concurrent.futures.thread", "queue", "_strptime", "firebrick_guest.guard"),
}
# What the interpreter needs before it can read the bundle; os only marks the place of the library.
KEPT = ("os", "encodings", "encodings.aliases", "encodings.utf_8")
UNCHECKED_HASH = b"\x01\x00\x00\x00" + b"\x00" * 8


def compile_agent(prefix: str, sources: str) -> None:
    """Write agent.pyc, the bundles and a minimal library below `prefix`, which holds the full library."""
    for name in UNWANTED:
        sys.modules[name] = None  # type: ignore[assignment]
    sys.path.insert(0, sources)
    kept: dict[str, bytes] = {}
    # The small one first: what is loaded for it is among what is loaded for the agent.
    bundles = {name: _bundle(modules, kept) for name, modules in BUNDLES.items()}
    shutil.rmtree(f"{prefix}/lib/python3.11")
    for path, content in kept.items():
        os.makedirs(os.path.dirname(path), exist_ok=True)
        _write(path, content)
    for name, bundle in bundles.items():
        _write(f"{prefix}/{name}.modules", marshal.dumps(bundle))
    _write(f"{prefix}/agent.pyc", _pyc(f"{sources}/firebrick_guest/boot.py"))


def _bundle(modules: tuple[str, ...], kept: dict[str, bytes]) -> dict[str, tuple[bool, bytes]]:
    """Import `modules` and pack all that is loaded by now; what cannot be packed is added to `kept`."""
    for name in modules:
        importlib.import_module(name)
    bundle: dict[str, tuple[bool, bytes]] = {}
    for name, module in sorted(sys.modules.items()):
        path = getattr(module, "__file__", None) or ""
        if path.endswith(".so"):
            kept[path] = _read(path)
        elif name in KEPT:
            kept[path + "c"] = _pyc(path)
        elif path.endswith(".py") and name != "__main__" and getattr(module.__spec__, "origin", "") != "frozen":
            bundle[name] = (path.endswith("/__init__.py"), _compile(path))
    return bundle


def _compile(path: str) -> bytes:
    # Without docstrings and assertions: a tenth of the memory of the code.
    code = compile(_read(path), "/".join(path.split("/")[-2:]), "exec", dont_inherit=True, optimize=2)
    return marshal.dumps(code)


def _pyc(path: str) -> bytes:
    return MAGIC_NUMBER + UNCHECKED_HASH + _compile(path)


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _write(path: str, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)


if __name__ == "__main__":
    os.umask(0o022)
    compile_agent(sys.argv[1], sys.argv[2])
