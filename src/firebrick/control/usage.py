"""How much each sandbox used, lately: a bounded series in memory, lost with the process, which is fine."""

from collections import deque
from collections.abc import Iterable
from datetime import datetime

from firebrick.model.ids import SandboxId
from firebrick.rpc.node_api import SandboxUsage

SAMPLE_EVERY_S = 5.0
KEPT_COUNT = 720
"""One hour at one sample in 5 s; about 150 KiB a sandbox at the most."""


class UsageSeries:
    def __init__(self) -> None:
        self._samples: dict[SandboxId, deque[SandboxUsage]] = {}

    def add(self, sandbox_id: SandboxId, usage: SandboxUsage) -> None:
        """Append a reading; one that is not younger than the last is dropped."""
        samples = self._samples.setdefault(sandbox_id, deque(maxlen=KEPT_COUNT))
        if not samples or usage.timestamp > samples[-1].timestamp:
            samples.append(usage)

    def between(
        self, sandbox_id: SandboxId, *, start: datetime | None, end: datetime | None
    ) -> tuple[SandboxUsage, ...]:
        """Readings in [start, end], oldest first; None leaves that side open."""
        return tuple(
            usage
            for usage in self._samples.get(sandbox_id, ())
            if (start is None or usage.timestamp >= start) and (end is None or usage.timestamp <= end)
        )

    def latest(self, sandbox_id: SandboxId) -> SandboxUsage | None:
        samples = self._samples.get(sandbox_id)
        return samples[-1] if samples else None

    def keep_only(self, living: Iterable[SandboxId]) -> None:
        """Forget every other sandbox."""
        keep = set(living)
        for sandbox_id in [known for known in self._samples if known not in keep]:
            del self._samples[sandbox_id]
