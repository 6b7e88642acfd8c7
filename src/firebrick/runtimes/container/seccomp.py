"""The system calls that a container may not make.

The list forbids rather than allows: a container here has no capability over the host (its root is an
unprivileged user), so what the list takes away is attack surface: calls that only administrators need, and
calls whose implementation has been a way into the kernel. A forbidden call answers EPERM, or ENOSYS where
programs then take an older one. Calls of foreign architectures end the process.
"""

from typing import Any

_EPERM = 1
_ENOSYS = 38

FORBIDDEN = (
    # modules, other kernels, the machine itself
    *("create_module", "delete_module", "finit_module", "init_module", "query_module", "get_kernel_syms"),
    *("kexec_file_load", "kexec_load", "reboot", "syslog", "acct", "swapon", "swapoff", "quotactl", "quotactl_fd"),
    *("iopl", "ioperm", "vm86", "vm86old", "modify_ldt", "nfsservctl", "lookup_dcookie", "uselib", "sysfs", "ustat"),
    # the clock, which is the host's
    *("clock_adjtime", "clock_adjtime64", "clock_settime", "clock_settime64", "settimeofday", "stime", "adjtimex"),
    # mounts and namespaces: a namespace of one's own gives back capabilities over more of the kernel
    *("mount", "umount", "umount2", "pivot_root", "fsopen", "fsconfig", "fsmount", "fspick", "move_mount"),
    *("open_tree", "mount_setattr", "setns", "unshare"),
    # large interfaces with a history
    *("bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "io_uring_enter", "io_uring_register"),
    *("keyctl", "add_key", "request_key", "fanotify_init", "kcmp"),
    # files by handle, which step over every directory's permissions
    *("open_by_handle_at", "name_to_handle_at"),
    # placement of memory, which neighbours feel
    *("mbind", "move_pages", "migrate_pages", "set_mempolicy", "set_mempolicy_home_node"),
)

NAMESPACE_FLAGS = (
    0x00020000,  # CLONE_NEWNS
    0x00000080,  # CLONE_NEWTIME
    0x02000000,  # CLONE_NEWCGROUP
    0x04000000,  # CLONE_NEWUTS
    0x08000000,  # CLONE_NEWIPC
    0x10000000,  # CLONE_NEWUSER
    0x20000000,  # CLONE_NEWPID
    0x40000000,  # CLONE_NEWNET
)
_EXIT_SIGNAL_BITS = 0x000000FF

_ARCHITECTURES = {
    "x86_64": ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"),
    "aarch64": ("SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"),
}


def seccomp_profile(architecture: str) -> dict[str, Any]:
    """The profile as an OCI configuration wants it; `architecture` as in uname -m."""
    forbidden: list[dict[str, Any]] = [_refuse(list(FORBIDDEN), _EPERM)]
    # Of clone's first argument the low byte is the exit signal, so CLONE_NEWTIME can only be asked of clone3.
    for flag in NAMESPACE_FLAGS:
        if flag & ~_EXIT_SIGNAL_BITS:
            condition = {"index": 0, "value": flag, "valueTwo": flag, "op": "SCMP_CMP_MASKED_EQ"}
            forbidden.append(_refuse(["clone"], _EPERM) | {"args": [condition]})
    # clone3 takes its flags in memory, where no filter can look; without it the C library uses clone.
    forbidden.append(_refuse(["clone3"], _ENOSYS))
    return {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": list(_ARCHITECTURES.get(architecture, ())),
        "syscalls": forbidden,
    }


def _refuse(names: list[str], errno: int) -> dict[str, Any]:
    return {"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": errno}
