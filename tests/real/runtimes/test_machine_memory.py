"""Machines that go on from another's memory: in another place, many at once, after a restart of ours, or not at all."""

import asyncio
import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from firebrick.model.machine import ExitCause
from firebrick.runtimes.base import Capability, MachineSpec, RuntimeFailed
from tests.support.runtime_bench import LIMITS, SERVER, RuntimeBench
from tests.support.wait import wait_for

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_kvm]

WITNESS = """
import os, socket, threading, time
kept = open("/root/kept", "w+")
kept.write("open"), kept.flush(), os.unlink("/root/kept")
count = 0
def tick():
    global count
    while True:
        count += 1
        time.sleep(0.1)
threading.Thread(target=tick, daemon=True).start()
server = socket.create_server(("127.0.0.1", 9000))
while True:
    connection = server.accept()[0]
    kept.seek(0)
    connection.sendall(f"{os.getpid()} {count} {os.urandom(16).hex()} {kept.read()}".encode())
    connection.close()
"""
"""A process whose number, counting, deleted but open file and listening socket live in memory only; and it draws random
bytes for whoever connects."""

ENDING = """
import os, threading, time
def end():
    while not os.path.exists("/dev/shm/end"):
        time.sleep(0.2)
    os._exit(7)
threading.Thread(target=end, daemon=True).start()
"""
"""What the first process does beside serving: it ends when it is told to."""


COUNT = 10
TOLD = "crng reseeded due to virtual machine fork"
"""What a kernel says of a restore."""


@pytest.fixture
def keepers(bench: RuntimeBench) -> RuntimeBench:
    if Capability.KEEPS_MEMORY not in bench.runtime.capabilities:
        pytest.skip("this runtime keeps no memory in files")
    return bench


async def ask(bench: RuntimeBench, spec: MachineSpec) -> list[str]:
    """What the witness inside says: its number, its count, random bytes, what is in its open file; and the file."""
    status, said = await bench.run(spec, "cat < /dev/tcp/127.0.0.1/9000 && echo && cat /dev/shm/file")
    return said.split() if status == 0 else []


async def writes(bench: RuntimeBench, spec: MachineSpec, command: str) -> bool:
    try:
        return (await bench.run(spec, command))[0] == 0
    except (OSError, ValueError):
        return False


async def witnessed(bench: RuntimeBench) -> MachineSpec:
    spec = await bench.spec("/usr/bin/python3", "-c", f"{ENDING}{SERVER}")
    await bench.runtime.start(spec)
    await wait_for(lambda: bench.answers(spec), status=lambda: bench.said(spec))
    await bench.run(spec, f"echo tmpfs > /dev/shm/file; setsid python3 -c '{WITNESS}' > /dev/null 2>&1 &")
    await wait_for(lambda: ask(bench, spec))
    return spec


async def refused(bench: RuntimeBench, save: Path) -> str:
    return str(await bench.runtime.memory_refusal(save))  # type: ignore[attr-defined]


async def test_processes_go_on_in_another_place(keepers: RuntimeBench) -> None:
    """A process with its count, an open file, a listening socket and a file in memory go on in another machine, when
    their own is gone, and again from a save of that one; the saves may be removed meanwhile. The exit is still told."""
    first = await witnessed(keepers)
    pid, count, _, *rest = await ask(keepers, first)
    save = await keepers.saved(first)
    assert await refused(keepers, save) == ""
    await keepers.runtime.destroy(first.machine_id)
    assert keepers.left_of(first) == []
    memory = (save / "memory").stat()
    assert memory.st_size == LIMITS.memory_mib << 20
    assert memory.st_blocks * 512 < memory.st_size / 2, "zeros take room on the disk"

    second = await keepers.restored(save)
    shutil.rmtree(save)
    went_on = await ask(keepers, second)
    assert (went_on[0], went_on[3:]) == (pid, rest) == (pid, ["open", "tmpfs"])
    assert int(went_on[1]) >= int(count)

    again = await keepers.saved(second, "again")
    await keepers.runtime.destroy(second.machine_id)
    third = await keepers.restored(again)
    went_on_again = await ask(keepers, third)
    assert (went_on_again[0], went_on_again[3:]) == (pid, rest)
    assert int(went_on_again[1]) >= int(went_on[1])
    assert await keepers.run(third, "echo written > /root/new; sync; cat /root/new") == (0, "written\n")
    await keepers.run(third, "touch /dev/shm/end")
    exited = await keepers.runtime.wait_exit(third.machine_id)
    assert (exited.cause, exited.exit_code) == (ExitCause.GUEST_EXIT, 7)


