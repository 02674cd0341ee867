"""Export and import: what is kept, what is refused, and that a refusal leaves nothing behind."""

from __future__ import annotations

import io
import os
import re
import shutil
import threading
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import insert, select, update

from backyfs import keys
from backyfs.cli.main import run
from backyfs.engine.transfer.export import export_for_backy2, export_versions
from backyfs.engine.transfer.export_format import ExportHeader, ExportWriter, PageRecord, SharedPageRecord, read_export
from backyfs.engine.transfer.importing import import_versions
from backyfs.errors import (
    ExportFormatError,
    JobsRunningError,
    KeyMaterialError,
    MissingKeyError,
    UsageError,
    VersionExistsError,
    VersionNotFoundError,
    WrongKeyError,
)
from backyfs.metadata.db.tables import blobs, metadata, pages, tags, versions
from backyfs.metadata.maps.blockmap import ABSENT, HOLE, commit_page, load_page, new_entries
from backyfs.metadata.records.identity import list_key_slots, load_identity, load_key_date
from backyfs.metadata.records.jobs import register_job
from backyfs.metadata.records.processes import this_process
from backyfs.metadata.records.stats import list_statistics
from backyfs.metadata.records.versions import create_version, list_versions
from backyfs.model import BlobRecord, PageNumber, StatisticsRecord, VersionRecord, VersionStatus
from tests.support.audit import audit, doom, versions_of
from tests.support.images import random_bytes, random_image, sparse_image
from tests.support.jobs import spec
from tests.support.repositories import BLOCK, back_up, make_repository, opened, restored
from tests.support.stored import incomplete_copy, remove_version

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from backyfs.engine.transfer.export_format import Record
    from backyfs.engine.transfer.importing import ImportReport
    from backyfs.model import KeySlot, Version
    from backyfs.repository import Repository

pytestmark = pytest.mark.slow

SMALL = 5 * BLOCK + 7


@dataclass(frozen=True, slots=True)
class Twins:
    """One repository with two databases, of which the second is from before the first backup."""

    source: Repository
    target: Repository
    key: bytes | None


def copy_of(config: Path, name: str) -> Path:
    """Copy the database of a repository; return a configuration that names the copy."""
    shutil.copyfile(config.with_name("backyfs.sqlite"), config.with_name(f"{name}.sqlite"))
    copied = config.with_name(f"{name}.cfg")
    copied.write_text(config.read_text().replace("backyfs.sqlite", f"{name}.sqlite"))
    return copied


def readable_by_backy2(config: Path) -> Path:
    """Make new blobs use the newest encryption version that backy2 knows."""
    config.write_text(re.sub(r"(?m)^encryption_version: [^0].*", "encryption_version: 1", config.read_text()))
    return config


def key_of(config: Path) -> bytes | None:
    file = config.with_name("backyfs.key")
    return bytes.fromhex(file.read_text()) if file.exists() else None


@pytest.fixture(params=[True, False], ids=["encrypted", "plain"])
def twins(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Twins]:
    config = readable_by_backy2(make_repository(tmp_path / "repository", encrypted=request.param))
    other = copy_of(config, "twin")
    with opened(config) as source, opened(other) as target:
        yield Twins(source, target, key_of(config))


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Repository]:
    """Make another repository, encrypted with its own key."""
    with opened(make_repository(tmp_path / "other")) as repository:
        yield repository


def exported(repository: Repository, *chosen: Version) -> io.BytesIO:
    """Export versions, by default all."""
    with repository.database.read() as connection:
        wanted = chosen or list_versions(connection)
    file = io.BytesIO()
    export_versions(repository, wanted, file)
    file.seek(0)
    return file


def take(twins: Twins, file: io.BytesIO) -> ImportReport:
    return import_versions(twins.target, file, configured_key=twins.key)


def rewritten(file: io.BytesIO, change: Callable[[Any], Record | None]) -> io.BytesIO:
    """Return an export with `change` applied to each record; None drops a record."""
    header, *records = (change(record) for record in read_export(file))
    assert isinstance(header, ExportHeader)
    changed = io.BytesIO()
    writer = ExportWriter(changed, header)
    for record in records:
        if record is not None:
            writer.write(record)
    writer.end()
    changed.seek(0)
    return changed


def rows(repository: Repository) -> dict[str, list[Any]]:
    """Return all rows of all tables."""
    with repository.database.read() as connection:
        return {table.name: list(connection.execute(select(table))) for table in metadata.sorted_tables}


def refuse(twins: Twins, file: io.BytesIO, error: type[Exception], words: str) -> None:
    """Fail unless an import is refused and changes nothing."""
    before = rows(twins.target)
    with pytest.raises(error, match=words):
        take(twins, file)
    assert rows(twins.target) == before


