"""Who may ask: the access token, the host's token, and signatures of file URLs."""

import time
from binascii import Error, a2b_base64, b2a_base64
from hashlib import sha256
from hmac import compare_digest

from firebrick_guest.errors import ConnectError, HttpError
from firebrick_guest.http_head import Head

CONTROL_HEADER = "x-firebrick-control"
UNAUTHORIZED = "unauthorized access, please provide a valid access token or method signing if supported"
MAX_EXPIRATION_DIGITS = 19


def is_same(given: str, expected: str) -> bool:
    """Compare secrets without telling by the time taken how much of them is right."""
    return compare_digest(given.encode("utf-8", "surrogateescape"), expected.encode("utf-8", "surrogateescape"))


def check_control(head: Head, control_token: str) -> None:
    if not is_same(head.headers.get(CONTROL_HEADER, ""), control_token):
        raise HttpError(401, "this route is reserved for the host")


def check_token(head: Head, access_token: str) -> None:
    """Raises HttpError 401. An open sandbox has no token."""
    if access_token and not is_same(head.headers.get("x-access-token", ""), access_token):
        raise HttpError(401, UNAUTHORIZED)


def check_file_access(head: Head, access_token: str, operation: str) -> None:
    """The token in the header, or a signature in the URL. Raises HttpError 401."""
    if not access_token:
        return
    token = head.headers.get("x-access-token")
    if token is not None:
        if not is_same(token, access_token):
            raise HttpError(401, "access token present in header but does not match")
        return
    given = head.argument("signature")
    if not given:
        raise HttpError(401, "missing signature query parameter")
    expiration = head.argument("signature_expiration")
    path, user = head.argument("path") or "", head.argument("username") or ""
    # A user with a colon would let one signature stand for two different (path, user) pairs.
    if ":" in user or not is_same(given, signature(path, operation, user, access_token, expiration)):
        raise HttpError(401, "invalid signature")
    if expiration and (not _is_number(expiration) or int(expiration) < time.time()):
        raise HttpError(401, "signature is already expired")


def signature(path: str, operation: str, user: str, access_token: str, expiration: str | None) -> str:
    """E2B's signature of a file URL; every field is bound by it."""
    signed = f"{path}:{operation}:{user}:{access_token}"
    if expiration:
        signed += f":{expiration}"
    digest = sha256(signed.encode("utf-8", "surrogateescape")).digest()
    return "v1_" + b2a_base64(digest, newline=False).decode("ascii").rstrip("=")


def username(head: Head) -> str | None:
    """The user of Basic authorization; its password means nothing. Raises ConnectError `unauthenticated`."""
    kind, _, encoded = head.headers.get("authorization", "").partition(" ")
    if kind.lower() != "basic":
        return None
    try:
        decoded = a2b_base64(encoded.strip().encode("ascii"), strict_mode=True).decode("utf-8")
    except (Error, ValueError) as exc:
        raise ConnectError("unauthenticated", "malformed Authorization header") from exc
    return decoded.partition(":")[0] or None


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= MAX_EXPIRATION_DIGITS
