"""The block map: pages as bytes, and reference counts."""

from __future__ import annotations

import sys
from array import array
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
import zstandard
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select, update

from backyfs.errors import DatabaseError
from backyfs.geometry import PAGE_ENTRIES, page_count, page_length
from backyfs.metadata.db.tables import blob_refs, pages, version_pages
from backyfs.metadata.maps.blockmap import (
    ABSENT,
    HOLE,
    BlobsGoneError,
    commit_page,
    forget_holes,
    list_pages,
    load_page,
    new_entries,
    pack,
    page_entries,
    remove_unused_page,
    unpack,
)
from backyfs.metadata.records.blobs import insert_blobs
from backyfs.metadata.records.versions import create_version, set_status
from backyfs.model import BlobId, BlobUid, PageNumber, SavedBlob, Version, VersionId, VersionStatus
from tests.support.audit import doom
from tests.support.repositories import make_repository, opened

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from backyfs.metadata.db.database import Connection, Database

NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)
BLOBS = 600  # more than the parameters that one statement takes
VERSIONS = 3
FIRST = PageNumber(0)

all_entries = st.lists(st.integers(ABSENT, 2**63 - 1), max_size=PAGE_ENTRIES)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """Make a database with blobs 1 to 600 and versions 1 to 3. Tests roll back their changes."""
    with opened(make_repository(tmp_path_factory.mktemp("blockmap"), encrypted=False)) as repository:
        with repository.database.write() as connection:
            saved = [
                SavedBlob(
                    uid=BlobUid(f"{number:032}"),
                    fingerprint=number.to_bytes(32, "big"),
                    size=4096,
                    stored_size=4096,
                    encryption_version=0,
                    wrapped_key=None,
                )
                for number in range(1, BLOBS + 1)
            ]
            assert sorted(insert_blobs(connection, saved, NOON).values()) == list(range(1, BLOBS + 1))
            for number in range(1, VERSIONS + 1):
                version = make_version(connection, f"disk{number}")
                assert version.id == number
        yield repository.database


def make_version(connection: Connection, name: str = "disk", size_bytes: int = 4096) -> Version:
    return create_version(connection, name=name, snapshot_name="", size_bytes=size_bytes, created_at=NOON)


def entries_of(*entries: int) -> array[int]:
    return array("q", entries)


def commit(connection: Connection, version: int, page_no: int, entries: Iterable[int]) -> None:
    commit_page(connection, VersionId(version), PageNumber(page_no), array("q", entries))


def page_refs(connection: Connection) -> dict[bytes, int]:
    return {row.digest: row.refs for row in connection.execute(select(pages.c.digest, pages.c.refs))}


def counted_uses(connection: Connection) -> dict[int, int]:
    """Return the reference counts of the blobs that are referenced."""
    query = select(blob_refs).where(blob_refs.c.refs != 0)
    return {row.blob_id: row.refs for row in connection.execute(query)}


def assert_counts_are_right(connection: Connection) -> None:
    """Recount all references from the rows that make them."""
    named = Counter(connection.execute(select(version_pages.c.page_id)).scalars())
    contained: Counter[int] = Counter()
    for row in connection.execute(select(pages.c.id, pages.c.entries, pages.c.refs)):
        assert row.refs == named[row.id]
        contained.update({entry for entry in unpack(row.entries) if entry > HOLE})
    assert counted_uses(connection) == contained


# Pages as bytes


@given(all_entries)
def test_unpacking_a_page_returns_its_entries(entries: list[int]) -> None:
    assert list(unpack(pack(array("q", entries)))) == entries


def test_a_page_is_a_zstd_frame_of_little_endian_numbers() -> None:
    packed = pack(entries_of(1, HOLE, ABSENT))
    expected = bytes.fromhex("0100000000000000 0000000000000000 ffffffffffffffff")
    assert zstandard.ZstdDecompressor().decompress(packed) == expected


