"""What happens to machines by itself, passed on to whom it concerns: the sandbox's log, and who watches exits.

Memory kills are read from the host's kernel, refused connections come from the network's rules.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace

from firebrick.log import get_log
from firebrick.model.ids import MachineId
from firebrick.model.machine import ExitCause, MachineExit
from firebrick.network.base import Refusal
from firebrick.node.drivers import MemoryKills
from firebrick.node.exits import ExitBroadcast
from firebrick.node.sandbox_actor import SandboxActor
from firebrick.rpc.node_api import SandboxExit

log = get_log("node")


class Notices:
    """`actors`: all that live, looked at whenever something happens. `open` first, `close` last."""

    def __init__(self, kills: MemoryKills | None, actors: Mapping[MachineId, SandboxActor]) -> None:
        self._kills = kills
        self._actors = actors
        self._exits = ExitBroadcast()

    def open(self) -> None:
        """What happened before we came is told too, as far as the kernel still has it."""
        if self._kills is not None and (descriptor := self._kills.fileno()) is not None:
            asyncio.get_running_loop().add_reader(descriptor, self._take_kills)
        self._take_kills()

    def close(self) -> None:
        if self._kills is not None:
            if (descriptor := self._kills.fileno()) is not None:
                asyncio.get_running_loop().remove_reader(descriptor)
            self._kills.close()
        self._exits.close()

    def watch_exits(self) -> AsyncIterator[SandboxExit]:
        return self._exits.watch()

    def connection_refused(self, refusal: Refusal) -> None:
        """Tell the sandbox's owner whom it may not talk to."""
        for actor in self._actors.values():
            if actor.sandbox_id is not None and actor.machine.record.slot_index == refusal.slot_index:
                host = refusal.name or str(refusal.address)
                fields = {"source": "network", "host": host, "address": str(refusal.address)}
                fields |= {"port": str(refusal.port), "count": str(refusal.count)}
                message = f"A connection to {host} on port {refusal.port} was refused: {refusal.reason}."
                actor.log.note("warn", message, fields)

    def actor_exited(self, actor: SandboxActor, ended: MachineExit) -> None:
        self._take_kills()
        if ended.cause is ExitCause.OOM and not ended.detail:
            ended = replace(ended, detail=actor.log.last_kill)
        if actor.sandbox_id is not None:
            self._exits.send(
                SandboxExit(
                    sandbox_id=actor.sandbox_id,
                    machine_id=ended.machine_id,
                    cause=ended.cause,
                    exit_code=-1 if ended.exit_code is None else ended.exit_code,
                    detail=ended.detail,
                )
            )

    def _take_kills(self) -> None:
        for kill in () if self._kills is None else self._kills.read_kills():
            actor = self._actors.get(MachineId(kill.cgroup.rpartition("/")[2]))
            if actor is not None:
                actor.log.note_kill(kill)
                log.info("sandbox.memory_kill", sandbox_id=actor.sandbox_id, name=kill.name, pid=kill.inside_pid)
