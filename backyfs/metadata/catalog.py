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
from types import NoneType
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy import bindparam, delete, func, insert, literal, select, update

from backyfs import values
from backyfs.metadata.batches import batches
from backyfs.metadata.oddrows import require_sound, sound_rows
from backyfs.metadata.tables import blobs, catalog_notes, pages, version_pages, versions
from backyfs.values import is_right

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from sqlalchemy import ColumnElement

    from backyfs.metadata.database import Connection
    from backyfs.model import BlobId, PageId, VersionId


_T = TypeVar("_T")
_UIDS = re.compile("[0-9A-Za-z]{4,32}( [0-9A-Za-z]{4,32})*")  # of blobs, see values.BLOB_UID


class NoteKind(StrEnum):
    """What a note is about."""

    REPOSITORY = "repository"  # its object is to be written; the uid is empty
    VERSION = "version"        # likewise, or deleted where there is no such version
    PAGE = "page"              # a page that is gone: its object is to be deleted
    BLOB = "blob"              # the row of a blob changed, its id stands for a uid: pages with it are to be written
    PAGES = "pages"            # the token of all pages
    KEY = "key"                # the uid is the check value of the key that seals the catalog
    INDEX = "index"            # a version that came or went, or with no uid the repository: the index has to say so
    STATE = "index-state"      # what is known of the index, see metadata.catalogindex


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


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobColumns:
    """The rows of some blobs, by columns: a thousand objects take longer to make than to store."""

    ids: tuple[int, ...]
    uids: tuple[str, ...]
    fingerprints: tuple[bytes | None, ...]
    sizes: tuple[int, ...]
    stored_sizes: tuple[int | None, ...]
    encryption_versions: tuple[int, ...]
    wrapped_keys: tuple[bytes | None, ...]
    valid: tuple[bool, ...]

    def in_order(self, ids: Iterable[int]) -> BlobColumns:
        """Return the same rows in another order."""
        places = {blob_id: place for place, blob_id in enumerate(self.ids)}
        wanted = [places[blob_id] for blob_id in ids]
        return BlobColumns(
            ids=_pick(self.ids, wanted),
            uids=_pick(self.uids, wanted),
            fingerprints=_pick(self.fingerprints, wanted),
            sizes=_pick(self.sizes, wanted),
            stored_sizes=_pick(self.stored_sizes, wanted),
            encryption_versions=_pick(self.encryption_versions, wanted),
            wrapped_keys=_pick(self.wrapped_keys, wanted),
            valid=_pick(self.valid, wanted),
        )


NO_BLOBS = BlobColumns(
    ids=(),
    uids=(),
    fingerprints=(),
    sizes=(),
    stored_sizes=(),
    encryption_versions=(),
    wrapped_keys=(),
    valid=(),
)

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
    connection.execute(update(pages).where(pages.c.published).values(published=False))
    _note(connection, NoteKind.PAGES, [""])
    _note_versions_where(connection, versions.c.id.is_not(None))
    note_index(connection, [note.uid for note in read_notes(connection, NoteKind.VERSION)])
    note_repository(connection)


def has_notes(connection: Connection) -> bool:
    """Tell whether there is anything that the catalog is to be told. Two queries that an index answers."""
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
    rows = connection.execute(query.order_by(catalog_notes.c.uid))
    return [Note(kind=kind, uid=row.uid, token=row.token) for row in rows]


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


def load_blob_columns(connection: Connection, blob_ids: Collection[int]) -> BlobColumns:
    """Return the rows of blobs, as far as there are such rows, by id."""
    if not blob_ids:
        return NO_BLOBS
    # The numbers stand in the text, and the values come as the driver has them: a page took three times as long. Of a
    # first backup they follow each other.
    first, last = min(blob_ids), max(blob_ids)
    is_range = last - first < 2 * len(blob_ids)
    where = f"BETWEEN {first:d} AND {last:d}" if is_range else f"IN ({','.join(map(str, sorted(blob_ids)))})"
    query = (
        "SELECT id, uid, fingerprint, size, stored_size, encryption_version, wrapped_key, valid "  # noqa: S608
        f"FROM blobs WHERE id {where} ORDER BY id"
    )
    rows = connection.exec_driver_sql(query).all()
    if last - first >= len(blob_ids):
        rows = [row for row in rows if row[0] in blob_ids]
    if not rows:
        return NO_BLOBS
    ids, uids, fingerprints, sizes, stored_sizes, encryption_versions, wrapped_keys, valid = zip(*rows, strict=True)
    found = BlobColumns(
        ids=ids,
        uids=uids,
        fingerprints=fingerprints,
        sizes=sizes,
        stored_sizes=stored_sizes,
        encryption_versions=encryption_versions,
        wrapped_keys=wrapped_keys,
        valid=valid,
    )
    if not _keep_the_rules(found):
        for batch in batches(ids):
            require_sound(connection, select(blobs).where(blobs.c.id.in_(batch)), blobs.c.id)
    return found


def _keep_the_rules(found: BlobColumns) -> bool:
    """Tell whether all values are what they must be, by columns: one by one it would take as long as reading them."""
    numbers: tuple[tuple[Sequence[int], values.Number], ...] = (
        (found.sizes, values.BLOB_SIZE),
        (found.encryption_versions, values.ENCRYPTION_VERSION),
        ([size for size in found.stored_sizes if size is not None], values.SIZE),
    )
    contents = (
        (found.fingerprints, values.FINGERPRINT),
        (found.wrapped_keys, values.WRAPPED_KEY),
    )
    return (
        set(map(type, found.uids)) == {str}
        and _UIDS.fullmatch(" ".join(found.uids)) is not None
        and all(
            set(map(type, column)) <= {int} and all(is_right(rule, edge(column)) for edge in (min, max) if column)
            for column, rule in numbers
        )
        and all(
            set(map(type, column)) <= {bytes, NoneType} and max(map(len, filter(None, column)), default=0) <= rule.most
            for column, rule in contents
        )
        and set(found.valid) <= {0, 1}
    )


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


def _pick(column: tuple[_T, ...], places: Iterable[int]) -> tuple[_T, ...]:
    return tuple(column[place] for place in places)


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
