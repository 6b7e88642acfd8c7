"""sudo inside a sandbox: the image's own or ours, it must not matter which."""

import pytest
from e2b import CommandExitException, PtySize, Sandbox

from tests.support.wait import SLOWNESS, wait_for_sync

LINES = r"""
sudo id -un => root
sudo -u nobody id -un => nobody
sudo -u '#1000' -g sudo id -gn => sudo
cd /tmp && sudo pwd => /tmp
sudo -i pwd => /root
sudo -s echo 'a  b' '*' => a  b *
FOO=1 sudo sh -c 'echo $FOO-$HOME-$SUDO_USER-$SUDO_UID-$USER-$PATH' => -/root-user-1000-root-{path}
FOO=1 sudo -E sh -c 'echo $FOO-$HOME' => 1-/home/user
FOO=1 BAR=2 sudo --preserve-env=FOO sh -c 'echo $FOO-$BAR' => 1-
sudo A=1 -- sh -c 'echo $A' => 1
echo in | sudo -S cat => in
sudo -n true && sudo -v && sudo -k && sudo -l | tail -1 | xargs => (ALL : ALL) NOPASSWD: ALL
sudo sh -c 'exit 7'; echo $? => 7
sudo sudo -u user sudo id -u => 0
timeout 1 sudo sleep 100; echo $? => 124
sudo -b sh -c 'echo bg > /tmp/bg'; until test -s /tmp/bg; do :; done; cat /tmp/bg => bg
sudo no-such-command 2>&1 => sudo: no-such-command: command not found
sudo -u no-such-user id 2>&1 | head -1 => sudo: unknown user no-such-user
sudo useradd --create-home bob && sudo -u bob id -un => bob
sudo -u bob sudo -n id >/dev/null 2>&1; echo $? => 1
sudo -u bob cat /etc/shadow 2>&1 => cat: /etc/shadow: Permission denied
sudo apt-get --version | head -1 | cut -d' ' -f1 => apt
"""


def test_sudo_does_what_people_use_it_for(box: Sandbox) -> None:
    """Users, groups, directories, environment, input, exit codes, refusals: the same under every runtime."""
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    for line in LINES.strip().splitlines():
        command, _, expected = line.partition(" => ")
        try:
            got = box.commands.run(command).stdout.strip()
        except CommandExitException as exc:
            got = exc.stdout.strip()
        assert got == expected.replace("{path}", path), command


def test_a_killed_command_does_not_leave_root_behind(box: Sandbox) -> None:
    """SIGTERM to sudo reaches what it runs."""
    handle = box.commands.run("sudo sh -c 'echo $$; exec sleep 1000'", background=True)
    box.commands.run("until pgrep -x sleep; do :; done; sudo pkill -TERM -x sleep")
    with pytest.raises(CommandExitException) as ended:
        handle.wait()
    assert ended.value.exit_code != 0
    assert box.commands.run("pgrep -x sleep || echo none").stdout == "none\n"


def test_sudo_has_a_terminal_where_its_caller_has(box: Sandbox) -> None:
    """A root shell in a PTY: job control works, the size is right, and the caller's terminal comes back."""
    shown = bytearray()
    terminal = box.pty.create(PtySize(rows=33, cols=77), timeout=60 * SLOWNESS)
    events = iter(terminal)

    def type_and_see(text: str, expected: bytes) -> None:
        shown.clear()
        box.pty.send_stdin(terminal.pid, text.encode())
        while expected not in shown:
            shown.extend(next(events)[2] or b"")

    type_and_see("sudo bash\n", b"# ")
    type_and_see("echo $(id -u)-$(stty size)-\n", b"0-33 77-")
    type_and_see("sleep 1000\n", b"sleep 1000")
    box.commands.run("until pgrep -x sleep; do :; done")
    type_and_see("\x1a", b"Stopped")
    type_and_see("fg\n", b"sleep 1000")
    type_and_see("\x03", b"# ")
    type_and_see("exit 5\n", b"$ ")
    type_and_see("echo code $?\n", b"code 5")
    box.pty.kill(terminal.pid)
    wait_for_sync(lambda: box.commands.run("pgrep -x sleep || echo none").stdout == "none\n")
