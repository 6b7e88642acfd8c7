"""The guest link seam: what the node may say to one machine's guest agent.

Nothing that comes back is trusted: sizes are bounded, types are checked, and every call has a deadline. A
guest that lies, stalls or floods costs its own sandbox an error and the node nothing.
"""

import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol

from firebrick.model.errors import Unavailable
from firebrick.model.ids import SandboxId, TemplateId

AGENT_PORT = 49983
CONTROL_HEADER = "X-Firebrick-Control"
DEFAULT_USER = "user"
MAX_LOG_ENTRIES = 500
"""Asked for in one call; a guest that answers with more is refused."""


class GuestSilent(Unavailable):
    """The guest agent did not answer in time, or its answer made no sense."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestInit:
    """What a machine learns when a sandbox takes it. An empty `access_token` leaves the agent's API open."""

    sandbox_id: SandboxId
    template_id: TemplateId
    timestamp: datetime
    hostname: str
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    metadata: Mapping[str, str] = field(default_factory=dict)
    access_token: str = field(default="", repr=False)
    default_user: str = DEFAULT_USER
    default_workdir: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestRenewal:
    """What a machine must learn that goes on from saved memory. `control_token`: its own from now on; `entropy`: 64 to
    512 bytes of the host's that nothing else is ever given; `is_other`: another sandbox goes on than was saved."""

    control_token: str = field(repr=False)
    timestamp: datetime
    entropy: bytes = field(repr=False)
    is_other: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestLogEntry:
    """One event of the guest agent's own log; `seq` grows by one for each."""

    seq: int
    timestamp_us: int
    level: str
    message: str
    fields: Mapping[str, str]


class GuestLink(Protocol):
    async def wait_ready(self, *, timeout_s: float) -> None:
        """Return as soon as the agent answers. Raises GuestSilent after `timeout_s`."""
        ...

    async def init(self, settings: GuestInit) -> None:
        """Hand over a sandbox's settings. Idempotent. Raises GuestSilent."""
        ...

    async def logs(self, since: int, *, timeout_s: float) -> tuple[tuple[GuestLogEntry, ...], int]:
        """Entries from sequence number `since` on, oldest first, and the number to ask for next.
        Raises GuestSilent."""
        ...

    async def export_disk(self, target: Path, *, since_s: float, most_bytes: int, holds: bool) -> None:
        """Write all that the machine has written to a new file, as an archive that only `import_disk` reads; it is
        flushed. Other processes inside are stopped meanwhile, and with `holds` until `go_on`, an `init` or half a
        minute later. `since_s` (since 1970) is when the image was made: what is older was not written.

        Raises: GuestSilent — no answer, or more than `most_bytes`; OSError — the host's disk refuses.
        """
        ...

    async def import_disk(self, source: Path) -> None:
        """Bring a fresh machine's disk to what `export_disk` saw. Raises GuestSilent."""
        ...

    async def flush(self, *, timeout_s: float) -> None:
        """Bring what was written inside to the machine's disk, where it has a kernel of its own. Raises GuestSilent."""
        ...

    async def hold(self, *, for_s: float, timeout_s: float) -> None:
        """Stop all other processes inside, then `flush`: afterwards nothing is written. They stay stopped until
        `go_on`, an `init`, or `for_s` that the machine has lived through. Raises GuestSilent; they may be stopped."""
        ...

    async def renew(self, renewal: GuestRenewal, *, timeout_s: float) -> None:
        """Give a machine that goes on from saved memory what it must not share: control token, randomness, time. Of
        another sandbox than was saved it forgets all settings. The link is asked with the token that was saved and is
        of no use afterwards. Raises GuestSilent: it is not what it must be, and nothing inside may go on; also when its
        processes were not held, so that they may have run already."""
        ...

    async def go_on(self) -> None:
        """Let processes run that an export or `hold` stopped. Never fails: they would go on by themselves."""
        ...

    def close(self) -> None:
        """Drop the connection, if one is held. The link may be used again."""
        ...


Dial = Callable[[], Awaitable[socket.socket]]
"""Another way to the agent than its address: a connected stream. Raises OSError; FileNotFoundError: the machine has no
such way."""


class GuestLinks(Protocol):
    def __call__(self, address: str, control_token: str, *, dial: Dial | None = None) -> GuestLink:
        """The link to the agent at an address, or by `dial` where the machine has that."""
        ...
