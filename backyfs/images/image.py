"""The image of one version: the blob of each block. Pages of the block map are loaded when needed.

Safe for several threads at once. `blob` does I/O unless `knows` returns True.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from backyfs.errors import IntegrityError, VersionIncompleteError
from backyfs.geometry import block_count, block_length, page_position
from backyfs.metadata.maps.blockmap import ABSENT, HOLE, page_entries
from backyfs.metadata.records.blobs import load_blobs
from backyfs.model import BlobId, VersionStatus
from backyfs.remedies import Advice

if TYPE_CHECKING:
    from array import array

    from backyfs.model import Blob, BlockIndex, PageNumber, Version
    from backyfs.repository import Repository

_PAGES = 64  # 256 GiB of images with blocks of 4 MiB; about 30 MiB of memory


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a block map, with the blobs that it refers to."""

    entries: array[int]
    blobs: dict[BlobId, Blob]


class PageCache:
    """Pages of the block maps of one or more images. The least recently used pages are dropped first."""

    def __init__(self, capacity: int = _PAGES) -> None:
        """Keep at most this number of pages."""
        self._capacity = capacity
        self._lock = threading.Lock()  # guards the pages
        self._pages: OrderedDict[_PageKey, Page] = OrderedDict()

    def get(self, key: _PageKey) -> Page | None:
        """Return a page; None if it is not in the cache."""
        with self._lock:
            page = self._pages.get(key)
            if page is not None:
                self._pages.move_to_end(key)
            return page

    def clear(self) -> None:
        """Drop all pages."""
        with self._lock:
            self._pages.clear()

    def put(self, key: _PageKey, page: Page) -> None:
        """Add a page."""
        with self._lock:
            self._pages[key] = page
            while len(self._pages) > self._capacity:
                self._pages.popitem(last=False)


class Image:
    """The block map of a version, block by block."""

    def __init__(self, repository: Repository, version: Version, pages: PageCache | None = None) -> None:
        """Read the block map of a version, through a cache that other images may share."""
        self._repository = repository
        self._pages = pages or PageCache()
        self.version = version
        self.block_size = repository.block_size

    def knows(self, index: BlockIndex) -> bool:
        """Return whether `blob` can look up this block without I/O."""
        return self._pages.get((self, page_position(index)[0])) is not None

    def blob(self, index: BlockIndex) -> Blob | None:
        """Return the blob of a block; None for a hole.

        Raises:
            VersionIncompleteError: the block was never backed up. The error has no subject.
            IntegrityError: the block map is damaged. The error has no subject.
            DatabaseError: the block map cannot be read.
        """
        page_no, position = page_position(index)
        page = self.page(page_no)
        entry = page.entries[position]
        if entry == HOLE:
            return None
        if entry == ABSENT and self.version.status is VersionStatus.VALID:
            raise IntegrityError("was never backed up, although the version is valid: the block map is damaged")
        if entry == ABSENT:
            raise VersionIncompleteError("was never backed up: the version is incomplete")
        blob = page.blobs.get(BlobId(entry))
        length = block_length(index, self.version.size_bytes, self.block_size)
        if blob is None or blob.size != length:
            raise IntegrityError("has no blob, or one of another size: the block map is damaged")
        return blob

    def named_blob(self, index: BlockIndex) -> Blob | None:
        """Return what `blob` returns. Its errors have the block and the version as their subject.

        Raises:
            VersionIncompleteError, IntegrityError, DatabaseError: as `blob` does.
        """
        try:
            return self.blob(index)
        except (VersionIncompleteError, IntegrityError) as error:
            error.subject = f"block {index} of version {self.version.uid}"
            error.advise(Advice.SCRUB_VERSION(uid=self.version.uid))
            raise

    def page(self, page_no: PageNumber) -> Page:
        """Return a page of the block map.

        Raises:
            DatabaseError: it cannot be read, or it is damaged.
        """
        page = self._pages.get((self, page_no))
        if page is None:
            blocks = block_count(self.version.size_bytes, self.block_size)
            with self._repository.database.read() as connection:
                entries = page_entries(connection, self.version, page_no, blocks)
                blobs = load_blobs(connection, {BlobId(entry) for entry in entries if entry > HOLE})
            page = Page(entries, blobs)
            self._pages.put((self, page_no), page)
        return page


_PageKey: TypeAlias = "tuple[Image, PageNumber]"  # not a version: its backup may continue between two images of it