async def written_bytes(bench: RuntimeBench, spec: MachineSpec) -> int:
    """What its monitor has written so far."""
    status = await bench.runtime.inspect(spec.machine_id)
    words = Path(f"/proc/{status.pid}/io").read_text().split()
    return int(words[words.index("wchar:") + 1])


async def test_a_second_save_writes_what_changed(keepers: RuntimeBench) -> None:
    """A machine that went on from a save writes little when it is saved again, and again while it runs on. Each save
    has all of the memory by itself, whatever becomes of the one before. After a save that failed all is written."""
    memory_bytes = LIMITS.memory_mib << 20
    fill, read = "head -c 8M /dev/urandom > /dev/shm/", "cd /dev/shm; sha256sum *"
    first = await witnessed(keepers)
    save = await keepers.saved(first)
    await keepers.runtime.destroy(first.machine_id)
    second = await keepers.restored(save)
    for name in ("again", "once more"):
        await keepers.run(second, f"{fill}'{name}'")
        held = await keepers.run(second, read)
        before = await written_bytes(keepers, second)
        former, save = save, await keepers.saved(second, name)
        assert 8 << 20 < await written_bytes(keepers, second) - before < memory_bytes // 2
        shutil.rmtree(former)
        assert await refused(keepers, save) == ""
        await keepers.runtime.thaw(second.machine_id)  # type: ignore[attr-defined]
        third = await keepers.restored(save)
        assert await keepers.run(third, read) == held
        assert (await ask(keepers, third))[3:] == ["open", "tmpfs"]
        await keepers.runtime.destroy(third.machine_id)

    await keepers.runtime.freeze(second.machine_id)  # type: ignore[attr-defined]
    with pytest.raises(RuntimeFailed, match="could not be saved"):
        await keepers.runtime.save_memory(second.machine_id, keepers.directory / "none")  # type: ignore[attr-defined]
    before = await written_bytes(keepers, second)
    save = await keepers.saved(second, "after a failure")
    assert await written_bytes(keepers, second) - before >= memory_bytes
    await keepers.runtime.destroy(second.machine_id)
    last = await keepers.restored(save)
    assert await keepers.run(last, read) == held


async def test_ten_go_on_from_one_save(keepers: RuntimeBench) -> None:
    """All at the same time and beside the one that was saved, which runs on. What one writes, to memory or disk,
    no other sees. The kernel of each is told that it was restored, and no two draw the same random bytes."""
    source = await witnessed(keepers)
    save = await keepers.saved(source)
    await keepers.runtime.thaw(source.machine_id)  # type: ignore[attr-defined]
    disk = save.with_suffix(".disk")
    specs = [await keepers.spec(kept_disk=disk, memory=save) for _ in range(COUNT)]
    async with asyncio.TaskGroup() as group:
        for spec in specs:
            group.create_task(keepers.runtime.start(spec))
    everyone = [source, *specs]
    for number, spec in enumerate(everyone):
        write = f"echo {number} | tee /dev/shm/file /root/number"
        await wait_for(lambda spec=spec, write=write: writes(keepers, spec, write), timeout_s=60)
    answers = [await ask(keepers, spec) for spec in everyone]
    assert [rest for _, _, _, *rest in answers] == [["open", str(number)] for number in range(len(everyone))]
    assert len({pid for pid, *_ in answers}) == 1
    assert len({drawn for _, _, drawn, *_ in answers}) == len(everyone)
    for number, spec in enumerate(everyone):
        told = f"cat /root/number; dmesg | grep -c '{TOLD}'"
        assert (await keepers.run(spec, told))[1] == f"{number}\n{int(spec is not source)}\n"


