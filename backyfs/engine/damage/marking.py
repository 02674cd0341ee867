"""Mark the versions that damaged blobs belong to, name the ranges, and make versions valid again that are whole."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from typing import TYPE_CHECKING

from backyfs.errors import DamagedPageError
from backyfs.geometry import PAGE_ENTRIES, block_count, block_length
from backyfs.metadata.maps.blockmap import list_pages, page_entries
from backyfs.metadata.records.blobs import damaged_blobs, load_blobs
from backyfs.metadata.records.versions import list_versions
from backyfs.metadata.upkeep.checks import (
    backup_ended,
    is_whole,
    known_damage,
    mark_damaged,
    mark_valid,
    pages_with,
    versions_valid_before_damage,
    versions_with,
)
from backyfs.model import BlobId, BlockIndex, DamagedRange, VersionStatus
from backyfs.work.blobset import BlobSet

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from backyfs.metadata.db.database import Connection
    from backyfs.metadata.maps.blockmap import Entries
    from backyfs.model import PageId, PageNumber, Version, VersionId, VersionUid
    from backyfs.repository import Repository
    from backyfs.work.job import Job

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Marked:
    """What was told and marked."""

    blobs: int  # of those that were found, that a version uses; the others went with their versions meanwhile
    versions: tuple[VersionUid, ...]  # that were valid


def mark_versions(
    repository: Repository,
    found: Mapping[BlobId, str],
    tell: Callable[[Version, DamagedRange], None],
    faults: Collection[tuple[Version, DamagedRange]] = (),
) -> Marked:
    """Make the valid versions invalid that use a damaged blob. All are marked before a range is told.

    `found` are the blobs that are to be told, for every version that uses them, with what is the matter; `faults` are
    ranges that are damaged for other reasons.

    Raises:
        DatabaseError: that could not be stored.
    """
    with repository.database.read() as connection:
        damaged = known_damage(connection) | found.keys()
        pages = pages_with(connection, damaged) if damaged else set()
        affected = versions_with(connection, pages) | {version.id for version, _ in faults}
    if not affected:
        return Marked(blobs=0, versions=())
    with repository.database.write() as connection:
        marked = mark_damaged(connection, affected, datetime.now(UTC))
    for version, damage in faults:
        tell(version, damage)
    blobs, versions = _tell(repository, found, tell, pages, affected)
    return Marked(blobs=blobs, versions=tuple(version.uid for version in versions if version.id in marked))


def tell_damage(
    repository: Repository,
    found: Mapping[BlobId, str],
    tell: Callable[[Version, DamagedRange], None],
) -> None:
    """Tell the ranges of all versions that these blobs are, and mark nothing.

    Raises:
        DatabaseError: the block maps cannot be read.
    """
    with repository.database.read() as connection:
        pages = pages_with(connection, set(found)) if found else set()
        affected = versions_with(connection, pages)
    _tell(repository, found, tell, pages, affected)


def _tell(
    repository: Repository,
    found: Mapping[BlobId, str],
    tell: Callable[[Version, DamagedRange], None],
    pages: Collection[PageId],
    affected: Collection[VersionId],
) -> tuple[int, list[Version]]:
    """Return how many of the blobs are in use, and the affected versions."""
    told = BlobSet()
    with repository.database.read() as connection:
        versions = [version for version in list_versions(connection) if version.id in affected]
        for version in versions:
            for blob_id, damage in _damage(connection, version, repository.block_size, pages, found):
                told.add(blob_id)
                tell(version, damage)
    return sum(1 for _ in told), versions


def revive_versions(
    repository: Repository, job: Job, chosen: Collection[VersionId] | None
) -> tuple[VersionUid, ...]:
    """Make invalid versions valid again that have nothing damaged any more, of those that were chosen; return them.

    All their blobs have been read by a scrub, now or earlier, or they were valid until damage was found in them.

    Raises:
        DatabaseError: that could not be stored.
        JobLostError: another command took this one for dead.
    """
    with repository.database.read() as connection:
        damaged = damaged_blobs(connection)
        whole = [
            version
            for version in list_versions(connection)
            if version.status is VersionStatus.INVALID
            and (chosen is None or version.id in chosen)
            and is_whole(connection, version, repository.block_size)
            and _may_be_valid(connection, version)
        ]
    uids = []
    for version in whole:
        with job.write() as connection:
            if not damaged_blobs(connection) <= damaged:  # a scrub found more meanwhile, of this one for all we know
                break
            if mark_valid(connection, version.id):
                uids.append(version.uid)
    return tuple(uids)


def revive_repaired_versions(repository: Repository, job: Job) -> tuple[VersionUid, ...]:
    """Make versions valid again that were so until damage was found in them, and have none any more; return them.

    Raises:
        DatabaseError: that could not be stored.
        JobLostError: another command took this one for dead.
    """
    with repository.database.read() as connection:
        chosen = versions_valid_before_damage(connection)
    return revive_versions(repository, job, chosen) if chosen else ()


def _may_be_valid(connection: Connection, version: Version) -> bool:
    if backup_ended(connection, version):
        return True
    # Some releases of backy2 had all rows of a version there before its backup had begun.
    _log.warning(
        "version %s has no damage and stays invalid: nothing tells that its backup ever ended; compare it with its "
        "source, or remove it",
        version.uid,
    )
    return False


def _damage(
    connection: Connection,
    version: Version,
    block_size: int,
    pages: Collection[PageId],
    found: Mapping[BlobId, str],
) -> Iterator[tuple[BlobId, DamagedRange]]:
    """Yield the damaged ranges of a version in order; neighbours with the same blob are one."""
    for page_no, page_id in list_pages(connection, version.id):
        if page_id in pages:
            try:
                entries = page_entries(connection, version, page_no, block_count(version.size_bytes, block_size))
            except DamagedPageError:
                continue  # which is told of the page
            yield from _damage_of_page(connection, version, block_size, page_no, entries, found)


def _damage_of_page(
    connection: Connection,
    version: Version,
    block_size: int,
    page_no: PageNumber,
    entries: Entries,
    found: Mapping[BlobId, str],
) -> Iterator[tuple[BlobId, DamagedRange]]:
    here = {BlobId(entry) for entry in entries if BlobId(entry) in found}
    known = load_blobs(connection, sorted(here))
    position = 0
    for entry, group in groupby(entries):
        first, position = position, position + len(list(group))
        if BlobId(entry) in here:
            blob_id = BlobId(entry)
            name = f"blob {known[blob_id].uid}" if blob_id in known else f"blob number {blob_id}"
            last = BlockIndex(page_no * PAGE_ENTRIES + position - 1)
            yield blob_id, DamagedRange(
                start=(page_no * PAGE_ENTRIES + first) * block_size,
                stop=last * block_size + block_length(last, version.size_bytes, block_size),
                reason=f"{name} {found[blob_id]}",
            )
