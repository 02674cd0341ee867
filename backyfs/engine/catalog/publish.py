"""Write changes of the database to the catalog in the storage.

    read rows -> pack, seal, put -> flush -> remove the notes
    owner        worker             owner    owner

An object is durable before its note is removed, so a killed command leaves the rest to the next one. Nothing here runs
within a transaction that others wait for. Pages are written before the versions that have them, and versions before
the index that lists them, which has a separate flush. Deletions come in the opposite order.
"""

from __future__ import annotations

import logging
from array import array
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from backyfs.catalog.repository import CatalogRepository
from backyfs.catalog.store import catalog_key_check, require_catalog
from backyfs.catalog.versions import CatalogVersion
from backyfs.engine.catalog.index import write_index
from backyfs.errors import BackyfsError, InterruptedByUser, MissingKeyError, OddValueError, StorageRefusedError
from backyfs.geometry import PAGE_ENTRIES
from backyfs.metadata.catalog.blobcolumns import load_blob_columns
from backyfs.metadata.catalog.index import begin_index, load_index_state, save_repository_digest
from backyfs.metadata.catalog.notes import (
    Note,
    NoteKind,
    catalog_key,
    count_unpublished_pages,
    existing_uids,
    has_notes,
    page_token,
    page_uids,
    read_notes,
    save_catalog_key,
    settle_notes,
    settle_put_pages,
    unpublish_everything,
    unpublish_pages,
    unpublished_pages,
)
from backyfs.metadata.maps.blockmap import ABSENT, HOLE, unpack
from backyfs.metadata.records.blobs import newest_wrapped_key
from backyfs.metadata.records.identity import list_key_slots, load_identity, load_key_date, load_needed_release
from backyfs.metadata.records.jobs import list_live_jobs
from backyfs.metadata.records.processes import this_process
from backyfs.metadata.records.stats import list_statistics
from backyfs.metadata.records.versions import version_with_uid
from backyfs.metadata.upkeep.checks import damage_found_at, pages_with
from backyfs.model import BlobId, PageId, VersionStatus, VersionUid
from backyfs.remedies import Advice
from backyfs.work.run import UNATTENDED, Run
from backyfs.work.window import Window

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backyfs.metadata.catalog.blobcolumns import BlobColumns
    from backyfs.metadata.db.database import Connection, Database
    from backyfs.metadata.maps.blockmap import Entries
    from backyfs.model import Version
    from backyfs.repository import Repository
    from backyfs.work.run import Control

_WORKERS = 8           # an object store is slow for each object; a disk is busy with fewer
_PAGES_AT_ONCE = 16    # are read in one transaction: 3 MB
_PAGES_A_FLUSH = 1024  # 100 MB
_NOTES_AT_ONCE = 256
_BLOBS_AT_ONCE = 100_000  # changed blobs whose pages are found in one pass over all pages: 20 MB
_ROUNDS = 3            # changes during the writing are written in another round

_log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class PublishReport:
    """What was written to the catalog; its counts grow while it is written."""

    pages: int = 0
    versions: int = 0
    deleted: int = 0  # objects


@dataclass(slots=True)
class _Batch:
    """Objects that were put and are not durable yet."""

    token: int | None = None  # of all pages, when the first of these was read
    pages: dict[PageId, str] = field(default_factory=dict)  # their uids
    versions: list[Note] = field(default_factory=list)
    repository: list[Note] = field(default_factory=list)
    digest: bytes = b""  # of the object of the repository


def keep_catalog(repository: Repository, control: Control = UNATTENDED) -> None:
    """Write all changes to the catalog. A failure is only a warning, since the database has the changes."""
    try:
        publish(repository, control=control.quietly())
    except InterruptedByUser:
        pass  # the next command continues
    except BackyfsError as error:
        warn_of_failure(error)
    finally:
        repository.database.has_written = False  # so that a caller does not publish again


def warn_of_failure(error: BackyfsError) -> None:
    """Log that the catalog was not written, and why."""
    _log.warning("the copy of the metadata in the storage is out of date: %s; %s", error, Advice.WRITE_CATALOG())


@contextmanager
def catalog_kept(repository: Repository, control: Control = UNATTENDED) -> Iterator[None]:
    """Bring the catalog up to date at the end of the `with`, also if it ends with one of our errors.

    It encloses the job, because versions that a running job is filling are skipped. An interrupted command does not
    make its user wait for this; the next command continues.
    """
    try:
        yield
    except InterruptedByUser:
        raise
    except BackyfsError:
        _keep_if_changed(repository, control)
        raise
    _keep_if_changed(repository, control)


def _keep_if_changed(repository: Repository, control: Control) -> None:
    if repository.database.has_written:
        keep_catalog(repository, control)


def is_catalog_due(database: Database) -> bool:
    """Return whether there are changes that are not in the catalog yet.

    Raises:
        DatabaseError: the database fails.
    """
    with database.read() as connection:
        return has_notes(connection)


