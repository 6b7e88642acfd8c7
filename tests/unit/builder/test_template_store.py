"""Finished builds on disk."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from firebrick.builder.definition import load_definition
from firebrick.builder.template_store import LocalBuild, commit_build, image_path, list_builds
from firebrick.model.ids import BuildId
from firebrick.model.machine import Limits

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def write_build(templates_dir: Path, name: str, created_at: datetime = NOW) -> LocalBuild:
    build_id = BuildId(name)
    image = image_path(templates_dir, build_id)
    image.parent.mkdir(parents=True)
    image.write_bytes(b"image")
    limits = Limits(millicpu=1000, memory_mib=512, disk_mib=1024, process_count=100)
    build = LocalBuild(build_id=build_id, alias="base", key="k", image=image, limits=limits, created_at=created_at)
    commit_build(templates_dir, build, facts={"packages": {"bash": "5.2"}})
    return build


def test_a_committed_build_is_read_back(tmp_path: Path) -> None:
    """What was committed is listed, equal in every field, newest first."""
    old = write_build(tmp_path, "old", NOW - timedelta(days=1))
    new = write_build(tmp_path, "new")
    assert list_builds(tmp_path) == (new, old)


def test_half_written_builds_do_not_exist(tmp_path: Path) -> None:
    """No record, a broken record, or a record without its image: not listed."""
    (tmp_path / "making").mkdir()
    image_path(tmp_path, BuildId("making")).write_bytes(b"half")
    broken = write_build(tmp_path, "broken")
    (broken.image.parent / "build.json").write_text('{"build_id": "bro')
    write_build(tmp_path, "imageless").image.unlink()
    (tmp_path / ".lock").touch()
    assert list_builds(tmp_path) == ()


def test_no_directory_means_no_builds(tmp_path: Path) -> None:
    """Before the first build there is nothing to list."""
    assert list_builds(tmp_path / "absent") == ()


def test_the_shipped_definition_is_whole() -> None:
    """The base definition loads, names the packages that users count on, and has a key of its architecture."""
    definition = load_definition("base", architecture="x86_64")
    assert {"bash", "sudo", "python3", "nodejs", "npm", "git", "curl", "build-essential"} <= set(definition.packages)
    assert definition.finish.is_file()
    assert (definition.files / "etc/sudoers.d/user").is_file()
    assert definition.key != load_definition("base", architecture="aarch64").key
