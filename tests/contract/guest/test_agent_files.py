"""Files: over HTTP as the protocol has it, and through the official SDK."""

import gzip
import io
import os
import pwd
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from e2b import NotEnoughSpaceException, Sandbox
from e2b.exceptions import FileNotFoundException, InvalidArgumentException
from e2b.sandbox.filesystem.filesystem import FileType, WriteEntry
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.contract.guest.agent import ACCESS_TOKEN, Agent

OCTETS = {"Content-Type": "application/octet-stream"}


def put(agent: Agent, path: str, data: object, **headers: str) -> int:
    answer = agent.request("POST", "/files", params={"path": path}, content=data, headers={**OCTETS, **headers})
    return int(answer.status_code)


def test_files_are_the_users(agent: Agent, folder: str, sandbox: Sandbox) -> None:
    """A new file and its new directories belong to the user, 0644 and 0755."""
    told = sandbox.files.write(f"{folder}/new/deep/a.txt", "hello")
    assert told.path == f"{folder}/new/deep/a.txt"
    uid = pwd.getpwnam(agent.user).pw_uid
    assert {os.stat(path).st_uid for path in (told.path, f"{folder}/new", f"{folder}/new/deep")} == {uid}
    info = sandbox.files.get_info(told.path)
    assert (info.permissions, info.mode, info.size, info.owner) == ("-rw-r--r--", 0o644, 5, agent.user)
    assert sandbox.files.get_info(f"{folder}/new").permissions == "drwxr-xr-x"
    assert sandbox.files.read(told.path) == "hello"


@pytest.mark.parametrize("name", ["a b", "é+%41", "naïve\u202e.txt", "quote'\"\\", "-x", "…" * 60])
def test_names_survive(folder: str, sandbox: Sandbox, name: str) -> None:
    """Any name is written, listed and read as it is."""
    sandbox.files.write(f"{folder}/{name}", name)
    assert [entry.name for entry in sandbox.files.list(folder)] == [name]
    assert sandbox.files.read(f"{folder}/{name}") == name


@given(data=st.binary(max_size=3000))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_bytes_survive(agent: Agent, folder: str, data: bytes) -> None:
    """What is written plain, gzipped or as multipart is read back exactly."""
    path = f"{folder}/bytes"
    assert put(agent, path, data) == 200
    assert agent.request("GET", "/files", params={"path": path}).content == data
    assert put(agent, path, gzip.compress(data), **{"Content-Encoding": "gzip"}) == 200
    assert Path(path).read_bytes() == data
    assert agent.request("POST", "/files", params={"path": path}, files={"file": ("x", data)}).status_code == 200
    assert Path(path).read_bytes() == data


def test_an_upload_replaces_in_place(agent: Agent, folder: str) -> None:
    """A shorter upload leaves nothing of the longer one, keeps the inode and follows a link."""
    path = Path(folder, "f")
    path.write_bytes(b"long content")
    inode = path.stat().st_ino
    Path(folder, "link").symlink_to("f")
    assert put(agent, f"{folder}/link", b"new") == 200
    assert (path.read_bytes(), path.stat().st_ino) == (b"new", inode)


def test_several_files_at_once_keep_their_order(agent: Agent, folder: str) -> None:
    """One multipart request writes many files; the answer is in the request's order, and a path twice is refused."""
    files = [("file", (f"{folder}/d{index % 2}/{index}", str(index).encode())) for index in range(20)]
    answer = agent.request("POST", "/files", files=files)
    assert [item["path"] for item in answer.json()] == [name for _, (name, _) in files]
    answer = agent.request("POST", "/files", files=[files[0], files[0]])
    assert answer.status_code == 400


def test_the_sdk_writes_many(folder: str, sandbox: Sandbox) -> None:
    """write_files works with text, bytes and streams."""
    written = sandbox.files.write_files(
        [
            WriteEntry(path=f"{folder}/1", data="text"),
            WriteEntry(path=f"{folder}/2", data=b"bytes"),
            WriteEntry(path=f"{folder}/3", data=io.BytesIO(b"stream")),
        ]
    )
    assert [info.name for info in written] == ["1", "2", "3"]
    assert sandbox.files.read(f"{folder}/2", format="bytes") == b"bytes"
    assert b"".join(sandbox.files.read(f"{folder}/3", format="stream")) == b"stream"


