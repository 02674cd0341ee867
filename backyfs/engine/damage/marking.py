"""Mark the versions that use damaged blobs, report the ranges, and make versions valid again once they are whole."""

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
class MarkedDamage:
    """What was reported and marked."""

    blobs: int  # damaged and in use; the others were removed with their versions in the meantime
    versions: tuple[VersionUid, ...]  # valid until now


def mark_versions(
    repository: Repository,
    found: Mapping[BlobId, str],
    on_damage: Callable[[Version, DamagedRange], None],
    faults: Collection[tuple[Version, DamagedRange]] = (),
) -> MarkedDamage:
    """Make valid versions invalid if they use a damaged blob. All are marked before the first range is reported.

    `found` maps damaged blobs to what is wrong with them; `on_damage` is called for every version that uses them.
    `faults` are ranges that are damaged for other reasons.

    Raises:
        DatabaseError: the marks cannot be stored.
    """
    with repository.database.read() as connection:
        damaged = known_damage(connection) | found.keys()
        pages = pages_with(connection, damaged) if damaged else set()
        affected = versions_with(connection, pages) | {version.id for version, _ in faults}
    if not affected:
        return MarkedDamage(blobs=0, versions=())
    with repository.database.write() as connection:
        marked = mark_damaged(connection, affected, datetime.now(UTC))
    for version, damage in faults:
        on_damage(version, damage)
    blobs, versions = _report(repository, found, on_damage, pages, affected)
    return MarkedDamage(blobs=blobs, versions=tuple(version.uid for version in versions if version.id in marked))


def report_damage(
    repository: Repository,
    found: Mapping[BlobId, str],
    on_damage: Callable[[Version, DamagedRange], None],
) -> None:
    """Report the ranges of all versions that use these blobs, without marking anything.

    Raises:
        DatabaseError: the block maps cannot be read.
    """
    with repository.database.read() as connection:
        pages = pages_with(connection, set(found)) if found else set()
        affected = versions_with(connection, pages)
    _report(repository, found, on_damage, pages, affected)


def _report(
    repository: Repository,
    found: Mapping[BlobId, str],
    on_damage: Callable[[Version, DamagedRange], None],
    pages: Collection[PageId],
    affected: Collection[VersionId],
) -> tuple[int, list[Version]]:
    """Report ranges; return how many of the blobs are in use, and the affected versions."""
    reported = BlobSet()
    with repository.database.read() as connection:
        versions = [version for version in list_versions(connection) if version.id in affected]
        for version in versions:
            for blob_id, damage in _damage(connection, version, repository.block_size, pages, found):
                reported.add(blob_id)
                on_damage(version, damage)
    return sum(1 for _ in reported), versions


def revive_versions(
    repository: Repository, job: Job, chosen: Collection[VersionId] | None
) -> tuple[VersionUid, ...]:
    """Make invalid versions valid again if they are no longer damaged, and return them. `chosen` limits the versions.

    A scrub has read all their blobs, now or earlier, or they were valid until damage was found.

    Raises:
        DatabaseError: the change cannot be stored.
        JobLostError: another command considered this one dead.
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
            if not damaged_blobs(connection) <= damaged:  # a scrub has found more, possibly in this one
                break
            if mark_valid(connection, version.id):
                uids.append(version.uid)
    return tuple(uids)


def revive_repaired_versions(repository: Repository, job: Job) -> tuple[VersionUid, ...]:
    """Make versions valid again if they were valid until damage was found, and are now whole; return them.

    Raises:
        DatabaseError: the change cannot be stored.
        JobLostError: another command considered this one dead.
    """
    with repository.database.read() as connection:
        chosen = versions_valid_before_damage(connection)
    return revive_versions(repository, job, chosen) if chosen else ()


def _may_be_valid(connection: Connection, version: Version) -> bool:
    if backup_ended(connection, version):
        return True
    # Some releases of backy2 wrote all rows of a version before its backup began.
    _log.warning(
        "version %s has no damage but stays invalid: nothing shows that its backup ever ended; compare it with its "
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
    """Yield the damaged ranges of a version in order; neighbouring blocks of the same blob are one range."""
    for page_no, page_id in list_pages(connection, version.id):
        if page_id in pages:
            try:
                entries = page_entries(connection, version, page_no, block_count(version.size_bytes, block_size))
            except DamagedPageError:
                continue  # reported for the page itself
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
