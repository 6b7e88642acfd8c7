"""How fast network slots are made, taken, reset, adopted and removed on this machine.

    python benchmarks/slots.py [count]

Works in a network namespace of its own, so nothing of this machine's network is touched; needs root.
"""

import asyncio
import sys
from ipaddress import IPv4Network
from statistics import median
from time import perf_counter

from firebrick.linux import netns
from firebrick.log import configure
from firebrick.model.egress import CLOSED
from firebrick.network.pool import NativeSlotPool

POLL_S = 0.002
TAKEN_AT_ONCE_COUNT = 20


async def ready(pool: NativeSlotPool, count: int) -> None:
    while pool.free_count < count:  # noqa: ASYNC110 - the pool has no event to wait for, and needs none
        await asyncio.sleep(POLL_S)


async def measure(count: int) -> None:
    def make() -> NativeSlotPool:
        return NativeSlotPool(instance="bnch", prefix=IPv4Network("10.111.0.0/16"), size=count)

    pool = make()
    try:
        start = perf_counter()
        await pool.open(frozenset())
        show("open, first time", perf_counter() - start)
        await ready(pool, count)
        took = perf_counter() - start
        show(f"make {count} slots", took, f"{count / took:.0f} a second")

        times, slots = [], []
        for _ in range(min(TAKEN_AT_ONCE_COUNT, count)):
            start = perf_counter()
            slots.append(await pool.acquire())
            times.append(perf_counter() - start)
        show("acquire, median", median(times), f"worst {max(times) * 1000:.3f} ms")
        start = perf_counter()
        await pool.restrict(slots[0], CLOSED)
        show("restrict", perf_counter() - start)
        start = perf_counter()
        for slot in slots:
            await pool.release(slot)
        show(f"release {len(slots)} slots", perf_counter() - start)
        await ready(pool, count)
        took = perf_counter() - start
        show(f"until {len(slots)} are ready again", took, f"{len(slots) / took:.0f} a second")
        await pool.close()

        pool = make()
        start = perf_counter()
        await pool.open(frozenset())
        show(f"open, adopting {pool.free_count}", perf_counter() - start)
    finally:
        start = perf_counter()
        await pool.destroy_all()
        show("destroy_all", perf_counter() - start)


def show(what: str, seconds: float, more: str = "") -> None:
    print(f"{what:<32}{seconds * 1000:>12.2f} ms  {more}")


if __name__ == "__main__":
    configure("warning", "benchmark")
    netns.unshare()
    asyncio.run(measure(int(sys.argv[1]) if len(sys.argv) > 1 else 64))
