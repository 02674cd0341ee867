"""Re-encrypting blobs: versions do not change, nothing is lost, and it can be interrupted at any time."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select, update

from backyfs.blocks import PieceLoader, load_block
from backyfs.engine.restore.restore import restore
from backyfs.engine.secrets.migrate import MigrationRequest, migrate, plan_migration
from backyfs.errors import InterruptedByUser, MissingKeyError, ObjectMissingError, StorageError
from backyfs.metadata.db.tables import blobs
from backyfs.metadata.upkeep.migration import BlobCount, Outdated
from backyfs.model import Deduplication
from backyfs.work.run import Control
from tests.support.audit import count_jobs, expect_exact
from tests.support.images import random_image
from tests.support.jobs import stopping_after
from tests.support.repositories import BLOCK, back_up, configure, make_repository, opened
from tests.support.storages import with_watched_storage
from tests.support.stored import blob_of, blob_uids, file_of, flip_a_byte

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from backyfs.engine.secrets.migrate import MigrationReport
    from backyfs.model import Version
    from backyfs.repository import Repository

pytestmark = pytest.mark.slow

BLOCKS = 40


@pytest.mark.parametrize("to", [0, 1])
def test_a_block_without_fingerprint_gets_one(tmp_path: Path, to: int) -> None:
    image = random_image(tmp_path / "image", 3 * BLOCK)
    with opened(make_repository(tmp_path / "repository")) as repository:
        version = back_up(repository, image).version
        with repository.database.write() as connection:
            connection.execute(update(blobs).values(fingerprint=None))
        migrate(repository, MigrationRequest(versions=None, outdated=Outdated(to=to)))
        with repository.database.read() as connection:
            living = select(blobs.c.fingerprint).where(blobs.c.doomed_at.is_(None))
            fingerprints = set(connection.execute(living).scalars())
        block = image.read_bytes()[:BLOCK]
        assert repository.blocks.fingerprint(block) in fingerprints
        assert restore(repository, version, str(tmp_path / "restored"), replace=True).damaged == ()
        assert (tmp_path / "restored").read_bytes() == image.read_bytes()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Make a repository whose existing blocks are plain and whose new blocks are encrypted."""
    config = make_repository(tmp_path / "repository")
    configure(config, encryption_version=0)
    return config


@pytest.fixture
def plain(config: Path, tmp_path: Path) -> Version:
    with opened(config) as repository:
        version = back_up(repository, random_image(tmp_path / "image", BLOCKS * BLOCK - 77)).version
    configure(config, encryption_version=2)
    return version


@pytest.fixture
def repository(config: Path, plain: Version) -> Iterator[Repository]:
    with opened(config) as repository:
        yield repository


def run(
    repository: Repository,
    *versions: Version,
    to: int = 2,
    before: datetime | None = None,
    workers: int | None = None,
    **options: Any,
) -> MigrationReport:
    request = MigrationRequest(versions=versions or None, outdated=Outdated(to=to, before=before), workers=workers)
    return migrate(repository, request, **options)


def living(repository: Repository) -> dict[int, int]:
    """Count the blobs that are not doomed, by encryption version."""
    found: dict[int, int] = {}
    with repository.database.read() as connection:
        query = select(blobs.c.encryption_version).where(blobs.c.doomed_at.is_(None))
        for number in connection.execute(query).scalars():
            found[number] = found.get(number, 0) + 1
    return found


def test_all_blobs_are_sealed_again_and_versions_do_not_change(
    repository: Repository, plain: Version, tmp_path: Path
) -> None:
    report = run(repository)
    assert (report.blobs, report.merged, report.damaged) == (BLOCKS, 0, {})
    assert report.bytes == plain.size_bytes
    assert report.plan.counts == (BlobCount(encryption_version=0, blobs=BLOCKS, bytes=plain.size_bytes),)
    assert living(repository) == {2: BLOCKS}
    expect_exact(repository, plain, tmp_path / "image")
    assert count_jobs(repository) == 0


