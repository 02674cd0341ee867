"""Files and block devices as sources of a backup.

The page cache is left as it was found: bytes that were in it stay, bytes that came in by reading are
dropped. Holes are asked for, not read, unless the file system cannot be trusted to know them.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from backyfs.errors import SourceError
from backyfs.geometry import Extent
from backyfs.host.devices import writable_mounts
from backyfs.sources.change import ChangeKind, SourceWarning
from backyfs.sources.protocol import check_size

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

_MOST_SHOWN = 3  # mounts in a warning


class FileSource:
    """An image in a file or on a block device."""

    def __init__(self, path: str, *, read_holes: bool = False) -> None:
        """Open `path` for reading. With `read_holes` a file counts as data throughout.

        Raises:
            SourceError: it does not exist, cannot be read, is neither file nor block device, is a device without
                bytes, or does not know how long it is.
        """
        self.name = path
        self._read_holes = read_holes
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO must not block here
            try:
                self._set_up()
            except BaseException:
                os.close(self._fd)
                raise
        except OSError as error:
            raise SourceError(f"{path} cannot be read: {error.strerror}") from error

    def _set_up(self) -> None:
        self._opened = os.fstat(self._fd)
        self._is_file = stat.S_ISREG(self._opened.st_mode)
        if not (self._is_file or stat.S_ISBLK(self._opened.st_mode)):
            raise SourceError(f"{self.name} is neither a file nor a block device; name an image")
        self.size_bytes = os.lseek(self._fd, 0, os.SEEK_END)
        if not self.size_bytes and not self._is_file:
            raise SourceError(f"{self.name} has no bytes: nothing is attached to it; attach its disk or image first")
        # No read-ahead: it would put bytes into the page cache that then look as if found there.
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_RANDOM)
        if self._is_file and os.pread(self._fd, 1, self.size_bytes):  # as in /proc
            raise SourceError(
                f"{self.name} holds more than the {self.size_bytes} bytes that it says it has: it grows, or the kernel "
                "makes it up as it is read; name a file of fixed size"
            )

    def data_extents(self, start: int = 0) -> Iterator[Extent]:
        """Yield the extents that hold data, by SEEK_DATA and SEEK_HOLE; one for all where those are unknown.

        Raises:
            SourceError: the file shrank or grew.
        """
        if self._read_holes and start < self.size_bytes:
            yield Extent(start, self.size_bytes)
            return
        offset = start
        while offset < self.size_bytes:
            try:
                first = os.lseek(self._fd, offset, os.SEEK_DATA)
                stop = os.lseek(self._fd, first, os.SEEK_HOLE)
            except OSError as error:
                if error.errno == errno.ENXIO:  # no data from here to the end, or the end is not where it was
                    check_size(self)
                    return
                first, stop = offset, self.size_bytes  # block devices and some file systems answer EINVAL
            stop = min(stop, self.size_bytes)
            if first < stop:  # not so where the file has grown since it was opened
                yield Extent(first, stop)
            offset = max(stop, first)

    def size_now(self) -> int:
        """Ask how large the file or device is now.

        Raises:
            SourceError: it cannot be asked.
        """
        try:
            return os.lseek(self._fd, 0, os.SEEK_END)
        except OSError as error:
            raise SourceError(f"{self.name} cannot be asked for its size: {error.strerror}") from error

    def signs_of_change(self, since: datetime | None = None) -> Iterator[SourceWarning]:
        """Yield a warning if the times of a file moved, and one if a file system on it is mounted read-write.

        Raises:
            SourceError: it cannot be asked, as a file whose server has lost it.
        """
        try:
            now = os.fstat(self._fd)
        except OSError as error:
            raise SourceError(f"{self.name} cannot be asked whether it changed: {error.strerror}") from error
        if self._is_file and self._has_changed(now, since):
            yield SourceWarning(
                kind=ChangeKind.CHANGED,
                text=f"{self.name} has changed since its backup began: the version may mix old and new bytes; back up "
                "a snapshot, or stop what changes it",
            )
        mounts = writable_mounts(self.name, now)
        if mounts:
            shown = ", ".join(f"{mount.source} on {mount.mountpoint}" for mount in mounts[:_MOST_SHOWN])
            more = "" if len(mounts) <= _MOST_SHOWN else f" and {len(mounts) - _MOST_SHOWN} more"
            yield SourceWarning(
                kind=ChangeKind.MOUNTED,
                text=f"{self.name} is mounted read-write ({shown}{more}): the version may mix old and new bytes; back "
                "up a snapshot, or unmount it first",
            )

    def _has_changed(self, now: os.stat_result, since: datetime | None) -> bool:
        was = self._opened
        if (now.st_mtime_ns, now.st_ctime_ns) != (was.st_mtime_ns, was.st_ctime_ns):
            return True
        # Every write moves the ctime, and nobody can set it back.
        return since is not None and now.st_ctime > since.timestamp()

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
                    f"{self.name} cannot be read at byte {offset + position}: {error.strerror}"
                ) from error
            if count == 0:
                raise SourceError(
                    f"{self.name} ends at byte {offset + position}: it has shrunk since the backup began; "
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
