"""Finds the sandbox of a signed file URL that names none.

With E2B_SANDBOX_URL set, the official clients make download and upload URLs without a sandbox id. The
signature was made with the access token of one sandbox: the one whose token gives the same signature is
meant. Expiry is not judged here but by the guest agent, which has the words for it.
"""

import hashlib
import hmac
from base64 import b64encode
from collections.abc import Iterable
from urllib.parse import parse_qs

from firebrick.catalog.base import Route

_OPERATIONS = {
    b"GET": ("read",),
    b"HEAD": ("read",),
    b"POST": ("write",),
    # A browser asks before it uploads, with the URL of the upload.
    b"OPTIONS": ("write", "read"),
}


def is_signed_file_url(method: bytes, request_target: str) -> bool:
    path, _, query = request_target.partition("?")
    return path == "/files" and method in _OPERATIONS and "signature=" in query


def signature(path: str, operation: str, username: str, token: str, expiration: str | None) -> str:
    """E2B's `v1_` signature: SHA-256 of the parts joined by colons, in base64 without padding."""
    parts = [path, operation, username, token]
    if expiration is not None:
        parts.append(expiration)
    digest = hashlib.sha256(":".join(parts).encode("utf-8", "surrogatepass")).digest()
    return "v1_" + b64encode(digest).rstrip(b"=").decode("ascii")


def route_of_signed_url(method: bytes, request_target: str, routes: Iterable[Route]) -> Route | None:
    """The only route whose token made this URL's signature; None if there is none. Cost: one hash a route."""
    query = request_target.partition("?")[2]
    try:
        values = parse_qs(query, keep_blank_values=True, max_num_fields=32)
    except ValueError:
        return None
    if any(len(found) > 1 for found in values.values()):
        # A value given twice may be read differently here and by the agent.
        return None
    given = values.get("signature", [""])[0].encode("utf-8", "replace")
    path = values.get("path", [""])[0]
    username = values.get("username", [""])[0]
    expiration = values.get("signature_expiration", [None])[0]
    for route in routes:
        if not route.access_token:
            continue
        for operation in _OPERATIONS[method]:
            made = signature(path, operation, username, route.access_token, expiration)
            if hmac.compare_digest(made.encode("ascii"), given):
                return route
    return None
