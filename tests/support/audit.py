"""Check a whole repository against the promises of docs/internals/design.md: counts, references, objects."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sqlalchemy import delete, func, select, text, update

from backyfs.images.reader import ImageReader
from backyfs.metadata.db.tables import blob_refs, blobs, jobs, pages, version_pages
from backyfs.metadata.maps.blockmap import HOLE, unpack
from backyfs.metadata.records.versions import list_versions
from tests.support.repositories import expect_restored
from tests.support.stored import blob_uids

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import Connection

    from backyfs.model import Version, VersionStatus
    from backyfs.repository import Repository


def audit(repository: Repository) -> None:
    """Fail if a count is wrong, a page names a missing blob, or a blob has no object."""
    with repository.database.read() as connection:
        if connection.dialect.name == "sqlite":
            assert connection.execute(text("PRAGMA integrity_check")).scalar() == "ok"
            assert connection.execute(text("PRAGMA foreign_key_check")).all() == []
        page_uses = Counter(connection.execute(select(version_pages.c.page_id)).scalars())
        blob_uses: Counter[int] = Counter()
        for row in connection.execute(select(pages)):
            assert row.refs == page_uses[row.id]
            blob_uses.update({entry for entry in unpack(row.entries) if entry > HOLE})
        known = {row.id: row for row in connection.execute(select(blobs))}
        counted = {row.blob_id: row.refs for row in connection.execute(select(blob_refs))}
    assert counted == {blob_id: blob_uses[blob_id] for blob_id, row in known.items() if row.doomed_at is None}
    assert set(blob_uses) <= set(known)
    assert {row.uid for row in known.values() if row.doomed_at is None} <= set(blob_uids(repository.blocks.storage))


def content_of(repository: Repository, version: Version) -> bytes:
    """Return the bytes of a version, after checking all of them."""
    return ImageReader(repository, version).pread(0, version.size_bytes)


def count_blobs(repository: Repository) -> int:
    """Return how many blobs the database has."""
    with repository.database.read() as connection:
        return connection.execute(select(func.count()).select_from(blobs)).scalar_one()


def count_jobs(repository: Repository) -> int:
    """Return how many jobs are registered."""
    with repository.database.read() as connection:
        return connection.execute(select(func.count()).select_from(jobs)).scalar_one()


def doom(connection: Connection, *blob_ids: int) -> None:
    """Doom blobs, as a cleanup does."""
    connection.execute(update(blobs).where(blobs.c.id.in_(blob_ids)).values(doomed_at=datetime.now(UTC)))
    connection.execute(delete(blob_refs).where(blob_refs.c.blob_id.in_(blob_ids)))


def versions_of(repository: Repository) -> list[Version]:
    """Return all versions, in the order of a list."""
    with repository.database.read() as connection:
        return list_versions(connection)


def statuses_of(repository: Repository) -> list[VersionStatus]:
    """Return the status of each version."""
    return [version.status for version in versions_of(repository)]


def expect_exact(repository: Repository, version: Version, image: Path) -> None:
    """Fail unless a version is restored as the image that was backed up, and the repository is in order."""
    expect_restored(repository, version, image)
    audit(repository)
