"""Files and directories that the program makes: whole, durable, and of use to the owner of their directory.

Root also works in the repositories of users. What it makes in a user's directory belongs to that user from the first
moment, because this thread makes it with the user's identity, setfsuid(2). A `chown` afterwards would leave a moment in
which the user's own commands are refused, and the user could put something else in its place first.
"""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, BinaryIO, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_Made = TypeVar("_Made")

_NEW = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PIECE_BYTES = 1 << 20
_DEVICES = "/dev"
_SHARED_MEMORY = "/dev/shm"  # noqa: S108 - nothing is made there unless a user names it; shm_overview(7)
# Some file systems cannot sync a directory; PostgreSQL passes over the same ones.
_CANNOT_SYNC = frozenset({errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.ENOSYS})


class DeviceDirectoryError(OSError):
    """A regular file would lie among the devices; the message says so, and what to do."""


def create_file(path: str, flags: int = os.O_WRONLY, *, dir_fd: int | None = None) -> int:
    """Make a file that must not exist yet, mode 0600, and return it open; `flags` are further ones of open(2).

    Raises:
        OSError: there is something with this name, or it cannot be made.
    """
    return _make(path, dir_fd, lambda name, directory: os.open(name, flags | _NEW, 0o600, dir_fd=directory))


def open_file(path: str, flags: int, *, dir_fd: int | None = None) -> int:
    """Open a file, which is made if it is missing, as `create_file` does, but not among the devices.

    Raises:
        OSError: it can neither be opened nor made.
    """
    with suppress(FileNotFoundError):
        return os.open(path, flags | os.O_CLOEXEC, dir_fd=dir_fd)
    if dir_fd is None:
        require_no_device_directory(path)
        path = os.path.realpath(path)  # a symbolic link that leads nowhere yet names the file to make
    with suppress(FileExistsError):  # another command has made it since
        return create_file(path, flags, dir_fd=dir_fd)
    return os.open(path, flags | os.O_CLOEXEC, dir_fd=dir_fd)


def make_directory(path: str, *, dir_fd: int | None = None) -> None:
    """Make a directory that nobody but its owner may look into.

    Raises:
        OSError: there is something with this name, or it cannot be made.
    """
    _make(path, dir_fd, lambda name, directory: os.mkdir(name, 0o700, dir_fd=directory))


def make_directories(path: str) -> None:
    """Make a directory and those above it that are missing, durable; what exists stays as it is.

    Not by `os.makedirs`: it gives the mode to the last one alone, and leaves the others to the umask.

    Raises:
        OSError: one of them cannot be made.
    """
    path = os.path.abspath(path)
    missing = []
    while not os.path.lexists(path):
        missing.append(path)
        path = os.path.dirname(path)
    for directory in reversed(missing):
        require_no_device_directory(directory)
        with suppress(FileExistsError):  # another command has made it since
            make_directory(directory)
        sync_directory(os.path.dirname(directory))


@contextmanager
def new_file(path: str) -> Iterator[BinaryIO]:
    """Give a file that gets its name, durably, when all of it is on the disk; a file that exists is not replaced.

    Raises:
        OSError: there is something with this name, or it cannot be written.
    """
    require_no_device_directory(path)
    if os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, "it exists already", path)
    draft = f"{path}.{os.getpid()}.new"
    fd = create_file(draft)
    try:
        with open(fd, "wb") as file:
            yield file
            sync_file(file)
        give_name(draft, path)
    finally:
        os.unlink(draft)


def write_file(path: str, content: bytes) -> None:
    """Write a file that must not exist yet, durably; it may be there in part if the program is killed.

    Raises:
        OSError: there is something with this name, or it cannot be written.
    """
    with open(create_file(path), "wb") as file:
        file.write(content)
        sync_file(file)
    sync_directory(os.path.dirname(path))


def replace_file(path: str, content: bytes, mode: int) -> None:
    """Write a file, durably: readers see the whole old one or the whole new one.

    Raises:
        OSError: it cannot be written; the old one is still there.
    """
    require_no_device_directory(path)
    directory, name = os.path.split(path)
    draft = os.path.join(directory, f".{name}.{secrets.token_hex(4)}")
    fd = create_file(draft)
    try:
        with open(fd, "wb") as file:
            os.fchmod(fd, mode)
            file.write(content)
            sync_file(file)
        os.replace(draft, path)
    except BaseException:
        os.unlink(draft)
        raise
    sync_directory(directory)


