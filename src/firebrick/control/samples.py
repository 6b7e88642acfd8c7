"""How much each sandbox uses: the latest reading in memory, the samples of a day in the store."""

from collections.abc import Mapping

from firebrick.model.ids import SandboxId
from firebrick.rpc.node_api import SandboxUsage
from firebrick.store.samples import TeamSample, UsageSample

__all__ = ["SAMPLE_EVERY_S", "LatestUsage", "TeamSample", "UsageSample", "sample_of"]

SAMPLE_EVERY_S = 5.0


class LatestUsage:
    """The last reading of each running sandbox; lost with the process, which is fine."""

    def __init__(self) -> None:
        self._found: dict[SandboxId, SandboxUsage] = {}

    def replace(self, found: Mapping[SandboxId, SandboxUsage]) -> None:
        self._found = dict(found)

    def put(self, sandbox_id: SandboxId, usage: SandboxUsage) -> None:
        self._found[sandbox_id] = usage

    def get(self, sandbox_id: SandboxId) -> SandboxUsage | None:
        return self._found.get(sandbox_id)


def sample_of(sandbox_id: SandboxId, usage: SandboxUsage) -> UsageSample:
    return UsageSample(
        sandbox_id=sandbox_id,
        at=usage.timestamp,
        cpu_used_pct=usage.cpu_used_pct,
        memory_bytes=usage.memory_bytes,
        memory_limit_bytes=usage.memory_limit_bytes,
        disk_bytes=usage.disk_bytes,
        disk_limit_bytes=usage.disk_limit_bytes,
    )