def publish(
    repository: Repository,
    *,
    everything: bool = False,
    control: Control = UNATTENDED,
) -> PublishReport:
    """Write everything to the catalog that differs from the database, and delete what the database no longer has.

    With `everything`, all of it is written again, even if the catalog that was written is gone. Pages and versions that
    a running backup is filling are left to that backup. A storage that keeps nothing gets nothing.

    Raises:
        MissingKeyError: the repository is encrypted, and it was opened without its key.
        CatalogError: the catalog that was written is gone, or belongs to another repository.
        InterruptedByUser: `control` asked to stop; the next call continues.
        StorageError, DatabaseError: it cannot be written; the next call continues.
    """
    if not repository.blocks.storage.traits.keeps:
        return PublishReport()
    with repository.database.read() as connection:
        was_written = catalog_key(connection) is not None
        if was_written and not everything and not has_notes(connection):
            return PublishReport()
    require_catalog(repository.blocks.storage, repository.uid, was_written=was_written and not everything)
    run = Run(control, interrupted="interrupted; the next command that changes something continues")
    publisher = _Publisher(repository, run)
    publisher.check_key(everything=everything)
    return publisher.run()


class _Publisher:
    def __init__(self, repository: Repository, run: Run) -> None:
        self._database = repository.database
        self._catalog = repository.catalog
        # Hosts that only make backups may not delete from an object store. A directory can only become read-only.
        self._may_refuse = repository.blocks.storage.traits.requests is not None
        self._block_size = repository.block_size
        self._run = run
        self._report = PublishReport()

    def run(self) -> PublishReport:
        """Write until nothing is left, except for what others keep changing."""
        self._find_pages_of_changed_blobs()
        with self._database.read() as connection:
            count = count_unpublished_pages(connection)
        total_bytes = count * PAGE_ENTRIES * self._block_size
        with self._run.step("Writing the catalog of", total_bytes), Window[None](_WORKERS) as window:
            for _ in range(_ROUNDS):
                if self._round(window):
                    break
                self._find_pages_of_changed_blobs()
        return self._report

    def check_key(self, *, everything: bool) -> None:
        """Schedule everything to be written again, if asked to or if it is sealed with another key than today's."""
        key = self._catalog.seal.key
        check = catalog_key_check(key)
        with self._database.read() as connection:
            if key is None and newest_wrapped_key(connection) is not None:
                raise MissingKeyError("is encrypted, and the configuration has no key", subject="the repository")
            before = catalog_key(connection)
            has_index = load_index_state(connection) is not None
        if everything or before != check or not has_index:
            with self._database.write() as connection:
                if not has_index:
                    begin_index(connection)
                if everything or before != check:
                    unpublish_everything(connection)
                    save_catalog_key(connection, check)

    def _find_pages_of_changed_blobs(self) -> None:
        while True:
            with self._database.read() as connection:
                notes = read_notes(connection, NoteKind.BLOB, limit=_BLOBS_AT_ONCE)
                if not notes:
                    return
                found = pages_with(connection, {BlobId(int(note.uid)) for note in notes})
            with self._database.write() as connection:
                unpublish_pages(connection, found)
                settle_notes(connection, NoteKind.BLOB, notes)

    def _round(self, window: Window[None]) -> bool:
        """Write what the notes list; return whether nothing of it changed in the meantime."""
        with self._database.read() as connection:
            busy = filled_versions(connection)
        batch = _Batch()
        is_settled = self._put_pages(window, batch, leave_begun=bool(busy))
        for notes in self._notes(NoteKind.VERSION):
            for note in notes:
                if note.uid not in busy:
                    self._put_version(window, batch, note)
            is_settled &= self._settle(window, batch)
        self._put_repository(batch)
        if not self._settle(window, batch) or not write_index(self._database, self._catalog, busy):
            return False  # nothing is deleted that the index in the storage may still list
        try:
            self._delete_versions()
            self._delete_pages()
        except StorageRefusedError as error:  # what the index does not list does no harm; the notes stay
            if not self._may_refuse:
                raise
            _log.info("objects of the catalog that are not needed any more were not deleted: %s", error)
        return is_settled

    def _delete_pages(self) -> None:
        """Delete the objects of pages that are gone from the database."""
        for notes in self._notes(NoteKind.PAGE):
            self._run.check()
            self._catalog.delete_pages(note.uid for note in notes)
            self._report.deleted += len(notes)
            with self._database.write() as connection:
                settle_notes(connection, NoteKind.PAGE, notes)

    def _delete_versions(self) -> None:
        """Delete the objects of versions that are gone from the database and from the index."""
        for notes in self._notes(NoteKind.VERSION):
            with self._database.read() as connection:
                kept = existing_uids(connection, NoteKind.VERSION, [note.uid for note in notes])
                kept.update(note.uid for note in read_notes(connection, NoteKind.INDEX))
            gone = [note for note in notes if note.uid not in kept]
            if not gone:
                continue
            self._run.check()
            self._catalog.delete_versions(note.uid for note in gone)
            self._catalog.flush()  # an object that came back would look like a version that the database has lost
            self._report.deleted += len(gone)
            with self._database.write() as connection:
                settle_notes(connection, NoteKind.VERSION, gone)

    def _notes(self, kind: NoteKind) -> Iterator[list[Note]]:
        last = None
        while True:
            with self._database.read() as connection:
                notes = read_notes(connection, kind, after=last, limit=_NOTES_AT_ONCE)
            if not notes:
                return
            last = notes[-1].uid
            yield notes

    def _put_pages(self, window: Window[None], batch: _Batch, *, leave_begun: bool) -> bool:
        is_settled, last = True, PageId(0)
        while True:
            with self._database.read() as connection:
                token = page_token(connection)
                rows = unpublished_pages(connection, last, _PAGES_AT_ONCE)
                unpacked = [(row, unpack(row.entries)) for row in rows]
                wanted = [(row, entries) for row, entries in unpacked if not (leave_begun and ABSENT in entries)]
                read = [(row, entries, self._blobs_of(connection, entries)) for row, entries in wanted]
            if not rows:
                return is_settled
            last = rows[-1].id
            batch.token = token if batch.token is None else batch.token
            for row, entries, blobs in (one for one in read if one[2] is not None):
                self._wait(window, 2 * _WORKERS)
                window.submit(self._catalog.put_page, row.uid, entries, blobs)
                batch.pages[row.id] = row.uid
                self._run.advance(PAGE_ENTRIES * self._block_size)
            if len(batch.pages) >= _PAGES_A_FLUSH:
                is_settled &= self._settle(window, batch)

    def _blobs_of(self, connection: Connection, entries: Entries) -> BlobColumns | None:
        """Return the records of a page's blobs; None: a row is damaged, and the page has to wait."""
        try:
            return load_page_blobs(connection, entries)
        except OddValueError as error:
            self._database.odd_rows.note(error)
            return None

    def _put_version(self, window: Window[None], batch: _Batch, note: Note) -> None:
        uid = VersionUid(note.uid)
        try:
            with self._database.read() as connection:
                version = version_with_uid(connection, uid)
                found = None if version is None else read_version(connection, version)
        except OddValueError as error:  # its note stays, and so does the object of the version
            self._database.odd_rows.note(error)
            return
        if found is None:
            return  # see `_delete_versions`
        self._wait(window, 2 * _WORKERS)
        batch.versions.append(note)
        window.submit(self._catalog.put_version, found)
        self._report.versions += 1

    def _put_repository(self, batch: _Batch) -> None:
        with self._database.read() as connection:
            batch.repository = read_notes(connection, NoteKind.REPOSITORY)
            if batch.repository:
                batch.digest = self._catalog.put_repository(read_repository(connection))

    def _settle(self, window: Window[None], batch: _Batch) -> bool:
        """Make durable what was put, and remove the notes; return whether nothing of it changed in the meantime."""
        self._wait(window, 0)
        if not (batch.pages or batch.versions or batch.repository):
            return True
        self._catalog.flush()
        with self._database.write() as connection:
            is_current = batch.token is None or page_token(connection) == batch.token
            gone = settle_put_pages(connection, batch.pages, batch.token or 0)
            is_current &= settle_notes(connection, NoteKind.VERSION, batch.versions)
            is_repository = settle_notes(connection, NoteKind.REPOSITORY, batch.repository)
            if is_repository and batch.repository:
                save_repository_digest(connection, batch.digest)
            is_current &= is_repository
        self._report.pages += len(batch.pages) - len(gone)
        batch.token = None
        batch.pages.clear()
        batch.versions.clear()
        batch.repository.clear()
        return is_current

    def _wait(self, window: Window[None], pending: int) -> None:
        """Wait until at most `pending` tasks are running."""
        self._run.check()
        for _ in window.drain(pending):
            pass


