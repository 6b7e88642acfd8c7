"""What every guest sees in place of its image's files, and what it is told when a sandbox takes it."""

from datetime import datetime

from firebrick.guestlink.base import GuestInit
from firebrick.rpc.node_api import StartSandbox

HOSTNAME = "sandbox"
"""The same in every machine: a warm one is started before its sandbox is known, and /etc/hosts must agree."""


def guest_files(hostname: str, dns_servers: tuple[str, ...]) -> dict[str, str]:
    """Files that every guest sees in place of its image's. Its own name must resolve, or `sudo` complains."""
    hosts = f"127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n127.0.1.1 {hostname}\n"
    return {
        "/etc/hosts": hosts,
        "/etc/hostname": f"{hostname}\n",
        "/etc/resolv.conf": "".join(f"nameserver {server}\n" for server in dns_servers),
    }


def guest_init(request: StartSandbox, now: datetime) -> GuestInit:
    return GuestInit(
        sandbox_id=request.sandbox_id,
        template_id=request.template_id,
        timestamp=now,
        hostname=HOSTNAME,
        env=request.env,
        metadata=request.metadata,
        access_token=request.access_token,
    )
