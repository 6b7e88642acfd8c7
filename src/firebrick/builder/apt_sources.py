"""Where to get Debian from: the mirror that this machine already uses, when it is a Debian machine.

Pure: texts in, lines out. The machine's mirror is near and allowed here; a built-in default may be neither.
"""

from collections.abc import Iterable, Mapping

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
# Settings of the machine's apt without which its mirror may not be usable.
_CARRIED = ("acquire::check-valid-until", "acquire::check-date", "acquire::http::", "acquire::https::")


def suite_sources(texts: Iterable[tuple[str, str]], *, host_suite: str, suite: str) -> tuple[str, ...]:
    """Lines for the wanted suite, made from the machine's own.

    Args:
        texts: (file name, content) of sources.list and sources.list.d.
        host_suite: codename of the machine's Debian; its sources are asked for `suite` instead.

    Returns: `deb …` lines, without double; empty when no source has the machine's main suite.
    """
    found: dict[str, None] = {}
    suites = {f"{host_suite}{pocket}": f"{suite}{pocket}" for pocket in ("", "-updates", "-security")}
    has_main_suite = False
    for name, text in texts:
        entries = _deb822(text) if name.endswith(".sources") else _one_line(text)
        for uri, entry_suite, components in entries:
            wanted = suites.get(entry_suite.rstrip("/"))
            # Other vendors name their suites after Debian's, but have no component of that name.
            if wanted is None or "main" not in components:
                continue
            has_main_suite = has_main_suite or wanted == suite
            found[f"deb [signed-by={KEYRING}] {uri} {wanted} main"] = None
    return tuple(found) if has_main_suite else ()


def carried_options(dump: str) -> tuple[str, ...]:
    """Of `apt-config dump`: what says how this machine reaches its mirror, ready for an option."""
    lines = (line.strip().removesuffix(";") for line in dump.splitlines())
    return tuple(line for line in lines if line.lower().startswith(_CARRIED) and not line.endswith('""'))


def os_release(text: str) -> Mapping[str, str]:
    """Read os-release(5)."""
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line and not line.startswith("#"))
    return {key.strip(): value.strip().strip("\"'") for key, _, value in pairs}


def _one_line(text: str) -> Iterable[tuple[str, str, list[str]]]:
    for line in text.splitlines():
        words = line.partition("#")[0].split()
        if not words or words[0] != "deb":
            continue
        if len(words) > 1 and words[1].startswith("["):
            end = next((index for index, word in enumerate(words) if word.endswith("]")), len(words))
            words = [words[0], *words[end + 1 :]]
        if len(words) >= 4:
            yield words[1], words[2], words[3:]


def _deb822(text: str) -> Iterable[tuple[str, str, list[str]]]:
    for stanza in text.split("\n\n"):
        fields: dict[str, str] = {}
        name = ""
        for line in stanza.splitlines():
            if line.startswith("#"):
                continue
            if line[:1].isspace():
                fields[name] = f"{fields.get(name, '')} {line.strip()}"
            else:
                name, _, value = line.partition(":")
                name = name.strip().lower()
                fields[name] = value.strip()
        if fields.get("enabled", "yes").lower() == "no" or "deb" not in fields.get("types", "").split():
            continue
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                yield uri, suite, fields.get("components", "").split()
