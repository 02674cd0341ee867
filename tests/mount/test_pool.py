"""Worker threads with limited patience: a call that hangs costs its caller no more than the agreed time."""

from __future__ import annotations

import threading
import time

import pytest
import trio

from backyfs.errors import StorageError
from backyfs.mount.pool import Pool

PATIENCE_S = 0.2


def pool(threads: int = 1, patience_s: float = PATIENCE_S) -> Pool:
    return Pool("the storage", StorageError, threads=threads, patience_s=patience_s)


@pytest.fixture
def gate() -> threading.Event:
    return threading.Event()


def test_a_call_returns_its_result() -> None:
    assert trio.run(pool().run, divmod, 17, 5) == (3, 2)


def test_an_error_reaches_the_caller() -> None:
    with pytest.raises(ZeroDivisionError):
        trio.run(pool().run, divmod, 17, 0)


def test_a_caller_waiting_for_a_hanging_call_gets_an_error(gate: threading.Event) -> None:
    slow = pool()
    began = time.monotonic()
    try:
        with pytest.raises(StorageError, match=r"^the storage did not answer within 0\.2 s$"):
            trio.run(slow.run, gate.wait)
    finally:
        gate.set()
    assert PATIENCE_S <= time.monotonic() - began < 20 * PATIENCE_S
    assert slow.timeouts == 1


def test_callers_waiting_for_a_thread_while_all_hang_get_an_error(gate: threading.Event) -> None:
    slow = pool()
    failed: list[str] = []

    async def call() -> None:
        try:
            await slow.run(gate.wait)
        except StorageError:
            failed.append("timeout")

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(call)

    try:
        trio.run(main)
    finally:
        gate.set()
    assert failed == ["timeout"] * 3


def test_a_long_queue_is_not_an_error() -> None:
    slow = pool()
    done: list[int] = []

    def work(number: int) -> None:
        time.sleep(PATIENCE_S / 4)
        done.append(number)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for number in range(12):
                nursery.start_soon(slow.run, work, number)

    trio.run(main)
    assert sorted(done) == list(range(12))
    assert slow.timeouts == 0


def test_a_pool_works_again_after_a_hanging_call_has_ended(gate: threading.Event) -> None:
    slow = pool()

    async def main() -> tuple[int, int]:
        with pytest.raises(StorageError):
            await slow.run(gate.wait)
        gate.set()
        return await slow.run(divmod, 17, 5)

    assert trio.run(main) == (3, 2)
