"""Files and block devices as targets of a restore.

A target that exists is touched only when that was asked for; one that is in use never is. Bytes that
were not written read as zeros once `finish` has returned.
"""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import os
import stat
import threading

from backyfs.errors import TargetError

# _IO(0x12, 127) of linux/fs.h: zero bytes [start, start + length) of a block device, two 64-bit numbers.
_BLKZEROOUT = 0x127F
_ZEROS = bytes(1 << 20)
# For larger writes the kernel takes larger pieces of memory, which a virtual machine may never have touched:
# 2 GiB in writes of 4 MiB took 1 to 6 s here, in writes of 512 KiB always 0.4 s.
_WRITE_BYTES = 128 << 10


class FileTarget:
    """A new file, an existing file that may be replaced, or a block device."""

    def __init__(self, path: str, size_bytes: int, *, replace: bool) -> None:
        """Open `path` for an image of this size.

        Raises:
            TargetError: it exists and may not be replaced, is too small a device, is in use, or cannot be
                written.
        """
        self._path = path
        self.size_bytes = size_bytes
        self.is_device = _is_device(path)
        # The kernel lets one write into a file at a time; threads that wait for it there spin on a core.
        self._one_writer = threading.Lock()
        try:
            self._fd = self._open(replace=replace)
            try:
                if self.is_device:
                    self._check_room()
                else:
                    # Not for a new file: ext4 takes a truncated one for one that is being replaced, and writes
                    # all of it to the disk when it is closed.
                    if os.fstat(self._fd).st_size:
                        os.ftruncate(self._fd, 0)
                    os.ftruncate(self._fd, size_bytes)
            except BaseException:
                os.close(self._fd)
                raise
        except OSError as error:
            raise self._error(error) from error

    def _open(self, *, replace: bool) -> int:
        if self.is_device:
            if not replace:
                raise TargetError(f"{self._path} is a block device; add --force to overwrite what is on it")
            # O_EXCL on a block device: EBUSY where it is mounted or otherwise in use, open(2).
            return os.open(self._path, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | (0 if replace else os.O_EXCL)
        return os.open(self._path, flags, 0o600)

    def _check_room(self) -> None:
        room = os.lseek(self._fd, 0, os.SEEK_END)
        if room < self.size_bytes:
            raise TargetError(
                f"{self._path} is too small: it has {room} bytes, the image needs {self.size_bytes}; "
                "use a larger device"
            )

    def write(self, offset: int, block: bytes) -> None:
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
        """Make a range read as zeros: nothing to do in a file, which began empty.

        Raises:
            TargetError: it cannot be written.
        """
        if not self.is_device:
            return
        with contextlib.suppress(OSError):  # not aligned to sectors, or not known to the driver: written below
            fcntl.ioctl(self._fd, _BLKZEROOUT, array.array("Q", [offset, length]))
            return
        for start in range(0, length, len(_ZEROS)):
            self.write(offset + start, _ZEROS[: min(len(_ZEROS), length - start)])

    def finish(self) -> None:
        """End the writing; on a block device, wait until everything is on the disk.

        A file is left to the kernel, as cp and tar leave theirs: waiting for the disk takes as long as the rest.

        Raises:
            TargetError: it does not get there.
        """
        if not self.is_device:
            return
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise self._error(error) from error

    def close(self) -> None:
        """Let go of the target."""
        os.close(self._fd)

    def _error(self, error: OSError) -> TargetError:
        remedy = {
            errno.EEXIST: "it exists; name another target, or add --force to overwrite it",
            errno.EBUSY: "it is in use; unmount it or detach what uses it first",
            errno.ENOENT: "its directory does not exist; make it first",
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
