"""What to do with a request: forward it to a place, or answer it here. Decides; does nothing."""

import hmac
from dataclasses import dataclass

from firebrick.catalog.base import CatalogReader, Route
from firebrick.edge import answers
from firebrick.edge.answers import Answer
from firebrick.edge.heads import TRAFFIC_TOKEN, RequestHead
from firebrick.edge.signed_urls import is_signed_file_url, route_of_signed_url
from firebrick.edge.stats import Stats
from firebrick.edge.target import BadTarget, host_name, is_control_route, is_loopback_name, target_of
from firebrick.guestlink.base import AGENT_PORT
from firebrick.model.ids import MachineId, SandboxId

_OWN_PREFIX = "/__firebrick/"
_PROXY_HEADERS = frozenset((b"x-forwarded-for", b"forwarded", b"via", b"x-real-ip"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a request goes: a port of the machine behind a route."""

    route: Route
    port: int
    host: bytes | None = None
    """What the port is told as Host; None: what the client sent."""


class Router:
    """Reads the catalog and nothing else."""

    def __init__(self, domain: str, catalog: CatalogReader, stats: Stats, api: tuple[str, int] | None = None) -> None:
        self._domain = host_name(domain)
        self._api = api and Place(
            route=Route(sandbox_id=SandboxId(""), machine_id=MachineId(""), address=api[0]), port=api[1]
        )
        self._catalog = catalog
        self._stats = stats

    def decide(self, head: RequestHead, *, peer_is_loopback: bool) -> Place | Answer:
        request_target = head.target.decode("ascii")
        try:
            name = host_name(head.host.decode("latin-1"))
            if self._api is not None and name == f"api.{self._domain}":
                return self._api
            target = target_of(
                name, self._domain, head.single_text(b"e2b-sandbox-id"), head.single_text(b"e2b-sandbox-port")
            )
        except BadTarget as exc:
            return answers.bad_request(str(exc))
        if target is None:
            if request_target.startswith(_OWN_PREFIX):
                return self._own_page(head, request_target, peer_is_loopback and is_loopback_name(name))
            return self._signed(head, request_target)
        if target.port == AGENT_PORT and is_control_route(request_target):
            return answers.reserved_route()
        route = self._catalog.route(target.sandbox_id)
        return self.gone(target.sandbox_id) if route is None else _let_in(head, route, target.port)

    def gone(self, sandbox_id: SandboxId) -> Answer:
        """The answer for a sandbox without a route."""
        if not self._catalog.is_ready:
            # "Not found" would tell the client that its sandbox is dead, and it may well live.
            return answers.routes_unknown()
        stone = self._catalog.tombstone(sandbox_id)
        return answers.not_found(sandbox_id, stone.reason if stone is not None else "")

    def failed(self, place: Place, answer: Answer) -> Answer:
        """What to say when a place gave no answer: the control plane is no sandbox."""
        return answers.control_away() if place is self._api else answer

    def _signed(self, head: RequestHead, request_target: str) -> Place | Answer:
        if not is_signed_file_url(head.method, request_target):
            return answers.no_target()
        if not self._catalog.is_ready:
            return answers.routes_unknown()
        route = route_of_signed_url(head.method, request_target, self._catalog.routes())
        return answers.invalid_signature() if route is None else Place(route=route, port=AGENT_PORT)

    def _own_page(self, head: RequestHead, request_target: str, is_local: bool) -> Answer:
        path = request_target.partition("?")[0]
        if head.method not in (b"GET", b"HEAD"):
            return answers.bad_request("Only GET is offered here.", 405)
        if path == _OWN_PREFIX + "health":
            # Whoever waits for us (`up`, a load balancer) wants to send us requests: not before we can route them.
            return answers.healthy() if self._catalog.is_ready else answers.routes_unknown()
        if path == _OWN_PREFIX + "metrics":
            # A proxy on this machine connects from loopback too, for the whole world.
            if is_local and not any(lower in _PROXY_HEADERS for lower, _, _ in head.headers):
                return answers.plain_text(self._stats.page())
            return answers.bad_request("The metrics are shown on this machine only.", 403)
        return answers.bad_request("There is no such page.", 404)


def _let_in(head: RequestHead, route: Route, port: int) -> Place | Answer:
    """The guest agent has a token of its own, and is told the host as it came; both are for user ports alone."""
    if port == AGENT_PORT:
        return Place(route=route, port=port)
    if route.traffic_token:
        given = head.single.get(TRAFFIC_TOKEN)
        if given is None:
            return answers.token_missing(route.sandbox_id, port)
        if not hmac.compare_digest(given, route.traffic_token.encode()):
            return answers.token_invalid(route.sandbox_id, port)
    mask = route.mask_host.replace("${PORT}", str(port)).encode("ascii")
    return Place(route=route, port=port, host=mask or None)
