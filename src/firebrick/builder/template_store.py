"""Builds of templates on this node: `<templates_dir>/<build_id>/rootfs.erofs` and `build.json`, written last.

A directory without a readable build.json is half-written and does not exist for anybody.
"""

import json
import os
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from firebrick.model.ids import BuildId
from firebrick.model.machine import Limits

IMAGE_NAME = "rootfs.erofs"
RECORD_NAME = "build.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalBuild:
    """One finished build. `key` is its definition's."""

    build_id: BuildId
    alias: str
    key: str
    image: Path
    limits: Limits
    created_at: datetime


def image_path(templates_dir: Path, build_id: BuildId) -> Path:
    """Where that build's image is, or will be."""
    return templates_dir / build_id / IMAGE_NAME


def list_builds(templates_dir: Path) -> tuple[LocalBuild, ...]:
    """All finished builds, newest first."""
    if not templates_dir.is_dir():
        return ()
    found = [build for item in templates_dir.iterdir() if (build := _load(item)) is not None]
    return tuple(sorted(found, key=lambda build: build.created_at, reverse=True))


def commit_build(templates_dir: Path, build: LocalBuild, *, facts: dict[str, Any]) -> None:
    """Make a build exist: its image is on disk before its record is. Raises OSError.

    `facts` are for people and tools that read build.json: package versions, sizes.
    """
    directory = templates_dir / build.build_id
    record = {
        "build_id": build.build_id,
        "template": build.alias,
        "key": build.key,
        "created_at": build.created_at.isoformat(),
        "limits": asdict(build.limits),
        **facts,
    }
    _sync(directory / IMAGE_NAME)
    draft = directory / f".{RECORD_NAME}"
    draft.write_text(json.dumps(record, indent=1) + "\n")
    _sync(draft)
    draft.rename(directory / RECORD_NAME)
    _sync(directory)
    _sync(templates_dir)


def _load(directory: Path) -> LocalBuild | None:
    image = directory / IMAGE_NAME
    try:
        record = json.loads((directory / RECORD_NAME).read_text())
        if not image.is_file():
            return None
        return LocalBuild(
            build_id=BuildId(record["build_id"]),
            alias=record["template"],
            key=record["key"],
            image=image,
            limits=Limits(**record["limits"]),
            created_at=datetime.fromisoformat(record["created_at"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
