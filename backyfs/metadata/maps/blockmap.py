"""The block map: which blob each block of a version is, in immutable pages that versions share.

Two levels, like the L1 and L2 tables of qcow2: `version_pages` names `pages`, a page holds up to 1,024
entries. Invariant, kept by every transaction: `pages.refs` counts the rows of `version_pages` that name
the page, and `blob_refs.refs` counts the pages that contain the blob; a doomed blob has no row there.
"""

from __future__ import annotations

import sys
import uuid
from array import array
from collections import Counter
from typing import TYPE_CHECKING, TypeAlias

import zstandard
from blake3 import blake3
from sqlalchemy import bindparam, func, insert, literal, select, update

from backyfs.errors import BackyfsError, DamagedPageError, OddValueError, VersionNotFoundError
from backyfs.geometry import PAGE_ENTRIES, page_count, page_length
from backyfs.metadata.catalog.notes import note_removed_page, note_versions_with_page
from backyfs.metadata.db.batches import batches
from backyfs.metadata.db.database import insert_row
from backyfs.metadata.db.tables import blob_refs, pages, version_pages, versions
from backyfs.model import BlobId, PageId, PageNumber, VersionStatus
from backyfs.values import shown

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from sqlalchemy import Connection

    from backyfs.model import Version, VersionId

    Entries: TypeAlias = "array[int]"

HOLE = 0       # the block is zeros
ABSENT = -1    # the block was never backed up: its version is incomplete
_LEVEL = 3     # of zstd

_SOME_PAGES = (
    select(pages.c.id, pages.c.entries).where(pages.c.id > bindparam("last")).order_by(pages.c.id).limit(64)
)


class BlobsGoneError(BackyfsError):
    """A cleanup doomed blobs that a page was to contain; their blocks are to be stored anew."""

    def __init__(self, blob_ids: frozenset[BlobId]) -> None:
        self.blob_ids = blob_ids
        super().__init__(f"{len(blob_ids)} blobs were doomed by a cleanup meanwhile")


def new_entries(length: int, entry: int) -> Entries:
    """Return so many entries that are all the same."""
    return array("q", [entry]) * length


def pack(entries: Entries) -> bytes:
    """Return entries as a page stores them: one zstd frame of little-endian 64-bit numbers."""
    return zstandard.ZstdCompressor(level=_LEVEL).compress(_little_endian(entries).tobytes())


