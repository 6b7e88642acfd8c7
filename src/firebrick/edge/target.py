"""Which sandbox and port a request is for: pure decisions on the Host and the two routing headers.

There is one parser of ports, and the integer it returns is the only thing that later code sees: what is
checked is what is dialled.
"""

import re
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import unquote

from firebrick.model.ids import SandboxId

_PORT = re.compile(r"[1-9][0-9]{0,4}\Z", re.ASCII)
_ID = re.compile(r"([a-z0-9]{1,63})(?:-[a-z0-9]{1,63})?\Z", re.ASCII)
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_-]+(?:\.[a-z0-9_-]+)*)\.?(?::([0-9]{0,5}))?\Z", re.ASCII)
_CONTROL_ROUTES = frozenset(("init", "freeze", "unfreeze", "collapse", "fsfreeze", "fsthaw", "upgrade", "firebrick"))
_ODD_CHARACTERS = re.compile(r"[\x00-\x20\x7f]")


class BadTarget(Exception):
    """The request names no place that could exist, or two different ones. The text is for the caller."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A port of a sandbox; `port` is 1 to 65535."""

    sandbox_id: SandboxId
    port: int


def parse_port(text: str) -> int:
    """ASCII digits without sign, blank or leading zero, 1 to 65535. Raises BadTarget."""
    if _PORT.match(text) is None or int(text) > 65535:
        raise BadTarget("The port must be a number from 1 to 65535, written without sign or leading zero.")
    return int(text)


def parse_id(text: str) -> SandboxId:
    """`<sandboxID>` or `<sandboxID>-<clientID>`, of which only the first counts. Raises BadTarget."""
    match = _ID.match(text)
    if match is None:
        raise BadTarget("The sandbox id may hold only lower-case letters and digits.")
    return SandboxId(match[1])


def host_name(host: str) -> str:
    """The lower-case name or address of a Host header, without port and final dot. Raises BadTarget."""
    match = _HOST.match(host.lower()) if host.isascii() else None
    if match is None or int(match[2] or 0) > 65535:
        raise BadTarget("The Host header is not a host name or address with an optional port.")
    return match[1]


def is_loopback_name(name: str) -> bool:
    """Whether a host name means this machine whatever name servers say: `127.example.com` does not."""
    return name == "localhost" or is_loopback_address(name.strip("[]"))


def is_loopback_address(text: str) -> bool:
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def target_of(name: str, domain: str, id_header: str | None, port_header: str | None) -> Target | None:
    """Decide from the host `name`, the configured `domain` (both as `host_name` returns them) and the headers.

    Returns:
        None when the request names no sandbox at all: a host that is shared, and neither header.

    Raises:
        BadTarget: a name below the domain that can't be read, one header without the other, or a
            contradiction between host and headers.
    """
    by_host = _target_in_host(name, domain)
    wanted_id = None if id_header is None else parse_id(id_header)
    wanted_port = None if port_header is None else parse_port(port_header)
    if by_host is not None:
        if wanted_id not in (None, by_host.sandbox_id) or wanted_port not in (None, by_host.port):
            raise BadTarget("The Host and the E2b-Sandbox-* headers name different sandboxes or ports.")
        return by_host
    if wanted_id is None and wanted_port is None:
        return None
    if wanted_id is None or wanted_port is None:
        raise BadTarget("Send both headers, E2b-Sandbox-Id and E2b-Sandbox-Port.")
    return Target(sandbox_id=wanted_id, port=wanted_port)


def _target_in_host(name: str, domain: str) -> Target | None:
    if not name.endswith("." + domain):
        return None
    label, _, rest = name.partition(".")
    if label == "sandbox" and rest == domain:
        return None
    port, dash, sandbox_id = label.partition("-")
    if not dash:
        raise BadTarget(f"A host below {domain} must look like <port>-<sandboxID>.{domain}.")
    return Target(sandbox_id=parse_id(sandbox_id), port=parse_port(port))


def is_control_route(request_target: str) -> bool:
    """Whether a server might read this as one of the guest agent's routes for the control plane.

    Decodes and normalises more than any one parser does: refusing a path that the agent would not have
    recognised costs nothing, passing one that it does recognise hands over the sandbox.
    """
    path = request_target.partition("?")[0].partition("#")[0]
    for _ in range(3):
        path = unquote(path, errors="replace")
    path = _ODD_CHARACTERS.sub("", path).replace("\\", "/").lower()
    readings = [path]
    if path.startswith("//"):
        # `//x/init`: a parser of URLs takes x for a host and /init for the path.
        readings.append("/" + path.lstrip("/").partition("/")[2])
    return any(_first_segment(reading) in _CONTROL_ROUTES for reading in readings)


def _first_segment(path: str) -> str:
    segments: list[str] = []
    for segment in path.split("/"):
        name = segment.partition(";")[0].partition("?")[0].partition("#")[0]
        if name == "..":
            del segments[-1:]
        elif name not in ("", "."):
            segments.append(name)
    # `/init/x` is no route of the agent, but below `/firebrick/` all are ours; both are refused alike.
    return segments[0] if segments else ""
