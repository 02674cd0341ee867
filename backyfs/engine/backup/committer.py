"""Give stored blobs their rows, and their blocks their entries in the block map.

    durable objects -> rows of blobs -> pages

This is the only way from an object to a row, and each step checks in its transaction that the job of the backup is
alive. Once other commands consider it dead, they may delete what it looked up and what it stored. Owned by the thread
that owns the database.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from backyfs.blocks import new_blob_uids, new_shelf
from backyfs.engine.backup.healing import Repairs
from backyfs.engine.backup.mapbuilder import MapBuilder
from backyfs.engine.catalog.freshpages import FreshPages
from backyfs.geometry import PAGE_ENTRIES, BlockRun, block_count, block_length
from backyfs.metadata.maps.blockmap import HOLE, BlobsGoneError, commit_page
from backyfs.model import BlockIndex, Deduplication

if TYPE_CHECKING:
    from array import array

    from backyfs.engine.backup.inherited import InheritedMap
    from backyfs.engine.backup.tasks import Tasks
    from backyfs.metadata.records.stats import BackupStatistics
    from backyfs.model import BlobId, BlobUid, PageNumber, SavedBlob, Version
    from backyfs.repository import Repository
    from backyfs.work.run import Run


class Committer:
    """The blobs of one backup that get their rows, and its pages."""

    def __init__(
        self,
        repository: Repository,
        version: Version,
        run: Run,
        tasks: Tasks,
        statistics: BackupStatistics,
        inherited: InheritedMap,
    ) -> None:
        """Begin with `inherited`; `tasks` read and store blocks again whose blobs a cleanup deleted."""
        self._version = version
        self._run = run
        self._tasks = tasks
        self._statistics = statistics
        self._block_size = repository.block_size
        self._shares = repository.deduplication is not Deduplication.OFF
        self._coming: dict[bytes, BlobUid] = {}  # blobs without a row yet, by fingerprint
        self._waiting: dict[BlobUid, list[BlockIndex]] = {}  # blocks that will get them
        self._partial_committed_s = time.monotonic()
        blocks = block_count(version.size_bytes, self._block_size)
        self.map = MapBuilder(blocks, inherited.initial, inherited.committed)
        self.fresh = FreshPages(repository)
        self.repairs = Repairs(repository)

    @property
    def partial_age_s(self) -> float:
        """Time since partial pages were committed."""
        return time.monotonic() - self._partial_committed_s

    def is_coming(self, fingerprint: bytes) -> bool:
        """Return whether a blob with these bytes will get a row."""
        return fingerprint in self._coming

    def announce(self, index: BlockIndex, fingerprint: bytes, uid: BlobUid) -> None:
        """Expect a blob for a block."""
        self._waiting[uid] = [index]
        if self._shares:
            self._coming[fingerprint] = uid

    def join(self, index: BlockIndex, fingerprint: bytes) -> bool:
        """Let a block wait for a blob with the same bytes that has no row yet; return False if there is none."""
        uid = self._coming.get(fingerprint)
        if uid is not None:
            self._waiting[uid].append(index)
        return uid is not None

    def enter_flushed(self, saved: list[SavedBlob]) -> None:
        """Insert the blobs of a completed flush, enter the blocks that wait for them, and count these."""
        ids = self._insert(saved, ends_flush=True)
        done_bytes = 0
        for blob in saved:
            if self._coming.get(blob.fingerprint) == blob.uid:
                del self._coming[blob.fingerprint]
            for index in self._waiting.pop(blob.uid, ()):
                self.map.enter(index, ids[blob.uid])
                done_bytes += block_length(index, self._version.size_bytes, self._block_size)
        self._run.advance(done_bytes)

    def commit_pages(self) -> None:
        """Commit complete pages."""
        for page_no, entries in self.map.take_complete():
            while (gone := self._try_to_commit(page_no, entries)) is not None:
                self._store_again(page_no, entries, gone)

    def commit_partial(self) -> None:
        """Commit the current state of other pages, for a backup that continues this one."""
        for page_no, entries in self.map.take_partial():
            self._try_to_commit(page_no, entries)  # blobs deleted by a cleanup are stored again for the complete page
        self._partial_committed_s = time.monotonic()

    def _insert(self, saved: list[SavedBlob], *, ends_flush: bool) -> dict[BlobUid, BlobId]:
        """Give durable objects their rows; return their ids."""
        with self._run.job.write() as connection:
            ids = self.repairs.enter(connection, saved, datetime.now(UTC))
            if ends_flush:
                self.fresh.settle(connection)
        self.fresh.remember(saved, ids)
        self._statistics.bytes_stored += sum(blob.stored_size for blob in saved)
        return ids

    def _try_to_commit(self, page_no: PageNumber, entries: array[int]) -> frozenset[BlobId] | None:
        """Commit a page and return None; or do nothing and return the blobs that a cleanup has doomed."""
        try:
            with self._run.job.write() as connection:
                page_id = commit_page(connection, self._version.id, page_no, entries, keep_holes=True)
                if page_id is not None:
                    self.fresh.note_committed(connection, page_id, entries)
        except BlobsGoneError as gone:
            return gone.blob_ids
        return None

    def _store_again(self, page_no: PageNumber, entries: array[int], gone: frozenset[BlobId]) -> None:
        """Read and store blocks again whose blobs a cleanup has doomed between look-up and commit."""
        buffer = bytearray(self._block_size)
        saved: list[SavedBlob] = []
        uids: dict[bytes, BlobUid] = {}
        places: list[tuple[int, BlobUid]] = []
        for position, entry in enumerate(entries):
            if entry not in gone:
                continue
            self._run.check()
            hashed = self._tasks.read(BlockRun(BlockIndex(page_no * PAGE_ENTRIES + position), 1), buffer)
            fingerprint = hashed.fingerprints[0]
            if fingerprint is None:  # the source is in use and has changed
                entries[position] = HOLE
                continue
            uid = uids.get(fingerprint)
            if uid is None or not self._shares:
                uid = uids[fingerprint] = new_blob_uids(new_shelf(), 1)[0]
                saved += self._tasks.store(hashed, [(0, uid)]).saved
            places.append((position, uid))
        # Another flush may be running whose pages are not durable yet.
        ids = self._insert(self._tasks.flush(saved).saved, ends_flush=False)
        for position, uid in places:
            entries[position] = ids[uid]
