"""Write the index of the catalog, and compare it with the storage.

objects of versions and repository durable -> index -> flush -> objects of removed versions deleted
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from backyfs.catalog.index import CatalogIndex
from backyfs.catalog.objects import INDEX_NAME, REPOSITORY_NAME, is_uid, version_name
from backyfs.errors import CatalogError, ObjectMissingError
from backyfs.metadata.catalog.index import load_index_state, needs_index, plan_index
from backyfs.metadata.catalog.notes import NoteKind, settle_notes
from backyfs.remedies import Advice

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from backyfs.catalog.repository import CatalogRepository
    from backyfs.catalog.store import Catalog
    from backyfs.errors import BackyfsError
    from backyfs.metadata.catalog.index import IndexState
    from backyfs.metadata.db.database import Database
    from backyfs.remedies import Remedy

_log = logging.getLogger(__name__)


def write_index(database: Database, catalog: Catalog, busy: Collection[str]) -> bool:
    """Write a new index if notes ask for one; return whether nothing changed while it was written.

    The versions it lists are already durable. Those in `busy` are being filled.

    Raises:
        StorageError, DatabaseError: it cannot be written; the notes stay.
    """
    with database.read() as connection:
        if not needs_index(connection, busy):
            return True
        state = load_index_state(connection)
    number = _stored_number(catalog)
    if state is not None and number > state.number:
        _log.warning(
            "the catalog in the storage has index %d, but the database has %d: the database may be an older copy",
            number,
            state.number,
        )
    with database.write() as connection:
        plan = plan_index(connection, busy, number)
    index = CatalogIndex(
        number=plan.state.number,
        written_at=datetime.now(UTC),
        repository=plan.state.repository,
        versions=tuple(filter(is_uid, plan.versions)),
    )
    catalog.put_index(index)
    catalog.flush()
    with database.write() as connection:
        return settle_notes(connection, NoteKind.INDEX, plan.notes)


def _stored_number(catalog: Catalog) -> int:
    try:
        return catalog.index().number
    except (ObjectMissingError, CatalogError):  # missing, or sealed with another key: it is replaced
        return 0


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with an object of the catalog, and what to do about it."""

    fact: str
    remedy: Remedy | None = None


def index_faults(
    catalog: Catalog, repository: CatalogRepository, digest: bytes, there: Collection[str]
) -> tuple[CatalogIndex | None, list[tuple[str, Fault]]]:
    """Return the index, if it can be read, and the name and fault of each object that contradicts it.

    `repository` and `digest` belong to the object of the repository. `there` are the uids of the versions with objects.
    """
    try:
        index = catalog.index()
    except (CatalogError, ObjectMissingError) as error:
        fault = fault_of(INDEX_NAME, error)
        unnoticed = f"{fault.fact}: versions may be missing without being noticed"
        return None, [(INDEX_NAME, replace(fault, fact=unnoticed))]
    return index, list(_differences(index, repository, digest, there))


def fault_of(name: str, error: BackyfsError) -> Fault:
    """Return what an error says about an object of the catalog, without its name."""
    return Fault(error.fact if error.subject == f"object {name}" else error.statement, error.remedy)


def _differences(
    index: CatalogIndex, repository: CatalogRepository, digest: bytes, there: Collection[str]
) -> Iterator[tuple[str, Fault]]:
    # An object for a later index is newer: the command was killed before it wrote that index.
    if index.repository != digest and repository.index_number <= index.number:
        yield REPOSITORY_NAME, Fault(
            f"is not the one that {INDEX_NAME} names: an older one may have been put back, with key slots that were "
            "removed",
            Advice.LIST_KEY_SLOTS(),
        )
    known = frozenset(there)
    for uid in index.versions:
        if uid not in known:
            yield version_name(uid), Fault(f"is missing from the storage, and {INDEX_NAME} names it")


def age_of(index: CatalogIndex, state: IndexState) -> Fault | None:
    """Return what is wrong with the number of an index; None: it is the last one that the database wrote."""
    if index.number == state.number:
        return None
    if index.number < state.number:
        which = "the storage, or this object of it, is in an older state"
    else:
        which = "the database is in an older state"
    return Fault(f"is number {index.number} of {index.written_at:%Y-%m-%d %H:%M:%S} UTC, not {state.number}: {which}")
