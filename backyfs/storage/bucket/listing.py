"""List the objects of a bucket page by page, so that each request can be repeated and cancelled on its own."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from backyfs.storage.keys import NAMED, is_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from obstore.store import ObjectStore

    from backyfs.storage.bucket.foreignnames import BucketLister

_PAGE = 1000  # as many as S3 returns for one request
T = TypeVar("T")

_Entry = tuple[str, int, float]  # path, size in bytes, time of storing


class Listing:
    """The objects whose path begins with a prefix. Owned by the event loop that runs the requests."""

    def __init__(self, library: Any, store: ObjectStore, prefix: str, lister: BucketLister | None) -> None:
        """Begin before the first object. `lister` takes over at names that the library refuses."""
        self._library = library
        self._store = store
        self._prefix = prefix
        self._lister = lister
        # The library matches whole segments of a path, and returns what follows an offset.
        self._directory = prefix.rpartition("/")[0]
        self._after = _just_before(prefix) if prefix and not self._directory else None
        self._stream: Any = None
        self._uses_lister = False
        self._was_empty = False  # the last page
        # No key begins like that, and the library refuses some such paths.
        self.is_done = self._directory not in ("", NAMED) and not is_name(self._directory)

    async def next_page(self) -> list[_Entry]:
        """Send one request, and return the objects that it found, ours or not. There may be none.

        If this fails, the next call continues behind the last object that was returned.
        """
        if self._uses_lister:
            found = await self._next_of_lister()
            self.is_done = not found
        else:
            try:
                found = await self._next_of_library()
            except self._library.exceptions.InvalidPathError:
                if self._lister is None:
                    raise
                self._uses_lister = True
                return []
            if len(found) < _PAGE:  # the library fills a page if it can
                self._check_end(found)
        if found:
            self._after = found[-1][0]
            self.is_done |= self._after[: len(self._prefix)] > self._prefix
        return [entry for entry in found if entry[0].startswith(self._prefix)]

    def _check_end(self, found: list[_Entry]) -> None:
        """Ask once more what comes next, because the library takes an error document with status 200 for the end."""
        self._uses_lister = self._lister is not None
        self.is_done = self._was_empty and not found
        self._was_empty = not found
        self._stream = None

    async def _next_of_lister(self) -> list[_Entry]:
        assert self._lister is not None, "it takes over only if there is one"
        directory = f"{self._directory}/" if self._directory else ""
        return await _in_thread(partial(self._lister.page, directory, self._after))

    async def _next_of_library(self) -> list[_Entry]:
        if self._stream is None:
            self._stream = self._library.list(
                self._store, prefix=self._directory or None, offset=self._after, chunk_size=_PAGE
            )
        try:
            found: list[Any] = await anext(self._stream, [])
        except BaseException:
            self._stream = None
            raise
        return [(entry["path"], entry["size"], entry["last_modified"].timestamp()) for entry in found]


async def _in_thread(function: Callable[[], T]) -> T:
    """Run a function in a thread that does not keep the process alive if nobody waits for it any more."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(act: Callable[[], None]) -> None:
        if not future.done():
            act()

    def run() -> None:
        act: Callable[[], None]
        try:
            act = partial(future.set_result, function())
        except BaseException as error:  # noqa: BLE001 - it is raised where the result is awaited
            act = partial(future.set_exception, error)
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, act)

    threading.Thread(target=run, name="backyfs-listing", daemon=True).start()
    return await future


def _just_before(prefix: str) -> str:
    """Return a text that is sorted before everything that begins with a prefix, and after most other texts."""
    return f"{prefix[:-1]}{chr(ord(prefix[-1]) - 1)}~"
