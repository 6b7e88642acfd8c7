"""The agent's own events, in a bounded ring that the host reads. Never what a process printed."""

import time
from collections import deque

RING_COUNT = 2000
MAX_VALUE_CHARS = 512


class EventLog:
    def __init__(self, count: int = RING_COUNT) -> None:
        self._entries: deque[dict[str, object]] = deque(maxlen=count)
        self._next = 0

    def add(self, level: str, message: str, **fields: object) -> None:
        self._entries.append(
            {
                "seq": self._next,
                "timestampUs": time.time_ns() // 1000,
                "level": level,
                "message": message,
                "fields": {name: str(value)[:MAX_VALUE_CHARS] for name, value in fields.items()},
            }
        )
        self._next += 1

    def forget(self) -> None:
        """Drop all entries; numbers go on."""
        self._entries.clear()

    def read(self, since: int, limit: int) -> dict[str, object]:
        """Entries from number `since` on, oldest first, and the number to ask for next."""
        found = [entry for entry in self._entries if int(str(entry["seq"])) >= since][:limit]
        following = int(str(found[-1]["seq"])) + 1 if found else max(since, self._next)
        return {"entries": found, "next": following if since <= self._next else self._next}
