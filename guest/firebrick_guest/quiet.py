"""Let everything else in the machine stand still for a moment, and go on as it was.

By SIGSTOP to every process but ourselves, which only PID 1 does: elsewhere they are not ours. One that its user had
stopped stays stopped. Children go on before their parents, so that no shell sees a job of its own stopped.
"""

import asyncio
import math
import os
import signal

HOLD_S = 30.0
"""Nobody needs longer between an export and the freeze; then a host that forgot us must not keep them stopped."""

TICK_S = 1.0
ROUNDS = 20


class Quiet:
    def __init__(self) -> None:
        self._stopped: dict[int, int] = {}
        """Parent by process."""
        self._timer: asyncio.TimerHandle | None = None
        self._ticks_left = 0

    @property
    def is_held(self) -> bool:
        return self._timer is not None

    def stop(self) -> None:
        """Until `go_on`. Processes that are born meanwhile are found by looking again."""
        self._cancel()
        for _ in range(ROUNDS):
            running = [(pid, parent) for pid, parent, state in processes() if state not in "TtZX"]
            fresh = [(pid, parent) for pid, parent in running if pid not in self._stopped]
            for pid, parent in fresh:
                try:
                    os.kill(pid, signal.SIGSTOP)
                except ProcessLookupError:
                    continue
                self._stopped[pid] = parent
            if not fresh:
                return

    def hold(self, for_s: float = HOLD_S) -> None:
        """Stay stopped until `go_on`, or for so long.

        Counted in ticks, each of which we must live to see: a clock that jumps, because the machine stood still or went
        on from saved memory, brings the end nearer by one of them at most.
        """
        self._cancel()
        self._ticks_left = math.ceil(for_s / TICK_S)
        self._timer = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def _tick(self) -> None:
        self._ticks_left -= 1
        if self._ticks_left <= 0:
            self.go_on()
        else:
            self._timer = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def go_on(self) -> None:
        """Idempotent."""
        self._cancel()
        stopped, self._stopped = self._stopped, {}
        for pid in sorted(stopped, key=lambda pid: -_depth(pid, stopped)):
            try:
                os.kill(pid, signal.SIGCONT)
            except ProcessLookupError:
                continue

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _depth(pid: int, parents: dict[int, int]) -> int:
    depth = 0
    while pid in parents and depth < len(parents):
        pid = parents[pid]
        depth += 1
    return depth


def processes() -> list[tuple[int, int, str]]:
    """(process, parent, state) of every other process of the machine; none when it is not ours."""
    if os.getpid() != 1:
        return []
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or name == "1":
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                # The command's name may hold spaces and parentheses: fields count from its last ")".
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            continue
        found.append((int(name), int(fields[1]), fields[0].decode()))
    return found
