"""Plan the index of the catalog, and record what is known about the latest one.

A new version leaves a note, and the index does not list it before its object is durable. A removed version also leaves
a note, and its object is not deleted before an index without it is durable. The note without a uid means the object of
the repository, whose digest is in the index.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import delete, insert, select

from backyfs.metadata.catalog.notes import NoteKind, existing_uids, note_index, note_repository, read_notes
from backyfs.metadata.db.oddrows import sound_rows
from backyfs.metadata.db.tables import catalog_notes, versions

if TYPE_CHECKING:
    from collections.abc import Collection

    from backyfs.metadata.catalog.notes import Note
    from backyfs.metadata.db.database import Connection


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexState:
    """The state of the index, a row of `catalog_notes` with the digest as its uid and the number as its token."""

    number: int        # of the latest index that was or is being written; 0: there was none
    repository: bytes  # digest of the object of the repository; empty: unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexPlan:
    """An index to write, and the notes that it settles."""

    state: IndexState
    versions: tuple[str, ...]  # uids, ascending
    notes: tuple[Note, ...]


def load_index_state(connection: Connection) -> IndexState | None:
    """Return the state of the index; None if this database has never written one."""
    notes = read_notes(connection, NoteKind.STATE)
    return IndexState(number=notes[0].token, repository=bytes.fromhex(notes[0].uid)) if notes else None


def save_index_state(connection: Connection, state: IndexState) -> None:
    """Store the state of the index."""
    connection.execute(delete(catalog_notes).where(catalog_notes.c.kind == NoteKind.STATE.value))
    row = {"kind": NoteKind.STATE.value, "uid": state.repository.hex(), "token": state.number}
    connection.execute(insert(catalog_notes).values(row))


def save_repository_digest(connection: Connection, digest: bytes) -> None:
    """Store the digest of the object of the repository, which has become durable."""
    state = load_index_state(connection)
    save_index_state(connection, IndexState(number=0 if state is None else state.number, repository=digest))


def begin_index(connection: Connection) -> None:
    """Prepare the first index for the catalog of an older release. Call this in a write transaction."""
    save_index_state(connection, IndexState(number=0, repository=b""))
    note_index(connection, [note.uid for note in read_notes(connection, NoteKind.VERSION)])
    note_repository(connection)


def needs_index(connection: Connection, busy: Collection[str]) -> bool:
    """Return whether writing an index would settle a note. Backups are filling the versions in `busy`."""
    noted = [note.uid for note in read_notes(connection, NoteKind.INDEX)]
    return bool(noted) and len(_not_durable(connection, noted, busy)) < len(noted)


def plan_index(connection: Connection, busy: Collection[str], least: int) -> IndexPlan:
    """Return a new index with a number above `least`, and store the number. Call this in a write transaction."""
    state = load_index_state(connection) or IndexState(number=0, repository=b"")
    state = IndexState(number=max(state.number, least) + 1, repository=state.repository)
    save_index_state(connection, state)
    notes = read_notes(connection, NoteKind.INDEX)
    not_durable = _not_durable(connection, [note.uid for note in notes], busy)
    uids = [row.uid for row in sound_rows(connection, select(versions.c.uid), versions.c.id)]
    return IndexPlan(
        state=state,
        versions=tuple(sorted(uid for uid in uids if uid not in not_durable)),
        notes=tuple(note for note in notes if note.uid not in not_durable),
    )


def _not_durable(connection: Connection, noted: Collection[str], busy: Collection[str]) -> set[str]:
    """Return the noted versions that exist but whose objects may not be durable."""
    pending = {note.uid for note in read_notes(connection, NoteKind.VERSION)} | set(busy)
    wanted = pending.intersection(noted)
    return wanted & existing_uids(connection, NoteKind.VERSION, wanted)
