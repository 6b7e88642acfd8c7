"""What a machine is inside: its settings, its users, its files; under each real runtime."""

import os

import pytest

from firebrick.model.machine import RuntimeName
from tests.support.runtime_bench import RuntimeBench

pytestmark = pytest.mark.needs_root

# chown dac_override fowner fsetid kill setgid setuid setpcap net_bind_service net_raw sys_chroot audit_write setfcap
CONTAINER_CAPABILITIES = "00000000a00425fb"
# The same without net_raw, which runsc takes away, and with sys_ptrace, which is over the sentry's processes only.
GVISOR_CAPABILITIES = "00000000a00c05fb"

STATUS = "grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status"
GOLDEN = {
    RuntimeName.CONTAINER: {
        "CapInh": "0000000000000000",
        "CapPrm": CONTAINER_CAPABILITIES,
        "CapEff": CONTAINER_CAPABILITIES,
        "CapBnd": CONTAINER_CAPABILITIES,
        "CapAmb": "0000000000000000",
        # sudo is a setuid program; see runtimes/oci.py.
        "NoNewPrivs": "0",
        "Seccomp": "2",
    },
    RuntimeName.GVISOR: {
        "CapInh": "0000000000000000",
        "CapPrm": GVISOR_CAPABILITIES,
        "CapEff": GVISOR_CAPABILITIES,
        "CapBnd": GVISOR_CAPABILITIES,
        "Seccomp": "0",
    },
    # Root of a kernel of its own, which is all that it can harm.
    RuntimeName.FIRECRACKER: {
        "CapInh": "0000000000000000",
        "CapPrm": "000001ffffffffff",
        "CapEff": "000001ffffffffff",
        "CapBnd": "000001ffffffffff",
        "CapAmb": "0000000000000000",
        "NoNewPrivs": "0",
        "Seccomp": "0",
    },
}

NEW_USER = "unshare --user --map-root-user true"

# Each ends with status 0 when the guest got what it must not get.
FORBIDDEN = (
    "mount -t tmpfs none /mnt",
    "mount --bind /etc /mnt",
    "mount -t proc proc /mnt",
    "umount /proc",
    "unshare --mount true",
    NEW_USER,
    "unshare --net true",
    "nsenter --target 1 --mount --net true",
    "mknod /tmp/disk b 8 0 && head -c 1 /tmp/disk",
    "mknod /tmp/memory c 1 1 && head -c 1 /tmp/memory",
    "echo x > /proc/sys/kernel/core_pattern",
    "echo h > /proc/sysrq-trigger",
    "echo 1 > /sys/kernel/uevent_seqnum",
    "test -s /proc/kcore",
    "test -s /proc/keys",
    "test -s /proc/timer_list",
    "test -e /sys/firmware/acpi",
    "test -e /dev/kvm",
    "test -e /dev/vda",
    "test -e /run/docker.sock",
    "ip link add spy0 type dummy",
    "ip addr add 10.9.9.9/24 dev eth0",
    "date --set 2001-01-01",
    "hostname stolen",
)

# Numbers of x86-64; from 424 on they are the same everywhere.
SYSTEM_CALLS = {
    "bpf": 321,
    "userfaultfd": 323,
    "io_uring_setup": 425,
    "keyctl": 250,
    "perf_event_open": 298,
    "open_by_handle_at": 304,
    "kexec_load": 246,
    "init_module": 175,
    "finit_module": 313,
    "setns": 308,
    "unshare": 272,
    "clone3": 435,
    "move_mount": 429,
    "fsopen": 430,
    "pivot_root": 155,
    "quotactl": 179,
    "reboot": 169,
    "swapon": 167,
}


