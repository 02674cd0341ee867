"""Opened pieces of blobs, kept while there is room, each loaded once however many readers wait for it.

A piece is what the encryption version of a blob opens at once: the whole block, or a part of it. What readers in
order have left behind is kept only for others that follow closely: it does not push out what is read at random,
and the memory it was in is used again while it is still in the processor's cache.

Used by the tasks of one trio event loop; only the loading itself happens in threads.
"""

from __future__ import annotations

from collections import OrderedDict
from contextlib import suppress
from typing import TYPE_CHECKING, TypeAlias

import trio

from backyfs.errors import BackyfsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from backyfs.model import Blob, BlobId
    from backyfs.mount.pool import Pool

    _Key: TypeAlias = tuple[BlobId, int]

_PASSED_PART = 16  # of the capacity: 16 MiB of 256


class _Load:
    """A load under way: its readers wait for `ended`."""

    def __init__(self) -> None:
        self.ended = trio.Event()
        self.piece: bytes | None = None
        self.error: BackyfsError | None = None


class PieceCache:
    """Plain bytes of pieces, the least recently read ones dropped first; shared by all images of a mount."""

    def __init__(self, load: Callable[[Blob, int], bytes], capacity_bytes: int, *, wanted: Pool, ahead: Pool) -> None:
        """Load with `load`: in threads of `wanted` what a reader waits for, in those of `ahead` what none does yet."""
        self._load_piece = load
        self._capacity_bytes = capacity_bytes
        self._wanted = wanted
        self._ahead = ahead
        self._pieces: OrderedDict[_Key, bytes] = OrderedDict()  # the least recently read one first
        self._passed: OrderedDict[_Key, bytes] = OrderedDict()  # left behind, the longest ago first
        self._loads: dict[_Key, _Load] = {}
        self._ahead_bytes = 0  # being loaded ahead
        self._passed_bytes = 0
        self.used_bytes = 0
        self.hits = 0
        self.loads = 0
        self.loads_ahead = 0
        self.loaded_bytes = 0

    def peek(self, blob: Blob, number: int) -> bytes | None:
        """Return a piece that is there, without waiting."""
        key = (blob.id, number)
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
        key = (blob.id, number)
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
            BackyfsError: what the load raised, to every reader that waited for it.
        """
        key = (blob.id, number)
        while (piece := self.peek(blob, number)) is None:
            load = self._loads.get(key)
            if load is None:
                self.loads += 1
                return await self._load(blob, number, self._wanted)
            await load.ended.wait()
            if load.error is not None:
                raise load.error
            if load.piece is not None:
                return load.piece  # perhaps too large to be kept
        return piece

    async def prefetch(self, blob: Blob, number: int, size: int) -> None:
        """Load a piece of `size` bytes that a reader will want, unless it is there or on its way.

        Nor is it loaded if so much is being loaded ahead already that it would push out what was just read. Its
        errors are for the reader.
        """
        key = (blob.id, number)
        if key in self._pieces or key in self._passed or key in self._loads or self._ahead_bytes + size > self._capacity_bytes // 2:
            return
        self._ahead_bytes += size
        self.loads_ahead += 1
        try:
            with suppress(BackyfsError):
                await self._load(blob, number, self._ahead)
        finally:
            self._ahead_bytes -= size

    async def _load(self, blob: Blob, number: int, pool: Pool) -> bytes:
        key = (blob.id, number)
        load = self._loads[key] = _Load()
        try:
            load.piece = await pool.run(self._load_piece, blob, number)
        except BackyfsError as error:
            load.error = error
            raise
        finally:
            del self._loads[key]
            load.ended.set()
        self._keep(key, load.piece)
        return load.piece

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
