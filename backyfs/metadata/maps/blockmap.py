"""Store block maps: which blob contains each block of a version, in immutable pages that versions share.

Two levels, like the L1 and L2 tables of qcow2: `version_pages` refers to `pages`, and a page has up to 1,024 entries.
Every transaction keeps this invariant: `pages.refs` counts the rows of `version_pages` that refer to the page, and
`blob_refs.refs` counts the pages that contain the blob. A doomed blob has no row in `blob_refs`.
"""

from __future__ import annotations

import sys
import uuid
from array import array
from collections import Counter
from typing import TYPE_CHECKING, Any, TypeAlias

import zstandard
from blake3 import blake3
from sqlalchemy import func, insert, literal, select, update

from backyfs.errors import BackyfsError, DamagedPageError, OddValueError, VersionNotFoundError
from backyfs.geometry import PAGE_ENTRIES, page_count, page_length
from backyfs.metadata.catalog.notes import note_removed_page, note_versions_with_page
from backyfs.metadata.db.batches import batches
from backyfs.metadata.db.database import insert_row
from backyfs.metadata.db.tables import blob_refs, pages, version_pages, versions
from backyfs.model import BlobId, PageId, PageNumber, VersionStatus
from backyfs.values import shown

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from sqlalchemy import ColumnElement, Connection

    from backyfs.model import Version, VersionId

    Entries: TypeAlias = "array[int]"

HOLE = 0       # the block is zeros
ABSENT = -1    # the block was not backed up yet: its version is incomplete
_LEVEL = 3     # of zstd

_PAGES_AT_ONCE = 64


class BlobsGoneError(BackyfsError):
    """A cleanup has doomed blobs that a new page refers to. Their blocks must be stored again."""

    def __init__(self, blob_ids: frozenset[BlobId]) -> None:
        self.blob_ids = blob_ids
        super().__init__(f"a cleanup has doomed {len(blob_ids)} blobs in the meantime")


def new_entries(length: int, entry: int) -> Entries:
    """Return `length` equal entries."""
    return array("q", [entry]) * length


def pack(entries: Entries) -> bytes:
    """Return entries in the form that pages store: one zstd frame of little-endian 64-bit numbers."""
    return zstandard.ZstdCompressor(level=_LEVEL).compress(_little_endian(entries).tobytes())


