"""Select blobs for a scrub, record what it read, and mark blobs and versions accordingly.

Versions are marked according to the marks of their blobs. So the last command that marks a version also corrects what
a killed scrub left behind, or a backup that used a blob while it was being marked.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import and_, bindparam, case, delete, exists, func, insert, literal, or_, select, update

from backyfs.errors import DamagedPageError
from backyfs.geometry import PAGE_ENTRIES, block_count, block_length, page_count
from backyfs.metadata.catalog.notes import note_version, note_versions, unpublish_pages_with
from backyfs.metadata.db.batches import batches
from backyfs.metadata.db.columns import UtcDateTime
from backyfs.metadata.db.tables import (
    blob_checks,
    blob_refs,
    blobs,
    damaged_versions,
    pages,
    stats,
    version_pages,
    versions,
)
from backyfs.metadata.maps.blockmap import ABSENT, HOLE, all_pages, list_pages, page_entries, unpack
from backyfs.metadata.records.blobs import load_blobs
from backyfs.model import BlobId, BlobUid, BlockIndex, PageId, VersionId, VersionStatus

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator
    from datetime import datetime

    from backyfs.metadata.db.database import Connection
    from backyfs.model import Blob, Version

_ROWS_AT_ONCE = 4096

_USED = blob_refs.c.refs > 0  # a doomed blob has no row in blob_refs
# Without a condition on `valid`: an engine that chose the index of damaged blobs would read all of them for each batch.
_WITH_FINGERPRINTS = (
    select(blobs.c.id, blobs.c.valid)
    .join(blob_refs, blob_refs.c.blob_id == blobs.c.id)
    .where(blobs.c.fingerprint.in_(bindparam("fingerprints", expanding=True)), _USED)
    .order_by(blobs.c.id)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedChecks:
    """The result of recording checks in the rows of blobs."""

    damaged: frozenset[BlobId]  # damaged blobs that still have the uid that was read and are not doomed
    repaired: int               # blobs that were marked as damaged and no longer are


def used_blobs(connection: Connection) -> Iterator[BlobId]:
    """Yield the blobs that versions use, in order."""
    query = select(blob_refs.c.blob_id).where(_USED).order_by(blob_refs.c.blob_id)
    for blob_id in connection.execute(query.execution_options(yield_per=_ROWS_AT_ONCE)).scalars():
        yield BlobId(blob_id)


def due_blobs(connection: Connection, not_since: datetime) -> Iterator[BlobId]:
    """Yield the used blobs that were not checked since a time: never checked ones first, then by age.

    This includes all blobs known to be damaged, whenever they were checked: their storage may be back.
    """
    never = blob_checks.c.blob_id.is_(None)
    query = (
        select(blob_refs.c.blob_id)
        .join(blobs, blobs.c.id == blob_refs.c.blob_id)
        .outerjoin(blob_checks, blob_checks.c.blob_id == blob_refs.c.blob_id)
        .where(_USED, or_(never, blob_checks.c.checked_at < not_since, blobs.c.valid.is_(False)))
        # Engines differ in where they sort NULL.
        .order_by(case((never, 0), else_=1), blob_checks.c.checked_at, blob_refs.c.blob_id)
    )
    for blob_id in connection.execute(query.execution_options(yield_per=_ROWS_AT_ONCE)).scalars():
        yield BlobId(blob_id)


def blobs_of_versions(connection: Connection, chosen: Iterable[Version]) -> Iterator[set[BlobId]]:
    """Yield the blobs of versions, page by page. A page that several of them share is read once.

    Nothing is yielded for damaged pages, whose content is unknown.
    """
    wanted = {page_id for version in chosen for _, page_id in list_pages(connection, version.id)}
    for batch in batches(sorted(wanted)):
        query = select(pages.c.entries).where(pages.c.id.in_(batch)).order_by(pages.c.id)
        for packed in connection.execute(query).scalars():
            found: set[BlobId] = set()
            with suppress(DamagedPageError):
                found = {BlobId(entry) for entry in unpack(packed) if entry > HOLE}
            yield found


def sample_blobs(connection: Connection, starts: Iterable[int]) -> list[BlobUid]:
    """Return uids of blobs that should be in the storage: for each start id, the first blob from that id on."""
    found = []
    for start in starts:
        here = (blobs.c.id >= start) & blobs.c.valid & blobs.c.doomed_at.is_(None)
        uid = connection.execute(select(blobs.c.uid).where(here).order_by(blobs.c.id).limit(1)).scalar()
        if uid is not None:
            found.append(BlobUid(uid))
    return found


def record_checks(
    connection: Connection, whole: Collection[BlobId], damaged: Iterable[Blob], checked_at: datetime
) -> RecordedChecks:
    """Record that blobs were read, and mark them. Call this in a write transaction.

    A blob with neither fingerprint nor tag cannot be verified; if it is marked as damaged, it stays so.
    """
    confirmed: set[BlobId] = set()
    for batch in batches(damaged):
        uids = {blob.id: blob.uid for blob in batch}
        there = (blobs.c.id.in_(list(uids))) & blobs.c.doomed_at.is_(None)
        rows = connection.execute(select(blobs.c.id, blobs.c.uid).where(there))
        confirmed.update(BlobId(row.id) for row in rows if row.uid == uids[BlobId(row.id)])
    for some in batches(sorted(confirmed)):
        connection.execute(update(blobs).where(blobs.c.id.in_(some)).values(valid=False))
    unpublish_pages_with(connection, confirmed)
    repaired = 0
    verifiable = or_(blobs.c.fingerprint.is_not(None), blobs.c.wrapped_key.is_not(None))
    for some in batches(sorted(whole)):
        marked = blobs.c.id.in_(some) & blobs.c.valid.is_(False) & blobs.c.doomed_at.is_(None)
        healed = list(connection.execute(select(blobs.c.id).where(marked, verifiable)).scalars())
        connection.execute(update(blobs).where(blobs.c.id.in_(healed)).values(valid=True))
        unpublish_pages_with(connection, healed)
        repaired += len(healed)
    for some in batches(sorted(confirmed.union(whole))):
        _note_checked(connection, some, checked_at)
    return RecordedChecks(damaged=frozenset(confirmed), repaired=repaired)


def _note_checked(connection: Connection, blob_ids: list[BlobId], checked_at: datetime) -> None:
    connection.execute(delete(blob_checks).where(blob_checks.c.blob_id.in_(blob_ids)))
    there = select(blobs.c.id, literal(checked_at, UtcDateTime())).where(
        blobs.c.id.in_(blob_ids), blobs.c.doomed_at.is_(None)
    )
    connection.execute(insert(blob_checks).from_select(["blob_id", "checked_at"], there))


def known_damage(connection: Connection) -> set[BlobId]:
    """Return the blobs that a scrub by backyfs found damaged. Marks by backy2 on others may be out of date."""
    query = select(blobs.c.id).join(blob_checks, blob_checks.c.blob_id == blobs.c.id).where(blobs.c.valid.is_(False))
    return {BlobId(blob_id) for blob_id in connection.execute(query).scalars()}


def has_damage(connection: Connection) -> bool:
    """Return whether any blob was found damaged, with one query that uses an index."""
    query = select(blobs.c.id).where(blobs.c.valid.is_(False), blobs.c.doomed_at.is_(None)).limit(1)
    return connection.execute(query).first() is not None


def damaged_with(connection: Connection, fingerprints: Iterable[bytes]) -> Iterator[Blob]:
    """Yield the damaged blobs in use that have one of these fingerprints."""
    for batch in batches(fingerprints):
        rows = connection.execute(_WITH_FINGERPRINTS, {"fingerprints": batch})
        found = [BlobId(row.id) for row in rows if not row.valid]
        yield from load_blobs(connection, found).values()


def damaged_in_use(connection: Connection) -> list[BlobId]:
    """Return the damaged blobs that versions use, in order."""
    query = (
        select(blobs.c.id)
        .join(blob_refs, blob_refs.c.blob_id == blobs.c.id)
        .where(blobs.c.valid.is_(False), _USED)
        .order_by(blobs.c.id)
    )
    return [BlobId(blob_id) for blob_id in connection.execute(query).scalars()]


def replaceable(connection: Connection, wanted: Collection[Blob]) -> set[BlobId]:
    """Return which of these blobs still have the object that was read, and are not doomed."""
    found: set[BlobId] = set()
    uids = {blob.id: blob.uid for blob in wanted}
    for batch in batches(sorted(uids)):
        there = blobs.c.id.in_(batch) & blobs.c.doomed_at.is_(None)
        rows = connection.execute(select(blobs.c.id, blobs.c.uid).where(there))
        found.update(BlobId(row.id) for row in rows if row.uid == uids[BlobId(row.id)])
    return found


def pages_with(connection: Connection, wanted: set[BlobId]) -> set[PageId]:
    """Return the pages of all block maps that contain one of these blobs, in one pass over all pages.

    Damaged pages are skipped, because their content is unknown.
    """
    found: set[PageId] = set()
    for row in all_pages(connection):
        with suppress(DamagedPageError):
            if not wanted.isdisjoint(unpack(row.entries)):
                found.add(PageId(row.id))
    return found


def versions_with(connection: Connection, page_ids: Collection[PageId]) -> set[VersionId]:
    """Return the versions that have one of these pages."""
    found: set[VersionId] = set()
    for batch in batches(sorted(page_ids)):
        query = select(version_pages.c.version_id).where(version_pages.c.page_id.in_(batch)).distinct()
        found.update(VersionId(version_id) for version_id in connection.execute(query).scalars())
    return found


def mark_damaged(connection: Connection, version_ids: Iterable[VersionId], found_at: datetime) -> set[VersionId]:
    """Make the valid ones of these versions invalid; return them. Call this in a write transaction."""
    marked: set[VersionId] = set()
    for batch in batches(sorted(version_ids)):
        valid = versions.c.id.in_(batch) & (versions.c.status == VersionStatus.VALID.value)
        changed = list(map(VersionId, connection.execute(select(versions.c.id).where(valid)).scalars()))
        if not changed:
            continue
        connection.execute(delete(damaged_versions).where(damaged_versions.c.version_id.in_(changed)))
        rows = [{"version_id": version_id, "found_at": found_at} for version_id in changed]
        connection.execute(insert(damaged_versions), rows)
        status = update(versions).where(versions.c.id.in_(changed)).values(status=VersionStatus.INVALID.value)
        connection.execute(status)
        note_versions(connection, changed)
        marked.update(changed)
    return marked


def is_whole(connection: Connection, version: Version, block_size: int) -> bool:
    """Return whether a complete version has all its blocks and none of its blobs is known to be damaged.

    If the version was valid until damage was found, that is enough. Otherwise a scrub must have read all its blobs.

    Raises:
        DatabaseError: the database cannot be read.
    """
    found = blobs if was_valid(connection, version.id) else blobs.join(blob_checks)
    blocks = block_count(version.size_bytes, block_size)
    for page_no, _ in list_pages(connection, version.id):
        if page_no >= page_count(blocks):
            return False
        try:
            entries = page_entries(connection, version, page_no, blocks)
        except DamagedPageError:
            return False
        if ABSENT in entries:
            return False
        last = BlockIndex(page_no * PAGE_ENTRIES + len(entries) - 1)
        for ids, size in (
            ({entry for entry in entries[:-1] if entry > HOLE}, block_size),
            ({entry for entry in entries[-1:] if entry > HOLE}, block_length(last, version.size_bytes, block_size)),
        ):
            for batch in batches(sorted(ids)):
                whole = and_(blobs.c.id.in_(batch), blobs.c.valid, blobs.c.size == size)
                query = select(func.count()).select_from(found).where(whole)
                if connection.execute(query).scalar_one() != len(batch):
                    return False
    return True


def damage_found_at(connection: Connection, version_id: VersionId) -> datetime | None:
    """Return when damage was found in a version that had been valid; None if that did not happen."""
    query = select(damaged_versions.c.found_at).where(damaged_versions.c.version_id == version_id)
    return connection.execute(query).scalar_one_or_none()


def was_valid(connection: Connection, version_id: VersionId) -> bool:
    """Return whether a version was valid until damage was found in it."""
    query = select(damaged_versions.c.version_id).where(damaged_versions.c.version_id == version_id)
    return connection.execute(query).first() is not None


def insert_damage(connection: Connection, version_id: VersionId, found_at: datetime) -> None:
    """Record that a newly inserted, invalid version was valid until damage was found in it."""
    connection.execute(insert(damaged_versions).values(version_id=version_id, found_at=found_at))


def versions_valid_before_damage(connection: Connection) -> set[VersionId]:
    """Return the versions that were valid until damage was found in them."""
    return {VersionId(version_id) for version_id in connection.execute(select(damaged_versions.c.version_id)).scalars()}


def backup_ended(connection: Connection, version: Version) -> bool:
    """Return whether the backup of a version is known to have finished: it was valid once, or has statistics."""
    has_statistics = exists().where(stats.c.version_uid == version.uid)
    return was_valid(connection, version.id) or bool(connection.execute(select(has_statistics)).scalar_one())


def mark_valid(connection: Connection, version_id: VersionId) -> bool:
    """Make an invalid version valid; return whether it was still invalid. Call this in a write transaction."""
    invalid = (versions.c.id == version_id) & (versions.c.status == VersionStatus.INVALID.value)
    note_version(connection, version_id)
    changed = connection.execute(update(versions).where(invalid).values(status=VersionStatus.VALID.value)).rowcount
    connection.execute(delete(damaged_versions).where(damaged_versions.c.version_id == version_id))
    return changed == 1