async def test_a_machine_is_what_its_spec_says(bench: RuntimeBench) -> None:
    """Environment, hostname, first process, read-only files and the agent's mount are as asked for."""
    note = bench.directory / "note"
    note.write_text("read me\n")
    spec = await bench.serving(env={"PATH": "/usr/bin:/bin", "GREETING": "hello"}, files={"/etc/note": note})
    command = "echo $GREETING; hostname; pwd; cat /etc/note /.firebrick/mark"
    assert await bench.run(spec, command) == (0, "hello\nsandbox\n/\nread me\nagent\n")
    assert (await bench.run(spec, "tr '\\0' ' ' < /proc/1/cmdline"))[1].startswith("/usr/bin/python3 -c")
    assert (await bench.run(spec, "echo x > /etc/note"))[0] != 0
    assert (await bench.run(spec, "touch /.firebrick/mine"))[0] != 0
    assert note.read_text() == "read me\n"


async def test_privileges_are_exactly_these(bench: RuntimeBench) -> None:
    """Capabilities, seccomp and no_new_privs of root inside are the golden ones of its runtime."""
    spec = await bench.serving()
    _, output = await bench.run(spec, STATUS)
    assert dict(line.split(":\t") for line in output.splitlines()) == GOLDEN[bench.name]


async def test_forbidden_things_fail(bench: RuntimeBench) -> None:
    """Mounts, namespaces, devices, the host's files and settings are out of reach of root inside."""
    if bench.name is RuntimeName.FIRECRACKER:
        pytest.skip("root of a microVM may do to its own kernel what it likes; see test_machine_jail.py")
    spec = await bench.serving()
    before = (await bench.run(spec, "cat /proc/1/mountinfo"))[1]
    got = [command for command in FORBIDDEN if (await bench.run(spec, f"{{ {command}; }} 2>&1"))[0] == 0]
    if bench.name is RuntimeName.GVISOR:
        # A user namespace of the sentry's is no way to the host's kernel.
        got = [command for command in got if command != NEW_USER]
    assert got == []
    assert (await bench.run(spec, "cat /proc/1/mountinfo"))[1] == before


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="NOT RUN: the numbers are those of x86-64")
async def test_dangerous_system_calls_are_refused(bench: RuntimeBench) -> None:
    """None succeeds, and each is refused as such (EPERM, ENOSYS), not by chance of its arguments; nothing crashes."""
    spec = await bench.serving()
    program = bench.directory / "calls.py"
    program.write_text(
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        f"for name, number in {SYSTEM_CALLS!r}.items():\n"
        "    ctypes.set_errno(0)\n"
        "    result = libc.syscall(number, 0, 0, 0, 0, 0, 0)\n"
        "    print(name, result, ctypes.get_errno())\n"
    )
    status, output = await bench.run(spec, f"python3 - <<'END'\n{program.read_text()}END")
    assert status == 0, output
    answers = {name: (int(result), int(errno)) for name, result, errno in map(str.split, output.splitlines())}
    assert answers.keys() == SYSTEM_CALLS.keys()
    if bench.name is RuntimeName.CONTAINER:
        assert {name: answer for name, answer in answers.items() if answer[1] not in (1, 38)} == {}


async def test_no_descriptor_of_the_host_is_inherited(bench: RuntimeBench) -> None:
    """The first process has its input, which is empty, its output, and what it opened itself."""
    spec = await bench.serving()
    _, output = await bench.run(spec, "for fd in /proc/1/fd/*; do echo ${fd##*/} $(readlink $fd); done")
    # Pipes to the command that looks come and go while it looks.
    opened = dict(line.split() for line in output.splitlines() if " " in line)
    inherited = {fd for fd, target in opened.items() if not target.startswith(("socket:", "pipe:"))}
    assert inherited == {"0", "1", "2"}, output
    assert await bench.run(spec, "head -c 1 /proc/1/fd/0 | wc -c") == (0, "0\n")


async def test_user_attributes_and_listings_work(bench: RuntimeBench) -> None:
    """User xattrs can be set and read on new files and on the image's; long listings end well."""
    spec = await bench.serving()
    command = (
        "set -e; cd ~; touch new; "
        "for f in new /etc/profile /tmp; do setfattr -n user.e2b.x -v 1 $f; "
        "getfattr --only-values -n user.e2b.x $f; done"
    )
    assert await bench.run(spec, f"{command} 2>/dev/null") == (0, "111")
    status, output = await bench.run(spec, "ls -la / /usr/bin /tmp > /dev/null")
    assert (status, output) == (0, "")


