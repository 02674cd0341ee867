"""The limits of a storage: a number of simultaneous calls, and bytes per second.

Each call gets a slot of time, as long as its bytes take at the permitted rate. Slots follow each other without
overlap. A call starts when its slot starts, and returns no sooner than the slot ends. So traffic never exceeds the
rate by more than one object, and n bytes take n / rate seconds, regardless of the number of threads. Time that a slow
storage loses is not made up for later.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backyfs.errors import InterruptedByUser
from backyfs.storage.forwarding import ForwardingStorage
from backyfs.storage.keys import is_blob
from backyfs.storage.protocol import MAX_OBJECT_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from backyfs.config import StorageConfig
    from backyfs.model import Buffer
    from backyfs.storage.keys import Key
    from backyfs.storage.protocol import Storage

# A caller that comes after the end of the last slot gets this much of the gap: it sealed a block or woke up late.
_GRACE_S = 0.1
_LONGEST_WAIT_S = 0.1    # between two checks whether the command should end
_SHORTEST_WAIT_S = 0.001  # less is left to the next call: waking up takes a tenth of that


@dataclass(frozen=True, slots=True)
class Slot:
    """A span of time, in seconds of the clock that was given."""

    start: float
    stop: float


class Pacer:
    """Hands out slots of time. The current time is an argument; any thread may call."""

    def __init__(self, bytes_per_s: int) -> None:
        """Start without slots; the rate is at least 1."""
        self._bytes_per_s = bytes_per_s
        self._lock = threading.Lock()
        self._free_from: float | None = None  # the end of the last slot

    def take(self, size: int, now: float) -> Slot:
        """Return the next slot for `size` bytes. It can start in the past, by the grace for gaps."""
        with self._lock:
            start = now if self._free_from is None else max(self._free_from, now - _GRACE_S)
            self._free_from = start + size / self._bytes_per_s
            return Slot(start, self._free_from)

    def correct(self, slot: Slot, difference: int) -> Slot:
        """Return the slot of a call that moved `difference` bytes more (or less) than it announced.

        The time of additional bytes comes after all slots handed out in between. Otherwise calls that did not know
        their sizes and began together would all end after the time of one call.
        """
        change_s = difference / self._bytes_per_s
        with self._lock:
            assert self._free_from is not None, "a slot was taken"
            self._free_from += change_s
            return Slot(slot.start, self._free_from if difference > 0 else slot.stop + change_s)


@dataclass(slots=True)
class _Turn:
    """One call in progress, with the bytes it moves, which may be known only at the end."""

    size: int
    requests: int = 1  # that it may send at the same time


class _Lane:
    """One direction of traffic. Any thread may use it."""

    def __init__(
        self,
        name: str,
        *,
        simultaneous: int | None,
        bytes_per_s: int,
        stop: Callable[[], bool],
        clock: Callable[[], float],
        sleep: Callable[[float], None],
    ) -> None:
        self._name = name
        self._places = None if simultaneous is None else threading.Semaphore(simultaneous)
        self._pacer = Pacer(bytes_per_s) if bytes_per_s else None
        self._stop = stop
        self._clock = clock
        self._sleep = sleep

    @contextmanager
    def turn(self, *sizes: int) -> Iterator[_Turn]:
        """Wait for a place and for the slot, run the call in the `with`, and wait for the end of the slot.

        A call with several sizes would like to send a request for each of them. It gets at least one, and as many as
        there are places.

        Raises:
            InterruptedByUser: the command should end; the call was not made.
        """
        slot = None
        with self._place(len(sizes)) as places:
            size = sum(sizes[:places])
            turn = _Turn(size, places)
            if self._pacer is not None:
                slot = self._pacer.take(size, self._clock())
                if not self._wait_until(slot.start):
                    raise self._interrupted()
            try:
                yield turn
            except BaseException:
                turn.size = 0
                raise
            finally:
                if self._pacer is not None and slot is not None:
                    slot = self._pacer.correct(slot, turn.size - size)
        if slot is not None:
            self._wait_until(slot.stop)  # or less, if the command should end: the call was made

    @contextmanager
    def _place(self, wanted: int) -> Iterator[int]:
        """Wait for a place, take more if they are free, and yield how many."""
        if self._places is None:
            yield wanted
            return
        while not self._places.acquire(timeout=_LONGEST_WAIT_S):
            if self._stop():
                raise self._interrupted()
        taken = 1
        while taken < wanted and self._places.acquire(blocking=False):
            taken += 1
        try:
            yield taken
        finally:
            self._places.release(taken)

    def _wait_until(self, moment: float) -> bool:
        """Wait; return False immediately if the command should end."""
        while (left := moment - self._clock()) > _SHORTEST_WAIT_S:
            if self._stop():
                return False
            self._sleep(min(left, _LONGEST_WAIT_S))
        return True

    def _interrupted(self) -> InterruptedByUser:
        return InterruptedByUser(f"interrupted while {self._name} waited for the limits of [DataBackend]")


class ThrottledStorage(ForwardingStorage):
    """A storage that limits calls which store or read bytes, and forwards all others."""

    def __init__(
        self,
        storage: Storage,
        limits: StorageConfig,
        *,
        stop: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Wrap a storage. Waiting threads ask `stop` ten times per second whether to end."""
        super().__init__(storage)
        self._writes = _Lane(
            "writing",
            simultaneous=limits.simultaneous_writes,
            bytes_per_s=limits.bandwidth_write,
            stop=stop,
            clock=clock,
            sleep=sleep,
        )
        self._reads = _Lane(
            "reading",
            simultaneous=limits.simultaneous_reads,
            bytes_per_s=limits.bandwidth_read,
            stop=stop,
            clock=clock,
            sleep=sleep,
        )
        # The size of a blob is known once it was read. Most are about as large as the one before.
        self._expected_bytes = 0

    def put(self, key: Key, parts: Sequence[Buffer]) -> int:
        """Store an object.

        Raises:
            InterruptedByUser: the command was interrupted while it waited; the object is not stored.
        """
        with self._writes.turn(sum(memoryview(part).nbytes for part in parts)):
            return super().put(key, parts)

    def put_new(self, key: Key, content: Buffer) -> bool:
        """Store an object unless its key exists.

        Raises:
            InterruptedByUser: the command was interrupted while it waited; the object is not stored.
        """
        with self._writes.turn(memoryview(content).nbytes):
            return super().put_new(key, content)

    def get(self, key: Key, *, most: int = MAX_OBJECT_BYTES) -> Buffer:
        """Return an object.

        Raises:
            ObjectMissingError, IntegrityError: as without limits.
            InterruptedByUser: the command was interrupted while it waited.
        """
        counts = is_blob(key)  # the sizes of named objects say nothing about those of blobs
        with self._reads.turn(self._expected_bytes if counts else 0) as turn:
            stored = super().get(key, most=most)
            turn.size = len(stored)
            if counts:
                self._expected_bytes = turn.size
        return stored

    def get_range(self, key: Key, offset: int, length: int) -> bytes:
        """Return a part of an object.

        Raises:
            ObjectMissingError: as without limits.
            InterruptedByUser: the command was interrupted while it waited.
        """
        with self._reads.turn(length) as turn:
            stored = super().get_range(key, offset, length)
            turn.size = len(stored)
        return stored

    def get_ranges(self, key: Key, wanted: Sequence[range]) -> list[bytes]:
        """Return several ranges of bytes of an object. Each counts as one call if it takes a request.

        Raises:
            ObjectMissingError: as without limits.
            InterruptedByUser: the command was interrupted while it waited.
        """
        takes_requests = self.traits.requests is not None
        stored: list[bytes] = []
        while left := wanted[len(stored) :]:
            sizes = list(map(len, left)) if takes_requests else [sum(map(len, left))]
            with self._reads.turn(*sizes) as turn:
                found = super().get_ranges(key, left[: turn.requests] if takes_requests else left)
                turn.size = sum(map(len, found))
            stored += found
        return stored


def throttled(storage: Storage, limits: StorageConfig, stop: Callable[[], bool]) -> Storage:
    """Return the storage, wrapped if there is any limit."""
    are_set = (
        limits.simultaneous_writes,
        limits.simultaneous_reads,
        limits.bandwidth_write,
        limits.bandwidth_read,
    )
    return ThrottledStorage(storage, limits, stop=stop) if any(are_set) else storage
