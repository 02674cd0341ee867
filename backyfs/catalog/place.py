"""Whether the storage is the one that the catalog was written to: a mount point without its file system is not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backyfs import keys
from backyfs.catalog.objects import MAX_STORED, REPOSITORY_NAME, Kind
from backyfs.catalog.repository import read_open_part
from backyfs.errors import CatalogError, IntegrityError, ObjectMissingError, ObjectUnreadableError

if TYPE_CHECKING:
    from backyfs.catalog.repository import OpenPart
    from backyfs.storage import Storage


def catalog_key_check(key: bytes | None) -> str:
    """Return the check value of the key that seals the catalog, as the database has it; empty for none."""
    return "" if key is None else keys.key_check(key).hex()


def find_repository(storage: Storage) -> OpenPart | None:
    """Return what the catalog says openly of its repository; None: there is no catalog.

    Raises:
        CatalogError: the object is damaged.
        StorageError: it cannot be read.
    """
    try:
        return read_open_part(get_stored(storage, REPOSITORY_NAME, Kind.REPOSITORY))
    except ObjectMissingError:
        return None


def get_stored(storage: Storage, name: str, kind: Kind) -> bytes:
    """Return the stored bytes of an object.

    Raises:
        ObjectMissingError: there is none.
        CatalogError: it is larger than any of its kind, or cannot be read.
        StorageError: it cannot be read.
    """
    try:
        return storage.get_object(name, MAX_STORED[kind])
    except (IntegrityError, ObjectUnreadableError) as error:
        raise CatalogError(str(error)) from error


def require_catalog(storage: Storage, uid: str, *, was_written: bool) -> None:
    """Make sure that the storage has the catalog of this repository, or none where none was written yet.

    Raises:
        CatalogError: it has another one, or the one that was written is gone.
        StorageError: it cannot be asked.
    """
    found = find_repository(storage)
    if found is None:
        if was_written:
            raise CatalogError(
                "the storage has no catalog, and there was one; is its file system mounted? If the catalog was "
                "deleted, `backyfs catalog push --all` writes it anew"
            )
    elif found.uid != uid:
        raise CatalogError(
            f"the storage has the catalog of repository {found.uid}, and this is {uid}; give each a storage of its own"
        )
