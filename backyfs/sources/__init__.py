"""What can be read as an image: the protocol of sources, and how a source is named on the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from backyfs.errors import SourceError
from backyfs.sources.file import FileSource
from backyfs.sources.limits import LimitedSource
from backyfs.sources.null import NULL_SCHEME, NullSource, size_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from backyfs.config import Config, IoConfig
    from backyfs.geometry import Extent
    from backyfs.sources.change import SourceWarning

_FILE_SCHEME = "file://"


class Source(Protocol):
    """An image that can be read. If its size changes while it is read, what was read is not an image of it."""

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

    @property
    def size_bytes(self) -> int:
        """How large the image was when it was opened."""
        ...

    def data_extents(self, start: int = 0) -> Iterator[Extent]:
        """Yield the extents that hold data from `start` on, in order; the rest is zeros and need not be read.

        Raises:
            SourceError: the image shrank or grew.
        """
        ...

    def size_now(self) -> int:
        """Ask how large the image is now; see `change.check_size`.

        Raises:
            SourceError: it cannot be asked.
        """
        ...

    def signs_of_change(self, since: datetime | None = None) -> Iterator[SourceWarning]:
        """Yield what suggests that the image is not in one state, from when it was opened, or `since`, until now.

        Raises:
            SourceError: it cannot be asked.
        """
        ...

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the image's bytes from `offset` on. Safe to call from several threads at once.

        Raises:
            SourceError: it cannot be read, or ends before the buffer is full.
        """
        ...

    def close(self) -> None:
        """Let go of the image."""
        ...


def local_path(uri: str) -> str:
    """Return the path that a path or `file://` URI names.

    Raises:
        SourceError: it is a URI of another kind.
    """
    if uri.startswith(_FILE_SCHEME):
        return uri.removeprefix(_FILE_SCHEME)
    scheme, separator, _ = uri.partition("://")
    if separator and scheme.isalnum():
        raise SourceError(f"{uri}: sources of kind {scheme}:// are not known; give a path, file://PATH or null://SIZE")
    return uri


def open_source(uri: str, config: Config | None = None, *, read_holes: bool = False) -> Source:
    """Open what is to be backed up: a path, `file://PATH`, a block device, or `null://SIZE`.

    `config` says how many reads of it may be under way at once; without one there is no limit. Holes of a file are
    read, rather than asked for, if `read_holes` or `config` says so.

    Raises:
        SourceError: there is no such thing, or it cannot be read.
    """
    if uri.startswith(NULL_SCHEME):
        return _limited(NullSource(size_of(uri)), None if config is None else config.io_null)
    limits = None if config is None else config.io_file
    read_holes = read_holes or (limits is not None and limits.read_holes)
    return _limited(FileSource(local_path(uri), read_holes=read_holes), limits)


def _limited(source: Source, limits: IoConfig | None) -> Source:
    if limits is None or limits.simultaneous_reads is None:
        return source
    return LimitedSource(source, simultaneous_reads=limits.simultaneous_reads)
