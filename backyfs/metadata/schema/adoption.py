"""Take over a database of backy2: convert its rows of blocks to blobs, pages and versions.

This runs in one transaction of the caller, page by page, so memory does not grow with the number of rows. Each blob
gets one row, however many blocks refer to it. Stored blocks are neither changed nor read.
"""

from __future__ import annotations

import logging
import uuid
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sqlalchemy import func, insert, select, update

from backyfs.errors import DatabaseError, SchemaError
from backyfs.geometry import PAGE_ENTRIES, page_count, page_length
from backyfs.metadata.db.batches import batches
from backyfs.metadata.db.database import continue_ids
from backyfs.metadata.db.tables import blobs, stats, versions
from backyfs.metadata.maps.blockmap import ABSENT, HOLE, commit_page, new_entries, page_entries, references_add_up
from backyfs.metadata.records.blobs import contradict, find_by_uid, insert_numbered_blobs
from backyfs.metadata.records.identity import Identity, save_identity
from backyfs.metadata.records.stats import insert_statistics_records
from backyfs.metadata.records.versions import insert_version, version_with_uid
from backyfs.model import BlobId, BlobRecord, BlobUid, PageNumber, VersionStatus

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from backyfs.metadata.db.database import Connection
    from backyfs.metadata.maps.blockmap import Entries
    from backyfs.metadata.schema.backy2 import Backy2Block, Backy2Database, Backy2Version
    from backyfs.model import Progress

_SHOWN_WARNINGS = 20

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdoptionReport:
    """How much was taken over."""

    versions: int
    blocks: int  # rows
    blobs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockFacts:
    """What backy2 had only in its configuration."""

    block_size: int
    hash_function: str
    digest_bytes: int  # of that function


