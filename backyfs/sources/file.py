"""Files and block devices as sources of a backup.

The page cache is left as it was found: bytes that were in it stay, bytes that came in by reading are
dropped. Holes are asked for, not read.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from backyfs.errors import SourceError
from backyfs.geometry import Extent

if TYPE_CHECKING:
    from collections.abc import Iterator


class FileSource:
    """An image in a file or on a block device."""

    def __init__(self, path: str) -> None:
        """Open `path` for reading.

        Raises:
            SourceError: it does not exist, cannot be read, or is neither file nor block device.
        """
        self._path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO must not block here
            mode = os.fstat(self._fd).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
                os.close(self._fd)
                raise SourceError(f"{path} is neither a file nor a block device; name an image")
            self.size_bytes = os.lseek(self._fd, 0, os.SEEK_END)
            # No read-ahead: it would put bytes into the page cache that then look as if found there.
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_RANDOM)
        except OSError as error:
            raise SourceError(f"{path} cannot be read: {error.strerror}") from error

    def data_extents(self) -> Iterator[Extent]:
        """Yield the extents that hold data, by SEEK_DATA and SEEK_HOLE; one for all where those are unknown."""
        offset = 0
        while offset < self.size_bytes:
            try:
                start = os.lseek(self._fd, offset, os.SEEK_DATA)
                stop = os.lseek(self._fd, start, os.SEEK_HOLE)
            except OSError as error:
                if error.errno == errno.ENXIO:  # no data from here to the end
                    return
                start, stop = offset, self.size_bytes  # block devices and some file systems answer EINVAL
            stop = min(stop, self.size_bytes)
            if start < stop:  # not so where the file has grown since it was opened
                yield Extent(start, stop)
            offset = max(stop, start)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset` on.

        Raises:
            SourceError: it cannot be read, or ends before the buffer is full.
        """
        cached = self._read_cached(offset, buffer)
        position = cached
        while position < len(buffer):
            try:
                count = os.preadv(self._fd, [buffer[position:]], offset + position)
            except OSError as error:
                raise SourceError(
                    f"{self._path} cannot be read at byte {offset + position}: {error.strerror}"
                ) from error
            if count == 0:
                raise SourceError(
                    f"{self._path} ends at byte {offset + position}: it has shrunk since the backup began; "
                    "back up a snapshot, or stop what changes it"
                )
            position += count
        if cached < len(buffer):
            os.posix_fadvise(self._fd, offset + cached, len(buffer) - cached, os.POSIX_FADV_DONTNEED)

    def _read_cached(self, offset: int, buffer: memoryview) -> int:
        """Read what lies in the page cache, up to the first byte that does not; return how much that was."""
        position = 0
        while position < len(buffer):
            try:
                count = os.preadv(self._fd, [buffer[position:]], offset + position, os.RWF_NOWAIT)
            except OSError:  # EAGAIN: not cached; EOPNOTSUPP: this file system cannot tell
                break
            if count == 0:
                break
            position += count
        return position

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._fd)
