"""What a backup has stored gets its rows here, and its place in the block map.

    durable objects -> rows of blobs -> pages

There is no other way from an object to a row, and each step makes sure in its own transaction that the job of the
backup is alive. Once others have taken it for dead, they may have deleted what it looked up and what it stored.
Owned by the thread that owns the database.
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

    from backyfs.engine.backup.inherited import Inherited
    from backyfs.engine.backup.tasks import Tasks
    from backyfs.metadata.records.stats import BackupStatistics
    from backyfs.model import BlobId, BlobUid, PageNumber, SavedBlob, Version
    from backyfs.repository import Repository
    from backyfs.work.run import Run


class Committer:
    """The blobs of one backup on their way to their rows, and its pages."""

    def __init__(
        self,
        repository: Repository,
        version: Version,
        run: Run,
        tasks: Tasks,
        statistics: BackupStatistics,
        inherited: Inherited,
    ) -> None:
        """Begin with what `inherited` has; `tasks` read and store what a cleanup took away."""
        self._version = version
        self._run = run
        self._tasks = tasks
        self._statistics = statistics
        self._block_size = repository.block_size
        self._shares = repository.deduplication is not Deduplication.OFF
        self._coming: dict[bytes, BlobUid] = {}  # blobs that have no row yet, by fingerprint
        self._waiting: dict[BlobUid, list[BlockIndex]] = {}  # the blocks that are to get them
        self._begun_committed_s = time.monotonic()
        blocks = block_count(version.size_bytes, self._block_size)
        self.map = MapBuilder(blocks, inherited.initial, inherited.committed)
        self.fresh = FreshPages(repository)
        self.repairs = Repairs(repository)

    @property
    def begun_age_s(self) -> float:
        """How long ago pages that are not complete were committed."""
        return time.monotonic() - self._begun_committed_s

    def is_coming(self, fingerprint: bytes) -> bool:
        """Tell whether a blob with these bytes is on its way to its row."""
        return fingerprint in self._coming

    def announce(self, index: BlockIndex, fingerprint: bytes, uid: BlobUid) -> None:
        """Expect a blob for a block."""
        self._waiting[uid] = [index]
        if self._shares:
            self._coming[fingerprint] = uid

    def join(self, index: BlockIndex, fingerprint: bytes) -> bool:
        """Let a block wait for a blob with its bytes that is on its way; return False if there is none."""
        uid = self._coming.get(fingerprint)
        if uid is not None:
            self._waiting[uid].append(index)
        return uid is not None

    def enter_flushed(self, saved: list[SavedBlob]) -> None:
        """Give the blobs of a flush that has ended their rows, enter the blocks that wait for them, and count these."""
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
        """Commit the pages that are complete."""
        for page_no, entries in self.map.take_complete():
            while (gone := self._try_to_commit(page_no, entries)) is not None:
                self._store_again(page_no, entries, gone)

    def commit_begun(self) -> None:
        """Commit the pages that are not complete as far as they are, for a backup that continues this one."""
        for page_no, entries in self.map.take_begun():
            self._try_to_commit(page_no, entries)  # what a cleanup took is stored again once the page is complete
        self._begun_committed_s = time.monotonic()

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
        """Commit a page; return None, or the blobs that a cleanup took in the meantime, having done nothing."""
        try:
            with self._run.job.write() as connection:
                page_id = commit_page(connection, self._version.id, page_no, entries, keep_holes=True)
                if page_id is not None:
                    self.fresh.note_committed(connection, page_id, entries)
        except BlobsGoneError as gone:
            return gone.blob_ids
        return None

    def _store_again(self, page_no: PageNumber, entries: array[int], gone: frozenset[BlobId]) -> None:
        """Read and store the blocks again whose blobs a cleanup took between look-up and commit."""
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
            if fingerprint is None:  # the source is in use, and changed
                entries[position] = HOLE
                continue
            uid = uids.get(fingerprint)
            if uid is None or not self._shares:
                uid = uids[fingerprint] = new_blob_uids(new_shelf(), 1)[0]
                saved += self._tasks.store(hashed, [(0, uid)]).saved
            places.append((position, uid))
        # Another flush may be under way, and the pages that it is to make durable are not.
        ids = self._insert(self._tasks.flush(saved).saved, ends_flush=False)
        for position, uid in places:
            entries[position] = ids[uid]
