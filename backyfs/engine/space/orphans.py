"""Compare the storage with the rows of blobs: find objects without a row, and rows without an object.

    list -> look up -> doomed, if old enough     objects without a row
    rows that were not listed -> read back -> marked as damaged, as by a scrub     rows without an object

A backup stores an object before its row, so an object without a row may be about to get one. It is an orphan once it is
older than every job that could have stored it, because a job that has ended adds no more rows. Only ages are compared,
each measured by one clock; the clocks themselves are never compared. An orphan first gets a doomed row. So it is
deleted like any other blob, even if the cleanup is killed, and an import that needs it gets an error. If the storage is
paid in advance, an orphan must be older than that too.

If the storage held objects before the repository was made, as in a recovery from exports, none of them is an orphan
until somebody asks for it by setting the grace time to zero, because their rows may still be imported.

Memory: a bit for each blob id ever assigned, and 8 bytes for each row without an object.
"""

from __future__ import annotations

import logging
import math
from array import array
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from backyfs.catalog.store import require_catalog
from backyfs.errors import CatalogError
from backyfs.metadata.catalog.notes import NoteKind, catalog_key, existing_uids, read_notes
from backyfs.metadata.db.batches import batches
from backyfs.metadata.db.clock import database_time
from backyfs.metadata.db.idarray import highest_blob_id
from backyfs.metadata.records.blobs import find_sound_by_uid, known_uids, require_sound_uids
from backyfs.metadata.records.identity import load_storage_state, note_storage_objects
from backyfs.metadata.records.jobs import oldest_writer_s
from backyfs.metadata.records.processes import this_process
from backyfs.metadata.upkeep.garbage import LivingBlob, StoredOrphan, doom_orphans, living_blobs
from backyfs.model import BlobId
from backyfs.remedies import Advice
from backyfs.storage.keys import is_blob
from backyfs.work.blobset import BlobSet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from backyfs.metadata.db.database import Connection
    from backyfs.model import BlobUid
    from backyfs.repository import Repository
    from backyfs.storage.protocol import Storage

_log = logging.getLogger(__name__)

_CLOCKS_S = 60         # a clock that is set back while a job runs makes the job look younger
_ROWS_AT_ONCE = 20_000


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """The object of a blob, as the storage lists it."""

    uid: BlobUid
    size_bytes: int
    age_s: float


@dataclass(slots=True, kw_only=True)
class StorageDifferences:
    """How storage and database differ."""

    orphans: int = 0
    orphan_bytes: int = 0
    young_orphans: int = 0  # a running command may be about to add their rows, or they are paid for
    missing: array[int]     # blobs whose object was not listed, or has changed its size


def least_age_s(connection: Connection, grace_s: float) -> float:
    """Return the least age of an object without a row for which no command will add a row any more.

    Call it in a write transaction: the result holds until that ends.
    """
    writer_s = oldest_writer_s(connection, this_process())
    return grace_s if writer_s is None else max(grace_s, writer_s + _CLOCKS_S)


