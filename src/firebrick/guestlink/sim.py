"""The guest link in memory: guests that answer at once, unless they are told to fail or stall."""

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from errno import ENOSPC
from pathlib import Path

from firebrick.guestlink.base import Dial, GuestInit, GuestLogEntry, GuestRenewal, GuestSilent


@dataclass(slots=True)
class SimGuest:
    """What one simulated guest agent knows. `init_count` tells how often it was given settings; `on_flush` is what a
    flush does; `memory` is what its processes hold, `randomness` what its kernel draws from."""

    settings: GuestInit | None = None
    init_count: int = 0
    is_held: bool = False
    memory: dict[str, str] = field(default_factory=dict)
    randomness: str = ""
    on_flush: Callable[[], None] = lambda: None
    files: dict[str, str] = field(default_factory=dict)
    entries: list[GuestLogEntry] = field(default_factory=list)


class SimGuests:
    """All guests of one simulated node, by control token. `silent_*_count`: so many next calls go unanswered;
    `saved`: what runs from saved memory and was not renewed yet, by the token in that memory; `full`: the disk that an
    export goes to; while `boots` is cleared no guest becomes ready."""

    def __init__(self) -> None:
        self.guests: dict[str, SimGuest] = {}
        self.silent_ready_count = 0
        self.silent_init_count = 0
        self.silent_hold_count = 0
        self.silent_renew_count = 0
        self.saved: dict[str, str] = {}
        self.full = False
        self.boots = asyncio.Event()
        self.boots.set()

    def link(self, address: str, control_token: str, *, dial: Dial | None = None) -> "SimGuestLink":
        return SimGuestLink(self, control_token)

    def dump(self, env: Mapping[str, str]) -> str:
        """The memory of the guest that was started with this environment."""
        token = next(value for value in env.values() if value in self.guests)
        guest = self.guests[token]
        return json.dumps(
            {
                "token": token,
                "sandbox": guest.settings.sandbox_id if guest.settings else "",
                "held": guest.is_held,
                "memory": guest.memory,
                "randomness": guest.randomness,
            }
        )

    def load(self, text: str) -> None:
        """A machine goes on from such memory."""
        self.saved[json.loads(text)["token"]] = text


class SimGuestLink:
    """`GuestLink` to one simulated guest."""

    def __init__(self, world: SimGuests, control_token: str) -> None:
        self._world = world
        self._token = control_token

    @property
    def guest(self) -> SimGuest:
        return self._world.guests.setdefault(self._token, SimGuest())

    async def wait_ready(self, *, timeout_s: float) -> None:
        if self._world.silent_ready_count > 0:
            self._world.silent_ready_count -= 1
            raise GuestSilent(f"The simulated guest did not become ready within {timeout_s:g} s.")
        await self._world.boots.wait()

    async def init(self, settings: GuestInit) -> None:
        if self._world.silent_init_count > 0:
            self._world.silent_init_count -= 1
            raise GuestSilent("The simulated guest did not take its settings.")
        guest = self.guest
        guest.settings = settings
        guest.init_count += 1
        guest.is_held = False
        guest.entries.append(
            GuestLogEntry(
                seq=len(guest.entries),
                timestamp_us=int(settings.timestamp.timestamp() * 1_000_000),
                level="info",
                message="settings taken",
                fields={"sandboxID": settings.sandbox_id},
            )
        )

    async def logs(self, since: int, *, timeout_s: float) -> tuple[tuple[GuestLogEntry, ...], int]:
        entries = tuple(self.guest.entries[since:])
        return entries, since + len(entries)

    async def export_disk(self, target: Path, *, since_s: float, most_bytes: int, holds: bool) -> None:
        if self._world.full:
            raise OSError(ENOSPC, "No space left on device")
        self.guest.is_held = holds
        target.write_text(json.dumps(self.guest.files))

    async def import_disk(self, source: Path) -> None:
        self.guest.files = json.loads(source.read_text())

    async def flush(self, *, timeout_s: float) -> None:
        self.guest.on_flush()

    async def hold(self, *, for_s: float, timeout_s: float) -> None:
        if self._world.silent_hold_count > 0:
            self._world.silent_hold_count -= 1
            raise GuestSilent("The simulated guest did not hold its processes.")
        self.guest.is_held = True
        await self.flush(timeout_s=timeout_s)

    async def renew(self, renewal: GuestRenewal, *, timeout_s: float) -> None:
        if self._world.silent_renew_count > 0:
            self._world.silent_renew_count -= 1
            raise GuestSilent("The simulated guest was not renewed.")
        saved = json.loads(self._world.saved[self._token])
        if not saved["held"]:
            raise GuestSilent("Processes of the simulated guest ran on before it was renewed.")
        guest = self._world.guests[renewal.control_token] = SimGuest(is_held=True, memory=saved["memory"])
        guest.randomness = saved["randomness"] + renewal.entropy.hex()

    async def go_on(self) -> None:
        self.guest.is_held = False

    def close(self) -> None:
        """Nothing is held."""
