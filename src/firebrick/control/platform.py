"""What every service, workflow and reconciler of the control plane stands on."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from firebrick.catalog.base import CatalogWriter
from firebrick.clock import Clock
from firebrick.config import Config
from firebrick.control.nodes import NodeDirectory
from firebrick.control.signals import Signals
from firebrick.control.tokens import Tokens
from firebrick.store.database import Database


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    database: Database
    nodes: NodeDirectory
    catalog: CatalogWriter
    clock: Clock
    config: Config
    tokens: Tokens
    signals: Signals = field(default_factory=Signals)
    at_work: Counter[str] = field(default_factory=Counter)
    """Ids of what workflows of this process work at: reconcilers finish only what nobody does."""

    @contextmanager
    def working(self, subject: str) -> Iterator[None]:
        self.at_work[subject] += 1
        try:
            yield
        finally:
            self.at_work[subject] -= 1
            if not self.at_work[subject]:
                del self.at_work[subject]
