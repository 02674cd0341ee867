"""How many requests are in flight: as many as the line takes.

Additive increase, multiplicative decrease, as in TCP congestion control (RFC 5681): the limit doubles in each round
trip until the store first asks for less. From then on it grows by one in each round trip, and a request that the store
does not take halves it. It grows only while it holds requests back. Owned by one event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

MOST_REQUESTS = 128
MOST_BYTES = 96 << 20
_FIRST = 8


class Line:
    """Requests in flight and requests that wait, in the order in which they came."""

    def __init__(
        self, *, requests: int = MOST_REQUESTS, bytes_in_flight: int = MOST_BYTES, first: int = _FIRST
    ) -> None:
        """Begin with the limit `first`; it never exceeds `requests`, nor requests in flight `bytes_in_flight`."""
        self._most = requests
        self._most_bytes = bytes_in_flight
        self.limit = float(min(first, requests))
        self._starts_slowly = True  # the limit still doubles
        self.in_flight = 0
        self._bytes = 0
        self._waiting: deque[tuple[asyncio.Future[None], int]] = deque()
        self.decreases = 0  # so far

    @asynccontextmanager
    async def turn(self, size: int) -> AsyncIterator[Turn]:
        """Wait for a place for a request of `size` bytes, either way."""
        if self._waiting or not self._has_place(size):
            await self._wait(size)
        else:
            self._enter(size)
        turn = Turn(self)
        try:
            yield turn
        finally:
            self.in_flight -= 1
            self._bytes -= size
            self._admit()

    async def _wait(self, size: int) -> None:
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiter = (place, size)
        self._waiting.append(waiter)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():  # it was admitted in the same moment
                self.in_flight -= 1
                self._bytes -= size
            else:
                with suppress(ValueError):  # `_admit` has removed it
                    self._waiting.remove(waiter)
            self._admit()
            raise

    def _admit(self) -> None:
        while self._waiting and self._has_place(self._waiting[0][1]):
            place, size = self._waiting.popleft()
            if not place.done():
                self._enter(size)
                place.set_result(None)

    def _enter(self, size: int) -> None:
        self.in_flight += 1
        self._bytes += size

    def _has_place(self, size: int) -> bool:
        if not self.in_flight:
            return True
        return self.in_flight < int(self.limit) and self._bytes + size <= self._most_bytes

    def grow(self) -> None:
        """Raise the limit, if it held requests back."""
        if self._waiting and self.in_flight >= int(self.limit):
            self.limit = min(self._most, self.limit + (1 if self._starts_slowly else 1 / self.limit))

    def shrink(self, decreases_before: int) -> None:
        """Halve the limit, unless that was done since there were this many decreases."""
        # Requests that were in flight together fail together, and say the same thing once.
        if decreases_before == self.decreases:
            self.decreases += 1
            self._starts_slowly = False
            self.limit = max(1.0, self.limit / 2)


class Turn:
    """A request in flight."""

    def __init__(self, line: Line) -> None:
        """Begin."""
        self._line = line
        self._decreases_before = line.decreases

    def was_taken(self) -> None:
        """Note that the store took the request."""
        self._line.grow()

    def was_too_much(self) -> None:
        """Note that the store did not take the request: it wants fewer, or is not there."""
        self._line.shrink(self._decreases_before)
