"""How many sandboxes of a kind are likely to be wanted at once: from the times of creates, without effects.

What a pool of ready machines can serve is a burst; between bursts it is filled again. So what counts is the largest
number of creates within `BURST_S`, fading by half every `HALF_LIFE_S`.
"""

from dataclasses import dataclass
from math import ceil

BURST_S = 5.0
"""Creates within this time count as one burst: about what it takes to start ten machines again."""
HALF_LIFE_S = 300.0
MOST_COUNT = 256
"""More in one burst are not told apart; memory bounds the pool far below this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """`created_s`: the creates of the last burst; `peak`: the largest burst, as it was at `peak_s`."""

    created_s: tuple[float, ...] = ()
    peak: float = 0.0
    peak_s: float = 0.0

    def after_create(self, now_s: float) -> "Demand":
        """The demand once another sandbox was asked for."""
        created_s = (*(at_s for at_s in self.created_s if now_s - at_s < BURST_S), now_s)[-MOST_COUNT:]
        faded = self._faded(now_s)
        if len(created_s) < faded:
            return Demand(created_s=created_s, peak=self.peak, peak_s=self.peak_s)
        return Demand(created_s=created_s, peak=float(len(created_s)), peak_s=now_s)

    def wanted_count(self, now_s: float) -> int:
        """Machines worth keeping ready for the next burst."""
        return ceil(self._faded(now_s) - 0.5)

    def _faded(self, now_s: float) -> float:
        # A monotonic clock does not go back; min() keeps a wrong one from making the pool grow.
        return float(self.peak * 0.5 ** (max(0.0, now_s - self.peak_s) / HALF_LIFE_S))
