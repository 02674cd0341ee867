"""Space used by a version, and whether anything has changed: the same on every engine."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import insert

from backyfs.metadata.db.tables import tags
from backyfs.metadata.maps.blockmap import ABSENT, HOLE, commit_page, new_entries
from backyfs.metadata.maps.usage import encryption_of_blocks, encryption_versions, used_bytes
from backyfs.metadata.records.blobs import find_by_uid, insert_blobs
from backyfs.metadata.records.versions import create_version, listing_state, set_status
from backyfs.model import BlobUid, PageNumber, SavedBlob, Version, VersionStatus

if TYPE_CHECKING:

    from backyfs.metadata.db.database import Connection

BLOCK = 4096
PAGE = 1024 * BLOCK
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def new_version(connection: Connection, size_bytes: int) -> Version:
    return create_version(connection, name="disk", snapshot_name="", size_bytes=size_bytes, created_at=NOW)


def new_blobs(connection: Connection, *versions: int, first: int = 0) -> list[int]:
    """Insert a blob for each encryption version, with uids counted from a number; return their ids."""
    uids = [BlobUid(f"{number:032x}") for number in range(first, first + len(versions))]
    insert_blobs(
        connection,
        [
            SavedBlob(
                uid=uid, fingerprint=uid.encode(), size=BLOCK, stored_size=BLOCK, encryption_version=version,
                wrapped_key=b"key" if version else None,
            )
            for uid, version in zip(uids, versions, strict=True)
        ],
        NOW,
    )  # fmt: skip
    found = find_by_uid(connection, uids)
    return [found[uid].id for uid in uids]


@pytest.fixture
def version(connection: Connection) -> Version:
    """Make a version of three pages: data in blocks 1 and 2; none; data in block 3 and the last one, 10 bytes short."""
    version = new_version(connection, 2 * PAGE + 8 * BLOCK - 10)
    first, second, third = new_blobs(connection, 0, 1, 1)
    entries = new_entries(1024, HOLE)
    entries[1], entries[2] = first, second
    commit_page(connection, version.id, PageNumber(0), entries)
    entries = new_entries(8, HOLE)
    entries[3], entries[6], entries[7] = second, ABSENT, third
    commit_page(connection, version.id, PageNumber(2), entries)
    return version


@pytest.mark.parametrize(
    ("start", "stop", "expected"),
    [
        (0, 2 * PAGE + 8 * BLOCK - 10, 4 * BLOCK - 10),
        (0, 0, 0),
        (0, BLOCK, 0),
        (0, BLOCK + 1, 1),
        (BLOCK + 100, BLOCK + 300, 200),
        (BLOCK + 100, 3 * BLOCK - 100, 2 * BLOCK - 200),
        (BLOCK, 3 * BLOCK, 2 * BLOCK),
        (3 * BLOCK, 2 * PAGE + 3 * BLOCK, 0),
        (2 * BLOCK + 1, 2 * PAGE + 4 * BLOCK, 2 * BLOCK - 1),
        (PAGE, 2 * PAGE, 0),
        (2 * PAGE + 7 * BLOCK, 2 * PAGE + 8 * BLOCK - 10, BLOCK - 10),
        (2 * PAGE + 7 * BLOCK + 5, 2 * PAGE + 8 * BLOCK - 20, BLOCK - 25),
    ],
)
def test_bytes_in_blobs_are_counted_within_a_range(
    connection: Connection, version: Version, start: int, stop: int, expected: int
) -> None:
    assert used_bytes(connection, version, BLOCK, start, stop) == expected


def test_the_encryption_versions_of_the_blobs_of_a_version_are_found(connection: Connection, version: Version) -> None:
    assert encryption_versions(connection, version) == [0, 1]


def test_blocks_are_counted_by_their_encryption_version(connection: Connection, version: Version) -> None:
    other, empty = new_version(connection, PAGE), new_version(connection, PAGE)
    plain, newest = new_blobs(connection, 0, 2, first=10)
    entries = new_entries(1024, newest)
    entries[5:8] = new_entries(3, plain)
    commit_page(connection, other.id, PageNumber(0), entries)
    found = encryption_of_blocks(connection, [version, other, empty, version])
    assert found == [{0: 1, 1: 3}, {0: 3, 2: 1021}, {}, {0: 1, 1: 3}]
    assert list(found[1]) == [0, 2]


def test_a_page_that_repeats_counts_each_time(connection: Connection) -> None:
    version = new_version(connection, 3 * PAGE)
    [blob] = new_blobs(connection, 2)
    for number in (0, 2):
        commit_page(connection, version.id, PageNumber(number), new_entries(1024, blob))
    assert encryption_of_blocks(connection, [version]) == [{2: 2048}]


def test_a_version_without_blobs_uses_nothing(connection: Connection) -> None:
    empty = new_version(connection, PAGE)
    assert used_bytes(connection, empty, BLOCK, 0, PAGE) == 0
    assert encryption_versions(connection, empty) == []


def test_the_state_of_a_listing_changes_only_with_versions_or_tags(connection: Connection) -> None:
    version = new_version(connection, PAGE)
    before = listing_state(connection)
    assert listing_state(connection) == before
    new_blobs(connection, 1)
    assert listing_state(connection) == before
    set_status(connection, version.id, VersionStatus.VALID)
    valid = listing_state(connection)
    assert valid != before
    connection.execute(insert(tags).values(version_id=version.id, name="daily"))
    tagged = listing_state(connection)
    assert tagged != valid
    new_version(connection, PAGE)
    assert listing_state(connection) != tagged
