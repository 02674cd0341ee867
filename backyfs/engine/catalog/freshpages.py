"""Pages that a backup has just committed, written to the catalog from the records that are still in memory.

Reading a thousand blobs back takes longer than everything else about writing a page's object. A page with blobs that
are no longer remembered is left to `engine.catalog.publish` at the end. So is a page whose object cannot be put, and
one after which no flush follows. Owned by the thread that owns the database, except for `put`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from itertools import islice
from operator import attrgetter
from typing import TYPE_CHECKING

from backyfs.catalog.store import catalog_key_check, require_catalog
from backyfs.errors import CatalogError, StorageError
from backyfs.metadata.catalog.blobcolumns import BlobColumns
from backyfs.metadata.catalog.notes import catalog_key, page_token, settle_put_pages, unpublished_page
from backyfs.metadata.maps.blockmap import HOLE

if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterable, Mapping

    from backyfs.metadata.db.database import Connection
    from backyfs.model import BlobId, BlobUid, PageId, SavedBlob
    from backyfs.repository import Repository

_COLUMNS = {
    "uids": "uid",
    "fingerprints": "fingerprint",
    "sizes": "size",
    "stored_sizes": "stored_size",
    "encryption_versions": "encryption_version",
    "wrapped_keys": "wrapped_key",
}
_UID = attrgetter("uid")
_REMEMBERED = 12_288  # blobs of two flushes and a page, 8 MB

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class FreshPage:
    """A page whose object can be written."""

    id: PageId
    uid: str
    entries: array[int]
    blobs: tuple[SavedBlob, ...]    # in the order of their ids
    blob_ids: tuple[int, ...]


class FreshPages:
    """The pages of one backup, on their way to the catalog."""

    def __init__(self, repository: Repository) -> None:
        self._catalog = repository.catalog
        self._blobs: dict[int, SavedBlob] = {}
        self._committed: list[FreshPage] = []
        self._put: dict[PageId, str] = {}
        self._flushing: dict[PageId, str] = {}
        self._token = 0  # of all pages, before the first of them was put
        self._is_on = self._can_be_put(repository)

    def _can_be_put(self, repository: Repository) -> bool:
        if not repository.blocks.storage.traits.keeps:
            return False
        try:
            with repository.database.read() as connection:
                self._token = page_token(connection)
                is_current = catalog_key(connection) == catalog_key_check(self._catalog.seal.key)
            require_catalog(repository.blocks.storage, repository.uid, was_written=True)
        except (StorageError, CatalogError) as error:
            _log.info("the catalog is written at the end of the backup: %s", error)
            return False
        return is_current

    def remember(self, saved: Iterable[SavedBlob], ids: Mapping[BlobUid, BlobId]) -> None:
        """Remember blobs that have rows now."""
        new = list(saved)
        self._blobs.update(zip(map(ids.__getitem__, map(_UID, new)), new, strict=True))
        for blob_id in list(islice(self._blobs, max(0, len(self._blobs) - _REMEMBERED))):
            del self._blobs[blob_id]

    def note_committed(self, connection: Connection, page_id: PageId, entries: array[int]) -> None:
        """Note a page that is committed in this transaction."""
        if not self._is_on:
            return
        named = set(entries) - {HOLE}
        if not named <= self._blobs.keys():  # ABSENT is not one of them
            return
        uid = unpublished_page(connection, page_id)
        if uid is not None:
            wanted = sorted(named)
            blobs = tuple(map(self._blobs.__getitem__, wanted))
            self._committed.append(
                FreshPage(id=page_id, uid=uid, entries=entries, blobs=blobs, blob_ids=tuple(wanted))
            )

    def take(self) -> list[FreshPage]:
        """Return the committed pages, which have to be put."""
        taken, self._committed = self._committed, []
        return taken

    def put(self, page: FreshPage) -> bool:
        """Put the object of a page into the storage, in any thread; return False if that fails."""
        column = {name: tuple(map(attrgetter(field), page.blobs)) for name, field in _COLUMNS.items()}
        columns = BlobColumns(ids=page.blob_ids, valid=(True,) * len(page.blobs), **column)
        try:
            self._catalog.put_page(page.uid, page.entries, columns)
        except (StorageError, CatalogError) as error:
            _log.info("page %s is written at the end of the backup: %s", page.uid, error)
            return False
        return True

    def note_put(self, page: FreshPage) -> None:
        """Note a page that was put."""
        self._put[page.id] = page.uid

    def begin_flush(self) -> None:
        """Note the start of a flush, which covers everything put earlier. Only one runs at a time."""
        self._flushing, self._put = self._put, {}

    def settle(self, connection: Connection) -> None:
        """Note in a write transaction that the flush ended, so its pages are in the catalog."""
        if self._flushing:
            settle_put_pages(connection, self._flushing, self._token)
            self._flushing = {}
