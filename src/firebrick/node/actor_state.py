"""Where a machine's owner is in its life; the diagram is in `sandbox_actor`."""

from enum import StrEnum


class ActorState(StrEnum):
    STARTING = "starting"
    WARM = "warm"
    CLAIMED = "claimed"
    RUNNING = "running"
    PAUSED = "paused"
    ENDING = "ending"
    ENDED = "ended"
