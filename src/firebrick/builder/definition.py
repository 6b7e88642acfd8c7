"""A shipped template's definition: data in `templates/<alias>/`, the same from a checkout and from a wheel."""

import hashlib
import tomllib
from dataclasses import dataclass
from pathlib import Path

import firebrick

# Part of every key: raise it when the way of building changes what comes out.
_RECIPE = "2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """What to build. `key` names the content: equal keys give equal templates, up to package versions."""

    alias: str
    suite: str
    packages: tuple[str, ...]
    path_excludes: tuple[str, ...]
    path_includes: tuple[str, ...]
    files: Path
    finish: Path
    key: str


def load_definition(alias: str, *, architecture: str) -> Definition:
    """Read a shipped definition. Raises OSError when it is not there."""
    directory = _definitions_dir() / alias
    raw = tomllib.loads((directory / "template.toml").read_text())
    return Definition(
        alias=raw["alias"],
        suite=raw["suite"],
        packages=tuple(raw["packages"]),
        path_excludes=tuple(raw["path_excludes"]),
        path_includes=tuple(raw["path_includes"]),
        files=directory / "files",
        finish=directory / "finish.sh",
        key=_key(directory, architecture),
    )


def _definitions_dir() -> Path:
    package = Path(firebrick.__file__).parent
    shipped = package / "shipped_templates"
    return shipped if shipped.is_dir() else package.parents[1] / "templates"


def _key(directory: Path, architecture: str) -> str:
    digest = hashlib.sha256(f"{_RECIPE}\n{architecture}\n".encode())
    for path in sorted(item for item in directory.rglob("*") if item.is_file()):
        digest.update(f"{path.relative_to(directory)}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