def test_a_stored_page_can_still_be_read() -> None:
    packed = bytes.fromhex("28b52ffd2018850000500100ffffffffffffffff010032c002")
    assert unpack(packed) == entries_of(1, HOLE, ABSENT)


def test_a_page_of_equal_entries_is_small() -> None:
    assert len(pack(new_entries(1024, HOLE))) < 32


@pytest.mark.parametrize("damaged", [b"", b"x", b"\x28\xb5\x2f\xfd", bytes(100)])
def test_bytes_that_are_not_a_frame_are_refused(damaged: bytes) -> None:
    with pytest.raises(DatabaseError, match=r"^a page of a block map is damaged: "):
        unpack(damaged)


@given(st.binary(max_size=200))
def test_any_bytes_give_entries_or_a_database_error(packed: bytes) -> None:
    try:
        entries = unpack(packed)
    except DatabaseError:
        return
    assert len(entries) <= PAGE_ENTRIES


@given(st.lists(st.integers(ABSENT, 5000), min_size=1, max_size=100), st.data())
def test_a_damaged_page_gives_entries_or_a_database_error(entries: list[int], data: st.DataObject) -> None:
    packed = bytearray(pack(array("q", entries)))
    position = data.draw(st.integers(0, len(packed) - 1))
    packed[position] ^= data.draw(st.integers(1, 255))
    try:
        found = unpack(bytes(packed))
    except DatabaseError:
        return
    assert len(found) <= PAGE_ENTRIES
    assert min(found, default=HOLE) >= ABSENT


@given(st.lists(st.integers(ABSENT, 5000), min_size=1, max_size=100), st.data())
def test_a_truncated_page_is_refused(entries: list[int], data: st.DataObject) -> None:
    packed = pack(array("q", entries))
    with pytest.raises(DatabaseError, match="a page of a block map is damaged"):
        unpack(packed[: data.draw(st.integers(0, len(packed) - 1))])


def test_a_page_with_trailing_bytes_is_refused() -> None:
    with pytest.raises(DatabaseError, match="a page of a block map is damaged"):
        unpack(pack(entries_of(1)) + b"x")


@pytest.mark.parametrize("size", [1, 7, 9, 8193, 8200, 1 << 20])
def test_a_page_of_an_impossible_size_is_refused(size: int) -> None:
    with pytest.raises(DatabaseError, match=rf"^a page of a block map is damaged: it claims to contain {size} bytes$"):
        unpack(zstandard.ZstdCompressor().compress(bytes(size)))


def test_a_page_that_claims_a_terabyte_is_refused_before_anything_is_allocated() -> None:
    frame = b"\x28\xb5\x2f\xfd" + b"\xe0" + (1 << 40).to_bytes(8, "little") + b"\x01\x00\x00"
    with pytest.raises(DatabaseError, match="it claims to contain 1099511627776 bytes"):
        unpack(frame)


def test_a_page_that_states_no_size_is_refused() -> None:
    with pytest.raises(DatabaseError, match="it claims to contain -1 bytes"):
        unpack(zstandard.ZstdCompressor(write_content_size=False).compress(bytes(8)))


@pytest.mark.parametrize("entry", [-2, -(2**63)])
def test_an_entry_without_a_meaning_is_refused(entry: int) -> None:
    with pytest.raises(DatabaseError, match=rf"^a page of a block map is damaged: it has entry {entry}$"):
        unpack(pack(entries_of(1, entry)))


# Committing


def test_a_committed_page_can_be_loaded(connection: Connection) -> None:
    commit(connection, 1, 0, [1, HOLE, 2])
    assert load_page(connection, VersionId(1), FIRST) == entries_of(1, HOLE, 2)


def test_a_version_without_a_page_has_none_to_load(connection: Connection) -> None:
    commit(connection, 1, 0, [1])
    assert load_page(connection, VersionId(1), PageNumber(1)) is None
    assert load_page(connection, VersionId(2), FIRST) is None


