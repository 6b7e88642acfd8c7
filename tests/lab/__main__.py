"""`./dev lab`: see docs/reference/lab.md."""

import argparse
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from tests.lab import parts
from tests.lab.channel import Channel, ChannelBroken, to_our_output
from tests.lab.fleet import MAX_COUNT, MEMORY_MIB, Fleet, get_results, own_folder, put_checkout, running_fleet
from tests.lab.outer import OuterFailed
from tests.lab.root import CHECKOUT_INSIDE
from tests.lab.shelf import CACHE_INSIDE
from tests.lab.whole import INSTANCE_VARIABLE, SLOWNESS, fill_shelf, whole_instance
from tests.support import official_suite

RESULTS = parts.CHECKOUT / "build" / "lab"
TEST_TIMEOUT_S = 1200
"""A test's own deadline inside: emulation is 10 to 30 times slower."""
SILENT_TIMEOUT_S = 3600
TEST_ENV = {"FIREBRICK_IN_LAB": "1", "FIREBRICK_TEST_CACHE": CACHE_INSIDE}
"""Not for other commands: `firebrick` takes them for settings, and refuses those."""


def main(argv: list[str]) -> int:
    options = _parse(argv)
    try:
        status: int = options.act(options)
    except (parts.PartMissing, OuterFailed, ChannelBroken, KeyError, RuntimeError, TimeoutError) as exc:
        print(f"lab: {exc.args[0] if exc.args else exc!r}", file=sys.stderr)
        return 125
    return status


def up(options: argparse.Namespace) -> int:
    if found := Fleet.find(own_folder()):
        print(f"up already: {', '.join(outer.name for outer in found.outers)}")
        return 0
    before = time.monotonic()
    found = Fleet.up(own_folder(), count=options.count, memory_mib=options.memory, cold=options.cold)
    print(f"up in {time.monotonic() - before:.1f} s: {', '.join(outer.name for outer in found.outers)}")
    return 0


def run(options: argparse.Namespace) -> int:
    if not options.command:
        print("lab: name a command, as in: ./dev lab run lab-check", file=sys.stderr)
        return 2
    # One word is a line for the shell, several are a command and its arguments: as with ssh and docker.
    words = options.command if len(options.command) > 1 else ["/bin/sh", "-c", options.command[0]]
    return _inside(options, words)


def test(options: argparse.Namespace) -> int:
    pytest = ["/venv/bin/python", "-m", "pytest", "-o", f"timeout={TEST_TIMEOUT_S}", "-p", "no:cacheprovider"]
    # Its plugin takes half of pytest's start, and the tests that need it need no lab.
    pytest += ["-p", "no:schemathesis"]
    return _inside(options, [*pytest, "--junit-xml=/results/junit.xml", *options.command], TEST_ENV)


def e2e(options: argparse.Namespace) -> int:
    """The tests of whole instances here, as clients of one in a machine: a client needs not be emulated."""
    pytest = [sys.executable, "-m", "pytest", "-o", f"timeout={TEST_TIMEOUT_S}", "-k", "firecracker"]
    env = {**os.environ, INSTANCE_VARIABLE: "1", "FIREBRICK_TEST_SLOWNESS": str(SLOWNESS)}
    return subprocess.run([*pytest, *(options.command or ["tests/e2e"])], cwd=parts.CHECKOUT, env=env).returncode


def suite(options: argparse.Namespace) -> int:
    """E2B's own suite of its Python SDK here, as clients of an instance on microVMs in a machine."""
    folder = Path(options.command[0]) if options.command else Path()
    if not (folder / "tests").is_dir():
        print("lab: name the folder packages/python-sdk of a checkout of E2B's repository", file=sys.stderr)
        return 2
    fill_shelf()
    with (
        official_suite.prepared(folder) as place,
        running_fleet(own_folder()) as found,
        whole_instance(found.outers[0]) as instance,
    ):
        # One at a time: some have three sandboxes, which is what a machine holds.
        return official_suite.run(place, instance, options.command[1:], slowness=SLOWNESS, at_once=1)


def _inside(options: argparse.Namespace, words: list[str], env: Mapping[str, str] | None = None) -> int:
    """Run in the fleet that is up, or in one for this command alone."""
    with running_fleet(own_folder()) as found:
        channel = replace(found.channel(options.on), env=env or {})
        put_checkout(channel)
        channel.shell("find /results -mindepth 1 -delete")
        status = _passed_through(channel, words)
        name = options.on or found.outers[0].name
        shutil.rmtree(RESULTS / name, ignore_errors=True)
        get_results(channel, RESULTS / name)
        outer = next(outer for outer in found.outers if outer.name == name)
        (RESULTS / name / "console.log").write_text(outer.console())
        return status


