"""Read bytes of a version like `os.pread` reads bytes of a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backyfs.geometry import block_slices
from backyfs.images.image import Image
from backyfs.images.parts import PartLoader

if TYPE_CHECKING:
    from backyfs.images.image import PageCache
    from backyfs.model import Buffer, Version
    from backyfs.repository import Repository


class ImageReader:
    """Reads one version, without a mount. Safe for several threads at once."""

    def __init__(self, repository: Repository, version: Version, pages: PageCache | None = None) -> None:
        """Read a version, through a cache of pages that other readers may share."""
        self.image = Image(repository, version, pages)
        self.size_bytes = version.size_bytes
        self._loader = PartLoader(repository.blocks)

    def pread(self, offset: int, length: int) -> bytes:
        """Return up to `length` checked bytes starting at `offset`; fewer at the end of the image.

        Raises:
            VersionIncompleteError: some of them were never backed up.
            IntegrityError: some of them differ from what was backed up, or the block map is damaged.
            StorageError, DatabaseError: they cannot be read.
        """
        length = max(0, min(length, self.size_bytes - offset))
        parts: list[Buffer] = []
        for part in block_slices(offset, length, self.size_bytes, self.image.block_size):
            blob = self.image.named_blob(part.index)
            if blob is None:
                parts.append(bytes(part.stop - part.start))
            else:
                parts.append(self._loader.load_range(blob, part.start, part.stop))
        return b"".join(parts)
