"""The files of a disk cache: one for each copy, `ab/cdef….`, sparse where the copy lacks cells.

Cells are written in place, without temporary files, locks or syncs. A reader that comes in between, a kill and a power
cut leave cells that do not verify, and the next one to need them writes them again.
"""

from __future__ import annotations

import errno
import os
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from backyfs.storage.cache.cells import CELL_BYTES, DATA_BYTES, pack, unpack
from backyfs.storage.localfiles import read_at

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backyfs.model import Buffer
    from backyfs.storage.beneath import Root
    from backyfs.storage.cache.cells import CopyKey

_WRITE = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_CELLS_AT_ONCE = 512  # of two buffers each: IOV_MAX is 1,024
_SAME_TIME_S = 60  # how exactly a file records when it was last read


class CopyFiles:
    """Copies as files below a directory. Any thread may call any method; OSErrors are passed on."""

    def __init__(self, root: Root) -> None:
        """Use a directory that only this user can change."""
        self._root = root

    def read(self, key: CopyKey, numbers: range) -> list[memoryview | None]:
        """Return the data of consecutive cells, None for each that is absent. After the end of the object: no more."""
        with self._opened(key) as fd:
            if fd is None:
                return [None] * len(numbers)
            stored = read_at(fd, numbers.start * CELL_BYTES, len(numbers) * CELL_BYTES)
        cells = unpack(key, numbers.start, stored)
        for position, data in enumerate(cells):
            if data is not None and len(data) < DATA_BYTES:
                return cells[: position + 1]
        return cells + [None] * (len(numbers) - len(cells))

    def read_whole(self, key: CopyKey, most: int) -> bytes | None:
        """Return an object of up to `most` bytes; None if its copy lacks any cell."""
        with self._opened(key) as fd:
            if fd is None:
                return None
            stored = read_at(fd, 0, min(os.fstat(fd).st_size, (most // DATA_BYTES + 1) * CELL_BYTES))
        parts: list[memoryview] = []
        for data in unpack(key, 0, stored):
            if data is None:
                return None
            parts.append(data)
            if len(data) < DATA_BYTES:
                content = b"".join(parts)
                return content if len(content) <= most else None
        return None

    def write(self, key: CopyKey, first: int, content: Buffer, *, is_end: bool) -> None:
        """Add cells to a copy, from the data of cell `first` on. With `is_end` the object ends with them."""
        cells = pack(key, first, content, is_end=is_end)
        fd = self._open_to_write(key.path)
        try:
            for start in range(0, len(cells), _CELLS_AT_ONCE):
                buffers = [part for cell in cells[start : start + _CELLS_AT_ONCE] for part in cell]
                # A write that comes short met a full disk. The cell it ends in does not verify.
                os.pwritev(fd, buffers, (first + start) * CELL_BYTES)
        finally:
            os.close(fd)

    def remove(self, key: CopyKey) -> bool:
        """Remove a copy; return whether there was one."""
        try:
            self._root.unlink(key.path)
        except FileNotFoundError:
            return False
        return True

    @contextmanager
    def _opened(self, key: CopyKey) -> Iterator[int | None]:
        """Open a copy for reading, and note that it is in use; None: there is none."""
        try:
            fd = self._root.open_to_read(key.path)
        except FileNotFoundError:
            yield None
            return
        try:
            try:
                yield fd
            except OSError:  # a bad sector, which would stay
                with suppress(OSError):
                    self._root.unlink(key.path)
                raise
            # Also for a time in the future, which a wrong clock has set.
            if abs(time.time() - os.fstat(fd).st_mtime) > _SAME_TIME_S:
                with suppress(OSError):  # it is read-only
                    os.utime(fd)
        finally:
            os.close(fd)

    def _open_to_write(self, path: str) -> int:
        for _ in range(2):
            with suppress(FileNotFoundError):
                return self._root.open(path, _WRITE)
            with suppress(FileExistsError):
                self._root.make_directory(path.partition("/")[0])
            with suppress(FileExistsError):  # another process has just created it
                return self._root.create(path)
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)
