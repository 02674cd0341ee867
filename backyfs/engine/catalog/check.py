"""Compare the catalog in the storage with the database, and delete objects that the database does not know.

Nothing is locked, so each difference is checked again before it is reported: it may have changed in the meantime.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from backyfs.catalog.objects import INDEX_NAME, REPOSITORY_NAME, page_name, version_name
from backyfs.catalog.pages import page_content
from backyfs.engine.catalog.index import Fault, age_of, fault_of
from backyfs.engine.catalog.publish import filled_versions, load_page_blobs, publish, read_repository, read_version
from backyfs.errors import CatalogError, ObjectMissingError
from backyfs.geometry import PAGE_ENTRIES
from backyfs.metadata.catalog.index import load_index_state, needs_index
from backyfs.metadata.catalog.notes import NoteKind, count_used_pages, existing_uids, note_index, pages_after
from backyfs.metadata.db.batches import batches
from backyfs.metadata.maps.blockmap import ABSENT, unpack
from backyfs.metadata.records.versions import list_versions, version_with_uid
from backyfs.model import PageId
from backyfs.remedies import Advice
from backyfs.work.run import UNATTENDED, Run
from backyfs.work.window import Window

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from backyfs.catalog.index import CatalogIndex
    from backyfs.catalog.store import Catalog
    from backyfs.engine.catalog.publish import PublishReport
    from backyfs.metadata.catalog.notes import PageRow
    from backyfs.model import Version
    from backyfs.repository import Repository
    from backyfs.work.run import Control

_WORKERS = 8
_PAGES_AT_ONCE = 32

MISSING = Fault("is missing")
STALE = Fault("is of nothing that the database has")
DIFFERS = Fault("differs from the database")


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """An object of the catalog that differs from the database."""

    name: str
    fault: Fault


@dataclass(slots=True, kw_only=True)
class CatalogReport:
    """What was compared; its counts grow during the comparison."""

    versions: int = 0
    pages: int = 0
    differences: int = 0
    index: CatalogIndex | None = None  # if it can be read

    @property
    def errors(self) -> list[CatalogError]:
        """What is to be written again."""
        if not self.differences:
            return []
        return [
            CatalogError(
                f"{self.differences} objects of the catalog are not as the database says",
                remedy=Advice.WRITE_CATALOG_OR_ALL(),
            )
        ]


@dataclass(frozen=True, slots=True)
class _Held:
    """The content of a page's object; None: it is missing or has a `fault`."""

    row: PageRow
    content: bytes | None
    fault: Fault | None


class CatalogCheck:
    """Compares, page by page. Used once, by one thread."""

    def __init__(
        self,
        repository: Repository,
        *,
        control: Control = UNATTENDED,
        on_difference: Callable[[Difference], None] = lambda _difference: None,
    ) -> None:
        """Prepare; `on_difference` is called with each difference immediately."""
        self._repository = repository
        self._database = repository.database
        self._catalog = repository.catalog
        self._run = Run(control, interrupted="interrupted; what was not compared yet may differ")
        self._on_difference = on_difference
        self._report = CatalogReport()

    def run(self) -> CatalogReport:
        """Compare everything.

        Raises:
            InterruptedByUser: the caller asked to stop.
            StorageError, DatabaseError: they cannot be read.
        """
        self._compare(REPOSITORY_NAME, self._fault_of_repository)
        self._compare(INDEX_NAME, self._fault_of_index)
        with self._database.read() as connection:
            busy = filled_versions(connection)
            versions = [version for version in list_versions(connection) if version.uid not in busy]
            count = count_used_pages(connection)
        for version in versions:
            self._run.check()
            self._compare(version_name(version.uid), partial(self._fault_of_version, version))
            self._report.versions += 1
        with self._run.step("Comparing the catalog of", count * PAGE_ENTRIES * self._repository.block_size):
            self._compare_pages(leave_begun=bool(busy))
        for stale in stale_objects(self._repository):
            self._note(stale.name, STALE)
        return self._report

    def _compare(self, name: str, find: Callable[[], Fault | None]) -> None:
        fault = find() and find()
        if fault:
            self._note(name, fault)

    def _fault_of_repository(self) -> Fault | None:
        try:
            held = self._catalog.repository()
        except ObjectMissingError:
            return MISSING
        except CatalogError as error:
            return fault_of(REPOSITORY_NAME, error)
        with self._database.read() as connection:
            return None if held == read_repository(connection) else DIFFERS

    def _fault_of_index(self) -> Fault | None:
        try:
            index = self._catalog.index()
            digest = self._repository_digest()
        except ObjectMissingError:
            return MISSING
        except CatalogError as error:
            return fault_of(INDEX_NAME, error)
        with self._database.read() as connection:
            busy = filled_versions(connection)
            uids = {version.uid for version in list_versions(connection)}
            state = load_index_state(connection)
            is_noted = needs_index(connection, busy)
        self._report.index = index
        if state is None:
            return DIFFERS
        age = None if is_noted else age_of(index, state)
        if age is not None:
            return age
        if digest not in {None, index.repository}:
            return Fault(f"names another object {REPOSITORY_NAME} than the storage has")
        return None if uids - busy == set(index.versions) - busy else DIFFERS

    def _repository_digest(self) -> bytes | None:
        try:
            return self._catalog.repository_digest()
        except ObjectMissingError:  # already reported as a difference
            return None

    def _fault_of_version(self, version: Version) -> Fault | None:
        try:
            held = self._catalog.version(version.uid)
        except ObjectMissingError:
            held = None
        except CatalogError as error:
            return fault_of(version_name(version.uid), error)
        with self._database.read() as connection:
            now = version_with_uid(connection, version.uid)
            if now is None:
                return None
            if held is None:
                return MISSING
            return None if held == read_version(connection, now) else DIFFERS

    def _compare_pages(self, *, leave_begun: bool) -> None:
        with Window[_Held](_WORKERS) as window:
            for held in window.map(self._read_page, self._rows(leave_begun=leave_begun), most=_PAGES_AT_ONCE):
                self._report.pages += 1
                self._run.advance(PAGE_ENTRIES * self._repository.block_size)
                fault = self._fault_of_page(held) and self._fault_of_page(self._read_page(held.row))
                if fault:
                    self._note(page_name(held.row.uid), fault)

    def _rows(self, *, leave_begun: bool) -> Iterator[PageRow]:
        last = PageId(0)
        while True:
            self._run.check()
            with self._database.read() as connection:
                rows = pages_after(connection, last, _PAGES_AT_ONCE)
            if not rows:
                return
            last = rows[-1].id
            yield from (row for row in rows if not (leave_begun and ABSENT in unpack(row.entries)))

    def _read_page(self, row: PageRow) -> _Held:
        try:
            return _Held(row, self._catalog.page_content(row.uid), None)
        except ObjectMissingError:
            return _Held(row, None, MISSING)
        except CatalogError as error:
            return _Held(row, None, fault_of(page_name(row.uid), error))

    def _fault_of_page(self, held: _Held) -> Fault | None:
        uid = held.row.uid
        with self._database.read() as connection:
            if not existing_uids(connection, NoteKind.PAGE, [uid]):
                return None
            entries = unpack(held.row.entries)
            expected = page_content(uid, entries, load_page_blobs(connection, entries))
        return held.fault or (None if held.content == expected else DIFFERS)

    def _note(self, name: str, fault: Fault) -> None:
        self._report.differences += 1
        self._on_difference(Difference(name=name, fault=fault))


