"""Hands every change of a table to its consumers and knows when each has acted on it."""

import asyncio
import weakref
from collections import deque
from collections.abc import AsyncIterator, Iterable

from firebrick.catalog.base import Route, Tombstone


class _Subscription:
    """One consumer's queue. It is idle when it asks for the next change and there is none."""

    def __init__(self) -> None:
        self.waiting: deque[Route | Tombstone] = deque()
        self.arrived = asyncio.Event()
        self.idle = asyncio.Event()
        self.idle.set()

    def put(self, change: Route | Tombstone) -> None:
        self.waiting.append(change)
        self.idle.clear()
        self.arrived.set()

    async def next(self) -> Route | Tombstone:
        while not self.waiting:
            self.arrived.clear()
            self.idle.set()
            await self.arrived.wait()
        return self.waiting.popleft()


class ChangeFeed:
    """`subscribe` from the moment of the call; `settled` returns when no consumer has a change in hand."""

    def __init__(self) -> None:
        # Weak: a consumer that went away without saying so must not hold up acknowledgements for ever.
        self._subscriptions: weakref.WeakSet[_Subscription] = weakref.WeakSet()

    def put(self, changes: Iterable[Route | Tombstone]) -> None:
        for change in changes:
            for subscription in self._subscriptions:
                subscription.put(change)

    async def settled(self) -> None:
        for subscription in list(self._subscriptions):
            await subscription.idle.wait()

    def subscribe(self) -> AsyncIterator[Route | Tombstone]:
        subscription = _Subscription()
        self._subscriptions.add(subscription)
        return self._iterate(subscription)

    async def _iterate(self, subscription: _Subscription) -> AsyncIterator[Route | Tombstone]:
        try:
            while True:
                yield await subscription.next()
        finally:
            self._subscriptions.discard(subscription)
            subscription.idle.set()
