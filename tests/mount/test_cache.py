"""The cache of opened blocks: waiting readers share one load, its size is bounded, and readers may be cancelled."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from backyfs.errors import BackyfsError, IntegrityError, ObjectMissingError, StorageError
from backyfs.model import Blob, BlobId, BlobUid
from backyfs.mount.cache import PieceCache
from backyfs.mount.pool import Pool

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

READERS = 16
SIZE = 10  # bytes of every block here
PATIENCE_S = 20


def blob(number: int) -> Blob:
    return Blob(
        id=BlobId(number),
        uid=BlobUid(f"{number:032x}"),
        fingerprint=None,
        size=SIZE,
        encryption_version=0,
        wrapped_key=None,
    )


def plain(number: int) -> bytes:
    return b"%010d" % number


class Storage:
    """Counts loads, and makes them wait at a gate or fail when a test wants it."""

    def __init__(self) -> None:
        self.loads: list[int] = []  # appended to by worker threads
        self.gate = threading.Event()
        self.gate.set()
        self.stuck: dict[int, threading.Event] = {}  # blobs whose loads hang
        self.error: Exception | None = None
        self.running = 0
        self.most_running = 0
        self._lock = threading.Lock()

    def load(self, wanted: Blob, pieces: range) -> list[bytes]:
        assert pieces == range(1)
        with self._lock:
            self.loads.append(wanted.id)
            self.running += 1
            self.most_running = max(self.most_running, self.running)
        try:
            assert self.stuck.get(wanted.id, self.gate).wait(PATIENCE_S)
        finally:
            with self._lock:
                self.running -= 1
        if self.error is not None:
            raise self.error
        return [plain(wanted.id)]

    async def opens_when_all_wait(self) -> None:
        await wait_all_tasks_blocked()
        self.gate.set()


def cache_of(storage: Storage, capacity_bytes: int, workers: int) -> PieceCache:
    pools = [Pool("the storage", StorageError, threads=workers, patience_s=PATIENCE_S) for _ in range(2)]
    return PieceCache(storage.load, capacity_bytes, wanted=pools[0], ahead=pools[1])


async def within(scope: trio.CancelScope, read: Callable[..., Awaitable[None]], *arguments: int) -> None:
    with scope:
        await read(*arguments)


def with_patience(main: Callable[[], Awaitable[None]]) -> None:
    """Run code that would hang if the code under test were wrong."""

    async def limited() -> None:
        with trio.fail_after(PATIENCE_S):
            await main()

    trio.run(limited)


def answers_of_readers(storage: Storage, cache: PieceCache, wanted: Blob) -> list[bytes | BackyfsError]:
    """Read a blob from many tasks at the same time; open the gate of the storage when all of them wait."""
    answers: list[bytes | BackyfsError] = []

    async def read() -> None:
        try:
            answers.append(await cache.get(wanted, 0))
        except BackyfsError as error:
            answers.append(error)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(READERS):
                nursery.start_soon(read)
            await storage.opens_when_all_wait()

    storage.gate.clear()
    with_patience(main)
    return answers


@pytest.fixture
def storage() -> Storage:
    return Storage()


def test_one_load_serves_all_waiting_readers(storage: Storage) -> None:
    cache = cache_of(storage, 1000, 4)
    assert answers_of_readers(storage, cache, blob(1)) == [plain(1)] * READERS
    assert storage.loads == [1]


def test_one_load_serves_all_waiting_readers_even_if_it_cannot_be_kept(storage: Storage) -> None:
    cache = cache_of(storage, SIZE - 1, 4)
    assert answers_of_readers(storage, cache, blob(1)) == [plain(1)] * READERS
    assert storage.loads == [1]
    assert cache.used_bytes == 0


@pytest.mark.parametrize("error", [IntegrityError("blob x is damaged"), ObjectMissingError("x")], ids=repr)
def test_an_error_reaches_all_waiting_readers(storage: Storage, error: BackyfsError) -> None:
    storage.error = error
    cache = cache_of(storage, 1000, 4)
    assert answers_of_readers(storage, cache, blob(1)) == [error] * READERS
    assert storage.loads == [1]


def test_an_error_is_not_kept(storage: Storage) -> None:
    cache = cache_of(storage, 1000, 4)
    storage.error = IntegrityError("blob x is damaged")
    with pytest.raises(IntegrityError):
        trio.run(cache.get, blob(1), 0)
    storage.error = None
    assert trio.run(cache.get, blob(1), 0) == plain(1)
    assert storage.loads == [1, 1]


def test_an_error_takes_no_room(storage: Storage) -> None:
    cache = cache_of(storage, 1000, 4)
    storage.error = IntegrityError("blob x is damaged")
    with pytest.raises(IntegrityError):
        trio.run(cache.get, blob(1), 0)
    assert cache.used_bytes == 0
    assert cache.peek(blob(1), 0) is None


def test_an_unexpected_error_reaches_all_waiting_readers(storage: Storage) -> None:
    storage.error = ValueError("a bug")
    cache = cache_of(storage, 1000, 4)
    failed: list[int] = []

    async def read(number: int) -> None:
        try:
            await cache.get(blob(1), 0)
        except ValueError:
            failed.append(number)

    async def main() -> None:
        storage.gate.clear()
        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(read, number)
            await storage.opens_when_all_wait()

    trio.run(main)
    assert sorted(failed) == [0, 1, 2]
    assert storage.loads == [1]


def test_a_cached_block_is_not_loaded_again(storage: Storage) -> None:
    cache = cache_of(storage, 1000, 4)
    assert [trio.run(cache.get, blob(1), 0) for _ in range(5)] == [plain(1)] * 5
    assert storage.loads == [1]


def test_a_hit_does_not_wait(storage: Storage) -> None:
    cache = cache_of(storage, 1000, 4)
    trio.run(cache.get, blob(1), 0)
    storage.gate.clear()

    async def main() -> bytes:
        with trio.fail_after(0):
            return await cache.get(blob(1), 0)

    assert trio.run(main) == plain(1)


def test_peek_loads_nothing(storage: Storage) -> None:
    cache = cache_of(storage, 1000, 4)
    assert cache.peek(blob(1), 0) is None
    assert storage.loads == []


def test_the_cache_is_bounded_in_bytes(storage: Storage) -> None:
    cache = cache_of(storage, 3 * SIZE, 4)
    for number in range(1, 21):
        trio.run(cache.get, blob(number), 0)
        assert cache.used_bytes == min(number, 3) * SIZE
    assert [number for number in range(1, 21) if cache.peek(blob(number), 0)] == [18, 19, 20]


def test_the_least_recently_read_block_is_dropped_first(storage: Storage) -> None:
    cache = cache_of(storage, 3 * SIZE, 4)
    for number in (1, 2, 3):
        trio.run(cache.get, blob(number), 0)
    assert trio.run(cache.get, blob(1), 0) == plain(1)
    trio.run(cache.get, blob(4), 0)
    assert [number for number in (1, 2, 3, 4) if cache.peek(blob(number), 0)] == [1, 3, 4]


def test_a_dropped_block_is_loaded_again(storage: Storage) -> None:
    cache = cache_of(storage, SIZE, 4)
    for number in (1, 2, 1):
        assert trio.run(cache.get, blob(number), 0) == plain(number)
    assert storage.loads == [1, 2, 1]


@pytest.mark.parametrize("workers", [1, 3])
def test_different_blobs_are_loaded_in_parallel_up_to_the_number_of_workers(
    storage: Storage, workers: int
) -> None:
    cache = cache_of(storage, 1000, workers)
    got: dict[int, bytes] = {}

    async def read(number: int) -> None:
        got[number] = await cache.get(blob(number), 0)

    async def main() -> None:
        storage.gate.clear()
        async with trio.open_nursery() as nursery:
            for number in range(1, 9):
                nursery.start_soon(read, number)
            with trio.fail_after(PATIENCE_S):
                while storage.running < workers:  # noqa: ASYNC110 - it is counted by threads
                    await trio.sleep(0.001)
            await storage.opens_when_all_wait()

    trio.run(main)
    assert storage.most_running == workers
    assert got == {number: plain(number) for number in range(1, 9)}


def test_other_readers_are_served_if_the_one_that_began_the_load_is_cancelled(storage: Storage) -> None:
    cache = cache_of(storage, 1000, 4)
    got: list[bytes] = []

    async def read() -> None:
        got.append(await cache.get(blob(1), 0))

    async def main() -> None:
        storage.gate.clear()
        first = trio.CancelScope()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(within, first, read)
            await wait_all_tasks_blocked()
            for _ in range(3):
                nursery.start_soon(read)
            await wait_all_tasks_blocked()
            first.cancel()
            await storage.opens_when_all_wait()

    with_patience(main)
    assert got == [plain(1)] * 3
    assert storage.loads == [1]
    assert cache.used_bytes == SIZE


def test_a_hanging_load_is_started_only_once(storage: Storage) -> None:
    pools = [Pool("the storage", StorageError, threads=1, patience_s=0.1) for _ in range(2)]
    cache = PieceCache(storage.load, 1000, wanted=pools[0], ahead=pools[1])

    async def main() -> None:
        for _ in range(3):
            with pytest.raises(StorageError):
                await cache.get(blob(1), 0)
        assert await cache.get(blob(2), 0) == plain(2)  # by another thread

    storage.stuck[1] = threading.Event()
    try:
        with_patience(main)
    finally:
        storage.stuck[1].set()
    assert storage.loads == [1, 2]


def test_a_waiting_reader_can_be_cancelled(storage: Storage) -> None:
    cache = cache_of(storage, 1000, 4)
    got: list[bytes] = []

    async def read() -> None:
        got.append(await cache.get(blob(1), 0))

    async def main() -> None:
        storage.gate.clear()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await wait_all_tasks_blocked()
            with trio.move_on_after(0.01) as scope:
                await read()
            assert scope.cancelled_caught
            storage.gate.set()

    with_patience(main)
    assert got == [plain(1)]


def test_blocks_left_behind_are_dropped_first(storage: Storage) -> None:
    cache = cache_of(storage, 48 * SIZE, 4)  # three of them for blocks left behind
    for number in range(1, 49):
        trio.run(cache.get, blob(number), 0)
    for number in (47, 48):
        cache.leave_behind(blob(number), 0)
    trio.run(cache.get, blob(49), 0)
    trio.run(cache.get, blob(50), 0)
    assert [number for number in (1, 46, 47, 48, 49, 50) if cache.peek(blob(number), 0)] == [1, 46, 49, 50]
    assert cache.used_bytes == 48 * SIZE


def test_few_blocks_left_behind_are_kept(storage: Storage) -> None:
    cache = cache_of(storage, 48 * SIZE, 4)
    for number in range(1, 41):
        trio.run(cache.get, blob(number), 0)
        cache.leave_behind(blob(number), 0)
        assert cache.used_bytes == min(number, 3) * SIZE
    assert [number for number in range(1, 41) if cache.peek(blob(number), 0)] == [38, 39, 40]


def test_a_block_left_behind_and_read_again_is_kept_like_others(storage: Storage) -> None:
    cache = cache_of(storage, 48 * SIZE, 4)
    trio.run(cache.get, blob(1), 0)
    cache.leave_behind(blob(1), 0)
    assert cache.peek(blob(1), 0) == plain(1)
    for number in range(2, 12):
        trio.run(cache.get, blob(number), 0)
        cache.leave_behind(blob(number), 0)
    assert cache.peek(blob(1), 0) == plain(1)


def test_leaving_behind_a_block_that_is_not_cached_does_nothing(storage: Storage) -> None:
    cache = cache_of(storage, 48 * SIZE, 4)
    cache.leave_behind(blob(1), 0)
    assert cache.used_bytes == 0
    assert storage.loads == []


def prefetch_all(cache: PieceCache, storage: Storage, numbers: range) -> None:
    async def main() -> None:
        for number in numbers:
            cache.prefetch(blob(number), SIZE)
        await storage.opens_when_all_wait()
        while cache._loads:  # noqa: ASYNC110 - nobody waits for them
            await trio.sleep(0.001)

    storage.gate.clear()
    with_patience(main)


def test_read_ahead_takes_at_most_half_of_the_room_at_a_time(storage: Storage) -> None:
    cache = cache_of(storage, 8 * SIZE, 4)
    prefetch_all(cache, storage, range(1, 9))
    assert sorted(storage.loads) == [1, 2, 3, 4]
    prefetch_all(cache, storage, range(1, 9))
    assert sorted(storage.loads) == list(range(1, 9))


def test_an_error_during_read_ahead_reaches_no_reader(storage: Storage) -> None:
    cache = cache_of(storage, 8 * SIZE, 4)
    storage.error = IntegrityError("blob x is damaged")
    prefetch_all(cache, storage, range(1, 2))
    assert storage.loads == [1]
    assert cache.used_bytes == 0


def test_readers_do_not_wait_behind_read_ahead(storage: Storage) -> None:
    cache = cache_of(storage, 100 * SIZE, 1)

    async def loads_of(number: int) -> None:
        with trio.fail_after(PATIENCE_S):
            while len(storage.loads) < number:  # noqa: ASYNC110 - it is counted by threads
                await trio.sleep(0.001)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            cache.prefetch(blob(1), SIZE)
            await loads_of(1)
            cache.prefetch(blob(2), SIZE)
            nursery.start_soon(cache.get, blob(2), 0)
            await loads_of(2)
            storage.gate.set()

    storage.gate.clear()
    with_patience(main)
    assert storage.loads == [1, 2]


# Several pieces per load


def pieces_of(loads: list[range]) -> Callable[[Blob, range], list[bytes]]:
    """Return a loader for blobs of four pieces of SIZE bytes that records what it loads."""

    def load(wanted: Blob, pieces: range) -> list[bytes]:
        loads.append(pieces)
        return [plain(number) for number in pieces]

    return load


def cache_of_pieces(loads: list[range], capacity_bytes: int) -> PieceCache:
    pools = [Pool("the storage", StorageError, threads=2, patience_s=PATIENCE_S) for _ in range(2)]
    return PieceCache(pieces_of(loads), capacity_bytes, wanted=pools[0], ahead=pools[1])


LARGE = replace(blob(1), size=4 * SIZE - 3)


async def all_loaded(cache: PieceCache) -> None:
    while cache._loads:  # noqa: ASYNC110 - nobody waits for them
        await trio.sleep(0.001)


def test_pieces_requested_together_are_one_load() -> None:
    loads: list[range] = []
    cache = cache_of_pieces(loads, 1000)

    async def main() -> None:
        cache.want(LARGE, range(4))
        assert [await cache.get(LARGE, number) for number in range(4)] == [plain(number) for number in range(4)]

    with_patience(main)
    assert loads == [range(4)]
    assert cache.used_bytes == 4 * SIZE


def test_cached_pieces_are_not_loaded_with_the_others() -> None:
    loads: list[range] = []
    cache = cache_of_pieces(loads, 1000)

    async def main() -> None:
        await cache.get(LARGE, 1)
        cache.prefetch(LARGE, SIZE)
        await all_loaded(cache)

    with_patience(main)
    assert sorted(loads, key=lambda pieces: pieces.start) == [range(1), range(1, 2), range(2, 4)]
    assert (cache.loads, cache.loads_ahead, cache._ahead_bytes) == (1, 2, 0)


def test_a_block_is_read_ahead_in_one_load_and_its_pieces_are_cached_separately() -> None:
    loads: list[range] = []
    cache = cache_of_pieces(loads, 8 * SIZE)

    async def main() -> None:
        cache.prefetch(LARGE, SIZE)
        cache.prefetch(LARGE, SIZE)
        await all_loaded(cache)

    with_patience(main)
    assert loads == [range(4)]
    assert [cache.peek(LARGE, number) for number in range(4)] == [plain(number) for number in range(4)]


def test_a_reader_waiting_for_a_piece_shares_the_load_of_its_block() -> None:
    loads: list[range] = []
    cache = cache_of_pieces(loads, 1000)
    got: list[bytes] = []

    async def read(number: int) -> None:
        got.append(await cache.get(LARGE, number))

    async def main() -> None:
        cache.prefetch(LARGE, SIZE)
        async with trio.open_nursery() as nursery:
            for number in (2, 3):
                nursery.start_soon(read, number)
        await all_loaded(cache)

    with_patience(main)
    assert loads == [range(4)]
    assert sorted(got) == [plain(2), plain(3)]
    assert cache._ahead_bytes == 0
