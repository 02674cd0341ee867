"""Remove a version from the database. Its pages and blobs stay until a cleanup.

A command that wants to hold a version waits for a running removal, and then finds it gone: both lock its row first.
Invariant: `pages.refs` decreases in the same transaction as the rows of `version_pages` that it counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import delete, func, select, update

from backyfs.metadata.catalog.notes import note_listing
from backyfs.metadata.db.batches import batches
from backyfs.metadata.db.tables import pages, tags, version_pages, versions

if TYPE_CHECKING:
    from backyfs.metadata.db.database import Connection
    from backyfs.model import VersionId


def lock_version(connection: Connection, version_id: VersionId) -> bool:
    """Prevent others from holding or changing a version until the transaction ends; return False if it is gone.

    Call this first in a transaction, so that everything MariaDB reads afterwards is from under the lock.
    """
    row = select(versions.c.id).where(versions.c.id == version_id).with_for_update()
    return connection.execute(row).first() is not None


def remove_version(connection: Connection, version_id: VersionId) -> None:
    """Remove a version with its tags and block map, and update the counts. Do nothing if it is already gone.

    The statistics of its backup stay in `stats`. Call this in a write transaction in which the caller has made sure
    that no job holds the version.
    """
    here = version_pages.c.version_id == version_id
    # Not one UPDATE with subqueries: MariaDB before 11.1 would look at every page of the repository.
    query = select(version_pages.c.page_id, func.count().label("uses")).where(here).group_by(version_pages.c.page_id)
    uses: dict[int, list[int]] = {}
    for row in connection.execute(query):
        uses.setdefault(row.uses, []).append(row.page_id)
    connection.execute(delete(version_pages).where(here))
    for count, page_ids in uses.items():
        for batch in batches(page_ids):
            connection.execute(update(pages).where(pages.c.id.in_(batch)).values(refs=pages.c.refs - count))
    connection.execute(delete(tags).where(tags.c.version_id == version_id))
    note_listing(connection, version_id)
    connection.execute(delete(versions).where(versions.c.id == version_id))
