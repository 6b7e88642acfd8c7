"""Our own sudo, for machines whose runtime ignores setuid programs: its command line, its environment, who may."""

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from firebrick_guest.sudo_env import SECURE_PATH, command_env
from firebrick_guest.sudo_options import UsageError, parse
from firebrick_guest.sudo_wire import Request, decode
from firebrick_guest.sudoers import Rule, read_rules
from firebrick_guest.users import User

ROOT = User("root", 0, 0, [0], "/root", "/bin/bash")
USER = User("user", 1000, 1000, [1000, 27], "/home/user", "/bin/bash")
BOB = User("bob", 1001, 1001, [1001], "/home/bob", "/bin/bash")
NAMES = {1000: "user", 27: "sudo", 1001: "bob"}

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=12)
NAMES_OF_VARIABLES = TEXT.filter(lambda name: name != "" and "=" not in name)


def may(rules: list[Rule], caller: User, target: User = ROOT, group: str = "") -> bool | None:
    """True, False, or None when a password would be needed."""
    names = [NAMES[gid] for gid in caller.groups]
    fitting = [rule for rule in rules if rule.names(caller, names) and rule.allows(caller, target, group)]
    return not fitting[-1].needs_password or None if fitting else False


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    (tmp_path / "sudoers.d").mkdir()
    return tmp_path


def rules_of(etc: Path, text: str) -> list[Rule]:
    (etc / "sudoers").write_text(text)
    return read_rules(str(etc))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("user ALL=(ALL:ALL) NOPASSWD: ALL", True),
        ("user\tALL = ( ALL : ALL )  NOPASSWD:ALL  # why", True),
        ("%sudo ALL=(ALL) NOPASSWD: ALL", True),
        ("%#27 ALL=(ALL) NOPASSWD: ALL", True),
        ("#1000 ALL=(ALL) NOPASSWD: ALL", True),
        ("bob, user \\\n ALL=(root) NOPASSWD: SETENV: ALL", True),
        ("ALL ALL=NOPASSWD: ALL", True),
        ("%sudo ALL=(ALL:ALL) ALL", None),
        ("user ALL=(ALL) NOPASSWD: ALL\n%sudo ALL=(ALL) ALL", None),
        ("%sudo ALL=(ALL) ALL\nuser ALL=(ALL) NOPASSWD: ALL", True),
        ("", False),
        ("bob ALL=(ALL) NOPASSWD: ALL", False),
        ("# user ALL=(ALL) NOPASSWD: ALL", False),
        ("user elsewhere=(ALL) NOPASSWD: ALL", False),
        ("user ALL=(bob) NOPASSWD: ALL", False),
        ("user ALL=(ALL, !root) NOPASSWD: ALL", False),
        ("user, !user ALL=(ALL) NOPASSWD: ALL", False),
        ("user ALL=(ALL) NOPASSWD: /usr/bin/id", False),
        ("user ALL=(ALL) NOPASSWD: ALL, !/usr/bin/su", False),
        ("User_Alias ALL=user", False),
        ("Defaults ALL=user", False),
    ],
)
def test_sudoers_decides(etc: Path, text: str, expected: bool | None) -> None:
    """The last rule that fits counts, a password is a password, and what is not understood grants nothing."""
    assert may(rules_of(etc, text), USER) is expected


def test_another_user_and_another_group_are_asked_for_apart(etc: Path) -> None:
    """`(bob)` is no way to root; a group needs a runas list with groups."""
    rules = rules_of(etc, "user ALL=(bob) NOPASSWD: ALL")
    assert may(rules, USER, BOB)
    assert not may(rules, USER, BOB, "users")
    assert may(rules_of(etc, "user ALL=(bob : users) NOPASSWD: ALL"), USER, USER, "users")


def test_included_files_count_as_sudo_counts_them(etc: Path) -> None:
    """In order of name; no backups; only files that nobody else may write; a circle ends."""
    line = "user ALL=(ALL) NOPASSWD: ALL\n"
    for name, mode in (("user~", 0o440), ("a.bak", 0o440), ("open", 0o666)):
        (etc / "sudoers.d" / name).write_text(line)
        (etc / "sudoers.d" / name).chmod(mode)
    main = "@includedir sudoers.d\n#include sudoers\n"
    assert may(rules_of(etc, main), USER) is False
    (etc / "sudoers.d" / "user").write_text(line)
    assert may(rules_of(etc, main), USER) is True
    (etc / "sudoers").chmod(0o666)
    assert read_rules(str(etc)) == []


