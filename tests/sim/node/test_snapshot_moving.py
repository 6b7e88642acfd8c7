"""Snapshots that go to another node: whole and proven, or not at all."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from firebrick.blobs.manifest import Chunk, Manifest, decode_manifest, encode_manifest
from firebrick.linux.space import is_out_of_space
from firebrick.model.errors import DiskFull, FirebrickError, Invalid, MemoryRefused, NotFound
from firebrick.model.ids import BuildId, SnapshotId, new_snapshot_id
from firebrick.model.machine import RuntimeName
from firebrick.node import snapshots
from firebrick.node.service import NodeServer
from firebrick.node.supervisor import NodeAgent
from firebrick.rpc.node_api import ImportSnapshot, NodeSandbox
from firebrick.rpc.node_client import GrpcNodeClient
from tests.sim.node.world import BASE, LIMITS, Steps, World, request, until_dead
from tests.support.wait import wait_for

REFUSAL = "It was saved on another kind of processor."
Moved = tuple[bytes, ...]


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path / "node", slot_count=16)
    world.keep_memory_in_files()
    return world


@pytest.fixture
def other(tmp_path: Path) -> World:
    """Another node."""
    other = World(tmp_path / "other")
    other.keep_memory_in_files()
    return other


async def exported(world: World, *, keep_memory: bool = True) -> Moved:
    """The parts of a snapshot of a sandbox with 41 on its disk and 7 in its memory."""
    async with world.agent() as agent:
        started = await agent.start_sandbox(request())
        world.write_inside(started, "41")
        world.guest(started).memory["counter"] = "7"
        taken = await agent.snapshot_sandbox(started.sandbox_id, new_snapshot_id(), keep_memory=keep_memory)
        # It is not stored yet: exporting does not wait for that.
        return tuple([part async for part in agent.export_snapshot(taken.snapshot_id)])


def wanted(**changes: object) -> ImportSnapshot:
    values = {
        "snapshot_id": new_snapshot_id(), "build_id": BASE, "runtime": RuntimeName.SIM, "limits": LIMITS,
        "keeps_memory": True, "data_bytes": 1 << 20,
    } | changes  # fmt: skip
    return ImportSnapshot(**values)  # type: ignore[arg-type]


async def stream(parts: Sequence[bytes]) -> AsyncIterator[bytes]:
    for part in parts:
        await asyncio.sleep(0)
        yield part


def left(world: World) -> list[str]:
    """Files of snapshots, finished or not."""
    root = world.root / "snapshots"
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def looks_like_it(world: World, fork: NodeSandbox, *, keeps_memory: bool) -> bool:
    counter = world.guest(fork).memory.get("counter")
    return (fork.kept_memory, counter, world.read_inside(fork)) == (keeps_memory, "7" if keeps_memory else None, "41")


@pytest.mark.parametrize("keep_memory", [True, False])
async def test_a_snapshot_goes_on_where_it_was_brought(world: World, other: World, keep_memory: bool) -> None:
    """With its memory or its disk alone; twice is two, and the same order twice is one. It outlives the agent there."""
    parts = await exported(world, keep_memory=keep_memory)
    first, second = wanted(keeps_memory=keep_memory), wanted(keeps_memory=keep_memory)
    async with other.agent() as agent:
        made = await agent.import_snapshot(first, stream(parts))
        assert (made.snapshot.keeps_memory, made.memory_refusal) == (keep_memory, "")
        assert await agent.import_snapshot(first, stream(())) == made
        await agent.import_snapshot(second, stream(parts))
        assert {item.snapshot_id for item in await agent.list_snapshots()} == {first.snapshot_id, second.snapshot_id}
        await wait_for(lambda: is_stored(agent))
    (other.root / "snapshots" / "disks" / first.snapshot_id / "disk").unlink()
    async with other.agent() as agent:
        fork = await agent.start_sandbox(replace(request(), snapshot_id=first.snapshot_id))
        assert looks_like_it(other, fork, keeps_memory=keep_memory)
        again = tuple([part async for part in agent.export_snapshot(second.snapshot_id)])
        assert again[1:] == parts[1:]
        assert await agent.delete_snapshot(first.snapshot_id)
        assert await agent.delete_snapshot(second.snapshot_id)
        assert left(other) == []


async def is_stored(agent: NodeAgent) -> bool:
    return all(item.stored_bytes is not None for item in await agent.list_snapshots())


async def test_memory_that_cannot_go_on_is_told_and_its_disk_can_be_had(world: World, other: World) -> None:
    """At the import, at a create, which is refused with the reason; from the disk alone it starts."""
    parts, order = await exported(world), wanted()
    other.runtime.refusal = REFUSAL
    async with other.agent() as agent:
        assert (await agent.import_snapshot(order, stream(parts))).memory_refusal == REFUSAL
        start = replace(request(), snapshot_id=order.snapshot_id)
        with pytest.raises(MemoryRefused, match="another kind of processor"):
            await agent.start_sandbox(start)
        await other.assert_empty()
        fork = await agent.start_sandbox(replace(start, keep_memory=False))
        assert looks_like_it(other, fork, keeps_memory=False)


async def test_it_goes_over_the_wire(world: World, other: World, tmp_path: Path) -> None:
    """Out by one socket and in by another; a refusal comes back as it was raised, whoever is faster, and a stream that
    breaks off leaves nothing."""
    parts, order = await exported(world), wanted()
    async with other.agent() as agent:
        server = NodeServer(agent, tmp_path / "run" / "node.sock")
        await server.start()
        client = GrpcNodeClient(f"unix:{tmp_path}/run/node.sock")
        made = await client.import_snapshot(order, stream(parts))
        assert (made.snapshot.snapshot_id, made.memory_refusal) == (order.snapshot_id, "")
        assert tuple([part async for part in client.export_snapshot(order.snapshot_id)])[1:] == parts[1:]
        with pytest.raises(NotFound):
            await anext(client.export_snapshot(new_snapshot_id()))
        with pytest.raises(NotFound, match="No build"):
            await client.import_snapshot(wanted(build_id=BuildId("other")), stream(parts * 50))
        with pytest.raises(Invalid, match="list of chunks"):
            await client.import_snapshot(wanted(), stream((b"damaged", *parts * 50)))

        async def broken() -> AsyncIterator[bytes]:
            yield parts[0]
            raise Invalid("whoever sent it has gone")

        with pytest.raises(Invalid, match="has gone"):
            await client.import_snapshot(wanted(), broken())
        await wait_for(lambda: not any((other.root / "snapshots" / "making").iterdir()))
        assert await client.delete_snapshot(order.snapshot_id)
        assert left(other) == []
        await client.close()
        await server.stop()


def _flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x20]) + data[at + 1 :]


async def test_damage_anywhere_is_refused_and_leaves_nothing(world: World, other: World) -> None:
    """Each part changed at several places, cut, left out, doubled or exchanged for another; what zstd reads all the
    same is the same."""
    parts = await exported(world)
    bad: list[Moved] = [parts[:count] for count in range(len(parts))]
    bad += [(*parts, parts[-1]), (*parts[:-1], parts[-1] + b"x" * 70_000), (parts[0], *reversed(parts[1:]))]
    for index, part in enumerate(parts):
        places = range(0, len(part), max(1, len(part) // 12))
        bad += [(*parts[:index], _flipped(part, at), *parts[index + 1 :]) for at in places]
        bad += [(*parts[:index], part[:at], *parts[index + 1 :]) for at in (0, 1, len(part) // 2, len(part) - 1)]
    async with other.agent() as agent:
        taken_count = 0
        for moved in bad:
            order = wanted()
            try:
                await agent.import_snapshot(order, stream(moved))
            except Invalid:
                assert left(other) == []
                continue
            taken_count += 1
            assert [part async for part in agent.export_snapshot(order.snapshot_id)][1:] == list(parts[1:])
            await agent.delete_snapshot(order.snapshot_id)
        assert taken_count < len(bad) / 10
        assert await agent.list_snapshots() == ()
        await agent.import_snapshot(wanted(), stream(parts))


def _with(manifest: Manifest, **changes: object) -> Manifest:
    return replace(manifest, **changes)  # type: ignore[arg-type]


def _file(manifest: Manifest, **changes: object) -> Manifest:
    first, *rest = manifest.files
    return replace(manifest, files=(replace(first, **changes), *rest))  # type: ignore[arg-type]


def _about(manifest: Manifest, **changes: object) -> Manifest:
    return replace(manifest, about={"snapshot": manifest.about["snapshot"] | changes})


def _memory(manifest: Manifest, **changes: object) -> Manifest:
    return _about(manifest, memory=manifest.about["snapshot"]["memory"] | changes)


ONE = Chunk(index=0, sha256="0" * 64, size_bytes=1 << 20)
LIES: dict[str, Callable[[Manifest], Manifest]] = {
    "a path out": lambda it: _file(it, name="../disk"),
    "another file": lambda it: _file(it, name="disk2"),
    "a file twice": lambda it: _with(it, files=(it.files[0], *it.files)),
    "no disk": lambda it: _with(it, files=it.files[1:]),
    "no memory": lambda it: _with(it, files=it.files[:1]),
    "a file in a directory of memory": lambda it: _with(it, files=(*it.files, replace(it.files[0], name="memory/a/b"))),
    "many files": lambda it: _with(
        it, files=(*it.files, *(replace(it.files[0], name=f"memory/f{index}") for index in range(99)))
    ),
    "a huge file": lambda it: _file(it, size_bytes=1 << 62, chunks=()),
    "a negative file": lambda it: _file(it, size_bytes=-1, chunks=()),
    "a file without size": lambda it: _file(it, size_bytes=None, chunks=()),
    "a fraction of a file": lambda it: _file(it, size_bytes=1.5, chunks=()),
    "a chunk beyond the end": lambda it: _file(it, size_bytes=1 << 20, chunks=(replace(ONE, index=1),)),
    "a chunk before the start": lambda it: _file(it, size_bytes=1 << 20, chunks=(replace(ONE, index=-1),)),
    "a chunk out of order": lambda it: _file(it, size_bytes=2 << 20, chunks=(replace(ONE, index=1), ONE)),
    "a chunk twice": lambda it: _file(it, size_bytes=2 << 20, chunks=(ONE, ONE)),
    "a large chunk": lambda it: _file(it, size_bytes=1 << 20, chunks=(replace(ONE, size_bytes=1 << 40),)),
    "a chunk of two sizes": lambda it: _file(
        it, size_bytes=(1 << 20) + 7, chunks=(ONE, replace(ONE, index=1, size_bytes=7))
    ),
    "a sum that is a path": lambda it: _file(it, size_bytes=1 << 20, chunks=(replace(ONE, sha256="../../../x"),)),
    "a sum that is none": lambda it: _file(it, size_bytes=1 << 20, chunks=(replace(ONE, sha256=7),)),
    "more than was said": lambda it: _file(
        it, size_bytes=9 << 20, chunks=tuple(replace(ONE, index=index) for index in range(9))
    ),
    "another build": lambda it: _about(it, build_id="other"),
    "another runtime": lambda it: _about(it, runtime="container"),
    "a runtime of nobody": lambda it: _about(it, runtime="nobody"),
    "another disk": lambda it: _about(it, disk_mib=LIMITS.disk_mib * 2),
    "no origin": lambda it: _about(it, memory=None),
    "a token that is a path": lambda it: _memory(it, control_token="../../../etc/passwd" + "0" * 13),
    "a token that is none": lambda it: _memory(it, control_token=7),
    "a sandbox that is none": lambda it: _memory(it, sandbox_id="../x"),
    "other limits": lambda it: _memory(it, limits={**it.about["snapshot"]["memory"]["limits"], "memory_mib": 1}),
    "nothing about it": lambda it: _with(it, about={}),
    "a list about it": lambda it: _with(it, about={"snapshot": []}),
    "tiny chunks": lambda it: _with(it, chunk_bytes=1),
    "giant chunks": lambda it: _with(it, chunk_bytes=1 << 40),
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_manifest_that_lies_writes_nothing(world: World, other: World, lie: str) -> None:
    """Its own sum is right, so somebody made it so."""
    parts = await exported(world)
    lying = encode_manifest(LIES[lie](decode_manifest("", parts[0])))
    async with other.agent() as agent:
        with pytest.raises(Invalid):
            await agent.import_snapshot(wanted(), stream((lying, *parts[1:])))
        assert left(other) == []
    assert not list(other.root.parent.rglob("disk2"))


async def test_a_chunk_that_unpacks_to_more_is_refused(world: World, other: World) -> None:
    """Before it is unpacked: a megabyte may stand for a terabyte."""
    import zstandard

    parts = await exported(world)
    bombs = [
        zstandard.ZstdCompressor(write_content_size=told).compress(bytes(64 << 20)) for told in (True, False)
    ]  # fmt: skip
    async with other.agent() as agent:
        for bomb in bombs:
            with pytest.raises(Invalid, match="damaged"):
                await agent.import_snapshot(wanted(), stream((parts[0], bomb, *parts[2:])))
        assert left(other) == []


async def test_a_full_disk_takes_nothing_in(world: World, other: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked before the first byte whether all of it fits."""
    parts = await exported(world)
    real = snapshots.read_facts
    monkeypatch.setattr(snapshots, "read_facts", lambda path: replace(real(path), disk_free_mib=0))
    async with other.agent() as agent:
        with pytest.raises(DiskFull, match="no room") as refused:
            await agent.import_snapshot(wanted(), stream(parts))
        assert not is_out_of_space(refused.value)
        assert left(other) == []


