"""What a cleanup removes, step by step: the same on every engine."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import func, select, update

from backyfs.errors import DatabaseError
from backyfs.metadata.db.tables import blob_refs, blobs, pages
from backyfs.metadata.maps.blockmap import BlobsGoneError, references_add_up
from backyfs.metadata.records.blobs import find_blobs, insert_blobs
from backyfs.metadata.records.removal import remove_version
from backyfs.metadata.upkeep.garbage import (
    Cutoffs,
    Garbage,
    count_young,
    doom_unused_blobs,
    doomed_blobs,
    forget_doomed,
    measure_doomed,
    measure_garbage,
    remove_unused_pages,
)
from backyfs.model import BlobId, BlobUid, SavedBlob
from tests.support.stored import version_with

if TYPE_CHECKING:
    from sqlalchemy import Table

    from backyfs.metadata.db.database import Connection

BLOCK = 4096
NOW = datetime(2026, 1, 1, tzinfo=UTC)
LATER = NOW + timedelta(hours=2)
ANY_AGE = Cutoffs(unused=LATER, doomed=None)
THE_SAME_AGE = Cutoffs(unused=NOW, doomed=None)  # too young


def new_blobs(connection: Connection, count: int) -> list[BlobId]:
    saved = [
        SavedBlob(
            uid=BlobUid(f"{number:032x}"),
            fingerprint=f"content {number}".encode(),
            size=BLOCK,
            stored_size=10 + number,
            encryption_version=0,
            wrapped_key=None,
        )
        for number in range(count)
    ]
    ids = insert_blobs(connection, saved, NOW)
    return [ids[blob.uid] for blob in saved]


def refs(connection: Connection) -> dict[int, int]:
    return {row.blob_id: row.refs for row in connection.execute(select(blob_refs))}


def doom(connection: Connection, *, older_than: datetime = LATER, after: int = 0, count: int = 100) -> list[BlobId]:
    return doom_unused_blobs(connection, older_than=older_than, now=LATER, after=BlobId(after), count=count)


def test_a_page_without_a_version_is_removed_and_counted(connection: Connection) -> None:
    a, b = new_blobs(connection, 2)
    first, second = version_with(connection, a, b), version_with(connection, b, 0)
    assert remove_unused_pages(connection, 10) == 0
    remove_version(connection, first.id)
    assert remove_unused_pages(connection, 10) == 1
    assert refs(connection) == {a: 0, b: 1}
    assert references_add_up(connection)
    remove_version(connection, second.id)
    assert remove_unused_pages(connection, 10) == 1
    assert refs(connection) == {a: 0, b: 0}
    assert connection.execute(select(pages)).all() == []


def test_pages_are_removed_a_few_at_a_time(connection: Connection) -> None:
    ids = new_blobs(connection, 5)
    for version in [version_with(connection, blob_id) for blob_id in ids]:
        remove_version(connection, version.id)
    assert [remove_unused_pages(connection, 2) for _ in range(4)] == [2, 2, 1, 0]


def test_a_page_in_use_is_not_removed_even_if_its_count_is_wrong(connection: Connection) -> None:
    [a] = new_blobs(connection, 1)
    version_with(connection, a)
    connection.execute(update(pages).values(refs=0))
    nested = connection.begin_nested()
    with pytest.raises(DatabaseError, match="run a full cleanup"):
        remove_unused_pages(connection, 10)
    nested.rollback()
    assert refs(connection) == {a: 1}


def test_only_blobs_without_a_page_are_doomed(connection: Connection) -> None:
    a, b, c = new_blobs(connection, 3)
    version_with(connection, b)
    assert doom(connection) == [a, c]
    assert refs(connection) == {b: 1}
    doomed = doomed_blobs(connection, ANY_AGE, BlobId(0), 10)
    assert [(blob.id, blob.uid, blob.stored_size) for blob in doomed] == [
        (a, f"{0:032x}", 10),
        (c, f"{2:032x}", 12),
    ]
    assert doomed_blobs(connection, ANY_AGE, a, 10) == doomed[1:]
    assert doomed_blobs(connection, ANY_AGE, BlobId(0), 1) == doomed[:1]
    assert measure_doomed(connection, ANY_AGE) == (2, 22)
    moments = connection.execute(select(blobs.c.doomed_at).where(blobs.c.doomed_at.is_not(None))).scalars().all()
    assert moments == [LATER, LATER]


def test_young_blobs_are_kept(connection: Connection) -> None:
    [a] = new_blobs(connection, 1)
    assert doom(connection, older_than=NOW) == []
    assert doom(connection, older_than=NOW + timedelta(microseconds=1)) == [a]


def test_young_doomed_blobs_are_not_deleted_yet(connection: Connection) -> None:
    a, b, c = new_blobs(connection, 3)
    connection.execute(update(blobs).where(blobs.c.id == b).values(created_at=LATER))
    assert doom(connection, older_than=LATER + timedelta(hours=1), count=2) == [a, b]
    cutoffs = Cutoffs(unused=NOW, doomed=NOW)
    assert [blob.id for blob in doomed_blobs(connection, cutoffs, BlobId(0), 10)] == [a]
    assert measure_doomed(connection, cutoffs) == (1, 10)
    assert measure_garbage(connection, cutoffs) == Garbage(pages=0, blobs=1, stored_bytes=10, young_blobs=2)
    assert count_young(connection, cutoffs) == len([b, c])
    assert count_young(connection, ANY_AGE) == 0


def test_blobs_are_doomed_a_few_at_a_time(connection: Connection) -> None:
    ids = new_blobs(connection, 5)
    assert doom(connection, count=2) == ids[:2]
    assert doom(connection, after=ids[2], count=2) == ids[3:]
    assert doom(connection) == [ids[2]]
    assert doom(connection) == []


def test_a_doomed_blob_is_not_found_and_not_accepted_in_a_page(connection: Connection) -> None:
    [a] = new_blobs(connection, 1)
    doom(connection)
    assert find_blobs(connection, [b"content 0"]) == {}
    with pytest.raises(BlobsGoneError):
        version_with(connection, a)


def test_only_rows_of_doomed_blobs_are_removed(connection: Connection) -> None:
    a, b = new_blobs(connection, 2)
    version_with(connection, b)
    doom(connection)
    assert forget_doomed(connection, [a, b, BlobId(b + 1)]) == 1
    assert connection.execute(select(blobs.c.id)).scalars().all() == [b]
    assert forget_doomed(connection, [a]) == 0


def test_garbage_is_measured_as_a_cleanup_would_remove_it(connection: Connection) -> None:
    ids = new_blobs(connection, 5)
    nothing = Garbage(pages=0, blobs=0, stored_bytes=0, young_blobs=5)
    assert measure_garbage(connection, THE_SAME_AGE) == nothing
    doom(connection, count=1)
    version_with(connection, ids[1], ids[2])
    remove_version(connection, version_with(connection, ids[2], ids[3]).id)
    # One doomed, one only in a page without a version, and one in no page. The one that another page also has is kept.
    assert measure_garbage(connection, ANY_AGE) == Garbage(pages=1, blobs=3, stored_bytes=10 + 13 + 14, young_blobs=0)
    assert measure_garbage(connection, THE_SAME_AGE) == Garbage(pages=1, blobs=1, stored_bytes=10, young_blobs=2)
    connection.execute(update(blobs).where(blobs.c.id == ids[3]).values(stored_size=None))  # unknown
    assert measure_garbage(connection, ANY_AGE) == Garbage(pages=1, blobs=3, stored_bytes=10 + 14, young_blobs=0)
    connection.execute(update(blobs).where(blobs.c.id == ids[3]).values(stored_size=13))
    assert remove_unused_pages(connection, 10) == 1
    assert measure_garbage(connection, ANY_AGE) == Garbage(pages=0, blobs=3, stored_bytes=37, young_blobs=0)
    assert len(doom(connection)) == 2


MANY_PAGES, MANY_BLOBS = 140, 1100  # more than one batch of any step


def test_a_lot_of_garbage_is_counted_and_removed_in_many_steps(connection: Connection) -> None:
    ids = new_blobs(connection, MANY_BLOBS)
    size = MANY_BLOBS // MANY_PAGES
    parts = [ids[number * size : (number + 1) * size] for number in range(MANY_PAGES)]
    # Each page has a hole, which is not a blob, and a blob twice, which is one use.
    versions = [version_with(connection, 0, part[0], *part) for part in parts]
    assert references_add_up(connection)
    for version in versions:
        remove_version(connection, version.id)
    everything = Garbage(
        pages=MANY_PAGES, blobs=MANY_BLOBS, stored_bytes=sum(range(10, 10 + MANY_BLOBS)), young_blobs=0
    )
    assert measure_garbage(connection, ANY_AGE) == everything
    assert measure_garbage(connection, THE_SAME_AGE) == Garbage(
        pages=MANY_PAGES, blobs=0, stored_bytes=0, young_blobs=MANY_BLOBS
    )
    assert remove_unused_pages(connection, MANY_PAGES) == MANY_PAGES
    assert references_add_up(connection)
    doomed: list[BlobId] = []
    while found := doom(connection, after=doomed[-1] if doomed else 0, count=300):
        assert found == sorted(found)
        doomed += found
    assert doomed == ids
    assert measure_garbage(connection, ANY_AGE) == Garbage(
        pages=0, blobs=MANY_BLOBS, stored_bytes=everything.stored_bytes, young_blobs=0
    )
    assert forget_doomed(connection, doomed) == MANY_BLOBS
    assert measure_garbage(connection, ANY_AGE) == Garbage(pages=0, blobs=0, stored_bytes=0, young_blobs=0)
    assert references_add_up(connection)


@pytest.mark.parametrize("table", [pages, blob_refs], ids=["pages", "blobs"])
def test_one_extra_reference_among_many_is_found(connection: Connection, table: Table) -> None:
    ids = new_blobs(connection, MANY_PAGES)
    for blob_id in ids:
        version_with(connection, blob_id)
    assert references_add_up(connection)
    key = table.primary_key.columns[0]
    last = connection.execute(select(func.max(key))).scalar_one()
    connection.execute(update(table).where(key == last).values(refs=2))
    assert not references_add_up(connection)


def test_the_counts_of_an_empty_repository_add_up(connection: Connection) -> None:
    assert references_add_up(connection)
