"""How many requests are in flight: the limit grows while the store keeps up, and shrinks when it does not."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from backyfs.storage.bucket.line import Line

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

MIB = 1 << 20


def running(test: Callable[[], Coroutine[None, None, None]]) -> None:
    """Run a test in an event loop."""
    asyncio.run(test())


class Store:
    """A store that takes `capacity` requests at once, and answers each after a turn of the event loop."""

    def __init__(self, line: Line, capacity: int) -> None:
        self.line = line
        self.capacity = capacity
        self.most_in_flight = 0
        self.refused = 0

    async def request(self, size: int = 0) -> None:
        while True:
            async with self.line.turn(size) as turn:
                self.most_in_flight = max(self.most_in_flight, self.line.in_flight)
                is_too_much = self.line.in_flight > self.capacity
                for _ in range(5):
                    await asyncio.sleep(0)
                if not is_too_much:
                    turn.was_taken()
                    return
                self.refused += 1
                turn.was_too_much()


@pytest.mark.parametrize("capacity", [1, 3, 20, 1000])
def test_the_limit_finds_what_the_store_takes(capacity: int) -> None:
    async def test() -> None:
        store = Store(Line(requests=64), capacity)
        await asyncio.gather(*(store.request() for _ in range(3000)))
        assert store.most_in_flight >= min(64, capacity)
        assert store.line.in_flight == 0
        assert 1 <= store.line.limit <= 64
        if capacity == 20:
            assert capacity / 2 <= store.line.limit <= capacity + 1
            assert store.refused < 3000 / 5

    running(test)


def test_the_limit_does_not_grow_without_need() -> None:
    async def test() -> None:
        store = Store(Line(first=4), 1000)
        for _ in range(100):
            await asyncio.gather(store.request(), store.request())
        assert store.line.limit == 4

    running(test)


def test_requests_that_fail_together_halve_the_limit_once() -> None:
    async def test() -> None:
        line = Line(first=16)

        async def fail() -> None:
            async with line.turn(0) as turn:
                await asyncio.sleep(0)
                turn.was_too_much()

        await asyncio.gather(*(fail() for _ in range(16)))
        assert line.limit == 8
        await fail()
        assert line.limit == 4

    running(test)


def test_bytes_in_flight_are_limited_and_a_large_request_goes_alone() -> None:
    async def test() -> None:
        line = Line(first=64, bytes_in_flight=10 * MIB)
        in_flight: list[int] = []
        most = 0

        async def send(size: int) -> None:
            nonlocal most
            async with line.turn(size) as turn:
                in_flight.append(size)
                most = max(most, sum(in_flight))
                await asyncio.sleep(0)
                in_flight.remove(size)
                turn.was_taken()

        await asyncio.gather(*(send(size * MIB) for size in [4, 4, 4, 1, 1, 30, 4, 4]))
        assert most == 30 * MIB
        await asyncio.gather(*(send(4 * MIB) for _ in range(20)))
        assert line.in_flight == 0

    running(test)


def test_requests_wait_in_the_order_in_which_they_came() -> None:
    async def test() -> None:
        line = Line(first=1)
        done: list[int] = []

        async def send(number: int) -> None:
            async with line.turn(0):
                await asyncio.sleep(0)
                done.append(number)

        await asyncio.gather(*(send(number) for number in range(20)))
        assert done == list(range(20))

    running(test)


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 4])
def test_a_request_that_is_cancelled_keeps_no_place(turns: int) -> None:
    async def test() -> None:
        line = Line(first=1)
        tasks = [asyncio.ensure_future(Store(line, 10).request(MIB)) for _ in range(5)]
        for _ in range(turns):
            await asyncio.sleep(0)
        for task in tasks[:4]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert line.in_flight == 0
        await Store(line, 10).request(200 * MIB)
        assert line.in_flight == 0

    running(test)


def test_a_turn_that_ends_when_a_waiting_request_is_cancelled_passes_over_it() -> None:
    async def test() -> None:
        line = Line(first=1)
        release = asyncio.Event()

        async def hold() -> None:
            async with line.turn(0):
                await release.wait()

        holder = asyncio.ensure_future(hold())
        await asyncio.sleep(0)
        waiting = [asyncio.ensure_future(Store(line, 10).request()) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        release.set()
        found = await asyncio.gather(holder, *waiting, return_exceptions=True)
        assert [type(one) for one in found] == [type(None), asyncio.CancelledError, type(None), type(None)]
        assert line.in_flight == 0

    running(test)
