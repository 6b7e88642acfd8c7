"""Where a name leads: asked of the instance's name servers, never of a guest's."""

# What answers may hold is loaded now: afterwards this process may not read its own libraries any more.
from collections.abc import Sequence
from ipaddress import IPv4Address

import dns.asyncbackend
import dns.asyncresolver
import dns.exception
import dns.rdtypes.ANY.CNAME
import dns.rdtypes.ANY.NS
import dns.rdtypes.ANY.OPT
import dns.rdtypes.ANY.SOA
import dns.rdtypes.IN.A
import dns.resolver

TRY_S, LIFETIME_S = 2.0, 6.0
CACHED_COUNT = 4096


class Resolver:
    """IPv4 addresses of names; answers are kept as long as they say."""

    def __init__(self, servers: Sequence[str]) -> None:
        dns.asyncbackend.get_backend("asyncio")
        self._resolver = dns.asyncresolver.Resolver(configure=False)
        self._resolver.nameservers = list(servers)
        self._resolver.timeout = TRY_S
        self._resolver.lifetime = LIFETIME_S
        self._resolver.cache = dns.resolver.LRUCache(CACHED_COUNT)

    async def addresses(self, name: str) -> list[IPv4Address]:
        """Empty: there are none, or no server told in time."""
        try:
            answer = await self._resolver.resolve(f"{name}.", "A", raise_on_no_answer=False, search=False)
        except dns.exception.DNSException:
            return []
        return [IPv4Address(record.address) for record in answer.rrset or ()]
