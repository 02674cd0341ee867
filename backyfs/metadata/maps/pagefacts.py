"""Find faults of a page of a block map: in the page itself, or in the blobs that it contains."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sqlalchemy import func, select

from backyfs.errors import DamagedPageError
from backyfs.metadata.db.batches import batches
from backyfs.metadata.db.oddrows import sound_rows
from backyfs.metadata.db.tables import blobs, pages
from backyfs.metadata.maps.blockmap import ABSENT, HOLE, check_digest, unpack
from backyfs.model import BlobId, PageId

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from backyfs.metadata.db.database import Connection

_PAGES_AT_ONCE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class PageFacts:
    """The facts about a page that a check of block maps needs. They are small if the page is in order."""

    length: int                # entries; 0: unknown, because the page is damaged
    fault: str | None = None   # why the page cannot be read
    has_absent: bool = False   # it has blocks that were never backed up
    gone: frozenset[BlobId] = frozenset()    # blobs in the page that have no row
    doomed: frozenset[BlobId] = frozenset()  # blobs in the page that are about to be deleted
    odd_sizes: dict[BlobId, int] = field(default_factory=dict)  # of blobs whose size is not the block size
    has_blob_at_end: bool = False  # its last block is not a hole


def page_facts(
    connection: Connection, page_ids: Collection[PageId], block_size: int
) -> Iterator[tuple[PageId, PageFacts]]:
    """Yield the facts of pages that are in use.

    Raises:
        DatabaseError: the database cannot be read.
    """
    wanted = sorted(page_ids)
    for start in range(0, len(wanted), _PAGES_AT_ONCE):
        some = wanted[start : start + _PAGES_AT_ONCE]
        query = select(pages.c.id, pages.c.digest, pages.c.entries).where(pages.c.id.in_(some))
        rows = {PageId(row.id): row for row in connection.execute(query)}
        for page_id in some:
            row = rows.get(page_id)
            if row is None:
                yield page_id, PageFacts(length=0, fault=f"page {page_id} of the block map has no row in the database")
            else:
                yield page_id, _facts(connection, row.entries, row.digest, block_size)


def _facts(connection: Connection, packed: bytes, digest: bytes, block_size: int) -> PageFacts:
    try:
        entries = unpack(packed)
        check_digest(entries, digest)
    except DamagedPageError as error:
        return PageFacts(length=0, fault=str(error))
    named = sorted({BlobId(entry) for entry in entries if entry > HOLE})
    gone: set[BlobId] = set()
    doomed: set[BlobId] = set()
    odd: dict[BlobId, int] = {}
    for batch in batches(named):
        living = blobs.c.id.in_(batch) & blobs.c.doomed_at.is_(None)
        usual = select(func.count()).select_from(blobs).where(living, blobs.c.size == block_size)
        if connection.execute(usual).scalar_one() != len(batch):
            columns = select(blobs.c.id, blobs.c.size, blobs.c.doomed_at).where(blobs.c.id.in_(batch))
            rows = sound_rows(connection, columns, blobs.c.id)
            sizes = {BlobId(row.id): row.size for row in rows}
            doomed.update(BlobId(row.id) for row in rows if row.doomed_at is not None)
            gone.update(set(batch) - sizes.keys())
            odd |= {blob_id: size for blob_id, size in sizes.items() if size != block_size}
    return PageFacts(
        length=len(entries),
        has_absent=ABSENT in entries,
        gone=frozenset(gone),
        doomed=frozenset(doomed),
        odd_sizes=odd,
        has_blob_at_end=bool(entries) and entries[-1] > HOLE,
    )
