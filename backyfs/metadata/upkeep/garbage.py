"""Find and remove garbage: pages that no version uses, blobs that no page contains, doomed blobs.

The order of removal is the invariant. A page without a row of `version_pages` is removed in the transaction that lowers
the counts of its blobs. A blob that no page contains is doomed in a transaction in which nobody can begin to use it.
After that its object is deleted, and finally its row.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, delete, func, insert, select, true, update
from sqlalchemy.exc import IntegrityError

from backyfs.errors import DatabaseError
from backyfs.metadata.db.batches import batches
from backyfs.metadata.db.tables import blob_refs, blobs, pages
from backyfs.metadata.maps.blockmap import HOLE, all_pages, remove_unused_page, unpack
from backyfs.model import BlobId, BlobUid, PageId
from backyfs.remedies import Advice

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from datetime import datetime

    from sqlalchemy import ColumnElement

    from backyfs.metadata.db.database import Connection

_ROWS_AT_ONCE = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class DoomedBlob:
    """A blob whose object must be deleted."""

    id: BlobId
    uid: BlobUid
    stored_size: int | None  # bytes of the object; None: unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredOrphan:
    """An object that had no row when it was listed."""

    uid: BlobUid
    stored_size: int  # bytes


@dataclass(frozen=True, slots=True)
class Cutoffs:
    """Until when a blob must have been stored to be old enough."""

    unused: datetime         # to be doomed if it is unused; it must have been stored before that time
    doomed: datetime | None  # to be deleted if it is doomed; None: at any time


@dataclass(frozen=True, slots=True, kw_only=True)
class LivingBlob:
    """A blob whose object should exist."""

    id: BlobId
    uid: BlobUid


@dataclass(frozen=True, slots=True, kw_only=True)
class Garbage:
    """The amount of garbage."""

    pages: int
    blobs: int         # doomed blobs, and blobs that would be doomed
    stored_bytes: int  # of their objects, if known
    young_blobs: int   # unused and doomed blobs that are kept for now, because they are too young


# A literal 0, as in the condition of the index: with a parameter, SQLite would not use the index.
_UNUSED_PAGES = select(pages.c.id).where(pages.c.refs == 0).order_by(pages.c.id).limit(bindparam("count"))
_UNUSED_BLOBS = (
    select(blobs.c.id)
    .join(blob_refs, blob_refs.c.blob_id == blobs.c.id)
    .where(blob_refs.c.refs == 0, blobs.c.doomed_at.is_(None))
)
_DOOMED = (
    select(blobs.c.id, blobs.c.uid, blobs.c.stored_size)
    .where(blobs.c.doomed_at.is_not(None), blobs.c.id > bindparam("last"))
    .order_by(blobs.c.id)
    .limit(bindparam("count"))
)


def remove_unused_pages(connection: Connection, count: int) -> int:
    """Remove up to `count` unused pages and update the counts; return how many. Call this in a write transaction.

    Raises:
        DatabaseError: a page is damaged, or a version uses one of them although its count is 0.
    """
    page_ids = connection.execute(_UNUSED_PAGES, {"count": count}).scalars().all()
    try:
        return sum(remove_unused_page(connection, PageId(page_id)) for page_id in page_ids)
    except IntegrityError as error:  # a foreign key; the transaction will be rolled back
        raise DatabaseError(
            "is counted as unused but a version uses it",
            subject="a page of a block map",
            remedy=Advice.CLEAN_UP_FULLY(),
        ) from error


def doom_unused_blobs(
    connection: Connection, *, older_than: datetime, now: datetime, after: BlobId, count: int
) -> list[BlobId]:
    """Doom the next blobs that no page contains and that were stored before a time; return them, in order.

    From now on, no command finds them, and pages that contain one cannot be committed. Call this in a write
    transaction.
    """
    query = _UNUSED_BLOBS.where(blobs.c.created_at < older_than, blobs.c.id > after).order_by(blobs.c.id).limit(count)
    doomed = [BlobId(blob_id) for blob_id in connection.execute(query).scalars()]
    for batch in batches(doomed):
        connection.execute(update(blobs).where(blobs.c.id.in_(batch)).values(doomed_at=now))
        connection.execute(delete(blob_refs).where(blob_refs.c.blob_id.in_(batch)))
    return doomed


def doomed_blobs(connection: Connection, cutoffs: Cutoffs, after: BlobId, count: int) -> list[DoomedBlob]:
    """Return the next doomed blobs that may be deleted, by id."""
    rows = connection.execute(_DOOMED.where(_is_deletable(cutoffs)), {"last": after, "count": count})
    return [DoomedBlob(id=BlobId(row.id), uid=BlobUid(row.uid), stored_size=row.stored_size) for row in rows]


def measure_doomed(connection: Connection, cutoffs: Cutoffs) -> tuple[int, int]:
    """Return the number of doomed blobs that may be deleted, and the total size of their objects where it is known."""
    sizes = func.coalesce(func.sum(blobs.c.stored_size), 0)
    doomed = select(func.count(), sizes).where(blobs.c.doomed_at.is_not(None), _is_deletable(cutoffs))
    many, stored = connection.execute(doomed).one()
    return many, int(stored)


def count_young(connection: Connection, cutoffs: Cutoffs) -> int:
    """Return the number of unused and doomed blobs that are too young to be deleted."""
    unused = _UNUSED_BLOBS.where(blobs.c.created_at >= cutoffs.unused).subquery()
    many = connection.execute(select(func.count()).select_from(unused)).scalar_one()
    return many + _count_young_doomed(connection, cutoffs)


def _count_young_doomed(connection: Connection, cutoffs: Cutoffs) -> int:
    young = select(func.count()).where(blobs.c.doomed_at.is_not(None), ~_is_deletable(cutoffs))
    return int(connection.execute(young).scalar_one())


def _is_deletable(cutoffs: Cutoffs) -> ColumnElement[bool]:
    return true() if cutoffs.doomed is None else blobs.c.created_at <= cutoffs.doomed


def forget_doomed(connection: Connection, blob_ids: Iterable[BlobId]) -> int:
    """Remove the rows of doomed blobs whose objects are deleted; return how many. Call this in a write transaction."""
    removed = 0
    for batch in batches(blob_ids):
        here = blobs.c.id.in_(batch) & blobs.c.doomed_at.is_not(None)
        removed += connection.execute(delete(blobs).where(here)).rowcount
    return removed


def doom_orphans(
    connection: Connection, orphans: Iterable[StoredOrphan], *, stored_at: datetime, now: datetime
) -> list[BlobUid]:
    """Insert doomed rows for objects that have no row, so that they are deleted like others; return these objects.

    From now on, nobody can insert another row for them. `stored_at` is a time by which all of them were stored. Call
    this in a write transaction.
    """
    doomed: list[BlobUid] = []
    for batch in batches(orphans):
        uids = [orphan.uid for orphan in batch]
        known = set(connection.execute(select(blobs.c.uid).where(blobs.c.uid.in_(uids))).scalars())
        rows = [
            {
                "uid": orphan.uid,
                "fingerprint": None,
                "size": 0,  # of the block: unknown
                "stored_size": orphan.stored_size,
                "encryption_version": 0,
                "wrapped_key": None,
                "valid": True,
                "created_at": stored_at,
                "doomed_at": now,
            }
            for orphan in batch
            if orphan.uid not in known
        ]
        if rows:
            connection.execute(insert(blobs), rows)
        doomed += [BlobUid(str(row["uid"])) for row in rows]
    return doomed


def living_blobs(connection: Connection, after: BlobId, last: BlobId, prefix: str, count: int) -> list[LivingBlob]:
    """Return the next blobs that are not doomed, up to the id `last`, whose uids begin with a prefix."""
    query = select(blobs.c.id, blobs.c.uid).where(
        blobs.c.doomed_at.is_(None),
        blobs.c.id > after,
        blobs.c.id <= last,
        func.substr(blobs.c.uid, 1, len(prefix)) == prefix,  # LIKE would ignore case
    )
    rows = connection.execute(query.order_by(blobs.c.id).limit(count))
    return [LivingBlob(id=BlobId(row.id), uid=BlobUid(row.uid)) for row in rows]


def measure_garbage(connection: Connection, cutoffs: Cutoffs) -> Garbage:
    """Measure what a cleanup would remove now.

    Memory: about 100 bytes per blob in unused pages.

    Raises:
        DatabaseError: a page is damaged.
    """
    uses: Counter[int] = Counter()
    unused_pages = 0
    for row in all_pages(connection, pages.c.refs == 0):
        uses.update({entry for entry in unpack(row.entries) if entry > HOLE})
        unused_pages += 1
    many, stored = measure_doomed(connection, cutoffs)
    young = _count_young_doomed(connection, cutoffs)
    for row in _unused_without(connection, uses):
        if row.created_at < cutoffs.unused:
            many, stored = many + 1, stored + (row.stored_size or 0)
        else:
            young += 1
    return Garbage(pages=unused_pages, blobs=many, stored_bytes=stored, young_blobs=young)


def _unused_without(connection: Connection, uses: Mapping[int, int]) -> Iterator[Any]:
    """Yield size and age of the blobs that no page contains once the `uses` by unused pages are gone."""
    columns = (blobs.c.stored_size, blobs.c.created_at)
    query = _UNUSED_BLOBS.with_only_columns(*columns, maintain_column_froms=True)
    yield from connection.execute(query.execution_options(yield_per=_ROWS_AT_ONCE))
    for batch in batches(uses):
        counted = (
            select(blobs.c.id, blob_refs.c.refs, *columns)
            .join(blob_refs, blob_refs.c.blob_id == blobs.c.id)
            .where(blobs.c.id.in_(batch), blobs.c.doomed_at.is_(None))
        )
        yield from (row for row in connection.execute(counted) if row.refs == uses[row.id])
