"""The kinds of sources, by the scheme of their URI. To add one, see docs/internals/add-a-source.md."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from backyfs.errors import SourceError
from backyfs.schemes import Scheme, list_forms, scheme_of

if TYPE_CHECKING:
    from backyfs.config import Config
    from backyfs.sources.protocol import Source


class SourceOpener(Protocol):
    """A function that opens the sources of one scheme."""

    def __call__(self, uri: str, config: Config | None, *, read_holes: bool) -> Source:
        """Open the image that `uri` names, with the limits of `config`; see `open_source`."""
        ...


SOURCES: dict[str, Scheme[SourceOpener]] = {
    "file": Scheme("file://PATH", "backyfs.sources.file:open_file"),
    "null": Scheme("null://SIZE", "backyfs.sources.null:open_null"),
}


def open_source(uri: str, config: Config | None = None, *, read_holes: bool = False) -> Source:
    """Open what to back up: a path, `file://PATH`, a block device, or `null://SIZE`.

    `config` limits simultaneous reads; without it, they are not limited. With `read_holes`, here or in `config`, the
    holes of a file are read; otherwise the file system reports them.

    Raises:
        SourceError: it does not exist, cannot be read, or is of an unknown kind.
    """
    name = scheme_of(uri)
    scheme = SOURCES.get(name)
    if scheme is None:
        raise SourceError(
            f"sources of kind {name}:// are not known", subject=f"{uri}:", remedy=f"give {list_forms(SOURCES.values())}"
        )
    return scheme.load()(uri, config, read_holes=read_holes)
