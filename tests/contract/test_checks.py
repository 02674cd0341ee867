"""Queries and marks of scrub: the same on every engine."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from sqlalchemy import insert, select, update

from backyfs.metadata.db.tables import blob_checks, blobs, damaged_versions, versions
from backyfs.metadata.maps.blockmap import ABSENT, HOLE, commit_page, new_entries
from backyfs.metadata.records.blobs import insert_blobs, load_blobs
from backyfs.metadata.records.stats import insert_statistics_records
from backyfs.metadata.records.versions import create_version, set_status
from backyfs.metadata.upkeep.checks import (
    backup_ended,
    blobs_of_versions,
    due_blobs,
    is_whole,
    known_damage,
    mark_damaged,
    mark_valid,
    pages_with,
    record_checks,
    sample_blobs,
    used_blobs,
    versions_with,
)
from backyfs.model import (
    BlobId,
    BlobRecord,
    BlobUid,
    PageNumber,
    StatisticsRecord,
    Version,
    VersionStatus,
)
from tests.support.audit import doom

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backyfs.metadata.db.database import Connection

BLOCK = 4096
PAGE = 1024 * BLOCK
NOW = datetime(2026, 1, 31, 12, 0, 0, 123_456, tzinfo=UTC)
DAY = timedelta(days=1)


def uid(number: int) -> BlobUid:
    return BlobUid(f"{number:032x}")


def new_blobs(connection: Connection, count: int, *, fingerprint: bytes | None = b"f", key: bytes | None = b"k",
              valid: bool = True) -> list[BlobId]:  # fmt: skip
    first = len(connection.execute(select(blobs.c.id)).all())
    records = [
        BlobRecord(
            uid=uid(first + number), fingerprint=fingerprint, size=BLOCK, stored_size=None, encryption_version=1,
            wrapped_key=key, valid=valid,
        )
        for number in range(count)
    ]  # fmt: skip
    return sorted(insert_blobs(connection, records, NOW).values())


def new_version(connection: Connection, *pages: Sequence[int]) -> Version:
    """Make a valid version with these blobs at the beginning of its pages, followed by holes."""
    version = create_version(
        connection, name="disk", snapshot_name="", size_bytes=len(pages) * PAGE, created_at=NOW
    )
    for number, page in enumerate(pages):
        entries = new_entries(1024, HOLE)
        for position, entry in enumerate(page):
            entries[position] = entry
        commit_page(connection, version.id, PageNumber(number), entries)
    set_status(connection, version.id, VersionStatus.VALID)
    return version


def status(connection: Connection, version: Version) -> str:
    found: str = connection.execute(select(versions.c.status).where(versions.c.id == version.id)).scalar_one()
    return found


def checked(connection: Connection, **days_ago: int) -> None:
    """Record checks of blobs by their names `b1`, `b2` and so on: how many days ago each was checked."""
    for name, days in days_ago.items():
        at = NOW - days * DAY
        connection.execute(insert(blob_checks).values(blob_id=int(name[1:]), checked_at=at))


# Blobs to read


def test_blobs_that_versions_use_are_listed_in_order(connection: Connection) -> None:
    one, two, three, four = new_blobs(connection, 4)
    new_version(connection, [four, one], [two])
    assert list(used_blobs(connection)) == [one, two, four]
    assert three not in list(due_blobs(connection, NOW))


def test_due_blobs_are_ordered_by_their_last_check(connection: Connection) -> None:
    ids = new_blobs(connection, 6)
    new_version(connection, ids)
    never, recent, old, oldest, damaged, also_never = ids
    checked(connection, **{f"b{recent}": 1, f"b{old}": 31, f"b{oldest}": 90, f"b{damaged}": 0})
    connection.execute(update(blobs).where(blobs.c.id == damaged).values(valid=False))
    assert list(due_blobs(connection, NOW - 30 * DAY)) == [never, also_never, oldest, old, damaged]


def test_a_blob_checked_exactly_at_the_limit_is_not_due(connection: Connection) -> None:
    (blob,) = new_blobs(connection, 1)
    new_version(connection, [blob])
    checked(connection, **{f"b{blob}": 30})
    assert list(due_blobs(connection, NOW - 30 * DAY)) == []
    assert list(due_blobs(connection, NOW - 30 * DAY + timedelta(microseconds=1))) == [blob]


def test_blobs_read_in_several_batches_are_listed_once(connection: Connection) -> None:
    ids = new_blobs(connection, 5000)
    for start in range(0, 5000, 1000):
        new_version(connection, [*ids[start : start + 1000]])
    assert list(used_blobs(connection)) == ids
    assert list(due_blobs(connection, NOW)) == ids


def test_shared_pages_are_read_once(connection: Connection) -> None:
    one, two, three = new_blobs(connection, 3)
    first = new_version(connection, [one, two], [three])
    second = new_version(connection, [one, two])
    assert list(blobs_of_versions(connection, [first, second])) == [{one, two}, {three}]


def test_a_sample_has_the_next_existing_blob(connection: Connection) -> None:
    ids = new_blobs(connection, 4)
    connection.execute(update(blobs).where(blobs.c.id == ids[1]).values(valid=False))
    doom(connection, ids[2])
    assert sample_blobs(connection, [ids[0], ids[1], ids[3] + 1]) == [uid(0), uid(3)]


# Recorded checks


def test_checks_are_recorded_and_marks_follow(connection: Connection) -> None:
    ids = new_blobs(connection, 3)
    known = load_blobs(connection, ids)
    recorded = record_checks(connection, [ids[0], ids[1]], [known[ids[2]]], NOW)
    assert (recorded.damaged, recorded.repaired) == (frozenset({ids[2]}), 0)
    rows = connection.execute(select(blob_checks).order_by(blob_checks.c.blob_id)).all()
    assert rows == [(blob_id, NOW) for blob_id in ids]
    assert known_damage(connection) == {ids[2]}

    recorded = record_checks(connection, ids, [], NOW + DAY)
    assert (recorded.damaged, recorded.repaired) == (frozenset(), 1)
    assert connection.execute(select(blob_checks.c.checked_at)).scalars().all() == [NOW + DAY] * 3
    assert known_damage(connection) == set()


def test_a_doomed_removed_or_moved_blob_is_not_damaged(connection: Connection) -> None:
    ids = new_blobs(connection, 3)
    known = load_blobs(connection, ids)
    doom(connection, ids[0])
    connection.execute(blobs.delete().where(blobs.c.id == ids[1]))
    connection.execute(update(blobs).where(blobs.c.id == ids[2]).values(uid="moved"))
    assert record_checks(connection, [], known.values(), NOW).damaged == frozenset()
    assert record_checks(connection, ids[:2], [], NOW).repaired == 0
    assert connection.execute(select(blob_checks)).all() == []
    assert connection.execute(select(blobs.c.valid)).scalars().all() == [True, True]


def test_checks_are_removed_with_their_blob(connection: Connection) -> None:
    ids = new_blobs(connection, 2)
    record_checks(connection, ids, [], NOW)
    connection.execute(blobs.delete().where(blobs.c.id == ids[0]))
    assert connection.execute(select(blob_checks.c.blob_id)).scalars().all() == [ids[1]]


def test_an_unverifiable_blob_remains_marked(connection: Connection) -> None:
    ids = new_blobs(connection, 1, fingerprint=None, key=None, valid=False)
    assert record_checks(connection, ids, [], NOW).repaired == 0
    ids = new_blobs(connection, 1, fingerprint=None, valid=False)
    assert record_checks(connection, ids, [], NOW).repaired == 1


def test_damage_reported_only_by_backy2_is_unverified(connection: Connection) -> None:
    new_blobs(connection, 1, valid=False)
    assert known_damage(connection) == set()


# Consequences for versions


def test_the_versions_that_use_a_blob_are_found(connection: Connection) -> None:
    ids = new_blobs(connection, 300)
    made = [new_version(connection, [blob_id], [ids[0]]) for blob_id in ids]  # more pages than one batch
    pages = pages_with(connection, {ids[7], ids[200]})
    assert versions_with(connection, pages) == {made[7].id, made[200].id}
    assert versions_with(connection, pages_with(connection, {ids[0]})) == {version.id for version in made}
    assert pages_with(connection, {BlobId(10**6)}) == set()


def test_valid_versions_become_invalid_and_others_do_not_change(connection: Connection) -> None:
    made = [new_version(connection, []) for _ in range(3)]
    set_status(connection, made[1].id, VersionStatus.INCOMPLETE)
    set_status(connection, made[2].id, VersionStatus.INVALID)
    assert mark_damaged(connection, [version.id for version in made], NOW) == {made[0].id}
    assert [status(connection, version) for version in made] == ["invalid", "incomplete", "invalid"]
    assert connection.execute(select(damaged_versions)).all() == [(made[0].id, NOW)]
    assert mark_damaged(connection, [version.id for version in made], NOW) == set()


def test_a_version_can_become_valid_again(connection: Connection) -> None:
    version = new_version(connection, [])
    mark_damaged(connection, [version.id], NOW)
    assert mark_valid(connection, version.id)
    assert status(connection, version) == "valid"
    assert connection.execute(select(damaged_versions)).all() == []
    assert not mark_valid(connection, version.id)


def test_a_version_is_intact_if_all_its_blobs_were_found_intact(connection: Connection) -> None:
    ids = new_blobs(connection, 3)
    version = new_version(connection, [ids[0], ids[1]], [], [ids[2]])
    assert not is_whole(connection, version, BLOCK)
    record_checks(connection, ids[:2], [], NOW)
    assert not is_whole(connection, version, BLOCK)
    record_checks(connection, ids[2:], [], NOW)
    assert is_whole(connection, version, BLOCK)
    connection.execute(update(blobs).where(blobs.c.id == ids[1]).values(valid=False))
    assert not is_whole(connection, version, BLOCK)


def test_a_version_with_an_absent_block_is_not_intact(connection: Connection) -> None:
    version = new_version(connection, [HOLE, ABSENT])
    assert not is_whole(connection, version, BLOCK)
    assert is_whole(connection, new_version(connection, []), BLOCK)


def test_a_backup_has_ended_if_it_was_valid_or_has_statistics(connection: Connection) -> None:
    one, two, three = (new_version(connection, []) for _ in range(3))
    mark_damaged(connection, [one.id], NOW)
    row = StatisticsRecord(
        created_at=NOW, version_uid=two.uid, version_name="", version_size_bytes=0, version_size_blocks=0, bytes_read=0,
        blocks_read=0, bytes_written=0, blocks_written=0, bytes_stored=None, bytes_deduplicated=0,
        blocks_deduplicated=0, bytes_sparse=0, blocks_sparse=0, duration_s=0,
    )  # fmt: skip
    insert_statistics_records(connection, [row])
    assert [backup_ended(connection, version) for version in (one, two, three)] == [True, True, False]
