"""Files and block devices as targets of a restore.

A target that exists is changed only on request, and never while it is in use. A file that is new or replaced begins
empty: bytes that are not written read as zeros. When a target is finished, everything is on its disk.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import stat
import threading
from typing import TYPE_CHECKING

from backyfs.errors import TargetError
from backyfs.files import DeviceDirectoryError, create_file, require_no_device_directory, sync_directory
from backyfs.host.loops import with_backing_files
from backyfs.host.occupants import lock, use_of
from backyfs.libc import punch_hole
from backyfs.remedies import Advice, Remedy
from backyfs.schemes import path_of
from backyfs.targets.protocol import Destination

if TYPE_CHECKING:
    from backyfs.config import Config
    from backyfs.host.occupants import Use
    from backyfs.model import Buffer
    from backyfs.targets.protocol import TargetRequest

# _IO(0x12, 127) of linux/fs.h: zero bytes [start, start + length) of a block device, two 64-bit numbers.
_BLKZEROOUT = 0x127F
_FULL = (errno.ENOSPC, errno.EDQUOT)
_ZEROS = bytes(1 << 20)
# For larger writes the kernel allocates larger pieces of memory, which a virtual machine may never have touched:
# 2 GiB in writes of 4 MiB took 1 to 6 s here, in writes of 512 KiB always 0.4 s.
_WRITE_BYTES = 128 << 10
_FAULTS: dict[int, tuple[str, str | Remedy]] = {
    errno.EEXIST: ("already exists", Advice.OVERWRITE_OR_NAME_TARGET()),
    errno.EBUSY: ("is in use", "unmount it, or detach what uses it, first"),
    errno.ENOENT: ("cannot be created: its directory does not exist", "create the directory first"),
    errno.ETXTBSY: ("is in use as a running program or as swap", "end that, or name another target"),
    errno.ENOSPC: (
        "cannot be written: no space is left on its file system", "make room there, or name another target"
    ),
    errno.EISDIR: ("is a directory", "name a file in it"),
}


def find_file(uri: str, config: Config | None) -> Destination:
    """Look up a path, or `file://PATH`, with what section `[io_file]` says.

    Raises:
        TargetError: it is neither a file nor a block device, or cannot be examined.
    """
    path = path_of(uri)
    parallel = None if config is None else config.io_file.simultaneous_writes
    about = _examine(path)
    is_device = about is not None and stat.S_ISBLK(about.st_mode)

    def open_it(request: TargetRequest) -> FileTarget:
        return FileTarget(
            path,
            request.size_bytes,
            replace=request.replace,
            kept_bytes=request.kept_bytes,
            syncs=request.syncs,
            parallel=parallel,
        )

    return Destination(
        uri=path,
        name=path,
        open=open_it,
        exists=about is not None,
        size_bytes=about.st_size if about is not None and stat.S_ISREG(about.st_mode) else None,
        is_device=is_device,
        keeps=True,
        files=with_backing_files(path),
    )


class FileTarget:
    """A new file, an existing file, or a block device."""

    def __init__(
        self,
        path: str,
        size_bytes: int,
        *,
        replace: bool,
        kept_bytes: int | None = None,
        syncs: bool = True,
        parallel: int | None = None,
    ) -> None:
        """Open `path` for an image of this size, and lock it.

        With `kept_bytes`, it must exist, and this many bytes at its start stay as they are. A file is emptied behind
        them and gets the right size. With `syncs`, `finish` waits for the disk.

        Raises:
            TargetError: it exists and may not be replaced; it must exist and does not; it is a device and too small;
                it is in use, or cannot be written.
        """
        self._path = path
        self._syncs = syncs
        self.parallel = parallel
        self.size_bytes = size_bytes
        about = _examine(path)
        self._is_device = about is not None and stat.S_ISBLK(about.st_mode)
        # The kernel lets one thread at a time write into a file; threads that wait for it there spin on a core.
        self._one_writer = threading.Lock()
        try:
            self._fd = self._open(replace=replace, must_exist=kept_bytes is not None)
            try:
                # Before anything is changed. The lock keeps out virtual machines and other restores from now on.
                refuse_use(use_of(self._fd) or lock(self._fd), path)
                self._make_room(kept_bytes or 0)
            except BaseException:
                os.close(self._fd)
                raise
        except OSError as error:
            raise self._error(error) from error
        self._empty_from = size_bytes if self._is_device else kept_bytes or 0

    def _open(self, *, replace: bool, must_exist: bool) -> int:
        flags = os.O_RDWR | os.O_CLOEXEC
        if self._is_device:
            if not (replace or must_exist):
                raise TargetError("is a block device", subject=self._path, remedy=Advice.OVERWRITE_TARGET())
            # O_EXCL on a block device: EBUSY if it is mounted or otherwise in use, open(2).
            return os.open(self._path, flags | os.O_EXCL)
        if must_exist and not os.path.exists(self._path):
            raise TargetError(
                "does not exist", subject=self._path, remedy="name the target of an earlier restore"
            )
        require_no_device_directory(self._path)
        if not must_exist:
            try:  # a dangling symbolic link names the file to create
                return create_file(os.path.realpath(self._path) if replace else self._path, os.O_RDWR)
            except FileExistsError:
                if not replace:
                    raise
        return os.open(self._path, flags)

    def _make_room(self, kept_bytes: int) -> None:
        size_bytes = os.lseek(self._fd, 0, os.SEEK_END)
        if self._is_device:
            if size_bytes < self.size_bytes:
                raise TargetError(
                    f"is too small: it has {size_bytes} bytes, the image needs {self.size_bytes}",
                    subject=self._path,
                    remedy="use a larger device",
                )
            return
        # Only if there is something to cut off: ext4 assumes that a file truncated to nothing is being replaced, and
        # writes all of it to the disk when it is closed.
        if size_bytes > kept_bytes:
            os.ftruncate(self._fd, kept_bytes)
        os.ftruncate(self._fd, self.size_bytes)

    @property
    def begins_empty(self) -> bool:
        """Whether all of it reads as zeros until it is written."""
        return self._empty_from == 0

    @property
    def readable(self) -> FileTarget:
        """The target itself: files and devices can be read."""
        return self

    def write(self, offset: int, block: Buffer) -> None:
        """Write a block. Safe to call from several threads at once.

        Raises:
            TargetError: it cannot be written.
        """
        rest = memoryview(block)
        try:
            with self._one_writer:
                while rest:
                    count = os.pwrite(self._fd, rest[:_WRITE_BYTES], offset)
                    rest = rest[count:]
                    offset += count
        except OSError as error:
            raise self._error(error) from error

    def write_zeros(self, offset: int, length: int) -> None:
        """Make a range read as zeros: nothing to do where a file begins empty, otherwise a hole if possible.

        Raises:
            TargetError: it cannot be written.
        """
        length = min(length, max(0, self._empty_from - offset))
        if not length or self._unmap(offset, length):
            return
        for start in range(0, length, len(_ZEROS)):
            self.write(offset + start, _ZEROS[: min(len(_ZEROS), length - start)])

    def _unmap(self, offset: int, length: int) -> bool:
        """Make zeros without writing any; return False if that is not possible: alignment, or no support."""
        try:
            if self._is_device:
                fcntl.ioctl(self._fd, _BLKZEROOUT, array.array("Q", [offset, length]))
            else:
                punch_hole(self._fd, offset, length)
        except OSError:
            return False
        return True

    def leave(self, offset: int, length: int) -> None:
        """Do nothing: the old content stays."""

    def read_into(self, offset: int, buffer: bytearray) -> None:
        """Fill `buffer` with the target's bytes from `offset` on. Safe to call from several threads at once.

        Raises:
            TargetError: it cannot be read.
        """
        position = 0
        with memoryview(buffer) as view:
            while position < len(view):
                try:
                    count = os.preadv(self._fd, [view[position:]], offset + position)
                except OSError as error:
                    fact = f"cannot be read at byte {offset + position}: {error.strerror}"
                    raise TargetError(fact, subject=self._path) from error
                if count == 0:
                    raise self._cut_off(offset + position)
                position += count

    def is_zeros(self, offset: int, length: int) -> bool:
        """Return whether a range reads as zeros. Holes are not read, because the file system reports them.

        Raises:
            TargetError: it cannot be read.
        """
        stop = offset + length
        while offset < stop:
            try:
                offset = os.lseek(self._fd, offset, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:  # no data from here to the end, unless the end has moved
                    self._check_reaches(stop)
                    return True
            if offset >= stop:
                return True
            buffer = bytearray(min(len(_ZEROS), stop - offset))
            self.read_into(offset, buffer)
            if buffer != (_ZEROS if len(buffer) == len(_ZEROS) else _ZEROS[: len(buffer)]):
                return False
            offset += len(buffer)
        return True

    def _check_reaches(self, stop: int) -> None:
        size_bytes = os.fstat(self._fd).st_size
        if not self._is_device and size_bytes < stop:
            raise self._cut_off(size_bytes)

    def _cut_off(self, size_bytes: int) -> TargetError:
        return TargetError(f"ends at byte {size_bytes}: another program truncated it", subject=self._path)

    def drop_cache(self) -> None:
        """Write everything to the disk and drop it from memory, so that later reads come from the disk.

        Raises:
            TargetError: not everything reached the disk.
        """
        self._sync()
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def finish(self) -> None:
        """End the writing, and wait until everything is on the disk, including the name of a file.

        Raises:
            TargetError: not everything reached the disk.
        """
        if self._syncs:
            self._sync()

    def _sync(self) -> None:
        try:
            os.fsync(self._fd)
            if not self._is_device:  # even if the file existed before: a restore that was killed may have created it
                sync_directory(os.path.dirname(os.path.realpath(self._path)))
        except OSError as error:
            step = "make room there" if error.errno in _FULL else "look at the log of the kernel (dmesg)"
            raise TargetError(
                f"did not reach the disk in full: {error.strerror}",
                subject=self._path,
                remedy=Advice.RESTORE_AGAIN(step=step),
            ) from error

    def close(self) -> None:
        """Close the file or device.

        Raises:
            TargetError: a network file system reports only now that something was not written.
        """
        try:
            os.close(self._fd)
        except OSError as error:
            raise self._error(error) from error

    def _error(self, error: OSError) -> TargetError:
        if isinstance(error, DeviceDirectoryError):
            return TargetError(str(error.strerror), subject=f"{self._path}:")
        fact, remedy = _FAULTS.get(error.errno or 0, (f"cannot be written: {error.strerror}", None))
        return TargetError(fact, subject=self._path, remedy=remedy)


def refuse_use(use: Use | None, name: str) -> None:
    """Make sure that a target is not in use.

    Raises:
        TargetError: it is.
    """
    if use is not None:
        raise TargetError(f"is in use: {use.fact}", subject=name, remedy=use.remedy)


def _examine(path: str) -> os.stat_result | None:
    """Return the facts about a file or block device, None if there is nothing; a directory is refused when opened.

    Raises:
        TargetError: it is something else, or cannot be examined.
    """
    try:
        about = os.stat(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise TargetError(str(error.strerror), subject=f"{path}:") from error
    if not (stat.S_ISREG(about.st_mode) or stat.S_ISBLK(about.st_mode) or stat.S_ISDIR(about.st_mode)):
        raise TargetError(
            "is neither a file nor a block device", subject=path, remedy="name a file or a block device"
        )
    return about
