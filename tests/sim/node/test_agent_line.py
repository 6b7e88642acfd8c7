"""Which way the node goes to a guest agent: the runtime's own line where it has one, else the machine's address."""

import socket
from dataclasses import replace
from pathlib import Path

import pytest

from firebrick.guestlink.base import AGENT_PORT, Dial, GuestLink
from firebrick.model.ids import MachineId
from firebrick.node.machine import LINE_VARIABLE
from firebrick.node.supervisor import NodeAgent
from firebrick.runtimes.base import Capability
from firebrick.runtimes.sim.runtime import SimRuntime
from tests.sim.node.world import World, request


class LineRuntime(SimRuntime):
    """Has a line to each machine; what it was asked for is kept."""

    dialled: list[tuple[MachineId, int]]

    async def dial(self, machine_id: MachineId, port: int) -> socket.socket:
        self.dialled.append((machine_id, port))
        near, far = socket.socketpair()
        far.close()
        return near


@pytest.mark.parametrize("has_line", [True, False])
async def test_the_line_is_taken_where_there_is_one(tmp_path: Path, has_line: bool) -> None:
    """It leads to the machine itself, on the agent's port, and the agent is told to listen there; without one neither
    is heard of."""
    world = World(tmp_path)
    runtime = LineRuntime(world.clock, guests=world.guests)
    runtime.dialled = []
    runtime.offered |= {Capability.AGENT_LINE} if has_line else set()
    world.runtime = runtime
    dials: list[Dial | None] = []

    def links(address: str, control_token: str, *, dial: Dial | None = None) -> GuestLink:
        dials.append(dial)
        return world.guests.link(address, control_token)

    agent = NodeAgent(replace(world.drivers(), links=links), world.settings, world.records)
    await agent.open()
    try:
        started = await agent.start_sandbox(request())
        spec = runtime.machines[started.machine_id].spec
        assert spec.env.get(LINE_VARIABLE) == (str(AGENT_PORT) if has_line else None)
        assert {dial is not None for dial in dials} == {has_line}
        for dial in dials:
            if dial is not None:
                (await dial()).close()
        assert set(runtime.dialled) == ({(started.machine_id, AGENT_PORT)} if has_line else set())
    finally:
        await agent.close()
