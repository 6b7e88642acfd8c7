"""Watching directories: streamed and polled, as E2B's clients see it."""

import asyncio
import ctypes
import errno
import json
import os
import shutil
import signal
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from e2b import AsyncSandbox, FilesystemEvent, FilesystemEventType, Sandbox
from e2b.exceptions import FileNotFoundException, InvalidArgumentException, SandboxException

from tests.contract.guest.agent import ACCESS_TOKEN, Agent
from tests.support.wait import wait_for_sync

FILESYSTEM = "filesystem.Filesystem"


def words(events: list[FilesystemEvent]) -> list[str]:
    return [f"{event.type.name} {event.name}" for event in events]


@contextmanager
def polled(agent: Agent, path: str, **options: Any) -> Iterator["Polled"]:
    answer = agent.unary(f"{FILESYSTEM}/CreateWatcher", {"path": path, **options})
    assert answer.status_code == 200, answer.text
    watcher = Polled(agent, answer.json()["watcherId"])
    try:
        yield watcher
    finally:
        assert agent.unary(f"{FILESYSTEM}/RemoveWatcher", {"watcherId": watcher.name}).status_code == 200


class Polled:
    def __init__(self, agent: Agent, name: str) -> None:
        self.agent = agent
        self.name = name

    def ask(self) -> Any:
        return self.agent.unary(f"{FILESYSTEM}/GetWatcherEvents", {"watcherId": self.name}).json()

    def events(self) -> list[str]:
        return [
            f"{event['type'].removeprefix('EVENT_TYPE_')} {event['name']}" for event in self.ask().get("events", [])
        ]


def test_a_write_is_three_events(sandbox: Sandbox, folder: str) -> None:
    """A new file is CREATE, CHMOD and WRITE, known when the write has been answered; an old one has no CREATE."""
    handle = sandbox.files.watch_dir(folder)
    sandbox.files.write(f"{folder}/a", "1")
    assert words(handle.get_new_events()) == ["CREATE a", "CHMOD a", "WRITE a"]
    sandbox.files.write(f"{folder}/a", "2")
    told = words(handle.get_new_events())
    # Cutting the old content off and writing the new may be one WRITE or two.
    assert (told[0], set(told[1:])) == ("CHMOD a", {"WRITE a"})
    sandbox.files.write(f"{folder}/a", "")
    assert "WRITE a" in words(handle.get_new_events())
    assert handle.get_new_events() == []
    handle.stop()


def test_moves_and_removals(agent: Agent, folder: str) -> None:
    """A rename is RENAME of the old name and CREATE of the new, across the border only the half inside; a removal is
    REMOVE."""
    outside = Path(folder, "out")
    inside = Path(folder, "in")
    outside.mkdir()
    inside.mkdir()
    with polled(agent, str(inside)) as watcher:
        (inside / "a").touch()
        (inside / "a").rename(inside / "b")
        assert watcher.events()[-2:] == ["RENAME a", "CREATE b"]
        (inside / "b").rename(outside / "b")
        assert watcher.events() == ["RENAME b"]
        (outside / "b").rename(inside / "c")
        assert watcher.events() == ["CREATE c"]
        (inside / "c").chmod(0o600)
        (inside / "c").unlink()
        (inside / "d").symlink_to("x")
        assert watcher.events() == ["CHMOD c", "REMOVE c", "CREATE d"]


def test_a_tree_is_watched_as_it_grows(sandbox: Sandbox, folder: str) -> None:
    """With recursive, names are relative to the watched directory, and directories made later are watched too."""
    Path(folder, "old").mkdir()
    handle = sandbox.files.watch_dir(folder, recursive=True)
    sandbox.files.write(f"{folder}/old/f", "1")
    assert words(handle.get_new_events()) == ["CREATE old/f", "CHMOD old/f", "WRITE old/f"]
    sandbox.files.make_dir(f"{folder}/new/deep")
    sandbox.files.write(f"{folder}/new/deep/f", "1")
    told = words(handle.get_new_events())
    assert [word for word in told if word.startswith("CREATE")] == [
        "CREATE new",
        "CREATE new/deep",
        "CREATE new/deep/f",
    ]
    assert "WRITE new/deep/f" in told
    sandbox.files.remove(f"{folder}/new")
    assert words(handle.get_new_events())[-1] == "REMOVE new"
    handle.stop()


