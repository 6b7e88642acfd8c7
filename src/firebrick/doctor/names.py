"""Do the host names of sandboxes lead here? In TLS, E2B's clients go by name alone."""

import secrets
import socket

from firebrick.config import Config
from firebrick.doctor.packages import APT_INSTALL
from firebrick.doctor.result import ProbeResult, ProbeStatus


def probe_names(config: Config) -> ProbeResult:
    """Ask this machine's resolver for a name below the domain that nobody has asked for before."""
    domain = config.sandbox_domain.partition(":")[0]
    name = f"probe-{secrets.token_hex(4)}.{domain}"
    try:
        found = {str(item[4][0]) for item in socket.getaddrinfo(name, 443, type=socket.SOCK_STREAM)}
    except OSError:
        found = set()
    if found:
        shown = f"*.{domain} is {', '.join(sorted(found))}"
        return ProbeResult(name="names", status=ProbeStatus.OK, summary=shown)
    is_local = domain.endswith(".localhost")
    return ProbeResult(
        name="names",
        status=ProbeStatus.WARN,
        summary=f"*.{domain} has no address",
        why="This system's resolver does not know that *.localhost is this machine."
        if is_local
        else "Clients find sandboxes by name: add a wildcard record for this machine.",
        mend=((*APT_INSTALL, "libnss-myhostname"),) if is_local else (),
    )
