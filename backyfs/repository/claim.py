"""The claim of a repository to its storage.

A storage has a marker (`storage.marker`), which takes one small read each time a repository is opened. A storage
without a marker gets one, unless there is evidence that it is the wrong storage. So nothing is written, deleted, marked
as damaged or relied on in an empty mount point, at a wrong path, or in the storage of another repository.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from backyfs.errors import (
    CatalogError,
    DatabaseError,
    ObjectMissingError,
    ObjectUnreadableError,
    StorageError,
    WrongStorageError,
)
from backyfs.metadata.catalog.notes import catalog_key
from backyfs.metadata.records.blobs import sample_blob_uids
from backyfs.metadata.records.identity import load_storage_state, note_storage_marked
from backyfs.remedies import Advice
from backyfs.storage.marker import put_first_marker, read_marker, replace_marker

if TYPE_CHECKING:
    from collections.abc import Iterable

    from backyfs.metadata.db.database import Database
    from backyfs.model import BlobUid
    from backyfs.storage.protocol import Storage

SAMPLE_BLOBS = 16  # blobs to look for in a storage without a marker

_log = logging.getLogger(__name__)


def check_claim(database: Database, storage: Storage, uid: str) -> bool:
    """Check that the storage belongs to the repository `uid`; return whether it has its marker. Changes nothing.

    Raises:
        WrongStorageError: it does not, or probably does not.
        StorageError, DatabaseError: storage or database cannot be read.
    """
    if not storage.traits.keeps:
        return True
    marked_for = read_marker(storage)
    if marked_for is not None:
        if uid not in marked_for:
            raise _of_another(min(marked_for), uid)
        return True
    with database.read() as connection:
        was_marked = load_storage_state(connection).marked
        has_catalog = catalog_key(connection) is not None
        sample = sample_blob_uids(connection, SAMPLE_BLOBS)
    if was_marked:
        raise _not_there("it has no marker of this repository, but once had one")
    found = _catalog_owner(storage)
    if found is not None:
        if found != uid:
            raise _of_another(found, uid)
        return False
    if has_catalog:
        raise _not_there("it has no catalog, but once had one")
    _require_some_blob(storage, sample)
    return False


def check_before_upgrade(storage: Storage, uids: Iterable[BlobUid]) -> None:
    """Check that a storage has a marker, or one of the blobs that a database with an older schema knows.

    Raises:
        WrongStorageError: it has none of them.
        StorageError: it cannot be read.
    """
    if storage.traits.keeps and read_marker(storage) is None:
        _require_some_blob(storage, uids)


def _require_some_blob(storage: Storage, uids: Iterable[BlobUid]) -> None:
    """Refuse a storage that has none of several blobs; if no blob is known, accept it."""
    missing = 0
    for uid in uids:
        try:
            storage.get_range(uid, 0, 1)
        except ObjectMissingError:
            missing += 1
        except ObjectUnreadableError:  # it is damaged, but there
            return
        else:
            return
    if missing:
        raise _not_there(f"it has none of {missing} blocks that it should have")


def claim(database: Database, storage: Storage, uid: str, *, insist: bool = False) -> None:
    """Check that the storage belongs to the repository `uid`, and mark it if it has no marker yet.

    With `insist`, a storage without a marker is marked whatever the evidence.

    Raises:
        WrongStorageError: it does not, or probably does not.
        StorageError, DatabaseError: storage or database cannot be read.
    """
    try:
        is_marked = check_claim(database, storage, uid)
    except WrongStorageError:
        if not insist or read_marker(storage) is not None:
            raise
        is_marked = False
    if not storage.traits.keeps:
        return
    if not is_marked and not mark(storage, uid):
        return
    with database.read() as connection:
        is_noted = load_storage_state(connection).marked
    if not is_noted and not database.is_read_only:
        try:
            with database.write() as connection:
                note_storage_marked(connection)
        except DatabaseError as error:  # for example on a full disk; the next command tries again
            _log.info("cannot note that the storage is marked: %s", error)


def mark(storage: Storage, uid: str) -> bool:
    """Give a storage the marker of the repository `uid`; return whether it has it now.

    It does not if it cannot be written, as on a read-only file system. Commands can still read it.

    Raises:
        WrongStorageError: it has the marker of another repository.
    """
    try:
        if put_first_marker(storage, uid):
            return True
    except StorageError as error:
        _log.info("the storage cannot be marked for this repository: %s", error)
        return False
    marked_for = read_marker(storage) or frozenset()
    if uid not in marked_for:
        raise _of_another(min(marked_for, default="unknown"), uid)
    return True


def hand_over(storage: Storage, *uids: str) -> None:
    """Let any of these repositories claim a storage, while one takes over the identity of the other.

    Raises:
        StorageError: the storage fails.
    """
    if storage.traits.keeps:
        replace_marker(storage, *uids)


def _catalog_owner(storage: Storage) -> str | None:
    """Return the uid of the repository whose catalog is in the storage; None: there is none, or it is damaged."""
    from backyfs.catalog.store import find_repository  # noqa: PLC0415 - slow to load, and needed once

    try:
        found = find_repository(storage)
    except CatalogError:
        return None
    return None if found is None else found.uid


def _of_another(other: str, uid: str) -> WrongStorageError:
    return WrongStorageError(
        f"belongs to repository {other}, but this is {uid}",
        subject="the storage",
        remedy="if another disk is mounted there, mount the right one; if `path` of [DataBackend], the bucket or "
        "`engine` of [MetaBackend] is wrong, correct it; if this database was taken back to backy2 and upgraded "
        'again, see "Going back" in docs/operate/upgrade.md',
    )


def _not_there(fact: str) -> WrongStorageError:
    return WrongStorageError(
        f"this is not the storage of this repository: {fact}", remedy=Advice.WRITE_CATALOG_IF_LOST()
    )
