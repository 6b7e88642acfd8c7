"""Small decisions of the agent: users, paths, signatures, ends, permissions, logs."""

import os
import signal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firebrick_guest.auth import signature
from firebrick_guest.entry import permissions
from firebrick_guest.errors import ConnectError
from firebrick_guest.init import nanoseconds
from firebrick_guest.logs import EventLog
from firebrick_guest.process import end_event
from firebrick_guest.users import Accounts, User, resolve_path

USER = User("user", 1000, 1000, [1000], "/home/user")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("", "/home/user"),
        ("~", "/home/user"),
        ("~/a", "/home/user/a"),
        ("a/../b", "/home/user/b"),
        ("/x//y/./z/..", "/x/y"),
        ("//etc", "/etc"),
        ("../../../..", "/"),
    ],
)
def test_paths_are_meant_from_home(path: str, expected: str) -> None:
    """Empty, relative and `~` paths lead to the home, and every path is normal afterwards."""
    assert resolve_path(path, USER) == expected


def test_another_users_home_is_refused() -> None:
    """`~other` is not guessed at."""
    with pytest.raises(ConnectError):
        resolve_path("~root/x", USER)


@given(st.text().filter(lambda text: "\0" not in text and not text.startswith("~")))
def test_every_path_becomes_absolute_and_normal(path: str) -> None:
    """No path keeps `..`, `.` or an empty component."""
    resolved = resolve_path(path, USER)
    assert resolved.startswith("/")
    assert not {"..", "."} & set(resolved.split("/"))
    assert "//" not in resolved


def test_accounts_are_read_and_read_again(tmp_path: Path) -> None:
    """Users and their groups come from the account files, and a change is seen; broken lines are skipped."""
    (tmp_path / "passwd").write_text(f"root:x:0:0::/root:/bin/sh\nme:x:{os.geteuid()}:7::/h:/bin/sh\nbad:x:y:z\n")
    (tmp_path / "group").write_text("g:x:7:\nsudo:x:27:me, you\nbroken\n")
    accounts = Accounts(str(tmp_path))
    assert accounts.user("me").groups == [7, 27]
    assert accounts.group_name(27) == "sudo"
    assert accounts.user_name(4242) == "4242"
    with pytest.raises(ConnectError, match="invalid username: 'new'"):
        accounts.user("new")
    with (tmp_path / "passwd").open("a") as file:
        file.write(f"new:x:{os.geteuid()}:7::/new:/bin/sh\n")
    assert accounts.user("new").home == "/new"


def test_a_signature_binds_every_field() -> None:
    """Path, operation, user, token and expiry all change the signature."""
    fields = ("/a", "read", "user", "token", "99")
    signatures = {signature(*fields)}
    for position in range(5):
        changed = [field + "x" if index == position else field for index, field in enumerate(fields)]
        signatures.add(signature(*changed))
    signatures.add(signature("/a", "read", "user", "token", None))
    assert len(signatures) == 7


@pytest.mark.parametrize(
    ("wait_status", "expected"),
    [
        (0, {"exitCode": 0, "exited": True, "status": "exit status 0"}),
        (3 << 8, {"exitCode": 3, "exited": True, "status": "exit status 3", "error": "exit status 3"}),
        (
            int(signal.SIGKILL),
            {"exitCode": -1, "exited": False, "status": "signal: killed", "error": "signal: killed"},
        ),
    ],
)
def test_ends_are_told_as_e2b_tells_them(wait_status: int, expected: dict[str, object]) -> None:
    """An exit has its code, a signal has -1 and its name."""
    assert end_event(wait_status) == expected


@pytest.mark.parametrize(
    ("mode", "expected"),
    [(0o100644, "-rw-r--r--"), (0o040755, "drwxr-xr-x"), (0o120777, "Lrwxrwxrwx"), (0o041777, "dtrwxrwxrwx")],
)
def test_permissions_are_spelled_as_go_does(mode: int, expected: str) -> None:
    """Kind and special bits are letters in front of nine bits."""
    assert permissions(mode) == expected


def test_the_log_is_bounded_and_can_be_followed() -> None:
    """Reading from `next` on yields each kept entry once; old ones make room."""
    log = EventLog(count=3)
    for index in range(5):
        log.add("info", f"event {index}", n=index)
    first = log.read(0, 2)
    assert [entry["message"] for entry in first["entries"]] == ["event 2", "event 3"]  # type: ignore[attr-defined]
    assert first["next"] == 4
    assert log.read(4, 10)["next"] == 5
    assert log.read(5, 10) == {"entries": [], "next": 5}


def test_timestamps_havenanoseconds() -> None:
    """RFC 3339 in UTC is read exactly, nonsense refused."""
    assert nanoseconds("1970-01-02T00:00:01.000000005Z") == 86_401_000_000_005
    assert nanoseconds("1970-01-01T00:00:00+00:00") == 0
    for bad in ("now", "2024-01-01", "2024-01-01T00:00", "2024-13-01T00:00:00Z"):
        with pytest.raises(ConnectError):
            nanoseconds(bad)
