"""The limits of a storage: so many calls at once, so many bytes per second.

A call whose bytes are counted has a slot of time, as long as they take at the rate that is allowed. Slots follow
each other and do not overlap; a call begins when its slot begins and returns no sooner than it ends. So what has
passed is never more than the rate allows and one object, and n bytes take n / rate seconds however many threads
ask. What a storage is slower than its limit by is not made up for later.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backyfs.errors import InterruptedByUser

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from backyfs.config import StorageConfig
    from backyfs.model import BlobUid, Buffer
    from backyfs.storage import Storage, StoredObject

# Who comes back later than the last slot ended gets so much of the gap: sealing the next block, waking up late.
_GRACE_S = 0.1
_LONGEST_WAIT_S = 0.1    # between two looks at whether the command is to end
_SHORTEST_WAIT_S = 0.001  # less is left to the next call: to wake up takes a tenth of that


@dataclass(frozen=True, slots=True)
class Slot:
    """A span of time, in seconds of the clock that was given."""

    start: float
    stop: float


class Pacer:
    """Gives out slots of time. The time is an argument; any thread may ask."""

    def __init__(self, bytes_per_s: int) -> None:
        """Begin with no slot given; the rate is 1 or more."""
        self._bytes_per_s = bytes_per_s
        self._lock = threading.Lock()
        self._free_from: float | None = None  # the end of the last slot

    def take(self, size: int, now: float) -> Slot:
        """Return the next slot for `size` bytes; it can begin in the past, by the grace that a gap is given."""
        with self._lock:
            start = now if self._free_from is None else max(self._free_from, now - _GRACE_S)
            self._free_from = start + size / self._bytes_per_s
            return Slot(start, self._free_from)

    def correct(self, slot: Slot, difference: int) -> Slot:
        """Return the slot of a call that moved `difference` bytes more than it said, or less.

        What it moved more gets its time behind every slot that was given in between: calls that did not know their
        size and began together would otherwise all end after the time of one.
        """
        change_s = difference / self._bytes_per_s
        with self._lock:
            assert self._free_from is not None, "a slot was taken"
            self._free_from += change_s
            return Slot(slot.start, self._free_from if difference > 0 else slot.stop + change_s)


@dataclass(slots=True)
class _Turn:
    """One call under way: how many bytes it moves, which it may come to know at the end only."""

    size: int


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
    def turn(self, size: int) -> Iterator[_Turn]:
        """Wait for a place and for the time; do the call that stands inside; let its bytes have their time.

        Raises:
            InterruptedByUser: the command is to end; the call was not done.
        """
        turn = _Turn(size)
        slot = None
        with self._place():
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
            self._wait_until(slot.stop)  # where the command is to end, not: the call is done

    @contextmanager
    def _place(self) -> Iterator[None]:
        if self._places is None:
            yield
            return
        while not self._places.acquire(timeout=_LONGEST_WAIT_S):
            if self._stop():
                raise self._interrupted()
        try:
            yield
        finally:
            self._places.release()

    def _wait_until(self, moment: float) -> bool:
        """Wait; return False at once if the command is to end."""
        while (left := moment - self._clock()) > _SHORTEST_WAIT_S:
            if self._stop():
                return False
            self._sleep(min(left, _LONGEST_WAIT_S))
        return True

    def _interrupted(self) -> InterruptedByUser:
        return InterruptedByUser(f"interrupted while {self._name} waited for the limits of [DataBackend]")


class ThrottledStorage:
    """A storage that keeps to limits in what stores or reads bytes; everything else goes through."""

    def __init__(
        self,
        storage: Storage,
        limits: StorageConfig,
        *,
        stop: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Wrap a storage. Threads that wait ask `stop` ten times a second whether the command is to end."""
        self._storage = storage
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
        # How large an object is shows when it is read. Most are about as large as the one before.
        self._expected_bytes = 0

    @property
    def keeps(self) -> bool:
        """Whether what is put can be read back."""
        return self._storage.keeps

    def put(self, uid: BlobUid, parts: Sequence[Buffer]) -> int:
        """Store an object.

        Raises:
            InterruptedByUser: the command was interrupted while it waited; the object is not stored.
        """
        with self._writes.turn(sum(memoryview(part).nbytes for part in parts)):
            return self._storage.put(uid, parts)

    def get(self, uid: BlobUid) -> bytes:
        """Return an object.

        Raises:
            BlobMissingError: there is none.
            InterruptedByUser: the command was interrupted while it waited.
        """
        with self._reads.turn(self._expected_bytes) as turn:
            stored = self._storage.get(uid)
            self._expected_bytes = turn.size = len(stored)
        return stored

    def get_range(self, uid: BlobUid, offset: int, length: int) -> bytes:
        """Return a part of an object.

        Raises:
            BlobMissingError: there is none.
            InterruptedByUser: the command was interrupted while it waited.
        """
        with self._reads.turn(length) as turn:
            stored = self._storage.get_range(uid, offset, length)
            turn.size = len(stored)
        return stored

    def flush(self) -> None:
        """Make durable what was put before."""
        self._storage.flush()

    def delete(self, uid: BlobUid) -> None:
        """Delete an object."""
        self._storage.delete(uid)

    def size(self, uid: BlobUid) -> int | None:
        """Return the size of an object, if it is known."""
        return self._storage.size(uid)

    def list_blobs(self) -> Iterator[BlobUid]:
        """Yield the uid of every object, in no order."""
        return self._storage.list_blobs()

    def list_stored(self, prefix: str = "") -> Iterator[StoredObject]:
        """Yield objects with sizes and ages."""
        return self._storage.list_stored(prefix)

    def remove_leftovers(self, older_than_s: float) -> int:
        """Remove what was left under temporary names."""
        return self._storage.remove_leftovers(older_than_s)

    def put_object(self, name: str, content: bytes) -> None:
        """Store an object that has a name.

        Raises:
            InterruptedByUser: the command was interrupted while it waited; the object is not stored.
        """
        with self._writes.turn(len(content)):
            self._storage.put_object(name, content)

    def put_new_object(self, name: str, content: bytes) -> bool:
        """Store an object that has a name unless one has it already.

        Raises:
            InterruptedByUser: the command was interrupted while it waited; the object is not stored.
        """
        with self._writes.turn(len(content)):
            return self._storage.put_new_object(name, content)

    def get_object(self, name: str, max_bytes: int) -> bytes:
        """Return an object that has a name.

        Raises:
            ObjectMissingError: there is none.
            IntegrityError: it is too large.
            InterruptedByUser: the command was interrupted while it waited.
        """
        with self._reads.turn(0) as turn:  # their sizes have nothing to do with those of blobs
            content = self._storage.get_object(name, max_bytes)
            turn.size = len(content)
        return content

    def delete_object(self, name: str) -> None:
        """Delete an object that has a name."""
        self._storage.delete_object(name)

    def list_objects(self, prefix: str) -> Iterator[str]:
        """Yield the names of objects below a prefix."""
        return self._storage.list_objects(prefix)

    def close(self) -> None:
        """Let go of the storage."""
        self._storage.close()

    def paths(self) -> Sequence[str]:
        """Return the local paths of the storage."""
        return self._storage.paths()


def throttled(storage: Storage, limits: StorageConfig, stop: Callable[[], bool]) -> Storage:
    """Return the storage as it is where nothing is limited, and wrapped where something is."""
    are_set = (
        limits.simultaneous_writes,
        limits.simultaneous_reads,
        limits.bandwidth_write,
        limits.bandwidth_read,
    )
    return ThrottledStorage(storage, limits, stop=stop) if any(are_set) else storage
