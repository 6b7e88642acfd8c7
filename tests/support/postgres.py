"""A private PostgreSQL server for tests: own directory, own unix socket, no TCP; gone when the block ends."""

import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BIN_DIRS = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)


def missing() -> str | None:
    """Why no server can be started here; None when one can."""
    if not BIN_DIRS:
        return "PostgreSQL is not installed (Debian: apt install postgresql)"
    if os.geteuid() == 0:
        try:
            pwd.getpwnam("postgres")
        except KeyError:
            return "there is no user 'postgres' to run PostgreSQL as"
    return None


def _run(*argv: str | Path) -> None:
    user = "postgres" if os.geteuid() == 0 else None
    subprocess.run([str(part) for part in argv], check=True, capture_output=True, user=user, cwd="/", timeout=60)


@contextmanager
def postgres_server() -> Iterator[Path]:
    """Run a server; yields the directory of its socket."""
    root = Path(tempfile.mkdtemp(prefix="fbpg-"))
    if os.geteuid() == 0:
        shutil.chown(root, "postgres", "postgres")
    data, binaries = root / "data", BIN_DIRS[0]
    try:
        _run(binaries / "initdb", "-D", data, "-U", "postgres", "--auth=trust", "--no-sync", "-E", "UTF8")
        options = f"-c listen_addresses='' -k {root} -c fsync=off -c max_connections=60"
        _run(binaries / "pg_ctl", "-D", data, "-w", "-l", root / "log", "-o", options, "start")
        try:
            yield root
        finally:
            _run(binaries / "pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(root)


@contextmanager
def postgres_database(socket_dir: Path) -> Iterator[str]:
    """An empty database on that server; yields its URL."""
    name = f"t{uuid.uuid4().hex}"
    connect = ("-h", socket_dir, "-U", "postgres")
    _run(BIN_DIRS[0] / "createdb", *connect, name)
    try:
        yield f"postgresql+asyncpg://postgres@/{name}?host={socket_dir}"
    finally:
        # Without --force: a connection that a test left open makes this fail, and so fails the test.
        _run(BIN_DIRS[0] / "dropdb", *connect, name)
