"""The catalog of a repository in its storage: typed reads and writes of its objects."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, TypeVar

from backyfs import keys
from backyfs.catalog.index import pack_index, unpack_index
from backyfs.catalog.objects import (
    INDEX_NAME,
    MAX_STORED,
    PAGES,
    REPOSITORY_NAME,
    VERSIONS,
    Kind,
    digest_of,
    is_uid,
    page_name,
    uid_of,
    version_name,
)
from backyfs.catalog.pages import open_page, pack_page, parse_page
from backyfs.catalog.repository import open_repository_object, pack_repository, read_open_part
from backyfs.catalog.versions import pack_version, unpack_version
from backyfs.errors import CatalogError, IntegrityError, ObjectMissingError, ObjectUnreadableError
from backyfs.remedies import Advice
from backyfs.storage.rereading import read_twice

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from backyfs.catalog.index import CatalogIndex
    from backyfs.catalog.objects import Seal
    from backyfs.catalog.pages import CatalogPage
    from backyfs.catalog.repository import CatalogRepository, OpenPart
    from backyfs.catalog.versions import CatalogVersion
    from backyfs.metadata.catalog.blobcolumns import BlobColumns
    from backyfs.storage.keys import ObjectName
    from backyfs.storage.protocol import Storage

_Read = TypeVar("_Read")


class Catalog:
    """The catalog of one repository. Any thread may call it.

    Writes are durable after `flush`. Every read raises ObjectMissingError if the object does not exist, CatalogError if
    it is damaged or belongs to another repository, and StorageError if the storage fails.
    """

    def __init__(self, storage: Storage, seal: Seal) -> None:
        """Take the catalog in a storage, with the repository and key of its objects."""
        self._storage = storage
        self.seal = seal

    def repository(self) -> CatalogRepository:
        """Read the object of the repository."""
        return open_repository_object(self._open_part(), self.seal.key)

    def repository_digest(self) -> bytes:
        """Return the digest of the object of the repository, which the index names."""
        return self._open_part().parts.digest

    def index(self) -> CatalogIndex:
        """Read the index."""
        return _read(self._storage, INDEX_NAME, Kind.INDEX, partial(unpack_index, self.seal))

    def version(self, uid: str) -> CatalogVersion:
        """Read the object of a version."""
        return self._read(version_name(uid), Kind.VERSION, partial(unpack_version, uid, self.seal))

    def page(self, uid: str) -> CatalogPage:
        """Read the object of a page."""
        return parse_page(uid, self.page_content(uid))

    def page_content(self, uid: str) -> bytes:
        """Read the object of a page and return its content, as `pages.page_content` packs it."""
        return self._read(page_name(uid), Kind.PAGE, partial(open_page, uid, self.seal))

    def put_repository(self, repository: CatalogRepository) -> bytes:
        """Write the object of the repository and return its digest."""
        packed = pack_repository(repository, self.seal.key)
        self._storage.put(REPOSITORY_NAME, [packed])
        return digest_of(packed)

    def put_index(self, index: CatalogIndex) -> None:
        """Write the index."""
        self._storage.put(INDEX_NAME, [pack_index(index, self.seal)])

    def put_version(self, version: CatalogVersion) -> None:
        """Write the object of a version."""
        self._storage.put(version_name(version.version.uid), [pack_version(version, self.seal)])

    def put_page(self, uid: str, entries: Sequence[int], blobs: BlobColumns) -> None:
        """Write the object of a page."""
        self._storage.put(page_name(uid), [pack_page(uid, self.seal, entries, blobs)])

    def delete_versions(self, uids: Iterable[str]) -> None:
        """Delete the objects of versions. Deleting an object that does not exist is not an error."""
        self._storage.delete(list(map(version_name, uids)))

    def delete_pages(self, uids: Iterable[str]) -> None:
        """Delete the objects of pages. Deleting an object that does not exist is not an error."""
        self._storage.delete(list(map(page_name, uids)))

    def version_uids(self) -> Iterator[str]:
        """Yield the uids of all versions with an object, in any order."""
        return self._uids(VERSIONS, version_name)

    def page_uids(self) -> Iterator[str]:
        """Yield the uids of all pages with an object, in any order."""
        return self._uids(PAGES, page_name)

    def _uids(self, prefix: str, name_of: Callable[[str], ObjectName]) -> Iterator[str]:
        for stored in self._storage.list(prefix):
            uid = uid_of(stored.key)
            if stored.key == name_of(uid):
                yield uid

    def flush(self) -> None:
        """Make earlier writes and deletions durable."""
        self._storage.flush()

    def _open_part(self) -> OpenPart:
        return _read(self._storage, REPOSITORY_NAME, Kind.REPOSITORY, read_open_part)

    def _read(self, name: ObjectName, kind: Kind, unpack: Callable[[bytes], _Read]) -> _Read:
        if not is_uid(uid_of(name)):
            raise CatalogError("has a name that no object of a catalog has", subject=f"object {name}")
        return _read(self._storage, name, kind, unpack)


def catalog_key_check(key: bytes | None) -> str:
    """Return the check value of the key that seals the catalog, as stored in the database; empty without a key."""
    return "" if key is None else keys.key_check(key).hex()


def find_repository(storage: Storage) -> OpenPart | None:
    """Return what can be read without a key from the object of the repository; None: there is no catalog.

    Raises:
        CatalogError: the object is damaged.
        StorageError: it cannot be read.
    """
    try:
        return _read(storage, REPOSITORY_NAME, Kind.REPOSITORY, read_open_part)
    except ObjectMissingError:
        return None


def require_catalog(storage: Storage, uid: str, *, was_written: bool) -> None:
    """Make sure that the storage has the catalog of this repository, or no catalog if none was written yet.

    Raises:
        CatalogError: the catalog is that of another repository, or the catalog that was written is gone.
        StorageError: the storage fails.
    """
    found = find_repository(storage)
    if found is None:
        if was_written:
            raise CatalogError(
                "has no catalog, and there was one; is its file system mounted?",
                subject="the storage",
                remedy=Advice.WRITE_CATALOG_IF_DELETED(),
            )
    elif found.uid != uid:
        raise CatalogError(
            f"has the catalog of repository {found.uid}, and this is {uid}",
            subject="the storage",
            remedy="give each repository its own storage",
        )


def _read(storage: Storage, name: ObjectName, kind: Kind, unpack: Callable[[bytes], _Read]) -> _Read:
    try:
        return read_twice(storage, name, lambda: unpack(bytes(storage.get(name, most=MAX_STORED[kind]))))
    except CatalogError:
        raise
    except (IntegrityError, ObjectUnreadableError) as error:
        raise CatalogError(error.fact, subject=error.subject, remedy=error.remedy) from error
