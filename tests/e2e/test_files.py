"""What users do with files, through the official SDK, on every runtime."""

import asyncio
from typing import Any

from e2b import AsyncSandbox, FilesystemEvent, FilesystemEventType, Sandbox

from tests.support.instance import Instance
from tests.support.wait import LIFETIME_S, SLOWNESS


def told(events: list[FilesystemEvent]) -> list[str]:
    return [f"{event.type.name} {event.name}" for event in events]


def test_a_watch_sees_the_sdk_and_the_guests_programs(box: Sandbox) -> None:
    """Writes of the SDK and of commands, moves, new directories and removals are told on every runtime's kernel."""
    box.files.make_dir("watched/old")
    handle = box.files.watch_dir("watched", recursive=True, include_entry=True)
    box.files.write("watched/old/a", "1")
    events = handle.get_new_events()
    assert told(events) == ["CREATE old/a", "CHMOD old/a", "WRITE old/a"]
    assert events[2].entry is not None
    assert (events[2].entry.path, events[2].entry.size) == ("/home/user/watched/old/a", 1)
    box.commands.run("cd watched && mkdir -p x/y && echo hi > x/y/f && mv x/y/f old/f && rm -r old")
    seen = told(handle.get_new_events())
    for expected in ("CREATE x", "CREATE x/y", "CREATE old/f", "REMOVE old/f", "REMOVE old"):
        assert seen.count(expected) == 1
    box.files.write("watched/x/y/g", "1")
    box.files.write("watched/x/y/g", "")
    assert told(handle.get_new_events())[-2:] == ["CHMOD x/y/g", "WRITE x/y/g"]
    handle.stop()


async def test_a_watch_streams_to_the_end(running: Instance) -> None:
    """The async SDK is called back for every event of a burst, and told when the sandbox has gone."""
    options: dict[str, Any] = running.sdk
    sandbox = await AsyncSandbox.create(timeout=LIFETIME_S, **options)
    names: set[str] = set()
    complete = asyncio.Event()
    ended: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def take(event: FilesystemEvent) -> None:
        if event.type is FilesystemEventType.CREATE:
            names.add(event.name)
        if len(names) == 2000:
            complete.set()

    try:
        await sandbox.files.watch_dir("/home/user", on_event=take, on_exit=ended.set_result, timeout=0)
        await sandbox.commands.run("for i in $(seq 2000); do : > f$i; done")
        async with asyncio.timeout(60 * SLOWNESS):
            await complete.wait()
    finally:
        await sandbox.kill()
    async with asyncio.timeout(60 * SLOWNESS):
        assert isinstance(await ended, Exception)
