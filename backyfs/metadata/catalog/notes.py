"""Record which changes the catalog in the storage lacks, and read the rows that it is made of.

Each change leaves a note in its own transaction: a kind, a uid, and a new random token. A command that has written the
object removes the note if the token is still the one it read before. If not, its object may have replaced a newer one
from another command, so a new note remains. Thus there is a note whenever an object does not certainly match the rows,
and a killed command leaves its notes for the next one.

For pages, the column `published` is the note. They share one token, which changes whenever pages must be written again.
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
from backyfs.remedies import Advice
from backyfs.values import obeys

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from sqlalchemy import ColumnElement

    from backyfs.metadata.db.database import Connection
    from backyfs.model import BlobId, PageId, VersionId


class NoteKind(StrEnum):
    """What a note is about."""

    REPOSITORY = "repository"  # write the object of the repository; the uid is empty
    VERSION = "version"        # write the object of a version, or delete it if the version is gone
    PAGE = "page"              # delete the object of a removed page
    BLOB = "blob"              # the row of a blob changed: write the pages with it; the uid is the id of the blob
    PAGES = "pages"            # the token of all pages
    KEY = "key"                # the uid is the check value of the key that seals the catalog
    INDEX = "index"            # write the index: a version came or went, or (no uid) the repository changed
    STATE = "index-state"      # the state of the index, see metadata.catalog.index


_NOTHING = values.Text(0)
# Rules for the uids of notes.
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
    """A page to write to the catalog."""

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
    """Note that a version changes or is being removed. Call this in the same transaction, before the removal."""
    note_versions(connection, [version_id])


def note_listing(connection: Connection, version_id: VersionId) -> None:
    """Note that a version is new or is being removed. Call this in the same transaction, before the removal."""
    note_version(connection, version_id)
    note_index(connection, connection.execute(select(versions.c.uid).where(versions.c.id == version_id)).scalars())


def note_index(connection: Connection, uids: Iterable[str]) -> None:
    """Note that the index must change for these versions. An empty uid means the repository."""
    _note(connection, NoteKind.INDEX, uids)


def note_versions(connection: Connection, version_ids: Iterable[VersionId]) -> None:
    """Note that versions change. Call this in the same transaction."""
    for batch in batches(version_ids):
        _note_versions_where(connection, versions.c.id.in_(batch))


def note_versions_with_page(connection: Connection, page_id: PageId) -> None:
    """Note that the versions with this page change. Call this before the page is replaced in them."""
    has_it = select(version_pages.c.version_id).where(version_pages.c.page_id == page_id)
    _note_versions_where(connection, versions.c.id.in_(has_it))


def note_repository(connection: Connection) -> None:
    """Note that the repository or one of its key slots changes. Call this in the same transaction."""
    _note(connection, NoteKind.REPOSITORY, [""])
    note_index(connection, [""])


def note_removed_page(connection: Connection, uid: str) -> None:
    """Note that a page is removed whose object is in the catalog. Call this in the same transaction."""
    _note(connection, NoteKind.PAGE, [uid])


def unpublish_pages_with(connection: Connection, blob_ids: Iterable[BlobId]) -> None:
    """Note that rows of blobs change, so the pages that contain them must be written to the catalog again.

    The next command that writes the catalog finds these pages. Call this in the transaction that changes the blobs.
    """
    _note(connection, NoteKind.BLOB, [str(blob_id) for blob_id in blob_ids])


def unpublish_pages(connection: Connection, page_ids: Collection[PageId]) -> None:
    """Note that these pages must be written to the catalog again. Call this in a write transaction."""
    for batch in batches(sorted(page_ids)):
        connection.execute(update(pages).where(pages.c.id.in_(batch)).values(published=False))
    _note(connection, NoteKind.PAGES, [""])


def unpublish_everything(connection: Connection) -> None:
    """Note that the whole catalog must be written again. Call this in a write transaction."""
    _drop_odd_notes(connection)
    connection.execute(update(pages).where(pages.c.published).values(published=False))
    _note(connection, NoteKind.PAGES, [""])
    _note_versions_where(connection, versions.c.id.is_not(None))
    note_index(connection, [note.uid for note in read_notes(connection, NoteKind.VERSION)])
    note_repository(connection)


def has_notes(connection: Connection) -> bool:
    """Return whether the catalog is out of date, with two queries that use an index."""
    to_do = catalog_notes.c.kind.not_in([NoteKind.PAGES, NoteKind.KEY, NoteKind.STATE])
    if connection.execute(select(catalog_notes.c.kind).where(to_do).limit(1)).first() is not None:
        return True
    return bool(connection.execute(_UNPUBLISHED, {"last": 0, "count": 1}).first())


def read_notes(connection: Connection, kind: NoteKind, *, after: str | None = None, limit: int = -1) -> list[Note]:
    """Return notes of a kind ordered by uid: all of them, those `after` a uid, or at most `limit`."""
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
    fact = f"{error}, so it is unknown what must be written to the catalog"
    odd = OddValueError("catalog_notes", "uid or token", fact, f"a row of kind {kind}")
    odd.remedy = Advice.WRITE_WHOLE_CATALOG()  # which also removes the note
    return odd


def _drop_odd_notes(connection: Connection) -> None:
    """Remove odd notes: the caller is writing the whole catalog, which covers whatever they meant."""
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
    return literal(value, NullType())  # not converted: SQLite compares values of any type


def settle_notes(connection: Connection, kind: NoteKind, done: Iterable[Note]) -> bool:
    """Remove the notes of objects that were written; return whether all could be removed. Changed notes are kept.

    If a note is already gone, another command has written the object too, in an unknown order, so it is noted again.
    Call this in a write transaction.
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
    """Return the shared token of all pages."""
    notes = read_notes(connection, NoteKind.PAGES)
    return notes[0].token if notes else 0


