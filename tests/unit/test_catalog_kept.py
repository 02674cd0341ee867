"""The functions of the library keep the catalog in the storage up to date for every caller."""

from __future__ import annotations

import io
import logging
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from backyfs.config import Scheduler
from backyfs.engine.catalog.check import CatalogCheck
from backyfs.engine.catalog.publish import publish
from backyfs.engine.damage.repair import RepairRequest, repair
from backyfs.engine.damage.scrub import ScrubRequest, scrub
from backyfs.engine.restore.restore import restore
from backyfs.engine.secrets.migrate import MigrationRequest, migrate
from backyfs.engine.space.cleanup import cleanup
from backyfs.engine.space.fullcleanup import full_cleanup
from backyfs.engine.transfer.export import export_versions
from backyfs.engine.transfer.importing import import_export
from backyfs.engine.versions.edit import add_tags, expire, protect, remove_tags
from backyfs.engine.versions.forget import forget
from backyfs.engine.versions.remove import RemovalRequest, remove, remove_versions
from backyfs.errors import InterruptedByUser, StorageError, StorageRefusedError
from backyfs.metadata.catalog.notes import has_notes
from backyfs.metadata.records.versions import set_protected
from backyfs.metadata.upkeep.migration import Outdated
from backyfs.sources.registry import open_source
from backyfs.storage.forwarding import ForwardingStorage
from backyfs.storage.keys import is_blob
from backyfs.work.run import Control
from tests.support.audit import versions_of
from tests.support.images import random_image
from tests.support.repositories import BLOCK, back_up
from tests.support.storages import is_named, with_storage, with_watched_storage
from tests.support.stored import blob_uids

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from backyfs.repository import Repository
    from backyfs.storage.keys import Key
    from backyfs.storage.protocol import Storage, Traits

NOW = datetime(2030, 1, 1, tzinfo=UTC)
AFTER_EXPIRY = RemovalRequest(even_last=True)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return random_image(tmp_path / "image", 5 * BLOCK)


def is_kept(repository: Repository) -> bool:
    """Return whether the catalog matches the database, and the database has noted that."""
    with repository.database.read() as connection:
        if has_notes(connection):
            return False
    return not CatalogCheck(repository).run().differences


def an_object(repository: Repository, image: Path) -> Path:
    uid = min(blob_uids(repository.blocks.storage))
    return image.with_name("repository") / "data" / uid[:2] / uid[2:4] / f"{uid}.blob"


def do_backup(repository: Repository, image: Path) -> None:
    back_up(repository, image)


def do_remove(repository: Repository, _image: Path) -> None:
    remove_versions(repository, versions_of(repository)[:1], now=NOW)


def do_forget(repository: Repository, image: Path) -> None:
    for _ in range(2):
        back_up(repository, image, tags=("daily",))
    daily = Scheduler(name="daily", interval_s=86400, keep=1, sla_s=3600)
    assert any(found.outcome == "remove" for found in forget(repository, [daily], now=NOW))


def do_cleanup(repository: Repository, image: Path) -> None:
    do_remove(repository, image)
    cleanup(repository, grace_s=0)


def do_full_cleanup(repository: Repository, image: Path) -> None:
    an_object(repository, image).unlink()
    assert full_cleanup(repository).versions_invalid


def do_scrub(repository: Repository, image: Path) -> None:
    an_object(repository, image).write_bytes(b"")
    assert scrub(repository, ScrubRequest(versions=None)).versions_invalid


def do_repair(repository: Repository, image: Path) -> None:
    do_scrub(repository, image)
    source = open_source(str(image))
    try:
        assert repair(repository, RepairRequest(source=source)).versions_valid
    finally:
        source.close()


def do_restore(repository: Repository, image: Path) -> None:
    an_object(repository, image).unlink()
    assert restore(repository, versions_of(repository)[0], str(image.with_name("target"))).damaged


def do_migration(repository: Repository, _image: Path) -> None:
    assert migrate(repository, MigrationRequest(versions=None, outdated=Outdated(to=1))).blobs == 5


def do_protect(repository: Repository, _image: Path) -> None:
    assert len(protect(repository, ["disk@latest"], protected=True).changed) == 1


def do_expire(repository: Repository, _image: Path) -> None:
    assert expire(repository, "disk@latest", NOW).version.expire_at == NOW


def do_add_tags(repository: Repository, _image: Path) -> None:
    assert "b" in add_tags(repository, "disk@latest", ["b"]).version.tags


def do_remove_tags(repository: Repository, image: Path) -> None:
    do_add_tags(repository, image)
    assert "b" not in remove_tags(repository, "disk@latest", ["b"]).version.tags


def do_remove_expired(repository: Repository, image: Path) -> None:
    back_up(repository, image, "old", expire_at=NOW)
    report = remove(repository, AFTER_EXPIRY, now=NOW + timedelta(days=1))
    assert [removal.kept for removal in report.removals] == [None]


