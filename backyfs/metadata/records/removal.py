"""Remove a version from the database; its pages and blobs stay for a cleanup.

Whoever begins to hold a version waits for a removal that is under way, and then finds it gone: both lock its row first.
Invariant: `pages.refs` goes down with the rows of `version_pages` that it counts, in the same transaction.
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
    """Keep others from holding or changing a version until the transaction ends; return False if it is gone.

    To be called first in a transaction: what MariaDB reads afterwards is as it is under the lock.
    """
    row = select(versions.c.id).where(versions.c.id == version_id).with_for_update()
    return connection.execute(row).first() is not None


def remove_version(connection: Connection, version_id: VersionId) -> None:
    """Remove a version, with its tags and its part of the block map, and count. One that is gone is fine.

    What its backup did stays in `stats`. To be called in a write transaction, in which the caller has looked that
    nobody holds the version.
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