def test_a_page_counts_each_blob_once(connection: Connection) -> None:
    commit(connection, 1, 0, [5, 5, 6, 5, HOLE, ABSENT])
    assert counted_uses(connection) == {5: 1, 6: 1}


def test_a_page_is_identified_by_the_digest_of_its_entries(connection: Connection) -> None:
    commit(connection, 1, 0, [1, HOLE])
    digest = blake3((1).to_bytes(8, "little") + bytes(8)).digest()
    assert page_refs(connection) == {digest: 1}


def test_equal_pages_of_two_versions_are_one_row(connection: Connection) -> None:
    commit(connection, 1, 0, [1, 2])
    commit(connection, 2, 0, [1, 2])
    assert list(page_refs(connection).values()) == [2]
    assert counted_uses(connection) == {1: 1, 2: 1}


def test_equal_pages_of_one_version_are_one_row(connection: Connection) -> None:
    commit(connection, 1, 0, [1, 2])
    commit(connection, 1, 7, [1, 2])
    assert list(page_refs(connection).values()) == [2]
    assert load_page(connection, VersionId(1), PageNumber(7)) == entries_of(1, 2)


def test_blobs_of_two_pages_are_counted_twice(connection: Connection) -> None:
    commit(connection, 1, 0, [1, 2])
    commit(connection, 1, 1, [2, 3])
    assert counted_uses(connection) == {1: 1, 2: 2, 3: 1}


def test_all_blobs_are_counted_even_if_they_need_several_statements(connection: Connection) -> None:
    commit(connection, 1, 0, range(1, BLOBS + 1))
    assert counted_uses(connection) == dict.fromkeys(range(1, BLOBS + 1), 1)


def test_a_page_of_holes_leaves_no_row(connection: Connection) -> None:
    commit(connection, 1, 0, [HOLE] * 1024)
    assert page_refs(connection) == {}
    assert load_page(connection, VersionId(1), FIRST) is None


def test_a_page_of_absent_blocks_is_not_a_page_of_holes(connection: Connection) -> None:
    commit(connection, 1, 0, [ABSENT, ABSENT])
    assert load_page(connection, VersionId(1), FIRST) == entries_of(ABSENT, ABSENT)
    assert counted_uses(connection) == {}


def test_a_replaced_page_is_removed_if_no_other_version_uses_it(connection: Connection) -> None:
    commit(connection, 1, 0, [1])
    commit(connection, 1, 0, [2])
    assert load_page(connection, VersionId(1), FIRST) == entries_of(2)
    assert list(page_refs(connection).values()) == [1]
    assert_counts_are_right(connection)


def test_a_page_replaced_by_holes_is_no_longer_referenced(connection: Connection) -> None:
    commit(connection, 1, 0, [1])
    commit(connection, 1, 0, [HOLE])
    assert load_page(connection, VersionId(1), FIRST) is None
    assert page_refs(connection) == {}


def test_a_page_replaced_by_itself_is_counted_once(connection: Connection) -> None:
    commit(connection, 1, 0, [1])
    commit(connection, 1, 0, [1])
    assert list(page_refs(connection).values()) == [1]
    assert counted_uses(connection) == {1: 1}


def test_a_replaced_page_is_kept_if_others_use_it(connection: Connection) -> None:
    commit(connection, 1, 0, [1])
    commit(connection, 2, 3, [1])
    commit(connection, 1, 0, [2])
    assert sorted(page_refs(connection).values()) == [1, 1]
    assert load_page(connection, VersionId(2), PageNumber(3)) == entries_of(1)
    assert_counts_are_right(connection)


def test_a_page_in_use_is_not_removed(connection: Connection) -> None:
    commit(connection, 1, 0, [1])
    [(_, page_id)] = list_pages(connection, VersionId(1))
    assert not remove_unused_page(connection, page_id)
    assert list(page_refs(connection).values()) == [1]