# Successful imports


@pytest.mark.parametrize("size", [0, 1, SMALL, 1024 * BLOCK, 1030 * BLOCK + 1])
def test_an_imported_version_restores_to_the_same_bytes(twins: Twins, tmp_path: Path, size: int) -> None:
    image = random_image(tmp_path / "image", size)
    version = back_up(twins.source, image).version
    report = take(twins, exported(twins.source, version))
    assert ([record.uid for record in report.versions], report.unverifiable) == ([version.uid], 0)
    [found] = versions_of(twins.target)
    assert restored(twins.target, found, tmp_path) == image.read_bytes()
    audit(twins.target)


def test_holes_are_imported_as_holes(twins: Twins, tmp_path: Path) -> None:
    size = 3000 * BLOCK + 100
    image = sparse_image(tmp_path / "image", size, {BLOCK: random_bytes(BLOCK), 2500 * BLOCK: random_bytes(9)})
    version = back_up(twins.source, image).version
    take(twins, exported(twins.source, version))
    assert restored(twins.target, versions_of(twins.target)[0], tmp_path) == image.read_bytes()
    assert len(rows(twins.target)["version_pages"]) == 2
    audit(twins.target)


def test_all_facts_about_a_version_are_kept(twins: Twins, tmp_path: Path) -> None:
    back_up(twins.source, random_image(tmp_path / "image", SMALL), "disk")
    odd = {
        "name": 'a,b "c"\nü\N{FLOPPY DISK}',
        "snapshot_name": " snap ",
        "created_at": datetime(2019, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC),
        "expire_at": datetime(2031, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
        "protected": True,
        "status": VersionStatus.INVALID.value,
    }
    with twins.source.database.write() as connection:
        connection.execute(update(versions).values(odd))
        version_id = connection.execute(select(versions.c.id)).scalar_one()
        connection.execute(insert(tags), [{"version_id": version_id, "name": name} for name in ("b_daily", "Ä ")])
        connection.execute(update(blobs).where(blobs.c.id == 2).values(valid=False))
    take(twins, exported(twins.source))
    [before], [after] = versions_of(twins.source), versions_of(twins.target)
    assert replace(after, id=before.id) == before
    assert (after.tags, after.protected, after.status) == (("b_daily", "Ä "), True, VersionStatus.INVALID)
    assert after.expire_at == odd["expire_at"]


def test_blobs_keep_all_facts(twins: Twins, tmp_path: Path) -> None:
    back_up(twins.source, random_image(tmp_path / "image", SMALL))
    with twins.source.database.write() as connection:
        odd = {"valid": False, "stored_size": None, "fingerprint": None}  # damaged, so it need not be verifiable
        connection.execute(update(blobs).where(blobs.c.id == 2).values(odd))
    take(twins, exported(twins.source))
    columns = ("uid", "fingerprint", "size", "stored_size", "encryption_version", "wrapped_key", "valid")
    facts = [
        {tuple(row._mapping[name] for name in columns) for row in rows(repository)["blobs"]}
        for repository in (twins.source, twins.target)
    ]
    assert len(facts[0]) == 6
    assert facts[0] == facts[1]


def test_statistics_are_kept(twins: Twins, tmp_path: Path) -> None:
    version = back_up(twins.source, random_image(tmp_path / "image", SMALL)).version
    take(twins, exported(twins.source))
    found = []
    for repository in (twins.source, twins.target):
        with repository.database.read() as connection:
            found.append(list_statistics(connection, version.uid))
    assert found[0] == found[1]
    assert [record.blocks_written for record in found[1]] == [6]


def test_statistics_that_outlived_their_version_are_not_doubled(twins: Twins, tmp_path: Path) -> None:
    version = back_up(twins.source, random_image(tmp_path / "image", SMALL)).version
    file = exported(twins.source)
    take(twins, exported(twins.source))
    remove_version(twins.target, version.uid)
    with twins.target.database.write() as connection:
        connection.execute(update(pages).values(refs=0))
    take(twins, file)
    assert len(rows(twins.target)["stats"]) == 1
    audit(twins.target)


def test_all_versions_are_imported_and_shared_pages_once(twins: Twins, tmp_path: Path) -> None:
    image = random_image(tmp_path / "image", 2050 * BLOCK)
    back_up(twins.source, image, "one")
    back_up(twins.source, image, "two")
    with image.open("r+b") as file:
        file.write(b"changed")
    back_up(twins.source, image, "three")
    everything = exported(twins.source)
    records = list(read_export(everything))
    assert sum(isinstance(record, SharedPageRecord) for record in records) == 5
    assert sum(isinstance(record, PageRecord) for record in records) == 4
    assert sum(isinstance(record, BlobRecord) for record in records) == 2051
    take(twins, everything)
    assert sorted(row.refs for row in rows(twins.target)["pages"]) == [1, 2, 3, 3]
    for version in versions_of(twins.target):
        found = restored(twins.target, version, tmp_path)
        assert (found == image.read_bytes()) is (version.name == "three")
    audit(twins.target)


def test_versions_imported_one_by_one_share_blobs_and_pages(twins: Twins, tmp_path: Path) -> None:
    image = random_image(tmp_path / "image", 1025 * BLOCK)
    exports = [exported(twins.source, back_up(twins.source, image, name).version) for name in ("one", "two")]
    for file in exports:
        take(twins, file)
    assert len(rows(twins.target)["blobs"]) == 1025
    assert sorted(row.refs for row in rows(twins.target)["pages"]) == [2, 2]
    audit(twins.target)


def test_a_removed_version_can_be_imported_again(twins: Twins, tmp_path: Path) -> None:
    image = random_image(tmp_path / "image", SMALL)
    version = back_up(twins.source, image).version
    file = exported(twins.source)
    remove_version(twins.source, version.uid)
    with twins.source.database.write() as connection:
        connection.execute(update(pages).values(refs=0))
    import_versions(twins.source, file, configured_key=twins.key)
    [found] = versions_of(twins.source)
    assert restored(twins.source, found, tmp_path) == image.read_bytes()
    assert len(rows(twins.source)["blobs"]) == 6
    audit(twins.source)


def test_imported_blobs_are_found_by_deduplication(twins: Twins, tmp_path: Path) -> None:
    image = random_image(tmp_path / "image", SMALL)
    back_up(twins.source, image)
    take(twins, exported(twins.source))
    assert back_up(twins.target, image).statistics.blocks_deduplicated == 6
    audit(twins.target)


@pytest.mark.parametrize("form", ["backyfs", "backy2"])
def test_an_incomplete_version_distinguishes_absent_blocks_from_holes(twins: Twins, tmp_path: Path, form: str) -> None:
    image = sparse_image(tmp_path / "image", 4 * BLOCK, {0: random_bytes(BLOCK), 3 * BLOCK: random_bytes(BLOCK)})
    version = back_up(twins.source, image).version
    incomplete = incomplete_copy(twins.source, version, [1, 3])
    file = exported(twins.source, incomplete)
    if form == "backy2":
        file = io.BytesIO()
        export_for_backy2(twins.source, incomplete, file, configured_key=twins.key)
    take(twins, file)
    [found] = versions_of(twins.target)
    assert found.status is VersionStatus.INCOMPLETE
    with twins.target.database.read() as connection:
        entries = load_page(connection, found.id, PageNumber(0))
    assert entries is not None
    assert [min(entry, 1) for entry in entries] == [1, ABSENT, HOLE, ABSENT]
    audit(twins.target)


def test_an_incomplete_version_distinguishes_absent_pages_from_pages_of_holes(twins: Twins) -> None:
    with twins.source.database.write() as connection:
        version = create_version(
            connection, name="disk", snapshot_name="", size_bytes=2048 * BLOCK, created_at=datetime.now(UTC)
        )
        commit_page(connection, version.id, PageNumber(1), new_entries(1024, HOLE), keep_holes=True)
    take(twins, exported(twins.source))
    [found] = versions_of(twins.target)
    with twins.target.database.read() as connection:
        assert load_page(connection, found.id, PageNumber(0)) is None
        assert load_page(connection, found.id, PageNumber(1)) == new_entries(1024, HOLE)


def test_an_export_can_be_read_from_a_pipe(twins: Twins, tmp_path: Path) -> None:
    image = random_image(tmp_path / "image", 1030 * BLOCK)
    back_up(twins.source, image)
    data = exported(twins.source).getvalue()
    reader, writer = os.pipe()

    def fill() -> None:
        with open(writer, "wb") as file:
            file.write(data)

    thread = threading.Thread(target=fill)
    thread.start()
    with open(reader, "rb") as file:
        import_versions(twins.target, file, configured_key=twins.key)
    thread.join()
    assert restored(twins.target, versions_of(twins.target)[0], tmp_path) == image.read_bytes()


def test_an_export_without_versions_can_be_imported(twins: Twins) -> None:
    assert take(twins, exported(twins.source)).versions == ()


def test_a_version_removed_in_the_meantime_is_not_exported(twins: Twins, tmp_path: Path) -> None:
    version = back_up(twins.source, random_image(tmp_path / "image", SMALL)).version
    remove_version(twins.source, version.uid)
    with pytest.raises(VersionNotFoundError, match=rf"^version {version.uid} \(disk\) was removed in the meantime"):
        exported(twins.source, version)
    with pytest.raises(VersionNotFoundError):
        export_for_backy2(twins.source, version, io.BytesIO(), configured_key=twins.key)


def test_a_version_is_exported_in_its_current_state(twins: Twins, tmp_path: Path) -> None:
    version = back_up(twins.source, random_image(tmp_path / "image", SMALL)).version
    _, record, *_ = read_export(exported(twins.source, replace(version, status=VersionStatus.INCOMPLETE, name="x")))
    assert isinstance(record, VersionRecord)
    assert (record.status, record.name) == (VersionStatus.VALID, "disk")


# Refused imports


def test_an_existing_version_is_refused(twins: Twins, tmp_path: Path) -> None:
    back_up(twins.source, random_image(tmp_path / "image", SMALL))
    take(twins, exported(twins.source))
    refuse(twins, exported(twins.source), VersionExistsError, r"\(disk\) exists already; nothing was imported$")


def test_an_existing_version_prevents_the_import_of_the_others_in_the_file(twins: Twins, tmp_path: Path) -> None:
    image = random_image(tmp_path / "image", SMALL)
    back_up(twins.source, image, "a")
    take(twins, exported(twins.source, back_up(twins.source, image, "z").version))
    refuse(twins, exported(twins.source), VersionExistsError, r"\(z\) exists already")


def test_a_truncated_file_leaves_nothing_behind(twins: Twins, tmp_path: Path) -> None:
    back_up(twins.source, random_image(tmp_path / "image", SMALL))
    back_up(twins.source, random_image(tmp_path / "image", SMALL, 1))
    data = exported(twins.source).getvalue()
    refuse(twins, io.BytesIO(data[:-1]), ExportFormatError, "^the export is truncated")
    refuse(twins, io.BytesIO(data + b"x"), ExportFormatError, "^the export has something after its end$")


@pytest.mark.parametrize("data", [b"", b"x", b"backy2", b"SQLite format 3\0", b"backy2 Version "])
def test_other_files_are_refused(twins: Twins, data: bytes) -> None:
    refuse(twins, io.BytesIO(data), ExportFormatError, "^the file is not an export of backy")


def test_an_invalid_second_version_prevents_the_import_of_the_first(twins: Twins, tmp_path: Path) -> None:
    back_up(twins.source, random_image(tmp_path / "one", SMALL), "a")
    last = back_up(twins.source, random_image(tmp_path / "two", SMALL, 1), "b").version
    seen: list[str] = []

    def turn_last_page_round(record: Record) -> Record:
        if isinstance(record, VersionRecord):
            seen.append(record.uid)
        if isinstance(record, PageRecord) and seen[-1] == last.uid:
            return replace(record, entries=record.entries[::-1])
        return record

    file = rewritten(exported(twins.source), turn_last_page_round)
    refuse(twins, file, ExportFormatError, rf"^block 0 of version {last.uid} has no blob of 4096 bytes$")


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        (VersionRecord, {"size_bytes": SMALL + BLOCK}, "has 6 entries, which does not fit an image of"),
        (VersionRecord, {"size_bytes": SMALL - BLOCK}, "has 6 entries, which does not fit an image of"),
        (VersionRecord, {"size_bytes": SMALL - 1}, "block 5 of version .* has no blob of 6 bytes"),
        (VersionRecord, {"uid": ""}, "a version, is wrong: uid is '', which is not a uid of up to 36 characters"),
        (VersionRecord, {"uid": "a" * 37}, "a version, is wrong: .* is not a uid"),
        (VersionRecord, {"uid": "../../../etc/passwd"}, "a version, is wrong: .* is not a uid"),
        (VersionRecord, {"uid": "é"}, "a version, is wrong: .* is not a uid"),
        (VersionRecord, {"name": "x" * 2049}, "a version, is wrong: .* is not text of up to 2048"),
        (VersionRecord, {"snapshot_name": "x" * 2049}, "a version, is wrong: .* is not text of up to 2048"),
        (VersionRecord, {"tags": ("x" * 2049,)}, "a version, is wrong: .* is not text of up to 2048"),
        (VersionRecord, {"name": "a\0b"}, "a version, is wrong: .* is not text of up to 2048"),
        (VersionRecord, {"tags": ("a", "b", "a")}, "has a tag twice"),
        (StatisticsRecord, {"version_uid": "another"}, "statistics in a wrong place"),
        (StatisticsRecord, {"version_name": "x" * 2049}, "a statistics, is wrong: .* is not text of up to 2048"),
        (StatisticsRecord, {"version_name": "a\0b"}, "a statistics, is wrong: .* is not text of up to 2048"),
        (PageRecord, {"number": 1}, "page 1 of version .* has 6 entries"),
        (PageRecord, {"number": 2**62}, "a page, is wrong: number is 4611686018427387904, which is not a number"),
        (PageRecord, {"entries": ()}, "has 0 entries"),
        (PageRecord, {"entries": ("nosuchblob", 0, 0, 0, 0, 0)}, "block 0 of version .* has no blob of 4096 bytes"),
        (PageRecord, {"entries": (ABSENT, 0, 0, 0, 0, 0)}, "lacks blocks, but the version is valid"),
        (BlobRecord, {"size": BLOCK - 1}, "block 0 of version .* has no blob of 4096 bytes"),
        (BlobRecord, {"uid": "../../../evil"}, "a blob, is wrong: .* is not the uid of a block"),
        (BlobRecord, {"size": 2**31}, "a blob, is wrong: .*, which is not "),
        (BlobRecord, {"encryption_version": 2**15}, "a blob, is wrong: .*, which is not "),
        (BlobRecord, {"fingerprint": b"x" * 65}, "a blob, is wrong: .*, which is not "),
        (BlobRecord, {"wrapped_key": b"x" * 65}, "a blob, is wrong: .*, which is not "),
    ],
)
def test_an_impossible_record_is_refused(
    twins: Twins, tmp_path: Path, kind: type[Record], change: dict[str, Any], words: str
) -> None:
    back_up(twins.source, random_image(tmp_path / "image", SMALL))
    file = rewritten(
        exported(twins.source), lambda record: replace(record, **change) if isinstance(record, kind) else record
    )
    refuse(twins, file, ExportFormatError, words)