def give_name(draft: str, path: str) -> None:
    """Give a file a second name, durably; unlike a rename, this never replaces a file.

    Raises:
        OSError: there is something with this name, or it cannot be given.
    """
    os.link(draft, path)
    sync_directory(os.path.dirname(path))


def read_input(path: str, most: int) -> bytes:
    """Return what is in a file that the user named: also a FIFO, as `<(command)` of a shell is one.

    Raises:
        OSError: it cannot be read, or has more than `most` bytes; a device may go on for ever.
    """
    with open(path, "rb") as file:
        return read_stream(file, most)


def read_stream(file: BinaryIO, most: int) -> bytes:
    """Return the rest of an open file.

    Raises:
        OSError: it cannot be read, or has more than `most` bytes.
    """
    content = bytearray()
    while piece := file.read(_PIECE_BYTES):
        content += piece
        if len(content) > most:
            raise OSError(errno.EFBIG, f"it has more than {most} bytes")
    return bytes(content)


def sync_file(file: BinaryIO) -> None:
    """Wait until everything written to an open file is on the disk.

    Raises:
        OSError: it does not get there.
    """
    file.flush()
    os.fsync(file.fileno())


def sync_directory(path: str) -> None:
    """Wait until the names in a directory are on the disk; empty is the current one.

    Where the file system cannot do that, or the directory may be written but not read, it does nothing.

    Raises:
        OSError: they do not get there.
    """
    try:
        fd = os.open(path or os.curdir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:
        return
    try:
        sync_open_directory(fd)
    finally:
        os.close(fd)


def sync_open_directory(fd: int) -> None:
    """Wait until the names in an open directory are on the disk, if the file system can do that.

    Raises:
        OSError: they do not get there.
    """
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise


def require_no_device_directory(path: str) -> None:
    """Make sure that a regular file at `path` would not lie among the devices, where it fills the memory of the host.

    That is what becomes of a device whose name has a typing mistake.

    Raises:
        DeviceDirectoryError: it would.
    """
    directory = os.path.dirname(os.path.realpath(path))
    if _is_below(directory, _SHARED_MEMORY):
        return
    if _is_below(directory, _DEVICES) or _is_device_file_system(directory):
        fact = "there is no device with this name, and a file among the devices would fill memory; check the name"
        raise DeviceDirectoryError(errno.EINVAL, fact, path)


def _is_below(path: str, directory: str) -> bool:
    return path == directory or path.startswith(f"{directory}/")


def _is_device_file_system(directory: str) -> bool:
    """Tell whether a directory is in the file system of /dev, which a container or chroot may have elsewhere too."""
    try:
        devices = os.stat(_DEVICES).st_dev
        return os.stat(directory).st_dev == devices != os.stat("/").st_dev
    except OSError:  # one of them is not there
        return False


def _make(path: str, dir_fd: int | None, make: Callable[[str, int | None], _Made]) -> _Made:
    """Call `make` with a name and a directory, as the owner of that directory."""
    above, name = os.path.split(path)
    if os.geteuid() != 0 or not _is_of_user(above or os.curdir, dir_fd):
        return make(path, dir_fd)
    # Held open, so that the directory whose owner it gets is the one in which it is made.
    directory = os.open(above or os.curdir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        owner = os.fstat(directory)
        # A directory that its owner may not write to is closed on purpose: root's files in it stay root's.
        with suppress(PermissionError), _acting_as(owner.st_uid, owner.st_gid):
            return make(name, directory)
        return make(name, directory)
    except OSError as error:
        error.filename = path  # not only its last part
        raise
    finally:
        os.close(directory)


def _is_of_user(directory: str, dir_fd: int | None) -> bool:
    try:
        return os.stat(directory, dir_fd=dir_fd).st_uid != 0
    except OSError:  # to make something in it will say why
        return False


@contextmanager
def _acting_as(uid: int, gid: int) -> Iterator[None]:
    """Let this thread, and no other one, use files as another user; without the right to, nothing changes."""
    libc = ctypes.CDLL(None)  # not in the os module of Python
    try:
        libc.setfsgid(ctypes.c_uint32(gid))
        libc.setfsuid(ctypes.c_uint32(uid))
        yield
    finally:
        libc.setfsuid(ctypes.c_uint32(os.geteuid()))
        libc.setfsgid(ctypes.c_uint32(os.getegid()))
