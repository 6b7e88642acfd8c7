"""What processes printed last, for readers that come late; bounded for each process and for all together."""

from collections.abc import Iterator

RING_BYTES = 256 * 1024
POOL_BYTES = 16 * 1024 * 1024
# Small pieces of one kind are joined up to this, and every piece is charged for its own weight too: a program
# that prints single bytes must not make the ring many times its size.
SEGMENT_BYTES = 8 * 1024
PIECE_WEIGHT_BYTES = 128


class Ring:
    """The end of one process's output. Every byte has a number, from 0 on, both outputs counted together;
    `end_seq` is the number of the next one."""

    __slots__ = ("_open", "_pieces", "_pool", "end_seq", "size_bytes")

    def __init__(self, pool: "RingPool") -> None:
        self._pieces: list[tuple[str, bytes | bytearray]] = []
        self._open: bytearray | None = None
        self._pool = pool
        self.size_bytes = 0
        self.end_seq = 0
        pool.rings.add(self)

    @property
    def first_seq(self) -> int:
        """The number of the oldest byte that is still here."""
        return self.end_seq - self.size_bytes

    @property
    def weight_bytes(self) -> int:
        return self.size_bytes + PIECE_WEIGHT_BYTES * len(self._pieces)

    def add(self, kind: str, data: bytes) -> None:
        before = self.weight_bytes
        if self._open is not None and self._pieces[-1][0] == kind and len(self._open) + len(data) <= SEGMENT_BYTES:
            self._open += data
        else:
            self._seal()
            self._open = bytearray(data) if len(data) < SEGMENT_BYTES else None
            self._pieces.append((kind, data if self._open is None else self._open))
        self.size_bytes += len(data)
        self.end_seq += len(data)
        self._pool.weight_bytes += self.weight_bytes - before
        if self.weight_bytes > RING_BYTES:
            # A quarter at once: dropping from a list's front costs its length.
            self.cut(RING_BYTES * 3 // 4)
        if self._pool.weight_bytes > POOL_BYTES:
            self._pool.cut()

    def pieces(self, since: int = 0) -> Iterator[tuple[str, bytes]]:
        """From byte number `since` on, or from the oldest that is left."""
        seq = self.first_seq
        for kind, data in self._pieces:
            if seq + len(data) > since:
                # Sealed pieces are shared by all who read them; only an open one is copied.
                yield kind, bytes(data[max(0, since - seq) :]) if since > seq else bytes(data)
            seq += len(data)

    def cut(self, limit_bytes: int) -> None:
        """Drop the oldest pieces until at most `limit_bytes` are left, but never the newest."""
        before, count = self.weight_bytes, 0
        left, last = before, len(self._pieces) - 1
        while left > limit_bytes and count < last:
            size = len(self._pieces[count][1])
            left -= size + PIECE_WEIGHT_BYTES
            self.size_bytes -= size
            count += 1
        del self._pieces[:count]
        self._pool.weight_bytes += self.weight_bytes - before

    def close(self) -> None:
        """Drop everything and leave the pool."""
        self._pool.weight_bytes -= self.weight_bytes
        self._pool.rings.discard(self)
        self._pieces, self._open, self.size_bytes = [], None, 0

    def _seal(self) -> None:
        if self._open is not None:
            self._pieces[-1] = (self._pieces[-1][0], bytes(self._open))
            self._open = None


class RingPool:
    """All rings of a sandbox. When together they weigh more than POOL_BYTES the heaviest are cut, so that a
    quiet process keeps its few lines beside thousands of noisy ones."""

    def __init__(self) -> None:
        self.rings: set[Ring] = set()
        self.weight_bytes = 0

    def cut(self) -> None:
        limit_bytes = water_level([ring.weight_bytes for ring in self.rings], POOL_BYTES * 3 // 4)
        for ring in self.rings:
            if ring.weight_bytes > limit_bytes:
                ring.cut(limit_bytes)


def water_level(sizes: list[int], budget: int) -> int:
    """The height at which `sizes`, each cut to it, add up to `budget` at most."""
    left = budget
    ordered = sorted(sizes)
    for index, size in enumerate(ordered):
        share = left // (len(ordered) - index)
        if size > share:
            return share
        left -= size
    return ordered[-1] if ordered else 0
