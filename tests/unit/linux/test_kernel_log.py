"""What the kernel says of those that it killed for memory."""

import os
from pathlib import Path

from firebrick.linux.kernel_log import KernelLog, parse_kill

LINE = (
    "6,301306,11539896535,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=m2,mems_allowed=0,"
    "oom_memcg=/firebrick-a/m2vxscrrur3s4vx7thas,task_memcg=/firebrick-a/m2vxscrrur3s4vx7thas,"
    "task={name},pid=4194000,uid=1000131072\n SUBSYSTEM=x\n"
)


def test_a_kill_is_read() -> None:
    """Number, group and name of the victim; a name may hold what separates the fields."""
    for name in ("python3", "a,pid=1,uid=0", "oom-kill:x"):
        found = parse_kill(LINE.format(name=name))
        assert found is not None
        assert (found.seq, found.cgroup, found.name) == (301306, "/firebrick-a/m2vxscrrur3s4vx7thas", name)
        assert found.inside_pid is None


def test_other_lines_are_no_kills() -> None:
    """Also not those that a user wrote into the log with the same words."""
    for line in (
        "",
        "6,1,2,-;EXT4-fs mounted\n",
        "oom-kill:task_memcg=/a,task=b,pid=1,uid=2\n",
        "12,5,6,-;x oom-kill:\n",
    ):
        assert parse_kill(line) is None


def test_a_log_that_may_not_be_read_is_empty(tmp_path: Path) -> None:
    """No error: sandboxes run as well without it."""
    log = KernelLog(tmp_path / "kmsg")
    assert log.fileno() is None
    assert list(log.read_kills()) == []
    log.close()


def test_only_what_is_new_is_read(tmp_path: Path) -> None:
    """Each record once, without waiting for more."""
    fifo = tmp_path / "kmsg"
    os.mkfifo(fifo)
    log = KernelLog(fifo)
    with fifo.open("wb", buffering=0) as writer:
        writer.write(LINE.format(name="first").encode())
        assert [kill.name for kill in log.read_kills()] == ["first"]
        assert list(log.read_kills()) == []
    log.close()
