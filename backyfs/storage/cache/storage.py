"""A storage with a disk cache in front of it: blobs are read from there if they can be, and from the storage if not.

The cache is never needed. If anything is wrong with it, there is one warning, and blobs are read from the storage.
Named objects can be replaced, and are never cached.
"""

from __future__ import annotations

import logging
import os
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from backyfs.errors import MountError
from backyfs.files import make_directories
from backyfs.host.writers import trusted_directory
from backyfs.storage.beneath import Root
from backyfs.storage.cache.cells import CELL_BYTES, DATA_BYTES, CopyKey, cells_covering, copy_key
from backyfs.storage.cache.files import CopyFiles
from backyfs.storage.cache.space import Space
from backyfs.storage.forwarding import ForwardingStorage
from backyfs.storage.keys import is_blob
from backyfs.storage.protocol import MAX_OBJECT_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from backyfs.model import BlobUid, Buffer
    from backyfs.storage.keys import Key
    from backyfs.storage.protocol import Storage, Traits

_log = logging.getLogger(__name__)

_Result = TypeVar("_Result")

_COPIES = "copies"  # whatever else is in the directory is not ours, and is never touched


class CachedStorage(ForwardingStorage):
    """Reads blobs through a disk cache. The throttling of the storage does not apply to what is cached."""

    def __init__(self, storage: Storage, directory: str, *, size_bytes: int, repository: str) -> None:
        """Cache the blobs of a repository in a directory that `cached` has checked."""
        super().__init__(storage)
        self._directory = directory
        self._repository = repository
        root = Root(os.path.join(directory, _COPIES))
        self._files = CopyFiles(root)
        self._space = Space(root, size_bytes, self._failed)
        self._warning = threading.Lock()  # held from the first warning on

    @property
    def traits(self) -> Traits:
        """The traits of the storage. Nothing else may write to the cache either."""
        traits = super().traits
        return replace(traits, own_paths=(*traits.own_paths, self._directory))

    def get(self, key: Key, *, most: int = MAX_OBJECT_BYTES) -> Buffer:
        """Return an object: from the cache if all of it is there."""
        if not is_blob(key):
            return super().get(key, most=most)
        copy = copy_key(self._repository, key)
        known = self._try(lambda: self._files.read_whole(copy, most), None)
        if known is not None:
            return known
        content = super().get(key, most=most)
        self._add(key, 0, content, is_end=True)
        return content

    def get_range(self, key: Key, offset: int, length: int) -> bytes:
        """Return a part of an object. What the cache lacks of it takes one request, for whole cells."""
        return self.get_ranges(key, [range(offset, offset + length)])[0]

    def get_ranges(self, key: Key, wanted: Sequence[range]) -> list[bytes]:
        """Return parts of an object. What the cache lacks of them takes one request for each, for whole cells."""
        if not is_blob(key) or not all(part.start >= 0 and 0 < len(part) <= MAX_OBJECT_BYTES for part in wanted):
            return super().get_ranges(key, wanted)
        copy = copy_key(self._repository, key)
        found = [_Cells(part, self._read(copy, cells_covering(part.start, len(part)))) for part in wanted]
        incomplete = [cells for cells in found if cells.absent]
        absent = [cells.absent for cells in incomplete]
        if len(absent) == 1:
            contents = [super().get_range(key, absent[0].start, len(absent[0]))]
        else:
            contents = super().get_ranges(key, absent) if absent else []
        for cells, content in zip(incomplete, contents, strict=True):
            self._add(key, cells.absent.start // DATA_BYTES, content, is_end=len(content) < len(cells.absent))
            cells.complete(content)
        return [cells.content() for cells in found]

    def _read(self, copy: CopyKey, numbers: range) -> list[memoryview | None]:
        nothing: list[memoryview | None] = [None] * len(numbers)
        return self._try(lambda: self._files.read(copy, numbers), nothing)

    def delete(self, keys: Sequence[Key]) -> None:
        """Delete objects, and what is cached of them."""
        super().delete(keys)
        for key in keys:
            self._remove(key)

    def distrust(self, key: Key) -> bool:
        """Drop what is cached of an object, so that it is read from the storage."""
        is_removed = self._remove(key)
        return super().distrust(key) or is_removed

    def close(self) -> None:
        """Close the storage. What is cached stays."""
        self._space.close()
        super().close()

    def _add(self, key: BlobUid, first: int, content: Buffer, *, is_end: bool) -> None:
        size = (memoryview(content).nbytes // DATA_BYTES + 2) * CELL_BYTES  # with what file systems round up
        if self._space.take(size):
            copy = copy_key(self._repository, key)
            self._try(lambda: self._files.write(copy, first, content, is_end=is_end), None)

    def _remove(self, key: Key) -> bool:
        if not is_blob(key):
            return False
        copy = copy_key(self._repository, key)
        return self._try(lambda: self._files.remove(copy), otherwise=False)

    def _try(self, act: Callable[[], _Result], otherwise: _Result) -> _Result:
        """Use the cache; if that fails, return `otherwise`."""
        try:
            return act()
        except OSError as error:
            self._failed(error)
            return otherwise

    def _failed(self, error: OSError) -> None:
        self._space.pause()
        if self._warning.acquire(blocking=False):
            _warn(self._directory, error.strerror or str(error))


class _Cells:
    """A part of an object, in the cells that cover it."""

    def __init__(self, part: range, cells: list[memoryview | None]) -> None:
        """Begin with the data of the cells that are cached; None: one is not."""
        self._part = part
        self._first = part.start // DATA_BYTES
        self._cells = cells
        missing = [position for position, data in enumerate(cells) if data is None]
        # The bytes of the object from the first absent cell to the last one.
        self.absent = range(0)
        if missing:
            self.absent = range((self._first + missing[0]) * DATA_BYTES, (self._first + missing[-1] + 1) * DATA_BYTES)

    def complete(self, content: bytes) -> None:
        """Add the bytes that were absent; fewer, if the object ends within them."""
        start, stop = (place // DATA_BYTES - self._first for place in (self.absent.start, self.absent.stop))
        behind = self._cells[stop:] if len(content) == len(self.absent) else []
        self._cells = [*self._cells[:start], memoryview(content), *behind]

    def content(self) -> bytes:
        """Return the bytes of the part, or fewer, if the object ends earlier."""
        parts = [data for data in self._cells if data is not None]
        parts[0] = parts[0][self._part.start - self._first * DATA_BYTES :]
        surplus = sum(map(len, parts)) - len(self._part)
        if surplus > 0:
            parts[-1] = parts[-1][:-surplus]
        return b"".join(parts)


def cached(storage: Storage, directory: str, *, size_bytes: int, repository: str) -> Storage:
    """Put a disk cache in front of a storage, if the directory can be used; create it if it does not exist.

    Its files take about `size_bytes`, whatever number of processes and repositories share it. `repository` is the uid
    of the repository with these blobs.

    What is cached is checked by the tag or fingerprint of its block like anything that was stored. But a directory of
    other users could make root write somewhere else, so only one that no other user can change is used.
    """
    try:
        make_directories(os.path.join(directory, _COPIES))
        with trusted_directory(os.path.realpath(os.path.join(directory, _COPIES))):
            pass
    except OSError as error:
        _warn(directory, error.strerror or str(error))
    except MountError as error:
        _warn(directory, str(error))
    else:
        return CachedStorage(storage, directory, size_bytes=size_bytes, repository=repository)
    return storage


def _warn(directory: str, fact: str) -> None:
    _log.warning("disk cache %s: %s; blocks are read from the storage without it", directory, fact)
