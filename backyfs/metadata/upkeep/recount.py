"""Recount all references and correct the wrong ones, while other commands keep changing them.

The database counts the references to pages. Those that look wrong are counted again in the transaction that corrects
them. References to blobs are inside the pages, which takes too long to read in a transaction that others wait for. So
they are counted in a snapshot. Pages never change, so all later changes are removed pages, which the snapshot still
has, and new pages. The correcting transaction reads these, and thus knows the current references while nobody can
change them.

Memory: 4 bytes per id ever given to a blob, 8 bytes per page, and the packed pages that are created in the meantime.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, func, insert, select, update

from backyfs.errors import DatabaseError
from backyfs.metadata.db.batches import batches
from backyfs.metadata.db.idarray import BlobIds
from backyfs.metadata.db.tables import blob_refs, blobs, pages, version_pages
from backyfs.metadata.maps.blockmap import HOLE, all_pages, check_digest, unpack
from backyfs.model import PageId
from backyfs.remedies import Advice

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from backyfs.metadata.db.database import Connection
    from backyfs.metadata.db.idarray import Numbers

_ROWS_AT_ONCE = 20_000

_STATES = select(blobs.c.id, blobs.c.doomed_at.is_not(None).label("doomed"), blob_refs.c.refs).outerjoin(
    blob_refs, blob_refs.c.blob_id == blobs.c.id
)


@dataclass(slots=True)
class BlobUses:
    """The number of pages that contain each blob, by id, and the pages that were counted."""

    ids: BlobIds
    counts: Numbers
    counted: array[int]  # pages of the snapshot, in order
    beyond: dict[int, int] = field(default_factory=dict)  # ids without a row in the snapshot: new blobs, or none
    since: dict[int, Any] = field(default_factory=dict)   # pages created after the snapshot
    gone: set[int] = field(default_factory=set)           # pages of the snapshot that were removed since

    def of(self, blob_id: int) -> int:
        """Return how many pages contain a blob."""
        try:
            return self.counts[blob_id]
        except IndexError:
            return self.beyond.get(blob_id, 0)

    def add(self, blob_id: int, pages: int) -> None:
        """Add `pages`, which may be negative, to the count of a blob."""
        try:
            self.counts[blob_id] += pages
        except IndexError:
            self.beyond[blob_id] = self.beyond.get(blob_id, 0) + pages

    def without_row(self, start: int, stop: int) -> Iterator[int]:
        """Yield the ids in [start, stop), which have no row, that pages contain. More of them may be in `beyond`."""
        return iter(()) if self.ids.is_sparse else (blob_id for blob_id in range(start, stop) if self.counts[blob_id])


def wrong_pages(connection: Connection) -> list[PageId]:
    """Return the pages whose count differs from the number of rows of `version_pages` that refer to them."""
    uses = func.count(version_pages.c.page_no)
    query = (
        select(pages.c.id)
        .outerjoin(version_pages, version_pages.c.page_id == pages.c.id)
        .group_by(pages.c.id, pages.c.refs)
        .having(pages.c.refs != uses)
        .order_by(pages.c.id)
    )
    return [PageId(page_id) for page_id in connection.execute(query).scalars()]


def correct_pages(connection: Connection, page_ids: Iterable[PageId]) -> int:
    """Recount and correct these pages; return how many were wrong. Call this in a write transaction."""
    corrected = 0
    for page_id in page_ids:
        query = select(func.count()).select_from(version_pages).where(version_pages.c.page_id == page_id)
        uses = connection.execute(query).scalar_one()
        wrong = (pages.c.id == page_id) & (pages.c.refs != uses)
        corrected += connection.execute(update(pages).where(wrong).values(refs=uses)).rowcount
    return corrected


def count_uses(snapshot: Connection, check: Callable[[], None]) -> BlobUses:
    """Count the uses of all blobs in a snapshot transaction. `check` is called regularly and may raise.

    Raises:
        DatabaseError: a page is damaged. Its content is unknown, so nothing may be corrected.
    """
    ids = BlobIds(snapshot)
    uses = BlobUses(ids, ids.numbers("I"), array("q"))
    for row in all_pages(snapshot):
        check()
        _count(uses, row, 1)
        uses.counted.append(row.id)
    return uses


def catch_up(connection: Connection, snapshot: Connection, uses: BlobUses) -> None:
    """Count the changes since the snapshot, which must still be open. Call this in a write transaction.

    Raises:
        DatabaseError: a page is damaged.
    """
    now = array("q", connection.execute(select(pages.c.id).order_by(pages.c.id)).scalars())
    there = set(now)
    gone = [page_id for page_id in uses.counted if page_id not in there and page_id not in uses.gone]
    for batch in batches(gone):
        for row in snapshot.execute(select(pages.c.id, pages.c.entries, pages.c.digest).where(pages.c.id.in_(batch))):
            _count(uses, row, -1)
    uses.gone.update(gone)
    for page_id in uses.since.keys() - there:
        _count(uses, uses.since.pop(page_id), -1)
    # Page ids are ascending, because the transactions that create them do not overlap.
    newest = uses.counted[-1] if uses.counted else 0
    new = [page_id for page_id in now if page_id > newest and page_id not in uses.since]
    for batch in batches(new):
        for row in connection.execute(select(pages.c.id, pages.c.entries, pages.c.digest).where(pages.c.id.in_(batch))):
            _count(uses, row, 1)
            uses.since[row.id] = row


def wrong_blobs(snapshot: Connection, uses: BlobUses) -> tuple[array[int], array[int]]:
    """Return the blobs with wrong counts in the snapshot, and the ids in pages that have no row."""
    wrong, lost = array("q"), array("q")
    last = 0
    query = _STATES.order_by(blobs.c.id).limit(_ROWS_AT_ONCE)
    while rows := snapshot.execute(query.where(blobs.c.id > last)).all():
        for row in rows:
            lost.extend(uses.without_row(last + 1, row.id))
            last = row.id
            if not _is_correct(row, uses):
                wrong.append(row.id)
    lost.extend(sorted(uses.beyond))
    return wrong, lost


def correct_blobs(connection: Connection, uses: BlobUses, blob_ids: Sequence[int]) -> int:
    """Correct the counts of blobs, after `catch_up` in the same transaction; return how many were wrong.

    A doomed blob that a page contains is no longer doomed.
    """
    corrected = 0
    for row in connection.execute(_STATES.where(blobs.c.id.in_(blob_ids))).all():
        if _is_correct(row, uses):
            continue
        corrected += 1
        count, counted = uses.of(row.id), blob_refs.c.blob_id == row.id
        if row.doomed and not count:
            connection.execute(delete(blob_refs).where(counted))
            continue
        if row.doomed:
            connection.execute(update(blobs).where(blobs.c.id == row.id).values(doomed_at=None))
        if row.refs is None:
            connection.execute(insert(blob_refs).values(blob_id=row.id, refs=count))
        else:
            connection.execute(update(blob_refs).where(counted).values(refs=count))
    return corrected


def _is_correct(row: Any, uses: BlobUses) -> bool:
    if row.doomed:
        return row.refs is None and not uses.of(row.id)
    return bool(row.refs == uses.of(row.id))


def _count(uses: BlobUses, page: Any, sign: int) -> None:
    try:
        entries = unpack(page.entries)
        check_digest(entries, page.digest)
    except DatabaseError as error:
        raise DatabaseError(
            f"{error.fact} (page number {page.id}). The blobs in it are unknown, so no count is corrected and nothing "
            "is deleted",
            subject=error.subject,
            remedy=Advice.RECOVER_FROM_CATALOG(),
        ) from error
    for blob_id in {entry for entry in entries if entry > HOLE}:
        uses.add(blob_id, sign)
