"""The edge's TLS: one context, and the choice of what is spoken in it."""

import asyncio
import ssl
from pathlib import Path

from firebrick.edge.client import ClientLink
from firebrick.edge.h2_link import H2Link
from firebrick.edge.visit import Shared
from firebrick.model.errors import Invalid

PROTOCOLS = ("h2", "http/1.1")


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """TLS 1.2 and newer, HTTP/2 by ALPN.

    Raises: Invalid — the files can't be read, or do not belong together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    try:
        context.load_cert_chain(certificate, key)
    except OSError as exc:
        raise Invalid(
            f"The edge's certificate {certificate} and key {key} can't be used: {exc.strerror or exc}. Check the "
            "settings tls_certificate and tls_key."
        ) from exc
    context.set_alpn_protocols(list(PROTOCOLS))
    return context


class TlsEntry(asyncio.Protocol):
    """Lives until the handshake is done; then the connection is what ALPN chose."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        chosen = transport.get_extra_info("ssl_object").selected_alpn_protocol()
        link = H2Link(self._shared) if chosen == "h2" else ClientLink(self._shared)
        transport.set_protocol(link)
        link.connection_made(transport)
