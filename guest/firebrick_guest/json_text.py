"""JSON in and out, with everything a hostile document can do turned into one error."""

import json
from binascii import Error, a2b_base64

from firebrick_guest.errors import ConnectError


def dump_json(value: object) -> bytes:
    """Compact JSON. Bytes of file names that are not UTF-8 become U+FFFD: JSON has no way to tell them."""
    raw = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    try:
        return raw.encode()
    except UnicodeEncodeError:
        return raw.encode("utf-8", "surrogateescape").decode("utf-8", "replace").encode()


def load_json(raw: bytes) -> dict[str, object]:
    """One JSON object. Raises ConnectError `invalid_argument`."""
    try:
        value = json.loads(raw) if raw else {}
    except (ValueError, RecursionError) as exc:
        raise ConnectError("invalid_argument", "the message is not valid JSON") from exc
    if not isinstance(value, dict):
        raise ConnectError("invalid_argument", "the message must be a JSON object")
    return value


def text(message: dict[str, object], name: str, default: str = "") -> str:
    """A string that the kernel can take: no NUL, encodable."""
    value = message.get(name)
    if value is None:
        return default
    return as_text(value, name)


def as_text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise ConnectError("invalid_argument", f"{name} must be a string")
    if "\0" in value:
        raise ConnectError("invalid_argument", f"{name} must not contain NUL")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as exc:
        raise ConnectError("invalid_argument", f"{name} is not valid text") from exc
    return value


def flag(message: dict[str, object], name: str, default: bool) -> bool:
    value = message.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise ConnectError("invalid_argument", f"{name} must be true or false")
    return value


def number(message: dict[str, object], name: str, default: int, *, low: int, high: int) -> int:
    """An integer in [low, high]; 64-bit integers may come as strings."""
    value = message.get(name)
    if value is None:
        return default
    if isinstance(value, str) and value.isascii() and value.lstrip("-").isdigit() and len(value) < 20:
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ConnectError("invalid_argument", f"{name} must be a whole number from {low} to {high}")
    return value


def submessage(message: dict[str, object], name: str) -> dict[str, object] | None:
    value = message.get(name)
    if value is None:
        return None
    if not isinstance(value, dict):
        raise ConnectError("invalid_argument", f"{name} must be an object")
    return value


def text_list(message: dict[str, object], name: str) -> list[str]:
    value = message.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise ConnectError("invalid_argument", f"{name} must be a list")
    return [as_text(item, name) for item in value]


def text_map(message: dict[str, object], name: str) -> dict[str, str]:
    return {as_text(key, name): as_text(value, name) for key, value in (submessage(message, name) or {}).items()}


def binary(message: dict[str, object], name: str) -> bytes | None:
    """A protobuf `bytes` field: base64, standard or URL-safe alphabet, padding optional."""
    value = message.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise ConnectError("invalid_argument", f"{name} must be base64")
    try:
        plain = value.replace("-", "+").replace("_", "/").rstrip("=").encode("ascii")
        return a2b_base64(plain + b"=" * (-len(plain) % 4), strict_mode=True) if plain else b""
    except (Error, ValueError) as exc:
        raise ConnectError("invalid_argument", f"{name} is not valid base64") from exc