def do_import(repository: Repository, image: Path) -> None:
    file = io.BytesIO()
    export_versions(repository, versions_of(repository), file)
    do_remove(repository, image)
    file.seek(0)
    assert len(import_export(repository, file).versions) == 1


FUNCTIONS = [
    do_backup, do_remove, do_forget, do_cleanup, do_full_cleanup, do_scrub, do_repair, do_restore, do_migration,
    do_protect, do_expire, do_add_tags, do_remove_tags, do_remove_expired, do_import,
]  # fmt: skip


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_function_of_the_library_keeps_the_catalog_up_to_date(
    repository: Repository, image: Path, function: Callable[[Repository, Path], None]
) -> None:
    back_up(repository, image)
    function(repository, image)
    assert is_kept(repository)


def test_an_incomplete_backup_is_in_the_catalog_too(repository: Repository, image: Path) -> None:
    def fail() -> None:
        raise StorageError("injected")

    with pytest.raises(StorageError, match="injected"):
        back_up(with_watched_storage(repository, fail, "put", which=is_blob), image)
    assert len(versions_of(repository)) == 1
    assert is_kept(repository)


def test_an_interrupted_function_does_not_update_the_catalog(repository: Repository, image: Path) -> None:
    version = back_up(repository, image).version
    with pytest.raises(InterruptedByUser):
        remove_versions(repository, [version], now=NOW, control=Control(stop=lambda: True))
    calls: list[None] = []
    with pytest.raises(InterruptedByUser):
        scrub(
            with_watched_storage(repository, lambda: calls.append(None), "put", which=is_named),
            ScrubRequest(versions=None),
            control=Control(stop=lambda: True),
        )
    assert calls == []


def test_a_cleanup_brings_the_catalog_up_to_date_before_it_deletes(repository: Repository, image: Path) -> None:
    back_up(repository, image)
    # Another command changed something but could not write it to the catalog.
    version = back_up(replace(repository), image, "other").version
    do_remove(repository, image)
    with repository.database.write() as connection:
        set_protected(connection, version.id, protected=True)
    kept: list[bool] = []

    def look() -> None:
        with repository.database.read() as connection:
            kept.append(not has_notes(connection))

    image.write_bytes(b"x" * BLOCK)
    remove_versions(repository, [back_up(repository, image, "gone").version], now=NOW)
    cleanup(with_watched_storage(repository, look, "delete", which=is_blob), grace_s=0)
    assert kept
    assert all(kept)


class AppendedStorage(ForwardingStorage):
    """A storage that refuses to delete, and calls a function before its first flush."""

    def __init__(self, storage: Storage, act: Callable[[], object], *, requests: int | None) -> None:
        super().__init__(storage)
        self._acts = [act]
        self._requests = requests

    @property
    def traits(self) -> Traits:
        return replace(super().traits, requests=self._requests)

    def flush(self) -> None:
        if self._acts:
            self._acts.pop()()
        super().flush()

    def delete(self, keys: Sequence[Key]) -> None:
        if keys:
            raise StorageRefusedError("deletion refused")


def publish_while_a_version_goes(repository: Repository, image: Path, *, requests: int | None) -> None:
    """Write the catalog without permission to delete, while another command removes a version that was just written."""
    back_up(repository, image)
    gone = back_up(repository, random_image(image.with_name("gone"), 3 * BLOCK, seed=1), "gone").version

    def act() -> None:
        remove_versions(repository, [gone], now=NOW)
        cleanup(repository, grace_s=0)

    storage = AppendedStorage(repository.blocks.storage, act, requests=requests)
    publish(with_storage(repository, storage), everything=True)


def test_a_host_that_may_not_delete_writes_the_catalog_while_another_cleans_up(
    repository: Repository, image: Path
) -> None:
    publish_while_a_version_goes(repository, image, requests=8)
    [kept] = versions_of(repository)
    index = CatalogCheck(repository).run().index
    assert index is not None
    assert index.versions == (kept.uid,)
    publish(repository)  # which deletes the objects that nothing lists
    assert is_kept(repository)


def test_a_directory_that_refuses_to_delete_is_an_error(repository: Repository, image: Path) -> None:
    with pytest.raises(StorageRefusedError, match="deletion refused"):
        publish_while_a_version_goes(repository, image, requests=None)


def test_an_unwritable_catalog_gives_one_warning(
    repository: Repository, image: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise StorageError("injected")

    with caplog.at_level(logging.WARNING):
        report = back_up(with_watched_storage(repository, fail, "put", which=is_named), image)
    assert [version.uid for version in versions_of(repository)] == [report.version.uid]
    assert caplog.messages == [
        "the copy of the metadata in the storage is out of date: injected; write the catalog"
    ]
    assert not repository.database.has_written
