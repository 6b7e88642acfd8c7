"""What every service, workflow and reconciler of the control plane stands on."""

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