def test_migrated_blobs_are_not_migrated_again(repository: Repository, plain: Version) -> None:
    run(repository, plain)
    assert plan_migration(repository, MigrationRequest(versions=None, outdated=Outdated(to=2))).counts == ()
    assert run(repository).blobs == 0


def test_old_objects_are_kept_until_a_cleanup(repository: Repository, plain: Version) -> None:
    before = set(blob_uids(repository.blocks.storage))
    run(repository)
    assert before < set(blob_uids(repository.blocks.storage))
    with repository.database.read() as connection:
        doomed = set(connection.execute(select(blobs.c.uid).where(blobs.c.doomed_at.is_not(None))).scalars())
    assert doomed == before


def test_only_blobs_of_the_named_versions_are_migrated(repository: Repository, plain: Version, tmp_path: Path) -> None:
    configured = replace(repository, blocks=replace(repository.blocks, encryption_version=0))
    other_image = random_image(tmp_path / "other", 3 * BLOCK, 5)
    other = back_up(configured, other_image, "other").version
    assert run(repository, other).blobs == 3
    assert living(repository) == {0: BLOCKS, 2: 3}
    expect_exact(repository, other, other_image)
    expect_exact(repository, plain, tmp_path / "image")


@pytest.mark.parametrize("to", [0, 1, 2])
def test_blobs_can_be_migrated_to_any_encryption_version_and_back(
    repository: Repository, plain: Version, tmp_path: Path, to: int
) -> None:
    run(repository, to=to)
    assert living(repository) == {to: BLOCKS}
    expect_exact(repository, plain, tmp_path / "image")
    run(repository, to=1)
    expect_exact(repository, plain, tmp_path / "image")


def test_a_blob_whose_bytes_are_already_sealed_as_wanted_is_merged(
    repository: Repository, plain: Version, tmp_path: Path
) -> None:
    own_blobs = replace(repository, deduplication=Deduplication.SAME_VERSION)
    image = tmp_path / "image"
    same = back_up(own_blobs, image, "again").version
    assert living(repository) == {0: BLOCKS, 2: BLOCKS}
    report = run(repository)
    assert (report.blobs, report.merged) == (0, BLOCKS)
    assert blob_of(repository, plain, 3).id == blob_of(repository, same, 3).id
    expect_exact(repository, plain, image)
    expect_exact(repository, same, image)


def test_blobs_with_the_same_bytes_are_sealed_once(repository: Repository, plain: Version, tmp_path: Path) -> None:
    doubled = replace(
        repository, deduplication=Deduplication.OFF, blocks=replace(repository.blocks, encryption_version=0)
    )
    image = tmp_path / "image"
    same = back_up(doubled, image, "again").version
    assert living(repository) == {0: 2 * BLOCKS}
    report = run(repository)
    assert (report.blobs, report.merged) == (BLOCKS, BLOCKS)
    for version in (plain, same):
        expect_exact(repository, version, image)
    assert blob_of(repository, plain, 3).id == blob_of(repository, same, 3).id


def test_blobs_sealed_before_a_date_get_new_data_keys(
    repository: Repository, plain: Version, tmp_path: Path
) -> None:
    run(repository)
    blob = blob_of(repository, plain, 0)
    moment = datetime.now(UTC)
    with repository.database.write() as connection:
        connection.execute(update(blobs).where(blobs.c.id != blob.id).values(created_at=moment + timedelta(hours=1)))
    assert run(repository, before=moment).blobs == 1
    resealed = blob_of(repository, plain, 0)
    assert resealed.id == blob.id
    assert resealed.uid != blob.uid
    keyring = repository.blocks.keyring
    assert keyring.unwrap(resealed.wrapped_key) != keyring.unwrap(blob.wrapped_key)
    assert run(repository, before=moment).blobs == 0
    expect_exact(repository, plain, tmp_path / "image")


