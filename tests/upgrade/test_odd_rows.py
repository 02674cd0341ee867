"""Rows of backy2 that contradict themselves, others, or what a release of backy2 would write."""

from __future__ import annotations

import hashlib
import logging
import sqlite3
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select

from backyfs.blocks import load_block
from backyfs.engine.setup.upgrade import upgrade
from backyfs.errors import IntegrityError, VersionIncompleteError
from backyfs.images.image import Image
from backyfs.metadata.db.tables import blobs
from backyfs.metadata.records.blobs import find_by_uid
from backyfs.metadata.records.stats import list_statistics
from backyfs.metadata.records.versions import find_version, version_with_uid
from backyfs.model import BlobUid, BlockIndex, VersionStatus, VersionUid
from backyfs.repository import open_repository
from tests.support.audit import audit
from tests.support.stored import blob_uids, file_of
from tests.upgrade.reference import Reference, read_blocks

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from backyfs.model import Blob, Version
    from backyfs.repository import Repository

# Of the fixture v1-sqlite: three versions of one image, the first of which has 41 blocks.
FIRST = VersionUid("25f6a9b6-e6b8-11f1-b2fd-02fc00000001")
SECOND = VersionUid("26e2da02-e6b8-11f1-b2fd-02fc00000001")
WITH_BLOB = 1  # a block of the first version
# Of the fixture v0-sqlite: two versions that share that block.
PLAIN = VersionUid("1d8d6238-e6b8-11f1-b2fd-02fc00000001")
OTHER_PLAIN = VersionUid("1e94eaf2-e6b8-11f1-b2fd-02fc00000001")