@pytest.mark.parametrize(
    ("order", "words"),
    [
        ("PV", "^the export has page 0 of a block map in a wrong place$"),
        ("SV", "^the export has statistics in a wrong place$"),
        ("VBPP", "^the export has page 0 of a block map in a wrong place$"),
        ("VBPR", "^the export has page 0 of a block map in a wrong place$"),
        ("VV", "^the export has version .* twice$"),
        ("VR", "^page 0 of version .* has -1 entries"),
        ("VBPr", "^page 1 of version .* has 1 entries"),
        ("VPB", "^block 0 of version .* has no blob of 1 bytes$"),
    ],
)
def test_records_in_an_impossible_order_are_refused(
    twins: Twins, tmp_path: Path, order: str, words: str
) -> None:
    back_up(twins.source, random_image(tmp_path / "image", 1))
    header, version, statistics, blob, page = read_export(exported(twins.source))
    assert isinstance(header, ExportHeader)
    assert isinstance(version, VersionRecord)
    assert isinstance(page, PageRecord)
    pieces: dict[str, Record] = {
        "V": version, "S": statistics, "B": blob, "P": page, "R": SharedPageRecord(PageNumber(0), 99),
        "r": SharedPageRecord(PageNumber(1), page.id or 0),
    }  # fmt: skip
    file = io.BytesIO()
    writer = ExportWriter(file, header)
    for letter in order:
        writer.write(pieces[letter])
    writer.end()
    refuse(twins, file, ExportFormatError, words)