@example("@include a\0b")
@example("@includedir a\0b")
@example("@")
@settings(deadline=None)  # it writes a file
@given(st.text(max_size=200))
def test_no_text_breaks_the_reading_of_sudoers(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    """Whatever a file holds, there is an answer."""
    etc = tmp_path_factory.getbasetemp()
    (etc / "sudoers").write_text(text)
    assert isinstance(read_rules(str(etc)), list)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("id -u", ("", "", "", ["id", "-u"])),
        ("-u bob -g users id", ("", "bob", "users", ["id"])),
        ("-ubob -n -- -x", ("", "bob", "", ["-x"])),
        ("-nEHu bob id", ("EH", "bob", "", ["id"])),
        ("--user=bob --group users --login", ("i", "bob", "users", [])),
        ("--preserve-env id", ("E", "", "", ["id"])),
        ("-s", ("s", "", "", [])),
        ("-l", ("l", "", "", [])),
        ("-S -p x -C 3 -b id", ("", "", "", None)),
    ],
)
def test_options_are_read_as_sudo_reads_them(line: str, expected: tuple[str, str, str, list[str] | None]) -> None:
    """Short ones may be joined and carry their value, long ones be shortened; -- ends them."""
    if expected[3] is None:
        assert parse(["-S", "-p", "x", "-b", "id"]).letters == "b"
        return
    options = parse(line.split())
    assert (options.letters, options.user, options.group, options.command) == expected


def test_variables_before_the_command_are_assignments() -> None:
    """Also between options; behind the command they are its arguments."""
    options = parse(["A=1", "-n", "B=x=y", "env", "C=3"])
    assert (options.assignments, options.command) == ({"A": "1", "B": "x=y"}, ["env", "C=3"])
    assert parse(["./a=b"]).command == ["./a=b"]


@pytest.mark.parametrize("line", ["", "-x id", "--bogus id", "-u", "-i -s", "-i -E", "-K id", "-e file", "-R / id"])
def test_what_is_not_understood_is_refused(line: str) -> None:
    """No option is silently dropped."""
    with pytest.raises(UsageError):
        parse(line.split())


def test_the_environment_is_reset() -> None:
    """Only harmless variables of the caller stay; the rest is the target's."""
    own = {"PATH": "/evil", "LANG": "C.UTF-8", "LC_ALL": "../x", "FOO": "1", "LD_PRELOAD": "x", "HOME": "/home/user"}
    env = command_env(own, USER, ROOT, parse(["A=1", "env"]), "/usr/bin/env")
    assert env == {
        "PATH": SECURE_PATH, "LANG": "C.UTF-8", "HOME": "/root", "SHELL": "/bin/bash", "TERM": "unknown",
        "MAIL": "/var/mail/root", "LOGNAME": "root", "USER": "root", "A": "1",
        "SUDO_COMMAND": "/usr/bin/env", "SUDO_USER": "user", "SUDO_UID": "1000", "SUDO_GID": "1000",
    }  # fmt: skip


def test_the_environment_can_be_kept() -> None:
    """-E keeps all but what makes programs run other code; a list keeps what it names; -H moves home."""
    own = {"PATH": "/p", "FOO": "1", "BAR": "2", "LD_PRELOAD": "x", "HOME": "/home/user", "f": "() { :; }"}
    env = command_env(own, USER, ROOT, parse(["-E", "env"]), "env")
    assert (env["FOO"], env["HOME"], env["PATH"]) == ("1", "/home/user", SECURE_PATH)
    assert not {"LD_PRELOAD", "f", "MAIL"} & set(env)
    assert command_env(own, USER, ROOT, parse(["-E", "-H", "env"]), "env")["HOME"] == "/root"
    env = command_env(own, USER, ROOT, parse(["--preserve-env=FOO,HOME", "env"]), "env")
    assert (env["FOO"], env["HOME"]) == ("1", "/home/user")
    assert "BAR" not in env


@given(st.lists(TEXT, min_size=1, max_size=4), st.dictionaries(NAMES_OF_VARIABLES, TEXT))
def test_a_request_arrives_as_it_was_sent(argv: list[str], env: dict[str, str]) -> None:
    """Whatever arguments and variables hold."""
    sent = Request("run", "root", "", "/bin/x", argv, env, "/d", 0o077, True, False, True)
    got = decode(sent.encode())
    assert all(getattr(got, name) == getattr(sent, name) for name in Request.__slots__)


@given(st.binary(max_size=200))
def test_nonsense_is_no_request(payload: bytes) -> None:
    """It is refused by ValueError, and by nothing else."""
    try:
        decode(payload)
    except ValueError:
        return
