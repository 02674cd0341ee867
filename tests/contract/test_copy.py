"""Copying all metadata from one database to another, for every pair of engines."""

from __future__ import annotations

import json
import os
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import func, insert, inspect, select, text, update

from backyfs.engine.restore.restore import restore
from backyfs.engine.transfer import database_copy
from backyfs.engine.transfer.database_copy import copy_database
from backyfs.errors import DatabaseError, JobsRunningError, SchemaError, UsageError
from backyfs.metadata.db.database import Database
from backyfs.metadata.db.tables import blob_checks, blobs, damaged_versions, jobs, metadata, version_pages
from backyfs.metadata.maps.blockmap import ABSENT, HOLE, commit_page, new_entries, references_add_up, share_pages
from backyfs.metadata.records.blobs import insert_blobs
from backyfs.metadata.records.identity import Identity, add_key_slot, save_identity
from backyfs.metadata.records.jobs import end_job, register_job, remove_job
from backyfs.metadata.records.processes import this_process
from backyfs.metadata.records.runs import complete_run
from backyfs.metadata.records.stats import insert_statistics_records
from backyfs.metadata.records.versions import insert_version, list_versions
from backyfs.metadata.schema.rowcopy import copy_rows
from backyfs.metadata.schema.schema import create_file, create_tables, differences
from backyfs.model import (
    BlobRecord,
    BlobUid,
    Ending,
    JobKind,
    JobSpec,
    KeySlot,
    PageNumber,
    RunOutcome,
    StatisticsRecord,
    VersionRecord,
    VersionStatus,
    VersionUid,
)
from backyfs.work import silence
from tests.support.images import random_image
from tests.support.jobs import spec
from tests.support.repositories import BLOCK, back_up, make_repository, opened

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from backyfs.metadata.db.database import Connection

pytestmark = pytest.mark.slow

ENGINES = ["sqlite", "postgresql", "mariadb"]
MOMENT = datetime(2024, 1, 1, 12, 30, 59, 123_456, tzinfo=UTC)
NAMES = ["", "a", "A", "a ", "ä", "备份 \N{FLOPPY DISK}", "O'Neill \"x\" `y`\\", "line\nbreak", ":x %s", "x" * 2048]
ROWS = {
    "repository": 1,
    "key_slots": 2,
    "versions": 10,
    "tags": 10,
    "pages": 3,
    "version_pages": 602,
    "blobs": 1100,
    "blob_refs": 1100,
    "blob_checks": 1100,
    "damaged_versions": 1,
    "catalog_notes": 22,
    "runs": 2,
    "stats": 2,
}


def blob(number: int) -> BlobRecord:
    """Return a unique blob; every third has NULL where allowed."""
    is_sparing = number % 3 == 0
    return BlobRecord(
        uid=BlobUid(f"{number:05}"),
        fingerprint=None if is_sparing else bytes((number + position) % 256 for position in range(64)),
        size=number + 1,
        stored_size=None if is_sparing else 2**40 + number,
        encryption_version=number % 2,
        wrapped_key=None if is_sparing else bytes((255, 0, 92, 39)) * 10,
        valid=number % 7 != 0,
    )


def version(number: int, name: str) -> VersionRecord:
    return VersionRecord(
        uid=VersionUid(f"uid-{number}"),
        created_at=MOMENT + timedelta(microseconds=number),
        name=name,
        snapshot_name=name[::-1],
        size_bytes=2**62 + number,
        status=list(VersionStatus)[number % 3],
        protected=number % 2 == 0,
        expire_at=None if number % 2 else datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
        tags=(name or "tag",),
    )


def statistics(duration_s: float, bytes_stored: int | None) -> StatisticsRecord:
    return StatisticsRecord(
        created_at=MOMENT, version_uid=VersionUid("gone"), version_name=NAMES[5], version_size_bytes=2**62,
        version_size_blocks=1, bytes_read=2, blocks_read=3, bytes_written=4, blocks_written=5,
        bytes_stored=bytes_stored, bytes_deduplicated=6, blocks_deduplicated=7, bytes_sparse=8, blocks_sparse=9,
        duration_s=duration_s,
    )  # fmt: skip


