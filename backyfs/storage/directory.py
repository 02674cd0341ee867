"""Objects as files of a directory, at `ab/cd/<uid>.blob`, as backy2 has them; those with names at `catalog/…`.

An object is there whole or not at all: it is written under a temporary name, its bytes are synced, then
it is renamed, then its directory is synced. `put` writes, `flush` does the rest for all that was put:
one `syncfs` costs about as much as a single `fdatasync`, which made blocks of 4 KiB five times faster.

No symbolic link below the directory is followed (`storage.beneath`), and only regular files are read. Anything else in
the place of an object or of a directory damages what should be there, and nothing more.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
from collections import defaultdict
from typing import TYPE_CHECKING

from backyfs.errors import BlobMissingError, IntegrityError, ObjectMissingError, StorageError, WrongStorageError
from backyfs.files import sync_open_directory
from backyfs.storage import MARKER_NAME, MAX_OBJECT_BYTES
from backyfs.storage.beneath import Root
from backyfs.storage.listing import (
    BLOB,
    BLOB_TEMPORARY,
    NAMED_TEMPORARY,
    list_named,
    list_stored,
    list_uids,
    remove_leftovers,
)
from backyfs.storage.localfiles import file_size, read_at, syncfs, syncfs_can_be_trusted, write_all
from backyfs.storage.oserror import object_error, storage_error
from backyfs.storage.uid import check_name, check_prefix, check_uid

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from backyfs.model import BlobUid, Buffer
    from backyfs.storage import StoredObject


class DirectoryStorage:
    """A storage in a directory. Opening it makes nothing; `opening.create_directory` does.

    If the directory vanishes or is replaced, as by unmounting its file system, every method raises WrongStorageError.
    """

    keeps = True

    def __init__(self, path: str) -> None:
        """Open the storage in the directory `path`.

        Raises:
            StorageError: there is no such directory.
        """
        self._path = os.path.abspath(path)
        if not os.path.isdir(self._path):
            raise StorageError(f"storage directory {self._path} does not exist; is its file system mounted?")
        # Held open all the time: syncfs reports the write errors that came after its descriptor was opened.
        try:
            self._fd = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise storage_error(self._path, error) from error
        self._root = Root(self._path)
        self._has_syncfs = syncfs_can_be_trusted(self._path)
        self._lock = threading.Lock()        # guards the list below
        self._written: list[BlobUid] = []    # under their temporary names
        self._named: list[tuple[str, str]] = []  # likewise those with names: temporary name and name
        self._emptied: set[str] = set()  # directories of named objects that were deleted since the last flush
        self._flush_lock = threading.Lock()  # one flush at a time, and guards the failure
        self._failure: StorageError | None = None

    def close(self) -> None:
        """Let go of the directory, and remove what was put and not flushed: where the disk is full it makes room."""
        for uid in self._written:
            self._remove_temporary(f"{_path_of(uid)}{BLOB_TEMPORARY}")
        for temporary, _ in self._named:
            self._remove_temporary(temporary)
        os.close(self._fd)

    def put(self, uid: BlobUid, parts: Sequence[Buffer]) -> int:
        """Write an object under its temporary name and return its size in bytes."""
        size = self._write(f"{_path_of(uid)}{BLOB_TEMPORARY}", parts)
        with self._lock:
            self._written.append(uid)
        return size

    def _write(self, temporary: str, parts: Sequence[Buffer]) -> int:
        """Write a new file and return its size in bytes; make the directories above it that are missing."""
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
        """Sync what was put, give it its name, sync the names."""
        # What another thread's flush has taken is durable when that one ends: wait for it.
        with self._flush_lock:
            # The kernel tells of bytes that did not reach the disk once; the next sync would say all is well.
            if self._failure is not None:
                raise StorageError(f"{self._failure} (what was put since is lost as well)")
            with self._lock:
                written, self._written = self._written, []
                named, self._named = self._named, []
                emptied, self._emptied = self._emptied, set()
            if not written and not named and not emptied:
                return
            try:
                self._give_names(written, named, emptied)
            except StorageError as error:
                self._failure = error
                with self._lock:
                    self._written += written
                    self._named += named
                raise

    def _give_names(self, written: list[BlobUid], named: list[tuple[str, str]], emptied: set[str]) -> None:
        renames: dict[str, list[tuple[str, str]]] = defaultdict(list)  # in each directory
        for path in map(_path_of, written):
            directory, _, name = path.rpartition("/")
            renames[directory].append((f"{name}{BLOB_TEMPORARY}", f"{name}{BLOB}"))
        for temporary, path in named:
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
        # With the levels above: a run that was killed may have made them and not come to sync them.
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
        except PermissionError:  # it may be written and not read
            return
        except OSError as error:
            raise object_error(self._root, f"{directory}/", error) from error

    def get(self, uid: BlobUid) -> bytes:
        """Return an object.

        Raises:
            BlobMissingError: there is none.
            IntegrityError: it is larger than any that we make.
        """
        path = f"{_path_of(uid)}{BLOB}"
        try:
            fd = self._root.open_to_read(path)
            try:
                size = file_size(fd, MAX_OBJECT_BYTES)
                if size > MAX_OBJECT_BYTES:
                    raise IntegrityError(f"has {size} bytes in the storage, more than any block takes")
                return read_at(fd, 0, size)
            finally:
                os.close(fd)
        except OSError as error:
            raise self._error_of(path, error, BlobMissingError(uid)) from error

    def get_range(self, uid: BlobUid, offset: int, length: int) -> bytes:
        """Return bytes [offset, offset + length) of an object, as far as it has them.

        Raises:
            BlobMissingError: there is none.
        """
        path = f"{_path_of(uid)}{BLOB}"
        try:
            fd = self._root.open_to_read(path)
            try:
                if length <= MAX_OBJECT_BYTES:
                    content = os.pread(fd, length, offset)
                    # The quick way, for nearly every call: only a regular file has a size and gives all that was asked.
                    if len(content) == length and os.lseek(fd, 0, os.SEEK_END) > 0:
                        return content
                there = file_size(fd, MAX_OBJECT_BYTES) - offset
                return read_at(fd, offset, min(length, there, MAX_OBJECT_BYTES)) if there > 0 else b""
            finally:
                os.close(fd)
        except OSError as error:
            raise self._error_of(path, error, BlobMissingError(uid)) from error

    def delete(self, uid: BlobUid) -> None:
        """Delete an object; one that is gone already is fine."""
        path = f"{_path_of(uid)}{BLOB}"
        try:
            self._root.unlink(path)
        except FileNotFoundError:
            self._require_storage()
        except OSError as error:
            raise object_error(self._root, path, error) from error

    def size(self, uid: BlobUid) -> int | None:
        """Return the size of an object in bytes; None where there is none."""
        path = f"{_path_of(uid)}{BLOB}"
        try:
            return self._root.size(path)
        except FileNotFoundError:
            self._require_storage()
            return None
        except OSError as error:
            raise object_error(self._root, path, error) from error

    def list_blobs(self) -> Iterator[BlobUid]:
        """Yield the uid of every object, in no order."""
        self._require_storage()
        return list_uids(self._root)

    def list_stored(self, prefix: str = "") -> Iterator[StoredObject]:
        """Yield every object whose uid begins with a prefix, in no order. What else lies there is passed over."""
        self._require_storage()
        return list_stored(self._root, self._fd, prefix)

    def remove_leftovers(self, older_than_s: float) -> int:
        """Remove temporary files of blobs and of objects with names that were made so long ago."""
        self._require_same_directory()
        return remove_leftovers(self._root, self._fd, older_than_s)

    def put_object(self, name: str, content: bytes) -> None:
        """Write an object that has a name under a temporary one."""
        temporary = self._write_named(name, content)
        with self._lock:
            self._named.append((temporary, name))

    def put_new_object(self, name: str, content: bytes) -> bool:
        """Write an object that has a name, durably, unless one has it already."""
        temporary = self._write_named(name, content)
        try:
            fd = self._root.open(temporary, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
            try:
                self._root.link(temporary, name)  # unlike a rename, this never replaces a file
            except FileExistsError:
                return False
            for directory in _above(name):
                self._sync(directory)
        except OSError as error:
            raise object_error(self._root, name, error) from error
        finally:
            self._remove_temporary(temporary)
        return True

    def _write_named(self, name: str, content: bytes) -> str:
        """Write an object that has a name under a temporary one, and return that."""
        check_name(name)
        temporary = f"{name}.{secrets.token_hex(8)}{NAMED_TEMPORARY}"
        self._write(temporary, [content])
        return temporary

    def get_object(self, name: str, max_bytes: int) -> bytes:
        """Return an object that has a name.

        Raises:
            ObjectMissingError: there is none.
            IntegrityError: it is larger than `max_bytes`.
        """
        check_name(name)
        try:
            fd = self._root.open_to_read(name)
            try:
                size = file_size(fd, max_bytes)
                if size > max_bytes:
                    raise IntegrityError(
                        f"object {name} has more than {max_bytes} bytes, which no object of its kind has"
                    )
                return read_at(fd, 0, size)
            finally:
                os.close(fd)
        except OSError as error:
            raise self._error_of(name, error, ObjectMissingError(name)) from error

    def delete_object(self, name: str) -> None:
        """Delete an object that has a name; one that is gone already is fine."""
        check_name(name)
        try:
            self._root.unlink(name)
            with self._lock:
                self._emptied.add(os.path.dirname(name))
        except FileNotFoundError:
            self._require_storage()
        except OSError as error:
            raise object_error(self._root, name, error) from error

    def list_objects(self, prefix: str) -> Iterator[str]:
        """Yield the names of all objects below a prefix, in no order."""
        check_prefix(prefix)
        self._require_storage()
        return list_named(self._root, prefix)

    def paths(self) -> Sequence[str]:
        """Return the directory."""
        return (self._path,)

    def _require_storage(self) -> None:
        """Refuse to call an object missing where the directory is not, or no longer, that of a storage.

        One that was unmounted and mounted again may have got another number, but has its marker.
        """
        if not self._root.holds(MARKER_NAME):
            self._require_same_directory()

    def _require_same_directory(self) -> None:
        """Refuse to go on where the directory that was opened is no longer at its path."""
        try:
            is_same = os.path.samestat(os.stat(self._path), os.fstat(self._fd))
        except (FileNotFoundError, NotADirectoryError):
            is_same = False
        except OSError as error:
            raise storage_error(self._path, error) from error
        if not is_same:
            raise WrongStorageError(
                f"storage directory {self._path} is not the one that was opened: its file system was unmounted, or "
                "another one was mounted there; mount the right one"
            )

    def _error_of(self, path: str, error: OSError, missing: StorageError) -> StorageError:
        """Return the error of an object that could not be read; `missing` is the one where it is not there."""
        if path != MARKER_NAME:
            self._require_storage()
        return missing if isinstance(error, FileNotFoundError) else object_error(self._root, path, error)

    def _remove_temporary(self, name: str) -> None:
        with contextlib.suppress(OSError):  # it may have got its name before the flush failed
            self._root.unlink(name)


def _path_of(uid: BlobUid) -> str:
    """Return where the files of a blob lie in the storage, without what their names end with."""
    check_uid(uid)
    return f"{uid[:2]}/{uid[2:4]}/{uid}"


def _above(path: str) -> list[str]:
    """Return the directories above a path, from the one it is in up to the storage, which is the empty one."""
    above = []
    while path:
        path = os.path.dirname(path)
        above.append(path)
    return above