def unpack(packed: bytes) -> Entries:
    """Return the entries of a page.

    Raises:
        DamagedPageError: the page is damaged.
    """
    if not isinstance(packed, bytes):  # SQLite can return any type
        raise _damaged_page(f"it is {shown(packed)}, which is not bytes")
    try:
        size = zstandard.frame_content_size(packed)
        if not 0 <= size <= PAGE_ENTRIES * 8 or size % 8:
            raise _damaged_page(f"it claims to contain {size} bytes")
        raw = zstandard.ZstdDecompressor().decompress(packed, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise _damaged_page(str(error)) from error
    entries = _little_endian(array("q", raw))
    if entries and min(entries) < ABSENT:
        raise _damaged_page(f"it has entry {min(entries)}")
    return entries


def _damaged_page(fact: str) -> DamagedPageError:
    return DamagedPageError(f"is damaged: {fact}", subject="a page of a block map")


def commit_page(
    connection: Connection,
    version_id: VersionId,
    page_no: PageNumber,
    entries: Entries,
    *,
    keep_holes: bool = False,
) -> PageId | None:
    """Make `entries` page `page_no` of a version, replacing any earlier one, and update the counts. Return the page.

    A page that consists of holes gets no row. With `keep_holes` it does get one, because in an incomplete version a
    missing row means that nothing is known.

    The replaced page is removed if no other version uses it. All blobs in `entries` must be durable and have rows.
    Call this in a write transaction, and roll that back if this raises.

    Raises:
        BlobsGoneError: some of the blobs are doomed or gone.
    """
    replaced = _drop_page(connection, version_id, page_no)
    page_id = _add_page(connection, version_id, page_no, entries, keep_holes=keep_holes)
    if replaced is not None:
        remove_unused_page(connection, replaced)
    return page_id


def _add_page(
    connection: Connection, version_id: VersionId, page_no: PageNumber, entries: Entries, *, keep_holes: bool
) -> PageId | None:
    if not keep_holes and all(entry == HOLE for entry in entries):
        return None  # a missing row means a page of holes
    digest = _digest(entries)
    page_id = _share_page(connection, digest)
    if page_id is None:
        page_id = _insert_page(connection, digest, entries)
    connection.execute(insert(version_pages).values(version_id=version_id, page_no=page_no, page_id=page_id))
    return page_id


def insert_version_pages(
    connection: Connection, version_id: VersionId, listed: Iterable[tuple[PageNumber, PageId]]
) -> None:
    """Add pages to a version that has no pages with these numbers. The caller updates the counts."""
    rows = [{"version_id": version_id, "page_no": page_no, "page_id": page_id} for page_no, page_id in listed]
    for batch in batches(rows):
        connection.execute(insert(version_pages), batch)


def share_pages(
    connection: Connection, version_id: VersionId, shared: Collection[tuple[PageNumber, PageId]]
) -> None:
    """Add pages of other versions to this version, which has no pages with these numbers, and update the counts."""
    insert_version_pages(connection, version_id, shared)
    uses: dict[int, list[PageId]] = {}
    for page_id, count in Counter(page_id for _, page_id in shared).items():
        uses.setdefault(count, []).append(page_id)
    for count, page_ids in uses.items():
        for some in batches(page_ids):
            connection.execute(update(pages).where(pages.c.id.in_(some)).values(refs=pages.c.refs + count))


def forget_holes(connection: Connection, version_id: VersionId, blocks: int) -> None:
    """Remove pages that consist of holes from a version that becomes complete, and update the counts."""
    lengths = {page_length(page_no, blocks) for page_no in map(PageNumber, (0, page_count(blocks) - 1)) if blocks}
    for length in lengths:
        digest = _digest(new_entries(length, HOLE))
        page_id = connection.execute(select(pages.c.id).where(pages.c.digest == digest)).scalar_one_or_none()
        if page_id is None:
            continue
        here = (version_pages.c.version_id == version_id) & (version_pages.c.page_id == page_id)
        count = connection.execute(version_pages.delete().where(here)).rowcount
        if count:
            connection.execute(update(pages).where(pages.c.id == page_id).values(refs=pages.c.refs - count))
            remove_unused_page(connection, PageId(page_id))


def replace_blobs(connection: Connection, page_id: PageId, instead: Mapping[BlobId, BlobId]) -> bool:
    """Replace blobs in a page by others with the same bytes, in all versions; return whether the page was replaced.

    Pages never change, so versions get another page and this one is removed. A page that is not in use is left for the
    cleanup. Call this in a write transaction, and roll that back if this raises.

    Raises:
        BlobsGoneError: a cleanup has doomed some of the new blobs.
        DatabaseError: the page is damaged.
    """
    row = connection.execute(select(pages.c.entries, pages.c.refs).where(pages.c.id == page_id)).one_or_none()
    if row is None or row.refs == 0:
        return False
    entries = unpack(row.entries)
    changed = array("q", (instead.get(BlobId(entry), entry) for entry in entries))
    if changed == entries:
        return False
    digest = _digest(changed)
    other = _share_page(connection, digest, row.refs)
    if other is None:
        other = _insert_page(connection, digest, changed, row.refs)
    note_versions_with_page(connection, page_id)
    connection.execute(update(version_pages).where(version_pages.c.page_id == page_id).values(page_id=other))
    connection.execute(update(pages).where(pages.c.id == page_id).values(refs=0))
    remove_unused_page(connection, page_id)
    return True


def remove_unused_page(connection: Connection, page_id: PageId) -> bool:
    """Remove a page and update the counts; return False if a version uses the page.

    Raises:
        DatabaseError: the page is damaged.
    """
    page = select(pages.c.entries, pages.c.uid, pages.c.published).where(pages.c.id == page_id)
    row = connection.execute(page).one_or_none()
    unused = pages.delete().where(pages.c.id == page_id, pages.c.refs == 0)
    if row is None or connection.execute(unused).rowcount == 0:
        return False
    if row.published:
        note_removed_page(connection, row.uid)
    _count_use(connection, {BlobId(entry) for entry in unpack(row.entries) if entry > HOLE}, -1)
    return True


def list_pages(connection: Connection, version_id: VersionId) -> list[tuple[PageNumber, PageId]]:
    """Return the numbers and ids of the pages of a version, in order.

    Raises:
        OddValueError: a row has an impossible value.
    """
    query = (
        select(version_pages.c.page_no, version_pages.c.page_id)
        .where(version_pages.c.version_id == version_id)
        .order_by(version_pages.c.page_no)
    )
    try:
        return [(PageNumber(row.page_no), PageId(row.page_id)) for row in connection.execute(query)]
    except OddValueError as error:  # skipping the row would turn its blocks into holes
        uid = connection.execute(select(versions.c.uid).where(versions.c.id == version_id)).scalar()
        raise OddValueError(error.table, error.column, error.oddity, f"a row of version {uid}") from None


def load_page(connection: Connection, version_id: VersionId, page_no: PageNumber) -> Entries | None:
    """Return the entries of a page of a version; None if it has no such page.

    Raises:
        DamagedPageError: the page is damaged.
    """
    query = (
        select(pages.c.entries, pages.c.digest)
        .join(version_pages, version_pages.c.page_id == pages.c.id)
        .where(version_pages.c.version_id == version_id, version_pages.c.page_no == page_no)
    )
    row = connection.execute(query).one_or_none()
    if row is None:
        return None
    entries = unpack(row.entries)
    check_digest(entries, row.digest)
    return entries


def check_digest(entries: Entries, digest: bytes) -> None:
    """Make sure that the entries of a page have the digest in its row.

    Raises:
        DamagedPageError: the digest differs.
    """
    if _digest(entries) != digest:
        raise _damaged_page("its digest differs")


def page_entries(connection: Connection, version: Version, page_no: PageNumber, blocks: int) -> Entries:
    """Return the entries of a page of a version with `blocks` blocks, whether or not the page has a row.

    A page without a row consists of holes; in an incomplete version it counts as not backed up.

    Raises:
        VersionNotFoundError: the version was removed in the meantime, so it has no rows at all.
        DamagedPageError: the page is damaged.
    """
    length = page_length(page_no, blocks)
    entries = load_page(connection, version.id, page_no)
    if entries is None:
        if connection.execute(select(versions.c.id).where(versions.c.id == version.id)).first() is None:
            raise VersionNotFoundError("was removed while it was being read", subject=f"version {version.uid}")
        _require_no_row(connection, version, page_no, page_count(blocks))
        return new_entries(length, ABSENT if version.status is VersionStatus.INCOMPLETE else HOLE)
    if len(entries) != length:
        raise DamagedPageError(
            f"has {len(entries)} entries instead of {length}", subject=f"page {page_no} of version {version.uid}"
        )
    return entries


def _require_no_row(connection: Connection, version: Version, page_no: PageNumber, pages_: int) -> None:
    """Make sure that a page has no row because it consists of holes, and not because its row is damaged.

    Raises:
        DamagedPageError: the page has a row without a page, or the version has a row with an impossible page number.
    """
    of_version = version_pages.c.version_id == version.id
    number = version_pages.c.page_no
    for suspicious in (number == page_no, number < 0, number >= pages_, number.is_(None)):  # each uses an index
        if connection.execute(select(literal(1)).where(of_version, suspicious).limit(1)).first() is not None:
            raise DamagedPageError(
                "is damaged: the table version_pages has a row of this version that refers to none of its pages",
                subject=f"a page of the block map of version {version.uid}",
            )


def all_pages(connection: Connection, *conditions: ColumnElement[bool]) -> Iterator[Any]:
    """Yield id, entries and digest of the pages that meet the conditions, by id. Few are in memory at a time."""
    query = select(pages.c.id, pages.c.entries, pages.c.digest).where(*conditions).order_by(pages.c.id)
    last = 0
    while batch := connection.execute(query.where(pages.c.id > last).limit(_PAGES_AT_ONCE)).all():
        yield from batch
        last = batch[-1].id


def references_add_up(connection: Connection) -> bool:
    """Return whether the reference counts of all pages and blobs match their uses.

    Only the sums are compared, so memory does not grow with the number of blobs.
    """
    uses = sum(len({entry for entry in unpack(row.entries) if entry > HOLE}) for row in all_pages(connection))
    named = connection.execute(select(func.count()).select_from(version_pages)).scalar_one()
    page_refs = connection.execute(select(func.coalesce(func.sum(pages.c.refs), 0))).scalar_one()
    blob_uses = connection.execute(select(func.coalesce(func.sum(blob_refs.c.refs), 0))).scalar_one()
    return bool(page_refs == named and blob_uses == uses)


def _drop_page(connection: Connection, version_id: VersionId, page_no: PageNumber) -> PageId | None:
    here = (version_pages.c.version_id == version_id) & (version_pages.c.page_no == page_no)
    page_id = connection.execute(select(version_pages.c.page_id).where(here)).scalar_one_or_none()
    if page_id is None:
        return None
    connection.execute(version_pages.delete().where(here))
    connection.execute(update(pages).where(pages.c.id == page_id).values(refs=pages.c.refs - 1))
    return PageId(page_id)


def _share_page(connection: Connection, digest: bytes, uses: int = 1) -> PageId | None:
    shared = connection.execute(update(pages).where(pages.c.digest == digest).values(refs=pages.c.refs + uses))
    if shared.rowcount == 0:
        return None
    return PageId(connection.execute(select(pages.c.id).where(pages.c.digest == digest)).scalar_one())


def _insert_page(connection: Connection, digest: bytes, entries: Entries, uses: int = 1) -> PageId:
    blob_ids = frozenset(BlobId(entry) for entry in entries if entry > HOLE)
    if _count_use(connection, blob_ids, 1) != len(blob_ids):
        raise BlobsGoneError(blob_ids - _living(connection, blob_ids))
    row = insert(pages).values(
        uid=str(uuid.uuid4()), digest=digest, entries=pack(entries), refs=uses, published=False
    )
    return PageId(insert_row(connection, row))


def add_recovered_page(connection: Connection, uid: str, entries: Entries, *, published: bool = True) -> PageId:
    """Insert a page that no version uses yet, or return an existing one with these entries. All its blobs have rows."""
    digest = _digest(entries)
    page_id = connection.execute(select(pages.c.id).where(pages.c.digest == digest)).scalar()
    if page_id is not None:
        return PageId(page_id)
    _count_use(connection, {BlobId(entry) for entry in entries if entry > HOLE}, 1)
    row = insert(pages).values(uid=uid, digest=digest, entries=pack(entries), refs=0, published=published)
    return PageId(insert_row(connection, row))


def _count_use(connection: Connection, blob_ids: Collection[BlobId], pages_more: int) -> int:
    """Add `pages_more` to the count of each of these blobs that is not doomed; return how many there are."""
    if not blob_ids:
        return 0
    # Ids are part of the statement: binding a thousand parameters took longer than executing it.
    numbers = ",".join(map(str, sorted(blob_ids)))
    used = f"UPDATE {blob_refs.name} SET refs = refs + ({pages_more:d}) WHERE blob_id IN ({numbers})"  # noqa: S608 - integers
    return connection.exec_driver_sql(used).rowcount


def _living(connection: Connection, blob_ids: Iterable[BlobId]) -> frozenset[BlobId]:
    living: set[BlobId] = set()
    for batch in batches(sorted(blob_ids)):
        query = select(blob_refs.c.blob_id).where(blob_refs.c.blob_id.in_(batch))
        living.update(BlobId(row.blob_id) for row in connection.execute(query))
    return frozenset(living)


def _digest(entries: Entries) -> bytes:
    return blake3(_little_endian(entries).tobytes()).digest()


def _little_endian(entries: Entries) -> Entries:
    if sys.byteorder == "little":
        return entries
    swapped = array("q", entries)
    swapped.byteswap()
    return swapped
