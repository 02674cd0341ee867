"""A power loss at any moment of a backup, a migration or a cleanup: every object in the database is on the disk."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select, text

from backyfs.blocks import load_block
from backyfs.engine.catalog.publish import publish
from backyfs.engine.catalog.recover import Loss, open_catalog, recover
from backyfs.engine.secrets.migrate import MigrationRequest, migrate
from backyfs.engine.space.cleanup import cleanup
from backyfs.engine.space.fullcleanup import full_cleanup
from backyfs.engine.versions.remove import remove_versions
from backyfs.keys.slots import Secret
from backyfs.metadata.db.database import Database
from backyfs.metadata.db.tables import blobs
from backyfs.metadata.records.blobs import load_blobs
from backyfs.metadata.records.versions import list_versions
from backyfs.metadata.upkeep.migration import Outdated
from backyfs.model import BlobId, VersionStatus
from backyfs.storage import directory as directory_module
from backyfs.work import silence
from tests.fault.powerloss import Recorder, write_tree
from tests.support.audit import audit, content_of
from tests.support.images import random_bytes
from tests.support.repositories import BLOCK, back_up, make_repository, opened

if TYPE_CHECKING:
    from pathlib import Path

    from backyfs.repository import Repository
    from tests.fault.powerloss import Disk

FIRST = random_bytes(3 * BLOCK, 1)
IMAGES = {
    "first": FIRST,
    "gone": FIRST[: 2 * BLOCK] + random_bytes(BLOCK, 2),
    "new": FIRST[:BLOCK] + random_bytes(2 * BLOCK + 7, 3),
    "next": FIRST[BLOCK:] + random_bytes(BLOCK, 4),
}
FEWEST = 20  # states: with fewer, something else was recorded
EVERY = 40   # states: after one of them the repository is used further
CATALOG_EVERY = 4  # states: after one of them a database is made from the catalog


class Place:
    """A repository with two versions, and what is done to it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = make_repository(directory / "repository")
        self.storage = directory / "repository" / "data"
        self.database = directory / "repository" / "backyfs.sqlite"
        with opened(self.config) as repository:
            for name in ("first", "gone"):
                self.back_up(repository, name)

    def back_up(self, repository: Repository, name: str = "new") -> None:
        """Back up an image."""
        image = self.directory / f"{name}.img"
        image.write_bytes(IMAGES[name])
        back_up(repository, image, name)
        publish(repository)

    def clean_up(self, repository: Repository) -> None:
        """Remove a version and what it alone has."""
        with repository.database.read() as connection:
            versions = list_versions(connection, name="gone")
        remove_versions(repository, versions, now=datetime.now(UTC))
        publish(repository)
        cleanup(repository, grace_s=0)

    def migrate(self, repository: Repository) -> None:
        """Re-seal all blobs, and delete the old objects."""
        migrate(repository, MigrationRequest(versions=None, outdated=Outdated(to=1)))
        publish(repository)
        cleanup(repository, grace_s=0)

    def put_back(self, disk: Disk) -> None:
        """Let the power be back."""
        shutil.rmtree(self.storage)
        write_tree(self.storage, disk.files)
        for suffix in ("-wal", "-shm"):
            self.database.with_name(self.database.name + suffix).unlink(missing_ok=True)
        shutil.copy(disk.database, self.database)

    def check(self) -> set[str]:
        """Make sure that every blob that has a row has its object, and all is what was backed up; return the names."""
        with opened(self.config) as repository:
            audit(repository)
            with repository.database.read() as connection:
                ids = connection.execute(select(blobs.c.id).where(blobs.c.doomed_at.is_(None))).scalars()
                living = load_blobs(connection, [BlobId(blob_id) for blob_id in ids])
                versions = list_versions(connection)
            for blob in living.values():
                load_block(repository.blocks, blob)
            whole = [version for version in versions if version.status is VersionStatus.VALID]
            for version in whole:
                assert content_of(repository, version) == IMAGES[version.name]
        return {version.name for version in whole}

    def check_catalog(self) -> None:
        """Make sure that the catalog lacks nothing of the versions that its index names."""
        losses: list[Loss] = []
        target = self.directory / "recovered.sqlite"
        with opened(self.config) as repository:
            storage = repository.blocks.storage
            key = repository.blocks.keyring.repository_key
            with closing(Database(f"sqlite:///{target}")) as database:
                catalog = open_catalog(storage, lambda _found: Secret(), key)
                report = recover(storage, catalog, database, on_loss=losses.append)
        for path in self.directory.glob(f"{target.name}*"):
            path.unlink()
        assert [loss for loss in losses if loss.version not in report.unlisted] == []

    def go_on(self) -> None:
        """Use the repository as if nothing had happened."""
        with opened(self.config) as repository:
            self.back_up(repository, "next")
            full_cleanup(repository, grace_s=0)
        assert {"first", "next"} <= self.check()


@pytest.mark.parametrize("act", [Place.back_up, Place.clean_up, Place.migrate])
@pytest.mark.parametrize("has_syncfs", [True, False], ids=["one sync for all", "a sync for each"])
def test_a_power_loss_at_any_moment_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: object, has_syncfs: bool
) -> None:
    place = Place(tmp_path)
    copies = tmp_path / "copies"
    copies.mkdir()
    monkeypatch.setattr(directory_module, "syncfs_can_be_trusted", lambda _path: has_syncfs)
    monkeypatch.setattr(silence, "WATCH_S", 0)  # the command whose power was cut is known to be dead
    recorder = Recorder(place.storage, place.database, copies)
    with monkeypatch.context() as patch:
        recorder.install(patch)
        with opened(place.config) as repository:
            act(place, repository)  # type: ignore[operator]
    states = 0
    for disk in recorder.recording.disks():
        place.put_back(disk)
        names = place.check()
        assert "first" in names
        if states % CATALOG_EVERY == 0:
            place.check_catalog()
        if states % EVERY == 0:
            place.go_on()
        states += 1
    assert states > FEWEST
    # The last state is what was there at the end.
    assert names == place.check() == {"first", "gone"} - ({"gone"} if act is Place.clean_up else set()) | (
        {"new"} if act is Place.back_up else set()
    )


def test_commits_are_durable(tmp_path: Path) -> None:
    place = Place(tmp_path)
    with opened(place.config) as repository, repository.database.read() as connection:
        assert connection.execute(text("PRAGMA synchronous")).scalar_one() == 2  # FULL
        assert connection.execute(text("PRAGMA journal_mode")).scalar_one() == "wal"
    with closing(sqlite3.connect(place.database)) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