def test_a_valid_version_does_not_share_a_page_with_absent_blocks(twins: Twins, tmp_path: Path) -> None:
    version = back_up(twins.source, random_image(tmp_path / "image", 2 * BLOCK)).version
    incomplete = incomplete_copy(twins.source, version, [1])
    file = rewritten(
        exported(twins.source, incomplete, version),
        lambda record: SharedPageRecord(record.number, 2) if isinstance(record, PageRecord) and record.id == 1
        else record,
    )  # fmt: skip
    refuse(twins, file, ExportFormatError, rf"^page 0 of version {version.uid} lacks blocks, but the version is valid$")


def test_a_doomed_blob_is_refused(twins: Twins, tmp_path: Path) -> None:
    image = random_image(tmp_path / "image", SMALL)
    take(twins, exported(twins.source, back_up(twins.source, image).version))
    second = back_up(twins.source, image, "second").version
    with twins.target.database.write() as connection:
        doom(connection, 3)
    refuse(twins, exported(twins.source, second), UsageError, r"^blob \w+ of the export is being deleted by a cleanup")


@pytest.mark.parametrize("change", [{"fingerprint": b"x" * 32}, {"size": 77}])
def test_a_blob_that_differs_from_ours_is_refused(twins: Twins, tmp_path: Path, change: dict[str, Any]) -> None:
    image = random_image(tmp_path / "image", SMALL)
    take(twins, exported(twins.source, back_up(twins.source, image).version))
    second = back_up(twins.source, image, "second").version
    with twins.target.database.write() as connection:
        connection.execute(update(blobs).where(blobs.c.id == 3).values(change))
    refuse(twins, exported(twins.source, second), UsageError, r"^blob \w+ holds another block here than")


