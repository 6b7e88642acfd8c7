"""The blob seam: bytes under keys, somewhere that outlives this process. Fit for a directory and for S3.

Keys are lower-case words, digits, `-` and `.`, with `/` between; no rename, no append, no partial write is assumed.
What is put under a key is there whole or not at all. Who needs several things to appear together writes the one that
names the others last, after a `flush`.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from firebrick.model.errors import Internal, NotFound


class BlobMissing(NotFound):
    """There is nothing under this key."""


class BlobsFailed(Internal):
    """The store itself failed; the message names the key and the step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobInfo:
    """`modified_at`: when it was last put, by the store's clock."""

    key: str
    size_bytes: int
    modified_at: datetime


class BlobStore(Protocol):
    async def put(self, key: str, data: bytes) -> None:
        """Store; what was there before is replaced at once. Safe after `flush`. Raises BlobsFailed."""
        ...

    async def flush(self) -> None:
        """When this returns, all that was put survives a power cut. Raises BlobsFailed."""
        ...

    async def get(self, key: str) -> bytes:
        """Raises BlobMissing, BlobsFailed."""
        ...

    async def find(self, key: str) -> BlobInfo | None:
        """None when it is not there. Raises BlobsFailed."""
        ...

    def list(self, prefix: str) -> AsyncIterator[BlobInfo]:
        """Everything whose key begins with `prefix`, in no order. What comes or goes meanwhile may be missing.
        Raises BlobsFailed."""
        ...

    async def delete(self, key: str) -> None:
        """Idempotent. Raises BlobsFailed."""
        ...
