"""What the catalog in the storage has to be told, and the rows that it is made of.

A change that the catalog has to know leaves a note in its own transaction: a kind, a uid, and a token that is new
each time. Who has written the object takes the note away if its token is still the one that was read before; if not,
the object may be older than one that another command has written, and there is a new note. So a note is there
whenever an object is not, or is not for sure, as the rows say, and a command that is killed leaves it to the next.

Pages say it themselves, by `published`. Their token is one for all: it changes whenever pages are to be written anew.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, delete, func, insert, literal, or_, select, update
from sqlalchemy.types import NullType

from backyfs import values
from backyfs.errors import OddValueError
from backyfs.metadata.db.batches import batches
from backyfs.metadata.db.oddrows import note_odd, sound_rows
from backyfs.metadata.db.tables import catalog_notes, pages, version_pages, versions
from backyfs.values import obeys

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from sqlalchemy import ColumnElement

    from backyfs.metadata.db.database import Connection
    from backyfs.model import BlobId, PageId, VersionId


class NoteKind(StrEnum):
    """What a note is about."""

    REPOSITORY = "repository"  # its object is to be written; the uid is empty
    VERSION = "version"        # likewise, or deleted where there is no such version
    PAGE = "page"              # a page that is gone: its object is to be deleted
    BLOB = "blob"              # the row of a blob changed, its id stands for a uid: pages with it are to be written
    PAGES = "pages"            # the token of all pages
    KEY = "key"                # the uid is the check value of the key that seals the catalog
    INDEX = "index"            # a version that came or went, or with no uid the repository: the index has to say so
    STATE = "index-state"      # what is known of the index, see metadata.catalog.index


_NOTHING = values.Text(0)
# What the uids of notes must look like.
_RULES: dict[NoteKind, values.Rule] = {
    NoteKind.REPOSITORY: _NOTHING,
    NoteKind.VERSION: values.VERSION_UID,
    NoteKind.PAGE: values.PAGE_UID,
    NoteKind.BLOB: values.Text(19, re.compile("[0-9]+"), "the id of a blob"),
    NoteKind.PAGES: _NOTHING,
    NoteKind.KEY: values.Text(36),
    NoteKind.INDEX: values.Text(36, re.compile("[0-9A-Za-z-]*"), "a uid, or nothing"),
    NoteKind.STATE: values.Text(36, re.compile("([0-9a-f]{2})*"), "a digest"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """A row of `catalog_notes`."""

    kind: NoteKind
    uid: str
    token: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PageRow:
    """A page that is to be written."""

    id: PageId
    uid: str
    entries: bytes  # packed as in the database


_UNPUBLISHED = (
    select(pages.c.id, pages.c.uid, pages.c.entries)
    .where(pages.c.published.is_(False), pages.c.refs > 0, pages.c.id > bindparam("last"))
    .order_by(pages.c.id)
    .limit(bindparam("count"))
)


def note_version(connection: Connection, version_id: VersionId) -> None:
    """Note that a version changes, or is about to be removed. To be called in the transaction that does it."""
    note_versions(connection, [version_id])


def note_listing(connection: Connection, version_id: VersionId) -> None:
    """Note that a version has come, or is about to be removed. To be called in the transaction that does it."""
    note_version(connection, version_id)
    note_index(connection, connection.execute(select(versions.c.uid).where(versions.c.id == version_id)).scalars())


def note_index(connection: Connection, uids: Iterable[str]) -> None:
    """Note that the index has to say something else of versions, or of the repository, whose uid is empty here."""
    _note(connection, NoteKind.INDEX, uids)


def note_versions(connection: Connection, version_ids: Iterable[VersionId]) -> None:
    """Note that versions change. To be called in the transaction that changes them."""
    for batch in batches(version_ids):
        _note_versions_where(connection, versions.c.id.in_(batch))


def note_versions_with_page(connection: Connection, page_id: PageId) -> None:
    """Note that the versions that have a page get another one instead. To be called before that is so."""
    has_it = select(version_pages.c.version_id).where(version_pages.c.page_id == page_id)
    _note_versions_where(connection, versions.c.id.in_(has_it))


def note_repository(connection: Connection) -> None:
    """Note that the repository, or one of its key slots, changes. To be called in the transaction that does it."""
    _note(connection, NoteKind.REPOSITORY, [""])
    note_index(connection, [""])


def note_removed_page(connection: Connection, uid: str) -> None:
    """Note that a page is gone whose object the catalog has. To be called in the transaction that removes it."""
    _note(connection, NoteKind.PAGE, [uid])


def unpublish_pages_with(connection: Connection, blob_ids: Iterable[BlobId]) -> None:
    """Note that rows of blobs change: the pages that contain them will be written to the catalog anew.

    Which pages these are is looked up by whoever writes the catalog next. To be called in the transaction that
    changes the blobs.
    """
    _note(connection, NoteKind.BLOB, [str(blob_id) for blob_id in blob_ids])


def unpublish_pages(connection: Connection, page_ids: Collection[PageId]) -> None:
    """Let pages be written to the catalog anew. To be called in a write transaction."""
    for batch in batches(sorted(page_ids)):
        connection.execute(update(pages).where(pages.c.id.in_(batch)).values(published=False))
    _note(connection, NoteKind.PAGES, [""])


def unpublish_everything(connection: Connection) -> None:
    """Let the whole catalog be written anew. To be called in a write transaction."""
    _drop_odd_notes(connection)
    connection.execute(update(pages).where(pages.c.published).values(published=False))
    _note(connection, NoteKind.PAGES, [""])
    _note_versions_where(connection, versions.c.id.is_not(None))
    note_index(connection, [note.uid for note in read_notes(connection, NoteKind.VERSION)])
    note_repository(connection)


def has_notes(connection: Connection) -> bool:
    """Return whether there is anything that the catalog is to be told. Two queries that an index answers."""
    to_do = catalog_notes.c.kind.not_in([NoteKind.PAGES, NoteKind.KEY, NoteKind.STATE])
    if connection.execute(select(catalog_notes.c.kind).where(to_do).limit(1)).first() is not None:
        return True
    return bool(connection.execute(_UNPUBLISHED, {"last": 0, "count": 1}).first())


def read_notes(connection: Connection, kind: NoteKind, *, after: str | None = None, limit: int = -1) -> list[Note]:
    """Return notes of a kind in the order of their uids; some of them, after this uid, where a limit is given."""
    query = select(catalog_notes.c.uid, catalog_notes.c.token).where(catalog_notes.c.kind == kind.value)
    if after is not None:
        query = query.where(catalog_notes.c.uid > after)
    if limit >= 0:
        query = query.limit(limit)
    found = []
    for row in connection.execute(query.order_by(catalog_notes.c.uid)):
        try:
            found.append(Note(kind=kind, uid=_RULES[kind].check(row.uid), token=values.TOKEN.check(row.token)))
        except ValueError as error:
            note_odd(connection, _odd_note(kind, error))
    return found


def _odd_note(kind: str, error: ValueError) -> OddValueError:
    fact = f"{error}. What was to be written to the catalog is not known: `backyfs catalog push --all` writes all of it"
    return OddValueError("catalog_notes", "uid or token", fact, f"a row of kind {kind}")


def _drop_odd_notes(connection: Connection) -> None:
    """Remove notes that say nothing, because all that they could say is done now."""
    connection.execute(delete(catalog_notes).where(or_(
        catalog_notes.c.kind.is_(None), catalog_notes.c.kind.not_in([kind.value for kind in NoteKind])
    )))  # fmt: skip
    for kind in NoteKind:
        of_kind = catalog_notes.c.kind == kind.value
        for row in connection.execute(select(catalog_notes.c.uid, catalog_notes.c.token).where(of_kind)).all():
            if not (obeys(_RULES[kind], row.uid) and obeys(values.TOKEN, row.token)):
                this = catalog_notes.c.uid.is_(None) if row.uid is None else catalog_notes.c.uid == _as_it_is(row.uid)
                connection.execute(delete(catalog_notes).where(of_kind, this))


def _as_it_is(value: object) -> ColumnElement[Any]:
    return literal(value, NullType())  # whatever its type is, SQLite compares it as it is


def settle_notes(connection: Connection, kind: NoteKind, done: Iterable[Note]) -> bool:
    """Take away notes of what is done; return whether these were all. Those that have changed since stay.

    An object whose note is gone was written by another command as well, nobody knows in which order: once more.
    To be called in a write transaction.
    """
    were_all = True
    for batch in batches(done):
        here = (catalog_notes.c.kind == kind.value) & catalog_notes.c.uid.in_([note.uid for note in batch])
        rows = connection.execute(select(catalog_notes.c.uid, catalog_notes.c.token).where(here))
        now = {row.uid: row.token for row in rows}
        settled = [note.uid for note in batch if now.get(note.uid) == note.token]
        if settled:
            connection.execute(
                delete(catalog_notes).where(catalog_notes.c.kind == kind.value, catalog_notes.c.uid.in_(settled))
            )
        if kind in {NoteKind.VERSION, NoteKind.REPOSITORY, NoteKind.INDEX}:
            _note(connection, kind, [note.uid for note in batch if note.uid not in now])
        were_all &= len(settled) == len(batch)
    return were_all


def page_token(connection: Connection) -> int:
    """Return the token of all pages."""
    notes = read_notes(connection, NoteKind.PAGES)
    return notes[0].token if notes else 0


def settle_pages(connection: Connection, page_ids: Collection[PageId], token: int) -> frozenset[PageId]:
    """Note that pages are in the catalog, unless some were to be written anew meanwhile; return those that are gone.

    `token` is that of all pages when they were read. To be called in a write transaction.
    """
    is_current = page_token(connection) == token
    there: set[PageId] = set()
    for batch in batches(sorted(page_ids)):
        here = pages.c.id.in_(batch)
        there.update(connection.execute(select(pages.c.id).where(here)).scalars())
        connection.execute(update(pages).where(here).values(published=is_current))
    return frozenset(page_ids) - there


def unpublished_page(connection: Connection, page_id: PageId) -> str | None:
    """Return the uid of a page that the catalog lacks; None: it has it."""
    here = (pages.c.id == page_id) & pages.c.published.is_(False)
    return connection.execute(select(pages.c.uid).where(here)).scalar()


def unpublished_pages(connection: Connection, after: PageId, count: int) -> list[PageRow]:
    """Return the next pages, by id, that versions have and the catalog lacks."""
    rows = sound_rows(connection, _UNPUBLISHED.params(last=after, count=count), pages.c.id)
    return [PageRow(id=row.id, uid=row.uid, entries=row.entries) for row in rows]


def page_uids(connection: Connection, version_id: VersionId) -> Iterator[tuple[int, str]]:
    """Yield the pages of a version: number and uid, by number."""
    query = (
        select(version_pages.c.page_no, pages.c.uid)
        .join(pages, pages.c.id == version_pages.c.page_id)
        .where(version_pages.c.version_id == version_id)
        .order_by(version_pages.c.page_no)
    )
    for row in connection.execute(query):
        yield row.page_no, row.uid


def catalog_key(connection: Connection) -> str | None:
    """Return the check value of the key that seals the catalog, empty for none; None: nothing was written yet."""
    notes = read_notes(connection, NoteKind.KEY)
    return notes[0].uid if notes else None


def save_catalog_key(connection: Connection, check: str) -> None:
    """Store the check value of the key that seals the catalog from now on."""
    connection.execute(delete(catalog_notes).where(catalog_notes.c.kind == NoteKind.KEY.value))
    connection.execute(insert(catalog_notes).values(kind=NoteKind.KEY.value, uid=check, token=_token()))


def existing_uids(connection: Connection, kind: NoteKind, uids: Iterable[str]) -> set[str]:
    """Return which of these uids are those of versions, or of pages, also of such as no version has at the moment."""
    table = versions if kind is NoteKind.VERSION else pages
    found: set[str] = set()
    for batch in batches(uids):
        found.update(connection.execute(select(table.c.uid).where(table.c.uid.in_(batch))).scalars())
    return found


def count_unpublished_pages(connection: Connection) -> int:
    """Return how many pages versions have and the catalog lacks."""
    here = pages.c.published.is_(False) & (pages.c.refs > 0)
    return connection.execute(select(func.count()).select_from(pages).where(here)).scalar_one()


def count_used_pages(connection: Connection) -> int:
    """Return how many pages versions have."""
    return connection.execute(select(func.count()).select_from(pages).where(pages.c.refs > 0)).scalar_one()


def pages_after(connection: Connection, last: PageId, count: int) -> list[PageRow]:
    """Return the next pages, by id, that versions have."""
    query = select(pages.c.id, pages.c.uid, pages.c.entries).where(pages.c.refs > 0, pages.c.id > last)
    rows = connection.execute(query.order_by(pages.c.id).limit(count))
    return [PageRow(id=row.id, uid=row.uid, entries=row.entries) for row in rows]


def _note(connection: Connection, kind: NoteKind, uids: Iterable[str]) -> None:
    for batch in batches(uids):
        here = (catalog_notes.c.kind == kind.value) & catalog_notes.c.uid.in_(batch)
        connection.execute(delete(catalog_notes).where(here))
        token = _token()
        rows = [{"kind": kind.value, "uid": uid, "token": token} for uid in sorted(set(batch))]
        connection.execute(insert(catalog_notes), rows)


def _note_versions_where(connection: Connection, condition: ColumnElement[bool]) -> None:
    uids = select(versions.c.uid).where(condition)
    is_version = catalog_notes.c.kind == NoteKind.VERSION.value
    connection.execute(delete(catalog_notes).where(is_version, catalog_notes.c.uid.in_(uids)))
    noted = select(literal(NoteKind.VERSION.value), versions.c.uid, literal(_token())).where(condition)
    connection.execute(insert(catalog_notes).from_select(["kind", "uid", "token"], noted))


def _token() -> int:
    return secrets.randbits(62)
