"""Open files below a directory without following symbolic links.

Otherwise anyone who can write to a storage could redirect a command that runs as root to any other place. The path of
the directory itself may contain links, because the administrator made those. Mount points below it are fine too.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

from backyfs.files import create_file, make_directory

if TYPE_CHECKING:
    from collections.abc import Iterator

# Kernels before Linux 5.6 and the filters of some containers lack openat2(2). The fallback takes one call for each
# component of the path.
_SYS_OPENAT2 = ctypes.c_long(437)  # the same number on every architecture but alpha
_AT_FDCWD = ctypes.c_int(-100)
_RESOLVE_NO_SYMLINKS = 0x04
_INNER = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC

# Errors that a changed link in the path of the directory can cause.
_MAY_HAVE_MOVED = frozenset({errno.ELOOP, errno.ENOENT, errno.ENOTDIR})

_TYPES = {
    stat.S_IFREG: "a file",
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class _OpenHow(ctypes.Structure):
    """`struct open_how` of openat2(2)."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_HOW_BYTES = ctypes.c_size_t(ctypes.sizeof(_OpenHow))
# Not in Python's os module; ctypes releases the GIL during the call. There are no `argtypes`, which cost half a
# microsecond, and reading goes without errno, which costs a fifth of one.
_syscall = ctypes.CDLL(None, use_errno=True).syscall
_quick_syscall = ctypes.CDLL(None).syscall
# O_NONBLOCK: opening a FIFO would wait for a writer.
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ_HOW = _OpenHow(_READ, 0, _RESOLVE_NO_SYMLINKS)
_READ_HOW_AT = ctypes.byref(_READ_HOW)


class Root:
    """A directory below which files are opened. Any thread may use it; it holds nothing open."""

    def __init__(self, path: str) -> None:
        """Take the absolute path of a directory."""
        self.path = path
        self._real = os.path.realpath(path)
        self._prefix = b"%b/" % os.fsencode(self._real) if has_openat2() else None

    def open_to_read(self, name: str) -> int:
        """Open a file of any type, with an ASCII name, for reading, without waiting for anything.

        Raises:
            OSError: as from open(2); ELOOP if a component is a symbolic link.
        """
        prefix = self._prefix
        if prefix is not None:
            fd: int = _quick_syscall(_SYS_OPENAT2, _AT_FDCWD, prefix + name.encode(), _READ_HOW_AT, _HOW_BYTES)
            if fd >= 0:
                return fd
        return self.open(name, _READ)

    def open(self, name: str, flags: int, mode: int = 0) -> int:
        """Open a file or directory by its name below the directory; an empty name opens the directory itself.

        `flags` and `mode` are those of open(2).

        Raises:
            OSError: as from open(2); ELOOP if a component is a symbolic link.
        """
        real = self._real
        try:
            return self._open(real, name, flags, mode)
        except OSError as error:
            if error.errno in _MAY_HAVE_MOVED:
                self._real = os.path.realpath(self.path)
                if self._real != real:
                    self._prefix = b"%b/" % os.fsencode(self._real) if has_openat2() else None
                    return self._open(self._real, name, flags, mode)
            raise

    @contextmanager
    def directory(self, name: str) -> Iterator[int]:
        """Open a directory for calls that take a `dir_fd`, and close it afterwards.

        Raises:
            OSError: it does not exist.
        """
        fd = self.open(name, _INNER)
        try:
            yield fd
        finally:
            os.close(fd)

    def create(self, name: str) -> int:
        """Create a file, as `files.create_file` does, and return its descriptor, open for writing.

        Raises:
            OSError: the name exists, or the file cannot be created.
        """
        above, _, last = name.rpartition("/")
        # Opening the directory takes a fifth more time, so it is done only if its owner matters.
        if os.geteuid() != 0 or os.lstat(f"{self._real}/{above}").st_uid == 0:
            return self.open(name, _NEW, 0o600)
        with self.directory(above) as fd:
            return create_file(last, dir_fd=fd)

    def make_directory(self, name: str) -> None:
        """Create a directory, as `files.make_directory` does.

        Raises:
            OSError: the name exists, or the directory cannot be created.
        """
        above, _, last = name.rpartition("/")
        with self.directory(above) as fd:
            make_directory(last, dir_fd=fd)

    def unlink(self, name: str) -> None:
        """Remove a file of any type except a directory.

        Raises:
            OSError: it does not exist, or cannot be removed.
        """
        above, _, last = name.rpartition("/")
        with self.directory(above) as fd:
            os.unlink(last, dir_fd=fd)

    def link(self, name: str, other: str) -> None:
        """Give a file another name in the same directory.

        Raises:
            OSError: the other name exists, or the link cannot be made.
        """
        above, _, last = name.rpartition("/")
        with self.directory(above) as fd:
            os.link(last, other.rpartition("/")[2], src_dir_fd=fd, dst_dir_fd=fd, follow_symlinks=False)

    def size(self, name: str) -> int:
        """Return the size of a file in bytes.

        Raises:
            OSError: it does not exist.
        """
        fd = self.open(name, _LOOK)
        try:
            return os.fstat(fd).st_size
        finally:
            os.close(fd)

    def holds(self, name: str) -> bool:
        """Return whether a name exists below the directory, whatever it is."""
        try:
            os.close(self.open(name, _LOOK))
        except OSError:
            return False
        return True

    def obstacle(self, name: str) -> tuple[str, str] | None:
        """Return what has taken the place of a file, or of a directory above it: its path, and its type in words.

        None: nothing has. The name of a directory ends in `/`.
        """
        parts = name.split("/")
        for count in range(1, len(parts) + bool(parts[-1])):
            above = "/".join(parts[:count])
            try:
                fd = self.open(above, _LOOK)
            except OSError:
                return None
            try:
                kind = stat.S_IFMT(os.fstat(fd).st_mode)
            finally:
                os.close(fd)
            if kind != (stat.S_IFREG if count == len(parts) else stat.S_IFDIR):
                return f"{self.path}/{above}", _TYPES.get(kind, "of an unknown type")
        return None

    def _open(self, real: str, name: str, flags: int, mode: int) -> int:
        if self._prefix is None:
            return _open_by_component(real, name, flags, mode)
        path = f"{real}/{name}"
        how = ctypes.byref(_OpenHow(flags, mode, _RESOLVE_NO_SYMLINKS))
        while True:
            fd: int = _syscall(_SYS_OPENAT2, _AT_FDCWD, os.fsencode(path), how, _HOW_BYTES)
            if fd >= 0:
                return fd
            number = ctypes.get_errno()
            if number != errno.EINTR:
                raise OSError(number, os.strerror(number), path)


@cache
def has_openat2() -> bool:
    """Return whether the kernel has openat2(2) and permits its use."""
    how = _OpenHow(os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_NO_SYMLINKS)
    fd: int = _syscall(_SYS_OPENAT2, _AT_FDCWD, b"/", ctypes.byref(how), _HOW_BYTES)
    if fd >= 0:
        os.close(fd)
    return fd >= 0


def _open_by_component(real: str, name: str, flags: int, mode: int) -> int:
    *above, last = name.split("/") if name else [os.curdir]
    directory = os.open(real, _INNER)
    try:
        for part in above:
            inner = os.open(part, _INNER, dir_fd=directory)
            os.close(directory)
            directory = inner
        return os.open(last, flags | os.O_NOFOLLOW, mode, dir_fd=directory)
    finally:
        os.close(directory)