def settle_pages(connection: Connection, page_ids: Collection[PageId], token: int) -> frozenset[PageId]:
    """Mark pages as published, unless pages had to be written again in the meantime; return pages that are gone.

    `token` is the shared token when the pages were read. Call this in a write transaction.
    """
    is_current = page_token(connection) == token
    there: set[PageId] = set()
    for batch in batches(sorted(page_ids)):
        here = pages.c.id.in_(batch)
        there.update(connection.execute(select(pages.c.id).where(here)).scalars())
        connection.execute(update(pages).where(here).values(published=is_current))
    return frozenset(page_ids) - there


def settle_put_pages(connection: Connection, uids: Mapping[PageId, str], token: int) -> frozenset[PageId]:
    """Do what `settle_pages` does for pages with these uids, and note again that the ones that are gone were removed.

    The object may have been put after the command that removed the page had deleted it.
    """
    gone = settle_pages(connection, uids.keys(), token)
    for page_id in gone:
        note_removed_page(connection, uids[page_id])
    return gone


def unpublished_page(connection: Connection, page_id: PageId) -> str | None:
    """Return the uid of a page if the catalog lacks it, else None."""
    here = (pages.c.id == page_id) & pages.c.published.is_(False)
    return connection.execute(select(pages.c.uid).where(here)).scalar()


def unpublished_pages(connection: Connection, after: PageId, count: int) -> list[PageRow]:
    """Return the next used pages, by id, that the catalog lacks."""
    rows = sound_rows(connection, _UNPUBLISHED.params(last=after, count=count), pages.c.id)
    return [PageRow(id=row.id, uid=row.uid, entries=row.entries) for row in rows]


def page_uids(connection: Connection, version_id: VersionId) -> Iterator[tuple[int, str]]:
    """Yield number and uid of the pages of a version, by number."""
    query = (
        select(version_pages.c.page_no, pages.c.uid)
        .join(pages, pages.c.id == version_pages.c.page_id)
        .where(version_pages.c.version_id == version_id)
        .order_by(version_pages.c.page_no)
    )
    for row in connection.execute(query):
        yield row.page_no, row.uid


def catalog_key(connection: Connection) -> str | None:
    """Return the check value of the key that seals the catalog: empty for no key, None if nothing was written yet."""
    notes = read_notes(connection, NoteKind.KEY)
    return notes[0].uid if notes else None


def save_catalog_key(connection: Connection, check: str) -> None:
    """Store the check value of the key that seals the catalog from now on."""
    connection.execute(delete(catalog_notes).where(catalog_notes.c.kind == NoteKind.KEY.value))
    connection.execute(insert(catalog_notes).values(kind=NoteKind.KEY.value, uid=check, token=_token()))


def existing_uids(connection: Connection, kind: NoteKind, uids: Iterable[str]) -> set[str]:
    """Return which of these uids exist, as versions or as pages. Pages need not be in use."""
    table = versions if kind is NoteKind.VERSION else pages
    found: set[str] = set()
    for batch in batches(uids):
        found.update(connection.execute(select(table.c.uid).where(table.c.uid.in_(batch))).scalars())
    return found


def count_unpublished_pages(connection: Connection) -> int:
    """Return how many used pages the catalog lacks."""
    here = pages.c.published.is_(False) & (pages.c.refs > 0)
    return connection.execute(select(func.count()).select_from(pages).where(here)).scalar_one()


def count_used_pages(connection: Connection) -> int:
    """Return how many pages are used by versions."""
    return connection.execute(select(func.count()).select_from(pages).where(pages.c.refs > 0)).scalar_one()


def pages_after(connection: Connection, last: PageId, count: int) -> list[PageRow]:
    """Return the next used pages, by id."""
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
