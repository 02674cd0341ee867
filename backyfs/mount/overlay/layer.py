"""The copy-on-write layer of one version: what was written to its image. Synchronous; reads no image.

A layer has a chunk whole or not at all; what it has is read from it, all else from the image below. It answers
like a disk: what was synced stays, what was not may be lost with the process, and then the bytes of the image
are back. Nothing is ever read that was neither written nor in the image.
"""

from __future__ import annotations

import errno
import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from backyfs.mount.overlay.chunkset import ChunkSet
from backyfs.mount.overlay.layerfiles import CHUNK_BYTES, MapFile, open_data, read_all, write_all
from backyfs.mount.overlay.room import Room

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from backyfs.model import Buffer
    from backyfs.mount.overlay.layerfiles import LayerNames

_SYNC_PAGES = 1024  # of a map, copied at once: 4 MiB for 128 GiB of an image


class Layer:
    """What was written to the image of one version. Offsets are bytes of the image.

    May be used by several threads at once. `is_empty`, `used_bytes`, `split` and `edges` look into memory alone
    and do not wait for those that write or sync: an event loop may call them.
    """

    def __init__(
        self,
        size_bytes: int,
        create_data: Callable[[], int],
        *,
        names: LayerNames | None = None,
        room: Room | None = None,
    ) -> None:
        """Open the layer of an image of `size_bytes`.

        The first write calls `create_data` for the descriptor of an empty file. `names` are those of a layer that
        is kept; without them it has no map and ends when it is closed. `room` bounds what it may hold.
        """
        self.size_bytes = size_bytes
        self._create_data = create_data
        self._names = names
        self._room = room or Room(None)
        # Locks are taken in this order.
        self._sync_lock = threading.Lock()   # one sync at a time, and guards the map file
        self._write_lock = threading.Lock()  # one write at a time: what two fill the rest of, both have written to
        # Guards what follows. Held for looks into memory alone; waited for by `close`.
        self._lock = threading.Condition(threading.Lock())
        self._chunks = ChunkSet()            # bits are set when the bytes are written
        self._readers = 0
        self._needs_sync = False
        self._is_closed = False
        self._has_failed = False             # bytes that were written are lost
        self._data_fd: int | None = None     # None until the first write
        self._map = None if names is None else MapFile.open(names, self._chunks)
        if names is not None and self._map is not None:
            try:
                self._data_fd = open_data(names)
            except BaseException:
                self._map.close()
                raise

    @property
    def is_empty(self) -> bool:
        """Whether nothing was ever written."""
        return not self._chunks

    @property
    def used_bytes(self) -> int:
        """How much of the image lies in the layer."""
        return min(len(self._chunks) * CHUNK_BYTES, self.size_bytes)

    def split(self, start: int, stop: int) -> list[tuple[int, int, bool]]:
        """Cut [start, stop) into ranges, in order; True: the layer has it, False: it is that of the image."""
        self._check_range(start, stop)
        with self._lock:
            runs = self._chunks.runs(*_chunks_of(start, stop))
        return [(max(first * CHUNK_BYTES, start), min(last * CHUNK_BYTES, stop), is_in) for first, last, is_in in runs]

    def edges(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Return what `write` has to be given of the image when [start, stop) is written: at most two ranges."""
        self._check_range(start, stop)
        with self._lock:
            return self._edges(start, stop)

    def read(self, start: int, stop: int) -> bytes:
        """Return bytes [start, stop), which the layer has.

        Raises:
            OSError: they cannot be read, or were lost.
            ValueError: the layer does not have them all.
        """
        self._check_range(start, stop)
        with self._reading(start, stop) as fd:
            return b"" if fd is None else read_all(fd, start, stop)

    def write(self, start: int, data: Buffer, base: Mapping[tuple[int, int], Buffer]) -> None:
        """Write `data` at `start`; `base` has the bytes of the image for the ranges that `edges` named.

        Raises:
            OSError: it cannot be written. Chunks that the layer had may be written in part, all else is as before.
        """
        stop = start + len(data)
        self._check_range(start, stop)
        if not data:
            return
        with self._write_lock:
            with self._lock:
                self._check_usable()
                # Not those that the caller has asked for: another thread may have written there since.
                edges = self._edges(start, stop)
            before, after = _fill(start, stop, {edge: _base_of(edge, base) for edge in edges})
            if self._data_fd is None:
                self._data_fd = self._create_data()
            whole = b"".join((before, data, after)) if before or after else data
            with self._taking_room(*_chunks_of(start, stop)):
                write_all(self._data_fd, whole, start - len(before))
            with self._lock:
                self._chunks.add(*_chunks_of(start, stop))
                self._needs_sync = True

    def sync(self) -> None:
        """Make all that was written before this call durable.

        Raises:
            OSError: that failed. If bytes were lost by it, all that follows fails with EIO until the next mount.
        """
        with self._sync_lock:
            with self._lock:
                if not self._needs_sync:
                    return
                self._check_usable()
                self._needs_sync = False
                changed = self._chunks.take_changed()
            try:
                self._sync(changed)
            except BaseException:
                with self._lock:
                    self._needs_sync = True
                    self._chunks.keep_changed(changed)
                raise

    def close(self) -> None:
        """Sync, wait for those who read, and close the files. Safe to call again.

        Raises:
            OSError: what was written last may not be durable. The files are closed nevertheless.
        """
        try:
            if self._names is not None:
                self.sync()
        finally:
            with self._sync_lock, self._write_lock, self._lock:
                if not self._is_closed:
                    self._room.give_back(len(self._chunks) * CHUNK_BYTES)
                self._is_closed = True
                self._needs_sync = False
                self._lock.wait_for(lambda: self._readers == 0)
                if self._data_fd is not None:
                    os.close(self._data_fd)
                if self._map is not None:
                    self._map.close()
                self._data_fd = self._map = None

    def _sync(self, changed: list[int]) -> None:
        # Bits are copied first, then the bytes that they name are synced, then the bits are written.
        for first in range(0, max(len(changed), 1), _SYNC_PAGES):
            with self._lock:
                pages = {number: self._chunks.page(number) for number in changed[first : first + _SYNC_PAGES]}
            self._sync_data()  # also where it is not kept: to hear of bytes that are lost
            if self._names is None:
                return
            if self._map is None:
                self._map = MapFile.create(self._names)
            self._map.write(pages)
        if changed and self._map is not None:
            self._map.sync()

    def _sync_data(self) -> None:
        assert self._data_fd is not None
        try:
            os.fdatasync(self._data_fd)
        except OSError:
            # The kernel tells of bytes that did not reach the disk once, and may have dropped them: what is read
            # in their place could be zeros, and the next sync would say all is well.
            with self._lock:
                self._has_failed = True
            raise

    @contextmanager
    def _taking_room(self, first: int, last: int) -> Iterator[None]:
        """Account for the chunks of [first, last) that the layer lacks, unless writing them fails."""
        with self._lock:
            lacking = sum(stop - start for start, stop, is_in in self._chunks.runs(first, last) if not is_in)
        self._room.take(lacking * CHUNK_BYTES)
        try:
            yield
        except BaseException:
            self._room.give_back(lacking * CHUNK_BYTES)
            raise

    @contextmanager
    def _reading(self, start: int, stop: int) -> Iterator[int | None]:
        """Keep the data open: a descriptor that was closed could be another file by then."""
        with self._lock:
            self._check_usable()
            if not self._chunks.has(*_chunks_of(start, stop)):
                raise ValueError(f"bytes [{start}, {stop}) are not all in the layer; read them from the image")
            self._readers += 1
        try:
            yield self._data_fd
        finally:
            with self._lock:
                self._readers -= 1
                self._lock.notify_all()

    def _edges(self, start: int, stop: int) -> list[tuple[int, int]]:
        edges = []
        touched = range(*_chunks_of(start, stop))
        for chunk in sorted({*touched[:1], *touched[-1:]}):
            first, last = chunk * CHUNK_BYTES, min((chunk + 1) * CHUNK_BYTES, self.size_bytes)
            if (first < start or stop < last) and not self._chunks.has(chunk, chunk + 1):
                edges.append((first, last))
        return edges

    def _check_range(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self.size_bytes:
            raise ValueError(f"bytes [{start}, {stop}) are not in an image of {self.size_bytes} bytes")

    def _check_usable(self) -> None:
        if self._is_closed:
            raise OSError(errno.EBADF, "the layer is closed")
        if self._has_failed:
            raise OSError(errno.EIO, "bytes that were written to the layer are lost; mount it again")


def _chunks_of(start: int, stop: int) -> tuple[int, int]:
    """Return the chunks that bytes [start, stop) touch, as first and last + 1; no bytes touch none."""
    first = start // CHUNK_BYTES
    return first, -(-stop // CHUNK_BYTES) if start < stop else first


def _base_of(edge: tuple[int, int], base: Mapping[tuple[int, int], Buffer]) -> Buffer:
    found = base.get(edge)
    if found is None or len(found) != edge[1] - edge[0]:
        raise ValueError(f"bytes [{edge[0]}, {edge[1]}) of the image are needed for this write")
    return found


def _fill(start: int, stop: int, edges: Mapping[tuple[int, int], Buffer]) -> tuple[Buffer, Buffer]:
    """Return what is to be written before `start` and from `stop` on."""
    before: Buffer = b""
    after: Buffer = b""
    for (first, last), content in edges.items():
        if first < start:
            before = content[: start - first]
        if stop < last:
            after = content[stop - first :]
    return before, after
