"""Users of the machine, and paths as a user means them.

/etc/passwd and /etc/group are read here and not through the C library, whose name service could load plug-ins
of the image's own C library into our process.
"""

import os
from errno import ENOTDIR
from posixpath import join, normpath

from firebrick_guest.errors import ConnectError


class User:
    """An account. `groups` are all its groups, the primary one first."""

    __slots__ = ("gid", "groups", "home", "name", "shell", "uid")

    def __init__(self, name: str, uid: int, gid: int, groups: list[int], home: str, shell: str = "/bin/sh") -> None:
        self.name = name
        self.uid = uid
        self.gid = gid
        self.groups = groups
        self.home = home
        self.shell = shell


class Accounts:
    """Reads the account files again only when they changed."""

    def __init__(self, etc: str = "/etc") -> None:
        self._passwd = f"{etc}/passwd"
        self._group = f"{etc}/group"
        self._stamp: tuple[object, ...] = ()
        self._users: dict[str, User] = {}
        self._user_names: dict[int, str] = {}
        self._group_names: dict[int, str] = {}

    def user(self, name: str) -> User:
        """Raises ConnectError `unauthenticated`: no such user."""
        self._refresh()
        found = self._users.get(name)
        if found is None:
            raise ConnectError("unauthenticated", f"invalid username: '{name}'")
        return self.permitted(found)

    def permitted(self, found: User) -> User:
        """Raises ConnectError `permission_denied`: we do not run as root, and may be nobody else."""
        if os.geteuid() not in (0, found.uid):
            raise ConnectError("permission_denied", f"the agent may not act as '{found.name}': it does not run as root")
        return found

    def find(self, name: str) -> User | None:
        """By name, or by `#uid`; whether we may act as that user or not."""
        self._refresh()
        uid = name[1:] if name.startswith("#") else ""
        return self._users.get(self._user_names.get(int(uid), "") if uid.isascii() and uid.isdigit() else name)

    def gid_of(self, name: str) -> int | None:
        """Of a group's name, or of `#gid`."""
        self._refresh()
        if name.startswith("#") and name[1:].isascii() and name[1:].isdigit():
            return int(name[1:]) if int(name[1:]) in self._group_names else None
        return next((gid for gid, known in self._group_names.items() if known == name), None)

    def user_name(self, uid: int) -> str:
        self._refresh()
        return self._user_names.get(uid, str(uid))

    def group_name(self, gid: int) -> str:
        self._refresh()
        return self._group_names.get(gid, str(gid))

    def _refresh(self) -> None:
        stamp = (_stamp(self._passwd), _stamp(self._group))
        if stamp == self._stamp:
            return
        self._stamp = stamp
        members: dict[str, list[int]] = {}
        self._users, self._user_names, self._group_names = {}, {}, {}
        for name, _, gid, people in _rows(self._group, 4):
            if gid.isascii() and gid.isdigit():
                self._group_names.setdefault(int(gid), name)
                for person in people.split(","):
                    members.setdefault(person.strip(), []).append(int(gid))
        for name, _, uid, gid, _, home, shell in _rows(self._passwd, 7):
            if name and uid.isascii() and uid.isdigit() and gid.isascii() and gid.isdigit():
                groups = [int(gid), *(other for other in members.get(name, []) if other != int(gid))]
                self._users.setdefault(name, User(name, int(uid), int(gid), groups, home or "/", shell or "/bin/sh"))
                self._user_names.setdefault(int(uid), name)


def _stamp(path: str) -> object:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _rows(path: str, width: int) -> list[list[str]]:
    try:
        with open(path, "rb") as file:
            lines = file.read(4 * 1024 * 1024).decode("utf-8", "surrogateescape").split("\n")
    except OSError:
        return []
    rows = [line.split(":") for line in lines if line and not line.startswith("#")]
    return [row for row in rows if len(row) == width]


def resolve_path(path: str, user: User, default: str = "") -> str:
    """The absolute path a user means: "" is `default` or the home, `~` the home, and relative is from the home.

    Raises ConnectError `invalid_argument` for another user's `~name`.
    """
    if path == "":
        path = default or user.home
    if path == "~" or path.startswith("~/"):
        path = user.home + path[1:]
    elif path.startswith("~"):
        raise ConnectError("invalid_argument", "cannot expand another user's home directory in a path")
    # normpath keeps two leading slashes, as POSIX allows; to Linux they are one.
    return "/" + normpath(join(user.home, path)).lstrip("/")


def make_parents(path: str, user: User) -> bool:
    """Create the missing directories above and including `path`, 0755 and owned by `user`; whether there were any.

    Raises OSError.
    """
    missing = []
    while path not in ("", "/") and not os.path.lexists(path):
        missing.append(path)
        path = path.rpartition("/")[0]
    if not os.path.isdir(path or "/"):
        raise NotADirectoryError(ENOTDIR, "path is a file", path)
    for directory in reversed(missing):
        try:
            os.mkdir(directory, 0o755)
        except FileExistsError:
            continue
        os.chown(directory, user.uid, user.gid)
    return bool(missing)
