"""What a guest has freed goes back to the host: a balloon inside takes memory for nobody, and lets go of it again.

A guest's kernel hands out first what was freed last, so a balloon that grows by steps meets at its beginning what the
host still has pages for. How much a step gained is seen from outside, as the monitor's own memory; no word of the
guest's is needed, and none would be had: of the statistics of Linux 6.12 the monitor's release 1.12 reads none.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from firebrick.log import get_log
from firebrick.model.ids import MachineId
from firebrick.runtimes.firecracker.api import ApiFailed, MachineApi

STEP_MIB = 32
LEAST_GAIN = 1 / 2
"""Of two steps. Where they gained less, the host has no pages for what is free beyond, or the guest needs it."""
WORTH_MIB = 64
SETTLED_MIB = 128
"""What a guest has when it has done nothing yet but start."""
MOST_MAPPINGS = 16_000
"""A guest that goes on from a save has its memory from a file, in which each hole is a mapping of its own. A process
has 65530 at most (vm.max_map_count); a step can make two for each page."""
DEADLINE_SHARE = 1 / 15
"""Of the time that a start may take: two seconds, where all is well."""
_POLL_S = 0.01

log = get_log("runtimes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What a machine takes of the host: memory of its own, and how many pieces the monitor has it in."""

    anonymous_mib: int
    mapping_count: int


def is_worth(now: Held, settled_mib: int) -> bool:
    """Whether to ask at all. `settled_mib`: what it had when nothing more was to be had."""
    return now.anonymous_mib >= settled_mib + WORTH_MIB and now.mapping_count <= MOST_MAPPINGS


def goes_on(seen: Sequence[Held]) -> bool:
    """Whether the next step may gain something, and does no harm. `seen`: before the first step and after each."""
    last = seen[-3:]
    gained_mib = last[0].anonymous_mib - last[-1].anonymous_mib
    return gained_mib >= LEAST_GAIN * STEP_MIB * (len(last) - 1) and last[-1].mapping_count <= MOST_MAPPINGS


class Balloons:
    """Of all machines of a driver. `start_timeout_s`: what a start may take here."""

    def __init__(self, *, start_timeout_s: float) -> None:
        self._deadline_s = start_timeout_s * DEADLINE_SHARE
        self._settled_mib: dict[MachineId, int] = {}

    async def take_back(self, machine_id: MachineId, api: MachineApi, pid: int) -> int:
        """How many bytes were gained of a running machine, whose balloon is empty or becomes so when this returns.

        Never fails: one without a balloon, or without a driver of it inside, gives nothing.
        """
        try:
            first = last = await asyncio.to_thread(_held, pid)
            if is_worth(first, self._settled_mib.get(machine_id, SETTLED_MIB)):
                try:
                    async with asyncio.timeout(self._deadline_s):
                        last = await self._grow(api, pid, first)
                except TimeoutError:
                    last = await asyncio.to_thread(_held, pid)
                finally:
                    await self.let_go(api)
                self._settled_mib[machine_id] = last.anonymous_mib
        except (ApiFailed, OSError, ValueError) as exc:
            log.debug("firecracker.not_given_back", machine_id=machine_id, reason=str(exc))
            return 0
        return max(0, first.anonymous_mib - last.anonymous_mib) << 20

    async def let_go(self, api: MachineApi) -> None:
        """The guest has all of its memory again, or soon. Idempotent. Raises ApiFailed: it has no balloon."""
        await api.balloon(0)
        try:
            async with asyncio.timeout(self._deadline_s):
                await _wait_size(api, most_mib=0)
        except TimeoutError:
            # Its kernel goes on with it.
            return

    def forget(self, machine_id: MachineId) -> None:
        self._settled_mib.pop(machine_id, None)

    async def _grow(self, api: MachineApi, pid: int, first: Held) -> Held:
        seen = [first]
        while goes_on(seen):
            size_mib = STEP_MIB * len(seen)
            await api.balloon(size_mib)
            await _wait_size(api, least_mib=size_mib)
            seen.append(await asyncio.to_thread(_held, pid))
        return seen[-1]


async def _wait_size(api: MachineApi, *, least_mib: int = 0, most_mib: int = 1 << 32) -> None:
    while True:
        if least_mib <= await api.balloon_mib() <= most_mib:
            return
        await asyncio.sleep(_POLL_S)


def _held(pid: int) -> Held:
    """Raises OSError, ValueError: it is gone."""
    with Path(f"/proc/{pid}/maps").open() as maps:
        mapping_count = sum(1 for _ in maps)
    words = Path(f"/proc/{pid}/status").read_text().split()
    return Held(anonymous_mib=int(words[words.index("RssAnon:") + 1]) >> 10, mapping_count=mapping_count)
