"""Objects as files of a directory, at `ab/cd/<uid>.blob`, as backy2 has them; those with names at `catalog/…`.

An object is there whole or not at all: it is written under a temporary name, its bytes are synced, then
it is renamed, then its directory is synced. `put` writes, `flush` does the rest for all that was put:
one `syncfs` costs about as much as a single `fdatasync`, which made blocks of 4 KiB five times faster.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import secrets
import threading
from typing import TYPE_CHECKING

from backyfs.directories import make_directories
from backyfs.errors import BlobMissingError, IntegrityError, ObjectMissingError, StorageError
from backyfs.storage import MAX_OBJECT_BYTES
from backyfs.storage.listing import BLOB, BLOB_TEMPORARY, NAMED_TEMPORARY, list_stored, remove_leftovers
from backyfs.storage.oserror import raise_storage_error, storage_error
from backyfs.storage.uid import NAMED, check_name, check_prefix, check_uid, is_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from backyfs.model import BlobUid, Buffer
    from backyfs.storage import StoredObject

# For larger writes the kernel takes larger pieces of memory, and those a virtual machine may never have touched.
_WRITE_BYTES = 128 << 10
# Where syncfs(2) is known to write data and wait for the disk. Elsewhere (FUSE, network) it may do nothing.
_SYNCFS_FILE_SYSTEMS = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "bcachefs", "zfs", "tmpfs"})


class DirectoryStorage:
    """A storage in a directory. Opening it makes nothing; `create` does."""

    def __init__(self, path: str) -> None:
        """Open the storage in the directory `path`.

        Raises:
            StorageError: there is no such directory.
        """
        self._path = os.path.abspath(path)
        if not os.path.isdir(self._path):
            raise StorageError(f"storage directory {self._path} does not exist; is its file system mounted?")
        # Held open all the time: syncfs reports the write errors that came after its descriptor was opened.
        self._fd = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._has_syncfs = _syncfs_can_be_trusted(self._path)
        self._lock = threading.Lock()        # guards the list below
        self._written: list[BlobUid] = []    # under their temporary names
        self._named: list[tuple[str, str]] = []  # likewise those with names: temporary path and path
        self._flush_lock = threading.Lock()  # one flush at a time, and guards the failure
        self._failure: StorageError | None = None

    @staticmethod
    def create(path: str) -> None:
        """Make the directory of a new storage, mode 0700.

        Raises:
            StorageError: it exists and is not empty, or cannot be made.
        """
        try:
            make_directories(path)
            there = os.listdir(path)
            if NAMED in there:
                raise StorageError(
                    f"storage directory {path} holds a repository; `backyfs recover {path}` rebuilds its database, or "
                    "name another directory"
                )
            if there:
                raise StorageError(f"storage directory {path} is not empty; name another one")
        except OSError as error:
            raise storage_error(path, error) from error

    def close(self) -> None:
        """Let go of the directory, and remove what was put and not flushed: where the disk is full it makes room."""
        for uid in self._written:
            _remove_temporary(f"{self._directory(uid)}/{uid}{BLOB_TEMPORARY}")
        for temporary, _ in self._named:
            _remove_temporary(temporary)
        os.close(self._fd)

    def put(self, uid: BlobUid, parts: Sequence[Buffer]) -> int:
        """Write an object under its temporary name and return its size in bytes."""
        directory = self._directory(uid)
        temporary = f"{directory}/{uid}{BLOB_TEMPORARY}"
        try:
            try:
                fd = _create(temporary)
            except FileNotFoundError:
                _make_directories(directory)
                fd = _create(temporary)
            try:
                size = _write_all(fd, parts)
                if not self._has_syncfs:
                    os.fdatasync(fd)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
                raise
            finally:
                os.close(fd)
        except OSError as error:
            raise storage_error(temporary, error) from error
        with self._lock:
            self._written.append(uid)
        return size

    def flush(self) -> None:
        """Sync what was put, give it its name, sync the names."""
        # What another thread's flush has taken is durable when that one ends: wait for it.
        with self._flush_lock:
            # The kernel tells of bytes that did not reach the disk once; the next sync would say all is well.
            if self._failure is not None:
                raise StorageError(f"{self._failure} (what was put since is lost as well)")
            with self._lock:
                written, self._written = self._written, []
                named, self._named = self._named, []
            if not written and not named:
                return
            try:
                self._give_names(written, named)
            except StorageError as error:
                self._failure = error
                with self._lock:
                    self._written += written
                    self._named += named
                raise

    def _give_names(self, written: list[BlobUid], named: list[tuple[str, str]]) -> None:
        try:
            if self._has_syncfs:
                _syncfs(self._fd)
            # With both levels above: a run that was killed may have made them and not come to sync them.
            directories = {self._path}
            for uid in written:
                directory = self._directory(uid)
                os.rename(f"{directory}/{uid}{BLOB_TEMPORARY}", f"{directory}/{uid}{BLOB}")
                directories.update((directory, os.path.dirname(directory)))
            for temporary, path in named:
                os.rename(temporary, path)
                directories.update(self._above(path))
            for directory in directories:
                _sync_directory(directory)
        except OSError as error:
            raise storage_error(self._path, error) from error

    def get(self, uid: BlobUid) -> bytes:
        """Return an object.

        Raises:
            BlobMissingError: there is none.
            IntegrityError: it is larger than any that we make.
        """
        path = f"{self._directory(uid)}/{uid}{BLOB}"
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                size = os.fstat(fd).st_size
                if size > MAX_OBJECT_BYTES:
                    raise IntegrityError(f"has {size} bytes in the storage, more than any block takes")
                stored = os.read(fd, size)
                return stored if len(stored) == size else stored + _read_rest(fd)
            finally:
                os.close(fd)
        except FileNotFoundError:
            raise BlobMissingError(uid) from None
        except OSError as error:
            raise storage_error(path, error) from error

    def get_range(self, uid: BlobUid, offset: int, length: int) -> bytes:
        """Return bytes [offset, offset + length) of an object, as far as it has them.

        Raises:
            BlobMissingError: there is none.
        """
        path = f"{self._directory(uid)}/{uid}{BLOB}"
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                stored = os.pread(fd, length, offset)
                while len(stored) < length and (more := os.pread(fd, length - len(stored), offset + len(stored))):
                    stored += more
                return stored
            finally:
                os.close(fd)
        except FileNotFoundError:
            raise BlobMissingError(uid) from None
        except OSError as error:
            raise storage_error(path, error) from error

    def delete(self, uid: BlobUid) -> None:
        """Delete an object; one that is gone already is fine."""
        path = f"{self._directory(uid)}/{uid}{BLOB}"
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        except OSError as error:
            raise storage_error(path, error) from error

    def size(self, uid: BlobUid) -> int | None:
        """Return the size of an object in bytes; None where there is none."""
        path = f"{self._directory(uid)}/{uid}{BLOB}"
        try:
            return os.stat(path).st_size
        except FileNotFoundError:
            return None
        except OSError as error:
            raise storage_error(path, error) from error

    def list_blobs(self) -> Iterator[BlobUid]:
        """Yield the uid of every object, in no order."""
        for directory, directories, names in os.walk(self._path, onerror=raise_storage_error):
            if directory == self._path and NAMED in directories:
                directories.remove(NAMED)
            for name in names:
                if name.endswith(BLOB):
                    yield _blob_uid(name.removesuffix(BLOB))

    def list_stored(self, prefix: str = "") -> Iterator[StoredObject]:
        """Yield every object whose uid begins with a prefix, in no order. What else lies there is passed over."""
        return list_stored(self._path, self._fd, prefix)

    def remove_leftovers(self, older_than_s: float) -> int:
        """Remove temporary files of blobs and of objects with names that were made so long ago."""
        return remove_leftovers(self._path, self._fd, older_than_s)

    def put_object(self, name: str, content: bytes) -> None:
        """Write an object that has a name under a temporary one."""
        check_name(name)
        path = f"{self._path}/{name}"
        temporary = f"{path}.{secrets.token_hex(8)}{NAMED_TEMPORARY}"
        try:
            try:
                fd = _create(temporary)
            except FileNotFoundError:
                for directory in reversed(self._above(path)[:-1]):  # not the storage itself, if it is gone
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(directory, 0o700)
                fd = _create(temporary)
            try:
                _write_all(fd, [content])
                if not self._has_syncfs:
                    os.fdatasync(fd)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
                raise
            finally:
                os.close(fd)
        except OSError as error:
            raise storage_error(temporary, error) from error
        with self._lock:
            self._named.append((temporary, path))

    def get_object(self, name: str, max_bytes: int) -> bytes:
        """Return an object that has a name.

        Raises:
            ObjectMissingError: there is none.
            IntegrityError: it is larger than `max_bytes`.
        """
        check_name(name)
        path = f"{self._path}/{name}"
        try:
            with open(path, "rb", buffering=0) as file:
                content = file.read(max_bytes + 1) if os.fstat(file.fileno()).st_size <= max_bytes else None
        except FileNotFoundError:
            raise ObjectMissingError(name) from None
        except OSError as error:
            raise storage_error(path, error) from error
        if content is None or len(content) > max_bytes:
            raise IntegrityError(f"object {name} has more than {max_bytes} bytes, which no object of its kind has")
        return content

    def delete_object(self, name: str) -> None:
        """Delete an object that has a name; one that is gone already is fine."""
        check_name(name)
        path = f"{self._path}/{name}"
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        except OSError as error:
            raise storage_error(path, error) from error

    def list_objects(self, prefix: str) -> Iterator[str]:
        """Yield the names of all objects below a prefix, in no order."""
        check_prefix(prefix)
        start = f"{self._path}/{prefix.removesuffix('/')}"
        if not os.path.lexists(start):
            return
        for directory, _, names in os.walk(start, onerror=raise_storage_error):
            above = os.path.relpath(directory, self._path)
            yield from filter(is_name, (f"{above}/{name}" for name in names))

    def paths(self) -> Sequence[str]:
        """Return the directory."""
        return (self._path,)

    def _above(self, path: str) -> list[str]:
        """Return the directories above a path, from the one it is in up to the storage."""
        above = []
        while path != self._path:
            path = os.path.dirname(path)
            above.append(path)
        return above

    def _directory(self, uid: BlobUid) -> str:
        check_uid(uid)
        return f"{self._path}/{uid[:2]}/{uid[2:4]}"


def _blob_uid(name: str) -> BlobUid:
    return name  # type: ignore[return-value]  # a uid is text; what is in the directory names itself


def _remove_temporary(path: str) -> None:
    with contextlib.suppress(OSError):  # it may have got its name before the flush failed
        os.unlink(path)


def _create(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def _make_directories(path: str) -> None:
    # Not os.makedirs: it gives the mode to the last directory alone, and would make a storage that is gone anew.
    for directory in (os.path.dirname(path), path):
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory, 0o700)


def _write_all(fd: int, parts: Sequence[Buffer]) -> int:
    size = sum(memoryview(part).nbytes for part in parts)
    if size <= _WRITE_BYTES and os.writev(fd, parts) == size:
        return size
    os.lseek(fd, 0, os.SEEK_SET)  # a write that came short has met a limit or a full disk: go on to hear which
    for part in parts:
        rest = memoryview(part)
        while rest:
            rest = rest[os.write(fd, rest[:_WRITE_BYTES]) :]
    # The kernel begins to write dirty pages that are not needed: the disk is busy before the flush comes.
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    return size


def _read_rest(fd: int) -> bytes:
    pieces = []
    while piece := os.read(fd, 1 << 20):
        pieces.append(piece)
    return b"".join(pieces)


def _sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _syncfs(fd: int) -> None:
    # Not in the os module of Python; ctypes releases the GIL while it waits.
    if ctypes.CDLL(None, use_errno=True).syncfs(fd) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _syncfs_can_be_trusted(path: str) -> bool:
    # Before Linux 5.8 syncfs said nothing of bytes that could not be written, syncfs(2).
    release = tuple(int(number) for number in re.findall(r"\d+", os.uname().release)[:2])
    return release >= (5, 8) and _file_system_type(path) in _SYNCFS_FILE_SYSTEMS


def _file_system_type(path: str) -> str:
    """Return the type of the file system that holds `path`, from proc(5) mountinfo; empty if unknown."""
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
            for line in lines:
                fields = line.split(" ")
                if fields[2] == wanted:
                    return fields[fields.index("-") + 1]
    except OSError:
        pass
    return ""  # btrfs subvolumes have device numbers of their own: fdatasync serves them