def test_what_was_put_into_a_new_directory_at_once_is_told(agent: Agent, folder: str) -> None:
    """Files that were written before anybody could watch their directory are told once, as created and written."""
    with polled(agent, folder, recursive=True) as watcher:
        for number in range(50):
            os.makedirs(f"{folder}/{number}/a/b")
            Path(folder, f"{number}/a/b/f").write_text("x")
            Path(folder, f"{number}/a/empty").touch()
        told = watcher.events()
        for number in range(50):
            for name in ("", "/a", "/a/b", "/a/b/f", "/a/empty"):
                assert told.count(f"CREATE {number}{name}") == 1
            assert f"WRITE {number}/a/b/f" in told
        os.unlink(f"{folder}/0/a/b/f")
        Path(folder, "0/a/b/f").touch()
        assert watcher.events() == ["REMOVE 0/a/b/f", "CREATE 0/a/b/f"]


def test_a_moved_directory_is_followed_inside_and_forgotten_outside(agent: Agent, folder: str) -> None:
    """Names change with a directory's; what has left the tree is not told any more, what has come is."""
    tree = Path(folder, "tree")
    (tree / "a/b").mkdir(parents=True)
    with polled(agent, str(tree), recursive=True) as watcher:
        (tree / "a").rename(tree / "z")
        (tree / "z/b/f").touch()
        assert watcher.events()[:3] == ["RENAME a", "CREATE z", "CREATE z/b/f"]
        (tree / "z").rename(Path(folder, "gone"))
        Path(folder, "gone/b/g").touch()
        assert watcher.events() == ["RENAME z"]
        Path(folder, "gone/b/h").touch()
        assert watcher.events() == []
        Path(folder, "gone").rename(tree / "back")
        assert watcher.events() == ["CREATE back"]
        (tree / "back/b/i").touch()
        assert watcher.events()[0] == "CREATE back/b/i"


def test_watchers_of_one_directory_do_not_mix(agent: Agent, folder: str) -> None:
    """Each watcher sees what has happened since it came, under names of its own, and one's end is not another's."""
    Path(folder, "sub").mkdir()
    Path(folder, "link").symlink_to("sub")
    with polled(agent, folder, recursive=True) as above, polled(agent, f"{folder}/sub") as below:
        Path(folder, "sub/f").touch()
        with polled(agent, f"{folder}/link", includeEntry=True) as linked:
            Path(folder, "sub/g").touch()
            assert above.events() == ["CREATE sub/f", "CREATE sub/g"]
            assert below.events() == ["CREATE f", "CREATE g"]
            (event, *_) = linked.ask()["events"]
            assert (event["name"], event["entry"]["path"]) == ("g", f"{folder}/link/g")
        Path(folder, "sub/h").touch()
        assert (above.events()[0], below.events()[0]) == ("CREATE sub/h", "CREATE h")


def test_the_root_itself(agent: Agent, folder: str) -> None:
    """What happens to the watched directory is told of '.', and its end is not an error."""
    root = Path(folder, "root")
    root.mkdir()
    with polled(agent, str(root)) as watcher, polled(agent, str(root)) as other:
        root.chmod(0o700)
        root.rename(Path(folder, "moved"))
        Path(folder, "moved/f").touch()
        assert watcher.events() == ["CHMOD .", "RENAME ."]
        assert other.events() == ["CHMOD .", "RENAME ."]
    with polled(agent, f"{folder}/moved") as watcher:
        shutil.rmtree(f"{folder}/moved")
        assert watcher.events()[-1] == "REMOVE ."
        assert watcher.events() == []


def test_entries_are_of_what_is_still_there(agent: Agent, folder: str) -> None:
    """With include_entry, CREATE, CHMOD and WRITE carry the entry; REMOVE and RENAME never do."""
    path = Path(folder, "f")
    with polled(agent, folder, include_entry=True) as watcher:
        path.write_text("hello")
        entries = {event["type"]: event.get("entry") for event in watcher.ask()["events"]}
        assert entries["EVENT_TYPE_WRITE"]["size"] == "5"
        assert entries["EVENT_TYPE_CREATE"]["path"] == str(path)
        path.unlink()
        path.write_text("other")
        entries = {event["type"]: event.get("entry") for event in watcher.ask()["events"]}
        assert entries["EVENT_TYPE_REMOVE"] is None
        assert entries["EVENT_TYPE_CREATE"] is not None