def test_large_files_pass_with_flat_memory(agent: Agent, folder: str) -> None:
    """A hundred megabytes go up in chunks and come down in pieces without the agent growing."""
    piece, count = os.urandom(1 << 20), 100
    before = agent.rss_kib

    def pieces() -> Iterator[bytes]:
        for _ in range(count):
            yield piece

    assert put(agent, f"{folder}/big", pieces()) == 200
    assert Path(folder, "big").stat().st_size == count << 20
    headers = {"X-Access-Token": ACCESS_TOKEN}
    with agent.http.stream("GET", "/files", params={"path": f"{folder}/big"}, headers=headers) as answer:
        assert sum(len(part) for part in answer.iter_bytes()) == count << 20
    assert agent.rss_kib - before < 20_000
    Path(folder, "big").unlink()


def test_a_gzip_bomb_is_written_in_pieces(agent: Agent, folder: str) -> None:
    """What unpacks to a thousand times its size costs disk and no memory."""
    before = agent.rss_kib
    assert put(agent, f"{folder}/bomb", gzip.compress(bytes(60 << 20)), **{"Content-Encoding": "gzip"}) == 200
    assert Path(folder, "bomb").stat().st_size == 60 << 20
    assert agent.rss_kib - before < 20_000
    Path(folder, "bomb").unlink()


@pytest.mark.parametrize(
    ("accepted", "coding"),
    [
        ("gzip", "gzip"),
        ("gzip;q=0.5, identity;q=0", "gzip"),
        ("*;q=0, gzip", "gzip"),
        ("identity;q=0", 406),
        ("gzip, deflate", None),
        ("gzip, deflate, br, zstd", None),
        ("gzip;q=0", None),
        ("identity", None),
        ("", None),
        ("*;q=0", 406),
        ("br;q=1, identity;q=0", 406),
        ("gzip;q=nonsense", "gzip"),
    ],
)
def test_downloads_are_packed_for_who_asks_for_just_that(
    agent: Agent, folder: str, accepted: str, coding: str | int | None
) -> None:
    """gzip goes to a client that names nothing else or refuses identity; a library's usual list gets the plain file."""
    data = b"text " * 200_000
    path = Path(folder, "t.txt")
    path.write_bytes(data)
    answer = agent.request("GET", "/files", params={"path": str(path)}, headers={"Accept-Encoding": accepted})
    if isinstance(coding, int):
        assert answer.status_code == coding
        return
    assert (answer.status_code, answer.headers.get("content-encoding")) == (200, coding)
    assert answer.content == data
    ranged = {"Accept-Encoding": accepted, "Range": "bytes=5-8"}
    if "identity;q=0" not in accepted and not accepted.startswith("*;q=0"):
        answer = agent.request("GET", "/files", params={"path": str(path)}, headers=ranged)
        assert (answer.status_code, answer.content) == (206, b"text")
    path.write_bytes(b"")
    assert agent.request("GET", "/files", params={"path": str(path)}, headers={"Accept-Encoding": accepted}).text == ""


def test_a_long_download_tells_its_length_and_breaks_when_the_file_shrinks(agent: Agent, folder: str) -> None:
    """A long file has a Content-Length; one that is cut off on its way ends in a broken connection, not in silence."""
    path = Path(folder, "big")
    path.write_bytes(bytes(64 << 20))
    headers = {"X-Access-Token": ACCESS_TOKEN}
    with agent.http.stream("GET", "/files", params={"path": str(path)}, headers=headers) as answer:
        assert answer.headers["content-length"] == str(64 << 20)
        pieces = answer.iter_raw(1000)
        next(pieces)
        os.truncate(path, 0)
        with pytest.raises(httpx.RemoteProtocolError):
            for _ in pieces:
                pass
    assert agent.http.get("/health").status_code == 204


