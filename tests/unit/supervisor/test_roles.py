"""Roles, their pid files, and an instance's credentials."""

import json
import os
import stat
from pathlib import Path

import pytest

from firebrick.config import Config
from firebrick.linux.process import ProcessRef, process_ref
from firebrick.model.errors import Forbidden
from firebrick.supervisor.lifecycle import credentials, ensure_api_key
from firebrick.supervisor.roles import Role, pid_file, reachable_host, running, write_pid_file


def test_a_role_is_running_only_as_the_very_process(tmp_path: Path) -> None:
    """A pid file of a process that ended, of a reused pid, or of garbage means: not running."""
    config = Config(data_dir=tmp_path)
    assert running(config, Role.EDGE) is None
    me = process_ref(os.getpid())
    assert me is not None
    write_pid_file(config, Role.EDGE, me)
    assert running(config, Role.EDGE) == me
    write_pid_file(config, Role.EDGE, ProcessRef(pid=me.pid, start_ticks=me.start_ticks + 1))
    assert running(config, Role.EDGE) is None
    pid_file(config, Role.EDGE).write_text("{")
    assert running(config, Role.EDGE) is None


def test_a_pid_file_needs_no_room_but_its_former_own(tmp_path: Path) -> None:
    """On a full disk a role that is started again is still found; only the first start needs room."""
    config = Config(data_dir=tmp_path)
    me = process_ref(os.getpid())
    assert me is not None
    write_pid_file(config, Role.EDGE, ProcessRef(pid=2**31, start_ticks=10**15))
    for role in (Role.EDGE, Role.NODE):
        pid_file(config, role).with_suffix(".new").symlink_to("/dev/full")
    write_pid_file(config, Role.EDGE, me)
    assert running(config, Role.EDGE) == me
    with pytest.raises(OSError, match="No such file"):
        write_pid_file(config, Role.NODE, me)


def test_the_first_key_is_minted_once_and_kept_private(tmp_path: Path) -> None:
    """The key has the form that E2B's older clients insist on, survives a restart, and only its owner reads it."""
    config = Config(data_dir=tmp_path / "data", api_port=4000, edge_port=4002, host="0.0.0.0")
    assert credentials(config) is None
    key = ensure_api_key(config)
    assert key.startswith("e2b_")
    assert len(bytes.fromhex(key.removeprefix("e2b_"))) == 20
    assert ensure_api_key(config) == key
    assert stat.S_IMODE(config.credentials_file.stat().st_mode) == 0o600
    found = credentials(config)
    assert found is not None
    assert found.as_env() == {
        "E2B_API_URL": "http://127.0.0.1:4000",
        "E2B_SANDBOX_URL": "http://127.0.0.1:4002",
        "E2B_API_KEY": key,
    }


def test_a_half_written_key_file_is_replaced(tmp_path: Path) -> None:
    """A credentials file without a key counts as none."""
    config = Config(data_dir=tmp_path)
    config.credentials_file.write_text(json.dumps({}))
    assert credentials(config) is None
    assert ensure_api_key(config)


def test_every_address_means_this_machine() -> None:
    """A server that listens everywhere is reached on loopback."""
    assert reachable_host("0.0.0.0") == "127.0.0.1"
    assert reachable_host("192.0.2.7") == "192.0.2.7"


def test_a_directory_of_another_user_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not root, or not the owner: what to do instead of a traceback."""

    def refuse(*args: object) -> int:
        raise PermissionError

    monkeypatch.setattr("os.open", refuse)
    with pytest.raises(Forbidden, match="FIREBRICK_DATA_DIR"):
        ensure_api_key(Config(data_dir=tmp_path))
