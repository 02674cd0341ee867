"""What a mount shows: versions, their images and partitions, and facts about them; and what it counts.

Everything that takes time happens in threads of pools of their own, so that no question about the tree waits
behind the load of a block. Used by the tasks of one trio event loop.
"""

from __future__ import annotations

import logging
import os
import time
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar

import trio

from backyfs.blocks import PieceLoader
from backyfs.errors import BlobMissingError, DatabaseError, IntegrityError, ObjectUnreadableError, StorageError
from backyfs.images.partitions import describe, read_partitions
from backyfs.metadata.maps.usage import encryption_versions, used_bytes
from backyfs.model import VersionStatus
from backyfs.mount.cache import PieceCache
from backyfs.mount.imagefile import ImageFile, WritableLayer
from backyfs.mount.images import Images
from backyfs.mount.live import LiveTree
from backyfs.mount.marker import DamageMarker
from backyfs.mount.pool import DEFAULT_PATIENCE_S, Pool
from backyfs.mount.selection import Selection

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable

    from backyfs.images.partitions import PartitionTable
    from backyfs.model import Blob, BlockIndex, Version, VersionUid
    from backyfs.mount.overlay import OverlayDirectory, Scratch
    from backyfs.mount.reading import DamageError
    from backyfs.mount.tree import Tree
    from backyfs.repository import Repository
    from backyfs.work.job import Job

DEFAULT_CACHE_BYTES = 256 << 20  # 64 blocks of 4 MiB
DEFAULT_READ_AHEAD_BYTES = 32 << 20
_QUESTION_THREADS = 4  # for short questions to the database
_TABLE_THREADS = 2
_REMEMBERED = 4096     # versions of which facts are kept that took a look at the block map or the image
_TELL_AGAIN_S = 60.0   # of a damage that is met again and again
_MOST_DAMAGES = 10_000
_DAMAGE = (IntegrityError, BlobMissingError, ObjectUnreadableError)  # and not a storage that is away
_ENCRYPTION_S = 60     # so long it is remembered which encryption versions a version has

