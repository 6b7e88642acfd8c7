"""What a sandbox's metadata is found by: one digest for each pair. Keys and values are of any length and may hold
what an index cannot (PostgreSQL: a NUL, or more than 2.7 kB), so they are not indexed themselves."""

import hashlib
from collections.abc import Mapping
from typing import Any

from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from firebrick.store.schema import sandbox_metadata

DIGEST_BYTES = 16
"""Two different pairs of a team never meet by chance: 128 bits."""
_INSERT = insert(sandbox_metadata)


def pair_digest(key: str, value: str) -> str:
    """Hex. The key's length stands before it, so that no pair can be read as another.

    Stored: changing this needs a migration (0004 has its own copy).
    """
    name = key.encode("utf-8", "surrogatepass")
    text = b"%d:%s%s" % (len(name), name, value.encode("utf-8", "surrogatepass"))
    return hashlib.blake2b(text, digest_size=DIGEST_BYTES).hexdigest()


async def metadata_insert(tx: AsyncConnection, *, team_id: str, sandbox_id: str, pairs: Mapping[str, str]) -> None:
    """The sandbox's row must be there already."""
    rows: list[dict[str, Any]] = [
        {"team_id": team_id, "pair": pair_digest(key, value), "sandbox_id": sandbox_id} for key, value in pairs.items()
    ]
    if rows:
        await tx.execute(_INSERT, rows)