async def test_an_import_killed_at_any_part_leaves_nothing(world: World, tmp_path: Path) -> None:
    """After a restart it is not there, and it can be done again."""
    parts = await exported(world)
    for count in range(len(parts) + 1):
        host = World(tmp_path / f"host{count}")
        host.keep_memory_in_files()
        steps = Steps()
        agent = host.build(steps)
        await agent.open()

        async def until_cut(count: int = count, steps: Steps = steps) -> AsyncIterator[bytes]:
            for part in parts[:count]:
                yield part
            steps.is_dead = True
            await asyncio.Event().wait()

        order = wanted()
        assert await until_dead(steps, agent.import_snapshot(order, until_cut()))
        async with host.agent() as reborn:
            assert await reborn.list_snapshots() == ()
            assert left(host) == []
            await reborn.import_snapshot(order, stream(parts))
            fork = await reborn.start_sandbox(replace(request(), snapshot_id=order.snapshot_id))
            assert looks_like_it(host, fork, keeps_memory=True)


async def test_what_cannot_be_read_any_more_is_not_exported(world: World) -> None:
    """A chunk that was damaged on the disk ends the export; of one that is gone nothing comes."""
    await exported(world)
    async with world.agent() as agent:
        (item,) = await agent.list_snapshots()
        (first, *_) = sorted((world.root / "blobs" / "chunks").rglob("*"), key=lambda path: path.is_dir())
        first.write_bytes(b"damaged")
        with pytest.raises(FirebrickError, match="damaged"):
            [part async for part in agent.export_snapshot(item.snapshot_id)]
        with pytest.raises(NotFound):
            await anext(agent.export_snapshot(SnapshotId("s" + "0" * 19)))
