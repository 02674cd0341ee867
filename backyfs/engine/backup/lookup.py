"""Look up each hashed block: it is a hole, known to the database, being stored, or new.

Owned by the thread that owns the database.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from backyfs.geometry import block_length
from backyfs.metadata.maps.blockmap import HOLE
from backyfs.metadata.records.blobs import find_blobs
from backyfs.model import BlockIndex, Deduplication

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from backyfs.engine.backup.committer import Committer
    from backyfs.engine.backup.flusher import Flusher
    from backyfs.engine.backup.tasks import HashedRun
    from backyfs.metadata.records.stats import BackupStatistics
    from backyfs.model import BlobId, BlobUid, Version
    from backyfs.repository import Repository


class Lookup:
    """Looks up blocks, enters known ones, and counts."""

    def __init__(
        self,
        repository: Repository,
        version: Version,
        statistics: BackupStatistics,
        committer: Committer,
        flusher: Flusher,
    ) -> None:
        """Look up the blocks of a version; new ones get uids from `flusher`."""
        self._repository = repository
        self._version = version
        self._statistics = statistics
        self._committer = committer
        self._flusher = flusher
        same_version = repository.deduplication is Deduplication.SAME_VERSION
        self._found_version = repository.blocks.encryption_version if same_version else None
        self._block_size = repository.block_size
        self.known_bytes = 0  # read, but need not be stored

    def sort(self, runs: Sequence[HashedRun]) -> Iterator[tuple[HashedRun, list[tuple[int, BlobUid]]]]:
        """Enter known blocks; yield each run with the positions of its blocks to store and the uids for their blobs.

        Raises:
            DatabaseError: the database cannot be read.
        """
        known = self._find(
            fingerprint
            for run in runs
            for fingerprint in run.fingerprints
            if fingerprint is not None and not self._committer.is_coming(fingerprint)
        )
        for run in runs:
            yield run, self._sort(run, known)

    def _find(self, fingerprints: Iterable[bytes]) -> dict[bytes, BlobId]:
        is_off = self._repository.deduplication is Deduplication.OFF
        if is_off and not self._committer.repairs.are_needed:
            return {}
        wanted = set(fingerprints)
        if not wanted:
            return {}
        with self._repository.database.read() as connection:
            self._committer.repairs.look_for(connection, wanted)
            if is_off:
                return {}
            return find_blobs(connection, wanted, encryption_version=self._found_version)

    def _sort(self, run: HashedRun, known: dict[bytes, BlobId]) -> list[tuple[int, BlobUid]]:
        counts, repairs = self._statistics, self._committer.repairs
        uids = iter(self._flusher.new_uids(len(run.fingerprints)))
        new = []
        for position, fingerprint in enumerate(run.fingerprints):
            index = BlockIndex(run.run.first + position)
            size = block_length(index, self._version.size_bytes, self._block_size)
            damaged = [] if fingerprint is None else repairs.take(fingerprint, size)
            counts.blocks_read += 1
            counts.bytes_read += size
            if fingerprint is None:
                self._enter_known(index, HOLE, size)
                counts.blocks_sparse += 1
                counts.bytes_sparse += size
            elif (blob_id := known.get(fingerprint)) is not None:
                self._enter_known(index, blob_id, size)
                counts.blocks_deduplicated += 1
                counts.bytes_deduplicated += size
            elif self._committer.join(index, fingerprint):
                counts.blocks_deduplicated += 1
                counts.bytes_deduplicated += size
            else:
                uid = next(uids)
                new.append((position, uid))
                self._committer.announce(index, fingerprint, uid)
                if damaged and self._repository.deduplication is not Deduplication.OFF:
                    repairs.begin(uid, damaged.pop(0))
                counts.blocks_written += 1
                counts.bytes_written += size
            for blob in damaged:  # each gets a separate object, as before
                uid = self._flusher.new_uids(1)[0]
                new.append((position, uid))
                repairs.begin(uid, blob)
        return new

    def _enter_known(self, index: BlockIndex, entry: BlobId | int, size: int) -> None:
        self._committer.map.enter(index, entry)
        self.known_bytes += size
