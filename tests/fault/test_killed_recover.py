"""A recovery, or the writing of the catalog, that is killed or fails at any step: the next one makes good for it."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from backyfs.engine.catalog.check import CatalogCheck, Difference
from backyfs.engine.catalog.publish import publish
from backyfs.engine.catalog.recover import Loss, open_catalog, recover
from backyfs.engine.restore.restore import restore
from backyfs.engine.space.cleanup import cleanup
from backyfs.engine.versions.remove import remove_versions
from backyfs.errors import BackyfsError, SchemaError, StorageError
from backyfs.keys.slots import Secret
from backyfs.metadata.catalog.notes import note_repository
from backyfs.metadata.db.database import Database
from backyfs.metadata.records.versions import list_versions, set_expiry, version_with_uid
from tests.fault.everystep import killed_at
from tests.fault.test_failing_parts import FailingStorage
from tests.support.audit import audit
from tests.support.images import random_image
from tests.support.repositories import BLOCK, back_up
from tests.support.states import Stored
from tests.support.storages import is_named, with_watched_storage

if TYPE_CHECKING:
    from pathlib import Path

    from backyfs.model import Version
    from backyfs.repository import Repository


@pytest.fixture
def versions(repository: Repository, tmp_path: Path) -> list[Version]:
    image = random_image(tmp_path / "image", 5 * BLOCK)
    made = [back_up(repository, image, "first").version]
    with image.open("r+b") as file:
        file.write(b"changed")
    made.append(back_up(repository, image, "second", tags=("a", "b")).version)
    publish(repository)
    return made


def differences(repository: Repository) -> list[Difference]:
    found: list[Difference] = []
    CatalogCheck(repository, on_difference=found.append).run()
    return found


def test_a_recovery_that_is_killed_at_any_statement_is_done_by_the_next_one(
    repository: Repository, versions: list[Version], tmp_path: Path
) -> None:
    key = repository.blocks.keyring.repository_key
    target = tmp_path / "recovered"
    url = f"sqlite:///{target}/backyfs.sqlite"

    def run() -> None:
        with closing(Database(url)) as database:
            storage = repository.blocks.storage
            recover(storage, open_catalog(storage, lambda _found: Secret(), key), database)

    target.mkdir()
    stored = Stored(target)
    killed = stored.killed(run)
    assert killed.steps >= 20
    for copy in killed.copies.values():
        stored.put(copy)
        with closing(Database(url)) as database, pytest.raises(SchemaError):
            database.check_revision()  # no command takes the half for the whole
        run()
        with closing(Database(url)) as database:
            audit(replace(repository, database=database))
            with database.read() as connection:
                found = list_versions(connection)
        assert [version.uid for version in found] == [version.uid for version in versions]
    with closing(Database(url)) as database:
        recovered = replace(repository, database=database)
        with database.read() as connection:
            version = version_with_uid(connection, versions[1].uid)
        assert version is not None
        assert restore(recovered, version, str(tmp_path / "restored")).damaged == ()
        assert (tmp_path / "restored").read_bytes() == (tmp_path / "image").read_bytes()
        assert differences(recovered) == []


def refuse() -> None:
    raise StorageError("injected fault")


def change_all_sorts(repository: Repository, versions: list[Version], image: Path) -> None:
    """Leave something of every kind to be written to the catalog: its objects cannot be written for a while."""
    refusing = with_watched_storage(repository, refuse, "put", "delete", which=is_named)
    with repository.database.write() as connection:
        set_expiry(connection, versions[1].id, datetime.now(UTC))
    remove_versions(refusing, versions[:1], now=datetime.now(UTC))
    cleanup(refusing, grace_s=0)
    back_up(refusing, random_image(image, 3 * BLOCK, 2), "new")
    repository.blocks.storage.flush()  # a process that is forked off has the same list of what must be flushed


def test_a_publication_that_is_killed_at_any_statement_is_done_by_the_next_one(
    repository: Repository, versions: list[Version], tmp_path: Path
) -> None:
    number = 0
    killed = True
    change_all_sorts(repository, versions, tmp_path / "new")
    while killed:
        number += 1
        killed = killed_at(number, lambda: publish(repository))
        with repository.database.write() as connection:
            set_expiry(connection, versions[1].id, datetime.now(UTC))  # there is something to do again
    publish(repository)
    assert differences(repository) == []
    assert number > 5


def losses_of(repository: Repository, tmp_path: Path) -> list[Loss]:
    """Recover into a new database; return what is missing or older than it should be."""
    found: list[Loss] = []
    storage = repository.blocks.storage
    catalog = open_catalog(storage, lambda _found: Secret(), repository.blocks.keyring.repository_key)
    with closing(Database(f"sqlite:///{tmp_path}/whole.sqlite")) as database:
        recover(storage, catalog, database, on_loss=found.append)
    for path in tmp_path.glob("whole.sqlite*"):
        path.unlink()
    return found


def test_a_publication_that_is_killed_at_any_call_leaves_a_catalog_that_lacks_nothing(
    repository: Repository, versions: list[Version], tmp_path: Path
) -> None:
    """What comes, goes and changes in the index is there before the index says so, and gone after."""
    number = 0
    killed = True
    last = versions[1]
    while killed:
        number += 1
        new = back_up(repository, tmp_path / "image", f"disk{number}").version
        remove_versions(repository, [last], now=datetime.now(UTC))
        with repository.database.write() as connection:
            note_repository(connection)
        last = new
        repository.blocks.storage.flush()  # a process that is forked off has the same list of what must be flushed
        killed = killed_at(number, lambda: publish(repository), storage=True)
        assert losses_of(repository, tmp_path) == []
        publish(repository)
        assert differences(repository) == []
    assert number > 10


@pytest.mark.parametrize("methods", [{"put"}, {"flush"}, {"delete"}], ids=min)
def test_a_storage_that_fails_once_leaves_the_rest_to_the_next_publication(
    repository: Repository, versions: list[Version], tmp_path: Path, methods: set[str]
) -> None:
    fail_at = 0
    has_failed = True
    while has_failed:
        fail_at += 1
        storage = FailingStorage(repository.blocks.storage, methods, fail_at)
        failing = replace(repository, blocks=replace(repository.blocks, storage=storage))
        if fail_at == 1:
            change_all_sorts(repository, versions, tmp_path / "new")
        try:
            publish(failing)
        except BackyfsError:
            assert storage.has_failed
        has_failed = storage.has_failed
    publish(repository)
    assert differences(repository) == []
    assert fail_at > 1
