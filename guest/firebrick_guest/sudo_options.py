"""The command line of `sudo`, as its manual has it. Pure."""

USAGE = """usage: sudo -h | -K | -k | -V
usage: sudo -v [-ABkNnS] [-g group] [-p prompt] [-u user]
usage: sudo -l [-ABkNnS] [-g group] [-p prompt] [-u user] [command [arg ...]]
usage: sudo [-ABbEHkNnS] [-D directory] [-g group] [-p prompt] [-u user] [VAR=value] [-i | -s] [command [arg ...]]
"""

WITH_VALUE = "CDRTUghprtu"
WITHOUT_VALUE = "ABEHKNPSVbeiklnsv"
LONG = {
    "askpass": "A", "bell": "B", "background": "b", "close-from": "C", "chdir": "D", "edit": "e", "group": "g",
    "set-home": "H", "help": "h", "login": "i", "remove-timestamp": "K", "reset-timestamp": "k", "list": "l",
    "no-update": "N", "non-interactive": "n", "preserve-groups": "P", "prompt": "p", "chroot": "R", "stdin": "S",
    "shell": "s", "command-timeout": "T", "other-user": "U", "user": "u", "version": "V", "validate": "v",
    "role": "r", "type": "t", "preserve-env": "E",
}  # fmt: skip
# No password is ever asked for, nothing is remembered, and no descriptor above 2 is passed on: nothing to do for these.
IGNORED = "ABCNSnp"
# Known, but not here: better told than done by half.
REFUSED = {"e": "sudoedit", "P": "-P", "R": "-R", "T": "-T", "U": "-U", "r": "-r", "t": "-t"}


class UsageError(Exception):
    """The message is for the caller; "" when only the usage shall be shown."""


class Options:
    """`letters` are the options without a value that were given; `keep` the names of --preserve-env=list."""

    def __init__(self) -> None:
        self.letters = ""
        self.user = ""
        self.group = ""
        self.directory = ""
        self.keep: list[str] = []
        self.assignments: dict[str, str] = {}
        self.command: list[str] = []

    def has(self, letter: str) -> bool:
        return letter in self.letters


def parse(arguments: list[str]) -> Options:
    """Raises UsageError."""
    options = Options()
    left = list(arguments)
    while left:
        item = left.pop(0)
        if item == "--":
            break
        if item.startswith("--"):
            _long(options, item[2:], left)
        elif item.startswith("-") and len(item) > 1:
            _short(options, item[1:], left)
        elif "=" in item[1:] and "/" not in item.partition("=")[0]:
            name, _, value = item.partition("=")
            options.assignments[name] = value
        else:
            left.insert(0, item)
            break
    options.command = left
    _check(options)
    return options


def _long(options: Options, text: str, left: list[str]) -> None:
    name, equals, value = text.partition("=")
    fitting = [name] if name in LONG else [known for known in LONG if known.startswith(name)]
    letter = LONG[fitting[0]] if len(fitting) == 1 else ""
    if not letter:
        raise UsageError(f"sudo: {'ambiguous' if fitting else 'unrecognized'} option '--{name}'")
    if letter == "E" and equals:
        options.keep += [word for word in value.split(",") if word]
    elif letter == "h":
        options.letters += "h"
    elif letter in WITH_VALUE:
        if not equals and not left:
            raise UsageError(f"sudo: option '--{name}' requires an argument")
        _take(options, letter, value if equals else left.pop(0))
    elif equals:
        raise UsageError(f"sudo: option '--{name}' doesn't allow an argument")
    else:
        _take(options, letter, "")


def _short(options: Options, text: str, left: list[str]) -> None:
    while text:
        letter, text = text[0], text[1:]
        if letter == "h":
            options.letters += "h"
        elif letter in WITH_VALUE:
            if not text and not left:
                raise UsageError(f"sudo: option requires an argument -- '{letter}'")
            _take(options, letter, text or left.pop(0))
            return
        elif letter in WITHOUT_VALUE:
            _take(options, letter, "")
        else:
            raise UsageError(f"sudo: invalid option -- '{letter}'")


def _take(options: Options, letter: str, value: str) -> None:
    if letter in REFUSED:
        raise UsageError(f"sudo: {REFUSED[letter]} is not supported in this sandbox")
    if letter == "u":
        options.user = value
    elif letter == "g":
        options.group = value
    elif letter == "D":
        options.directory = value
    elif letter not in IGNORED:
        options.letters += letter


def _check(options: Options) -> None:
    if options.has("i") and options.has("s"):
        raise UsageError("sudo: you may not specify both the -i and -s options")
    if options.has("i") and options.has("E"):
        raise UsageError("sudo: you may not specify both the -i and -E options")
    if (options.has("K") or options.has("v")) and options.command:
        raise UsageError("")
    if not options.command and not any(options.has(letter) for letter in "KVhiklsv"):
        raise UsageError("")
