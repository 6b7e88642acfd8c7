"""Whom the image's sudoers lets act as whom: the part of its language that says so for every host.

Understood: rules for users, %groups, #uids and ALL; runas lists; PASSWD and NOPASSWD; the command ALL; includes.
The last rule that fits decides, as in sudo. What is not understood (single commands, aliases, negations, netgroups,
other hosts) grants nothing. So whoever is let through may run everything as that user, and with any environment.
"""

import os
import stat

from firebrick_guest.users import User

MAX_FILE_BYTES = 1024 * 1024
MAX_DEPTH = 8


class Rule:
    """`users`: who. `runas_users`, `runas_groups`: as whom."""

    __slots__ = ("needs_password", "runas_groups", "runas_users", "users")

    def __init__(self, users: list[str], runas_users: list[str], runas_groups: list[str], needs_password: bool) -> None:
        self.users = users
        self.runas_users = runas_users
        self.runas_groups = runas_groups
        self.needs_password = needs_password

    def __str__(self) -> str:
        """As `sudo -l` shows it."""
        runas = " : ".join(", ".join(names) for names in (self.runas_users, self.runas_groups) if names)
        return f"({runas}) {'' if self.needs_password else 'NOPASSWD: '}ALL"

    def names(self, caller: User, group_names: list[str]) -> bool:
        fitting = {"ALL", caller.name, f"#{caller.uid}"}
        fitting.update(f"%{name}" for name in group_names)
        fitting.update(f"%#{gid}" for gid in caller.groups)
        return not fitting.isdisjoint(self.users)

    def allows(self, caller: User, target: User, group: str) -> bool:
        """Whether `caller`, whom it names, may act as `target` with the primary group `group` ("": its own)."""
        # Somebody who only asks for another group stays himself.
        is_self = bool(group) and target.uid == caller.uid
        if not is_self and {"ALL", target.name, f"#{target.uid}"}.isdisjoint(self.runas_users):
            return False
        return not group or not {"ALL", group}.isdisjoint(self.runas_groups)


def read_rules(etc: str) -> list[Rule]:
    """The rules of `etc`/sudoers in their order; none when it is missing or not its owner's alone. Never raises."""
    rules: list[Rule] = []
    for line in _lines(f"{etc}/sudoers", 0):
        rules += _rules(line)
    return rules


def _lines(path: str, depth: int) -> list[str]:
    """The file's lines and those of what it includes, comments and continuations resolved."""
    found: list[str] = []
    for line in _read(path).replace("\\\n", " ").split("\n"):
        words = line.split(None, 1)
        directive = words[0].lstrip("#@") if len(words) == 2 and words[0][0] in "#@" else ""
        if directive in ("include", "includedir") and depth < MAX_DEPTH:
            place = os.path.join(os.path.dirname(path), words[1].strip().strip('"'))
            for item in [place] if directive == "include" else _directory(place):
                found += _lines(item, depth + 1)
        else:
            found.append(_without_comment(line).strip())
    return found


def _directory(place: str) -> list[str]:
    try:
        names = sorted(os.listdir(place))
    except (OSError, ValueError):
        # Not there, or no path at all: a NUL is in it.
        return []
    # As sudo has it: what a package manager or an editor left behind is no rule.
    return [f"{place}/{name}" for name in names if "." not in name and not name.endswith("~")]


def _read(path: str) -> str:
    """Only a plain file of root's that nobody else may write is believed."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError):
        return ""
    with open(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
            return ""
        return file.read(MAX_FILE_BYTES).decode("utf-8", "surrogateescape")


def _without_comment(line: str) -> str:
    """A # begins a comment unless a digit follows: then it is a numeric id."""
    position = line.find("#")
    while position >= 0 and line[position + 1 : position + 2].isdigit():
        position = line.find("#", position + 1)
    return line if position < 0 else line[:position]


def _rules(line: str) -> list[Rule]:
    """What one line grants."""
    left, equals, right = line.partition("=")
    # No host but every host: we do not know by which name a rule might mean this one.
    who, _, host = " ".join(left.split()).rpartition(" ")
    if not equals or host != "ALL" or who.startswith("Defaults") or "_Alias" in left:
        return []
    runas_users, runas_groups, needs_password = ["root"], [], True
    right = right.strip()
    if right.startswith("("):
        runas, _, right = right[1:].partition(")")
        names, _, groups = runas.partition(":")
        runas_users, runas_groups = _list(names), _list(groups)
    *tags, command = (word.strip() for word in right.split(":"))
    for tag in tags:
        needs_password = {"PASSWD": True, "NOPASSWD": False}.get(tag, needs_password)
    return [Rule(_list(who), runas_users, runas_groups, needs_password)] if command == "ALL" else []


def _list(text: str) -> list[str]:
    """Names of a comma list; with a negation among them it is nobody's."""
    names = [name.strip().strip('"') for name in text.split(",") if name.strip()]
    return [] if any(name.startswith("!") for name in names) else names