def test_a_client_may_hang_up_its_half_and_still_download(agent: Agent, folder: str) -> None:
    """A client that has said all it has to say is sent the whole file, however long that takes."""
    Path(folder, "big").write_bytes(os.urandom(16 << 20))
    head = f"GET /files?path={folder}/big HTTP/1.1\r\nX-Access-Token: {ACCESS_TOKEN}\r\nAccept-Encoding: gzip\r\n\r\n"
    with socket.socket() as patient, socket.create_connection(("127.0.0.1", agent.port), timeout=20) as other:
        patient.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        patient.settimeout(20)
        patient.connect(("127.0.0.1", agent.port))
        patient.sendall(head.encode())
        patient.shutdown(socket.SHUT_WR)
        size = len(patient.recv(4096))
        # A stream that hangs up later is probed: by then the agent has looked after the download, too.
        body = b'{"path":"/proc/self"}'
        watch = f"POST /filesystem.Filesystem/WatchDir HTTP/1.1\r\nX-Access-Token: {ACCESS_TOKEN}\r\n"
        watch += "Keepalive-Ping-Interval: 1\r\nContent-Type: application/connect+json\r\n"
        watch += f"Content-Length: {len(body) + 5}\r\n\r\n"
        other.sendall(watch.encode() + b"\0" + len(body).to_bytes(4, "big") + body)
        other.shutdown(socket.SHUT_WR)
        probed = b""
        while b"keepalive" not in probed:
            probed += other.recv(4096)
        while piece := patient.recv(65536):
            size += len(piece)
    assert size > 16 << 20


def test_files_are_joined(agent: Agent, folder: str) -> None:
    """Compose puts files one behind the other, owned by the user, and removes them; a failure changes nothing."""

    def compose(*sources: str, to: str, **fields: object) -> httpx.Response:
        body = {"source_paths": list(sources), "destination": to, **fields}
        return agent.request("POST", "/files/compose", json=body)

    for name in "abc":
        Path(folder, name).write_text(name * 70_000)
    answer = compose(f"{folder}/b", f"{folder}/a", to=f"{folder}/new/joined")
    assert answer.json() == {"path": f"{folder}/new/joined", "name": "joined", "type": "file"}
    joined = Path(folder, "new/joined")
    assert joined.read_text() == "b" * 70_000 + "a" * 70_000
    assert joined.owner() == agent.user
    assert sorted(os.listdir(folder)) == ["c", "new"]
    for sources, to, status in (
        ([], "x", 400),
        ([f"{folder}/c"], "", 400),
        ([f"{folder}/c"], f"{folder}/c", 400),
        ([f"{folder}/c"], folder, 400),
        ([folder], f"{folder}/x", 400),
        ([f"{folder}/c", f"{folder}/no"], f"{folder}/x", 404),
        ([f"{folder}/c"], "~other/x", 400),
    ):
        assert compose(*sources, to=to).status_code == status, to
    assert compose(f"{folder}/c", to="x", username="nobody-here").status_code == 401
    assert agent.request("POST", "/files/compose", content=b"{").status_code == 400
    assert agent.http.post("/files/compose", json={}).status_code == 401
    assert sorted(os.listdir(folder)) == ["c", "new"]
    Path(folder, "boot").symlink_to("/proc/sys/kernel/random/boot_id")
    assert compose(f"{folder}/boot", to=f"{folder}/c").status_code == 200
    assert Path(folder, "c").read_text() == Path("/proc/sys/kernel/random/boot_id").read_text()


def test_names_that_are_not_text(agent: Agent, folder: str, sandbox: Sandbox) -> None:
    """A name of any bytes can be written, read and removed; where JSON must tell it, it shows what it cannot say."""
    query = f"path={folder}/%ff%0a%41"
    headers = {"X-Access-Token": ACCESS_TOKEN, **OCTETS}
    assert agent.http.post(f"/files?{query}", content=b"x", headers=headers).status_code == 200
    assert os.listdir(os.fsencode(folder)) == [b"\xff\nA"]
    assert agent.http.get(f"/files?{query}", headers=headers).content == b"x"
    assert [entry.name for entry in sandbox.files.list(folder)] == ["\ufffd\nA"]


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"Content-Encoding": "gzip"}, b"not gzip"),
        ({"Content-Encoding": "gzip"}, gzip.compress(b"x" * 1000)[:-9]),
        ({"Content-Encoding": "br"}, b"x"),
        ({"Content-Type": "text/plain"}, b"x"),
        ({"Content-Type": "multipart/form-data"}, b"x"),
        ({"Content-Type": "multipart/form-data; boundary=B"}, b"--B\r\nContent-Disposition: form-data\r\n\r\nx"),
        ({"X-Metadata-" + "k" * 247: "v"}, b"x"),
        ({"X-Metadata-k": "v" * 5000}, b"x"),
    ],
)
def test_bad_uploads_are_refused(agent: Agent, folder: str, headers: dict[str, str], body: bytes) -> None:
    """Broken codings, unknown types and oversized metadata are 400."""
    assert put(agent, f"{folder}/x", body, **headers) == 400


