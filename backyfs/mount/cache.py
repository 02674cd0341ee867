"""Opened pieces of blobs, kept while there is room, each loaded once however many readers wait for it.

A piece is what the encryption version of a blob opens at once: the whole block, or a part of it. What readers in
order have left behind is kept only for others that follow closely: it does not push out what is read at random,
and the memory it was in is used again while it is still in the processor's cache.

Used by the tasks of one trio event loop; only the loading itself happens in threads.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from backyfs.model import Blob, BlobUid
    from backyfs.mount.pool import Call, Pool

    _Key: TypeAlias = tuple[BlobUid, int]  # not its id: one that is sealed anew may have other pieces

_PASSED_PART = 16  # of the capacity: 16 MiB of 256


@dataclass(frozen=True, slots=True)
class _Load:
    """Pieces that are being loaded."""

    call: Call[Sequence[bytes]]
    pieces: range


class PieceCache:
    """Plain bytes of pieces, the least recently read ones dropped first; shared by all images of a mount."""

    def __init__(
        self, load: Callable[[Blob, range], Sequence[bytes]], capacity_bytes: int, *, wanted: Pool, ahead: Pool
    ) -> None:
        """Load with `load`: in threads of `wanted` what a reader waits for, in those of `ahead` what none does yet."""
        self._load_pieces = load
        self._capacity_bytes = capacity_bytes
        self._wanted = wanted
        self._ahead = ahead
        self._pieces: OrderedDict[_Key, bytes] = OrderedDict()  # the least recently read one first
        self._passed: OrderedDict[_Key, bytes] = OrderedDict()  # left behind, the longest ago first
        self._loads: dict[_Key, _Load] = {}  # one load can be that of several pieces
        self._ahead_bytes = 0  # being loaded ahead
        self._passed_bytes = 0
        self.used_bytes = 0
        self.hits = 0
        self.loads = 0
        self.loads_ahead = 0
        self.loaded_bytes = 0

    def peek(self, blob: Blob, number: int) -> bytes | None:
        """Return a piece that is there, without waiting."""
        key = (blob.uid, number)
        piece = self._pieces.get(key)
        if piece is not None:
            self._pieces.move_to_end(key)
        elif (piece := self._passed.pop(key, None)) is not None:
            self._passed_bytes -= len(piece)
            self._pieces[key] = piece
        else:
            return None
        self.hits += 1
        return piece

    def leave_behind(self, blob: Blob, number: int) -> None:
        """Note that a reader in order has gone on to another piece."""
        key = (blob.uid, number)
        piece = self._pieces.pop(key, None)
        if piece is None:
            return
        self._passed[key] = piece
        self._passed_bytes += len(piece)
        while self._passed_bytes > self._capacity_bytes // _PASSED_PART:
            self._drop_passed()

    async def get(self, blob: Blob, number: int) -> bytes:
        """Return the plain bytes of a piece, loading them if no other reader does so already.

        Raises:
            BackyfsError: what the load raised, to every reader that waited for it; or it takes too long.
        """
        piece = self.peek(blob, number)
        if piece is not None:
            return piece
        load = self._loads.get((blob.uid, number))
        if load is None:
            load = self._want(blob, range(number, number + 1))
        elif load.call.pool is self._ahead and load.call.withdraw():  # not to wait behind what nobody wants yet
            load = self._want(blob, load.pieces)
        return (await load.call.wait())[number - load.pieces.start]

    def want(self, blob: Blob, pieces: range) -> None:
        """Begin to load pieces that a reader is about to get: what is not there, nor on its way, at once."""
        for run in self._missing(blob, pieces):
            self._want(blob, run)

    def prefetch(self, blob: Blob, size: int) -> None:
        """Begin to load the pieces of `size` bytes of a blob that a reader will want, but for those it may have.

        Nor are they loaded if so much is being loaded ahead already that it would push out what was just read. Their
        errors are for the reader.
        """
        for run in self._missing(blob, range(-(-blob.size // size))):
            ahead_bytes = min(run.stop * size, blob.size) - run.start * size
            if self._ahead_bytes + ahead_bytes <= self._capacity_bytes // 2:
                self._ahead_bytes += ahead_bytes
                self.loads_ahead += 1
                self._start(blob, run, self._ahead, ahead_bytes)

    def _missing(self, blob: Blob, pieces: range) -> Iterator[range]:
        """Yield the runs of pieces that are neither there nor on their way."""
        start = pieces.start
        for number in pieces:
            key = (blob.uid, number)
            if key in self._pieces or key in self._passed or key in self._loads:
                if start < number:
                    yield range(start, number)
                start = number + 1
        if start < pieces.stop:
            yield range(start, pieces.stop)

    def _want(self, blob: Blob, pieces: range) -> _Load:
        self.loads += 1
        return self._start(blob, pieces, self._wanted)

    def _start(self, blob: Blob, pieces: range, pool: Pool, ahead_bytes: int = 0) -> _Load:
        keys = [(blob.uid, number) for number in pieces]

        def end(call: Call[Sequence[bytes]]) -> None:
            self._ahead_bytes -= ahead_bytes
            for position, key in enumerate(keys):
                if key in self._loads and self._loads[key].call is call:
                    del self._loads[key]
                    if call.result is not None:
                        self._keep(key, call.result[position])

        load = _Load(pool.start(partial(self._load_pieces, blob, pieces), end), pieces)
        self._loads.update(dict.fromkeys(keys, load))
        return load

    def _keep(self, key: _Key, piece: bytes) -> None:
        self.loaded_bytes += len(piece)
        self._pieces[key] = piece
        self.used_bytes += len(piece)
        while self.used_bytes > self._capacity_bytes and self._passed:
            self._drop_passed()
        while self.used_bytes > self._capacity_bytes:
            _, dropped = self._pieces.popitem(last=False)
            self.used_bytes -= len(dropped)

    def _drop_passed(self) -> None:
        _, dropped = self._passed.popitem(last=False)
        self._passed_bytes -= len(dropped)
        self.used_bytes -= len(dropped)
