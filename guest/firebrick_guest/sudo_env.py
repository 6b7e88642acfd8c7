"""The environment that `sudo` gives a command: that of its own defaults (env_reset, secure_path). Pure."""

from firebrick_guest.sudo_options import Options
from firebrick_guest.users import User

SECURE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MAX_COMMAND_CHARS = 4096

KEPT = {
    "COLORS", "DISPLAY", "HOSTNAME", "KRB5CCNAME", "LS_COLORS", "PS1", "PS2", "XAUTHORITY", "XAUTHORIZATION",
    "XDG_CURRENT_DESKTOP",
}  # fmt: skip
# Kept if their value is no path and no format.
CHECKED = {"COLORTERM", "LANG", "LANGUAGE", "LINGUAS", "TERM", "TZ"}
# Never kept, not by -E either: they make a program run what its caller likes.
DELETED = {
    "AUTHSTATE", "BASHOPTS", "BASH_ENV", "CDPATH", "ENV", "FPATH", "GLOBIGNORE", "HOSTALIASES", "IFS",
    "JAVA_TOOL_OPTIONS", "KRB5_CONFIG", "KRB5_KTNAME", "LIBPATH", "LOCALDOMAIN", "NLSPATH", "NULLCMD", "PATH_LOCALE",
    "PERL5DB", "PERL5LIB", "PERL5OPT", "PERLIO_DEBUG", "PERLLIB", "PS4", "PYTHONHOME", "PYTHONINSPECT", "PYTHONPATH",
    "PYTHONUSERBASE", "READNULLCMD", "RES_OPTIONS", "RUBYLIB", "RUBYOPT", "SHELLOPTS", "SHLIB_PATH", "TERMCAP",
    "TERMINFO", "TERMINFO_DIRS", "TERMPATH", "TMPPREFIX", "ZDOTDIR",
}  # fmt: skip
DELETED_PREFIXES = ("LD_", "LDR_", "_RLD", "DYLD_", "BASH_FUNC_")


def command_env(own: dict[str, str], caller: User, target: User, options: Options, command: str) -> dict[str, str]:
    """`own` is the caller's environment; `command` the line for SUDO_COMMAND."""
    if options.has("E"):
        env = {name: value for name, value in own.items() if not _is_deleted(name, value)}
        is_home_kept = not (options.has("H") or options.has("i"))
    else:
        env = {name: value for name, value in own.items() if _is_kept(name, value, options)}
        is_home_kept = "HOME" in options.keep and not (options.has("H") or options.has("i"))
        env = {"MAIL": f"/var/mail/{target.name}"} | env
    env = {"TERM": "unknown", "SHELL": target.shell, "HOME": target.home} | env
    if not is_home_kept:
        env["HOME"] = target.home
    for name in ("LOGNAME", "USER"):
        if name not in options.keep or name not in own or options.has("i"):
            env[name] = target.name
    env["PATH"] = SECURE_PATH
    env |= {
        "SUDO_COMMAND": command[:MAX_COMMAND_CHARS],
        "SUDO_USER": caller.name,
        "SUDO_UID": str(caller.uid),
        "SUDO_GID": str(caller.gid),
    }
    return env | options.assignments


def _is_kept(name: str, value: str, options: Options) -> bool:
    if name in options.keep:
        return not name.startswith("BASH_FUNC_")
    if value.startswith("()"):
        return False
    if name in CHECKED or name.startswith("LC_"):
        return "%" not in value and ("/" not in value or (name == "TZ" and _is_zone(value)))
    return name in KEPT


def _is_zone(value: str) -> bool:
    return not value.startswith(("/", ":/")) and ".." not in value and value.isprintable() and " " not in value


def _is_deleted(name: str, value: str) -> bool:
    return name in DELETED or name.startswith(DELETED_PREFIXES) or value.startswith("()")
