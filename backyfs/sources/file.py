"""Files and block devices as sources of a backup.

Reading leaves the page cache as it was: pages that were cached stay, pages that the backup brought in are dropped.
Holes are not read, because the file system reports them; `read_holes` is for a file system that reports them wrongly.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from backyfs.errors import SourceError
from backyfs.geometry import Extent
from backyfs.host.devices import writable_mounts
from backyfs.schemes import path_of
from backyfs.sources.change import ChangeKind, SourceWarning
from backyfs.sources.protocol import BACK_UP_A_SNAPSHOT, check_size

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from backyfs.config import Config

_MOST_SHOWN = 3  # mounts in a warning


def open_file(uri: str, config: Config | None, *, read_holes: bool) -> FileSource:
    """Open a path, or `file://PATH`, with what section `[io_file]` says.

    Raises:
        SourceError: as `FileSource` does.
    """
    if config is None:
        return FileSource(path_of(uri), read_holes=read_holes)
    section = config.io_file
    return FileSource(
        path_of(uri), read_holes=read_holes or section.read_holes, parallel=section.simultaneous_reads
    )


class FileSource:
    """An image in a file or on a block device."""

    def __init__(self, path: str, *, read_holes: bool = False, parallel: int | None = None) -> None:
        """Open `path` for reading. With `read_holes`, the holes of a file count as data.

        Raises:
            SourceError: it does not exist, cannot be read, is neither a file nor a block device, is a device without
                bytes, or reports a wrong size.
        """
        self.name = path
        self.parallel = parallel
        self._read_holes = read_holes
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO must not block here
            try:
                self._set_up()
            except BaseException:
                os.close(self._fd)
                raise
        except OSError as error:
            raise SourceError(f"cannot be read: {error.strerror}", subject=path) from error

    def _set_up(self) -> None:
        self._opened = os.fstat(self._fd)
        self._is_file = stat.S_ISREG(self._opened.st_mode)
        if not (self._is_file or stat.S_ISBLK(self._opened.st_mode)):
            raise SourceError("is neither a file nor a block device", subject=self.name, remedy="name an image")
        self.size_bytes = os.lseek(self._fd, 0, os.SEEK_END)
        if not self.size_bytes and not self._is_file:
            raise SourceError(
                "has no bytes: nothing is attached to it", subject=self.name, remedy="attach its disk or image first"
            )
        # No read-ahead: it would fill the page cache with bytes that then seem to have been there before.
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_RANDOM)
        if self._is_file and os.pread(self._fd, 1, self.size_bytes):  # as in /proc
            raise SourceError(
                f"holds more than the {self.size_bytes} bytes it claims: it is growing, or the kernel generates its "
                "content",
                subject=self.name,
                remedy="name a file of fixed size",
            )

    def data_extents(self, start: int = 0) -> Iterator[Extent]:
        """Yield the extents that hold data, by SEEK_DATA and SEEK_HOLE; one extent if these are not supported.

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
                if error.errno == errno.ENXIO:  # no data from here to the end, or the end has moved
                    check_size(self)
                    return
                first, stop = offset, self.size_bytes  # block devices and some file systems return EINVAL
            stop = min(stop, self.size_bytes)
            if first < stop:  # false if the file has grown since it was opened
                yield Extent(first, stop)
            offset = max(stop, first)

    def size_now(self) -> int:
        """Return the size of the file or device now.

        Raises:
            SourceError: the size cannot be determined.
        """
        try:
            return os.lseek(self._fd, 0, os.SEEK_END)
        except OSError as error:
            raise SourceError(f"cannot be asked for its size: {error.strerror}", subject=self.name) from error

    def signs_of_change(self, since: datetime | None = None) -> Iterator[SourceWarning]:
        """Yield a warning if the times of a file changed, and one if a file system on it is mounted read-write.

        Raises:
            SourceError: the file cannot be examined, for example because its server has lost it.
        """
        try:
            now = os.fstat(self._fd)
        except OSError as error:
            raise SourceError(f"cannot be checked for changes: {error.strerror}", subject=self.name) from error
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
        """Fill `buffer` with the bytes from `offset` on. Safe to call from several threads at once.

        Raises:
            SourceError: it cannot be read, or ends before the buffer is full.
        """
        cached = self._read_cached(offset, buffer)
        position = cached
        while position < len(buffer):
            try:
                count = os.preadv(self._fd, [buffer[position:]], offset + position)
            except OSError as error:
                fact = f"cannot be read at byte {offset + position}: {error.strerror}"
                raise SourceError(fact, subject=self.name) from error
            if count == 0:
                raise SourceError(
                    f"ends at byte {offset + position}: it has shrunk since the backup began",
                    subject=self.name,
                    remedy=BACK_UP_A_SNAPSHOT,
                )
            position += count
        if cached < len(buffer):
            os.posix_fadvise(self._fd, offset + cached, len(buffer) - cached, os.POSIX_FADV_DONTNEED)

    def _read_cached(self, offset: int, buffer: memoryview) -> int:
        """Read what the page cache holds, up to the first byte it does not hold; return the number of bytes read."""
        position = 0
        while position < len(buffer):
            try:
                count = os.preadv(self._fd, [buffer[position:]], offset + position, os.RWF_NOWAIT)
            except OSError:  # EAGAIN: not cached; EOPNOTSUPP: this file system does not know
                break
            if count == 0:
                break
            position += count
        return position

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)
