"""Objects and blobs that replace others: the same on every engine."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from sqlalchemy import select, update

from backyfs.blocks import load_block
from backyfs.engine.secrets.migrate import MigrationRequest, migrate
from backyfs.engine.space.cleanup import cleanup
from backyfs.geometry import PAGE_ENTRIES
from backyfs.metadata.db.tables import blob_refs, blobs, pages
from backyfs.metadata.maps.blockmap import (
    HOLE,
    BlobsGoneError,
    add_recovered_page,
    commit_page,
    forget_holes,
    list_pages,
    load_page,
    new_entries,
    references_add_up,
    replace_blobs,
)
from backyfs.metadata.records.blobs import find_moved, insert_blobs, load_blobs
from backyfs.metadata.records.versions import create_version
from backyfs.metadata.upkeep.migration import BlobCount, Outdated, blobs_to_reseal, count_outdated, used_pages_with
from backyfs.metadata.upkeep.replacement import Replacement, replace_objects
from backyfs.model import Blob, BlobId, BlobUid, PageNumber, SavedBlob, Version
from tests.support.audit import doom
from tests.support.images import random_image
from tests.support.repositories import back_up, make_repository, opened
from tests.support.stored import blob_of, version_with

if TYPE_CHECKING:
    from pathlib import Path

    from backyfs.metadata.db.database import Connection

BLOCK = 4096
NOW = datetime(2026, 1, 1, tzinfo=UTC)
LATER = NOW + timedelta(days=1)


def saved(number: int, *, version: int = 0, content: int | None = None) -> SavedBlob:
    return SavedBlob(
        uid=BlobUid(f"{number:032x}"),
        fingerprint=f"content {number if content is None else content}".encode(),
        size=BLOCK,
        stored_size=BLOCK + 1,
        encryption_version=version,
        wrapped_key=b"key" if version else None,
    )


def new_blobs(connection: Connection, *wanted: SavedBlob) -> list[BlobId]:
    ids = insert_blobs(connection, wanted, NOW)
    return [ids[blob.uid] for blob in wanted]


def load(connection: Connection, blob_id: BlobId) -> Blob:
    return load_blobs(connection, [blob_id])[blob_id]


def entries_of(connection: Connection, version: Version) -> list[int]:
    return list(load_page(connection, version.id, PageNumber(0)) or [])


def refs(connection: Connection) -> dict[int, int]:
    return {row.blob_id: row.refs for row in connection.execute(select(blob_refs))}


def test_a_blob_gets_its_new_object_and_the_old_one_is_doomed(connection: Connection) -> None:
    [blob_id] = new_blobs(connection, saved(1))
    old = load(connection, blob_id)
    changed = replace_objects(connection, [Replacement(blob=old, saved=saved(2, version=2, content=1))], LATER)
    assert changed == {blob_id}
    row = connection.execute(select(blobs).where(blobs.c.id == blob_id)).one()
    assert (row.uid, row.fingerprint, row.stored_size) == (saved(2).uid, b"content 1", BLOCK + 1)
    assert (row.encryption_version, row.wrapped_key, row.valid) == (2, b"key", True)
    assert (row.created_at, row.doomed_at) == (LATER, None)
    doomed = connection.execute(select(blobs).where(blobs.c.id != blob_id)).one()
    assert (doomed.uid, doomed.doomed_at, doomed.stored_size) == (saved(1).uid, LATER, BLOCK + 1)
    assert (doomed.fingerprint, doomed.wrapped_key) == (None, None)
    assert refs(connection) == {blob_id: 0}


def test_a_damaged_blob_is_valid_with_its_new_object(connection: Connection) -> None:
    [blob_id] = new_blobs(connection, saved(1))
    connection.execute(update(blobs).values(valid=False))
    replace_objects(connection, [Replacement(blob=load(connection, blob_id), saved=saved(2, content=1))], LATER)
    assert connection.execute(select(blobs.c.valid).where(blobs.c.id == blob_id)).scalar() is True


def test_the_later_of_two_new_objects_for_a_blob_is_doomed(connection: Connection) -> None:
    [blob_id] = new_blobs(connection, saved(1))
    old = load(connection, blob_id)
    first, second = saved(2, version=2, content=1), saved(3, version=2, content=1)
    assert replace_objects(connection, [Replacement(blob=old, saved=first)], LATER) == {blob_id}
    assert replace_objects(connection, [Replacement(blob=old, saved=second)], LATER) == frozenset()
    assert load(connection, blob_id).uid == first.uid
    doomed = connection.execute(select(blobs.c.uid).where(blobs.c.doomed_at.is_not(None))).scalars().all()
    assert sorted(doomed) == [saved(1).uid, second.uid]


@pytest.mark.parametrize("gone", [True, False])
def test_a_new_object_for_a_blob_taken_by_a_cleanup_is_doomed(connection: Connection, gone: bool) -> None:
    [blob_id] = new_blobs(connection, saved(1))
    old = load(connection, blob_id)
    doom(connection, blob_id)
    if gone:
        connection.execute(blobs.delete())
    assert replace_objects(connection, [Replacement(blob=old, saved=saved(2))], LATER) == frozenset()
    rows = connection.execute(select(blobs.c.uid, blobs.c.doomed_at)).all()
    assert saved(2).uid in {row.uid for row in rows}
    assert all(row.doomed_at is not None for row in rows)


def test_a_moved_blob_is_found_in_its_new_place(connection: Connection) -> None:
    [blob_id, _] = new_blobs(connection, saved(1), saved(9))
    old = load(connection, blob_id)
    assert find_moved(connection, old) is None
    replace_objects(connection, [Replacement(blob=old, saved=saved(2, version=2, content=1))], LATER)
    moved = find_moved(connection, old)
    assert moved is not None
    assert (moved.id, moved.uid, moved.encryption_version) == (blob_id, saved(2).uid, 2)
    assert find_moved(connection, moved) is None


@pytest.mark.parametrize("gone", [True, False])
def test_another_blob_with_the_same_bytes_is_found_for_one_taken_by_a_cleanup(
    connection: Connection, gone: bool
) -> None:
    [first, second] = new_blobs(connection, saved(1), saved(2, version=2, content=1))
    old = load(connection, first)
    doom(connection, first)
    if gone:
        connection.execute(blobs.delete().where(blobs.c.id == first))
    moved = find_moved(connection, old)
    assert moved is not None
    assert moved.id == second
    doom(connection, second)
    assert find_moved(connection, old) is None


def test_many_threads_find_moved_blobs_while_another_thread_writes(database_url: str, tmp_path: Path) -> None:
    image = random_image(tmp_path / "image", 64 * BLOCK)
    with opened(make_repository(tmp_path / "repository", block_size=BLOCK, database=database_url)) as repository:
        version = back_up(repository, image).version
        old = [blob_of(repository, version, index) for index in range(64)]
        request = MigrationRequest(versions=None, outdated=Outdated(to=1))
        assert migrate(repository, request).blobs == 64
        cleanup(repository, grace_s=0)
        # Invariant 5 of docs/internals/architecture.md: the owner of a pipeline may be in the middle of a transaction.
        with repository.database.write(), ThreadPoolExecutor(32) as threads:
            found = b"".join(threads.map(lambda blob: load_block(repository.blocks, blob), old))
    assert found == image.read_bytes()


def test_a_page_gets_new_blobs_for_all_its_versions(connection: Connection) -> None:
    a, b, c = new_blobs(connection, saved(1), saved(2), saved(3, version=2, content=1))
    one, two = version_with(connection, a, b, 0, a), version_with(connection, a, b, 0, a)
    other = version_with(connection, b, 0, 0, 0)
    [(_, page_id)] = list_pages(connection, one.id)
    assert replace_blobs(connection, page_id, {a: c})
    assert entries_of(connection, one) == entries_of(connection, two) == [c, b, 0, c]
    assert entries_of(connection, other) == [b, 0, 0, 0]
    assert refs(connection) == {a: 0, b: 2, c: 1}
    assert references_add_up(connection)
    assert connection.execute(select(pages.c.id).where(pages.c.id == page_id)).first() is None


def test_a_page_that_becomes_equal_to_another_is_shared_with_its_versions(connection: Connection) -> None:
    a, b = new_blobs(connection, saved(1), saved(2, version=2, content=1))
    one, two = version_with(connection, a, 0), version_with(connection, b, 0)
    [(_, page_id)] = list_pages(connection, one.id)
    assert replace_blobs(connection, page_id, {a: b})
    assert list_pages(connection, one.id) == list_pages(connection, two.id)
    assert refs(connection) == {a: 0, b: 1}
    assert references_add_up(connection)


def test_a_page_of_two_versions_that_becomes_equal_to_another_counts_for_both(connection: Connection) -> None:
    a, b = new_blobs(connection, saved(1), saved(2))
    versions = [version_with(connection, a, HOLE), version_with(connection, a, HOLE), version_with(connection, b, HOLE)]
    [(_, page_id)] = list_pages(connection, versions[0].id)
    assert replace_blobs(connection, page_id, {a: b})
    assert connection.execute(select(pages.c.refs)).scalars().all() == [3]
    assert references_add_up(connection)
    assert {tuple(entries_of(connection, version)) for version in versions} == {(b, HOLE)}


def test_a_page_without_the_blob_or_without_a_version_is_not_changed(connection: Connection) -> None:
    a, b = new_blobs(connection, saved(1), saved(2, content=1))
    version = version_with(connection, a, 0)
    [(_, page_id)] = list_pages(connection, version.id)
    assert not replace_blobs(connection, page_id, {b: a})
    connection.execute(update(pages).values(refs=0))
    assert not replace_blobs(connection, page_id, {a: b})


def test_a_page_never_gets_a_doomed_blob(connection: Connection) -> None:
    a, b = new_blobs(connection, saved(1), saved(2, content=1))
    version = version_with(connection, a, 0)
    [(_, page_id)] = list_pages(connection, version.id)
    doom(connection, b)
    with pytest.raises(BlobsGoneError):
        replace_blobs(connection, page_id, {a: b})


def test_outdated_blobs_are_listed_and_counted(connection: Connection) -> None:
    ids = new_blobs(connection, saved(1), saved(2, version=1), saved(3, version=2), saved(4, version=1), saved(5))
    doom(connection, ids[4])
    assert blobs_to_reseal(connection, Outdated(to=2), BlobId(0)) == [ids[0], ids[1], ids[3]]
    assert blobs_to_reseal(connection, Outdated(to=2), ids[1]) == [ids[3]]
    assert blobs_to_reseal(connection, Outdated(to=2, before=LATER), BlobId(0)) == ids[:4]
    assert blobs_to_reseal(connection, Outdated(to=2, before=NOW), BlobId(0)) == [ids[0], ids[1], ids[3]]
    zero, one = (
        BlobCount(encryption_version=number, blobs=many, bytes=many * BLOCK) for number, many in ((0, 1), (1, 2))
    )
    assert count_outdated(connection, Outdated(to=2)) == [zero, one]
    assert count_outdated(connection, Outdated(to=2), {ids[0], ids[2]}.__contains__) == [zero]


def test_pages_with_a_blob_are_found(connection: Connection) -> None:
    a, b = new_blobs(connection, saved(1), saved(2))
    one = version_with(connection, a, 0)
    version_with(connection, b, 0)
    [(_, page_id)] = list_pages(connection, one.id)
    assert list(used_pages_with(connection, {a})) == [page_id]
    assert list(used_pages_with(connection, set())) == []


def test_recovered_pages_with_the_same_entries_are_merged(connection: Connection) -> None:
    [a] = new_blobs(connection, saved(1))
    entries = new_entries(3, a)
    one, two, three = (str(UUID(int=number)) for number in (1, 2, 3))
    page_id = add_recovered_page(connection, one, entries)
    assert add_recovered_page(connection, two, new_entries(2, a)) != page_id
    assert add_recovered_page(connection, three, entries) == page_id
    assert sorted(connection.execute(select(pages.c.uid)).scalars()) == [one, two]
    assert refs(connection) == {a: 2}


@pytest.mark.parametrize("empty", [{0}, {1}, {0, 1}, {2}, {0, 2}, {1, 2}])
def test_completing_a_version_removes_pages_of_holes(connection: Connection, empty: set[int]) -> None:
    [a] = new_blobs(connection, saved(1))
    blocks = 2 * PAGE_ENTRIES + 5
    version = create_version(connection, name="disk", snapshot_name="", size_bytes=blocks * BLOCK, created_at=NOW)
    for number, length in enumerate((PAGE_ENTRIES, PAGE_ENTRIES, 5)):
        entries = new_entries(length, HOLE if number in empty else a)
        commit_page(connection, version.id, PageNumber(number), entries, keep_holes=True)
    forget_holes(connection, version.id, blocks)
    assert [page_no for page_no, _ in list_pages(connection, version.id)] == sorted({0, 1, 2} - empty)
    assert references_add_up(connection)