def unpack(packed: bytes) -> Entries:
    """Return the entries of a page.

    Raises:
        DamagedPageError: the page is damaged.
    """
    if not isinstance(packed, bytes):  # of SQLite it can be anything
        raise DamagedPageError(f"a page of a block map is damaged: it is {shown(packed)}, which is not bytes")
    try:
        size = zstandard.frame_content_size(packed)
        if not 0 <= size <= PAGE_ENTRIES * 8 or size % 8:
            raise DamagedPageError(f"a page of a block map is damaged: it claims to hold {size} bytes")
        raw = zstandard.ZstdDecompressor().decompress(packed, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise DamagedPageError(f"a page of a block map is damaged: {error}") from error
    entries = _little_endian(array("q", raw))
    if entries and min(entries) < ABSENT:
        raise DamagedPageError(f"a page of a block map is damaged: it has entry {min(entries)}")
    return entries


def commit_page(
    connection: Connection,
    version_id: VersionId,
    page_no: PageNumber,
    entries: Entries,
    *,
    keep_holes: bool = False,
) -> PageId | None:
    """Make `entries` page `page_no` of a version, in place of the one it had, and count. Return the page.

    A page of nothing but holes gets no row, unless `keep_holes` says that the version stays incomplete, where
    no row means that nothing is known.

    The page it had is removed if nobody else has it. The blobs it names are durable and have rows. To be called in
    a write transaction, which the caller rolls back when this raises.

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
        return None  # an absent row is a page of holes
    digest = _digest(entries)
    page_id = _share_page(connection, digest)
    if page_id is None:
        page_id = _insert_page(connection, digest, entries)
    connection.execute(insert(version_pages).values(version_id=version_id, page_no=page_no, page_id=page_id))
    return page_id


def share_pages(
    connection: Connection, version_id: VersionId, shared: Collection[tuple[PageNumber, PageId]]
) -> None:
    """Make pages that other versions have pages of this one, which has none there, and count."""
    rows = [{"version_id": version_id, "page_no": page_no, "page_id": page_id} for page_no, page_id in shared]
    for batch in batches(rows):
        connection.execute(insert(version_pages), batch)
    uses: dict[int, list[PageId]] = {}
    for page_id, count in Counter(page_id for _, page_id in shared).items():
        uses.setdefault(count, []).append(page_id)
    for count, page_ids in uses.items():
        for some in batches(page_ids):
            connection.execute(update(pages).where(pages.c.id.in_(some)).values(refs=pages.c.refs + count))


def forget_holes(connection: Connection, version_id: VersionId, blocks: int) -> None:
    """Take the rows of pages that are nothing but holes from a version, which then is complete, and count."""
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
    """Give all versions that have this page one that names other blobs with the same bytes; return whether it did.

    The page itself is removed: pages never change. One that no version has is left to the cleanup. To be called in a
    write transaction, which the caller rolls back when this raises.

    Raises:
        BlobsGoneError: a cleanup doomed some of the other blobs.
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
    """Remove a page that no version has, and count; return False if one has it.

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
    """Return which pages a version has, in order.

    Raises:
        OddValueError: a row has a value that cannot be.
    """
    query = (
        select(version_pages.c.page_no, version_pages.c.page_id)
        .where(version_pages.c.version_id == version_id)
        .order_by(version_pages.c.page_no)
    )
    try:
        return [(PageNumber(row.page_no), PageId(row.page_id)) for row in connection.execute(query)]
    except OddValueError as error:  # without that page the version would have holes there
        uid = connection.execute(select(versions.c.uid).where(versions.c.id == version_id)).scalar()
        raise OddValueError(error.table, error.column, error.oddity, f"a row of version {uid}") from None


def load_page(connection: Connection, version_id: VersionId, page_no: PageNumber) -> Entries | None:
    """Return the entries of a page of a version; None where it has no such page.

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
    """Make sure that these are the entries of the page that has this digest.

    Raises:
        DamagedPageError: they are not.
    """
    if _digest(entries) != digest:
        raise DamagedPageError("a page of a block map is damaged: its digest differs")


def page_entries(connection: Connection, version: Version, page_no: PageNumber, blocks: int) -> Entries:
    """Return the entries of a page of a version with so many blocks, whether or not it has a row.

    A page without a row is one of holes; in an incomplete version it is one that was not backed up, for all
    that is known.

    Raises:
        VersionNotFoundError: the version was removed in the meantime, so it has no rows at all.
        DamagedPageError: the page is damaged.
    """
    length = page_length(page_no, blocks)
    entries = load_page(connection, version.id, page_no)
    if entries is None:
        if connection.execute(select(versions.c.id).where(versions.c.id == version.id)).first() is None:
            raise VersionNotFoundError(f"version {version.uid} was removed while it was being read")
        _require_no_row(connection, version, page_no, page_count(blocks))
        return new_entries(length, ABSENT if version.status is VersionStatus.INCOMPLETE else HOLE)
    if len(entries) != length:
        raise DamagedPageError(
            f"page {page_no} of version {version.uid} has {len(entries)} entries instead of {length}"
        )
    return entries


def _require_no_row(connection: Connection, version: Version, page_no: PageNumber, pages_: int) -> None:
    """Make sure that a page has no row because it is holes, and not because its row is damaged.

    Raises:
        DamagedPageError: it has one, which names no page; or the version has a row with a number that is none of its.
    """
    of_version = version_pages.c.version_id == version.id
    number = version_pages.c.page_no
    for suspicious in (number == page_no, number < 0, number >= pages_, number.is_(None)):  # each is found by an index
        if connection.execute(select(literal(1)).where(of_version, suspicious).limit(1)).first() is not None:
            raise DamagedPageError(
                f"a page of the block map of version {version.uid} is damaged: the table version_pages has a row of "
                "that version that names no page of it"
            )


def references_add_up(connection: Connection) -> bool:
    """Return whether the references of all pages, and those of all blobs, are as many as there are uses of them.

    The sums alone are compared: memory does not grow with the number of blobs.
    """
    uses = 0
    last = 0
    while batch := connection.execute(_SOME_PAGES, {"last": last}).all():
        uses += sum(len({entry for entry in unpack(row.entries) if entry > HOLE}) for row in batch)
        last = batch[-1].id
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
    """Insert a page that no version has yet, or return the one that has these entries. All its blobs have rows."""
    digest = _digest(entries)
    page_id = connection.execute(select(pages.c.id).where(pages.c.digest == digest)).scalar()
    if page_id is not None:
        return PageId(page_id)
    _count_use(connection, {BlobId(entry) for entry in entries if entry > HOLE}, 1)
    row = insert(pages).values(uid=uid, digest=digest, entries=pack(entries), refs=0, published=published)
    return PageId(insert_row(connection, row))


def _count_use(connection: Connection, blob_ids: Collection[BlobId], pages_more: int) -> int:
    """Count so many pages more for each of these blobs, unless it is doomed; return for how many."""
    if not blob_ids:
        return 0
    # The numbers stand in the text: a thousand parameters took longer than the statement.
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
