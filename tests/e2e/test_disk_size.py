"""A larger disk, asked for by the official client."""

from e2b import Sandbox

from tests.support.instance import Instance

LARGE_MIB = 12 * 1024
METADATA = {"firebrick.diskMiB": str(LARGE_MIB)}


def test_a_larger_disk_is_one_and_has_what_was_on_the_smaller(running: Instance) -> None:
    """From the template, and from a snapshot of a sandbox with the usual one."""
    with Sandbox.create(timeout=120, **running.sdk) as box:
        usual_mib = _size_mib(running, box)
        box.files.write("/home/user/kept", "grown")
        made = box.create_snapshot().snapshot_id
    for source in (None, made):
        with Sandbox.create(source, timeout=120, metadata=METADATA, **running.sdk) as box:
            assert _size_mib(running, box) >= usual_mib * 1.1
            assert box.files.exists("/home/user/kept") is (source is not None)
            assert running.api("GET", f"/sandboxes/{box.sandbox_id}").json()["diskSizeMB"] == LARGE_MIB
    assert Sandbox.delete_snapshot(made, **running.sdk) is True


def _size_mib(running: Instance, box: Sandbox) -> int:
    """What the guest sees; under gVisor, which tells it no size, what its disk is on the host."""
    if running.env.get("FIREBRICK_RUNTIME") != "gvisor":
        return int(box.commands.run("df --output=size -m / | tail -1").stdout)
    machines = (running.data_dir / "node").glob("*/machines/*/*")
    return max(path.stat().st_size for path in machines if path.is_file()) >> 20
