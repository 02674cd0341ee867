"""Space of versions, differences between them, and statistics: the same on every engine."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import TYPE_CHECKING

import pytest

from backyfs.engine.versions.diff import BlockState, DiffRun, compare
from backyfs.engine.versions.du import SpaceLimits, space_of_versions
from backyfs.errors import DatabaseError
from backyfs.metadata.maps import pageloader
from backyfs.metadata.maps.blockmap import ABSENT, HOLE, commit_page, new_entries
from backyfs.metadata.records.blobs import find_by_uid, insert_blobs
from backyfs.metadata.records.sizes import uids_of
from backyfs.metadata.records.stats import (
    find_statistics,
    insert_statistics_records,
    list_all_statistics,
    list_statistics,
)
from backyfs.metadata.records.versions import create_version, set_status
from backyfs.model import (
    BlobRecord,
    BlobUid,
    BlockIndex,
    PageNumber,
    StatisticsRecord,
    Version,
    VersionStatus,
    VersionUid,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from backyfs.metadata.db.database import Connection

BLOCK = 4096
END = 1000  # bytes of the last block, if it is short
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def make_blobs(
    connection: Connection, sizes: list[int], *, stored: int | None = 10, encryption_version: int = 1
) -> list[int]:
    uids = [BlobUid(f"{random.getrandbits(128):032x}") for _ in sizes]
    insert_blobs(
        connection,
        [
            BlobRecord(
                uid=uid, fingerprint=uid.encode(), size=size, stored_size=stored,
                encryption_version=encryption_version, wrapped_key=None, valid=True,
            )
            for uid, size in zip(uids, sizes, strict=True)
        ],
        NOW,
    )  # fmt: skip
    found = find_by_uid(connection, uids)
    return [found[uid].id for uid in uids]


def make_version(
    connection: Connection,
    entries: list[int],
    *,
    name: str = "disk",
    day: int = 0,
    end: int = BLOCK,
    status: VersionStatus = VersionStatus.VALID,
) -> Version:
    """Make a version of these blocks; the last one has `end` bytes."""
    version = create_version(
        connection,
        name=name,
        snapshot_name="",
        size_bytes=max(0, len(entries) - 1) * BLOCK + (end if entries else 0),
        created_at=NOW + timedelta(days=day),
    )
    for page in range(-(-len(entries) // 1024)):
        part = new_entries(0, 0)
        part.extend(entries[page * 1024 : (page + 1) * 1024])
        keep = status is VersionStatus.INCOMPLETE
        if not keep or set(part) != {ABSENT}:
            commit_page(connection, version.id, PageNumber(page), part, keep_holes=keep)
    set_status(connection, version.id, status)
    return replace(version, status=status)


def expected(maps: list[tuple[list[int], int]], odd: dict[int, int]) -> list[tuple[int, ...]]:
    """Return real, null, own, others, individual, share and freed for each version, according to their definitions."""
    total = Counter(entry for entries, _ in maps for entry in entries if entry > 0)
    rows: list[tuple[int, ...]] = []
    for entries, end in maps:
        own = Counter(entry for entry in entries if entry > 0)
        size = {blob: odd.get(blob, BLOCK) for blob in own}
        lengths = [BLOCK] * (len(entries) - 1) + [end]
        rows.append(
            (
                sum(size[blob] * count for blob, count in own.items()),
                sum(length for entry, length in zip(entries, lengths, strict=False) if entry == HOLE),
                sum(size[blob] * (n - 1) for blob, n in own.items() if total[blob] == n > 1),
                sum(size[blob] * n for blob, n in own.items() if total[blob] > n),
                sum(size[blob] for blob in own if total[blob] == 1),
                round(sum((Fraction(size[blob], total[blob]) for blob in own), Fraction(0))),
                sum(size[blob] for blob, n in own.items() if total[blob] == n),
            )
        )
    return rows


def found_space(connection: Connection, limits: SpaceLimits | None = None) -> list[tuple[int, ...]]:
    return [
        (
            report.real_bytes, report.null_bytes, report.dedup_own_bytes, report.dedup_others_bytes,
            report.individual_bytes, report.estimated_bytes, report.freed_bytes,
        )
        for report in space_of_versions(connection, BLOCK, limits=limits or SpaceLimits())
    ]  # fmt: skip


# Space


def test_space_is_counted_according_to_its_definitions(connection: Connection) -> None:
    chance = random.Random(7)
    whole = make_blobs(connection, [BLOCK] * 3000)
    end = make_blobs(connection, [END])[0]
    maps: list[tuple[list[int], int]] = []
    for number in range(12):
        if number % 4 == 0:  # another disk
            entries = [chance.choice([HOLE, *chance.sample(whole, 9)]) for _ in range(chance.randrange(1, 2500))]
        else:
            entries = maps[-1][0][: chance.randrange(1, 2500)]
            for _ in range(chance.randrange(30)):
                entries[chance.randrange(len(entries))] = chance.choice([HOLE, HOLE, *whole[:5], *whole[-9:]])
            entries = [HOLE if entry == end else entry for entry in entries]
        has_end = number % 3 == 0
        maps.append(([*entries, end] if has_end else entries, END if has_end else BLOCK))
        make_version(connection, maps[-1][0], name=f"disk-{number // 4}", day=number, end=maps[-1][1])
    assert found_space(connection) == expected(maps, {end: END})
    assert found_space(connection, SpaceLimits(kept_pages=2, log_bytes=1000)) == expected(maps, {end: END})


def test_only_known_holes_of_an_incomplete_version_count(connection: Connection) -> None:
    one, two = make_blobs(connection, [BLOCK, BLOCK])
    entries = [one, HOLE, two, ABSENT] + [ABSENT] * 2000
    make_version(connection, entries, end=END, status=VersionStatus.INCOMPLETE)
    assert found_space(connection) == [(2 * BLOCK, BLOCK, 0, 0, 2 * BLOCK, 2 * BLOCK, 2 * BLOCK)]


def test_an_absent_last_block_has_its_real_length(connection: Connection) -> None:
    make_version(connection, [HOLE, ABSENT], end=END, status=VersionStatus.INCOMPLETE)
    make_version(connection, [ABSENT, HOLE], end=END, status=VersionStatus.INVALID, day=1)
    assert [row[1] for row in found_space(connection)] == [BLOCK, END]


def test_an_empty_version_takes_nothing(connection: Connection) -> None:
    make_version(connection, [])
    [report] = space_of_versions(connection, BLOCK, object_size=lambda _uid: None)
    assert found_space(connection) == [(0,) * 7]
    assert report.stored_bytes == 0


def test_a_repository_without_versions_has_no_rows(connection: Connection) -> None:
    assert space_of_versions(connection, BLOCK) == []


def test_only_chosen_versions_are_returned_but_all_are_counted(connection: Connection) -> None:
    [blob] = make_blobs(connection, [BLOCK])
    make_version(connection, [blob])
    second = make_version(connection, [blob], day=1)
    [report] = space_of_versions(connection, BLOCK, wanted={second.id})
    assert (report.version.uid, report.dedup_others_bytes, report.estimated_bytes) == (second.uid, BLOCK, BLOCK // 2)


def test_half_a_byte_is_rounded_as_in_backy2(connection: Connection) -> None:
    halves = make_blobs(connection, [END + 1, END + 3])  # 500.5 and 501.5: to the even number
    make_version(connection, [halves[0]], end=END + 1, name="a")
    make_version(connection, [halves[0]], end=END + 1, name="b")
    make_version(connection, [halves[1]], end=END + 3, name="c")
    make_version(connection, [halves[1]], end=END + 3, name="d")
    assert [row[5] for row in found_space(connection)] == [500, 500, 502, 502]


def test_stored_is_the_space_of_the_objects_of_a_version(connection: Connection) -> None:
    first, second = make_blobs(connection, [BLOCK, BLOCK], stored=10)
    [plain] = make_blobs(connection, [BLOCK], stored=None, encryption_version=0)
    [unknown] = make_blobs(connection, [BLOCK], stored=None)
    make_version(connection, [first, first, second])
    make_version(connection, [first, plain, HOLE], day=1)
    make_version(connection, [first, unknown], day=2)
    make_version(connection, [first], day=3)

    def stored(object_size: Callable[[BlobUid], int | None] | None) -> list[int | None]:
        reports = space_of_versions(connection, BLOCK, object_size=object_size)
        return [report.stored_bytes for report in reports]

    assert stored(lambda _uid: None) == [20, 10 + BLOCK, None, 10]
    assert stored(lambda uid: 7 if uid == uids_of(connection, [unknown])[unknown] else 1000) == [20, 10 + BLOCK, 17, 10]
    assert stored(None) == [None] * 4


def test_a_block_map_with_a_blob_without_a_row_is_an_error(connection: Connection) -> None:
    [blob] = make_blobs(connection, [BLOCK])
    version = make_version(connection, [blob])
    from sqlalchemy import update

    from backyfs.metadata.db.tables import pages
    from backyfs.metadata.maps.blockmap import pack

    connection.execute(update(pages).values(entries=pack(new_entries(1, blob + 1000))))
    with pytest.raises(DatabaseError, match=f"the block map of version {version.uid} refers to a blob that has no row"):
        space_of_versions(connection, BLOCK)


# Differences


def runs(
    connection: Connection, left: Version, right: Version, *, find_holes: bool = False
) -> list[tuple[int, int, str]]:
    return [
        (run.first, run.count, run.state.value)
        for run in compare(connection, left, right, BLOCK, find_holes=find_holes)
    ]


def test_blocks_are_compared_by_their_blobs(connection: Connection) -> None:
    one, two, three = make_blobs(connection, [BLOCK] * 3)
    left = make_version(connection, [one, two, HOLE, HOLE, one])
    right = make_version(connection, [one, three, HOLE, two, HOLE], day=1)
    assert runs(connection, left, right) == [(0, 1, "same"), (1, 1, "diff"), (2, 1, "same"), (3, 2, "diff")]
    assert runs(connection, left, right, find_holes=True)[2] == (2, 1, "hole")


def test_the_additional_part_of_a_longer_version_is_new(connection: Connection) -> None:
    [one] = make_blobs(connection, [BLOCK])
    short = make_version(connection, [one] * 10)
    long = make_version(connection, [one] * 10 + [HOLE] * 2000 + [one], day=1)
    assert runs(connection, short, long) == [(0, 10, "same"), (10, 2001, "new_right")]
    assert runs(connection, long, short) == [(0, 10, "same"), (10, 2001, "new_left")]


def test_shared_pages_are_not_compared(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    [one] = make_blobs(connection, [BLOCK])
    left = make_version(connection, [one, HOLE] * 1024 + [HOLE] * 1024)
    right = make_version(connection, [one, HOLE] * 1024 + [HOLE] * 1024, day=1)
    assert runs(connection, left, right, find_holes=True)[:2] == [(0, 1, "same"), (1, 1, "hole")]
    monkeypatch.setattr(pageloader, "unpack", lambda _packed: pytest.fail("looked at"))
    assert runs(connection, left, right) == [(0, 3072, "same")]


def test_blocks_never_backed_up_are_neither_holes_nor_equal(connection: Connection) -> None:
    [one] = make_blobs(connection, [BLOCK])
    left = make_version(connection, [one, ABSENT, ABSENT, HOLE] + [ABSENT] * 2000, status=VersionStatus.INCOMPLETE)
    right = make_version(connection, [one, ABSENT, one, ABSENT], status=VersionStatus.INCOMPLETE, day=1)
    assert runs(connection, left, right) == [
        (0, 1, "same"), (1, 1, "absent"), (2, 1, "new_right"), (3, 1, "new_left"), (4, 2000, "absent"),
    ]  # fmt: skip


def test_a_version_equals_itself(connection: Connection) -> None:
    blobs = make_blobs(connection, [BLOCK] * 1500)
    version = make_version(connection, blobs)
    assert runs(connection, version, version) == [(0, 1500, "same")]
    assert runs(connection, version, version, find_holes=True) == [(0, 1500, "same")]


def test_empty_versions_have_no_differences(connection: Connection) -> None:
    assert runs(connection, make_version(connection, []), make_version(connection, [], day=1)) == []


def test_differences_agree_with_those_of_lists(connection: Connection) -> None:
    chance = random.Random(3)
    blobs = make_blobs(connection, [BLOCK] * 50)
    old = [chance.choice([HOLE, *blobs]) for _ in range(2600)]
    new = old[:2300]
    for _ in range(40):
        new[chance.randrange(2300)] = chance.choice([HOLE, *blobs])
    states = [
        state
        for run in compare(connection, make_version(connection, old), make_version(connection, new, day=1), BLOCK)
        for state in [run.state] * run.count
    ]
    same = [BlockState.SAME if one == other else BlockState.DIFFERENT for one, other in zip(old, new, strict=False)]
    assert states == same + [BlockState.NEW_LEFT] * 300


def test_a_run_is_a_value() -> None:
    assert DiffRun(BlockIndex(0), 2, BlockState.SAME) == DiffRun(BlockIndex(0), 2, BlockState.SAME)


# Statistics


def record(uid: str, second: int, duration_s: float = 1.5) -> StatisticsRecord:
    return StatisticsRecord(
        created_at=NOW + timedelta(seconds=second), version_uid=VersionUid(uid), version_name="disk",
        version_size_bytes=1, version_size_blocks=2, bytes_read=3, blocks_read=4, bytes_written=5, blocks_written=6,
        bytes_stored=None, bytes_deduplicated=7, blocks_deduplicated=8, bytes_sparse=9, blocks_sparse=10,
        duration_s=duration_s,
    )  # fmt: skip


def test_the_newest_statistics_are_listed_oldest_first(connection: Connection) -> None:
    # Two within one second, which backy2 lists in the opposite order of their ids.
    insert_statistics_records(connection, [record("b", 5), record("a", 9), record("c", 5), record("d", 1)])
    assert [found.version_uid for found in list_all_statistics(connection)] == ["d", "c", "b", "a"]
    assert [found.version_uid for found in list_all_statistics(connection, limit=2)] == ["b", "a"]
    assert list_all_statistics(connection, limit=0) == []


def test_the_statistics_of_a_version_can_be_limited_too(connection: Connection) -> None:
    insert_statistics_records(connection, [record("a", 1, 1.0), record("b", 2), record("a", 1, 2.0)])
    uid = VersionUid("a")
    assert [found.duration_s for found in list_statistics(connection, uid)] == [1.0, 2.0]
    assert [found.duration_s for found in list_statistics(connection, uid, limit=1)] == [2.0]


def test_statistics_are_found_by_the_beginning_of_a_uid(connection: Connection) -> None:
    insert_statistics_records(connection, [record("abcd-1", 1), record("abcd-2", 2), record("abcd-2", 3)])
    assert find_statistics(connection, "ABCD") == ["abcd-1", "abcd-2"]
    assert find_statistics(connection, "abcd-2") == ["abcd-2"]
    assert find_statistics(connection, "none") == []