def fill(connection: Connection) -> None:
    """Make a repository with rows in every table, more than one batch in two of them, and odd values."""
    save_identity(
        connection,
        Identity(
            uid="0f5b2c1e-9a64-4f0b-8a57-6b1de0b5a0f3",
            block_size=1 << 22,
            hash_function="blake3",
            wrapped_fingerprint_key=b"\0\xff\\'%" * 8,
            created_at=MOMENT,
        ),
    )
    for label in ("first", NAMES[5]):
        add_key_slot(connection, KeySlot(label=label, kdf="x", kdf_parameters='{"n": 1}', key_check=b"\0" * 8,
                                         wrapped_key=bytes(range(40)), created_at=MOMENT))  # fmt: skip
    ids = list(insert_blobs(connection, map(blob, range(1100)), MOMENT).values())
    made = [insert_version(connection, version(number, name)) for number, name in enumerate(NAMES)]
    full = new_entries(1024, HOLE)
    full[:1020] = new_entries(0, 0) + type(full)("q", ids[:1020])
    page_id = commit_page(connection, made[0].id, PageNumber(0), full)
    assert page_id is not None
    for number in range(1, 600):
        share_pages(connection, made[0].id, [(PageNumber(number), page_id)])
    commit_page(connection, made[1].id, PageNumber(2**31 - 1), new_entries(2, ids[1050]))
    commit_page(connection, made[9].id, PageNumber(5), new_entries(1024, ABSENT))
    insert_statistics_records(connection, [statistics(0.1, None), statistics(1234567.8901234, 2**50)])
    connection.execute(insert(blob_checks), [{"blob_id": blob_id, "checked_at": MOMENT} for blob_id in ids])
    connection.execute(insert(damaged_versions).values(version_id=made[3].id, found_at=MOMENT))
    for name in (NAMES[5], NAMES[6]):
        job_id = register_job(connection, this_process(), JobSpec(kind=JobKind.BACKUP, label=name, names=(name,)))
        ending = Ending(outcome=RunOutcome.FAILED, exit_status=7, error_class="SourceError", error=name)
        run_id = end_job(connection, job_id, ending)
        assert run_id is not None
        complete_run(connection, run_id, report=json.dumps({"name": name}, ensure_ascii=False))


def new_url(request: pytest.FixtureRequest, engine: str, directory: Path) -> Iterator[str]:
    """Yield the URL of an empty database; the file of SQLite is not created."""
    if engine == "sqlite":
        yield f"sqlite:///{directory}/copy/database.sqlite"
        return
    server = request.getfixturevalue(f"{engine}_server")
    url: str = server.new_database()
    yield url
    server.drop(url)