def test_only_regular_files_are_written_and_read(agent: Agent, folder: str) -> None:
    """Directories, FIFOs and devices are 400 and hang nobody; a file as parent is 500, as E2B has it."""
    os.mkfifo(f"{folder}/fifo")
    for path in (folder, f"{folder}/fifo", "/dev/null"):
        assert put(agent, path, b"x") == 400
        assert agent.request("GET", "/files", params={"path": path}).status_code == 400
    Path(folder, "f").touch()
    assert put(agent, f"{folder}/f/x", b"x") == 500
    assert agent.request("GET", "/files", params={"path": f"{folder}/f/x"}).status_code == 404
    missing = agent.request("GET", "/files", params={"path": f"{folder}/no"})
    assert missing.json() == {"code": 404, "message": f"path '{folder}/no' does not exist"}
    assert (
        agent.request("GET", "/files", params={"path": folder}).json()["message"] == f"path '{folder}' is a directory"
    )
    for path in ("a\0b", "~root/x"):
        assert agent.request("GET", "/files", params={"path": path}).status_code == 400
    answer = agent.request("GET", "/files", params={"path": "/x", "username": "nobody-here"})
    assert answer.status_code == 401
    assert answer.json()["message"].startswith("error looking up user 'nobody-here'")


def test_files_without_a_size_are_read_to_their_end(agent: Agent) -> None:
    """Files of /proc say that they are empty, and are not."""
    boot_id = agent.request("GET", "/files", params={"path": "/proc/sys/kernel/random/boot_id"})
    assert boot_id.text == Path("/proc/sys/kernel/random/boot_id").read_text()
    assert agent.request("GET", "/files", params={"path": "/proc/cpuinfo"}).text.startswith("processor")


@pytest.mark.parametrize(
    ("wanted", "status", "content"),
    [
        ("bytes=0-3", 206, b"0123"),
        ("bytes=8-", 206, b"89"),
        ("bytes=-2", 206, b"89"),
        ("bytes=2-100", 206, b"23456789"),
        ("bytes=10-", 416, None),
        ("bytes=5-2", 200, b"0123456789"),
        ("bytes=" + ",".join(["0-9"] * 1000), 200, b"0123456789"),
        ("lines=1-2", 200, b"0123456789"),
        ("bytes=-", 200, b"0123456789"),
    ],
)
def test_ranges(agent: Agent, folder: str, wanted: str, status: int, content: bytes | None) -> None:
    """One range is served, one outside is 416, and what is no range or many is the whole file."""
    Path(folder, "r").write_bytes(b"0123456789")
    answer = agent.request("GET", "/files", params={"path": f"{folder}/r"}, headers={"Range": wanted})
    assert answer.status_code == status
    assert content is None or answer.content == content


def test_an_unchanged_file_is_not_sent_again(agent: Agent, folder: str) -> None:
    """If-None-Match and If-Modified-Since give 304 until the file changes."""
    path = Path(folder, "c")
    path.write_text("1")
    first = agent.request("GET", "/files", params={"path": str(path)})
    for header, answer_header in (("If-None-Match", "etag"), ("If-Modified-Since", "last-modified")):
        headers = {header: first.headers[answer_header]}
        assert agent.request("GET", "/files", params={"path": str(path)}, headers=headers).status_code == 304
    path.write_text("22")
    headers = {"If-None-Match": first.headers["etag"]}
    assert agent.request("GET", "/files", params={"path": str(path)}, headers=headers).content == b"22"
    refused = agent.request("GET", "/files", params={"path": str(path)}, headers={"Accept-Encoding": "identity;q=0"})
    assert refused.status_code == 406


def test_metadata_is_the_last_uploads(folder: str, sandbox: Sandbox) -> None:
    """Metadata is kept as attributes, replaced as a whole, survives a rename and is absent when there is none."""
    path = f"{folder}/m"
    assert sandbox.files.write(path, "x", metadata={"author": "me", "n": "1"}).metadata == {"author": "me", "n": "1"}
    assert os.getxattr(path, "user.e2b.author") == b"me"
    os.setxattr(path, "user.e2b.extra", b"2")
    assert sandbox.files.get_info(path).metadata == {"author": "me", "n": "1", "extra": "2"}
    assert sandbox.files.rename(path, f"{folder}/m2").metadata is not None
    assert sandbox.files.write(f"{folder}/m2", "y").metadata is None