async def test_owners_and_rights_are_those_of_the_image(bench: RuntimeBench) -> None:
    """root owns the system, the user its home, and the user cannot write what is root's."""
    spec = await bench.serving()
    assert await bench.run(spec, "stat -c %u:%g / /etc /home/user") == (0, "0:0\n0:0\n1000:1000\n")
    assert await bench.run(spec, "echo mine > /home/user/a && cat /home/user/a", user="user") == (0, "mine\n")
    assert (await bench.run(spec, "touch /etc/mine", user="user"))[0] != 0
    assert await bench.run(spec, "touch /etc/mine; chown user /etc/mine; stat -c %U /etc/mine") == (0, "user\n")


async def test_a_user_may_listen_on_any_port_and_trace_its_own(bench: RuntimeBench) -> None:
    """Port 80 needs no root, and a user may ptrace its own processes."""
    spec = await bench.serving()
    listen = "import socket; socket.create_server(('0.0.0.0', 80))"
    assert await bench.run(spec, f'python3 -c "{listen}"', user="user") == (0, "")
    attach = (
        "import ctypes, os, signal\n"
        "child = os.fork() or os.execvp('sleep', ['sleep', '9'])\n"
        "print(ctypes.CDLL(None).ptrace(16, child, 0, 0)); os.kill(child, signal.SIGKILL)\n"
    )
    assert await bench.run(spec, f'python3 -c "{attach}"', user="user") == (0, "0\n")


async def test_sudo_works_in_a_container(bench: RuntimeBench) -> None:
    """The real sudo gives the user root inside."""
    if bench.name is RuntimeName.GVISOR:
        pytest.skip("NOT RUN: runsc (2024-07) sets no_new_privs for every program, so no setuid program works")
    spec = await bench.serving()
    assert await bench.run(spec, "sudo -n id -u 2>/dev/null", user="user") == (0, "0\n")


async def test_reports_the_limits_inside(bench: RuntimeBench) -> None:
    """A gVisor guest sees its own memory, a microVM has its own memory and CPUs; a container sees the host's CPUs and
    none of its other hardware, and of the control groups its own, where the limits and the kills for memory can be read
    but not changed."""
    spec = await bench.serving()
    _, output = await bench.run(spec, "awk '/^MemTotal/ {print $2}' /proc/meminfo")
    if bench.name is RuntimeName.FIRECRACKER:
        # Its kernel keeps some for itself.
        assert spec.limits.memory_mib * 512 < int(output) < spec.limits.memory_mib * 1024
        assert int((await bench.run(spec, "cat /sys/fs/cgroup/pids.max"))[1]) == spec.limits.process_count
        assert (await bench.run(spec, "nproc"))[1].strip() == str(spec.limits.millicpu // 1000)
        return
    if bench.name is RuntimeName.GVISOR:
        assert int(output) == spec.limits.memory_mib * 1024
    else:
        assert (await bench.run(spec, "ls /sys"))[1].split() == ["devices", "fs"]
        assert await bench.run(spec, "ls /sys/devices /sys/fs") == (0, "/sys/devices:\nsystem\n\n/sys/fs:\ncgroup\n")
        limit = "cat /sys/fs/cgroup/memory.max || cat /sys/fs/cgroup/memory/memory.limit_in_bytes"
        assert int((await bench.run(spec, f"({limit}) 2>/dev/null"))[1]) == (spec.limits.memory_mib + 32) << 20
        kills = "cat /sys/fs/cgroup/memory.events || cat /sys/fs/cgroup/memory/memory.oom_control"
        assert "oom_kill 0" in (await bench.run(spec, f"({kills}) 2>/dev/null"))[1]
        status, _ = await bench.run(
            spec, "echo 0 > /sys/fs/cgroup/memory/cgroup.procs || echo 0 > /sys/fs/cgroup/cgroup.procs"
        )
        assert status != 0
    assert (await bench.run(spec, "nproc"))[1].strip() == str(os.cpu_count())