async def test_streams_through_the_sdk(agent: Agent, folder: str) -> None:
    """The async SDK's watch calls back for every event, ends when stopped, and dies of its timeout as an error."""
    plain = agent.sandbox()
    sandbox = AsyncSandbox(
        sandbox_id="sbx", sandbox_domain=None, envd_version=plain._envd_version, envd_access_token=ACCESS_TOKEN,
        connection_config=plain.connection_config,
    )  # fmt: skip
    got: list[str] = []
    ended: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
    written = asyncio.Event()

    def take(event: FilesystemEvent) -> None:
        got.append(f"{event.type.name} {event.name}")
        if event.type is FilesystemEventType.WRITE:
            written.set()

    handle = await sandbox.files.watch_dir(folder, on_event=take, recursive=True)
    await sandbox.files.write(f"{folder}/a/f", "x")
    await written.wait()
    assert [word for word in got if word.endswith("a/f")] == ["CREATE a/f", "CHMOD a/f", "WRITE a/f"]
    await handle.stop()
    await sandbox.files.watch_dir(folder, on_event=take, on_exit=ended.set_result, timeout=0.2)
    assert isinstance(await ended, Exception)


@pytest.mark.parametrize(
    ("path", "expected"),
    [("no", FileNotFoundException), ("file", InvalidArgumentException), ("file/x", FileNotFoundException)],
)
def test_only_directories_are_watched(sandbox: Sandbox, folder: str, path: str, expected: type[Exception]) -> None:
    """What is missing and what is no directory is refused, by stream and by poll."""
    Path(folder, "file").touch()
    with pytest.raises(expected):
        sandbox.files.watch_dir(f"{folder}/{path}")


def test_unknown_watchers(agent: Agent, sandbox: Sandbox, folder: str) -> None:
    """A watcher that is not there, or not any more, is not_found."""
    for procedure in ("GetWatcherEvents", "RemoveWatcher"):
        answer = agent.unary(f"{FILESYSTEM}/{procedure}", {"watcherId": "w1"})
        assert answer.json() == {"code": "not_found", "message": "watcher with id w1 not found"}
    handle = sandbox.files.watch_dir(folder)
    handle.stop()
    with pytest.raises(SandboxException):
        handle.get_new_events()


def test_unread_events_are_bounded_and_their_loss_is_told(agent: Agent, folder: str) -> None:
    """A watcher whose events nobody fetches costs a few megabytes; then it forgets them and says so for good."""
    before = agent.rss_kib
    with polled(agent, folder) as watcher, polled(agent, folder) as diligent:
        for round_ in range(60):
            for number in range(1000):
                Path(folder, f"{'n' * 100}{number}").touch()
                os.unlink(f"{folder}/{'n' * 100}{number}")
            assert len(diligent.events()) >= 2000, round_
        for _ in range(2):
            assert watcher.ask()["code"] == "data_loss"
        assert agent.rss_kib - before < 40_000


def test_a_slow_reader_of_a_stream_loses_events_and_is_told(agent: Agent, folder: str) -> None:
    """A client that does not read costs a bounded amount, and its stream ends with data_loss."""
    body = json.dumps({"path": folder}).encode()
    head = (
        f"POST /{FILESYSTEM}/WatchDir HTTP/1.1\r\nX-Access-Token: {ACCESS_TOKEN}\r\nContent-Length: {len(body) + 5}\r\n"
    )
    head += "Content-Type: application/connect+json\r\nConnection: close\r\n\r\n"
    before = agent.rss_kib
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", agent.port))
        connection.sendall(head.encode() + b"\0" + len(body).to_bytes(4, "big") + body)
        assert b"start" in connection.recv(400)
        for _ in range(60):
            for number in range(1000):
                Path(folder, f"{'n' * 200}{number}").touch()
                os.unlink(f"{folder}/{'n' * 200}{number}")
            agent.http.get("/health")
        assert agent.rss_kib - before < 40_000
        received = b""
        while piece := connection.recv(65536):
            received += piece
    assert b"data_loss" in received[-400:]


def test_streams_and_watchers_leave_nothing(agent: Agent, folder: str) -> None:
    """When the last watcher has gone, by a hang-up too, the kernel's queue is closed."""
    body = json.dumps({"path": folder}).encode()
    frame = b"\0" + len(body).to_bytes(4, "big") + body
    before = agent.descriptor_count
    headers = {"X-Access-Token": ACCESS_TOKEN, "Content-Type": "application/connect+json"}
    with agent.http.stream("POST", f"/{FILESYSTEM}/WatchDir", headers=headers, content=frame) as answer:
        next(answer.iter_bytes())
        assert agent.descriptor_count == before + 1
    wait_for_sync(lambda: agent.descriptor_count == before)


