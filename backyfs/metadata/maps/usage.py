"""Compute how many bytes of a version are stored, and in which encryption versions.

The block map is read page by page, so memory does not grow with the image.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from sqlalchemy import select

from backyfs.geometry import PAGE_ENTRIES, block_count, block_length
from backyfs.metadata.db.batches import batches
from backyfs.metadata.db.tables import blobs, pages, version_pages
from backyfs.metadata.maps.blockmap import ABSENT, HOLE, list_pages, unpack
from backyfs.metadata.maps.pageloader import PageLoader
from backyfs.model import BlobId, BlockIndex

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from backyfs.metadata.db.database import Connection
    from backyfs.metadata.maps.blockmap import Entries
    from backyfs.model import PageId, Version, VersionId

_PAGES_AT_ONCE = 64


def used_bytes(connection: Connection, version: Version, block_size: int, start: int, stop: int) -> int:
    """Return how many of the bytes [start, stop) of an image are in blobs. The rest is holes or was not backed up.

    Blocks that are partly in the range count with that part.

    Raises:
        DatabaseError: the block map is damaged or cannot be read.
    """
    if stop <= start:
        return 0
    first, last = start // block_size, block_count(stop, block_size) - 1
    used = 0
    for page_no, entries in _pages(connection, version.id, first // PAGE_ENTRIES, last // PAGE_ENTRIES):
        base = page_no * PAGE_ENTRIES
        part = entries[max(first - base, 0) : last + 1 - base]
        used += (len(part) - part.count(HOLE) - part.count(ABSENT)) * block_size
        for edge in {first, last}:
            if base <= edge < base + len(entries) and entries[edge - base] > HOLE:
                begin = edge * block_size
                end = begin + block_length(BlockIndex(edge), version.size_bytes, block_size)
                used -= block_size - (min(end, stop) - max(begin, start))
    return used


def encryption_versions(connection: Connection, version: Version) -> list[int]:
    """Return the encryption versions of all blobs of a version, in order; empty if it has no blobs.

    Raises:
        DatabaseError: the block map is damaged or cannot be read.
    """
    found: set[int] = set()
    for blob_ids in blobs_of(connection, version):
        query = select(blobs.c.encryption_version).where(blobs.c.id.in_(sorted(blob_ids))).distinct()
        found.update(connection.execute(query).scalars())
    return sorted(found)


def encryption_of_blocks(connection: Connection, versions: Iterable[Version]) -> list[dict[int, int]]:
    """Return for each version the number of its blocks by encryption version, in order.

    Holes and absent blocks do not count. A page that several versions share is read once.

    Raises:
        DatabaseError: a block map is damaged or cannot be read.
    """
    known: dict[PageId, Counter[int]] = {}
    found = []
    for version in versions:
        blocks: Counter[int] = Counter()
        page_ids = [page_id for _, page_id in list_pages(connection, version.id)]
        new = sorted(set(page_ids) - known.keys())
        pairs = PageLoader(connection).pairs((page_id, None) for page_id in new)
        for page_id, (entries, _) in zip(new, pairs, strict=True):
            assert entries is not None
            known[page_id] = _encryption_of_page(connection, entries)
        for page_id in page_ids:
            blocks.update(known[page_id])
        found.append(dict(sorted(blocks.items())))
    return found


def _encryption_of_page(connection: Connection, entries: Entries) -> Counter[int]:
    uses = Counter(entry for entry in entries if entry > HOLE)
    found: Counter[int] = Counter()
    for batch in batches(sorted(uses)):
        query = select(blobs.c.id, blobs.c.encryption_version).where(blobs.c.id.in_(batch))
        for row in connection.execute(query):
            found[row.encryption_version] += uses[row.id]
    return found


def blobs_of(connection: Connection, version: Version) -> Iterator[set[BlobId]]:
    """Yield the blobs of a version, page by page. A blob that is in several pages is yielded several times.

    Raises:
        DatabaseError: the block map is damaged or cannot be read.
    """
    for _, entries in _pages(connection, version.id, 0, None):
        yield {BlobId(entry) for entry in entries if entry > HOLE}


def _pages(
    connection: Connection, version_id: VersionId, first: int, last: int | None
) -> Iterator[tuple[int, Entries]]:
    """Yield numbers and entries of the pages of a version, from page `first` to `last`."""
    here = version_pages.c.version_id == version_id
    if last is not None:
        here &= version_pages.c.page_no <= last
    query = select(version_pages.c.page_no, pages.c.entries).join(pages, version_pages.c.page_id == pages.c.id)
    while batch := connection.execute(
        query.where(here, version_pages.c.page_no >= first).order_by(version_pages.c.page_no).limit(_PAGES_AT_ONCE)
    ).all():
        for row in batch:
            yield row.page_no, unpack(row.entries)
        first = batch[-1].page_no + 1