def test_another_block_size_is_refused(twins: Twins, tmp_path: Path) -> None:
    back_up(twins.source, random_image(tmp_path / "image", SMALL))
    with opened(make_repository(tmp_path / "large", block_size=2 * BLOCK, encrypted=False)) as large:
        refuse(
            Twins(twins.source, large, twins.key), exported(twins.source), UsageError,
            r"^the export has blocks of 4096 bytes, but this repository has blocks of 8192; import it into a",
        )  # fmt: skip


def test_another_block_size_of_backy2_is_refused(twins: Twins, tmp_path: Path) -> None:
    version = back_up(twins.source, random_image(tmp_path / "image", SMALL)).version
    file = io.BytesIO()
    export_for_backy2(twins.source, version, file, configured_key=twins.key)
    with opened(make_repository(tmp_path / "large", block_size=2 * BLOCK, encrypted=False)) as large:
        refuse(Twins(twins.source, large, twins.key), file, ExportFormatError, "^the export has 6 blocks for")


# Exports of other repositories


@pytest.fixture
def empty(twins: Twins, tmp_path: Path) -> Iterator[Repository]:
    """Make an empty repository, which is encrypted if the exported one is."""
    with opened(make_repository(tmp_path / "other", encrypted=twins.key is not None)) as repository:
        yield repository