def read_version(connection: Connection, version: Version) -> CatalogVersion:
    """Return a version for the catalog."""
    listed = list(page_uids(connection, version.id))
    return CatalogVersion(
        version=version.record,
        statistics=tuple(list_statistics(connection, version.uid)),
        damage_found_at=damage_found_at(connection, version.id),
        page_numbers=array("I", (number for number, _ in listed)),
        page_uids=bytes.fromhex("".join(uid for _, uid in listed).replace("-", "")),
    )


def read_repository(connection: Connection) -> CatalogRepository:
    """Return the repository for the catalog."""
    state = load_index_state(connection)
    return CatalogRepository(
        identity=load_identity(connection),
        key_slots=tuple(list_key_slots(connection)),
        key_made_at=load_key_date(connection),
        needs_release=load_needed_release(connection),
        index_number=0 if state is None else state.number + 1,
    )


def load_page_blobs(connection: Connection, entries: Entries) -> BlobColumns:
    """Return the records of a page's blobs for the catalog."""
    return load_blob_columns(connection, {entry for entry in entries if entry > HOLE})


def filled_versions(connection: Connection) -> frozenset[str]:
    """Return the uids of versions that running backups are filling. Their pages change every few seconds."""
    held = {uid for job in list_live_jobs(connection, this_process()) for uid in job.versions}
    found = (version_with_uid(connection, uid) for uid in held)
    return frozenset(
        version.uid for version in found if version is not None and version.status is VersionStatus.INCOMPLETE
    )
