"""An obstacle in the place of an object is damage to that object; every command continues with the rest."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import update

from backyfs.engine.catalog.publish import publish
from backyfs.engine.catalog.recover import Loss, open_catalog, recover
from backyfs.engine.damage.scrub import ScrubRequest, scrub
from backyfs.engine.restore.restore import restore
from backyfs.engine.secrets.migrate import MigrationRequest, migrate
from backyfs.engine.space.cleanup import cleanup
from backyfs.engine.space.fullcleanup import full_cleanup
from backyfs.errors import CatalogError, OddValueError, StorageError
from backyfs.keys.slots import Secret
from backyfs.metadata.db.database import Database
from backyfs.metadata.db.tables import blobs
from backyfs.metadata.records.versions import version_with_uid
from backyfs.metadata.upkeep.migration import Outdated
from backyfs.model import VersionStatus
from tests.support.images import random_image
from tests.support.obstacles import OBSTACLES, put_in_place
from tests.support.repositories import BLOCK, back_up
from tests.support.stored import blob_of, file_of
from tests.unit.test_cleanup import objects, remove

if TYPE_CHECKING:
    from pathlib import Path

    from backyfs.model import Version
    from backyfs.repository import Repository

pytestmark = pytest.mark.slow

BLOCKS = 4


@pytest.fixture
def version(repository: Repository, tmp_path: Path) -> Version:
    return back_up(repository, random_image(tmp_path / "image", BLOCKS * BLOCK)).version


@pytest.fixture(params=sorted(OBSTACLES))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def obstruct(repository: Repository, version: Version, kind: str) -> None:
    """Put an obstacle in the place of the object of the second block."""
    put_in_place(file_of(repository, blob_of(repository, version, 1)), kind)


def is_valid(repository: Repository, version: Version) -> bool:
    with repository.database.read() as connection:
        found = version_with_uid(connection, version.uid)
    assert found is not None
    return found.status is VersionStatus.VALID


def test_scrub_marks_the_block_and_checks_the_others(repository: Repository, version: Version, kind: str) -> None:
    obstruct(repository, version, kind)
    ranges: list[tuple[int, int]] = []
    report = scrub(
        repository,
        ScrubRequest(versions=None),
        on_damage=lambda _version, damage: ranges.append((damage.start, damage.stop)),
    )
    assert (report.blobs_checked, report.blobs_damaged) == (BLOCKS, 1)
    assert ranges == [(BLOCK, 2 * BLOCK)]
    assert not is_valid(repository, version)


@pytest.mark.parametrize("uid", ["../../../evil", "a/b"])
def test_an_impossible_uid_is_damage_to_its_block(repository: Repository, version: Version, uid: str) -> None:
    blob = blob_of(repository, version, 1)
    with repository.database.write() as connection:
        connection.execute(update(blobs).where(blobs.c.id == blob.id).values(uid=uid))
    report = scrub(repository, ScrubRequest(versions=None))
    assert (report.blobs_checked, report.blobs_damaged) == (BLOCKS - 1, 1)


def test_a_uid_that_is_a_path_does_not_read_or_delete_files_elsewhere(
    repository: Repository, version: Version, tmp_path: Path
) -> None:
    """The block at that path is intact, so reading it would succeed."""
    blob = blob_of(repository, version, 1)
    there = tmp_path / "there.blob"
    file_of(repository, blob).rename(there)
    assert tmp_path == (tmp_path / "repository/data/..////..//there").resolve().parent
    with repository.database.write() as connection:
        connection.execute(update(blobs).where(blobs.c.id == blob.id).values(uid="..//there"))
    assert scrub(repository, ScrubRequest(versions=None)).blobs_damaged == 1
    report = restore(repository, version, str(tmp_path / "restored"))
    assert [(damage.start, damage.stop) for damage in report.damaged] == [(BLOCK, 2 * BLOCK)]
    remove(repository, version)
    with suppress(OddValueError):
        cleanup(repository, grace_s=0)
    assert there.exists()


def test_restore_skips_the_block_and_writes_the_others(
    repository: Repository, version: Version, kind: str, tmp_path: Path
) -> None:
    obstruct(repository, version, kind)
    report = restore(repository, version, str(tmp_path / "restored"))
    assert [(damage.start, damage.stop) for damage in report.damaged] == [(BLOCK, 2 * BLOCK)]
    whole, restored = ((tmp_path / name).read_bytes() for name in ("image", "restored"))
    assert restored[:BLOCK] + restored[2 * BLOCK :] == whole[:BLOCK] + whole[2 * BLOCK :]


def test_a_migration_skips_the_block(repository: Repository, version: Version, kind: str) -> None:
    obstruct(repository, version, kind)
    report = migrate(repository, MigrationRequest(versions=None, outdated=Outdated(to=1)))
    assert (report.blobs, len(report.damaged)) == (BLOCKS - 1, 1)


def test_a_full_cleanup_marks_the_block(repository: Repository, version: Version, kind: str) -> None:
    publish(repository)
    obstruct(repository, version, kind)
    report = full_cleanup(repository, grace_s=0)
    assert (report.damaged_blobs, report.orphans, report.versions_invalid) == (1, 0, (version.uid,))


def test_a_cleanup_deletes_the_other_objects_and_names_the_obstacle(
    repository: Repository, version: Version, caplog: pytest.LogCaptureFixture
) -> None:
    place = file_of(repository, blob_of(repository, version, 1))
    put_in_place(place, "a directory")
    remove(repository, version)
    report = cleanup(repository, grace_s=0)
    assert (report.blobs, report.undeleted) == (BLOCKS - 1, 1)
    assert f"was not deleted: storage: {place} is a directory; move it away" in caplog.text
    place.rmdir()
    report = cleanup(repository, grace_s=0)
    assert (report.blobs, report.undeleted) == (1, 0)
    assert objects(repository) == set()


def test_a_storage_in_which_every_read_fails_is_an_error_and_not_damage(
    repository: Repository, version: Version
) -> None:
    for index in range(BLOCKS):
        put_in_place(file_of(repository, blob_of(repository, version, index)), "a FIFO")
    with pytest.raises(StorageError, match="the storage returns none of 4 blobs"):
        scrub(repository, ScrubRequest(versions=None))
    assert is_valid(repository, version)


def test_a_recovery_loses_only_the_version_whose_object_cannot_be_read(
    repository: Repository, version: Version, kind: str, tmp_path: Path
) -> None:
    other = back_up(repository, random_image(tmp_path / "other", BLOCK, 2), "other").version
    publish(repository)
    storage = repository.blocks.storage
    put_in_place(tmp_path / "repository" / "data" / "catalog" / "versions" / version.uid, kind)
    losses: list[Loss] = []
    catalog = open_catalog(storage, lambda _found: Secret(), repository.blocks.keyring.repository_key)
    target = Database(f"sqlite:///{tmp_path}/recovered.sqlite")
    report = recover(storage, catalog, target, on_loss=losses.append)
    with target.read() as connection:
        assert version_with_uid(connection, other.uid) is not None
    target.close()
    assert report.versions == 1
    assert [loss for loss in losses if loss.name.endswith(version.uid)]


def test_a_recovery_names_an_obstacle_in_the_place_of_the_repository_object(
    repository: Repository, version: Version, kind: str, tmp_path: Path
) -> None:
    assert version.name
    publish(repository)
    put_in_place(tmp_path / "repository" / "data" / "catalog" / "repository", kind)
    with pytest.raises(CatalogError, match=f"catalog/repository is {kind.removesuffix(' to itself')}; move it away"):
        open_catalog(repository.blocks.storage, lambda _found: Secret(), None)
