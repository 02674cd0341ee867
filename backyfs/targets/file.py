"""Files and block devices as targets of a restore.

A target that exists is touched only when that was asked for; one that is in use never is. A file that is new or
replaced begins empty: bytes that are not written read as zeros. A target that is finished is on its disk.
"""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import os
import stat
import threading
from typing import TYPE_CHECKING

from backyfs.errors import TargetError
from backyfs.files import DeviceDirectoryError, create_file, require_no_device_directory, sync_directory

if TYPE_CHECKING:
    from collections.abc import Callable

    from backyfs.model import Buffer

# _IO(0x12, 127) of linux/fs.h: zero bytes [start, start + length) of a block device, two 64-bit numbers.
_BLKZEROOUT = 0x127F
_PUNCH_HOLE = 0x03  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE of linux/falloc.h
_FULL = (errno.ENOSPC, errno.EDQUOT)
_ZEROS = bytes(1 << 20)
# For larger writes the kernel takes larger pieces of memory, which a virtual machine may never have touched:
# 2 GiB in writes of 4 MiB took 1 to 6 s here, in writes of 512 KiB always 0.4 s.
_WRITE_BYTES = 128 << 10


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
        examine: Callable[[int], None] = lambda _fd: None,
    ) -> None:
        """Open `path` for an image of this size.

        With `kept_bytes` it has to exist, and so many bytes from its start stay as they are. In a file all after
        them begins empty, and the size is made right. `examine` is called with the open descriptor before anything is
        changed, and raises TargetError where the target must stay as it is. `syncs`: `finish` waits for the disk.

        Raises:
            TargetError: it exists and may not be replaced, or does not and should; it is too small a device, is
                in use, or cannot be written.
        """
        self._path = path
        self._syncs = syncs
        self.size_bytes = size_bytes
        self.is_device = _is_device(path)
        # The kernel lets one write into a file at a time; threads that wait for it there spin on a core.
        self._one_writer = threading.Lock()
        try:
            self._fd = self._open(replace=replace, exists=kept_bytes is not None)
            try:
                examine(self._fd)
                self._make_room(kept_bytes or 0)
            except BaseException:
                os.close(self._fd)
                raise
        except OSError as error:
            raise self._error(error) from error
        self._empty_from = size_bytes if self.is_device else kept_bytes or 0

    def _open(self, *, replace: bool, exists: bool) -> int:
        flags = os.O_RDWR | os.O_CLOEXEC
        if self.is_device:
            if not (replace or exists):
                raise TargetError(f"{self._path} is a block device; add --force to overwrite what is on it")
            # O_EXCL on a block device: EBUSY where it is mounted or otherwise in use, open(2).
            return os.open(self._path, flags | os.O_EXCL)
        if exists and not os.path.exists(self._path):
            raise TargetError(f"{self._path} does not exist; name the target of an earlier restore")
        require_no_device_directory(self._path)
        if not exists:
            try:  # a symbolic link that leads nowhere names the file to make
                return create_file(os.path.realpath(self._path) if replace else self._path, os.O_RDWR)
            except FileExistsError:
                if not replace:
                    raise
        return os.open(self._path, flags)

    def _make_room(self, kept_bytes: int) -> None:
        size_bytes = os.lseek(self._fd, 0, os.SEEK_END)
        if self.is_device:
            if size_bytes < self.size_bytes:
                raise TargetError(
                    f"{self._path} is too small: it has {size_bytes} bytes, the image needs {self.size_bytes}; "
                    "use a larger device"
                )
            return
        # Not where there is nothing to cut off: ext4 takes a file that was truncated to nothing for one that is
        # being replaced, and writes all of it to the disk when it is closed.
        if size_bytes > kept_bytes:
            os.ftruncate(self._fd, kept_bytes)
        os.ftruncate(self._fd, self.size_bytes)

    @property
    def begins_empty(self) -> bool:
        """Whether all of it reads as zeros until it is written."""
        return self._empty_from == 0

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
        """Make a range read as zeros: nothing to do in a file that begins empty there, else a hole if that can be.

        Raises:
            TargetError: it cannot be written.
        """
        length = min(length, max(0, self._empty_from - offset))
        if not length or self._unmap(offset, length):
            return
        for start in range(0, length, len(_ZEROS)):
            self.write(offset + start, _ZEROS[: min(len(_ZEROS), length - start)])

    def _unmap(self, offset: int, length: int) -> bool:
        """Make zeros without writing any; return False where that cannot be, for want of alignment or support."""
        if not self.is_device:
            # Not in the os module of Python.
            hole = (_PUNCH_HOLE, ctypes.c_int64(offset), ctypes.c_int64(length))
            return bool(ctypes.CDLL(None, use_errno=True).fallocate(self._fd, *hole) == 0)
        try:
            fcntl.ioctl(self._fd, _BLKZEROOUT, array.array("Q", [offset, length]))
        except OSError:
            return False
        return True

    def leave(self, offset: int, length: int) -> None:
        """Do nothing: what was there stays."""

    def read_into(self, offset: int, buffer: bytearray) -> None:
        """Fill `buffer` with what the target has from `offset` on. Safe to call from several threads at once.

        Raises:
            TargetError: it cannot be read.
        """
        position = 0
        with memoryview(buffer) as view:
            while position < len(view):
                try:
                    count = os.preadv(self._fd, [view[position:]], offset + position)
                except OSError as error:
                    raise TargetError(
                        f"{self._path} cannot be read at byte {offset + position}: {error.strerror}"
                    ) from error
                if count == 0:
                    raise self._cut_off(offset + position)
                position += count

    def is_zeros(self, offset: int, length: int) -> bool:
        """Tell whether a range reads as zeros. Holes are asked for, not read.

        Raises:
            TargetError: it cannot be read.
        """
        stop = offset + length
        while offset < stop:
            try:
                offset = os.lseek(self._fd, offset, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:  # no data from here to the end, if that is where it was
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
        if not self.is_device and size_bytes < stop:
            raise self._cut_off(size_bytes)

    def _cut_off(self, size_bytes: int) -> TargetError:
        return TargetError(f"{self._path} ends at byte {size_bytes}: somebody else has cut it off")

    def drop_cache(self) -> None:
        """Write everything to the disk and forget it, so that what is read from now on comes from there.

        Raises:
            TargetError: it does not get there.
        """
        self._sync()
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def finish(self) -> None:
        """End the writing, and wait until everything is on the disk, the name of a file included.

        Raises:
            TargetError: it does not get there.
        """
        if self._syncs:
            self._sync()

    def _sync(self) -> None:
        try:
            os.fsync(self._fd)
            if not self.is_device:  # also of one that was there: a restore that was killed may have made it
                sync_directory(os.path.dirname(os.path.realpath(self._path)))
        except OSError as error:
            remedy = "make room there" if error.errno in _FULL else "look at the log of the kernel (dmesg)"
            raise TargetError(
                f"{self._path} did not reach the disk in full: {error.strerror}; {remedy}, then restore it again with "
                "--force, or to another disk"
            ) from error

    def close(self) -> None:
        """Let go of the target.

        Raises:
            TargetError: a network file system reports only now that something was not written.
        """
        try:
            os.close(self._fd)
        except OSError as error:
            raise self._error(error) from error

    def _error(self, error: OSError) -> TargetError:
        if isinstance(error, DeviceDirectoryError):
            return TargetError(f"{self._path}: {error.strerror}")
        remedy = {
            errno.EEXIST: "it exists; name another target, or add --force to overwrite it",
            errno.EBUSY: "it is in use; unmount it or detach what uses it first",
            errno.ENOENT: "its directory does not exist; make it first",
            errno.ETXTBSY: "it is in use, as a running program or as swap; end that or name another target",
            errno.ENOSPC: "no space is left on its file system; make room or name another target",
            errno.EISDIR: "it is a directory; name a file in it",
        }.get(error.errno or 0, f"it cannot be written: {error.strerror}")
        return TargetError(f"{self._path}: {remedy}")


def _is_device(path: str) -> bool:
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return False
    except OSError as error:
        raise TargetError(f"{path}: {error.strerror}") from error
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode) or stat.S_ISDIR(mode)):
        raise TargetError(f"{path} is neither a file nor a block device; name one of these")
    return stat.S_ISBLK(mode)