@dataclass(frozen=True, slots=True)
class StaleObject:
    """An object of the catalog whose version or page the database does not have."""

    kind: NoteKind  # VERSION or PAGE
    uid: str

    @property
    def name(self) -> str:
        """Its name in the storage."""
        return version_name(self.uid) if self.kind is NoteKind.VERSION else page_name(self.uid)


def stale_objects(repository: Repository) -> Iterator[StaleObject]:
    """Yield the objects of the catalog whose version or page the database does not have.

    Raises:
        StorageError, DatabaseError: they cannot be read.
    """
    catalog = repository.catalog
    for kind, listed in ((NoteKind.VERSION, catalog.version_uids()), (NoteKind.PAGE, catalog.page_uids())):
        for uids in batches(listed):
            with repository.database.read() as connection:
                there = existing_uids(connection, kind, uids)
            yield from (StaleObject(kind, uid) for uid in uids if uid not in there)


def push_catalog(repository: Repository, *, everything: bool = False, control: Control = UNATTENDED) -> PublishReport:
    """Write to the catalog what it lacks, or all of it, and delete every object that it should not have.

    `everything` also deletes objects that cannot be opened.

    Raises:
        MissingKeyError, CatalogError, InterruptedByUser, StorageError, DatabaseError: as `publish`.
    """
    report = publish(repository, everything=everything, control=control)
    report.deleted += remove_stale_objects(repository, also_damaged=everything, control=control)
    return report


def remove_stale_objects(
    repository: Repository, *, also_damaged: bool = False, control: Control = UNATTENDED
) -> int:
    """Delete the objects of the catalog whose version or page the database does not have; return how many.

    An object that cannot be opened may belong to something that a recovery could not read. It is deleted only with
    `also_damaged`.

    Raises:
        InterruptedByUser: `control` asked to stop.
        StorageError, DatabaseError: they fail.
    """
    catalog = repository.catalog
    run = Run(control, interrupted="interrupted; run the command again for the rest")
    removed = 0
    is_indexed = False
    for stale in stale_objects(repository):
        run.check()
        if not (also_damaged or _opens(catalog, stale)):
            continue
        if stale.kind is NoteKind.VERSION:
            if not is_indexed:
                _forget_in_index(repository, control)
                is_indexed = True
            catalog.delete_versions([stale.uid])
        else:
            catalog.delete_pages([stale.uid])
        removed += 1
    return removed


def _forget_in_index(repository: Repository, control: Control) -> None:
    """Write the index again if it names versions that the database does not have, as after a copy was put back."""
    try:
        named = repository.catalog.index().versions
    except (CatalogError, ObjectMissingError):
        named = ()
    with repository.database.read() as connection:
        if existing_uids(connection, NoteKind.VERSION, named).issuperset(named):
            return
    with repository.database.write() as connection:
        note_index(connection, [""])
    publish(repository, control=control.quietly())


def _opens(catalog: Catalog, stale: StaleObject) -> bool:
    try:
        if stale.kind is NoteKind.VERSION:
            catalog.version(stale.uid)
        else:
            catalog.page(stale.uid)
    except (CatalogError, ObjectMissingError):
        return False
    return True