@pytest.mark.parametrize("blocks", [1, PAGE_ENTRIES, 2 * PAGE_ENTRIES, 2 * PAGE_ENTRIES + 5])
def test_completing_a_version_removes_rows_of_pages_of_holes(connection: Connection, blocks: int) -> None:
    data = entries_of(*[HOLE] * (page_length(FIRST, blocks) - 1), 7)
    commit_page(connection, VersionId(1), FIRST, data)
    for number in range(1, page_count(blocks)):
        holes = new_entries(page_length(PageNumber(number), blocks), HOLE)
        commit_page(connection, VersionId(1), PageNumber(number), holes, keep_holes=True)
        commit_page(connection, VersionId(2), PageNumber(number), holes, keep_holes=True)
    forget_holes(connection, VersionId(1), blocks)
    assert [number for number, _ in list_pages(connection, VersionId(1))] == [0]
    assert len(list_pages(connection, VersionId(2))) == page_count(blocks) - 1
    assert_counts_are_right(connection)
    forget_holes(connection, VersionId(2), blocks)
    assert list(page_refs(connection).values()) == [1]


page_contents = st.one_of(
    st.lists(st.integers(ABSENT, 5), min_size=1, max_size=4),  # few values, so that some pages are equal
    st.lists(st.integers(ABSENT, BLOBS), min_size=1, max_size=50),
)
commits = st.lists(st.tuples(st.integers(1, VERSIONS), st.integers(0, 2), page_contents), min_size=1, max_size=12)


@given(commits)
@settings(deadline=None, max_examples=60)
def test_every_count_equals_a_recount_after_every_commit(
    database: Database, sequence: list[tuple[int, int, list[int]]]
) -> None:
    model: dict[tuple[int, int], list[int]] = {}
    with database.engine.connect() as connection, connection.begin() as transaction:
        for version, page_no, entries in sequence:
            commit(connection, version, page_no, entries)
            model[version, page_no] = entries
            assert_counts_are_right(connection)
        for (version, page_no), entries in model.items():
            loaded = load_page(connection, VersionId(version), PageNumber(page_no))
            assert list(loaded or [HOLE] * len(entries)) == entries
        in_use = {tuple(entries) for entries in model.values() if any(entries)}
        assert len(page_refs(connection)) == len(in_use)
        transaction.rollback()


@given(commits, st.sets(st.integers(1, 5), min_size=1))
@settings(deadline=None, max_examples=60)
def test_a_page_with_doomed_blobs_is_committed_completely_or_not_at_all(
    database: Database, sequence: list[tuple[int, int, list[int]]], doomed: set[int]
) -> None:
    with database.engine.connect() as connection, connection.begin() as transaction:
        doom(connection, *doomed)
        for version, page_no, entries in sequence:
            before = (page_refs(connection), counted_uses(connection))
            if lost := doomed & set(entries):
                with pytest.raises(BlobsGoneError) as caught, connection.begin_nested():
                    commit(connection, version, page_no, entries)
                assert caught.value.blob_ids == lost
                assert (page_refs(connection), counted_uses(connection)) == before
            else:
                commit(connection, version, page_no, entries)
            assert_counts_are_right(connection)
        transaction.rollback()


# Blobs taken by a cleanup


def test_a_doomed_blob_is_refused_by_its_id(connection: Connection) -> None:
    doom(connection, 2, 4)
    with pytest.raises(BlobsGoneError) as caught:
        commit(connection, 1, 0, [1, 2, 3, 4, 4, HOLE, ABSENT])
    assert caught.value.blob_ids == {BlobId(2), BlobId(4)}
    assert str(caught.value) == "a cleanup has doomed 2 blobs in the meantime"


def test_a_blob_without_a_row_is_refused_by_its_id(connection: Connection) -> None:
    with pytest.raises(BlobsGoneError) as caught:
        commit(connection, 1, 0, [1, 9999])
    assert caught.value.blob_ids == {BlobId(9999)}