async def test_a_restored_machine_is_adopted(keepers: RuntimeBench) -> None:
    """Frozen or running: the next driver freezes, thaws, saves and destroys it like any other."""
    first = await witnessed(keepers)
    save = await keepers.saved(first)
    await keepers.runtime.destroy(first.machine_id)
    spec = await keepers.restored(save)
    keepers.restart()
    assert await keepers.runtime.recover() == (spec.machine_id,)
    assert await ask(keepers, spec)
    again = await keepers.saved(spec, "again")
    assert await refused(keepers, again) == ""
    keepers.restart()
    assert await keepers.runtime.recover() == (spec.machine_id,)
    await keepers.runtime.thaw(spec.machine_id)  # type: ignore[attr-defined]
    await wait_for(lambda: keepers.answers(spec))
    await keepers.runtime.destroy(spec.machine_id)
    assert keepers.left_of(spec) == []


async def test_a_start_that_fails_leaves_nothing(keepers: RuntimeBench) -> None:
    """With a reason, and a start from it leaves nothing: a cut memory, a changed state, facts that are not there or
    of another processor; and a machine of another size. One that is not frozen is not saved. A monitor that is killed
    while it loads, by the kernel or by a restart of ours, leaves nothing either."""
    source = await keepers.serving()
    (keepers.directory / "early").mkdir()
    with pytest.raises(RuntimeFailed, match="could not be saved") as caught:
        await keepers.runtime.save_memory(source.machine_id, keepers.directory / "early")  # type: ignore[attr-defined]
    assert "not frozen" in caught.value.detail
    save = await keepers.saved(source)
    await keepers.runtime.destroy(source.machine_id)
    disk = save.with_suffix(".disk")

    def cut(copy: Path) -> None:
        os.truncate(copy / "memory", 1 << 20)

    def change(copy: Path) -> None:
        state = bytearray((copy / "state").read_bytes())
        state[len(state) // 2] ^= 1
        (copy / "state").write_bytes(state)

    def lose(copy: Path) -> None:
        (copy / "facts.json").unlink()

    def move(copy: Path) -> None:
        facts = json.loads((copy / "facts.json").read_text())
        facts["processor"]["features"].append("amx_tile")
        (copy / "facts.json").write_text(json.dumps(facts))

    for harm, reason in ((cut, "'memory'"), (change, "'state'"), (lose, "missing"), (move, "amx_tile")):
        copy = keepers.directory / harm.__name__
        shutil.copytree(save, copy)
        harm(copy)
        assert reason in await refused(keepers, copy)
        spec = await keepers.spec(kept_disk=disk, memory=copy)
        with pytest.raises(RuntimeFailed, match="cannot go on") as caught:
            await keepers.runtime.start(spec)
        assert reason in caught.value.message
        assert keepers.left_of(spec) == []
    large = replace(LIMITS, memory_mib=LIMITS.memory_mib * 2)
    spec = await keepers.spec(kept_disk=disk, memory=save, limits=large)
    with pytest.raises(RuntimeFailed, match=f"not 2 and {large.memory_mib}"):
        await keepers.runtime.start(spec)
    assert keepers.left_of(spec) == []

    spec = await keepers.spec(kept_disk=disk, memory=save)
    starting = asyncio.create_task(keepers.runtime.start(spec))
    await wait_for(lambda: keepers.pids(spec) or starting.done())
    for pid in keepers.pids(spec):
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(RuntimeFailed, match=spec.machine_id):
        await starting
    assert keepers.left_of(spec) == []

    spec = await keepers.spec(kept_disk=disk, memory=save)
    runtime = keepers.runtime
    started = asyncio.Event()

    async def never(*_: object, **__: object) -> None:
        started.set()
        await asyncio.Event().wait()

    # Stopped between the monitor's start and what it is told, as by a kill -9 of ours: nothing is undone.
    runtime._load = never  # type: ignore[attr-defined]
    starting = asyncio.create_task(runtime.start(spec))
    await started.wait()
    keepers.restart()
    assert await keepers.runtime.recover() == ()
    assert keepers.left_of(spec) == []
    starting.cancel()
    await asyncio.wait([starting])