def test_an_empty_repository_becomes_the_exported_one(
    twins: Twins, empty: Repository, tmp_path: Path
) -> None:
    other = empty
    image = random_image(tmp_path / "image", SMALL)
    back_up(twins.source, image)
    import_versions(other, exported(twins.source), configured_key=twins.key)
    for load in (load_identity, list_key_slots):
        found: list[Any] = []
        for repository in (twins.source, other):
            with repository.database.read() as connection:
                found.append(load(connection))
        assert found[0] == found[1] or replace(found[0], created_at=found[1].created_at) == found[1]
    config = tmp_path / "repository" / "other.cfg"
    config.write_text((tmp_path / "repository" / "backyfs.cfg").read_text().replace(
        str(tmp_path / "repository" / "backyfs.sqlite"), str(tmp_path / "other" / "backyfs.sqlite")))  # fmt: skip
    with opened(config) as again:
        assert again.uid == twins.source.uid
        assert restored(again, versions_of(again)[0], tmp_path) == image.read_bytes()
        assert back_up(again, image).statistics.blocks_deduplicated == 6
        audit(again)


def test_a_repository_that_is_not_empty_keeps_its_identity(twins: Twins, other: Repository, tmp_path: Path) -> None:
    back_up(other, random_image(tmp_path / "image", SMALL))
    refuse(Twins(twins.source, other, twins.key), exported(twins.source), UsageError,
           rf"^the export is of repository {twins.source.uid}, but this is {other.uid} and not empty")  # fmt: skip


def test_a_repository_in_use_keeps_its_identity(twins: Twins, other: Repository) -> None:
    with other.database.write() as connection:
        register_job(connection, this_process(), spec("backup disk"))
    refuse(Twins(twins.source, other, twins.key), exported(twins.source), JobsRunningError, r"backup disk \(process")


@pytest.fixture
def encrypted(tmp_path: Path) -> Iterator[Twins]:
    """Make an encrypted repository with a backup, and another empty one."""
    config = make_repository(tmp_path / "encrypted")
    with opened(config) as source, opened(make_repository(tmp_path / "target")) as target:
        back_up(source, random_image(tmp_path / "image", SMALL))
        yield Twins(source, target, key_of(config))


def test_the_key_of_the_exported_repository_is_needed(encrypted: Twins) -> None:
    file = exported(encrypted.source)
    refuse(replace(encrypted, key=None), io.BytesIO(file.getvalue()), MissingKeyError, "^the export is of an encrypted")
    refuse(replace(encrypted, key=bytes(32)), file, WrongKeyError, "^the configured key .* is not the key of this")


