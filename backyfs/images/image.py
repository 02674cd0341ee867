"""The image of one version: which blob holds which block. Pages of the block map are loaded when needed.

Safe to use from several threads. `blob` does I/O where `knows` says no.
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

if TYPE_CHECKING:
    from array import array

    from backyfs.model import Blob, BlockIndex, PageNumber, Version
    from backyfs.repository import Repository

_PAGES = 64  # 256 GiB of images with blocks of 4 MiB; some 30 MiB of memory


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a block map, with the blobs that it names."""

    entries: array[int]
    blobs: dict[BlobId, Blob]


class PageCache:
    """Pages of the block maps of one or more images, the least recently used ones dropped first."""

    def __init__(self, capacity: int = _PAGES) -> None:
        """Keep so many pages."""
        self._capacity = capacity
        self._lock = threading.Lock()  # guards the pages
        self._pages: OrderedDict[_PageKey, Page] = OrderedDict()

    def get(self, key: _PageKey) -> Page | None:
        """Return a page that is there."""
        with self._lock:
            page = self._pages.get(key)
            if page is not None:
                self._pages.move_to_end(key)
            return page

    def clear(self) -> None:
        """Forget all pages."""
        with self._lock:
            self._pages.clear()

    def put(self, key: _PageKey, page: Page) -> None:
        """Keep a page."""
        with self._lock:
            self._pages[key] = page
            while len(self._pages) > self._capacity:
                self._pages.popitem(last=False)


class Image:
    """The block map of a version, block by block."""

    def __init__(self, repository: Repository, version: Version, pages: PageCache | None = None) -> None:
        """Read the block map of a version, through a cache that it may share with other images."""
        self._repository = repository
        self._pages = pages or PageCache()
        self.version = version
        self.block_size = repository.block_size

    def knows(self, index: BlockIndex) -> bool:
        """Tell whether `blob` can answer for this block without I/O."""
        return self._pages.get((self, page_position(index)[0])) is not None

    def blob(self, index: BlockIndex) -> Blob | None:
        """Return the blob that holds a block, None for a hole.

        Raises:
            VersionIncompleteError: the block was never backed up.
            IntegrityError: the block map is damaged.
            DatabaseError: it cannot be read.
        """
        page_no, position = page_position(index)
        page = self.page(page_no)
        entry = page.entries[position]
        if entry == HOLE:
            return None
        if entry == ABSENT and self.version.status is VersionStatus.VALID:
            raise IntegrityError("was never backed up, though the version is valid: the block map is damaged")
        if entry == ABSENT:
            raise VersionIncompleteError("was never backed up: the version is incomplete")
        blob = page.blobs.get(BlobId(entry))
        length = block_length(index, self.version.size_bytes, self.block_size)
        if blob is None or blob.size != length:
            raise IntegrityError("has no blob, or one of another size: the block map is damaged")
        return blob

    def named_blob(self, index: BlockIndex) -> Blob | None:
        """Return what `blob` returns; its errors name the version and the block.

        Raises:
            VersionIncompleteError, IntegrityError, DatabaseError: as `blob` does.
        """
        try:
            return self.blob(index)
        except VersionIncompleteError as error:
            raise VersionIncompleteError(self._about(index, error)) from error
        except IntegrityError as error:
            raise IntegrityError(self._about(index, error)) from error

    def _about(self, index: BlockIndex, error: Exception) -> str:
        return f"block {index} of version {self.version.uid} {error}; run `backyfs scrub {self.version.uid}`"

    def page(self, page_no: PageNumber) -> Page:
        """Return a page of the block map.

        Raises:
            DatabaseError: it cannot be read, or is damaged.
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


_PageKey: TypeAlias = "tuple[Image, PageNumber]"  # of an image, not a version: one that is opened later may know more
