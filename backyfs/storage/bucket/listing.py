"""List the objects of a bucket page by page, so that each request can be repeated and cancelled on its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backyfs.storage.keys import NAMED, is_name

if TYPE_CHECKING:
    from obstore.store import ObjectStore

_PAGE = 1000  # as many as S3 returns for one request


class Listing:
    """The objects whose path begins with a prefix. Owned by the event loop that runs the requests."""

    def __init__(self, library: Any, store: ObjectStore, prefix: str) -> None:
        """Begin before the first object."""
        self._library = library
        self._store = store
        self._prefix = prefix
        # The library matches whole segments of a path, and returns what follows an offset.
        self._directory = prefix.rpartition("/")[0] or None
        self._after = _just_before(prefix) if prefix and self._directory is None else None
        self._stream: Any = None
        # No key begins like that, and the library refuses some such paths.
        self._is_done = self._directory is not None and self._directory != NAMED and not is_name(self._directory)

    async def next_page(self) -> list[tuple[str, int, float]] | None:
        """Return path, size in bytes and time of storing of the next objects; None: there are no more.

        If this fails, the next call continues behind the last object that was returned.
        """
        while not self._is_done:
            if self._stream is None:
                self._stream = self._library.list(
                    self._store, prefix=self._directory, offset=self._after, chunk_size=_PAGE
                )
            try:
                found = await anext(self._stream, None)
            except BaseException:
                self._stream = None
                raise
            if not found:
                break
            self._after = found[-1]["path"]
            page = [
                (entry["path"], entry["size"], entry["last_modified"].timestamp())
                for entry in found
                if entry["path"].startswith(self._prefix)
            ]
            self._is_done = self._after[: len(self._prefix)] > self._prefix
            if page:
                return page
        return None


def _just_before(prefix: str) -> str:
    """Return a text that is sorted before everything that begins with a prefix, and after most other texts."""
    return f"{prefix[:-1]}{chr(ord(prefix[-1]) - 1)}~"
