"""The metadata on every engine, one suite for all of them; at the end, tests for servers only."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import delete, func, inspect, select, update

from backyfs.errors import DatabaseError, SchemaError, VersionNotFoundError
from backyfs.metadata.db.database import Database
from backyfs.metadata.db.revisions import LAST_OF_BACKY2
from backyfs.metadata.db.tables import (
    blob_refs,
    blobs,
    job_versions,
    jobs,
    metadata,
    pages,
    tags,
    version_pages,
    versions,
)
from backyfs.metadata.maps.blockmap import (
    ABSENT,
    HOLE,
    BlobsGoneError,
    commit_page,
    forget_holes,
    list_pages,
    load_page,
    new_entries,
    page_entries,
    references_add_up,
    share_pages,
)
from backyfs.metadata.records.blobs import find_blobs, find_by_uid, insert_blobs, load_blob_records, load_blobs
from backyfs.metadata.records.identity import Identity, add_key_slot, list_key_slots, load_identity, save_identity
from backyfs.metadata.records.jobs import (
    beat,
    hold_version,
    list_live_jobs,
    list_running_jobs,
    register_job,
    remove_job,
    remove_silent,
    silent_jobs,
)
from backyfs.metadata.records.processes import this_process
from backyfs.metadata.records.stats import (
    BackupStatistics,
    insert_statistics,
    insert_statistics_records,
    list_statistics,
)
from backyfs.metadata.records.versions import (
    create_version,
    find_version,
    insert_version,
    list_versions,
    set_status,
    version_with_uid,
)
from backyfs.metadata.schema.schema import create_file, differences, upgrade_tables
from backyfs.model import (
    Blob,
    BlobId,
    BlobRecord,
    BlobUid,
    JobKind,
    JobProgress,
    KeySlot,
    PageNumber,
    SavedBlob,
    StatisticsRecord,
    Version,
    VersionId,
    VersionRecord,
    VersionStatus,
    VersionUid,
)
from tests.support.audit import doom
from tests.support.jobs import ELSEWHERE, age, spec
from tests.support.repositories import create_schema
from tests.support.services.database import DatabaseServer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backyfs.metadata.db.database import Connection

MOMENT = datetime(2024, 1, 1, 12, 30, 59, 123_456, tzinfo=UTC)
IDENTITY = Identity(
    uid="0f5b2c1e-9a64-4f0b-8a57-6b1de0b5a0f3",
    block_size=4 << 20,
    hash_function="blake3",
    wrapped_fingerprint_key=b"\0\xff\\'%" * 8,
    created_at=MOMENT,
)
ODD_NAMES = [
    "", " ", "a", "A", "a ", " a", "a\t", "a%", "a_", "ä", "a\u0308", "ß", "ss", "i", "\u0131",
    "O'Neill \"x\" `y`", "back\\slash\\", ":name %s %(x)s", "line\nbreak", "备份 日本語", "\N{FLOPPY DISK}",
]  # fmt: skip
LONG_NAMES = ["x" * 2048, "x" * 2047 + "X", "x" * 2047 + " ", "\N{FLOPPY DISK}" * 2048, "\N{FLOPPY DISK}" * 2047 + "x"]


@pytest.fixture(scope="module")
def shared(module_database_url: str) -> Iterator[Database]:
    """Make the database of an empty repository, which must remain empty."""
    with closing(Database(module_database_url)) as database:
        create_schema(database)
        with database.write() as connection:
            save_identity(connection, IDENTITY)
        yield database


@pytest.fixture
def connection(shared: Database) -> Iterator[Connection]:
    """Begin a transaction that is rolled back after the test."""
    with shared.engine.connect() as connection, connection.begin() as transaction:
        yield connection
        transaction.rollback()


@pytest.fixture
def database(shared: Database) -> Iterator[Database]:
    """Lend the database to a test that uses its own transactions; rows that it leaves are deleted."""
    yield shared
    with shared.begin() as connection:
        for table in reversed(metadata.sorted_tables):
            connection.execute(delete(table))
        save_identity(connection, IDENTITY)


@pytest.fixture
def empty(database_url: str) -> Iterator[Database]:
    """Make a database without tables."""
    with closing(Database(database_url)) as database:
        yield database


def record(uid: str, name: str = "disk", *, tag_names: tuple[str, ...] = ()) -> VersionRecord:
    return VersionRecord(
        uid=VersionUid(uid),
        created_at=MOMENT,
        name=name,
        snapshot_name="",
        size_bytes=0,
        status=VersionStatus.VALID,
        protected=False,
        expire_at=None,
        tags=tag_names,
    )


def make_version(connection: Connection, name: str = "disk", created_at: datetime = MOMENT) -> Version:
    return create_version(connection, name=name, snapshot_name="", size_bytes=1, created_at=created_at)


def saved(number: int, fingerprint: bytes | None = None) -> SavedBlob:
    return SavedBlob(
        uid=BlobUid(f"{number:032x}"),
        fingerprint=number.to_bytes(32, "big") if fingerprint is None else fingerprint,
        size=4096,
        stored_size=1234,
        encryption_version=2,
        wrapped_key=b"\0" * 40,
    )


def make_blobs(connection: Connection, count: int) -> list[BlobId]:
    return list(insert_blobs(connection, [saved(number) for number in range(count)], MOMENT).values())


def refs_of_blobs(connection: Connection) -> list[int]:
    return list(connection.execute(select(blob_refs.c.refs).order_by(blob_refs.c.blob_id)).scalars())


def refs_of_pages(connection: Connection) -> list[int]:
    return list(connection.execute(select(pages.c.refs).order_by(pages.c.id)).scalars())


def count(connection: Connection, table: Any) -> int:
    return connection.execute(select(func.count()).select_from(table)).scalar_one()


def reflected(connection: Connection) -> dict[str, object]:
    """Return everything a database says about its tables, including collations of columns."""
    inspector = inspect(connection)
    return {
        name: (
            [(column["name"], repr(column["type"]), column["nullable"]) for column in inspector.get_columns(name)],
            sorted((index["name"], index["column_names"], index["unique"]) for index in inspector.get_indexes(name)),
            sorted((key["name"], key["column_names"]) for key in inspector.get_unique_constraints(name)),
            sorted((key["name"], key["referred_table"], key["options"]) for key in inspector.get_foreign_keys(name)),
            inspector.get_pk_constraint(name)["constrained_columns"],
        )
        for name in sorted(inspector.get_table_names())
    }


# Schema


def test_the_schema_matches_the_tables(empty: Database) -> None:
    create_schema(empty)
    with empty.read() as connection:
        assert differences(connection) == []
    empty.check_revision()


def test_the_revisions_create_the_same_schema(empty: Database) -> None:
    create_schema(empty)
    with empty.begin() as connection:
        made = reflected(connection)
        metadata.drop_all(connection)
        upgrade_tables(connection, LAST_OF_BACKY2)
        assert reflected(connection) == made


def test_tables_are_created_once(database: Database) -> None:
    with pytest.raises(SchemaError, match=r"already contains tables; name an empty database$"):
        create_schema(database)


def test_a_closed_database_refuses_every_use(empty: Database) -> None:
    create_schema(empty)
    empty.close()
    for use in (empty.read, empty.write, empty.begin):
        with pytest.raises(RuntimeError, match="is used after it was closed"), use():
            pytest.fail("a closed database gave a connection")
    for ask in (empty.schema, empty.check_revision, empty.use_wal):
        with pytest.raises(RuntimeError, match="is used after it was closed"):
            ask()


def test_an_empty_database_contains_no_repository(empty: Database) -> None:
    create_file(empty)
    with pytest.raises(SchemaError, match=r" holds no repository; initialize it$"):
        empty.check_revision()


# Identity


def test_the_identity_can_be_loaded(connection: Connection) -> None:
    assert load_identity(connection) == IDENTITY


def test_there_is_only_one_identity(database: Database) -> None:
    with pytest.raises(DatabaseError), database.write() as connection:
        save_identity(connection, IDENTITY)


def test_key_slots_are_loaded_oldest_first(connection: Connection) -> None:
    slots = [
        KeySlot(
            label=label,
            kdf="scrypt",
            kdf_parameters='{"n": 32768, "salt": "00ff"}',
            key_check=bytes(range(16)),
            wrapped_key=bytes(range(216, 256)),
            created_at=MOMENT,
        )
        for label in ("z", "Schlüssel \N{KEY}", "a", "z")
    ]
    for slot in slots:
        add_key_slot(connection, slot)
    assert list_key_slots(connection) == slots


# Versions


def test_a_version_is_loaded_as_created(connection: Connection) -> None:
    made = create_version(
        connection,
        name="vm-1/disk",
        snapshot_name="snap@1",
        size_bytes=2**62,
        created_at=MOMENT,
        tag_names=["weekly", "daily", "weekly"],
        expire_at=MOMENT + timedelta(days=7, microseconds=1),
    )
    assert made == Version(
        id=made.id,
        uid=made.uid,
        created_at=datetime(2024, 1, 1, 12, 30, 59, 123_456, tzinfo=UTC),
        name="vm-1/disk",
        snapshot_name="snap@1",
        size_bytes=2**62,
        status=VersionStatus.INCOMPLETE,
        protected=False,
        expire_at=datetime(2024, 1, 8, 12, 30, 59, 123_457, tzinfo=UTC),
        tags=("daily", "weekly"),
    )
    assert version_with_uid(connection, made.uid) == made
    assert list_versions(connection) == [made]


def test_an_adopted_version_keeps_all_its_fields(connection: Connection) -> None:
    taken = insert_version(
        connection,
        VersionRecord(
            uid=VersionUid("ab5b2c1e-9a64-4f0b-8a57-6b1de0b5a0f3"),
            created_at=MOMENT,
            name="disk",
            snapshot_name="s",
            size_bytes=1,
            status=VersionStatus.INVALID,
            protected=True,
            expire_at=MOMENT,
            tags=("a", "b"),
        ),
    )
    found = version_with_uid(connection, taken.uid)
    assert found == taken
    assert (found.status, found.protected, found.tags) == (VersionStatus.INVALID, True, ("a", "b"))


def test_times_are_loaded_in_utc_with_microseconds(connection: Connection) -> None:
    eastern = datetime(2024, 6, 30, 22, 30, 0, 999_999, tzinfo=timezone(timedelta(hours=-5)))
    uid = make_version(connection, created_at=eastern).uid
    found = version_with_uid(connection, uid)
    assert found is not None
    assert found.created_at == datetime(2024, 7, 1, 3, 30, 0, 999_999, tzinfo=UTC)
    assert found.created_at.tzinfo is UTC


def test_names_that_differ_in_anything_are_different(connection: Connection) -> None:
    made = {name: make_version(connection, name).uid for name in ODD_NAMES + LONG_NAMES}
    for name, uid in made.items():
        assert [(version.name, version.uid) for version in list_versions(connection, name=name)] == [(name, uid)]


def test_versions_are_ordered_by_the_code_points_of_their_names_then_by_date(connection: Connection) -> None:
    # "_" is between "Z" and "a". Languages use another order, and UTF-16 has "｡" after the disk.
    for name in ("\N{FLOPPY DISK}", "｡", "ä", "b", "a b", "ab", "_", "Z", "B", "a-c", "10", "9"):
        make_version(connection, name, MOMENT + timedelta(microseconds=1))
        make_version(connection, name, MOMENT)
    names = ["10", "9", "B", "Z", "_", "a b", "a-c", "ab", "b", "ä", "｡", "\N{FLOPPY DISK}"]
    assert [(version.name, version.created_at.microsecond) for version in list_versions(connection)] == [
        (name, microsecond) for name in names for microsecond in (123_456, 123_457)
    ]


def test_snapshot_names_of_any_kind_can_be_loaded(connection: Connection) -> None:
    for name in ODD_NAMES + LONG_NAMES:
        uid = create_version(connection, name="disk", snapshot_name=name, size_bytes=0, created_at=MOMENT).uid
        found = version_with_uid(connection, uid)
        assert found is not None
        assert found.snapshot_name == name


def test_a_name_that_is_too_long_is_refused_and_not_truncated(database: Database) -> None:
    if database.engine.dialect.name != "sqlite":  # which accepts any length; commands check it first
        with pytest.raises(DatabaseError), database.write() as connection:
            make_version(connection, "x" * 2049)
    with database.read() as connection:
        assert list_versions(connection) == []


def test_tags_that_differ_in_anything_are_different(connection: Connection) -> None:
    names = tuple(sorted(ODD_NAMES + LONG_NAMES))
    version = create_version(
        connection, name="disk", snapshot_name="", size_bytes=1, created_at=MOMENT, tag_names=names
    )
    assert version.tags == names
    assert [found.tags for found in list_versions(connection)] == [names]
    found = version_with_uid(connection, version.uid)
    assert found is not None
    assert found.tags == names


@pytest.mark.parametrize("name", ["daily", "\N{FLOPPY DISK}" * 2048])
def test_a_version_has_a_tag_once(database: Database, name: str) -> None:
    with database.write() as connection:
        insert_version(connection, record("1", tag_names=(name,)))
        insert_version(connection, record("2", tag_names=(name,)))
    with pytest.raises(DatabaseError), database.write() as connection:
        insert_version(connection, record("3", tag_names=(name, name)))


def test_a_version_changes_its_status(connection: Connection) -> None:
    version, other = make_version(connection), make_version(connection)
    set_status(connection, version.id, VersionStatus.VALID)
    statuses = {found.id: found.status for found in list_versions(connection)}
    assert statuses == {version.id: VersionStatus.VALID, other.id: VersionStatus.INCOMPLETE}


def test_a_version_is_found_by_user_input(connection: Connection) -> None:
    uids = ["abcd0000-0000-4000-8000-000000000001", "abcdffff-0000-4000-8000-000000000002"]
    for uid in uids:
        insert_version(connection, record(uid, "Disk "))
    assert find_version(connection, uids[0]).uid == uids[0]
    assert find_version(connection, "ABCDF").uid == uids[1]
    assert find_version(connection, "Disk @latest").uid == uids[1]
    assert find_version(connection, "Disk @2024-01-01T12:30:59").uid == uids[1]
    assert version_with_uid(connection, VersionUid("abcd")) is None
    for wanted in ("abcd", "Disk @2024-01-01T12:30:58", "Disk@latest", "disk @latest", "ffff"):
        with pytest.raises(VersionNotFoundError):
            find_version(connection, wanted)


def test_two_versions_have_different_uids(database: Database) -> None:
    with database.write() as connection:
        insert_version(connection, record("1"))
    with pytest.raises(DatabaseError), database.write() as connection:
        insert_version(connection, record("1", "other"))


def test_dependent_rows_are_deleted_with_their_version(connection: Connection) -> None:
    gone = insert_version(connection, record("1", tag_names=("a", "b")))
    stays = insert_version(connection, record("2", tag_names=("a",)))
    job_id = register_job(connection, this_process(), spec("mount"))
    for version in (gone, stays):
        commit_page(connection, version.id, PageNumber(0), new_entries(2, ABSENT))
        hold_version(connection, job_id, version.id)
    connection.execute(delete(versions).where(versions.c.id == gone.id))
    for table in (tags, version_pages, job_versions):
        assert list(connection.execute(select(table.c.version_id)).scalars()) == [stays.id]


def test_a_page_in_use_cannot_be_deleted(database: Database) -> None:
    with database.write() as connection:
        commit_page(connection, make_version(connection).id, PageNumber(0), new_entries(1, ABSENT))
    with pytest.raises(DatabaseError), database.write() as connection:
        connection.execute(delete(pages))


# Blobs


def test_a_blob_is_loaded_as_inserted(connection: Connection) -> None:
    blob = saved(1, bytes(range(64)))
    [(uid, blob_id)] = insert_blobs(connection, [blob], MOMENT).items()
    assert uid == blob.uid
    assert load_blobs(connection, [blob_id]) == {
        blob_id: Blob(
            id=blob_id,
            uid=BlobUid("0" * 31 + "1"),
            fingerprint=bytes(range(64)),
            size=4096,
            encryption_version=2,
            wrapped_key=b"\0" * 40,
            stored_size=1234,
        )
    }


def test_an_adopted_blob_may_lack_unknown_facts(connection: Connection) -> None:
    blob = BlobRecord(
        uid=BlobUid("18c29961439EQS96qJLwyirryH3rZubX"),
        fingerprint=None,
        size=1,
        stored_size=None,
        encryption_version=0,
        wrapped_key=None,
        valid=False,
    )
    blob_id = insert_blobs(connection, [blob], MOMENT)[blob.uid]
    assert load_blob_records(connection, [blob_id]) == {blob_id: blob}
    known = find_by_uid(connection, [blob.uid])[blob.uid]
    assert (known.id, known.doomed, known.facts) == (blob_id, False, blob)


def test_uids_that_differ_only_in_case_are_different_blobs(connection: Connection) -> None:
    uids = [BlobUid("a" * 31 + end) for end in "aAbB"]
    records = [
        BlobRecord(
            uid=uid,
            fingerprint=uid.encode(),
            size=1,
            stored_size=1,
            encryption_version=0,
            wrapped_key=None,
            valid=True,
        )
        for uid in uids
    ]
    ids = insert_blobs(connection, records, MOMENT)
    assert len(set(ids.values())) == 4
    assert {uid: blob.id for uid, blob in find_by_uid(connection, uids).items()} == ids
    assert {blob_id: blob.uid for blob_id, blob in load_blobs(connection, ids.values()).items()} == {
        blob_id: uid for uid, blob_id in ids.items()
    }


def test_a_blob_is_found_by_every_byte_of_its_fingerprint(connection: Connection) -> None:
    fingerprints = [b"\0" * 32, b"\0" * 31, b"a\0b", b"a", b"A", b"a ", b"\\'\"%:s\x1a\n", b"\xff" * 64, b"\x80"]
    inserted = insert_blobs(
        connection, [saved(number, fingerprint) for number, fingerprint in enumerate(fingerprints)], MOMENT
    )
    found = find_blobs(connection, [*fingerprints, b"\0", b"", b"a\0"])
    assert found == dict(zip(fingerprints, inserted.values(), strict=True))


def test_many_blobs_are_inserted_and_found_with_several_statements(connection: Connection) -> None:
    wanted = [saved(number) for number in range(1600)]
    ids = insert_blobs(connection, wanted, MOMENT)
    assert list(ids) == [blob.uid for blob in wanted]
    assert len(set(ids.values())) == 1600
    assert find_blobs(connection, [blob.fingerprint for blob in wanted]) == {
        blob.fingerprint: ids[blob.uid] for blob in wanted
    }
    assert {blob.uid: blob.id for blob in load_blobs(connection, ids.values()).values()} == ids
    assert {facts.uid: blob_id for blob_id, facts in load_blob_records(connection, ids.values()).items()} == ids
    assert {uid: blob.id for uid, blob in find_by_uid(connection, ids).items()} == ids


def test_of_equal_blobs_the_oldest_valid_one_not_doomed_is_found(connection: Connection) -> None:
    ids = list(insert_blobs(connection, [saved(number, b"same") for number in range(4)], MOMENT).values())
    assert find_blobs(connection, [b"same"]) == {b"same": ids[0]}
    doom(connection, ids[0])
    connection.execute(update(blobs).where(blobs.c.id == ids[1]).values(valid=False))
    assert find_blobs(connection, [b"same"]) == {b"same": ids[2]}
    assert find_by_uid(connection, [saved(0).uid])[saved(0).uid].doomed is True


def test_an_empty_lookup_finds_nothing(connection: Connection) -> None:
    make_blobs(connection, 1)
    assert (find_blobs(connection, []), load_blobs(connection, [])) == ({}, {})
    assert load_blobs(connection, [BlobId(2**40)]) == {}
    assert find_by_uid(connection, [BlobUid("0000")]) == {}


def test_two_blobs_have_different_uids(database: Database) -> None:
    with pytest.raises(DatabaseError), database.write() as connection:
        insert_blobs(connection, [saved(1), saved(1, b"other")], MOMENT)
    with database.read() as connection:
        assert count(connection, blobs) == 0


# Block map


def test_a_page_is_loaded_as_committed(connection: Connection) -> None:
    ids = make_blobs(connection, 1021)
    entries = new_entries(1024, HOLE)
    entries[1] = ABSENT
    for position, blob_id in enumerate(ids, 3):
        entries[position] = blob_id
    version = make_version(connection)
    page_id = commit_page(connection, version.id, PageNumber(3), entries)
    assert page_id is not None
    assert load_page(connection, version.id, PageNumber(3)) == entries
    assert list_pages(connection, version.id) == [(3, page_id)]
    assert refs_of_blobs(connection) == [1] * 1021
    assert references_add_up(connection)


def test_equal_pages_are_one_and_are_counted(connection: Connection) -> None:
    first, second = make_blobs(connection, 2)
    entries = new_entries(4, HOLE)
    entries[0] = entries[1] = first  # counted once
    entries[2] = second
    one, other = make_version(connection), make_version(connection)
    ids = [commit_page(connection, version.id, PageNumber(0), entries) for version in (one, other)]
    ids.append(commit_page(connection, other.id, PageNumber(1), entries))
    assert len(set(ids)) == 1
    assert (refs_of_pages(connection), refs_of_blobs(connection)) == ([3], [1, 1])
    assert ids[0] is not None
    share_pages(connection, one.id, [(PageNumber(7), ids[0])])
    assert (refs_of_pages(connection), list_pages(connection, one.id)) == ([4], [(0, ids[0]), (7, ids[0])])
    assert references_add_up(connection)


def test_blobs_are_found_by_bytes_and_encryption_version(connection: Connection) -> None:
    saved = [
        SavedBlob(
            uid=BlobUid(f"{number:032}"), fingerprint=b"same", size=1, stored_size=1, encryption_version=number,
            wrapped_key=None,
        )
        for number in (0, 1)
    ]  # fmt: skip
    ids = insert_blobs(connection, saved, datetime(2026, 1, 1, tzinfo=UTC))
    plain, sealed = (ids[blob.uid] for blob in saved)
    assert find_blobs(connection, [b"same", b"other"]) == {b"same": plain}
    assert find_blobs(connection, [b"same"], encryption_version=1) == {b"same": sealed}
    assert find_blobs(connection, [b"same"], encryption_version=2) == {}


def test_a_page_replaces_the_previous_one(connection: Connection) -> None:
    first, second = make_blobs(connection, 2)
    version = make_version(connection)
    for blob_id in (first, second):
        commit_page(connection, version.id, PageNumber(0), new_entries(1, blob_id))
    assert load_page(connection, version.id, PageNumber(0)) == new_entries(1, second)
    assert (refs_of_pages(connection), refs_of_blobs(connection)) == ([1], [0, 1])
    assert commit_page(connection, version.id, PageNumber(0), new_entries(1, HOLE)) is None
    assert (refs_of_pages(connection), list_pages(connection, version.id)) == ([], [])
    assert commit_page(connection, version.id, PageNumber(0), new_entries(1, HOLE), keep_holes=True) is not None
    forget_holes(connection, version.id, 1)
    assert (refs_of_pages(connection), list_pages(connection, version.id)) == ([], [])
    assert references_add_up(connection)


def test_a_page_without_a_row_is_holes_if_the_backup_ended(connection: Connection) -> None:
    version = make_version(connection)
    assert page_entries(connection, version, PageNumber(0), 2) == new_entries(2, ABSENT)
    commit_page(connection, version.id, PageNumber(0), new_entries(2, HOLE), keep_holes=True)
    assert page_entries(connection, version, PageNumber(0), 2) == new_entries(2, HOLE)
    ended = insert_version(connection, record("1"))
    assert page_entries(connection, ended, PageNumber(0), 2) == new_entries(2, HOLE)


def test_a_page_with_a_doomed_blob_is_refused_and_leaves_nothing(database: Database) -> None:
    with database.write() as connection:
        ids = make_blobs(connection, 600)
        version = make_version(connection)
        doom(connection, ids[7])
    entries = new_entries(601, BlobId(2**40))
    for position, blob_id in enumerate(ids):
        entries[position] = blob_id
    with pytest.raises(BlobsGoneError) as caught, database.write() as connection:
        commit_page(connection, version.id, PageNumber(0), entries)
    assert caught.value.blob_ids == {ids[7], 2**40}
    with database.read() as connection:
        assert (count(connection, pages), count(connection, version_pages)) == (0, 0)
        assert refs_of_blobs(connection) == [0] * 599


def test_wrong_counts_are_detected(connection: Connection) -> None:
    [blob_id] = make_blobs(connection, 1)
    commit_page(connection, make_version(connection).id, PageNumber(0), new_entries(1, blob_id))
    connection.execute(update(blob_refs).values(refs=2))
    assert not references_add_up(connection)


# Jobs


def test_a_job_exists_from_registration_to_removal(connection: Connection) -> None:
    job_id = register_job(connection, this_process(), spec("backup \N{FLOPPY DISK} 'x'"))
    progress = JobProgress(label="Backing up \N{FLOPPY DISK}", done=38, total=100 << 40, elapsed_s=0.5)
    assert beat(connection, job_id, progress) is True
    assert beat(connection, job_id, progress) is True  # even if nothing changes
    [running] = list_running_jobs(connection, this_process())
    assert (running.kind, running.progress) == (JobKind.BACKUP, progress)
    job = running.job
    assert (job.host, job.pid) == (this_process().host, this_process().pid)
    assert job.command == "backup \N{FLOPPY DISK} 'x'"
    assert abs(datetime.now(UTC) - job.started_at) < timedelta(seconds=5)
    remove_job(connection, job_id)
    assert list_live_jobs(connection, this_process()) == []
    assert beat(connection, job_id, progress) is False


def test_a_job_holds_versions_until_it_is_removed(connection: Connection) -> None:
    first, second = make_version(connection).id, make_version(connection).id
    job_id = register_job(connection, this_process(), spec("mount"))
    for version_id in (first, second, first):
        hold_version(connection, job_id, version_id)
    assert set(connection.execute(select(job_versions.c.version_id)).scalars()) == {first, second}
    remove_job(connection, job_id)
    assert count(connection, job_versions) == 0


def test_silent_jobs_are_removed_with_their_holds(connection: Connection) -> None:
    quiet = register_job(connection, ELSEWHERE, spec("backup"))
    alive = register_job(connection, replace(ELSEWHERE, scope="a third machine"), spec("mount"))
    hold_version(connection, quiet, make_version(connection).id)
    age(connection, quiet, 61)
    age(connection, alive, 55)
    silent = silent_jobs(connection, this_process())
    assert silent.keys() == {quiet}
    ours = register_job(connection, this_process(), spec("scrub"))
    assert remove_silent(connection, silent) == [quiet]
    assert list(connection.execute(select(jobs.c.id).order_by(jobs.c.id)).scalars()) == [alive, ours]
    assert count(connection, job_versions) == 0


# Statistics


def test_statistics_can_be_loaded_and_outlive_their_version(connection: Connection) -> None:
    version = make_version(connection, "O'Neill \N{FLOPPY DISK}")
    old = StatisticsRecord(
        created_at=MOMENT,
        version_uid=version.uid,
        version_name="disk",
        version_size_bytes=2**62,
        version_size_blocks=2**40,
        bytes_read=2**62,
        blocks_read=1,
        bytes_written=2,
        blocks_written=3,
        bytes_stored=None,
        bytes_deduplicated=4,
        blocks_deduplicated=5,
        bytes_sparse=6,
        blocks_sparse=7,
        duration_s=0.1,
    )
    insert_statistics_records(connection, [old] * 600)
    insert_statistics(
        connection, version, 8, BackupStatistics(bytes_stored=2**50), ended_at=MOMENT, duration_s=1234567.8901234
    )
    connection.execute(delete(versions))
    found = list_statistics(connection, version.uid)
    assert found[:600] == [old] * 600
    assert [(new.version_name, new.bytes_stored, new.duration_s, new.created_at) for new in found[600:]] == [
        ("O'Neill \N{FLOPPY DISK}", 2**50, 1234567.8901234, MOMENT)
    ]
    assert list_statistics(connection, VersionUid("other")) == []


# Transactions


def test_a_failed_statement_undoes_the_whole_transaction(database: Database) -> None:
    def fail_half_way(connection: Connection) -> None:
        make_blobs(connection, 3)
        insert_version(connection, record("1", tag_names=("a",)))
        save_identity(connection, IDENTITY)

    with pytest.raises(DatabaseError), database.write() as connection:
        fail_half_way(connection)
    with database.read() as connection:
        assert [count(connection, table) for table in (blobs, versions, tags)] == [0, 0, 0]


def test_an_exception_undoes_the_whole_transaction(database: Database) -> None:
    def fail_half_way(connection: Connection) -> None:
        insert_version(connection, record("1", tag_names=("a",)))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), database.write() as connection:
        fail_half_way(connection)
    with database.read() as connection:
        assert [count(connection, table) for table in (versions, tags)] == [0, 0]


def test_writers_wait_for_each_other_from_the_beginning_of_a_transaction(database: Database) -> None:
    with database.write() as connection:
        version_id = make_version(connection).id

    def add_one(_: int) -> None:
        with database.write() as connection:
            here = versions.c.id == version_id
            size = connection.execute(select(versions.c.size_bytes).where(here)).scalar_one()
            connection.execute(update(versions).where(here).values(size_bytes=size + 1))

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(add_one, range(100)))
    with database.read() as connection:
        assert connection.execute(select(versions.c.size_bytes)).scalar_one() == 101


def test_a_writer_begins_when_the_previous_one_has_ended(database: Database) -> None:
    events = []
    begins = threading.Event()

    def write() -> None:
        begins.set()
        with database.write():
            events.append("second")

    with ThreadPoolExecutor(1) as threads:
        with database.write():
            second = threads.submit(write)
            assert begins.wait(10)
            with pytest.raises(TimeoutError):
                second.result(timeout=0.2)
            events.append("first")
        second.result(timeout=10)
    assert events == ["first", "second"]


def test_the_same_page_from_several_threads_is_stored_once(database: Database) -> None:
    with database.write() as connection:
        ids = make_blobs(connection, 16)
        version_ids = [make_version(connection).id for _ in range(4)]
    together = threading.Barrier(4)

    def commit(version_id: VersionId) -> None:
        for page, blob_id in enumerate(ids):
            together.wait(10)
            with database.write() as connection:
                commit_page(connection, version_id, PageNumber(page), new_entries(2, blob_id))

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(commit, version_ids))
    with database.read() as connection:
        assert (refs_of_pages(connection), refs_of_blobs(connection)) == ([4] * 16, [1] * 16)
        assert references_add_up(connection)


def test_a_reader_sees_a_consistent_state_while_others_write(database: Database) -> None:
    with database.read() as reading:
        assert count(reading, versions) == 0
        with database.write() as writing:
            make_version(writing)
            make_blobs(writing, 1)
        assert (count(reading, versions), count(reading, blobs)) == (0, 0)
    with database.read() as reading:
        assert (count(reading, versions), count(reading, blobs)) == (1, 1)


def test_a_reader_waits_for_nobody(database: Database) -> None:
    with database.write() as writing:
        make_version(writing)
        with database.read() as reading:
            assert load_identity(reading) == IDENTITY
            assert count(reading, versions) == 0


# Servers


@pytest.fixture(params=["postgresql", "mariadb"])
def server(request: pytest.FixtureRequest) -> DatabaseServer:
    running: DatabaseServer = request.getfixturevalue(f"{request.param}_server")
    return running


def test_a_stopped_server_is_a_database_error(server: DatabaseServer) -> None:
    with type(server)() as own, closing(Database(own.new_database())) as database:
        create_schema(database)
        own.stop()
        for transaction in (database.read, database.write, database.begin):
            with pytest.raises(DatabaseError, match=r"^database: "), transaction():
                pass
        with pytest.raises(DatabaseError, match=r"^database: "):
            database.check_revision()


def test_a_connection_closed_by_the_server_is_replaced(server: DatabaseServer) -> None:
    postgresql = server.name == "postgresql"
    with closing(Database(server.new_database())) as database:
        create_schema(database)
        with database.read() as connection:
            which = select(func.pg_backend_pid() if postgresql else func.connection_id())
            number = connection.execute(which).scalar_one()
        server.execute(f"SELECT pg_terminate_backend({number}, 10000)" if postgresql else f"KILL {number}")
        with database.write() as connection:
            save_identity(connection, IDENTITY)


def test_a_missing_database_is_a_database_error(server: DatabaseServer) -> None:
    with closing(Database(server.url("nowhere"))) as database, pytest.raises(DatabaseError, match=r"nowhere"):
        database.check_revision()


@pytest.mark.parametrize(
    ("url", "module", "extra"),
    [
        ("postgresql://u:secret@host/db", "psycopg", "postgresql"),
        ("mysql://u:secret@host/db", "pymysql", "mysql"),
        ("mariadb://u:secret@host/db", "pymysql", "mysql"),
    ],
)
def test_a_missing_driver_names_what_to_install(
    monkeypatch: pytest.MonkeyPatch, url: str, module: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    with pytest.raises(DatabaseError) as caught:
        Database(url)
    assert "needs a driver that is not installed" in str(caught.value)
    assert str(caught.value).endswith(f"; install it: pip install 'backyfs[{extra}]'")
    assert "secret" not in str(caught.value)
