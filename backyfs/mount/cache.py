"""Opened blocks, kept while there is room, each loaded once however many readers wait for it.

Used by the tasks of one trio event loop; only the loading itself happens in threads.
"""

from __future__ import annotations

from collections import OrderedDict
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from backyfs.errors import BackyfsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from backyfs.model import Blob, BlobId


class _Load:
    """A load under way: its readers wait for `ended`."""

    def __init__(self) -> None:
        self.ended = trio.Event()
        self.block: bytes | None = None
        self.error: BackyfsError | None = None


class BlockCache:
    """Plain bytes of blobs, the least recently read ones dropped first; shared by all images of a mount."""

    def __init__(self, load: Callable[[Blob], bytes], capacity_bytes: int, workers: int) -> None:
        """Load with `load`, in at most `workers` threads at once."""
        self._load_blob = load
        self._capacity_bytes = capacity_bytes
        self._limiter = trio.CapacityLimiter(workers)
        self._blocks: OrderedDict[BlobId, bytes] = OrderedDict()
        self._loads: dict[BlobId, _Load] = {}
        self.used_bytes = 0

    def peek(self, blob: Blob) -> bytes | None:
        """Return a block that is there, without waiting."""
        block = self._blocks.get(blob.id)
        if block is not None:
            self._blocks.move_to_end(blob.id)
        return block

    async def get(self, blob: Blob) -> bytes:
        """Return the plain bytes of a blob, loading them if no other reader does so already.

        Raises:
            BackyfsError: what the load raised, to every reader that waited for it.
        """
        while (block := self.peek(blob)) is None:
            load = self._loads.get(blob.id)
            if load is None:
                return await self._load(blob)
            await load.ended.wait()
            if load.error is not None:
                raise load.error
            if load.block is not None:
                return load.block  # perhaps too large to be kept
        return block

    async def prefetch(self, blob: Blob) -> None:
        """Load a blob that a reader will want, unless it is there or on its way. Its errors are that reader's."""
        if blob.id not in self._blocks and blob.id not in self._loads:
            with suppress(BackyfsError):
                await self._load(blob)

    async def _load(self, blob: Blob) -> bytes:
        load = self._loads[blob.id] = _Load()
        try:
            load.block = await trio.to_thread.run_sync(self._load_blob, blob, limiter=self._limiter)
        except BackyfsError as error:
            load.error = error
            raise
        finally:
            del self._loads[blob.id]
            load.ended.set()
        self._keep(blob, load.block)
        return load.block

    def _keep(self, blob: Blob, block: bytes) -> None:
        self._blocks[blob.id] = block
        self.used_bytes += len(block)
        while self.used_bytes > self._capacity_bytes and self._blocks:
            _, dropped = self._blocks.popitem(last=False)
            self.used_bytes -= len(dropped)
