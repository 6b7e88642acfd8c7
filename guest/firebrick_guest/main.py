"""The agent's life: take the environment, listen, serve until told to end."""

import asyncio
import gc
import os
import resource
import signal
import sys

from firebrick_guest.http import HttpServer
from firebrick_guest.limits import LimitWatch, process_soft_limit
from firebrick_guest.logs import EventLog
from firebrick_guest.process_rpc import ProcessService
from firebrick_guest.reaper import Reaper
from firebrick_guest.routes import Routes
from firebrick_guest.settings import Settings
from firebrick_guest.sudo_door import SudoDoor
from firebrick_guest.users import Accounts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from firebrick_guest.guard import MemoryGuard

DEFAULT_PORT = 49983
TOKEN_VARIABLE = "FIREBRICK_CONTROL_TOKEN"
PORT_VARIABLE = "FIREBRICK_AGENT_PORT"
GUARD_VARIABLE = "FIREBRICK_MEMORY_GUARD_BYTES"
HOST_VARIABLE = "FIREBRICK_AGENT_HOST"
LINE_VARIABLE = "FIREBRICK_AGENT_VSOCK_PORT"
"""Set where this machine has a kernel of its own, and a vsock that leads to its host alone."""
SUDO_VARIABLE = "FIREBRICK_SUDO_SOCKET"
"""Set where the runtime ignores setuid programs: the name that our `sudo` is told to ask at."""


async def serve(control_token: str, host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT, then end every process."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    log = EventLog()
    settings = Settings(control_token, Accounts(), os.environ.get("PATH", ""))
    limits = LimitWatch(log)
    reaper = Reaper(limits.note_kill)
    reaper.open()
    open_files_count = _raise_descriptor_limit()
    processes = ProcessService(settings, reaper, log, limits, open_files_count)
    usual = (open_files_count, process_soft_limit(resource.getrlimit(resource.RLIMIT_NPROC)[1], 0))
    door = SudoDoor(os.environ.get(SUDO_VARIABLE, ""), settings.accounts, reaper, log, usual)
    door.open()
    server = HttpServer(Routes(settings, processes, log, limits).serve, lambda: limits.hit("connections"))
    bound = await server.listen(host, port)
    if line := os.environ.pop(LINE_VARIABLE, ""):
        await server.listen_for_host(int(line))
    # The host looks for /health, but whoever starts us on port 0 has only this line to learn the port from.
    print(f"firebrick-guest listening on port {bound}", flush=True)
    guard = _guard(limits)
    # What is alive now lives as long as we do, and need not be looked at again.
    gc.freeze()
    try:
        await stopped.wait()
    finally:
        await server.close()
        door.close()
        if guard:
            guard.close()
        reaper.close()
        reaper.kill_all()


def main() -> int:
    control_token = os.environ.pop(TOKEN_VARIABLE, "")
    if not control_token:
        print(f"firebrick-guest: {TOKEN_VARIABLE} is not set", file=sys.stderr)
        return 2
    _occupy_standard_descriptors()
    os.umask(0o022)
    host = os.environ.get(HOST_VARIABLE, "0.0.0.0")
    port = int(os.environ.get(PORT_VARIABLE, DEFAULT_PORT))
    asyncio.run(serve(control_token, host, port))
    return 0


def _occupy_standard_descriptors() -> None:
    """Children take 0, 1 and 2 for granted; started without them we would hand out our own sockets there."""
    for standard in range(3):
        try:
            os.fstat(standard)
        except OSError:
            # The lowest free number is taken, so this one is.
            os.open("/dev/null", os.O_RDWR)


def _raise_descriptor_limit() -> int:
    """Let us have many commands at once; the limit we came with is what they get."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return soft


def _guard(limits: LimitWatch) -> "MemoryGuard | None":
    """Where the host asks for it, because this kernel kills nobody for memory but itself."""
    limit = os.environ.pop(GUARD_VARIABLE, "")
    if not limit:
        return None
    from firebrick_guest.guard import MemoryGuard

    guard = MemoryGuard(int(limit), limits)
    guard.start()
    return guard


if __name__ == "__main__":
    sys.exit(main())
