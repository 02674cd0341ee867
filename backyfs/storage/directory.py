"""Objects as files of a directory, at `ab/cd/<uid>.blob`, as backy2 has them; those with names at `catalog/…`.

An object is there whole or not at all: it is written under a temporary name, its bytes are synced, then
it is renamed, then its directory is synced. `put` writes, `flush` does the rest for all that was put:
one `syncfs` costs about as much as a single `fdatasync`, which made blocks of 4 KiB five times faster.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
from typing import TYPE_CHECKING

from backyfs.errors import BlobMissingError, IntegrityError, ObjectMissingError, StorageError, WrongStorageError
from backyfs.files import create_file, make_directory, sync_directory
from backyfs.storage import MARKER_NAME, MAX_OBJECT_BYTES
from backyfs.storage.listing import BLOB, BLOB_TEMPORARY, NAMED_TEMPORARY, list_stored, remove_leftovers
from backyfs.storage.localfiles import (
    read_rest,
    sync_file,
    syncfs,
    syncfs_can_be_trusted,
    write_all,
)
from backyfs.storage.oserror import raise_storage_error, storage_error
from backyfs.storage.uid import NAMED, check_name, check_prefix, check_uid, is_name

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
        self._fd = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._has_syncfs = syncfs_can_be_trusted(self._path)
        self._lock = threading.Lock()        # guards the list below
        self._written: list[BlobUid] = []    # under their temporary names
        self._named: list[tuple[str, str]] = []  # likewise those with names: temporary path and path
        self._emptied: set[str] = set()  # directories of named objects that were deleted since the last flush
        self._flush_lock = threading.Lock()  # one flush at a time, and guards the failure
        self._failure: StorageError | None = None

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
                fd = create_file(temporary)
            except FileNotFoundError:
                self._require_same_directory()
                _make_missing([os.path.dirname(directory), directory])
                fd = create_file(temporary)
            try:
                size = write_all(fd, parts)
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
        try:
            self._require_same_directory()
            if self._has_syncfs and (written or named):
                syncfs(self._fd)
            # With both levels above: a run that was killed may have made them and not come to sync them.
            directories = {self._path, *emptied}
            for uid in written:
                directory = self._directory(uid)
                os.rename(f"{directory}/{uid}{BLOB_TEMPORARY}", f"{directory}/{uid}{BLOB}")
                directories.update((directory, os.path.dirname(directory)))
            for temporary, path in named:
                os.rename(temporary, path)
                directories.update(self._above(path))
            for directory in directories:
                sync_directory(directory)
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
                return stored if len(stored) == size else stored + read_rest(fd)
            finally:
                os.close(fd)
        except FileNotFoundError:
            self._require_storage()
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
            self._require_storage()
            raise BlobMissingError(uid) from None
        except OSError as error:
            raise storage_error(path, error) from error

    def delete(self, uid: BlobUid) -> None:
        """Delete an object; one that is gone already is fine."""
        path = f"{self._directory(uid)}/{uid}{BLOB}"
        try:
            os.unlink(path)
        except FileNotFoundError:
            self._require_storage()
        except OSError as error:
            raise storage_error(path, error) from error

    def size(self, uid: BlobUid) -> int | None:
        """Return the size of an object in bytes; None where there is none."""
        path = f"{self._directory(uid)}/{uid}{BLOB}"
        try:
            return os.stat(path).st_size
        except FileNotFoundError:
            self._require_storage()
            return None
        except OSError as error:
            raise storage_error(path, error) from error

    def list_blobs(self) -> Iterator[BlobUid]:
        """Yield the uid of every object, in no order."""
        self._require_storage()
        for directory, directories, names in os.walk(self._path, onerror=raise_storage_error):
            if directory == self._path and NAMED in directories:
                directories.remove(NAMED)
            for name in names:
                if name.endswith(BLOB):
                    yield _blob_uid(name.removesuffix(BLOB))

    def list_stored(self, prefix: str = "") -> Iterator[StoredObject]:
        """Yield every object whose uid begins with a prefix, in no order. What else lies there is passed over."""
        self._require_storage()
        return list_stored(self._path, self._fd, prefix)

    def remove_leftovers(self, older_than_s: float) -> int:
        """Remove temporary files of blobs and of objects with names that were made so long ago."""
        self._require_same_directory()
        return remove_leftovers(self._path, self._fd, older_than_s)

    def put_object(self, name: str, content: bytes) -> None:
        """Write an object that has a name under a temporary one."""
        temporary, path = self._write_named(name, content)
        with self._lock:
            self._named.append((temporary, path))

    def put_new_object(self, name: str, content: bytes) -> bool:
        """Write an object that has a name, durably, unless one has it already."""
        temporary, path = self._write_named(name, content)
        try:
            sync_file(temporary)
            try:
                os.link(temporary, path)  # unlike a rename, this never replaces a file
            except FileExistsError:
                return False
            for directory in self._above(path):
                sync_directory(directory)
        except OSError as error:
            raise storage_error(path, error) from error
        finally:
            _remove_temporary(temporary)
        return True

    def _write_named(self, name: str, content: bytes) -> tuple[str, str]:
        """Write an object that has a name under a temporary one; return the path of that, and its own."""
        check_name(name)
        path = f"{self._path}/{name}"
        temporary = f"{path}.{secrets.token_hex(8)}{NAMED_TEMPORARY}"
        try:
            try:
                fd = create_file(temporary)
            except FileNotFoundError:
                self._require_same_directory()
                _make_missing(self._above(path)[-2::-1])  # not the storage itself, if it is gone
                fd = create_file(temporary)
            try:
                write_all(fd, [content])
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
        return temporary, path

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
            if name != MARKER_NAME:
                self._require_storage()
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
            os.unlink(path)
            with self._lock:
                self._emptied.add(os.path.dirname(path))
        except FileNotFoundError:
            self._require_storage()
        except OSError as error:
            raise storage_error(path, error) from error

    def list_objects(self, prefix: str) -> Iterator[str]:
        """Yield the names of all objects below a prefix, in no order."""
        check_prefix(prefix)
        self._require_storage()
        start = f"{self._path}/{prefix.removesuffix('/')}"
        if not os.path.lexists(start):
            return
        for directory, _, names in os.walk(start, onerror=raise_storage_error):
            above = os.path.relpath(directory, self._path)
            yield from filter(is_name, (f"{above}/{name}" for name in names))

    def paths(self) -> Sequence[str]:
        """Return the directory."""
        return (self._path,)

    def _require_storage(self) -> None:
        """Refuse to call an object missing where the directory is not, or no longer, that of a storage.

        One that was unmounted and mounted again may have got another number, but has its marker.
        """
        if not os.path.lexists(f"{self._path}/{MARKER_NAME}"):
            self._require_same_directory()

    def _require_same_directory(self) -> None:
        """Refuse to go on where the directory that was opened is no longer at its path."""
        try:
            is_same = os.path.samestat(os.stat(self._path), os.fstat(self._fd))
        except FileNotFoundError:
            is_same = False
        if not is_same:
            raise WrongStorageError(
                f"storage directory {self._path} is not the one that was opened: its file system was unmounted, or "
                "another one was mounted there; mount the right one"
            )

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


def _make_missing(directories: list[str]) -> None:
    # Not make_directories: it would make a storage that is gone again, and sync each directory.
    for directory in directories:
        with contextlib.suppress(FileExistsError):
            make_directory(directory)