def change(reference: Reference, *statements: str) -> None:
    with closing(sqlite3.connect(reference.sqlite_file, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


def row(reference: Reference, query: str) -> tuple[object, ...]:
    with closing(sqlite3.connect(reference.sqlite_file)) as connection:
        found: tuple[object, ...] = connection.execute(query).fetchone()
        return found


@contextmanager
def upgraded(reference: Reference) -> Iterator[Repository]:
    assert upgrade(reference.config) is not None
    with open_repository(reference.config) as repository:
        audit(repository)
        yield repository


def version_of(repository: Repository, uid: VersionUid) -> Version:
    with repository.database.read() as connection:
        version = version_with_uid(connection, uid)
    assert version is not None
    return version


def blocks_of(repository: Repository, uid: VersionUid) -> dict[int, bytes]:
    return dict(read_blocks(repository, version_of(repository, uid)))


# A row that cannot be used


@pytest.mark.parametrize(
    "fault",
    [
        "uid = '../../etc/passwd'",
        "uid = 'with space in it'",
        "uid = 'x'",
        "size = 4711",
        "size = NULL",
        "size = 0",
    ],
)
def test_a_row_that_cannot_be_used_costs_its_block_alone(
    fault: str, reference: Reference, caplog: pytest.LogCaptureFixture
) -> None:
    change(reference, f"UPDATE blocks SET {fault} WHERE version_uid = '{FIRST}' AND id = {WITH_BLOB}")
    with caplog.at_level(logging.WARNING, logger="backyfs"), upgraded(reference) as repository:
        version = version_of(repository, FIRST)
        assert version.status is VersionStatus.INVALID
        assert set(range(41)) - set(blocks_of(repository, FIRST)) == {WITH_BLOB}
        with pytest.raises(VersionIncompleteError):
            Image(repository, version).blob(BlockIndex(WITH_BLOB))
        assert version_of(repository, SECOND).status is VersionStatus.VALID
    assert f"version {FIRST} (vm-a): the row of block {WITH_BLOB} contradicts itself or other rows" in caplog.text


def test_a_row_that_contradicts_an_earlier_one_of_the_same_blob_is_not_trusted(reference: Reference) -> None:
    # The block is shared by both versions; the second one says something else of it.
    change(reference, f"UPDATE blocks SET size = 4242 WHERE version_uid = '{SECOND}' AND id = {WITH_BLOB}")
    with upgraded(reference) as repository:
        assert version_of(repository, FIRST).status is VersionStatus.VALID
        assert version_of(repository, SECOND).status is VersionStatus.INVALID
        assert WITH_BLOB in blocks_of(repository, FIRST)
        assert WITH_BLOB not in blocks_of(repository, SECOND)


@pytest.mark.parametrize("uid", [FIRST, SECOND])
def test_a_wrong_checksum_of_an_encrypted_block_costs_nothing(uid: VersionUid, reference: Reference) -> None:
    # The block vouches for its bytes; what is lost is its use for deduplication.
    change(reference, f"UPDATE blocks SET checksum = '{'ab' * 64}' WHERE version_uid = '{uid}' AND id = {WITH_BLOB}")
    with upgraded(reference) as repository:
        for one in (FIRST, SECOND):
            assert version_of(repository, one).status is VersionStatus.VALID
            assert WITH_BLOB in blocks_of(repository, one)


def test_rows_beyond_the_image_are_left_out(reference: Reference) -> None:
    change(
        reference,
        f"INSERT INTO blocks SELECT uid, version_uid, 4711, date, checksum, size, valid, enc_version, enc_envkey, "
        f"enc_nonce FROM blocks WHERE version_uid = '{FIRST}' AND id = {WITH_BLOB}",
        f"INSERT INTO blocks SELECT uid, version_uid, -1, date, checksum, size, valid, enc_version, enc_envkey, "
        f"enc_nonce FROM blocks WHERE version_uid = '{FIRST}' AND id = {WITH_BLOB}",
    )
    with upgraded(reference) as repository:
        assert version_of(repository, FIRST).status is VersionStatus.VALID
        assert len(blocks_of(repository, FIRST)) == 41


# Keys


def test_a_row_without_a_key_takes_that_of_another_row(reference: Reference) -> None:
    # As after the import of an export from before 2.12.
    change(
        reference,
        "UPDATE blocks SET enc_version = 0, enc_envkey = NULL, enc_nonce = NULL "
        f"WHERE version_uid = '{FIRST}' AND id = {WITH_BLOB}",
    )
    with upgraded(reference) as repository:
        assert len(blocks_of(repository, FIRST)) == 41


def test_the_key_that_opens_wins_over_one_that_does_not(reference: Reference) -> None:
    # As after the import of an export from before a rekey.
    change(reference, f"UPDATE blocks SET enc_envkey = '{'00' * 40}' WHERE version_uid = '{FIRST}' AND uid IS NOT NULL")
    second = row(reference, f"SELECT count(*) FROM blocks WHERE version_uid = '{SECOND}' AND id = {WITH_BLOB}")
    assert second == (1,)
    with upgraded(reference) as repository:
        assert WITH_BLOB in blocks_of(repository, FIRST)


# Checksums


def test_a_checksum_of_another_function_is_left_out(reference: Reference, caplog: pytest.LogCaptureFixture) -> None:
    change(
        reference, f"UPDATE blocks SET checksum = '{'ab' * 32}' WHERE version_uid = '{FIRST}' AND id = {WITH_BLOB}"
    )
    with caplog.at_level(logging.WARNING, logger="backyfs"), upgraded(reference) as repository:
        assert WITH_BLOB in blocks_of(repository, FIRST)
        assert version_of(repository, FIRST).status is VersionStatus.VALID
    assert "has a checksum of another hash function; the checksum is dropped" in caplog.text


@pytest.fixture
def plain(tmp_path: Path) -> Reference:
    """Give a repository of plain blocks."""
    return Reference("v0-sqlite", tmp_path)


def with_checksum(reference: Reference, hash_name: str, versions: str = "%") -> None:
    """Let rows of one block, those of some versions, have the checksum of another function."""
    (uid,) = row(reference, f"SELECT uid FROM blocks WHERE version_uid = '{PLAIN}' AND id = {WITH_BLOB}")
    assert isinstance(uid, str)
    content = (reference.directory / "data" / uid[:2] / uid[2:4] / f"{uid}.blob").read_bytes()
    checksum = hashlib.new(hash_name, content).hexdigest()
    where = f"uid = '{uid}' AND version_uid LIKE '{versions}'"
    change(reference, f"UPDATE blocks SET checksum = '{checksum}' WHERE {where}")


def plain_blob(repository: Repository) -> Blob:
    blob = Image(repository, version_of(repository, PLAIN)).blob(BlockIndex(WITH_BLOB))
    assert blob is not None
    return blob


def test_a_plain_block_is_checked_by_a_checksum_of_another_function(plain: Reference) -> None:
    with_checksum(plain, "sha256")
    with upgraded(plain) as repository:
        blob = plain_blob(repository)
        assert len(blob.fingerprint or b"") == 32
        assert len(load_block(repository.blocks, blob)) == blob.size
        file_of(repository, blob).write_bytes(bytes(blob.size))
        with pytest.raises(IntegrityError, match="its fingerprint differs"):
            load_block(repository.blocks, blob)


@pytest.mark.parametrize("version", [PLAIN, OTHER_PLAIN])
def test_checksums_of_several_functions_for_one_plain_block_do_not_contradict_each_other(
    plain: Reference, version: VersionUid
) -> None:
    with_checksum(plain, "sha256", version)
    with upgraded(plain) as repository:
        blob = plain_blob(repository)
        assert len(blob.fingerprint or b"") == 64
        assert len(load_block(repository.blocks, blob)) == blob.size
        for uid in (PLAIN, OTHER_PLAIN):
            assert version_of(repository, uid).status is VersionStatus.VALID


def test_a_plain_block_without_a_checksum_is_an_error(plain: Reference) -> None:
    uid = f"SELECT uid FROM blocks WHERE version_uid = '{PLAIN}' AND id = {WITH_BLOB}"
    change(plain, f"UPDATE blocks SET checksum = NULL WHERE uid IN ({uid})")
    words = "is stored plain and has no fingerprint to check it by"
    with upgraded(plain) as repository, pytest.raises(IntegrityError, match=words):
        load_block(repository.blocks, plain_blob(repository))


# What has lost its version


def test_blobs_of_rows_without_a_version_can_be_cleaned_up(reference: Reference) -> None:
    change(reference, f"DELETE FROM versions WHERE uid = '{FIRST}'")
    with upgraded(reference) as repository, repository.database.read() as connection:
        stored = set(blob_uids(repository.blocks.storage))
        assert {uid for (uid,) in connection.execute(select(blobs.c.uid))} == stored


def test_tags_without_a_version_are_left_out(reference: Reference) -> None:
    change(reference, "INSERT INTO tags VALUES ('nobody', 'lost')")
    with upgraded(reference) as repository:
        assert version_of(repository, FIRST).tags == ("b_daily", "b_monthly", "b_weekly")


def test_blobs_that_wait_to_be_deleted_are_doomed_unless_they_are_used(reference: Reference) -> None:
    (used,) = row(reference, f"SELECT uid FROM blocks WHERE version_uid = '{FIRST}' AND id = {WITH_BLOB}")
    change(
        reference,
        f"INSERT INTO deleted_blocks (uid, size, delete_candidate, time) VALUES ('{used}', 65536, 0, 1700000000)",
        "INSERT INTO deleted_blocks (uid, size, delete_candidate, time) VALUES ('abcdeWaiting', 65536, 0, 1700000000)",
        "INSERT INTO deleted_blocks (uid, size, delete_candidate, time) VALUES ('abcdeWaiting', 65536, 0, 1700000000)",
        "INSERT INTO deleted_blocks (uid, size, delete_candidate, time) VALUES (NULL, 65536, 0, 1700000000)",
    )
    with upgraded(reference) as repository, repository.database.read() as connection:
        known = find_by_uid(connection, [BlobUid(str(used)), BlobUid("abcdeWaiting")])
        doomed = connection.execute(select(blobs.c.uid, blobs.c.doomed_at).where(blobs.c.doomed_at.is_not(None))).all()
    assert not known[BlobUid(str(used))].doomed
    assert [tuple(found) for found in doomed] == [("abcdeWaiting", datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC))]


# Versions that did not end


def test_before_2_11_a_version_without_statistics_was_interrupted(tmp_path: Path) -> None:
    reference = Reference("old-cd3f15ae79f8", tmp_path)
    uid, *_ = reference.expected["versions"]
    change(
        reference,
        f"UPDATE versions SET valid = 0 WHERE uid = '{uid}'",
        f"DELETE FROM stats WHERE version_uid = '{uid}'",
        f"UPDATE blocks SET uid = NULL, checksum = NULL WHERE version_uid = '{uid}' AND id IN (3, 4)",
    )
    with upgraded(reference) as repository:
        assert version_of(repository, uid).status is VersionStatus.INCOMPLETE
        # A block without a blob may be one that was not backed up yet.
        assert not {3, 4} & set(blocks_of(repository, uid))


def test_before_2_11_a_version_with_statistics_was_found_damaged(tmp_path: Path) -> None:
    reference = Reference("old-cd3f15ae79f8", tmp_path)
    uid, *_ = reference.expected["versions"]
    change(
        reference,
        f"UPDATE versions SET valid = 0 WHERE uid = '{uid}'",
        f"UPDATE blocks SET valid = 0 WHERE version_uid = '{uid}' AND id = 2",
    )
    with upgraded(reference) as repository:
        assert version_of(repository, uid).status is VersionStatus.INVALID
        assert len(blocks_of(repository, uid)) == reference.expected["versions"][uid]["size_blocks"]


def test_all_rows_without_any_sign_of_an_end_are_not_trusted(reference: Reference) -> None:
    # As a release before 2.11 left it, before backy2 itself upgraded the database.
    with_blob = row(reference, f"SELECT count(*) FROM blocks WHERE version_uid = '{FIRST}' AND uid IS NOT NULL")
    change(reference, f"UPDATE versions SET valid = 0 WHERE uid = '{FIRST}'", "DELETE FROM stats")
    with upgraded(reference) as repository:
        assert version_of(repository, FIRST).status is VersionStatus.INCOMPLETE
        assert (len(blocks_of(repository, FIRST)),) == with_blob


def test_statistics_are_the_sign_of_an_end(reference: Reference) -> None:
    change(reference, f"UPDATE versions SET valid = 0 WHERE uid = '{FIRST}'")
    with upgraded(reference) as repository:
        assert version_of(repository, FIRST).status is VersionStatus.INVALID
        assert len(blocks_of(repository, FIRST)) == 41


def test_equal_statistics_are_all_kept(reference: Reference) -> None:
    columns = (
        "date, version_uid, version_name, version_size_bytes, version_size_blocks, bytes_read, blocks_read, "
        "bytes_written, blocks_written, bytes_found_dedup, blocks_found_dedup, bytes_sparse, blocks_sparse, "
        "duration_seconds"
    )
    change(reference, f"INSERT INTO stats ({columns}) SELECT {columns} FROM stats")
    with upgraded(reference) as repository, repository.database.read() as connection:
        assert len(list_statistics(connection, FIRST)) == 2


def test_a_hole_may_have_any_size(reference: Reference) -> None:
    change(reference, "UPDATE blocks SET size = 7 WHERE uid IS NULL")
    with upgraded(reference) as repository:
        assert version_of(repository, FIRST).status is VersionStatus.VALID
        assert len(blocks_of(repository, FIRST)) == 41


def test_a_row_without_a_version_can_have_any_number(reference: Reference) -> None:
    change(
        reference,
        "INSERT INTO blocks SELECT uid, 'nobody', 2000000000, date, checksum, size, valid, enc_version, enc_envkey, "
        f"enc_nonce FROM blocks WHERE version_uid = '{FIRST}' AND id = {WITH_BLOB}",
    )
    with upgraded(reference) as repository:
        assert len(blocks_of(repository, FIRST)) == 41


def test_a_valid_version_that_lacks_rows_is_incomplete(reference: Reference) -> None:
    change(reference, f"DELETE FROM blocks WHERE version_uid = '{FIRST}' AND id IN (0, 7)")
    with upgraded(reference) as repository:
        assert version_of(repository, FIRST).status is VersionStatus.INCOMPLETE
        assert set(range(41)) - set(blocks_of(repository, FIRST)) == {0, 7}


def test_holes_of_an_incomplete_version_stay_known(reference: Reference) -> None:
    change(
        reference,
        f"UPDATE blocks SET uid = NULL, checksum = NULL, enc_version = 0 WHERE version_uid = '{FIRST}'",
        f"DELETE FROM blocks WHERE version_uid = '{FIRST}' AND id = 0",
    )
    with upgraded(reference) as repository:
        assert set(blocks_of(repository, FIRST)) == set(range(1, 41))


# Dates


@pytest.mark.parametrize(
    ("stored", "shown"),
    [
        ("2026-11-22 21:03:21.048986", datetime(2026, 11, 22, 21, 3, 21, 48986, tzinfo=UTC)),
        ("2026-11-22 21:03:21", datetime(2026, 11, 22, 21, 3, 21, tzinfo=UTC)),
        # Local time of the host, as before 2.10.6; the uid, a UUID of version 1, has the time in UTC.
        ("2026-11-22 22:03:21.048986", datetime(2026, 11, 22, 21, 3, 21, 48986, tzinfo=UTC)),
        ("2026-11-22 15:33:22", datetime(2026, 11, 22, 21, 3, 22, tzinfo=UTC)),
        # Neither: what is stored counts.
        ("2026-11-20 21:03:21", datetime(2026, 11, 20, 21, 3, 21, tzinfo=UTC)),
        ("2026-11-22 21:40:00", datetime(2026, 11, 22, 21, 40, tzinfo=UTC)),
    ],
)
def test_a_date_in_local_time_becomes_utc(stored: str, shown: datetime, reference: Reference) -> None:
    change(reference, f"UPDATE versions SET date = '{stored}' WHERE uid = '{FIRST}'")
    with upgraded(reference) as repository:
        assert version_of(repository, FIRST).created_at == shown


@pytest.mark.parametrize(
    ("stored", "shown"),
    [
        ("'2031-05-06'", datetime(2031, 5, 6, tzinfo=UTC)),
        ("'2031-05-06 00:00:00.000000'", datetime(2031, 5, 6, tzinfo=UTC)),
        ("'2031-05-06 07:08:09.000010'", datetime(2031, 5, 6, 7, 8, 9, 10, tzinfo=UTC)),
        ("''", None),
        ("NULL", None),
    ],
)
def test_expiry_is_a_day_or_a_time_or_none(stored: str, shown: datetime | None, reference: Reference) -> None:
    change(reference, f"UPDATE versions SET expire = {stored} WHERE uid = '{FIRST}'")
    with upgraded(reference) as repository:
        assert version_of(repository, FIRST).expire_at == shown


@pytest.mark.parametrize("stored", ["0000-00-00 00:00:00", "soon"])
def test_an_expiry_that_is_no_time_is_left_out(
    stored: str, reference: Reference, caplog: pytest.LogCaptureFixture
) -> None:
    change(reference, f"UPDATE versions SET expire = '{stored}' WHERE uid = '{SECOND}'")
    with caplog.at_level(logging.WARNING, logger="backyfs"), upgraded(reference) as repository:
        assert version_of(repository, SECOND).expire_at is None
    assert f"version {SECOND}: '{stored}' is not a time; the time is dropped" in caplog.text


def test_a_version_without_a_date_has_that_of_its_uid(reference: Reference) -> None:
    change(reference, f"UPDATE versions SET date = '' WHERE uid = '{FIRST}'")
    with upgraded(reference) as repository:
        found = version_of(repository, FIRST).created_at
    assert abs(found - datetime(2026, 11, 22, 21, 3, 21, tzinfo=UTC)) < timedelta(seconds=2)


# Names


def test_a_name_in_bytes_becomes_text(reference: Reference) -> None:
    change(reference, f"UPDATE versions SET name = x'C3A4FF' WHERE uid = '{FIRST}'")
    with upgraded(reference) as repository:
        assert version_of(repository, FIRST).name == "\N{LATIN SMALL LETTER A WITH DIAERESIS}\\xff"


def test_uids_in_capitals_are_found(reference: Reference) -> None:
    change(
        reference,
        "UPDATE versions SET uid = upper(uid)",
        "UPDATE blocks SET version_uid = upper(version_uid)",
        "UPDATE tags SET version_uid = upper(version_uid)",
    )
    with upgraded(reference) as repository, repository.database.read() as connection:
        assert find_version(connection, FIRST).uid == FIRST.upper()
        assert find_version(connection, FIRST[:6].upper()).uid == FIRST.upper()