@pytest.fixture(scope="module", params=ENGINES)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Make a database that no test changes."""
    for url in new_url(request, request.param, tmp_path_factory.mktemp("source")):
        with closing(Database(url)) as database:
            create_file(database)
            with database.begin() as connection:
                create_tables(connection)
            with database.write() as connection:
                fill(connection)
        yield url


@pytest.fixture(params=ENGINES)
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    yield from new_url(request, request.param, tmp_path)


def contents(url: str) -> dict[str, list[Any]]:
    """Return all rows of a database, by table."""
    with closing(Database(url)) as database, database.read() as connection:
        return {
            table.name: sorted(map(tuple, connection.execute(select(table))), key=lambda row: row[:2])
            for table in metadata.sorted_tables
        }


def is_empty(url: str) -> bool:
    """Return whether a database has no tables; for SQLite, the file must not exist either."""
    database = Database(url)
    path = database.engine.url.database or ""
    if database.engine.dialect.name == "sqlite":
        return not any(os.path.exists(f"{path}{end}") for end in ("", "-wal", "-shm", "-journal"))
    with closing(database), database.read() as connection:
        return inspect(connection).get_table_names() == []


# Copies


def test_all_rows_are_copied(source: str, target: str) -> None:
    report = copy_database(source, target)
    assert report.rows == ROWS
    assert contents(target) == contents(source)


def test_the_copy_has_the_schema_of_the_program(source: str, target: str) -> None:
    copy_database(source, target)
    with closing(Database(target)) as database, database.read() as connection:
        assert differences(connection) == []
        assert references_add_up(connection)
    with closing(Database(target)) as database:
        database.check_revision()


def test_ids_of_new_rows_continue_after_the_copied_ones(source: str, target: str) -> None:
    copy_database(source, target)
    with closing(Database(target)) as database, database.write() as connection:
        added = insert_version(connection, version(10, "new"))
        blob_ids = list(insert_blobs(connection, [blob(1100)], MOMENT).values())
        page_id = commit_page(connection, added.id, PageNumber(0), new_entries(2, blob_ids[0]))
        insert_statistics_records(connection, [statistics(1, 1)])
        add_key_slot(connection, KeySlot(label="new", kdf="x", kdf_parameters="", key_check=b"", wrapped_key=b"",
                                         created_at=MOMENT))  # fmt: skip
        ended = Ending(outcome=RunOutcome.SUCCEEDED, exit_status=0)
        end_job(connection, register_job(connection, this_process(), spec("backup")), ended)
        highest = {
            name: connection.execute(select(func.max(metadata.tables[name].c.id))).scalar()
            for name in ("versions", "blobs", "pages", "tags", "stats", "key_slots", "runs")
        }
    assert (added.id, blob_ids, page_id) == (11, [1101], 4)
    assert highest == {"versions": 11, "blobs": 1101, "pages": 4, "tags": 11, "stats": 3, "key_slots": 3, "runs": 3}


def test_an_empty_repository_can_be_copied(target: str, tmp_path: Path) -> None:
    config = make_repository(tmp_path / "repository")
    source = f"sqlite:///{config.with_name('backyfs.sqlite')}"
    made = {"repository": 1, "key_slots": 1, "catalog_notes": 3}
    assert copy_database(source, target).rows == dict.fromkeys(ROWS, 0) | made
    with closing(Database(target)) as database, database.write() as connection:
        assert insert_version(connection, version(0, "first")).id == 1


def test_a_repository_works_with_its_copy(target: str, tmp_path: Path) -> None:
    config = make_repository(tmp_path / "repository")
    image = random_image(tmp_path / "image", 20 * BLOCK + 5)
    with opened(config) as repository:
        back_up(repository, image)
    source = f"sqlite:///{config.with_name('backyfs.sqlite')}"
    copy_database(source, target)
    config.write_text(config.read_text().replace(source, target))
    with opened(config) as repository:
        assert repository.database.place == Database(target).place
        assert back_up(repository, image).statistics.blocks_deduplicated == 21
        with repository.database.read() as connection:
            for number, found in enumerate(list_versions(connection)):
                restore(repository, found, f"{tmp_path}/restored{number}")
                assert (tmp_path / f"restored{number}").read_bytes() == image.read_bytes()


def test_dead_jobs_are_not_copied(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(silence, "WATCH_S", 1.0)
    config = make_repository(tmp_path / "repository")
    source = f"sqlite:///{config.with_name('backyfs.sqlite')}"
    with closing(Database(source)) as database, database.write() as connection:
        register_job(connection, this_process(), spec("backup"))
        connection.execute(update(jobs).values(heartbeat_at=MOMENT))
    copy_database(source, target)
    assert contents(target)["jobs"] == []


# Refusals


@pytest.mark.parametrize("table", ["other", "versions", "alembic_version"])
def test_a_database_that_is_not_empty_is_refused_and_not_changed(source: str, target: str, table: str) -> None:
    with closing(Database(target)) as database:
        path = database.engine.url.database or ""
        if database.engine.dialect.name == "sqlite":
            os.mkdir(os.path.dirname(path))
        with database.begin() as connection:
            connection.execute(text(f"CREATE TABLE {table} (x INTEGER)"))
            connection.execute(text(f"INSERT INTO {table} VALUES (7)"))
    before = file_bytes(path)
    with pytest.raises(SchemaError, match=r"already contains tables; name an empty database$"):
        copy_database(source, target)
    assert file_bytes(path) == before
    with closing(Database(target)) as database, database.read() as connection:
        assert inspect(connection).get_table_names() == [table]
        assert connection.execute(text(f"SELECT x FROM {table}")).scalars().all() == [7]


def file_bytes(path: str) -> bytes | None:
    """Return the bytes of an SQLite file; None for other databases."""
    if not os.path.exists(path):
        return None
    with open(path, "rb") as file:
        return file.read()


def test_an_empty_file_counts_as_an_empty_database(source: str, tmp_path: Path) -> None:
    path = tmp_path / "empty.sqlite"
    path.touch()
    copy_database(source, f"sqlite:///{path}")
    assert contents(f"sqlite:///{path}") == contents(source)


def test_a_file_that_is_not_a_database_is_refused_and_not_changed(source: str, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(b"not a database\n" * 100)
    with pytest.raises(DatabaseError, match="file is not a database"):
        copy_database(source, f"sqlite:///{path}")
    assert path.read_bytes() == b"not a database\n" * 100


def test_a_job_on_the_source_prevents_the_copy_and_is_named(source: str, target: str) -> None:
    with closing(Database(source)) as database:
        with database.write() as connection:
            job_id = register_job(connection, this_process(), spec("backup /dev/vda"))
        try:
            with pytest.raises(JobsRunningError, match=r"is in use by backup /dev/vda \(process \d+ on "):
                copy_database(source, target)
        finally:
            with database.write() as connection:
                remove_job(connection, job_id)
    assert is_empty(target)


@pytest.mark.parametrize("error", [DatabaseError("broken"), KeyboardInterrupt()])
def test_a_copy_that_fails_halfway_leaves_the_target_empty(
    source: str, target: str, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail_after_blobs(reading: Any, writing: Any, table: Any) -> tuple[int, bytes]:
        copied = copy_rows(reading, writing, table)
        if table is version_pages:
            raise error
        return copied

    monkeypatch.setattr(database_copy, "copy_rows", fail_after_blobs)
    before = contents(source)
    with pytest.raises(type(error)) as caught:
        copy_database(source, target)
    assert caught.value is error
    assert is_empty(target)
    monkeypatch.undo()
    assert contents(source) == before
    copy_database(source, target)
    assert contents(target) == before


@pytest.mark.parametrize(
    "change", ["UPDATE blobs SET size = size + 1 WHERE id = 600", "DELETE FROM blobs WHERE id = 1090"]
)
def test_a_copy_that_differs_is_detected_and_removed(
    source: str, target: str, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    def damage_blobs(reading: Any, writing: Any, table: Any) -> tuple[int, bytes]:
        copied = copy_rows(reading, writing, table)
        if table is blobs:
            writing.execute(text(change))
        return copied

    monkeypatch.setattr(database_copy, "copy_rows", damage_blobs)
    with pytest.raises(DatabaseError, match=r"^the copy of blobs differs from its original: \d+ rows instead of 1100$"):
        copy_database(source, target)
    assert is_empty(target)


def test_a_database_is_not_copied_to_itself(source: str) -> None:
    before = contents(source)
    with pytest.raises(UsageError, match=r"is named twice; name an empty database to copy to$"):
        copy_database(source, source)
    assert contents(source) == before


@pytest.mark.parametrize("alias", ["{directory}/../repository/backyfs.sqlite", "{directory}/link.sqlite"])
def test_a_file_is_not_copied_to_itself_under_another_name(tmp_path: Path, alias: str) -> None:
    directory = make_repository(tmp_path / "repository").parent
    (directory / "link.sqlite").symlink_to("backyfs.sqlite")
    with pytest.raises(UsageError, match="is named twice"):
        copy_database(f"sqlite:///{directory}/backyfs.sqlite", f"sqlite:///{alias.format(directory=directory)}")


def test_a_source_that_is_not_a_repository_is_refused(target: str, tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="holds no repository"):
        copy_database(f"sqlite:///{tmp_path}/nothing.sqlite", target)
    assert is_empty(target)
    assert not (tmp_path / "nothing.sqlite").exists()


def test_a_target_that_cannot_be_created_is_a_database_error(source: str) -> None:
    with pytest.raises(DatabaseError, match=r"^database file /dev/null/x/copy\.sqlite cannot be created"):
        copy_database(source, "sqlite:////dev/null/x/copy.sqlite")


def test_the_report_shows_no_password(source: str, tmp_path: Path) -> None:
    report = copy_database(source, f"sqlite:///{tmp_path}/new/copy.sqlite")
    assert report.target == f"{tmp_path}/new/copy.sqlite"
    assert report.source == Database(source).place
    assert oct(os.stat(report.target).st_mode & 0o777) == "0o600"
