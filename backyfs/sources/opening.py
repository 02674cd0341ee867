"""How a source is named on the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backyfs.errors import SourceError
from backyfs.sources.file import FileSource
from backyfs.sources.limits import LimitedSource
from backyfs.sources.null import NULL_SCHEME, NullSource, size_of

if TYPE_CHECKING:
    from backyfs.config import Config, IoConfig
    from backyfs.sources.protocol import Source

_FILE_SCHEME = "file://"


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

    `config` limits simultaneous reads; without it, they are not limited. Holes of a file are
    read, rather than asked for, if `read_holes` or `config` says so.

    Raises:
        SourceError: it does not exist, or cannot be read.
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