def test_data_keys_that_the_key_does_not_open_are_refused(encrypted: Twins) -> None:
    foreign = keys.wrap_key(keys.new_key(), keys.new_key())
    file = rewritten(
        exported(encrypted.source),
        lambda record: replace(record, wrapped_key=foreign) if isinstance(record, BlobRecord) else record,
    )
    refuse(encrypted, file, WrongKeyError, r"^blob \w+ of the export has a data key that the key of this")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"uid": "x" * 37}, "^line 1 of the export is wrong: uid is 'x*'[.]*, which is not a uid of up to 36"),
        ({"uid": "é"}, "^line 1 of the export is wrong: uid is 'é', which is not a uid of up to 36"),
        ({"wrapped_fingerprint_key": bytes(40)}, "^the export has a fingerprint key that its own key does not open$"),
        ({"key_slots": ()}, "^the export is of an encrypted repository, but has no key slot of it$"),
    ],
)
def test_an_export_of_an_impossible_repository_is_refused(
    encrypted: Twins, change: dict[str, Any], words: str
) -> None:
    def with_change(record: Record) -> Record:
        if isinstance(record, ExportHeader) and record.repository is not None:
            return replace(record, repository=replace(record.repository, **change))
        return record

    file = rewritten(exported(encrypted.source), with_change)
    refuse(encrypted, file, ExportFormatError, words)


@pytest.mark.parametrize("name", ["md17", "", "shake_128"])
def test_an_export_with_an_unknown_hash_function_is_refused(encrypted: Twins, name: str) -> None:
    file = rewritten(
        exported(encrypted.source),
        lambda record: replace(record, hash_function=name) if isinstance(record, ExportHeader) else record,
    )
    refuse(encrypted, file, UsageError, rf"^the export has fingerprints of {name!r}, which this program does not know")


# Plain blocks


@pytest.fixture
def plain_export(tmp_path: Path) -> io.BytesIO:
    """Export a plain backup of `image` in backy2's format, with SHA-512; its blocks are in the storage of `target`."""
    with opened(make_repository(tmp_path / "plain", encrypted=False)) as plain:
        version = back_up(plain, random_image(tmp_path / "image", SMALL)).version
        file = io.BytesIO()
        export_for_backy2(plain, version, file, configured_key=None)
    return file


@pytest.fixture
def keyed(tmp_path: Path, plain_export: io.BytesIO) -> Iterator[Twins]:
    """Make a repository with keyed fingerprints and the plain blocks in its storage."""
    assert plain_export.getvalue()
    config = make_repository(tmp_path / "target")
    for file in (tmp_path / "plain" / "data").glob("*/*/*.blob"):
        target = tmp_path / "target" / "data" / file.relative_to(tmp_path / "plain" / "data")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    with opened(config) as repository:
        yield Twins(repository, repository, key_of(config))


def test_plain_blocks_get_fingerprints_keyed_by_the_repository(
    keyed: Twins, plain_export: io.BytesIO, tmp_path: Path
) -> None:
    assert take(keyed, plain_export).unverifiable == 0
    image = (tmp_path / "image").read_bytes()
    assert restored(keyed.target, versions_of(keyed.target)[0], tmp_path) == image
    ours = {keyed.target.blocks.fingerprint(image[at : at + BLOCK]) for at in range(0, SMALL, BLOCK)}
    assert {row.fingerprint for row in rows(keyed.target)["blobs"]} == ours
    assert back_up(keyed.target, tmp_path / "image").statistics.blocks_deduplicated == 6


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-1] + b"!"), "the storage holds other bytes than its"),
        (lambda file: file.unlink(), "is stored plain and missing from the storage"),
    ],
)
def test_plain_blocks_that_differ_from_the_export_are_refused(
    keyed: Twins, plain_export: io.BytesIO, tmp_path: Path, damage: Callable[[Path], object], words: str
) -> None:
    damage(min((tmp_path / "target" / "data").glob("*/*/*.blob")))
    refuse(keyed, plain_export, ExportFormatError, words)


@pytest.mark.parametrize(
    ("fingerprint", "words"),
    [(None, "is stored plain and has no fingerprint to check it by"), (b"x" * 31, "is of no hash function that this")],
)
def test_a_plain_block_without_a_checksum_is_refused(
    twins: Twins, tmp_path: Path, fingerprint: bytes | None, words: str
) -> None:
    back_up(twins.source, random_image(tmp_path / "image", SMALL))

    def made_plain(record: Record) -> Record:
        if not isinstance(record, BlobRecord):
            return record
        return replace(record, encryption_version=0, wrapped_key=None, fingerprint=fingerprint)

    refuse(twins, rewritten(exported(twins.source), made_plain), ExportFormatError, words)


