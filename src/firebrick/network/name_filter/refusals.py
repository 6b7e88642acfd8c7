"""Which refusals a sandbox's owner is told: each once a minute, and few. Pure; a guest makes as many as it likes."""

from dataclasses import dataclass

REPEAT_S = 60.0
BURST_COUNT, EVERY_S = 20, 3.0
REMEMBERED_COUNT = 64


@dataclass(slots=True)
class _Told:
    at_s: float
    more_count: int = 0


class Refusals:
    """Of one sandbox."""

    def __init__(self) -> None:
        self._told: dict[tuple[object, ...], _Told] = {}
        self._tokens = float(BURST_COUNT)
        self._last_s = 0.0

    def note(self, key: tuple[object, ...], now_s: float) -> int | None:
        """How many refusals of this kind a line told now stands for; None: nothing is told now."""
        self._tokens = min(BURST_COUNT, self._tokens + (now_s - self._last_s) / EVERY_S)
        self._last_s = now_s
        told = self._told.get(key)
        if (told is not None and now_s - told.at_s < REPEAT_S) or self._tokens < 1:
            if told is not None:
                told.more_count += 1
            return None
        self._tokens -= 1
        self._told.pop(key, None)
        while len(self._told) >= REMEMBERED_COUNT:
            del self._told[next(iter(self._told))]
        self._told[key] = _Told(at_s=now_s)
        return 1 + (told.more_count if told is not None else 0)