def test_too_many_watchers_are_refused(agent: Agent, folder: str) -> None:
    """The 257th is told to stop some; when they are gone there is room again."""
    names = []
    while (answer := agent.unary(f"{FILESYSTEM}/CreateWatcher", {"path": folder})).status_code == 200:
        names.append(answer.json()["watcherId"])
    assert len(names) == 256
    assert answer.json()["code"] == "resource_exhausted"
    for name in names:
        agent.unary(f"{FILESYSTEM}/RemoveWatcher", {"watcherId": name})
    with polled(agent, folder):
        pass


def test_a_large_tree_can_be_watched_and_a_mount_of_itself_ends(agent: Agent, folder: str) -> None:
    """Thousands of directories are watched; one that is mounted into itself is no endless tree."""
    for number in range(3000):
        os.makedirs(f"{folder}/{number % 50}/{number}")
    with polled(agent, folder, recursive=True) as watcher:
        Path(folder, "49/2999/f").touch()
        assert watcher.events()[0] == "CREATE 49/2999/f"
    if os.geteuid() == 0:
        assert os.system(f"mount --bind {folder} {folder}/0") == 0
        try:
            with polled(agent, folder, recursive=True) as watcher:
                Path(folder, "1/f").touch()
                assert watcher.events()[0] == "CREATE 1/f"
        finally:
            assert os.system(f"umount {folder}/0") == 0


def test_an_overflow_of_the_kernels_queue_is_told(agent: Agent, folder: str) -> None:
    """When the agent itself could not keep up, every watcher says that events are missing."""
    with polled(agent, folder) as watcher:
        agent.process.send_signal(signal.SIGSTOP)
        try:
            for number in range(20_000):
                Path(folder, f"{number % 7}").touch()
                os.unlink(f"{folder}/{number % 7}")
        finally:
            agent.process.send_signal(signal.SIGCONT)
        assert watcher.ask()["code"] == "data_loss"
    with polled(agent, folder) as watcher:
        Path(folder, "again").touch()
        assert watcher.events() == ["CREATE again"]


@contextmanager
def fuse_mount(place: str) -> Iterator[None]:
    """A filesystem of FUSE with nothing in it, served by a thread that knows four requests."""
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other"
    if libc.mount(b"fuse", place.encode(), b"fuse", 0, options.encode()):
        os.close(device)
        pytest.skip("FUSE cannot be mounted here")

    def serve() -> None:
        attributes = struct.pack("<6Q10I", 1, 0, 0, 0, 0, 0, 0, 0, 0, 0o40755, 2, 0, 0, 0, 4096, 0)
        with suppress(OSError):
            while True:
                request = os.read(device, 1 << 20)
                operation, unique = struct.unpack_from("<4xIQ", request)
                replies = {
                    26: struct.pack("<4I2H2I28x", 7, 31, 65536, 0, 12, 10, 65536, 1),
                    3: struct.pack("<QII", 1, 0, 0) + attributes,
                    17: struct.pack("<5Q10I", 0, 0, 0, 0, 0, 4096, 255, 4096, *[0] * 7),
                }
                if operation in replies:
                    os.write(device, struct.pack("<IiQ", 16 + len(replies[operation]), 0, unique) + replies[operation])
                elif operation not in (2, 42):
                    os.write(device, struct.pack("<IiQ", 16, -errno.ENOSYS, unique))

    server = threading.Thread(target=serve)
    server.start()
    try:
        yield
    finally:
        assert libc.umount2(place.encode(), 2) == 0
        server.join(20)
        os.close(device)


def test_network_filesystems_are_watched_on_request_only(agent: Agent, folder: str) -> None:
    """Of a filesystem that others change without this kernel's knowledge the client must say that it wants it."""
    if os.geteuid() != 0:
        pytest.skip("needs root: mounts a filesystem")
    with fuse_mount(folder):
        answer = agent.unary(f"{FILESYSTEM}/CreateWatcher", {"path": folder})
        expected = f"cannot watch path on network filesystem: {folder}"
        assert answer.json() == {"code": "invalid_argument", "message": expected}
        with polled(agent, folder, allowNetworkMounts=True) as watcher:
            assert watcher.events() == []