def test_a_repository_with_a_key_does_not_become_an_unencrypted_one(tmp_path: Path) -> None:
    with (
        opened(make_repository(tmp_path / "plain", encrypted=False)) as plain,
        opened(make_repository(tmp_path / "target")) as target,
    ):
        back_up(plain, random_image(tmp_path / "image", SMALL))
        refuse(Twins(plain, target, bytes(32)), exported(plain), KeyMaterialError,
               r"which is not encrypted, but a key is configured; nothing was imported")  # fmt: skip


def without_slots(repository: Repository) -> io.BytesIO:
    """Export an encrypted repository and make it look like one of backy2.

    The configured key opens the wrapped key of the slot, just as it opens the key of a block of backy2.
    """
    slots: list[KeySlot] = []

    def as_of_backy2(record: Any) -> Record:
        if isinstance(record, ExportHeader):
            assert record.repository is not None
            slots.extend(record.repository.key_slots)
            return replace(record, repository=replace(record.repository, key_slots=(), wrapped_fingerprint_key=None))
        if isinstance(record, BlobRecord):
            return replace(record, wrapped_key=slots[0].wrapped_key)
        return record  # type: ignore[no-any-return]

    return rewritten(exported(repository), as_of_backy2)


def test_the_date_of_a_key_is_imported_with_its_repository(encrypted: Twins, tmp_path: Path) -> None:
    config = make_repository(tmp_path / "rotated")
    assert run(["-c", str(config), "migrate-encryption", "--all", "--reseal"]) == 0
    with opened(config) as target:
        take(Twins(encrypted.source, target, encrypted.key), without_slots(encrypted.source))
    shutil.copy(tmp_path / "encrypted" / "backyfs.key", tmp_path / "rotated" / "backyfs.key")
    with opened(config) as target, target.database.read() as connection:
        assert load_key_date(connection) is None


def test_an_export_that_makes_an_encrypted_repository_look_like_backy2_is_not_trusted_silently(
    encrypted: Twins, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    take(encrypted, without_slots(encrypted.source))
    caplog.clear()
    shutil.copy(tmp_path / "encrypted" / "backyfs.key", tmp_path / "target" / "backyfs.key")
    with opened(tmp_path / "target" / "backyfs.cfg") as found:
        assert found.blocks.keyring.repository_key == encrypted.key
        assert found.blocks.encryption_version != 0
    assert "nothing proves that the database was written with the key of this repository" in caplog.text


# Exports for backy2


@pytest.fixture
def for_backy2(twins: Twins, tmp_path: Path) -> io.BytesIO:
    """Export a backup of `image` in backy2's format."""
    version = back_up(twins.source, random_image(tmp_path / "image", SMALL)).version
    file = io.BytesIO()
    export_for_backy2(twins.source, version, file, configured_key=twins.key)
    return file


def test_an_export_for_backy2_is_imported_with_its_keys_but_not_its_checksums(
    twins: Twins, for_backy2: io.BytesIO, tmp_path: Path
) -> None:
    is_plain = twins.key is None
    assert take(twins, for_backy2).unverifiable == (0 if is_plain else 6)
    [found] = versions_of(twins.target)
    assert restored(twins.target, found, tmp_path) == (tmp_path / "image").read_bytes()
    # Nothing but the checksum vouches for a plain block.
    assert {len(row.fingerprint or b"") for row in rows(twins.target)["blobs"]} == {64 if is_plain else 0}
    audit(twins.target)


def test_an_export_for_backy2_changes_no_known_blob(twins: Twins, for_backy2: io.BytesIO) -> None:
    version = versions_of(twins.source)[0]
    before = rows(twins.source)["blobs"]
    remove_version(twins.source, version.uid)
    with twins.source.database.write() as connection:
        connection.execute(update(pages).values(refs=0))
    assert import_versions(twins.source, for_backy2, configured_key=twins.key).unverifiable == 0
    assert rows(twins.source)["blobs"] == before
    audit(twins.source)


def test_encrypted_blobs_of_backy2_need_their_original_key(tmp_path: Path) -> None:
    config = readable_by_backy2(make_repository(tmp_path / "encrypted"))
    with opened(config) as source, opened(make_repository(tmp_path / "plain", encrypted=False)) as plain:
        version = back_up(source, random_image(tmp_path / "image", SMALL)).version
        file = io.BytesIO()
        export_for_backy2(source, version, file, configured_key=key_of(config))
        data = file.getvalue()
        refuse(Twins(source, plain, None), io.BytesIO(data), MissingKeyError, r"^blob \w+ of the export is encrypted")
        refuse(Twins(source, plain, bytes(32)), io.BytesIO(data), WrongKeyError, "has a data key that")
        import_versions(plain, io.BytesIO(data), configured_key=key_of(config))
        assert rows(plain)["blobs"][0].wrapped_key is not None
