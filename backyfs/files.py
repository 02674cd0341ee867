"""Create files and directories: complete, durable, and owned by the owner of their directory.

Root also works in repositories of other users. It creates files in a user's directory with that user's identity
(setfsuid(2), for this thread only), so the user owns them from the start. With a `chown` afterwards, the user's own
commands would fail until it ran, and the user could swap the file before it.
"""

from __future__ import annotations

import errno
import os
import secrets
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, BinaryIO, TypeVar

from backyfs.libc import set_file_user

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_Made = TypeVar("_Made")

_NEW = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PIECE_BYTES = 1 << 20
_DEVICES = "/dev"
_SHARED_MEMORY = "/dev/shm"  # noqa: S108 - used only if the user names it; shm_overview(7)
# Some file systems cannot sync a directory; PostgreSQL ignores the same errors.
_CANNOT_SYNC = frozenset({errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.ENOSYS})


class DeviceDirectoryError(OSError):
    """A regular file would be created in /dev; the message says so, and what to do."""


def create_file(path: str, flags: int = os.O_WRONLY, *, dir_fd: int | None = None) -> int:
    """Create a file with mode 0600 and return its descriptor; `flags` are additional flags for open(2).

    Raises:
        OSError: the name is taken, or the file cannot be created.
    """
    return _make(path, dir_fd, lambda name, directory: os.open(name, flags | _NEW, 0o600, dir_fd=directory))


def open_file(path: str, flags: int, *, dir_fd: int | None = None) -> int:
    """Open a file. If it is missing, create it as `create_file` does, but never in /dev.

    Raises:
        OSError: the file can neither be opened nor created.
    """
    with suppress(FileNotFoundError):
        return os.open(path, flags | os.O_CLOEXEC, dir_fd=dir_fd)
    if dir_fd is None:
        require_no_device_directory(path)
        path = os.path.realpath(path)  # a dangling symbolic link names the file to create
    with suppress(FileExistsError):  # another command has just created it
        return create_file(path, flags, dir_fd=dir_fd)
    return os.open(path, flags | os.O_CLOEXEC, dir_fd=dir_fd)


def make_directory(path: str, *, dir_fd: int | None = None) -> None:
    """Create a directory with mode 0700.

    Raises:
        OSError: the name is taken, or the directory cannot be created.
    """
    _make(path, dir_fd, lambda name, directory: os.mkdir(name, 0o700, dir_fd=directory))


def make_directories(path: str) -> None:
    """Create a directory and its missing parents, durably. Existing directories are not changed.

    `os.makedirs` would not do: it applies the mode to the last directory only and the umask to its parents.

    Raises:
        OSError: one of them cannot be created.
    """
    path = os.path.abspath(path)
    missing = []
    while not os.path.lexists(path):
        missing.append(path)
        path = os.path.dirname(path)
    for directory in reversed(missing):
        require_no_device_directory(directory)
        with suppress(FileExistsError):  # another command has just created it
            make_directory(directory)
        sync_directory(os.path.dirname(directory))


@contextmanager
def new_file(path: str) -> Iterator[BinaryIO]:
    """Yield a file that gets its name only when it is complete and on disk. It never replaces an existing file.

    Raises:
        OSError: the name is taken, or the file cannot be written.
    """
    require_no_device_directory(path)
    if os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, "it already exists", path)
    draft = f"{path}.{os.getpid()}.new"
    fd = create_file(draft)
    try:
        with open(fd, "wb") as file:
            yield file
            sync_file(file)
        link_durably(draft, path)
    finally:
        os.unlink(draft)


def write_file(path: str, content: bytes) -> None:
    """Write a new file durably. If the program is killed, part of the file may remain.

    Raises:
        OSError: the name is taken, or the file cannot be written.
    """
    with open(create_file(path), "wb") as file:
        file.write(content)
        sync_file(file)
    sync_directory(os.path.dirname(path))


def replace_file(path: str, content: bytes, mode: int) -> None:
    """Replace a file atomically and durably: readers see either the old or the new content.

    Raises:
        OSError: it cannot be written; the old file is unchanged.
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


def link_durably(draft: str, path: str) -> None:
    """Give a file a second name, durably. Unlike a rename, this never replaces a file.

    Raises:
        OSError: the name is taken, or the file cannot be linked.
    """
    os.link(draft, path)
    sync_directory(os.path.dirname(path))


def read_input(path: str, most: int) -> bytes:
    """Return the content of a file that the user named. It can be a FIFO, such as the shell's `<(command)`.

    Raises:
        OSError: it cannot be read, or has more than `most` bytes (a device may never end).
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
    """Wait until everything written to an open file is on disk.

    Raises:
        OSError: writing it back failed.
    """
    file.flush()
    os.fsync(file.fileno())


def sync_directory(path: str) -> None:
    """Wait until the entries of a directory are on disk. An empty path means the current directory.

    Do nothing if the file system does not support it, or if the directory is writable but not readable.

    Raises:
        OSError: writing them back failed.
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
    """Wait until the entries of an open directory are on disk, if the file system supports it.

    Raises:
        OSError: writing them back failed.
    """
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise


def require_no_device_directory(path: str) -> None:
    """Refuse to create a regular file in /dev: a mistyped device name would fill the memory of the host.

    Raises:
        DeviceDirectoryError: `path` is in /dev, or in another place where its file system is mounted.
    """
    directory = os.path.dirname(os.path.realpath(path))
    if _is_below(directory, _SHARED_MEMORY):
        return
    if _is_below(directory, _DEVICES) or _is_device_file_system(directory):
        fact = "there is no such device, and a regular file in its place would fill memory; check the name"
        raise DeviceDirectoryError(errno.EINVAL, fact, path)


def _is_below(path: str, directory: str) -> bool:
    return path == directory or path.startswith(f"{directory}/")


def _is_device_file_system(directory: str) -> bool:
    """Return whether a directory is in the file system of /dev, which containers and chroots may mount elsewhere."""
    try:
        devices = os.stat(_DEVICES).st_dev
        return os.stat(directory).st_dev == devices != os.stat("/").st_dev
    except OSError:  # one of them does not exist
        return False


def _make(path: str, dir_fd: int | None, make: Callable[[str, int | None], _Made]) -> _Made:
    """Call `make` with a name and a directory, with the identity of the directory's owner."""
    above, name = os.path.split(path)
    if os.geteuid() != 0 or not _is_of_user(above or os.curdir, dir_fd):
        return make(path, dir_fd)
    # Kept open: the directory must not be swapped between looking up its owner and creating the file.
    directory = os.open(above or os.curdir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        owner = os.fstat(directory)
        # If even its owner may not write to the directory, that is deliberate, and root keeps files it creates there.
        with suppress(PermissionError), _acting_as(owner.st_uid, owner.st_gid):
            return make(name, directory)
        return make(name, directory)
    except OSError as error:
        error.filename = path  # the whole path, not just the last part
        raise
    finally:
        os.close(directory)


def _is_of_user(directory: str, dir_fd: int | None) -> bool:
    try:
        return os.stat(directory, dir_fd=dir_fd).st_uid != 0
    except OSError:  # creating the file will report why
        return False


@contextmanager
def _acting_as(uid: int, gid: int) -> Iterator[None]:
    """Let this thread alone access files as another user. Without the privilege, nothing changes."""
    try:
        set_file_user(uid, gid)
        yield
    finally:
        set_file_user(os.geteuid(), os.getegid())