class StorageListing:
    """One comparison. Owned by the thread that calls it."""

    def __init__(self, repository: Repository, check: Callable[[], None], *, prefix: str, grace_s: float) -> None:
        """Prepare to list the objects whose uids begin with a prefix; `check` is called often, and may raise."""
        self._database = repository.database
        self._storage = repository.blocks.storage
        self._catalog = repository.catalog
        self._uid = repository.uid
        self._check = check
        self._prefix = prefix
        self._grace_s = grace_s
        self._paid = timedelta(days=self._storage.traits.paid_days)
        self._seen = BlobSet()

    def run(self, *, doom: bool) -> StorageDifferences:
        """List the storage and compare; doom orphans, or only count them.

        Raises:
            CatalogError: the storage belongs to another repository, or its catalog has versions that the database does
                not know; nothing was doomed.
            OddValueError: the row of a blob is damaged, so its object would look like an orphan; nothing was doomed.
            StorageError, DatabaseError: storage or database fails.
        """
        self._require_same_repository()
        awaits_imports = self._awaits_imports()
        if awaits_imports and self._grace_s:
            self._grace_s = math.inf
        found = StorageDifferences(missing=array("q"))
        with self._database.read() as connection:
            if doom:
                require_sound_uids(connection)
            highest = highest_blob_id(connection)
        for batch in batches(_stored_blobs(self._storage, self._prefix)):
            self._check()
            self._compare(batch, found, doom=doom)
        for blobs in self._living(BlobId(highest)):
            self._check()
            found.missing.extend(blob.id for blob in blobs if blob.id not in self._seen)
        if awaits_imports and self._grace_s and found.young_orphans:
            _log.warning(
                "%d objects are unknown to the database and are kept: the storage held objects before this repository "
                "was made; %s",
                found.young_orphans,
                Advice.DELETE_ORPHANS(),
            )
        elif awaits_imports and doom and not self._prefix:
            with self._database.write() as connection:
                note_storage_objects(connection, had_objects=False)
        return found

    def _awaits_imports(self) -> bool:
        with self._database.read() as connection:
            return load_storage_state(connection).had_objects

    def _compare(self, batch: Sequence[StoredBlob], found: StorageDifferences, *, doom: bool) -> None:
        with self._database.read() as connection:
            there = known_uids(connection, [stored.uid for stored in batch])
            known = find_sound_by_uid(connection, there)
        for stored in batch:
            blob = known.get(stored.uid)
            if blob is not None and blob.facts.stored_size in {None, stored.size_bytes}:
                self._seen.add(blob.id)
        unknown = [stored for stored in batch if stored.uid not in there]
        if unknown:
            self._settle(unknown, found, doom=doom)

    def _settle(self, unknown: Sequence[StoredBlob], found: StorageDifferences, *, doom: bool) -> None:
        with self._database.write() as connection:
            # A job that adds the row of one of these objects does so before this transaction, or is still running.
            least_s = max(least_age_s(connection, self._grace_s), self._paid.total_seconds())
            old = [stored for stored in unknown if stored.age_s >= least_s]
            orphans = [StoredOrphan(uid=stored.uid, stored_size=stored.size_bytes) for stored in old]
            if doom:
                now = database_time(connection)
                doomed = set(doom_orphans(connection, orphans, stored_at=now - self._paid, now=now))
            else:
                uids = {orphan.uid for orphan in orphans}
                doomed = uids - known_uids(connection, uids)
        found.orphans += len(doomed)
        found.orphan_bytes += sum(stored.size_bytes for stored in old if stored.uid in doomed)
        found.young_orphans += len(unknown) - len(old)

    def _living(self, highest: BlobId) -> Iterator[list[LivingBlob]]:
        last = BlobId(0)
        while True:
            with self._database.read() as connection:
                blobs = living_blobs(connection, last, highest, self._prefix, _ROWS_AT_ONCE)
            if not blobs:
                return
            last = blobs[-1].id
            yield blobs

    def _require_same_repository(self) -> None:
        """Refuse a database that is older than its storage: objects it does not know may belong to newer versions."""
        with self._database.read() as connection:
            was_written = catalog_key(connection) is not None
        require_catalog(self._storage, self._uid, was_written=was_written)
        unknown = self._unknown_versions()
        # Check again: a version may have been removed in between.
        if unknown and (unknown := unknown & self._unknown_versions()):
            raise CatalogError(
                f"does not know {len(unknown)} versions of the catalog in the storage, such as {min(unknown)}: it may "
                "be an old copy, and objects without a row may belong to them. Nothing was deleted",
                subject="the database",
                remedy=Advice.RECOVER_OR_DROP_ORPHANS(),
            )

    def _unknown_versions(self) -> set[str]:
        listed = set(self._catalog.version_uids())
        with self._database.read() as connection:
            noted = {note.uid for note in read_notes(connection, NoteKind.VERSION)}
            return listed - existing_uids(connection, NoteKind.VERSION, listed) - noted


def _stored_blobs(storage: Storage, prefix: str) -> Iterator[StoredBlob]:
    for found in storage.list(prefix):
        if is_blob(found.key) and found.size_bytes is not None:
            yield StoredBlob(found.key, found.size_bytes, found.age_s)