_Fact = TypeVar("_Fact")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a mount works."""

    cache_bytes: int = DEFAULT_CACHE_BYTES
    read_ahead_bytes: int = DEFAULT_READ_AHEAD_BYTES  # ahead of each sequential reader; 0: none
    workers: int | None = None  # threads that load blocks; None: one more than there are processors
    patience_s: float = DEFAULT_PATIENCE_S  # for storage and database, before a read fails
    selection: Selection = field(default_factory=Selection)


class Contents:
    """One mounted repository."""

    def __init__(
        self, repository: Repository, job: Job, settings: Settings, overlays: OverlayDirectory | Scratch | None = None
    ) -> None:
        """Show a repository; with `overlays`, images can be written to."""
        # One more than there are processors: several readers at once are a tenth faster then, and one is not slower.
        workers = settings.workers or len(os.sched_getaffinity(0)) + 1
        storage = partial(Pool, "the storage", StorageError, threads=workers, patience_s=settings.patience_s)
        self._wanted, self._ahead = storage(), storage()
        self._questions = Pool(
            "the database", DatabaseError, threads=_QUESTION_THREADS, patience_s=settings.patience_s
        )
        # Reading a table asks for blocks, and waits twice as long as they may take.
        self._tables = Pool(
            "the partition table", StorageError, threads=_TABLE_THREADS, patience_s=2 * settings.patience_s
        )
        self._layers = Pool("the layer", StorageError, threads=workers, patience_s=settings.patience_s)
        self._settings = settings
        self._repository = repository
        self._overlays = overlays
        self._live = LiveTree(repository.database, settings.selection, self._questions)
        loader = PieceLoader(replace(repository.blocks, find_moved=self._find_moved))
        self._cache = PieceCache(loader.load, settings.cache_bytes, wanted=self._wanted, ahead=self._ahead)
        self._images = Images(repository, self._cache, job, self._questions)
        # Of a cache that several readers share, what is read ahead of one must not push out the rest.
        ahead = min(settings.read_ahead_bytes, settings.cache_bytes // 2)
        self._read_ahead_blocks = -(-ahead // repository.block_size)
        self._used: _Remembered[int] = _Remembered()
        self._encryption: _Remembered[bytes] = _Remembered()
        self._partitions: _Remembered[PartitionTable] = _Remembered()
        self._damaged: set[tuple[VersionUid, BlockIndex]] = set()
        self._told: dict[tuple[VersionUid, BlockIndex], float] = {}  # when
        self._marker = DamageMarker(repository, job)
        self._read_errors = 0
        self._write_errors = 0
        self._began = time.monotonic()
        self.kernel_read_ahead_kib: int | None = None  # as far as it is known
        self.is_writable = overlays is not None
        self.has_scratch = overlays is not None and not overlays.is_shared
        self.repository_uid = repository.uid

    def _find_moved(self, blob: Blob) -> Blob | None:
        """Look where a blob is by now. Called in the threads that load."""
        moved = self._repository.blocks.find_moved(blob)
        if moved is not None:
            self._images.forget_pages()
        return moved

    async def tree(self) -> Tree:
        """Return the tree as it is now, or was a second ago."""
        return await self._live.get()

    async def keep_fresh(self) -> None:
        """Keep the tree fresh while it is in use. To be run as a task of its own."""
        await self._live.keep_fresh()

    async def mark_damage(self) -> None:
        """Mark what readers find damaged. To be run as a task of its own."""
        await self._marker.run()

    # Facts that are not in the tree.

    async def used_bytes(self, version: Version, start: int, stop: int) -> int:
        """Return how many bytes of a slice of an image are no holes."""

        def look() -> int:
            with self._repository.database.read() as connection:
                return used_bytes(connection, version, self._repository.block_size, start, stop)

        return await self._used.get(version, (start, stop), partial(self._questions.run, look))

    async def encryption_versions(self, version: Version) -> bytes:
        """Return the encryption versions of the blobs of a version, in order, separated by commas."""

        def look() -> bytes:
            with self._repository.database.read() as connection:
                return ",".join(map(str, encryption_versions(connection, version))).encode()

        # A migration changes them, in its own time.
        period = int(time.monotonic() // _ENCRYPTION_S)
        return await self._encryption.get(version, period, partial(self._questions.run, look))

    async def partition_numbers(self, version: Version) -> list[int]:
        """Return the numbers of the partitions of an image."""
        return [partition.number for partition in (await self._table(version)).partitions]

    async def partition(self, version: Version, number: int) -> tuple[int, int]:
        """Return where a partition begins in its image, and its size, in bytes. Raises LookupError."""
        for partition in (await self._table(version)).partitions:
            if partition.number == number:
                return partition.start, partition.size
        raise LookupError(number)

    async def table_text(self, version: Version) -> bytes:
        """Return the partition table of an image for people."""
        return describe(await self._table(version)).encode(errors="replace")

    async def _table(self, version: Version) -> PartitionTable:
        async def read() -> PartitionTable:
            file = await self.open(version, 0, version.size_bytes)

            def read_bytes(offset: int, size: int) -> bytes:
                return bytes(trio.from_thread.run(file.read, offset, size, _start_nothing))

            try:
                return await self._tables.run(read_partitions, read_bytes, version.size_bytes)
            finally:
                with trio.CancelScope(shield=True):
                    await self.close(version, file)

        if self._overlays is not None and self._overlays.is_shared:
            return await read()  # it may have been written to
        return await self._partitions.get(version, (), read)

    # Images.

    async def open(
        self, version: Version, start: int, size_bytes: int, *, for_writing: bool = False
    ) -> ImageFile:
        """Open a slice of an image; to be closed."""
        reader = await self._images.open(version)
        writable = None
        if self._overlays is not None:
            try:
                open_layer = partial(self._overlays.open, version.uid, version.size_bytes, for_writing=for_writing)
                layer = await self._layers.run(open_layer)
            except BaseException:
                with trio.CancelScope(shield=True):
                    await self._images.close(version)
                raise
            writable = None if layer is None else WritableLayer(layer=layer, pool=self._layers)
        return ImageFile(reader, start, size_bytes, read_ahead_blocks=self._read_ahead_blocks, writable=writable)

    async def close(self, version: Version, file: ImageFile) -> None:
        """Close what `open` has opened, and make durable what was written, unless it is to be thrown away."""
        try:
            if self._overlays is not None and file.layer is not None:
                if self._overlays.is_shared:
                    await file.sync()
                await self._layers.run(self._overlays.let_go, file.layer)
        finally:
            await self._images.close(version)

    def note_write_error(self) -> None:
        """Count a write that failed: no room, or a bad disk under the layer."""
        self._write_errors += 1

    def note_damage(self, error: DamageError) -> None:
        """Count a part of an image that could not be had, and tell the log of it, now and then."""
        self._read_errors += 1
        key = (error.uid, error.index)
        if isinstance(error.__cause__, _DAMAGE) and len(self._damaged) < _MOST_DAMAGES:
            self._damaged.add(key)
            if error.blob_id is not None:
                self._marker.suspect(error.blob_id)
        now = time.monotonic()
        if now - self._told.get(key, float("-inf")) >= _TELL_AGAIN_S:
            _log.error("%s", error)
            if len(self._told) >= _MOST_DAMAGES:
                self._told.clear()
            self._told[key] = now

    def statistics(self) -> bytes:
        """Return what the mount has counted, a name and a number in each line."""
        counted = {
            "uptime_s": int(time.monotonic() - self._began),
            "open_images": len(self._images),
            "cache_size_bytes": self._settings.cache_bytes,
            "cache_used_bytes": self._cache.used_bytes,
            "cache_hits": self._cache.hits,
            "loads": self._cache.loads,
            "loads_ahead": self._cache.loads_ahead,
            "loaded_bytes": self._cache.loaded_bytes,
            "damaged_blocks": len(self._damaged),
            "read_errors": self._read_errors,
            "write_errors": self._write_errors,
            "timeouts": sum(pool.timeouts for pool in (self._wanted, self._ahead, self._questions, self._layers)),
        }
        if self.kernel_read_ahead_kib is not None:
            counted["kernel_read_ahead_kib"] = self.kernel_read_ahead_kib
        return "".join(f"{name} {number}\n" for name, number in counted.items()).encode()


class _Remembered(Generic[_Fact]):
    """Facts of versions that took a while to find out; the oldest ones are forgotten first."""

    def __init__(self) -> None:
        self._facts: OrderedDict[Hashable, _Fact] = OrderedDict()

    async def get(self, version: Version, which: Hashable, find_out: Callable[[], Awaitable[_Fact]]) -> _Fact:
        """Return a fact; of an incomplete version it is found out anew, because it may have changed."""
        key = (version.uid, which)
        if key in self._facts:
            return self._facts[key]
        fact = await find_out()
        if version.status is not VersionStatus.INCOMPLETE:
            self._facts[key] = fact
            if len(self._facts) > _REMEMBERED:
                self._facts.popitem(last=False)
        return fact


def _start_nothing(*_: object) -> None:
    """Start no task: who reads a partition table reads nothing else."""
