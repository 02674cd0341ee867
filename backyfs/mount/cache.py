"""A cache of opened pieces of blobs. Each piece is loaded once, however many readers wait for it.

A piece is the smallest part of a blob that its encryption version can open: the whole block, or a segment of it. A
piece that a sequential reader has passed is kept only for readers that follow closely behind. So a scan does not
evict pieces that are read at random, and its memory is reused while it is still in the processor's cache.

Used by the tasks of one trio event loop; only the loading itself happens in threads.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from backyfs.geometry import bytes_of_pieces, pieces_covering

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from backyfs.model import Blob, BlobUid
    from backyfs.mount.pool import Call, Pool

    _Key: TypeAlias = tuple[BlobUid, int]  # the uid, not the id: a re-sealed blob may be cut into other pieces

_PASSED_PART = 16  # of the capacity: 16 MiB of 256


@dataclass(frozen=True, slots=True)
class _Load:
    """Pieces that are being loaded."""

    call: Call[Sequence[bytes]]
    pieces: range


class PieceCache:
    """Plain bytes of pieces, shared by all images of a mount. The least recently read pieces are dropped first."""

    def __init__(
        self, load: Callable[[Blob, range], Sequence[bytes]], capacity_bytes: int, *, wanted: Pool, ahead: Pool
    ) -> None:
        """Load pieces with `load`: in threads of `wanted` if a reader waits for them, otherwise in those of `ahead`."""
        self._load_pieces = load
        self.capacity_bytes = capacity_bytes
        self._wanted = wanted
        self._ahead = ahead
        self._pieces: OrderedDict[_Key, bytes] = OrderedDict()  # the least recently read piece first
        self._passed: OrderedDict[_Key, bytes] = OrderedDict()  # left behind by readers, the oldest first
        self._loads: dict[_Key, _Load] = {}  # several pieces can share one load
        self._ahead_bytes = 0  # being loaded ahead
        self._passed_bytes = 0
        self.used_bytes = 0
        self.hits = 0
        self.loads = 0
        self.loads_ahead = 0
        self.loaded_bytes = 0

    def peek(self, blob: Blob, number: int) -> bytes | None:
        """Return a piece without waiting; None if it is not in the cache."""
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
        """Note that a sequential reader has moved on from a piece."""
        key = (blob.uid, number)
        piece = self._pieces.pop(key, None)
        if piece is None:
            return
        self._passed[key] = piece
        self._passed_bytes += len(piece)
        while self._passed_bytes > self.capacity_bytes // _PASSED_PART:
            self._drop_passed()

    async def get(self, blob: Blob, number: int) -> bytes:
        """Return the plain bytes of a piece. Load them unless another reader is already doing so.

        Raises:
            BackyfsError: the load failed, for every reader that waited for it, or took too long.
        """
        piece = self.peek(blob, number)
        if piece is not None:
            return piece
        load = self._loads.get((blob.uid, number))
        if load is None:
            load = self._want(blob, range(number, number + 1))
        elif load.call.pool is self._ahead and load.call.withdraw():  # do not queue behind unwanted blocks
            load = self._want(blob, load.pieces)
        return (await load.call.wait())[number - load.pieces.start]

    def want(self, blob: Blob, pieces: range) -> None:
        """Start loading all pieces that a reader is about to get and that are neither cached nor being loaded."""
        for run in self._missing(blob, pieces):
            self._want(blob, run)

    def prefetch(self, blob: Blob, size: int) -> None:
        """Start loading the missing pieces of a blob, `size` bytes each, before a reader asks for them.

        Skip pieces if those already being loaded ahead would evict what was just read. Errors are dropped here: the
        reader that asks for the piece gets them.
        """
        for run in self._missing(blob, pieces_covering(0, blob.size, size)):
            ahead_bytes = bytes_of_pieces(run, blob.size, size)
            if self._ahead_bytes + ahead_bytes <= self.capacity_bytes // 2:
                self._ahead_bytes += ahead_bytes
                self.loads_ahead += 1
                self._start(blob, run, self._ahead, ahead_bytes)

    def _missing(self, blob: Blob, pieces: range) -> Iterator[range]:
        """Yield the runs of pieces that are neither cached nor being loaded."""
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
        while self.used_bytes > self.capacity_bytes and self._passed:
            self._drop_passed()
        while self.used_bytes > self.capacity_bytes:
            _, dropped = self._pieces.popitem(last=False)
            self.used_bytes -= len(dropped)

    def _drop_passed(self) -> None:
        _, dropped = self._passed.popitem(last=False)
        self._passed_bytes -= len(dropped)
        self.used_bytes -= len(dropped)
