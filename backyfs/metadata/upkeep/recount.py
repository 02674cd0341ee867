"""Count all references anew, and put right those that are wrong, while others go on changing them.

Pages are counted by the database: those that look wrong are counted once more in the transaction that corrects them.
Uses of blobs are in the pages, which take too long to read within a transaction that others wait for. So they are
counted in a snapshot; and as pages never change, what has happened since is the pages that are gone, which the
snapshot still has, and those that are new. The transaction that corrects reads these, and so knows the uses as they
are while nobody can change them.

Memory: 4 bytes for each id that was ever given to a blob, 8 bytes for each page, and the packed pages that were made
meanwhile.
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
from backyfs.metadata.maps.blockmap import HOLE, check_digest, unpack
from backyfs.model import PageId

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from backyfs.metadata.db.database import Connection
    from backyfs.metadata.db.idarray import Numbers

_PAGES_AT_ONCE = 64
_ROWS_AT_ONCE = 20_000

_STATES = select(blobs.c.id, blobs.c.doomed_at.is_not(None).label("doomed"), blob_refs.c.refs).outerjoin(
    blob_refs, blob_refs.c.blob_id == blobs.c.id
)


@dataclass(slots=True)
class BlobUses:
    """How many pages contain each blob, by its id, and which pages were counted."""

    ids: BlobIds
    counts: Numbers
    counted: array[int]  # pages of the snapshot, in order
    beyond: dict[int, int] = field(default_factory=dict)   # blobs that had no row there: new ones, or none at all
    since: dict[int, Any] = field(default_factory=dict)  # pages that were made after it
    gone: set[int] = field(default_factory=set)            # pages of the snapshot that were removed since

    def of(self, blob_id: int) -> int:
        """Return how many pages contain a blob."""
        try:
            return self.counts[blob_id]
        except IndexError:
            return self.beyond.get(blob_id, 0)

    def add(self, blob_id: int, pages: int) -> None:
        """Count pages more, or less."""
        try:
            self.counts[blob_id] += pages
        except IndexError:
            self.beyond[blob_id] = self.beyond.get(blob_id, 0) + pages

    def without_row(self, start: int, stop: int) -> Iterator[int]:
        """Yield the ids of [start, stop), where no row is, that pages name; `beyond` may have some of them."""
        return iter(()) if self.ids.is_sparse else (blob_id for blob_id in range(start, stop) if self.counts[blob_id])


def wrong_pages(connection: Connection) -> list[PageId]:
    """Return the pages whose references are not as many as the rows of `version_pages` that name them."""
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
    """Count these pages once more and correct them; return how many were wrong. To be called in a write transaction."""
    corrected = 0
    for page_id in page_ids:
        query = select(func.count()).select_from(version_pages).where(version_pages.c.page_id == page_id)
        uses = connection.execute(query).scalar_one()
        wrong = (pages.c.id == page_id) & (pages.c.refs != uses)
        corrected += connection.execute(update(pages).where(wrong).values(refs=uses)).rowcount
    return corrected


def count_uses(snapshot: Connection, check: Callable[[], None]) -> BlobUses:
    """Count the uses of all blobs in a transaction that sees one state until its end; `check` may end it early.

    Raises:
        DatabaseError: a page is damaged: what it contains is not known, so nothing may be corrected.
    """
    ids = BlobIds(snapshot)
    uses = BlobUses(ids, ids.numbers("I"), array("q"))
    query = select(pages.c.id, pages.c.entries, pages.c.digest).order_by(pages.c.id).limit(_PAGES_AT_ONCE)
    last = 0
    while batch := snapshot.execute(query.where(pages.c.id > last)).all():
        check()
        for row in batch:
            _count(uses, row, 1)
            uses.counted.append(row.id)
        last = batch[-1].id
    return uses


def catch_up(connection: Connection, snapshot: Connection, uses: BlobUses) -> None:
    """Count what has changed since the snapshot, which is still open. To be called in a write transaction.

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
    # Ids of pages are given in order, by transactions that follow each other.
    newest = uses.counted[-1] if uses.counted else 0
    new = [page_id for page_id in now if page_id > newest and page_id not in uses.since]
    for batch in batches(new):
        for row in connection.execute(select(pages.c.id, pages.c.entries, pages.c.digest).where(pages.c.id.in_(batch))):
            _count(uses, row, 1)
            uses.since[row.id] = row


def wrong_blobs(snapshot: Connection, uses: BlobUses) -> tuple[array[int], array[int]]:
    """Return the blobs whose references are wrong in the snapshot, and the ids that pages name and that have no row."""
    wrong, lost = array("q"), array("q")
    last = 0
    query = _STATES.order_by(blobs.c.id).limit(_ROWS_AT_ONCE)
    while rows := snapshot.execute(query.where(blobs.c.id > last)).all():
        for row in rows:
            lost.extend(uses.without_row(last + 1, row.id))
            last = row.id
            if not _is_right(row, uses):
                wrong.append(row.id)
    lost.extend(sorted(uses.beyond))
    return wrong, lost


def correct_blobs(connection: Connection, uses: BlobUses, blob_ids: Sequence[int]) -> int:
    """Correct the references of blobs, after `catch_up` in the same transaction; return how many were wrong.

    A doomed blob that pages contain is doomed no more.
    """
    corrected = 0
    for row in connection.execute(_STATES.where(blobs.c.id.in_(blob_ids))).all():
        if _is_right(row, uses):
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


def _is_right(row: Any, uses: BlobUses) -> bool:
    if row.doomed:
        return row.refs is None and not uses.of(row.id)
    return bool(row.refs == uses.of(row.id))


def _count(uses: BlobUses, page: Any, sign: int) -> None:
    try:
        entries = unpack(page.entries)
        check_digest(entries, page.digest)
    except DatabaseError as error:
        raise DatabaseError(
            f"{error} (page number {page.id}); what it names is not known, so no reference is corrected and nothing "
            "deleted. `backyfs recover` rebuilds the database from the catalog in the storage"
        ) from error
    for blob_id in {entry for entry in entries if entry > HOLE}:
        uses.add(blob_id, sign)