def check_facts(source: Backy2Database, facts: BlockFacts) -> None:
    """Compare block size and hash function of the configuration with the rows. backy2 did not store them.

    Raises:
        SchemaError: the backups were made with another block size or hash function.
        DatabaseError: a row of `versions` is unusable.
    """
    source.check_versions()
    odd = source.odd_version()
    largest, count = source.block_sizes()
    if odd is not None or (count and largest > facts.block_size):
        size = f"blocks of {largest} bytes" if largest > facts.block_size else f"another number of blocks for {odd!r}"
        raise SchemaError(
            f"has block_size {facts.block_size}, but the database has {size}",
            subject="the configuration",
            remedy="set block_size in [DEFAULTS] to the value that the backups were made with",
        )
    digits = 2 * facts.digest_bytes
    lengths = source.checksum_lengths()
    if lengths and digits not in lengths:
        found = " or ".join(str(length // 2 * 8) for length in sorted(lengths))
        raise SchemaError(
            f"has hash_function {facts.hash_function}, with {digits * 4} bits, but the database has checksums of "
            f"{found} bits",
            subject="the configuration",
            remedy="set hash_function in [DEFAULTS] to the value that the backups were made with",
        )


def adopt(
    connection: Connection,
    source: Backy2Database,
    facts: BlockFacts,
    *,
    now: datetime,
    opens: Callable[[bytes], bool] | None,
    progress: Progress,
) -> AdoptionReport:
    """Fill the tables from those of backy2, check the result, and store the identity of the repository.

    `opens` returns whether the configured key unwraps a wrapped key; None if no key is configured.

    Raises:
        DatabaseError: the result does not match the tables of backy2. The caller must roll back.
    """
    adoption = _Adoption(connection, source, facts, opens)
    rows = source.count_blocks()
    progress.start("taking over the metadata of backy2, for images of", rows * facts.block_size)
    try:
        for uid in source.version_uids():
            progress.advance(adoption.take_version(source.version(uid)) * facts.block_size)
        adoption.take_orphans(now)
        continue_ids(connection, blobs)
        adoption.take_deleted()
    finally:
        progress.stop()
    insert_statistics_records(connection, source.statistics())
    save_identity(
        connection,
        Identity(
            uid=str(uuid.uuid4()),
            block_size=facts.block_size,
            hash_function=facts.hash_function,
            wrapped_fingerprint_key=None,
            created_at=now,
        ),
    )
    adoption.verify()
    return AdoptionReport(
        versions=source.count_versions(),
        blocks=rows,
        blobs=connection.execute(select(func.count()).select_from(blobs)).scalar_one(),
    )


class _Adoption:
    def __init__(
        self,
        connection: Connection,
        source: Backy2Database,
        facts: BlockFacts,
        opens: Callable[[bytes], bool] | None,
    ) -> None:
        self._connection = connection
        self._source = source
        self._block_size = facts.block_size
        self._digest_bytes = facts.digest_bytes
        self._opens = opens
        self._refused: Counter[str] = Counter()  # number of contradictory rows, by version
        self._warnings = 0
        self._last_id = 0  # of a blob; the table was empty

    def take_version(self, taken: Backy2Version) -> int:
        """Take over a version; return its number of rows."""
        record = taken.record
        version = insert_version(self._connection, record)
        rows = 0
        for page in range(page_count(taken.blocks)):
            page_no = PageNumber(page)
            start = page * PAGE_ENTRIES
            length = page_length(page_no, taken.blocks)
            blocks = list(self._source.blocks(record.uid, start, start + length))
            rows += len(blocks)
            entries = self._entries(taken, blocks, start, length)
            commit_page(
                self._connection,
                version.id,
                page_no,
                entries,
                keep_holes=record.status is VersionStatus.INCOMPLETE,
            )
        if self._refused[record.uid] and record.status is VersionStatus.VALID:
            self._connection.execute(
                update(versions).where(versions.c.id == version.id).values(status=VersionStatus.INVALID.value)
            )
        return rows

    def take_orphans(self, now: datetime) -> None:
        """Take over blobs without a version, so that a cleanup finds them."""
        for batch in batches(self._source.orphans()):
            found = {block.blob.uid: block.blob for block in batch if block.blob is not None}
            self._ids(found, now)

    def take_deleted(self) -> None:
        """Take over blobs that backy2 was about to delete, as doomed blobs unless they are still in use."""
        for batch in batches(self._source.deleted_blobs()):
            waiting = {uid: (size, at) for uid, size, at in batch}
            known = find_by_uid(self._connection, waiting)
            rows = [
                {
                    "uid": uid,
                    "size": size,
                    "encryption_version": 0,
                    "valid": False,
                    "created_at": at,
                    "doomed_at": at,
                }
                for uid, (size, at) in waiting.items()
                if uid not in known
            ]
            if rows:
                self._connection.execute(insert(blobs), rows)

    def verify(self) -> None:
        """Compare the result with the rows of backy2, counted again.

        Raises:
            DatabaseError: something is missing.
        """
        expected = self._source.count_versions()
        found = self._connection.execute(select(func.count()).select_from(versions)).scalar_one()
        self._require(found == expected, f"{found} versions instead of {expected}")
        expected = self._source.count_statistics()
        found = self._connection.execute(select(func.count()).select_from(stats)).scalar_one()
        self._require(found == expected, f"{found} rows of statistics instead of {expected}")
        for uid in self._source.version_uids():
            self._verify_version(self._source.version(uid))
        self._require(references_add_up(self._connection), "references to blobs or pages are miscounted")
        if self._warnings > _SHOWN_WARNINGS:
            _log.warning("%d more rows had such problems", self._warnings - _SHOWN_WARNINGS)

    def _entries(self, taken: Backy2Version, blocks: list[Backy2Block], start: int, length: int) -> Entries:
        """Return the entries of a page. Blocks with a missing or unusable row become absent."""
        record = taken.record
        found: dict[BlobUid, BlobRecord] = {}
        for block in blocks:
            fits = self._source.fits(taken, block)
            if block.blob is not None and fits:
                merged = self._merge(found.get(block.blob.uid), self._checked(block.blob))
                if merged is not None:
                    found[block.blob.uid] = merged
        ids = self._ids(found, record.created_at)
        entries = new_entries(length, ABSENT)
        for block in blocks:
            fits = self._source.fits(taken, block)
            if fits and block.blob is None:
                entries[block.number - start] = HOLE if taken.holes_are_known else ABSENT
            elif fits and block.blob is not None and self._agrees(ids, block.blob):
                entries[block.number - start] = ids[block.blob.uid][0]
            else:
                self._refuse(taken, block)
        return entries

    def _checked(self, blob: BlobRecord) -> BlobRecord:
        """Drop a checksum of another hash function, unless it is the only way to verify the block."""
        if not _is_plain(blob) and blob.fingerprint is not None and len(blob.fingerprint) != self._digest_bytes:
            self._warn(f"blob {blob.uid} has a checksum of another hash function; the checksum is dropped")
            return replace(blob, fingerprint=None)
        return blob

    def _ids(
        self, wanted: dict[BlobUid, BlobRecord], created_at: datetime
    ) -> dict[BlobUid, tuple[BlobId, BlobRecord]]:
        """Return id and record of each blob, after inserting those without a row."""
        known = find_by_uid(self._connection, wanted)
        ids = {uid: (blob.id, blob.facts) for uid, blob in known.items()}
        for uid, blob in known.items():
            merged = self._merge(blob.facts, wanted[uid])
            if merged is not None and merged != blob.facts:
                self._update(blob.id, merged)
                ids[uid] = (blob.id, merged)
        new = {uid: (self._new_id(), blob) for uid, blob in wanted.items() if uid not in known}
        insert_numbered_blobs(self._connection, new.values(), created_at)
        ids.update(new)
        return ids

    def _new_id(self) -> BlobId:
        self._last_id += 1
        return BlobId(self._last_id)

    def _merge(self, known: BlobRecord | None, other: BlobRecord) -> BlobRecord | None:
        """Merge two rows of one blob; return None if they contradict each other.

        After imports, rows can differ without a contradiction: old exports have no keys, or keys wrapped by an older
        configured key.
        """
        if known is None or known == other:
            return other
        if known.size != other.size:
            return None
        better = other if self._has_better_key(other, known) else known
        valid = known.valid and other.valid
        if contradict(known.fingerprint, other.fingerprint):
            # One of them is wrong. Encrypted objects can be verified without a fingerprint.
            if _is_plain(known) or _is_plain(better):
                return None
            return replace(better, fingerprint=None, valid=False)
        fingerprint = None
        if _is_plain(better) or not (_is_given_up(known) or _is_given_up(other)):
            fingerprint = self._comparable(known.fingerprint, other.fingerprint)
        return self._checked(replace(better, fingerprint=fingerprint, valid=valid))

    def _comparable(self, one: bytes | None, other: bytes | None) -> bytes | None:
        """Return the fingerprint made with the hash function of this repository, otherwise any fingerprint."""
        if other is not None and len(other) == self._digest_bytes:
            return other
        return one or other

    def _has_better_key(self, other: BlobRecord, known: BlobRecord) -> bool:
        if other.wrapped_key is None or other.wrapped_key == known.wrapped_key:
            return False
        if known.wrapped_key is None:
            return True
        return self._opens is not None and not self._opens(known.wrapped_key) and self._opens(other.wrapped_key)

    def _agrees(self, ids: dict[BlobUid, tuple[BlobId, BlobRecord]], blob: BlobRecord) -> bool:
        facts = ids[blob.uid][1]
        return facts.size == blob.size and not contradict(facts.fingerprint, self._checked(blob).fingerprint)

    def _update(self, blob_id: BlobId, facts: BlobRecord) -> None:
        self._connection.execute(
            update(blobs)
            .where(blobs.c.id == blob_id)
            .values(
                fingerprint=facts.fingerprint,
                encryption_version=facts.encryption_version,
                wrapped_key=facts.wrapped_key,
                valid=facts.valid,
            )
        )

    def _refuse(self, taken: Backy2Version, block: Backy2Block) -> None:
        record = taken.record
        self._refused[record.uid] += 1
        self._warn(
            f"version {record.uid} ({record.name}): the row of block {block.number} contradicts itself or other rows; "
            "the block counts as not backed up, and the version as invalid"
        )

    def _warn(self, sentence: str) -> None:
        self._warnings += 1
        if self._warnings <= _SHOWN_WARNINGS:
            _log.warning("%s", sentence)

    def _verify_version(self, taken: Backy2Version) -> None:
        uid = taken.record.uid
        version = version_with_uid(self._connection, uid)
        assert version is not None
        counts = self._source.count_rows(uid, taken.blocks)
        entries: Counter[int] = Counter()  # holes, absent blocks, and blobs (all counted as 1)
        for page in range(page_count(taken.blocks)):
            for entry in page_entries(self._connection, version, PageNumber(page), taken.blocks):
                entries[min(entry, 1)] += 1
        holes = counts.rows - counts.with_blob if taken.holes_are_known else 0
        missing = counts.with_blob + holes - entries[1] - entries[HOLE]
        self._require(
            entries[1] <= counts.with_blob and entries[HOLE] <= holes and missing <= self._refused[uid],
            f"version {uid} has {entries[1]} blocks with a blob and {entries[HOLE]} holes, but should have "
            f"{counts.with_blob} and {holes}",
        )

    @staticmethod
    def _require(condition: bool, fact: str) -> None:
        if not condition:
            raise DatabaseError(
                f"was not taken over completely: {fact}",
                subject="the metadata of backy2",
                remedy="please report this",
            )


def _is_given_up(blob: BlobRecord) -> bool:
    """Return whether earlier rows of an encrypted blob had different fingerprints."""
    return not _is_plain(blob) and blob.fingerprint is None and not blob.valid


def _is_plain(blob: BlobRecord) -> bool:
    return blob.encryption_version == 0
