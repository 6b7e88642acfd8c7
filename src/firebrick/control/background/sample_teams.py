"""Count each team's running sandboxes and starts, every few seconds."""

from datetime import datetime

from firebrick.control.platform import Platform
from firebrick.model.ids import TeamId
from firebrick.store.samples import TeamSample, team_count_running, team_count_started, team_sample_insert

ROUND_S = 15.0
LONGEST_GAP_S = 150.0


class SampleTeams:
    """A team that has nothing and starts nothing gets no samples, but for the one that says so."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._last_at: datetime | None = None
        self._busy: frozenset[TeamId] = frozenset()

    async def round(self) -> float:
        now = self._platform.clock.now()
        before, self._last_at = self._last_at, now
        if before is None or before >= now or (now - before).total_seconds() > LONGEST_GAP_S:
            # The first look, or the first after another control plane's.
            return ROUND_S
        elapsed_s = (now - before).total_seconds()
        async with self._platform.database.read() as tx:
            running = await team_count_running(tx)
            started = await team_count_started(tx, before, now)
        teams = frozenset(running) | frozenset(started)
        samples = [
            TeamSample(
                team_id=team_id, at=now, running_count=running.get(team_id, 0),
                start_rate=started.get(team_id, 0) / elapsed_s,
            )
            for team_id in {*teams, *self._busy}
        ]  # fmt: skip
        self._busy = teams
        async with self._platform.database.write() as tx:
            await team_sample_insert(tx, samples)
        return ROUND_S
