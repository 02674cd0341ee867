"""Objects as files in a directory: blobs at `ab/cd/<uid>.blob`, as in backy2, and named objects at `catalog/…`.

An object is either whole or absent. It is written under a temporary name, its bytes are synced, the file is renamed,
and then its directory is synced. `put` writes; `flush` does the rest for everything that was put. One `syncfs` costs
about as much as a single `fdatasync`, which made blocks of 4 KiB five times faster.

No symbolic link below the directory is followed (`storage.beneath`), and only regular files are read. Anything else in
the place of an object or a directory damages only what should be there.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
from collections import defaultdict
from typing import TYPE_CHECKING

from backyfs.errors import (
    IntegrityError,
    ObjectMissingError,
    ObjectsKeptError,
    ObjectUnreadableError,
    StorageError,
    WrongStorageError,
)
from backyfs.files import sync_open_directory
from backyfs.libc import syncfs
from backyfs.storage.beneath import Root
from backyfs.storage.keys import MARKER_NAME, check_key, is_blob
from backyfs.storage.listing import BLOB, TEMPORARY, list_objects, remove_leftovers
from backyfs.storage.localfiles import file_size, read_at, syncfs_can_be_trusted, write_all
from backyfs.storage.oserror import object_error, storage_error
from backyfs.storage.protocol import MAX_OBJECT_BYTES, NO_REQUESTS, Traits

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from backyfs.model import Buffer
    from backyfs.storage.keys import Key
    from backyfs.storage.protocol import StoredObject


class DirectoryStorage:
    """A storage in a directory. Opening it creates nothing; `newdirectory.create_directory` does.

    If the directory vanishes or is replaced, as by unmounting its file system, every method raises WrongStorageError.
    """

    round_trip_s = 0.0
    requests = NO_REQUESTS

    def __init__(self, path: str) -> None:
        """Open the storage in the directory `path`.

        Raises:
            StorageError: the directory does not exist.
        """
        self._path = os.path.abspath(path)
        if not os.path.isdir(self._path):
            raise StorageError("does not exist; is its file system mounted?", subject=f"storage directory {self._path}")
        # Stays open: syncfs reports the write errors that occurred after its descriptor was opened.
        try:
            self._fd = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise storage_error(self._path, error) from error
        self.traits = Traits(own_paths=(self._path,))
        self._root = Root(self._path)
        self._has_syncfs = syncfs_can_be_trusted(self._path)
        self._lock = threading.Lock()  # guards the next two
        self._written: list[tuple[str, str]] = []  # files that flush renames: temporary and final path
        self._emptied: set[str] = set()  # directories of named objects that were deleted since the last flush
        self._flush_lock = threading.Lock()  # one flush at a time, and guards the failure
        self._failure: StorageError | None = None

    def close(self) -> None:
        """Close the directory, and remove what was put but not flushed, which makes room on a full disk."""
        for temporary, _ in self._written:
            self._remove_temporary(temporary)
        os.close(self._fd)

    def put(self, key: Key, parts: Sequence[Buffer]) -> int:
        """Write an object under its temporary name and return its size in bytes."""
        path = _path_of(key)
        # The uid of a blob is new. Two commands may store the same named object at the same time.
        temporary = f"{path}{TEMPORARY}" if is_blob(key) else _new_temporary(path)
        size = self._write(temporary, parts)
        with self._lock:
            self._written.append((temporary, path))
        return size

    def put_new(self, key: Key, content: Buffer) -> bool:
        """Write an object durably unless its key exists."""
        path = _path_of(key)
        temporary = _new_temporary(path)
        self._write(temporary, [content])
        try:
            fd = self._root.open(temporary, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
            try:
                self._root.link(temporary, path)  # unlike a rename, this never replaces a file
            except FileExistsError:
                return False
            for directory in _above(path):
                self._sync(directory)
        except OSError as error:
            raise object_error(self._root, path, error) from error
        finally:
            self._remove_temporary(temporary)
        return True

    def _write(self, temporary: str, parts: Sequence[Buffer]) -> int:
        """Write a new file and return its size in bytes. Missing directories above it are created."""
        try:
            try:
                fd = self._root.create(temporary)
            except FileNotFoundError:
                self._require_same_directory()
                for directory in _above(temporary)[-2::-1]:  # not the storage itself, if it is gone
                    with contextlib.suppress(FileExistsError):
                        self._root.make_directory(directory)
                fd = self._root.create(temporary)
            try:
                size = write_all(fd, parts)
                if not self._has_syncfs:
                    os.fdatasync(fd)
            except BaseException:
                self._remove_temporary(temporary)
                raise
            finally:
                os.close(fd)
        except OSError as error:
            raise object_error(self._root, temporary, error) from error
        return size

    def flush(self) -> None:
        """Sync what was put, rename it, and sync the directories."""
        # A flush of another thread may have taken objects of this thread along. They are durable when it ends.
        with self._flush_lock:
            # The kernel reports bytes that did not reach the disk once. The next sync would succeed.
            if self._failure is not None:
                first = self._failure
                fact = f"{first.fact} (what was put since is lost as well)"
                raise type(first)(fact, subject=first.subject, remedy=first.remedy) from first
            with self._lock:
                written, self._written = self._written, []
                emptied, self._emptied = self._emptied, set()
            if not written and not emptied:
                return
            try:
                self._give_names(written, emptied)
            except StorageError as error:
                self._failure = error
                with self._lock:
                    self._written += written
                raise

    def _give_names(self, written: list[tuple[str, str]], emptied: set[str]) -> None:
        renames: dict[str, list[tuple[str, str]]] = defaultdict(list)  # in each directory
        for temporary, path in written:
            directory, _, name = path.rpartition("/")
            renames[directory].append((temporary.rpartition("/")[2], name))
        try:
            self._require_same_directory()
            if self._has_syncfs and renames:
                syncfs(self._fd)
        except OSError as error:
            raise storage_error(self._path, error) from error
        for directory, pairs in renames.items():
            self._rename(directory, pairs)
        # Including the levels above: a killed command may have created them without syncing them.
        for directory in {"", *emptied, *renames, *(above for each in renames for above in _above(each))}:
            self._sync(directory)

    def _rename(self, directory: str, pairs: list[tuple[str, str]]) -> None:
        at = directory
        try:
            with self._root.directory(directory) as fd:
                for temporary, name in pairs:
                    at = f"{directory}/{name}"
                    os.rename(temporary, name, src_dir_fd=fd, dst_dir_fd=fd)
        except OSError as error:
            raise object_error(self._root, at, error) from error

    def _sync(self, directory: str) -> None:
        try:
            fd = self._root.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                sync_open_directory(fd)
            finally:
                os.close(fd)
        except PermissionError:  # writable but not readable
            return
        except OSError as error:
            raise object_error(self._root, f"{directory}/", error) from error

    def get(self, key: Key, *, most: int = MAX_OBJECT_BYTES) -> bytes:
        """Return an object.

        Raises:
            ObjectMissingError: it does not exist.
            IntegrityError: it has more than `most` bytes.
        """
        path = _path_of(key)
        try:
            fd = self._root.open_to_read(path)
            try:
                size = file_size(fd, most)
                if size > most:
                    raise _too_large(key, size, most)
                return read_at(fd, 0, size)
            finally:
                os.close(fd)
        except OSError as error:
            raise self._read_error(key, path, error) from error

    def get_range(self, key: Key, offset: int, length: int) -> bytes:
        """Return bytes [offset, offset + length) of an object: fewer, or none, if it ends earlier.

        Raises:
            ObjectMissingError: it does not exist.
        """
        path = _path_of(key)
        try:
            fd = self._root.open_to_read(path)
            try:
                if length <= MAX_OBJECT_BYTES:
                    content = os.pread(fd, length, offset)
                    # The fast path for nearly every call: only a regular file has a size and returns all bytes.
                    if len(content) == length and os.lseek(fd, 0, os.SEEK_END) > 0:
                        return content
                there = file_size(fd, MAX_OBJECT_BYTES) - offset
                return read_at(fd, offset, min(length, there, MAX_OBJECT_BYTES)) if there > 0 else b""
            finally:
                os.close(fd)
        except OSError as error:
            raise self._read_error(key, path, error) from error

    def get_ranges(self, key: Key, wanted: Sequence[range]) -> list[bytes]:
        """Return several ranges of bytes of an object."""
        return [self.get_range(key, part.start, len(part)) for part in wanted]

    def size(self, key: Key) -> int | None:
        """Return the size of an object in bytes; None: it does not exist."""
        path = _path_of(key)
        try:
            return self._root.size(path)
        except FileNotFoundError:
            self._require_storage()
            return None
        except OSError as error:
            raise object_error(self._root, path, error) from error

    def delete(self, keys: Sequence[Key]) -> None:
        """Delete objects. Deleting an object that does not exist is not an error.

        Raises:
            ObjectsKeptError: some objects cannot be deleted. All others were.
        """
        kept: dict[str, ObjectUnreadableError] = {}
        for key in keys:
            try:
                self._delete(key)
            except ObjectUnreadableError as error:
                kept[key] = error
        if kept:
            raise ObjectsKeptError(kept)

    def _delete(self, key: Key) -> None:
        path = _path_of(key)
        try:
            self._root.unlink(path)
        except FileNotFoundError:
            self._require_storage()
        except OSError as error:
            raise object_error(self._root, path, error) from error
        else:
            if not is_blob(key):
                with self._lock:
                    self._emptied.add(os.path.dirname(path))

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        """Yield every object whose key begins with a prefix, in any order. Other files are ignored."""
        self._require_storage()
        return list_objects(self._root, self._fd, prefix)

    def sweep(self, older_than_s: float) -> int:
        """Remove temporary files that are older than this."""
        self._require_same_directory()
        return remove_leftovers(self._root, self._fd, older_than_s)

    def distrust(self, key: Key) -> bool:  # noqa: ARG002 - it is the same for all objects
        """Return False: the file is what it is."""
        return False

    def _require_storage(self) -> None:
        """Refuse to call an object missing if the directory is not, or no longer, that of a storage.

        After unmounting and mounting again, the directory may have another inode number but still has its marker.
        """
        if not self._root.holds(MARKER_NAME):
            self._require_same_directory()

    def _require_same_directory(self) -> None:
        """Refuse to continue if the directory that was opened is no longer at its path."""
        try:
            is_same = os.path.samestat(os.stat(self._path), os.fstat(self._fd))
        except (FileNotFoundError, NotADirectoryError):
            is_same = False
        except OSError as error:
            raise storage_error(self._path, error) from error
        if not is_same:
            raise WrongStorageError(
                "is not the one that was opened: its file system was unmounted, or another one was mounted there",
                subject=f"storage directory {self._path}",
                remedy="mount the right one",
            )

    def _read_error(self, key: Key, path: str, error: OSError) -> StorageError:
        """Return the error for an object that could not be read."""
        if key != MARKER_NAME:
            self._require_storage()
        if isinstance(error, FileNotFoundError):
            return ObjectMissingError(key)
        return object_error(self._root, path, error)

    def _remove_temporary(self, name: str) -> None:
        with contextlib.suppress(OSError):  # a flush that failed may have renamed it
            self._root.unlink(name)


def _path_of(key: Key) -> str:
    """Return the path of an object's file below the directory.

    Raises:
        ObjectUnreadableError: the key is malformed.
    """
    check_key(key)
    return f"{key[:2]}/{key[2:4]}/{key}{BLOB}" if is_blob(key) else key


def _new_temporary(path: str) -> str:
    return f"{path}.{secrets.token_hex(8)}{TEMPORARY}"


def _above(path: str) -> list[str]:
    """Return the directories above a path, from its own up to that of the storage, which is empty."""
    above = []
    while path:
        path = os.path.dirname(path)
        above.append(path)
    return above


def _too_large(key: Key, size: int, most: int) -> IntegrityError:
    if is_blob(key):
        return IntegrityError(f"has {size} bytes in the storage, more than any block takes", subject=f"blob {key}")
    return IntegrityError(f"has more than {most} bytes, which no object of its kind has", subject=f"object {key}")