def test_the_tree_is_listed_in_order(folder: str, sandbox: Sandbox) -> None:
    """Listing is lexical and depth first, to the depth asked for, without the root."""
    for name in ("b/c/d", "b/a", "a"):
        sandbox.files.write(f"{folder}/{name}", "")
    names = [entry.path.removeprefix(folder) for entry in sandbox.files.list(folder, depth=2)]
    assert names == ["/a", "/b", "/b/a", "/b/c"]
    assert [entry.name for entry in sandbox.files.list(folder)] == ["a", "b"]


def test_links_are_told_as_links(folder: str, sandbox: Sandbox) -> None:
    """A link has its target; a broken one exists."""
    sandbox.files.write(f"{folder}/file", "x")
    os.symlink("file", f"{folder}/link")
    os.symlink("nowhere", f"{folder}/broken")
    info = sandbox.files.get_info(f"{folder}/link")
    assert (info.symlink_target, info.permissions[0]) == (f"{folder}/file", "L")
    assert sandbox.files.exists(f"{folder}/broken")


def test_directories_are_made_moved_and_removed(folder: str, sandbox: Sandbox) -> None:
    """make_dir says whether it was new, rename makes parents, remove is recursive and needs nothing to be there."""
    assert sandbox.files.make_dir(f"{folder}/x/y") is True
    assert sandbox.files.make_dir(f"{folder}/x/y") is False
    moved = sandbox.files.rename(f"{folder}/x", f"{folder}/new/place")
    assert (moved.path, moved.type) == (f"{folder}/new/place", FileType.DIR)
    sandbox.files.remove(f"{folder}/new")
    sandbox.files.remove(f"{folder}/new")
    assert not sandbox.files.exists(f"{folder}/new")
    for missing in (
        lambda: sandbox.files.rename(f"{folder}/no", f"{folder}/x"),
        lambda: sandbox.files.list(f"{folder}/no"),
    ):
        with pytest.raises(FileNotFoundException):
            missing()
    sandbox.files.write(f"{folder}/file", "")
    for wrong in (lambda: sandbox.files.make_dir(f"{folder}/file"), lambda: sandbox.files.list(f"{folder}/file")):
        with pytest.raises(InvalidArgumentException):
            wrong()


@pytest.mark.parametrize("path", ["/" + "a/" * 10_000, "/" + "x" * 300, "a\0b"])
@pytest.mark.parametrize("procedure", ["Stat", "MakeDir", "ListDir", "Remove"])
def test_impossible_paths_are_refused(agent: Agent, procedure: str, path: str) -> None:
    """Paths that no kernel takes are invalid arguments, not faults."""
    answer = agent.unary(f"filesystem.Filesystem/{procedure}", {"path": path})
    assert answer.json()["code"] == "invalid_argument"


def test_a_link_loop_is_a_failed_precondition(agent: Agent, folder: str) -> None:
    """A loop of links ends with its own error."""
    os.symlink("loop", f"{folder}/loop")
    answer = agent.unary("filesystem.Filesystem/ListDir", {"path": f"{folder}/loop"})
    assert answer.json()["code"] == "failed_precondition"


def test_a_full_disk_is_told(agent: Agent, sandbox: Sandbox, folder: str) -> None:
    """No space left is 507, which the SDK raises as NotEnoughSpaceException."""
    if os.geteuid() != 0:
        pytest.skip("needs root: mounts a small filesystem")
    small = Path(folder, "small")
    small.mkdir()
    assert os.system(f"mount -t tmpfs -o size=1m,nr_inodes=64 none {small}") == 0
    try:
        with pytest.raises(NotEnoughSpaceException):
            sandbox.files.write(f"{small}/f", b"x" * 3_000_000)
    finally:
        assert os.system(f"umount {small}") == 0


def test_a_client_that_goes_away_in_an_upload_leaves_nothing_open(agent: Agent, folder: str) -> None:
    """A broken upload closes its file, and the agent goes on."""
    head = f"POST /files?path={folder}/half HTTP/1.1\r\nX-Access-Token: {ACCESS_TOKEN}\r\n"
    head += "Content-Type: application/octet-stream\r\nContent-Length: 1000000\r\n\r\n"
    with socket.create_connection(("127.0.0.1", agent.port), timeout=20) as connection:
        connection.sendall(head.encode() + b"x" * 1000)
    assert agent.http.get("/health").status_code == 204
