"""Images in memory, under their scheme `memory://`: all that a new kind of source needs."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from backyfs.errors import SourceError
from backyfs.geometry import Extent
from backyfs.schemes import Scheme
from backyfs.sources.change import ChangeKind, SourceWarning

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from backyfs.config import Config
    from backyfs.sources.registry import SourceOpener

PAGE = 4096  # bytes that are all data or all a hole

IMAGES: dict[str, MemoryImage] = {}  # by name

SOURCE_SCHEME: Scheme[SourceOpener] = Scheme("memory://NAME", "tests.support.memory:open_source")


class MemoryImage:
    """The bytes of an image, and how many threads have used it at the same time."""

    def __init__(self, content: bytes) -> None:
        self.content = bytearray(content)
        self.changes = 0
        self.most_inside = 0
        self._lock = threading.Lock()
        self._inside = 0

    @contextmanager
    def used(self) -> Iterator[None]:
        """Count a thread for as long as it takes others to come, too."""
        with self._lock:
            self._inside += 1
            self.most_inside = max(self.most_inside, self._inside)
        time.sleep(0.005)
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1


def open_source(uri: str, config: Config | None, *, read_holes: bool) -> MemorySource:
    """Open `memory://NAME`, with the limits of `[io_null]`."""
    return MemorySource(
        uri, read_holes=read_holes, parallel=None if config is None else config.io_null.simultaneous_reads
    )


class MemorySource:
    """An image in memory as a source."""

    def __init__(self, uri: str, *, read_holes: bool, parallel: int | None) -> None:
        self.name = uri
        self.parallel = parallel
        self.image = _image(uri)
        self.size_bytes = len(self.image.content)
        self._read_holes = read_holes
        self._changes = self.image.changes

    def data_extents(self, start: int = 0) -> Iterator[Extent]:
        """Yield the pages that are not zeros, neighbours as one extent."""
        if start >= self.size_bytes:
            return
        first = None
        for page in range(start // PAGE * PAGE, self.size_bytes, PAGE):
            has_data = self._read_holes or any(self.image.content[page : page + PAGE])
            if has_data and first is None:
                first = max(start, page)
            elif not has_data and first is not None:
                yield Extent(first, page)
                first = None
        if first is not None:
            yield Extent(first, self.size_bytes)

    def size_now(self) -> int:
        """Return the size of the image now."""
        return len(self.image.content)

    def signs_of_change(self, since: datetime | None = None) -> Iterator[SourceWarning]:
        """Yield a warning if the image counts another number of changes than when it was opened."""
        if self.image.changes != self._changes:
            yield SourceWarning(kind=ChangeKind.CHANGED, text=f"{self.name} has changed")

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset` on."""
        with self.image.used():
            content = self.image.content[offset : offset + len(buffer)]
            if len(content) < len(buffer):
                raise SourceError(f"{self.name} ends at byte {len(self.image.content)}")
            buffer[:] = content

    def close(self) -> None:
        """Leave the image to others."""


def _image(uri: str) -> MemoryImage:
    try:
        return IMAGES[uri.removeprefix("memory://")]
    except KeyError:
        raise SourceError(f"{uri} does not exist") from None
