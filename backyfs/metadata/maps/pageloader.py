"""Load pages of block maps in batches, and keep the most recently used ones unpacked in memory."""

from __future__ import annotations

from collections import OrderedDict
from itertools import islice
from typing import TYPE_CHECKING

from sqlalchemy import bindparam, select

from backyfs.errors import DatabaseError
from backyfs.metadata.db.tables import pages
from backyfs.metadata.maps.blockmap import unpack
from backyfs.model import PageId

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from backyfs.metadata.db.database import Connection
    from backyfs.metadata.maps.blockmap import Entries

KEPT_PAGES = 4096   # 32 MiB unpacked: an image of 16 TiB with blocks of 4 MiB
_PAIRS_AT_ONCE = 64  # per query

_SOME_PAGES = select(pages.c.id, pages.c.entries).where(pages.c.id.in_(bindparam("ids", expanding=True)))


class PageLoader:
    """Loads pages by id within one transaction. Pages never change, but other commands may remove them."""

    def __init__(self, connection: Connection, kept_pages: int = KEPT_PAGES) -> None:
        self._connection = connection
        self._kept_pages = kept_pages
        self._pages: OrderedDict[PageId, Entries] = OrderedDict()

    def pairs(
        self, wanted: Iterable[tuple[PageId | None, PageId | None]]
    ) -> Iterator[tuple[Entries | None, Entries | None]]:
        """Yield the entries of pairs of pages, in order, with None for None. Callers must not change the entries.

        Raises:
            DatabaseError: a page is damaged or cannot be read.
        """
        rest = iter(wanted)
        while batch := list(islice(rest, _PAIRS_AT_ONCE)):
            self._load({page_id for pair in batch for page_id in pair if page_id is not None})
            for old, new in batch:
                yield None if old is None else self._pages[old], None if new is None else self._pages[new]

    def _load(self, wanted: set[PageId]) -> None:
        for page_id in wanted & self._pages.keys():
            self._pages.move_to_end(page_id)
        missing = wanted - self._pages.keys()
        if missing:
            for row in self._connection.execute(_SOME_PAGES, {"ids": sorted(missing)}):
                self._pages[PageId(row.id)] = unpack(row.entries)
            if gone := wanted - self._pages.keys():
                raise DatabaseError(f"page {min(gone)} of a block map is missing")
        while len(self._pages) > max(self._kept_pages, len(wanted)):
            self._pages.popitem(last=False)
