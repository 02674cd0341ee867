"""Walk over the block maps of many versions, and find out how each differs from the previous one.

Versions of one name share most of their pages, and different pages share most of their entries. So the work grows with
the changes, not with the sizes of the images. Each page is read and unpacked once, provided that the pages of one
version fit into the cache.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backyfs.geometry import block_count, block_length, page_count, page_length
from backyfs.metadata.maps.blockmap import ABSENT, HOLE, list_pages
from backyfs.metadata.maps.pageloader import KEPT_PAGES, PageLoader
from backyfs.model import BlockIndex, PageId, PageNumber, VersionStatus

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from backyfs.metadata.db.database import Connection
    from backyfs.metadata.maps.blockmap import Entries
    from backyfs.model import Version

_COMPARED_AT_ONCE = 32  # entries; array slices are compared at C speed


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """The change from the previous version of a name. Entries are ids of blobs, one for each block."""

    version: Version
    is_first: bool     # the first version of its name, compared with nothing
    removed: Entries
    added: Entries
    absent_bytes: int  # bytes of the image that were never backed up


def walk(
    connection: Connection, versions: Iterable[Version], block_size: int, kept_pages: int = KEPT_PAGES
) -> Iterator[Step]:
    """Yield a step for each version. Versions of one name must be consecutive; `kept_pages` stay in memory.

    Raises:
        DatabaseError: a block map is damaged or cannot be read.
    """
    kept = PageLoader(connection, kept_pages)
    before: dict[PageNumber, PageId] = {}
    name: str | None = None
    for version in versions:
        if version.name != name:
            before = {}
        here = dict(list_pages(connection, version.id))
        removed, added = array("q"), array("q")
        changed = sorted(page_no for page_no in before.keys() | here.keys() if before.get(page_no) != here.get(page_no))
        for old, new in kept.pairs((before.get(page_no), here.get(page_no)) for page_no in changed):
            _compare(old, new, removed, added)
        yield Step(
            version=version,
            is_first=version.name != name,
            removed=removed,
            added=added,
            absent_bytes=_absent_bytes(kept, version, here, block_size),
        )
        before, name = here, version.name


def _compare(old: Entries | None, new: Entries | None, removed: Entries, added: Entries) -> None:
    """Compare two pages position by position, and append the blobs that differ to `removed` and `added`."""
    if old is None or new is None:
        if old is not None:
            _append_blobs(old, removed)
        if new is not None:
            _append_blobs(new, added)
        return
    shared = min(len(old), len(new))
    for start in range(0, shared, _COMPARED_AT_ONCE):
        stop = min(start + _COMPARED_AT_ONCE, shared)
        one, other = old[start:stop], new[start:stop]
        if one != other:
            for was, becomes in zip(one, other, strict=True):
                if was != becomes:
                    if was > HOLE:
                        removed.append(was)
                    if becomes > HOLE:
                        added.append(becomes)
    _append_blobs(old[shared:], removed)
    _append_blobs(new[shared:], added)


def _append_blobs(entries: Entries, target: Entries) -> None:
    if entries and min(entries) > HOLE:
        target.extend(entries)
    else:
        target.extend(entry for entry in entries if entry > HOLE)


def _absent_bytes(kept: PageLoader, version: Version, here: dict[PageNumber, PageId], block_size: int) -> int:
    if version.status is VersionStatus.VALID:
        return 0
    blocks = block_count(version.size_bytes, block_size)
    without_row = ABSENT if version.status is VersionStatus.INCOMPLETE else HOLE
    absent, last = 0, without_row
    if without_row == ABSENT:
        numbers = map(PageNumber, range(page_count(blocks)))
        absent = sum(page_length(page_no, blocks) for page_no in numbers if page_no not in here)
    final = here.get(PageNumber(page_count(blocks) - 1))
    pairs = kept.pairs((page_id, None) for page_id in here.values())
    for page_id, (entries, _) in zip(here.values(), pairs, strict=True):
        assert entries is not None
        absent += entries.count(ABSENT)
        if page_id == final:
            last = entries[-1]
    if blocks and last == ABSENT:
        return (absent - 1) * block_size + block_length(BlockIndex(blocks - 1), version.size_bytes, block_size)
    return absent * block_size
