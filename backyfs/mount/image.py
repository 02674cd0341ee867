"""The image of one version: which blob holds which block. Pages of the block map are loaded when needed.

Safe to use from several threads. `blob` does I/O where `knows` says no.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backyfs.errors import IntegrityError, VersionIncompleteError
from backyfs.geometry import block_count, block_length, page_position
from backyfs.metadata.blobs import load_blobs
from backyfs.metadata.blockmap import ABSENT, HOLE, page_entries
from backyfs.model import BlobId

if TYPE_CHECKING:
    from array import array

    from backyfs.model import Blob, BlockIndex, PageNumber, Version
    from backyfs.repository import Repository

_PAGES = 32  # kept per image: 128 GiB of it with blocks of 4 MiB, some 10 MiB of memory


@dataclass(frozen=True, slots=True)
class _Page:
    entries: array[int]
    blobs: dict[BlobId, Blob]


class Image:
    """A version, as the mount reads it."""

    def __init__(self, repository: Repository, version: Version) -> None:
        self._repository = repository
        self._lock = threading.Lock()  # guards the pages
        self._pages: OrderedDict[PageNumber, _Page] = OrderedDict()
        self.version = version
        self.block_size = repository.block_size

    def knows(self, index: BlockIndex) -> bool:
        """Tell whether `blob` can answer for this block without I/O."""
        with self._lock:
            return page_position(index)[0] in self._pages

    def blob(self, index: BlockIndex) -> Blob | None:
        """Return the blob that holds a block, None for a hole.

        Raises:
            VersionIncompleteError: the block was never backed up.
            IntegrityError: the block map is damaged.
            DatabaseError: it cannot be read.
        """
        page_no, position = page_position(index)
        page = self._page(page_no)
        entry = page.entries[position]
        if entry == HOLE:
            return None
        if entry == ABSENT:
            raise VersionIncompleteError("was never backed up: the version is incomplete")
        blob = page.blobs.get(BlobId(entry))
        length = block_length(index, self.version.size_bytes, self.block_size)
        if blob is None or blob.size != length:
            raise IntegrityError("has no blob, or one of another size: the block map is damaged")
        return blob

    def _page(self, page_no: PageNumber) -> _Page:
        with self._lock:
            page = self._pages.get(page_no)
            if page is not None:
                self._pages.move_to_end(page_no)
                return page
        blocks = block_count(self.version.size_bytes, self.block_size)
        with self._repository.database.read() as connection:
            entries = page_entries(connection, self.version, page_no, blocks)
            blobs = load_blobs(connection, {BlobId(entry) for entry in entries if entry > HOLE})
        page = _Page(entries, blobs)
        with self._lock:
            self._pages[page_no] = page
            if len(self._pages) > _PAGES:
                self._pages.popitem(last=False)
        return page
