"""The list of sandboxes with its page tokens: opaque to clients, signed, and good for one team and one order."""

from collections import OrderedDict
from dataclasses import dataclass, replace
from datetime import datetime

from firebrick.control.platform import Platform
from firebrick.model.errors import Invalid
from firebrick.model.ids import SandboxId
from firebrick.model.sandbox import Sandbox
from firebrick.store.sandbox_pages import PageKey, SandboxFilter, sandbox_list_page

__all__ = ["Listing", "ListingService", "SandboxFilter"]

KNOWN_COUNT = 2000
"""Sandboxes kept as objects between lists, some 2 KiB each; their generation tells if they are still right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """One page. `next_token` is None on the last; `running_count` is of all that match."""

    sandboxes: tuple[Sandbox, ...]
    next_token: str | None
    running_count: int


class ListingService:
    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._known: OrderedDict[SandboxId, Sandbox] = OrderedDict()

    async def list_page(self, wanted: SandboxFilter, token: str | None = None) -> Listing:
        """The page after `token`, or the first. Raises Invalid for a token that is not ours, or another team's."""
        if token:
            wanted = replace(wanted, after=self._read(wanted, token))
        async with self._platform.database.read() as tx:
            page = await sandbox_list_page(tx, wanted, self._known)
        self._remember(page.read)
        next_token = self._write(wanted, page.sandboxes[-1]) if page.has_more else None
        return Listing(sandboxes=page.sandboxes, next_token=next_token, running_count=page.running_count)

    def _remember(self, sandboxes: tuple[Sandbox, ...]) -> None:
        for sandbox in sandboxes:
            self._known[sandbox.sandbox_id] = sandbox
        while len(self._known) > KNOWN_COUNT:
            self._known.popitem(last=False)

    def _write(self, wanted: SandboxFilter, last: Sandbox) -> str:
        position = {"t": last.started_at.isoformat(), "i": last.sandbox_id, "n": wanted.newest_first}
        return self._platform.tokens.page_token(wanted.team_id, position)

    def _read(self, wanted: SandboxFilter, token: str) -> PageKey:
        position = self._platform.tokens.read_page_token(wanted.team_id, token)
        if position["n"] is not wanted.newest_first:
            raise Invalid("Invalid next token: it belongs to a list in the other order")
        return PageKey(started_at=datetime.fromisoformat(position["t"]), sandbox_id=SandboxId(position["i"]))
