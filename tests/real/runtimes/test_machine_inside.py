"""What a machine is inside: its settings, its users, its files; under each real runtime."""

import pytest

from tests.support.runtime_bench import RuntimeBench

pytestmark = pytest.mark.needs_root


async def test_a_machine_is_what_its_spec_says(bench: RuntimeBench) -> None:
    """Environment, hostname, first process, read-only files and the agent's mount are as asked for."""
    note = bench.directory / "note"
    note.write_text("read me\n")
    spec = await bench.serving(env={"PATH": "/usr/bin:/bin", "GREETING": "hello"}, files={"/etc/note": note})
    assert await bench.run(spec, "echo $GREETING; hostname; pwd; cat /etc/note /.firebrick/mark") == (
        0,
        "hello\nsandbox\n/\nread me\nagent\n",
    )
    assert (await bench.run(spec, "tr '\\0' ' ' < /proc/1/cmdline"))[1].startswith("/usr/bin/python3 -c")
    assert (await bench.run(spec, "echo x > /etc/note"))[0] != 0
    assert (await bench.run(spec, "touch /.firebrick/mine"))[0] != 0
    assert note.read_text() == "read me\n"
