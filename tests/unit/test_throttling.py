"""Slots of time, and a storage that keeps to limits."""

from __future__ import annotations

import heapq
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backyfs.config import NullStorageConfig
from backyfs.errors import InterruptedByUser, ObjectMissingError, StorageError
from backyfs.model import BlobUid
from backyfs.storage.null import NullStorage
from backyfs.storage.protocol import MAX_OBJECT_BYTES
from backyfs.storage.throttling import Pacer, Slot, ThrottledStorage, throttled
from tests.support.repositories import wait_for

MIB = 1 << 20
UID = BlobUid("a1b2c3d4")


class FakeClock:
    """A clock that advances when somebody sleeps."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


class FullStorage(NullStorage):
    """A storage that has an object of a given size for every uid, and takes some time for each call."""

    def __init__(self, size=MIB, pause=lambda: None):
        super().__init__()
        self.object_size = size
        self._pause = pause
        self._lock = threading.Lock()
        self._inside = 0
        self.most_inside = 0
        self.calls = 0

    def put(self, key, parts):
        return self._do(sum(map(len, parts)))

    def get(self, key, *, most=MAX_OBJECT_BYTES):
        if self.object_size is None:
            raise ObjectMissingError(key)
        return bytes(self._do(self.object_size))

    def get_range(self, key, offset, length):
        return bytes(self._do(min(length, self.object_size - offset)))

    def _do(self, size):
        with self._lock:
            self._inside += 1
            self.calls += 1
            self.most_inside = max(self.most_inside, self._inside)
        self._pause()
        with self._lock:
            self._inside -= 1
        return size


def simulated(limits, storage):
    """Return a throttled storage and its clock."""
    clock = FakeClock()
    return ThrottledStorage(storage, limits, clock=clock, sleep=clock.sleep), clock


# Slots


def test_the_first_slot_begins_immediately_and_the_next_when_it_ends():
    pacer = Pacer(1000)
    assert pacer.take(500, 10.0) == Slot(10.0, 10.5)
    assert pacer.take(250, 10.0) == Slot(10.5, 10.75)


def test_a_late_caller_gets_back_at_most_a_tenth_of_a_second():
    pacer = Pacer(1000)
    pacer.take(1000, 10.0)
    assert pacer.take(1000, 11.05) == Slot(11.0, 12.0)
    assert pacer.take(1000, 20.0) == Slot(19.9, 20.9)


def test_a_slot_that_was_too_long_shortens_the_next():
    pacer = Pacer(1000)
    slot = pacer.take(1000, 10.0)
    assert pacer.correct(slot, -250) == Slot(10.0, 10.75)
    assert pacer.take(1000, 10.0) == Slot(10.75, 11.75)


def test_slots_that_were_too_short_are_extended_one_after_the_other():
    pacer = Pacer(1000)
    slots = [pacer.take(0, 10.0) for _ in range(3)]
    assert [pacer.correct(slot, 500).stop for slot in slots] == [10.5, 11.0, 11.5]
    assert pacer.take(500, 10.0) == Slot(11.5, 12.0)


@given(
    st.integers(1, 10**10),
    st.lists(st.tuples(st.floats(0, 5), st.integers(0, 64 * MIB)), min_size=1, max_size=50),
)
def test_slots_never_overlap_and_last_as_long_as_their_bytes_need(rate, takes):
    pacer = Pacer(rate)
    now = before = 1000.0
    for gap, size in takes:
        now += gap
        slot = pacer.take(size, now)
        assert slot.stop == slot.start + size / rate
        assert slot.start >= max(before, now - 0.1) or slot.start == now
        before = slot.stop


@pytest.mark.parametrize("threads", [1, 3, 16])
@pytest.mark.parametrize("work_s", [0.0, 0.04])
@pytest.mark.parametrize(
    ("rate", "size"), [(10 * MIB, 4 * MIB), (100 * MIB, 4 * MIB), (MIB, 4096), (300_000, 65_536)]
)
def test_threads_together_reach_the_rate_within_5_percent_over_10_s(threads, work_s, rate, size):
    # Each thread in turn takes a slot, waits until it ends, and works a little on its bytes.
    pacer = Pacer(rate)
    ready = [0.0] * threads
    moved = 0
    while (now := heapq.heappop(ready)) < 10:
        slot = pacer.take(size, now)
        moved += size if slot.stop <= 10 else 0
        heapq.heappush(ready, max(slot.stop, now) + work_s)
    assert moved <= 10.5 * rate
    if work_s <= threads * size / rate:  # otherwise they are slower than the limit anyway
        assert moved >= 9.5 * rate


# A storage with limits


def test_a_storage_without_limits_is_not_wrapped():
    storage = NullStorage()
    assert throttled(storage, NullStorageConfig(), lambda: False) is storage


@pytest.mark.parametrize(
    "limit", ["simultaneous_writes", "simultaneous_reads", "bandwidth_read", "bandwidth_write"]
)
def test_a_storage_with_any_limit_is_wrapped(limit):
    one: dict[str, Any] = {limit: 1}
    storage = throttled(NullStorage(), NullStorageConfig(**one), lambda: False)
    assert isinstance(storage, ThrottledStorage)


def test_the_time_for_a_number_of_bytes_follows_the_limit():
    storage, clock = simulated(NullStorageConfig(bandwidth_write=MIB), FullStorage())
    for _ in range(10):
        assert storage.put(UID, [bytes(MIB // 2), bytes(MIB // 2)]) == MIB
    assert clock.now == pytest.approx(110.0, abs=0.05)
    storage, clock = simulated(NullStorageConfig(bandwidth_read=MIB), FullStorage())
    for _ in range(10):
        assert len(storage.get(UID)) == MIB
    assert clock.now == pytest.approx(110.0, abs=0.05)


def test_parts_of_objects_are_counted_by_the_bytes_read():
    storage, clock = simulated(NullStorageConfig(bandwidth_read=MIB), FullStorage())
    for _ in range(20):
        assert len(storage.get_range(UID, 0, MIB // 4)) == MIB // 4
        assert len(storage.get_range(UID, MIB - 1024, MIB)) == 1024
    assert clock.now == pytest.approx(105.0, abs=0.05)


def test_reads_and_writes_are_counted_separately():
    storage, clock = simulated(NullStorageConfig(bandwidth_write=MIB), FullStorage())
    for _ in range(10):
        storage.get(UID)
    assert clock.now == 100.0


def test_objects_of_changing_size_are_counted_by_their_size():
    full = FullStorage()
    storage, clock = simulated(NullStorageConfig(bandwidth_read=MIB), full)
    for full.object_size in (MIB, 0, 3 * MIB, 100, 4 * MIB, MIB):
        storage.get(UID)
    assert clock.now == pytest.approx(109.0, abs=0.05)


def test_calls_that_take_as_long_as_the_limit_requires_are_not_slowed():
    clock: FakeClock
    storage, clock = simulated(NullStorageConfig(bandwidth_write=MIB), FullStorage(pause=lambda: clock.sleep(1.0)))
    for _ in range(10):
        storage.put(UID, [bytes(MIB)])
    assert clock.now == pytest.approx(110.0, abs=0.05)


def test_simultaneous_reads_of_unknown_size_take_the_time_of_all():
    together = threading.Barrier(4)
    storage = ThrottledStorage(FullStorage(MIB // 4, pause=together.wait), NullStorageConfig(bandwidth_read=2 * MIB))
    started = time.monotonic()
    with ThreadPoolExecutor(4) as threads:
        reads = [threads.submit(storage.get, UID) for _ in range(4)]
        assert [len(read.result()) for read in reads] == [MIB // 4] * 4
    assert time.monotonic() - started > 0.45


def test_missing_objects_take_no_time():
    full = FullStorage(size=10 * MIB)
    storage, clock = simulated(NullStorageConfig(bandwidth_read=MIB), full)
    storage.get(UID)
    full.object_size = None
    for _ in range(10):
        with pytest.raises(ObjectMissingError):
            storage.get(UID)
    assert clock.now == pytest.approx(110.0, abs=0.05)


@pytest.mark.parametrize("limited", ["put", "get"])
def test_the_number_of_simultaneous_calls_is_limited(limited):
    full = FullStorage(size=1, pause=lambda: time.sleep(0.005))
    storage = ThrottledStorage(full, NullStorageConfig(simultaneous_writes=3, simultaneous_reads=3))
    with ThreadPoolExecutor(8) as threads:
        for _ in range(32):
            threads.submit(storage.put, UID, [b"x"]) if limited == "put" else threads.submit(storage.get, UID)
    assert (full.most_inside, full.calls) == (3, 32)


def test_a_place_is_free_again_after_an_error():
    full = FullStorage(size=None)
    storage = ThrottledStorage(full, NullStorageConfig(simultaneous_reads=1))
    for _ in range(3):
        with pytest.raises(StorageError):
            storage.get(UID)
    full.object_size = 1
    assert storage.get(UID) == b"\0"


@pytest.mark.parametrize("direction", ["put", "get"])
def test_four_threads_for_three_seconds_do_not_exceed_the_rate_by_5_percent(direction):
    rate, size = 20 * MIB, 256 << 10
    storage = ThrottledStorage(
        FullStorage(size), NullStorageConfig(bandwidth_read=rate, bandwidth_write=rate), stop=lambda: False
    )
    started = time.monotonic()
    block = bytes(size)

    def work():
        moved = 0
        while True:
            storage.put(UID, [block]) if direction == "put" else storage.get(UID)
            if time.monotonic() - started > 3:
                return moved
            moved += size

    with ThreadPoolExecutor(4) as threads:
        moved = sum(future.result() for future in [threads.submit(work) for _ in range(4)])
    assert moved / 3 <= 1.05 * rate
    assert moved / 3 > 0.2 * rate  # on a machine that is also busy with other work


# Interruption


@pytest.mark.parametrize("limits", [{"bandwidth_write": 1024}, {"bandwidth_write": 1024, "simultaneous_writes": 1}])
def test_a_wait_of_more_than_an_hour_can_be_interrupted_immediately(limits):
    came = threading.Event()
    full = FullStorage()
    storage = ThrottledStorage(full, NullStorageConfig(**limits), stop=came.is_set)
    with ThreadPoolExecutor(3) as threads:
        puts = [threads.submit(storage.put, UID, [bytes(4 * MIB)]) for _ in range(3)]
        wait_for(lambda: full.calls == 1, "one of them stores")
        assert not any(future.done() for future in puts)
        came.set()
    endings = [future.exception() for future in puts]
    assert [type(ending) for ending in endings if ending is not None] == [InterruptedByUser, InterruptedByUser]
    assert full.calls == 1  # and stored objects are reported as stored
    assert [future.result() for future in puts if future.exception() is None] == [4 * MIB]


def test_a_caller_interrupted_while_waiting_for_a_place_stops_waiting():
    came, may_end = threading.Event(), threading.Event()
    storage = ThrottledStorage(
        FullStorage(1, pause=may_end.wait), NullStorageConfig(simultaneous_reads=1), stop=came.is_set
    )
    with ThreadPoolExecutor(2) as threads:
        gets = [threads.submit(storage.get, UID) for _ in range(2)]
        came.set()
        while not any(future.done() for future in gets):
            time.sleep(0.01)
        may_end.set()
    endings = [future.exception() for future in gets]
    assert sorted(str(ending) for ending in endings) == [
        "None", "interrupted while reading waited for the limits of [DataBackend]",
    ]  # fmt: skip
