"""Images in memory, with the scheme `memory://`: everything that a new kind of source and target needs."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from backyfs.errors import SourceError, TargetError
from backyfs.geometry import Extent
from backyfs.schemes import Scheme
from backyfs.sources.change import ChangeKind, SourceWarning
from backyfs.targets.protocol import Destination

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from backyfs.config import Config
    from backyfs.model import Buffer
    from backyfs.sources.registry import SourceOpener
    from backyfs.targets.protocol import TargetRequest
    from backyfs.targets.registry import DestinationFinder

PATIENCE_S = 30
PAGE = 4096  # bytes that are either all data or all hole

IMAGES: dict[str, MemoryImage] = {}  # by name

SOURCE_SCHEME: Scheme[SourceOpener] = Scheme("memory://NAME", "tests.support.memory:open_source")
TARGET_SCHEME: Scheme[DestinationFinder] = Scheme("memory://NAME", "tests.support.memory:find_destination")


class MemoryImage:
    """The bytes of an image, and how many threads have used it simultaneously."""

    def __init__(self, content: bytes) -> None:
        self.content = bytearray(content)
        self.changes = 0
        self.expected_inside = 1  # threads that have to come before the first one goes on
        self.most_inside = 0
        self._changed = threading.Condition()
        self._inside = 0

    @contextmanager
    def used(self) -> Iterator[None]:
        """Count a thread. It waits for the expected ones, and then long enough for others to come too."""
        with self._changed:
            self._inside += 1
            self.most_inside = max(self.most_inside, self._inside)
            self._changed.notify_all()
            if not self._changed.wait_for(lambda: self.most_inside >= self.expected_inside, PATIENCE_S):
                self.expected_inside = self.most_inside  # the test fails, and need not wait again
        time.sleep(0.001)
        try:
            yield
        finally:
            with self._changed:
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
        """Yield the pages that are not zeros, merging neighbours into one extent."""
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
        """Yield a warning if the image was changed since it was opened."""
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


def find_destination(uri: str, config: Config | None) -> Destination:
    """Look up `memory://NAME`, with the limits of `[io_null]`. An image that exists can grow and shrink."""
    name = uri.removeprefix("memory://")
    image = IMAGES.get(name)
    parallel = None if config is None else config.io_null.simultaneous_writes
    return Destination(
        uri=uri,
        name=uri,
        open=lambda request: MemoryTarget(uri, request, parallel=parallel),
        exists=image is not None,
        size_bytes=None if image is None else len(image.content),
        keeps=True,
    )


class MemoryTarget:
    """An image in memory as a target."""

    def __init__(self, uri: str, request: TargetRequest, *, parallel: int | None) -> None:
        name = uri.removeprefix("memory://")
        if name in IMAGES and not request.replace and request.kept_bytes is None:
            raise TargetError("already exists", subject=uri)
        if name not in IMAGES and request.kept_bytes is not None:
            raise TargetError("does not exist", subject=uri)
        self.parallel = parallel
        self.begins_empty = not request.kept_bytes
        self.image = IMAGES.setdefault(name, MemoryImage(b""))
        kept = self.image.content[: request.kept_bytes or 0]
        self.image.content[:] = (kept + bytes(request.size_bytes))[: request.size_bytes]

    @property
    def readable(self) -> MemoryTarget:
        """The target itself."""
        return self

    def write(self, offset: int, block: Buffer) -> None:
        """Write a block."""
        with self.image.used():
            self.image.content[offset : offset + len(block)] = block

    def write_zeros(self, offset: int, length: int) -> None:
        """Write zeros."""
        self.write(offset, bytes(length))

    def leave(self, offset: int, length: int) -> None:
        """Do nothing: the old content stays."""

    def read_into(self, offset: int, buffer: bytearray) -> None:
        """Fill `buffer` from `offset` on."""
        buffer[:] = self.image.content[offset : offset + len(buffer)]

    def is_zeros(self, offset: int, length: int) -> bool:
        """Return whether a range is zeros."""
        return not any(self.image.content[offset : offset + length])

    def drop_cache(self) -> None:
        """Do nothing: there is no disk."""

    def finish(self) -> None:
        """Do nothing: everything is there."""

    def close(self) -> None:
        """Leave the image to others."""
