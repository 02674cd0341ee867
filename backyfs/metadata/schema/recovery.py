"""Fill a new database from the catalog: the same rows as before, with new ids.

Until the recovery is finished, the revision of the database says so, and no other command uses it as a repository. An
unfinished recovery starts again from the beginning.
"""

from __future__ import annotations

import os
import uuid
from array import array
from typing import TYPE_CHECKING

from sqlalchemy import delete, func, inspect, select, text, update

from backyfs.geometry import page_length
from backyfs.metadata.catalog.index import save_index_state
from backyfs.metadata.catalog.notes import NoteKind, save_catalog_key
from backyfs.metadata.db.batches import batches
from backyfs.metadata.db.database import continue_ids, sqlite_path
from backyfs.metadata.db.revisions import HEAD, RECOVERING
from backyfs.metadata.db.tables import blobs, catalog_notes, pages, version_pages, versions
from backyfs.metadata.maps.blockmap import ABSENT, HOLE, add_recovered_page, new_entries
from backyfs.metadata.records.blobs import find_by_uid, insert_numbered_blobs
from backyfs.metadata.records.identity import add_key_slot, save_identity, save_identity_tag, save_key_date
from backyfs.metadata.schema.schema import create_file, create_unfinished_tables, not_empty, stamp
from backyfs.model import BlobId, PageId, PageNumber, VersionUid

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from backyfs.metadata.catalog.index import IndexState
    from backyfs.metadata.db.database import Connection, Database
    from backyfs.metadata.records.identity import Identity
    from backyfs.model import BlobRecord, BlobUid, KeySlot, VersionId


_IDS_AT_ONCE = 4096


def begin_recovery(database: Database) -> None:
    """Create the tables in an empty database, or again in one with an unfinished recovery.

    Raises:
        SchemaError: the database contains other tables.
        DatabaseError: it cannot be created.
    """
    path = sqlite_path(database.engine.url)
    if path is None or not os.path.exists(path):
        create_file(database)
    with database.begin() as connection:
        names = set(inspect(connection).get_table_names())
        if "alembic_version" in names:
            revision = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
            if revision != RECOVERING and (revision is not None or names != {"alembic_version"}):
                raise not_empty(database.engine.url)
        elif names:
            raise not_empty(database.engine.url)
        create_unfinished_tables(connection, RECOVERING)
    database.use_wal()  # not before: a refused file must not change


def known_pages(connection: Connection, uids: Iterable[str]) -> dict[str, PageId]:
    """Return the ids of the pages with these uids that exist, by uid."""
    found: dict[str, PageId] = {}
    for batch in batches(uids):
        rows = connection.execute(select(pages.c.uid, pages.c.id).where(pages.c.uid.in_(batch)))
        found.update((row.uid, PageId(row.id)) for row in rows)
    return found


class PageFiller:
    """Inserts pages with their blobs. It assigns the ids, so no other command may insert blobs."""

    def __init__(self, created_at: datetime) -> None:
        """Begin in an empty database. Blobs get the date `created_at`, because their own is lost."""
        self._created_at = created_at
        self.blobs = 0

    def insert(self, connection: Connection, uid: str, entries: Sequence[int], blobs: Sequence[BlobRecord]) -> PageId:
        """Insert a page from the catalog, with the blobs that are still missing, and return its id.

        Entries are numbers of `blobs`, counted from 1, or blockmap.HOLE or blockmap.ABSENT.
        """
        ids = self._ids(connection, blobs)
        by_number = [HOLE, *(ids[blob.uid] for blob in blobs)]
        entries = array("q", (entry if entry <= HOLE else by_number[entry] for entry in entries))
        return add_recovered_page(connection, uid, entries)

    def _ids(self, connection: Connection, wanted: Sequence[BlobRecord]) -> Mapping[BlobUid, BlobId]:
        ids = {uid: known.id for uid, known in find_by_uid(connection, [blob.uid for blob in wanted]).items()}
        new = []
        for blob in wanted:
            if blob.uid not in ids:
                self.blobs += 1
                ids[blob.uid] = BlobId(self.blobs)
                new.append((ids[blob.uid], blob))
        insert_numbered_blobs(connection, new, self._created_at)
        return ids


def insert_absent_page(connection: Connection, page_no: PageNumber, blocks: int) -> PageId:
    """Insert a page of lost blocks, or return an existing one."""
    entries = new_entries(page_length(page_no, blocks), ABSENT)
    return add_recovered_page(connection, str(uuid.uuid4()), entries, published=False)


def forget_note(connection: Connection, uid: VersionUid) -> None:
    """Remove the notes of a version, because it matches the catalog."""
    kinds = [NoteKind.VERSION.value, NoteKind.INDEX.value]
    here = catalog_notes.c.kind.in_(kinds) & (catalog_notes.c.uid == uid)
    connection.execute(delete(catalog_notes).where(here))


def blob_ids_after(connection: Connection, last: BlobId) -> list[BlobId]:
    """Return the next few thousand ids of blobs; an empty list means that there are no more."""
    query = select(blobs.c.id).where(blobs.c.id > last).order_by(blobs.c.id).limit(_IDS_AT_ONCE)
    return [BlobId(blob_id) for blob_id in connection.execute(query).scalars()]


def version_uids(connection: Connection, version_ids: Iterable[VersionId]) -> list[VersionUid]:
    """Return the uids of versions, in order."""
    found: list[VersionUid] = []
    for batch in batches(sorted(version_ids)):
        query = select(versions.c.uid).where(versions.c.id.in_(batch)).order_by(versions.c.id)
        found.extend(map(VersionUid, connection.execute(query).scalars()))
    return found


def count_pages(connection: Connection) -> None:
    """Count the uses of all pages."""
    uses = select(func.count()).select_from(version_pages).where(version_pages.c.page_id == pages.c.id)
    connection.execute(update(pages).values(refs=uses.scalar_subquery()))


def end_recovery(
    connection: Connection,
    identity: Identity,
    slots: Iterable[KeySlot],
    *,
    key_made_at: datetime | None,
    catalog_key: str,
    index: IndexState,
    tag: bytes | None,
) -> None:
    """Make the database a repository. Call this in a transaction, after everything else."""
    count_pages(connection)
    continue_ids(connection, blobs)
    for slot in slots:
        add_key_slot(connection, slot)
    save_identity(connection, identity)
    save_identity_tag(connection, tag)
    if key_made_at is not None:
        save_key_date(connection, key_made_at)
    save_catalog_key(connection, catalog_key)
    save_index_state(connection, index)
    stamp(connection, HEAD)
