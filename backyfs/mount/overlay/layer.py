"""The copy-on-write layer of one version: the data that was written to its image. Synchronous; reads no image.

A layer contains a chunk as a whole or not at all. Callers read its chunks from the layer, and all others from the image
below. It behaves like a disk: synced data is kept. Unsynced data may be lost with the process; then reads return the
bytes of the image again. A read never returns anything that was neither written nor in the image.
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

_SYNC_PAGES = 1024  # pages of a map that are copied at a time: 4 MiB, for 128 GiB of an image


class Layer:
    """The data that was written to the image of one version. Offsets are bytes of the image.

    Safe for several threads at once. `is_empty`, `used_bytes`, `split` and `edges` only look into memory and do not
    wait for writes or syncs, so an event loop may call them.
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

        The first write calls `create_data`, which returns a descriptor of an empty file. `names` are the files of a
        layer that is kept. A layer without them has no map and is gone when it is closed. `room` limits its size.
        """
        self.size_bytes = size_bytes
        self._create_data = create_data
        self._names = names
        self._room = room or Room(None)
        # Acquire the locks in this order.
        self._sync_lock = threading.Lock()   # one sync at a time; also guards the map file
        self._write_lock = threading.Lock()  # one write at a time: two could complete the same chunk
        # Guards the fields below. Held only to look into memory; `close` waits on it for readers.
        self._lock = threading.Condition(threading.Lock())
        self._chunks = ChunkSet()            # a bit is set once its bytes are written
        self._readers = 0
        self._needs_sync = False
        self._is_closed = False
        self._has_failed = False             # some written bytes are lost
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
        """How many bytes of the image are in the layer."""
        return min(len(self._chunks) * CHUNK_BYTES, self.size_bytes)

    def split(self, start: int, stop: int) -> list[tuple[int, int, bool]]:
        """Cut [start, stop) into ranges, in order. True: the range is in the layer; False: it is in the image."""
        self._check_range(start, stop)
        with self._lock:
            runs = self._chunks.runs(*_chunks_of(start, stop))
        return [(max(first * CHUNK_BYTES, start), min(last * CHUNK_BYTES, stop), is_in) for first, last, is_in in runs]

    def edges(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Return the ranges of the image, at most two, that `write` needs to write [start, stop)."""
        self._check_range(start, stop)
        with self._lock:
            return self._edges(start, stop)

    def read(self, start: int, stop: int) -> bytes:
        """Return bytes [start, stop), all of which are in the layer.

        Raises:
            OSError: they cannot be read, or were lost.
            ValueError: some of them are not in the layer.
        """
        self._check_range(start, stop)
        with self._reading(start, stop) as fd:
            return b"" if fd is None else read_all(fd, start, stop)

    def write(self, start: int, data: Buffer, base: Mapping[tuple[int, int], Buffer]) -> None:
        """Write `data` at `start`. `base` contains the bytes of the image for the ranges that `edges` returned.

        Raises:
            OSError: it cannot be written. Chunks in the layer may be partly overwritten; nothing else has changed.
        """
        stop = start + len(data)
        self._check_range(start, stop)
        if not data:
            return
        with self._write_lock:
            with self._lock:
                self._check_usable()
                # Not the edges that the caller used: another thread may have written there since.
                edges = self._edges(start, stop)
            before, after = _fill(start, stop, {edge: _base_of(edge, base) for edge in edges})
            if self._data_fd is None:
                self._data_fd = self._create_data()
            whole = b"".join((before, data, after)) if before or after else data
            with self._reserving_room(*_chunks_of(start, stop)):
                write_all(self._data_fd, whole, start - len(before))
            with self._lock:
                self._chunks.add(*_chunks_of(start, stop))
                self._needs_sync = True

    def sync(self) -> None:
        """Make everything that was written before this call durable.

        Raises:
            OSError: that failed. If bytes were lost, everything later fails with EIO until the next mount.
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
        """Sync, wait for reads to finish, and close the files. Safe to call again.

        Raises:
            OSError: the last writes may not be durable. The files are closed all the same.
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
        # Copy the bits first, then sync the bytes they stand for, then write the bits.
        for first in range(0, max(len(changed), 1), _SYNC_PAGES):
            with self._lock:
                pages = {number: self._chunks.page(number) for number in changed[first : first + _SYNC_PAGES]}
            self._sync_data()  # also for a layer that is not kept: it reports lost bytes
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
            # The kernel reports bytes that did not reach the disk only once, and may have dropped them. Reads could
            # return zeros in their place, and the next sync would succeed.
            with self._lock:
                self._has_failed = True
            raise

    @contextmanager
    def _reserving_room(self, first: int, last: int) -> Iterator[None]:
        """Take room for the chunks of [first, last) that are not in the layer, unless writing them fails."""
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
        """Keep the data open during a read: a closed descriptor could already belong to another file."""
        with self._lock:
            self._check_usable()
            if not self._chunks.has(*_chunks_of(start, stop)):
                raise ValueError(f"some of bytes [{start}, {stop}) are not in the layer; read them from the image")
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
            raise OSError(errno.EIO, "some bytes written to the layer are lost; mount it again")


def _chunks_of(start: int, stop: int) -> tuple[int, int]:
    """Return the chunks that bytes [start, stop) touch, as first and last + 1. An empty range touches none."""
    first = start // CHUNK_BYTES
    return first, -(-stop // CHUNK_BYTES) if start < stop else first


def _base_of(edge: tuple[int, int], base: Mapping[tuple[int, int], Buffer]) -> Buffer:
    found = base.get(edge)
    if found is None or len(found) != edge[1] - edge[0]:
        raise ValueError(f"this write needs bytes [{edge[0]}, {edge[1]}) of the image")
    return found


def _fill(start: int, stop: int, edges: Mapping[tuple[int, int], Buffer]) -> tuple[Buffer, Buffer]:
    """Return the bytes to write before `start`, and those from `stop` on."""
    before: Buffer = b""
    after: Buffer = b""
    for (first, last), content in edges.items():
        if first < start:
            before = content[: start - first]
        if stop < last:
            after = content[stop - first :]
    return before, after