def _passed_through(channel: Channel, words: list[str]) -> int:
    # An open terminal would never end its input.
    stdin = () if sys.stdin is None or sys.stdin.isatty() else iter(lambda: os.read(0, 1 << 16), b"")
    return channel.run(
        *words,
        stdin=stdin,
        timeout_s=SILENT_TIMEOUT_S,
        cwd=CHECKOUT_INSIDE,
        stdout=to_our_output(sys.stdout),
        stderr=to_our_output(sys.stderr),
    ).status


def put(options: argparse.Namespace) -> int:
    """A file or folder into a folder of the machine."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.add(options.source, options.source.resolve().name)
    _running().channel(options.on).put([packed.getvalue()], options.target)
    return 0


def get(options: argparse.Namespace) -> int:
    """A file, or the contents of a folder, of the machine into a folder here."""
    options.target.mkdir(parents=True, exist_ok=True)
    archive = options.target / ".lab-get.tar"
    try:
        _running().channel(options.on).get(options.source, archive)
        with tarfile.open(archive) as packed:
            packed.extractall(options.target, filter="data")
    finally:
        archive.unlink(missing_ok=True)
    return 0


def status(options: argparse.Namespace) -> int:
    found = Fleet.find(own_folder())
    if not found:
        print("down")
        return 1
    for outer in found.outers:
        channel = outer.channel()
        print(f"{outer.name}  pid {outer.pid}  {channel.shell('uptime').strip()}  folder {outer.folder}")
    return 0


def down(options: argparse.Namespace) -> int:
    found = Fleet.find(own_folder())
    if found:
        found.down()
    print("down")
    return 0


def _running() -> Fleet:
    found = Fleet.find(own_folder())
    if not found:
        raise RuntimeError("the lab is down: ./dev lab up")
    return found


def _parse(argv: list[str]) -> argparse.Namespace:
    """The command line. What follows the options of `run` and `test` is another program's, dashes and all."""
    command: list[str] = []
    if argv and argv[0] in ("run", "test", "e2e", "suite"):
        own = 3 if argv[1:2] == ["--on"] else 1
        argv, command = argv[:own], argv[own:]
        if command in (["-h"], ["--help"]):
            argv, command = [*argv, *command], []
    return _parser().parse_args(argv, argparse.Namespace(command=command))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="./dev lab", description=__doc__)
    verbs = parser.add_subparsers(required=True)
    verb = verbs.add_parser("up", help="start outer machines")
    verb.add_argument("--count", type=int, default=1, choices=range(1, MAX_COUNT + 1))
    verb.add_argument("--memory", type=int, default=MEMORY_MIB, metavar="MIB")
    verb.add_argument("--cold", action="store_true", help="boot, instead of starting from a saved state")
    verb.set_defaults(act=up)
    for name, act, what, rest in (("run", run, "a command", "CMD..."), ("test", test, "pytest", "ARGUMENTS...")):
        about = f"run {what} in a machine, on this checkout; results to build/lab/"
        verb = verbs.add_parser(name, help=about, usage=f"./dev lab {name} [--on NAME] {rest}")
        verb.add_argument("--on", default="", metavar="NAME")
        verb.set_defaults(act=act)
    verb = verbs.add_parser("e2e", help=e2e.__doc__, usage="./dev lab e2e ARGUMENTS...")
    verb.set_defaults(act=e2e)
    verb = verbs.add_parser("suite", help=suite.__doc__, usage="./dev lab suite DIRECTORY ARGUMENTS...")
    verb.set_defaults(act=suite)
    verb = verbs.add_parser("put", help=put.__doc__)
    verb.add_argument("--on", default="", metavar="NAME")
    verb.add_argument("source", type=Path)
    verb.add_argument("target")
    verb.set_defaults(act=put)
    verb = verbs.add_parser("get", help=get.__doc__)
    verb.add_argument("--on", default="", metavar="NAME")
    verb.add_argument("source")
    verb.add_argument("target", type=Path)
    verb.set_defaults(act=get)
    verbs.add_parser("status", help="what runs").set_defaults(act=status)
    verbs.add_parser("down", help="end it").set_defaults(act=down)
    return parser


if __name__ == "__main__":
    # So that what was started is ended on the way out.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    sys.exit(main(sys.argv[1:]))
