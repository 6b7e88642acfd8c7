"""POST /files/compose: join files into one. The sources are gone afterwards; until then nothing is lost."""

import asyncio
import os
import stat
from binascii import hexlify
from collections.abc import Callable
from errno import EINVAL, ENOSYS, EOPNOTSUPP, EXDEV

from firebrick_guest.errors import ConnectError, HttpError, http_error_of
from firebrick_guest.http import BULK_BYTES, Exchange
from firebrick_guest.json_text import load_json, text, text_list
from firebrick_guest.settings import Settings
from firebrick_guest.users import User, make_parents, resolve_path
from firebrick_guest.watching import Watches

MAX_REQUEST_BYTES = 16 * 1024 * 1024
# Copied without a look at whether anybody still wants it.
_STEP_BYTES = 64 * BULK_BYTES
_NO_COPY_IN_KERNEL = (EINVAL, ENOSYS, EOPNOTSUPP, EXDEV)


async def compose(exchange: Exchange, settings: Settings, watches: Watches) -> None:
    """Raises HttpError 400, 401 (no such user), 404 (a source is missing), 507 (no space)."""
    body = bytes(await exchange.read_all(MAX_REQUEST_BYTES))
    watches.catch_up()
    try:
        request = load_json(body)
        names = text_list(request, "source_paths")
        wanted, who = text(request, "destination"), text(request, "username")
    except ConnectError as exc:
        raise HttpError(400, f"invalid request body: {exc.message}") from exc
    if not names:
        raise HttpError(400, "source_paths must not be empty")
    if not wanted:
        raise HttpError(400, "destination is required")
    try:
        user = settings.user(who)
    except ConnectError as exc:
        raise HttpError(401, f"error looking up user '{who}': {exc.message}") from exc
    try:
        target = resolve_path(wanted, user, settings.default_workdir)
        sources = [(name, resolve_path(name, user, settings.default_workdir)) for name in names]
    except ConnectError as exc:
        raise HttpError(400, exc.message) from exc
    _check(sources, target)
    is_stopped = False
    paths = [path for _, path in sources]
    joined = asyncio.get_running_loop().run_in_executor(None, _join, paths, target, user, lambda: is_stopped)
    try:
        await asyncio.shield(joined)
    except asyncio.CancelledError:
        # Nobody waits for the answer any more, but its files must not be left half done.
        is_stopped = True
        await asyncio.wait([joined])
        raise
    except OSError as exc:
        raise http_error_of(exc, f"cannot compose {target}") from exc
    exchange.answer_json(200, {"path": target, "name": target.rpartition("/")[2], "type": "file"})


def _check(sources: list[tuple[str, str]], target: str) -> None:
    for name, path in sources:
        if path == target:
            raise HttpError(400, f"source path '{name}' cannot be the same as destination")
        try:
            found = os.stat(path)
        except OSError as exc:
            raise HttpError(404, f"source file not found: {name}") from exc
        if not stat.S_ISREG(found.st_mode):
            raise HttpError(400, f"source path is not a regular file: {name}")
    if os.path.isdir(target):
        raise HttpError(400, f"path is a directory: {target}")


def _join(sources: list[str], target: str, user: User, is_stopped: Callable[[], bool]) -> None:
    """Raises OSError; then `target` is as it was, and every source is there."""
    make_parents(target.rpartition("/")[0], user)
    # Beside the target, so that the rename cannot fail for want of space or for another filesystem.
    scratch = f"{target.rpartition('/')[0]}/.firebrick-compose-{hexlify(os.urandom(8)).decode()}"
    output = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        try:
            os.fchown(output, user.uid, user.gid)
            for path in sources:
                _append(path, output, is_stopped)
        finally:
            os.close(output)
        os.rename(scratch, target)
    except BaseException:
        os.unlink(scratch)
        raise
    for path in set(sources):
        os.unlink(path)


def _append(path: str, output: int, is_stopped: Callable[[], bool]) -> None:
    source = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        copy = _copy_in_kernel
        while True:
            if is_stopped():
                raise InterruptedError
            try:
                count = copy(source, output)
                if not count and copy is _copy:
                    return
                if not count:
                    # The kernel goes by the size, and a file of /proc has none; only a read tells the end.
                    copy = _copy
            except OSError as exc:
                if copy is _copy or exc.errno not in _NO_COPY_IN_KERNEL:
                    raise
                copy = _copy
    finally:
        os.close(source)


def _copy_in_kernel(source: int, output: int) -> int:
    return os.copy_file_range(source, output, _STEP_BYTES)


def _copy(source: int, output: int) -> int:
    data = os.read(source, BULK_BYTES)
    view = memoryview(data)
    while view:
        view = view[os.write(output, view) :]
    return len(data)