def test_nothing_changes_when_a_page_is_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    with opened(make_repository(tmp_path_factory.mktemp("refused"), encrypted=False)) as repository:
        database = repository.database
        with database.write() as connection:
            version = make_version(connection)
            saved = [
                SavedBlob(
                    uid=BlobUid(f"blob{number}"),
                    fingerprint=bytes([number]),
                    size=1,
                    stored_size=1,
                    encryption_version=0,
                    wrapped_key=None,
                )
                for number in (1, 2)
            ]
            insert_blobs(connection, saved, NOON)
            commit_page(connection, version.id, FIRST, entries_of(1))
            doom(connection, 2)
        with pytest.raises(BlobsGoneError), database.write() as connection:
            commit_page(connection, version.id, FIRST, entries_of(1, 2))
        with database.read() as connection:
            assert load_page(connection, version.id, FIRST) == entries_of(1)
            assert list(page_refs(connection).values()) == [1]
            assert counted_uses(connection) == {1: 1}


# Reading a page of a version


def versioned(connection: Connection, status: VersionStatus) -> Version:
    """Return a version of the wanted status."""
    version = make_version(connection)
    set_status(connection, version.id, status)
    return Version(
        id=version.id,
        uid=version.uid,
        created_at=version.created_at,
        name=version.name,
        snapshot_name=version.snapshot_name,
        size_bytes=version.size_bytes,
        status=status,
        protected=version.protected,
        expire_at=version.expire_at,
    )


@pytest.mark.parametrize("status", list(VersionStatus))
def test_a_page_with_a_row_has_the_committed_entries(connection: Connection, status: VersionStatus) -> None:
    version = versioned(connection, status)
    commit_page(connection, version.id, FIRST, entries_of(1, HOLE, 3))
    assert page_entries(connection, version, FIRST, 3) == entries_of(1, HOLE, 3)


@pytest.mark.parametrize("status", [VersionStatus.VALID, VersionStatus.INVALID])
def test_a_page_without_a_row_is_holes_in_a_complete_version(connection: Connection, status: VersionStatus) -> None:
    assert page_entries(connection, versioned(connection, status), PageNumber(1), 1027) == entries_of(0, 0, 0)


def test_a_page_without_a_row_is_absent_in_an_incomplete_version(connection: Connection) -> None:
    version = versioned(connection, VersionStatus.INCOMPLETE)
    assert page_entries(connection, version, PageNumber(1), 1027) == entries_of(-1, -1, -1)


def test_a_page_whose_length_does_not_match_the_image_is_refused(connection: Connection) -> None:
    version = versioned(connection, VersionStatus.VALID)
    commit_page(connection, version.id, FIRST, entries_of(1, 2))
    with pytest.raises(DatabaseError, match=rf"^page 0 of version {version.uid} has 2 entries instead of 3$"):
        page_entries(connection, version, FIRST, 3)


def test_a_damaged_page_is_refused(connection: Connection) -> None:
    version = versioned(connection, VersionStatus.VALID)
    commit_page(connection, version.id, FIRST, entries_of(1))
    connection.execute(update(pages).values(entries=b"damaged"))
    with pytest.raises(DatabaseError, match="a page of a block map is damaged"):
        page_entries(connection, version, FIRST, 1)


def test_the_shared_database_is_unchanged(database: Database) -> None:
    with database.read() as connection:
        assert connection.execute(select(func.count()).select_from(pages)).scalar_one() == 0


def test_a_page_of_a_big_endian_machine_has_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    # Its arrays would contain the swapped numbers.
    swapped = entries_of(1, 2**40)
    swapped.byteswap()
    expected = pack(entries_of(1, 2**40))
    monkeypatch.setattr(sys, "byteorder", "big")
    assert pack(swapped) == expected