@pytest.mark.parametrize("how", ["flipped", "missing"])
def test_a_damaged_blob_is_reported_and_kept(repository: Repository, plain: Version, how: str) -> None:
    blob = blob_of(repository, plain, 7)
    path = file_of(repository, blob)
    if how == "flipped":
        flip_a_byte(path)
    else:
        path.unlink()
    report = run(repository)
    assert list(report.damaged) == [blob.uid]
    assert report.damaged[blob.uid].__traceback__ is None  # whose frames contain the block
    assert report.blobs == BLOCKS - 1
    assert blob_of(repository, plain, 7) == blob
    assert living(repository) == {0: 1, 2: BLOCKS - 1}


def test_an_interrupted_migration_keeps_its_results_and_can_be_continued(
    repository: Repository, plain: Version, tmp_path: Path
) -> None:
    with pytest.raises(InterruptedByUser, match="run the command again"):
        run(repository, control=Control(stop=stopping_after(10)), workers=1)
    done = living(repository).get(2, 0)
    assert run(repository).blobs == BLOCKS - done
    expect_exact(repository, plain, tmp_path / "image")


def test_blobs_sealed_before_a_storage_failure_are_kept(
    repository: Repository, plain: Version, tmp_path: Path
) -> None:
    class Full:
        """A storage that has room for five objects."""

        room = 5

        def __getattr__(self, name: str) -> Any:
            return getattr(repository.blocks.storage, name)

        def put(self, uid: Any, parts: Any) -> int:
            if self.room == 0:
                raise StorageError("the disk is full")
            self.room -= 1
            return repository.blocks.storage.put(uid, parts)

    full: Any = Full()
    failing = replace(repository, blocks=replace(repository.blocks, storage=full))
    with pytest.raises(StorageError, match="full"):
        run(failing, workers=1)
    assert living(repository)[2] == 5
    assert run(repository).blobs == BLOCKS - 5
    expect_exact(repository, plain, tmp_path / "image")


def test_a_reader_with_old_rows_finds_resealed_blocks(
    repository: Repository, plain: Version, tmp_path: Path
) -> None:
    image = (tmp_path / "image").read_bytes()
    before = [blob_of(repository, plain, index) for index in (0, 5)]
    run(repository)
    for blob in before:
        file_of(repository, blob).unlink()  # as a cleanup does
    assert load_block(repository.blocks, before[0]) == image[:BLOCK]
    assert PieceLoader(repository.blocks).load(before[1], range(1)) == [image[5 * BLOCK : 6 * BLOCK]]


def test_a_missing_block_that_was_not_resealed_is_reported_missing(repository: Repository, plain: Version) -> None:
    blob = blob_of(repository, plain, 0)
    file_of(repository, blob).unlink()
    with pytest.raises(ObjectMissingError):
        load_block(repository.blocks, blob)
    with pytest.raises(ObjectMissingError):
        PieceLoader(repository.blocks).load(blob, range(1))


def test_two_simultaneous_migrations_seal_each_blob_once(
    repository: Repository, plain: Version, tmp_path: Path
) -> None:
    inner: list[MigrationReport] = []

    def migrate_too() -> None:
        if not inner:  # the first one has stored its objects but not changed its rows
            inner.append(run(repository))

    outer = run(with_watched_storage(repository, migrate_too, "flush"))
    assert inner[0].blobs + outer.blobs == BLOCKS
    assert living(repository) == {2: BLOCKS}
    expect_exact(repository, plain, tmp_path / "image")


def test_without_a_key_nothing_is_changed(tmp_path: Path) -> None:
    config = make_repository(tmp_path / "plain", encrypted=False)
    image = random_image(tmp_path / "image", 3 * BLOCK)
    with opened(config) as repository:
        version = back_up(repository, image).version
        with pytest.raises(MissingKeyError):
            run(repository)
        assert living(repository) == {0: 3}
        expect_exact(repository, version, image)
