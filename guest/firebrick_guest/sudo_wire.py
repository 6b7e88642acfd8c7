"""What `sudo` inside a machine and the guest agent say to each other, over a stream of a local socket.

    sudo  ─▶ size, with descriptors 0, 1, 2 and the directory ─▶ the request ─▶ numbers of signals to pass on
    agent ─▶ `refused <why>` | `allowed <rule>…` | `failed <errno> <stage>` | `started`, later `ended <wait status>`

Each answer is a line.
"""

DESCRIPTOR_COUNT = 4
MAX_REQUEST_BYTES = 8 * 1024 * 1024
SIZE_BYTES = 4


class Request:
    """A command to run, or only the question whether it may be run.

    Attributes:
        action: `run` or `ask`.
        group: primary group that was asked for, "" for the target's own.
        directory: where to go first, "" to stay. With `stays_if_gone` a missing one does not matter.
        has_terminal: descriptor 0 is a terminal of its own, which the command shall control.
        is_background: it goes on when the caller is gone.
        program: path to execute; `argv` and `env` are handed over as they are.
    """

    __slots__ = ("action", "argv", "directory", "env", "group", "has_terminal", "is_background", "program",
                 "stays_if_gone", "target", "umask")  # fmt: skip

    def __init__(
        self, action: str, target: str, group: str, program: str, argv: list[str], env: dict[str, str],
        directory: str = "", umask: int = 0o022, has_terminal: bool = False, is_background: bool = False,
        stays_if_gone: bool = False,
    ) -> None:  # fmt: skip
        self.action = action
        self.target = target
        self.group = group
        self.program = program
        self.argv = argv
        self.env = env
        self.directory = directory
        self.umask = umask
        self.has_terminal = has_terminal
        self.is_background = is_background
        self.stays_if_gone = stays_if_gone

    def encode(self) -> bytes:
        flags = f"{'t' * self.has_terminal}{'b' * self.is_background}{'h' * self.stays_if_gone}"
        fields = [self.action, self.target, self.group, self.program, self.directory, f"{self.umask:o}", flags]
        fields += [str(len(self.argv)), *self.argv, *(f"{name}={value}" for name, value in self.env.items())]
        # No argument and no variable can hold a NUL.
        return "\0".join(fields).encode("utf-8", "surrogateescape")


def decode(payload: bytes) -> Request:
    """Raises ValueError for what is no request."""
    fields = payload.decode("utf-8", "surrogateescape").split("\0")
    action, target, group, program, directory, umask, flags, count, *rest = fields
    if action not in ("run", "ask") or not 0 < int(count) <= len(rest) or not program.startswith("/"):
        raise ValueError("no request")
    env = dict(item.split("=", 1) for item in rest[int(count) :] if "=" in item[1:])
    return Request(
        action, target, group, program, rest[: int(count)], env, directory, int(umask, 8) & 0o777,
        "t" in flags, "b" in flags, "h" in flags,
    )  # fmt: skip
