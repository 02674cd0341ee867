"""Rebuild the database from the catalog in the storage and the key alone.

    list versions -> read a version -> read its pages -> insert
    owner            owner             worker            owner

Anything that cannot be read is reported and skipped. A shared page is read once: the database itself is asked which
pages exist, so memory grows with neither versions nor blobs. A version that lacks a page gets absent blocks in its
place and becomes invalid. Reading them is an error and does not return zeros.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from backyfs import keys
from backyfs.catalog.objects import REPOSITORY_NAME, Seal, page_name, version_name
from backyfs.catalog.repository import open_repository_object
from backyfs.catalog.store import Catalog, catalog_key_check, find_repository
from backyfs.engine.catalog.index import Fault, fault_of, index_faults
from backyfs.errors import CatalogError, MissingKeyError, ObjectMissingError, WrongKeyError
from backyfs.geometry import PAGE_ENTRIES, block_count, block_length, page_count, page_length
from backyfs.keys.slots import open_with
from backyfs.metadata.catalog.index import IndexState
from backyfs.metadata.db.batches import batches
from backyfs.metadata.maps.blockmap import insert_version_pages
from backyfs.metadata.records.blobs import find_by_uid, load_blobs
from backyfs.metadata.records.identity import note_storage_marked
from backyfs.metadata.records.stats import insert_statistics_records
from backyfs.metadata.records.versions import insert_version, set_status
from backyfs.metadata.schema.recovery import (
    PageFiller,
    begin_recovery,
    blob_ids_after,
    end_recovery,
    forget_note,
    insert_absent_page,
    known_pages,
    version_uids,
)
from backyfs.metadata.upkeep.checks import insert_damage, mark_damaged, pages_with, record_checks, versions_with
from backyfs.model import BlobId, BlockIndex, PageNumber, VersionStatus, VersionUid
from backyfs.remedies import Advice
from backyfs.repository.claim import mark
from backyfs.repository.keyring import tag_of
from backyfs.storage.keys import is_blob
from backyfs.work.blobset import BlobSet
from backyfs.work.run import UNATTENDED, Run
from backyfs.work.window import Window

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from backyfs.catalog.index import CatalogIndex
    from backyfs.catalog.pages import CatalogPage
    from backyfs.catalog.repository import CatalogRepository, OpenPart
    from backyfs.catalog.versions import CatalogVersion
    from backyfs.keys.slots import Secret
    from backyfs.metadata.db.database import Database
    from backyfs.model import PageId, VersionId, VersionRecord
    from backyfs.storage.protocol import Storage
    from backyfs.work.run import Control

_log = logging.getLogger(__name__)

_WORKERS = 8
_PAGES_AT_ONCE = 32  # of a version are inserted in one transaction: 32,768 blobs, 15 MB
_BLOBS_AT_ONCE = 50_000  # whose objects are missing are marked in one pass over all pages


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """Something that could not be recovered."""

    name: str                   # of the object in the storage
    version: VersionUid | None  # that lacks it; None: it is the object of a version, or many versions lack it
    fault: Fault


@dataclass(slots=True, kw_only=True)
class RecoveryReport:
    """What was recovered; its counts grow during the recovery."""

    repository: CatalogRepository
    versions: int = 0
    pages: int = 0
    blobs: int = 0
    invalid: list[VersionUid] = field(default_factory=list)  # were valid, but now lack something
    losses: int = 0
    index: CatalogIndex | None = None  # if it can be read
    unlisted: list[str] = field(default_factory=list)  # versions that the index does not list


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedCatalog:
    """A catalog with its key."""

    repository: CatalogRepository
    objects: Catalog
    digest: bytes  # of the object of the repository


def open_catalog(
    storage: Storage, ask: Callable[[OpenPart], Secret], repository_key: bytes | None, *, expects_key: bool = False
) -> OpenedCatalog:
    """Open the catalog of a storage, with the repository key or with the secret that `ask` returns.

    `ask` is called only if a key is needed. With `expects_key`, a catalog that is not encrypted is refused, because
    anyone who can write to the storage can put one there.

    Raises:
        CatalogError: it does not exist, its first object is damaged, or it is not encrypted though a key is expected.
        MissingKeyError, WrongKeyError, IntegrityError: the secret does not open it.
        StorageError: it cannot be read.
    """
    found = find_repository(storage)
    if found is None:
        raise CatalogError(
            f"has no object {REPOSITORY_NAME}: no catalog was written there, or it is another place or not mounted",
            subject="the storage",
            remedy=Advice.IMPORT_EXPORT(),
        )
    key = repository_key
    if found.is_sealed and key is None:
        secret = ask(found)
        if found.key_slots:
            key = open_with(list(found.key_slots), secret).repository_key
        elif secret.key is None:
            raise MissingKeyError(
                "are wrapped by the key of backy2, 64 hex digits, and not by a passphrase",
                subject="the data keys of this repository",
                remedy=Advice.GIVE_BACKY2_KEY(),
            )
        else:
            key = secret.key
    elif not found.is_sealed:
        if expects_key or key is not None:
            raise CatalogError(
                "is not encrypted, and a key was given: someone may have replaced yours",
                subject=f"the catalog of repository {found.uid}",
                remedy="if this repository was never encrypted, give no key and use a configuration without one",
            )
        _log.warning(
            "repository %s is not encrypted: its catalog cannot be authenticated, and anyone who can read the storage "
            "can read the data. If it was encrypted, do not use what is recovered",
            found.uid,
        )
    try:
        repository = open_repository_object(found, key)
    except CatalogError as error:
        if key is not None and (repository_key is not None or not found.key_slots):
            raise WrongKeyError(
                f"does not open the catalog of repository {found.uid}",
                subject=f"the key {keys.show_check(keys.key_check(key))}",
                remedy="give the key of this repository (or the object is damaged)",
            ) from error
        raise
    objects = Catalog(storage, Seal(repository=found.uid, key=key))
    return OpenedCatalog(repository=repository, objects=objects, digest=found.parts.digest)


def recover(
    storage: Storage,
    catalog: OpenedCatalog,
    database: Database,
    *,
    check_objects: bool = False,
    control: Control = UNATTENDED,
    on_loss: Callable[[Loss], None] = lambda _loss: None,
) -> RecoveryReport:
    """Fill a database that is empty, or that an earlier recovery did not finish. `on_loss` is called with each loss.

    With `check_objects`, the storage is searched for the objects of all blobs, and missing ones count as damaged.

    Raises:
        SchemaError: the database holds something else.
        WrongStorageError: the marker of the storage names another repository than its catalog.
        InterruptedByUser: `control` asked to stop; the next recovery starts over.
        DatabaseError, StorageError: they fail; the next recovery starts over.
    """
    key = catalog.objects.seal.key
    is_marked = mark(storage, catalog.repository.identity.uid)
    begin_recovery(database)
    run = Run(control, interrupted="interrupted; the database is not finished: run the same command again")
    recovery = _Recovery(storage, catalog, database, run, on_loss)
    recovery.run()
    if check_objects:
        recovery.check_objects()
    with database.begin() as connection:
        end_recovery(
            connection,
            catalog.repository.identity,
            catalog.repository.key_slots,
            key_made_at=catalog.repository.key_made_at,
            catalog_key=catalog_key_check(key),
            index=IndexState(
                number=0 if recovery.report.index is None else recovery.report.index.number, repository=catalog.digest
            ),
            tag=None if key is None else tag_of(catalog.repository.identity, key),
        )
        if is_marked:
            note_storage_marked(connection)
    return recovery.report


@dataclass(frozen=True, slots=True)
class _Read:
    """What a worker has read: a page, or the reason why it cannot be read."""

    uid: str
    page: CatalogPage | None
    fault: Fault | None = None


class _Recovery:
    def __init__(
        self,
        storage: Storage,
        catalog: OpenedCatalog,
        database: Database,
        run: Run,
        on_loss: Callable[[Loss], None],
    ) -> None:
        self._storage = storage
        self._catalog = catalog
        self._objects = catalog.objects
        self._database = database
        self._block_size = catalog.repository.identity.block_size
        self._run = run
        self._on_loss = on_loss
        self._filler = PageFiller(catalog.repository.identity.created_at)
        self.report = RecoveryReport(repository=catalog.repository)

    def run(self) -> None:
        """Read the catalog and insert its content."""
        uids = sorted(self._objects.version_uids())
        self._compare_index(uids)
        pages = sum(1 for _ in self._objects.page_uids())
        total_bytes = pages * PAGE_ENTRIES * self._block_size
        with self._run.step("Recovering versions", total_bytes), Window[_Read](_WORKERS) as window:
            for uid in uids:
                self._recover_version(window, uid)
        self.report.blobs = self._filler.blobs

    def _compare_index(self, uids: Sequence[str]) -> None:
        """Report what the index shows to be missing or older, and note versions that it does not list."""
        catalog = self._catalog
        index, faults = index_faults(self._objects, catalog.repository, catalog.digest, uids)
        for name, fault in faults:
            self._lose(name, fault)
        if index is not None:
            self.report.index = index
            self.report.unlisted = sorted(set(uids).difference(index.versions))

    def _recover_version(self, window: Window[_Read], uid: str) -> None:
        self._run.check()
        try:
            found = self._objects.version(uid)
        except (CatalogError, ObjectMissingError) as error:
            self._lose(version_name(uid), fault_of(version_name(uid), error))
            return
        record = found.version
        with self._database.begin() as connection:
            version = insert_version(connection, record)
            insert_statistics_records(connection, found.statistics)
            if found.damage_found_at is not None and record.status is VersionStatus.INVALID:
                insert_damage(connection, version.id, found.damage_found_at)
        lacks_some = False
        for start in range(0, len(found.page_numbers), _PAGES_AT_ONCE):
            self._run.check()
            lacks_some |= self._recover_pages(window, found, version.id, start)
        with self._database.begin() as connection:
            if lacks_some and record.status is VersionStatus.VALID:
                set_status(connection, version.id, VersionStatus.INVALID)
                self.report.invalid.append(record.uid)
            # Even if it lacks something: its object names pages that may be found again.
            forget_note(connection, record.uid)
        self.report.versions += 1

    def _recover_pages(self, window: Window[_Read], found: CatalogVersion, version_id: VersionId, start: int) -> bool:
        """Insert some pages of a version; return whether one of them is lost."""
        numbers = [PageNumber(number) for number in found.page_numbers[start : start + _PAGES_AT_ONCE]]
        uids = [found.page_uid(start + position) for position in range(len(numbers))]
        with self._database.read() as connection:
            known = known_pages(connection, uids)
        read = self._read_pages(window, [uid for uid in dict.fromkeys(uids) if uid not in known])
        blocks = block_count(found.version.size_bytes, self._block_size)
        listed: list[tuple[PageNumber, PageId]] = []
        lost = []
        with self._database.begin() as connection:
            for page_no, uid in zip(numbers, uids, strict=True):
                if page_no >= page_count(blocks):
                    fact = f"page {page_no} of version {found.version.uid} is behind the end of the image"
                    lost.append((uid, Fault(fact)))
                    continue
                page_id = known.get(uid)
                if page_id is None and (fault := self._fault(read[uid], found.version, page_no)) is not None:
                    lost.append((uid, fault))
                    page_id = insert_absent_page(connection, page_no, blocks)
                elif page_id is None:
                    page = read[uid].page
                    assert page is not None
                    page_id = known[uid] = self._filler.insert(connection, uid, page.entries, page.blobs)
                    self.report.pages += 1
                    self._run.advance(PAGE_ENTRIES * self._block_size)
                listed.append((page_no, page_id))
            insert_version_pages(connection, version_id, listed)
        for uid, fault in lost:
            self._lose(page_name(uid), fault, found.version.uid)
        return bool(lost)

    def _read_pages(self, window: Window[_Read], uids: Iterable[str]) -> Mapping[str, _Read]:
        return {read.uid: read for read in window.map(self._read_page, uids, most=_PAGES_AT_ONCE)}

    def _read_page(self, uid: str) -> _Read:
        try:
            return _Read(uid, self._objects.page(uid))
        except (CatalogError, ObjectMissingError) as error:
            return _Read(uid, None, fault_of(page_name(uid), error))

    def _fault(self, read: _Read, version: VersionRecord, page_no: PageNumber) -> Fault | None:
        """Return why a page cannot belong to a version; None if it can."""
        page = read.page
        if page is None:
            return read.fault
        blocks = block_count(version.size_bytes, self._block_size)
        if len(page.entries) != page_length(page_no, blocks):
            return Fault(f"it has {len(page.entries)} entries, which does not fit version {version.uid}")
        last = BlockIndex(page_no * PAGE_ENTRIES + len(page.entries) - 1)
        lengths = [self._block_size] * (len(page.entries) - 1)
        lengths.append(block_length(last, version.size_bytes, self._block_size))
        for entry, length in zip(page.entries, lengths, strict=True):
            if entry > 0 and page.blobs[entry - 1].size != length:
                return Fault(f"it has a blob of {page.blobs[entry - 1].size} bytes for a block of {length}")
        return None

    def check_objects(self) -> None:
        """Mark blobs as damaged whose objects are missing, and the versions that use them."""
        there = BlobSet()
        stored = (found.key for found in self._storage.list() if is_blob(found.key))
        for uids in batches(stored):
            self._run.check()
            with self._database.read() as connection:
                for known in find_by_uid(connection, uids).values():
                    there.add(known.id)
        missing: set[BlobId] = set()
        last = BlobId(0)
        while True:
            with self._database.read() as connection:
                ids = blob_ids_after(connection, last)
            missing.update(blob_id for blob_id in ids if blob_id not in there)
            if missing and (len(missing) >= _BLOBS_AT_ONCE or not ids):
                self._mark_missing(missing)
                missing.clear()
            if not ids:
                return
            last = ids[-1]

    def _mark_missing(self, missing: set[BlobId]) -> None:
        now = datetime.now(UTC)
        with self._database.read() as connection:
            rows = load_blobs(connection, missing)
            affected = versions_with(connection, pages_with(connection, missing))
        with self._database.begin() as connection:
            record_checks(connection, (), rows.values(), now)
            marked = mark_damaged(connection, affected, now)
            self.report.invalid.extend(version_uids(connection, marked))
        for blob in rows.values():
            self._lose(f"{blob.uid}.blob", Fault("is missing from the storage"))

    def _lose(self, name: str, fault: Fault, version: VersionUid | None = None) -> None:
        self.report.losses += 1
        self._on_loss(Loss(name=name, version=version, fault=fault))
