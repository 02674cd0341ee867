"""The catalog follows the database, which can be recovered from it: the same on every engine."""

from __future__ import annotations

import os
from array import array
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import delete, select, text, update

from backyfs.catalog.objects import PAGES, VERSIONS, digest_of, page_name, version_name
from backyfs.engine.catalog.check import DIFFERS, MISSING, STALE, CatalogCheck, Difference, remove_stale_objects
from backyfs.engine.catalog.freshpages import FreshPages
from backyfs.engine.catalog.index import Fault
from backyfs.engine.catalog.publish import publish
from backyfs.engine.catalog.recover import Loss, RecoveryReport, open_catalog, recover
from backyfs.engine.restore.restore import restore
from backyfs.engine.space.cleanup import cleanup
from backyfs.engine.space.fullcleanup import full_cleanup
from backyfs.engine.versions.remove import remove_versions
from backyfs.errors import (
    CatalogError,
    InterruptedByUser,
    MissingKeyError,
    SchemaError,
    StorageError,
    WrongKeyError,
)
from backyfs.keys.passphrase import Cost
from backyfs.keys.slots import Secret, make_slot
from backyfs.metadata.catalog.index import IndexState, load_index_state, save_index_state
from backyfs.metadata.catalog.notes import NoteKind, has_notes, note_repository, unpublish_pages_with
from backyfs.metadata.db.database import Database
from backyfs.metadata.db.revisions import RECOVERING
from backyfs.metadata.db.tables import blobs, catalog_notes, pages
from backyfs.metadata.maps.blockmap import HOLE, commit_page, load_page
from backyfs.metadata.records.blobs import insert_blobs
from backyfs.metadata.records.identity import add_key_slot, list_key_slots, load_identity, remove_key_slot
from backyfs.metadata.records.removal import remove_version
from backyfs.metadata.records.stats import list_all_statistics
from backyfs.metadata.records.versions import add_tags, create_version, list_versions, set_expiry, set_protected
from backyfs.metadata.schema.schema import differences
from backyfs.model import BlobId, BlobUid, PageNumber, SavedBlob, VersionStatus
from backyfs.storage.forwarding import ForwardingStorage
from backyfs.storage.keys import ObjectName
from backyfs.work.run import Control
from tests.support.audit import audit
from tests.support.images import random_image
from tests.support.jobs import stopping_after
from tests.support.repositories import BLOCK, back_up, make_repository, opened
from tests.support.storages import with_storage
from tests.support.stored import object_names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from backyfs.catalog.index import CatalogIndex
    from backyfs.model import Buffer, Version
    from backyfs.repository import Repository
    from backyfs.storage.keys import Key
    from backyfs.storage.protocol import Storage

pytestmark = pytest.mark.slow

PAGE_BYTES = 1024 * BLOCK
NOW = datetime(2026, 1, 1, tzinfo=UTC)
# Tests that do not depend on the engine.
once = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def config(database_url: str, tmp_path: Path) -> Path:
    """Make a repository in a database on each engine."""
    return make_repository(tmp_path / "repository", database=database_url)


@pytest.fixture
def repository(config: Path) -> Iterator[Repository]:
    with opened(config) as repository:
        yield repository


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """Make three states of an image of two pages: two differ in one block, and the third is short and has holes."""
    first = random_image(tmp_path / "first", PAGE_BYTES + 5 * BLOCK + 7)
    second = tmp_path / "second"
    second.write_bytes(first.read_bytes())
    with second.open("r+b") as file:
        file.seek(PAGE_BYTES + 3 * BLOCK)
        file.write(b"changed")
    third = tmp_path / "third"
    with third.open("wb") as file:
        file.truncate(PAGE_BYTES + 100 * BLOCK)
        file.seek(50 * BLOCK)
        file.write(first.read_bytes()[: 60 * BLOCK])
    return [first, second, third]


@pytest.fixture
def versions(repository: Repository, images: list[Path]) -> list[Version]:
    """Back up all images, with tags, an expiry and protection, and write the catalog."""
    made = [back_up(repository, image, name, tags=tags).version for image, name, tags in zip(
        images, ("disk", "disk", "other"), ((), ("a", "ü"), ("b",)), strict=True)]  # fmt: skip
    with repository.database.write() as connection:
        set_expiry(connection, made[0].id, datetime(2040, 1, 2, 3, 4, 5, 678901, tzinfo=UTC))
        set_protected(connection, made[1].id, protected=True)
    publish(repository)
    return made


@pytest.fixture
def target(database_url: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """Return the URL of another empty database on the same engine."""
    if database_url.startswith("sqlite"):
        yield f"sqlite:///{tmp_path}/target/recovered.sqlite"
        return
    engine = "postgresql" if database_url.startswith("postgresql") else "mariadb"
    server = request.getfixturevalue(f"{engine}_server")
    url: str = server.new_database()
    yield url
    server.drop(url)


def key_of(repository: Repository) -> Secret:
    assert repository.config.key is not None
    assert repository.config.key.file is not None
    with open(repository.config.key.file, encoding="ascii") as file:
        return Secret(key=bytes.fromhex(file.read().strip()))


def recovered(repository: Repository, target: str, **options: Any) -> tuple[RecoveryReport, list[Loss]]:
    """Recover the repository into another database."""
    losses: list[Loss] = []
    storage = repository.blocks.storage
    catalog = open_catalog(storage, lambda _found: key_of(repository), None)
    with closing(Database(target)) as database:
        return recover(storage, catalog, database, on_loss=losses.append, **options), losses


def reopened(repository: Repository, config: Path, target: str) -> Path:
    """Return a configuration with the recovered database."""
    other = config.with_name("recovered.cfg")
    other.write_text(config.read_text().replace(repository.config.database_url.replace("%", "%%"), target))
    return other


def facts(repository: Repository) -> list[Version]:
    """Return all versions without their ids."""
    with repository.database.read() as connection:
        return [replace(version, id=0) for version in list_versions(connection)]  # type: ignore[arg-type]


def found_by_check(repository: Repository) -> set[tuple[str, Fault]]:
    found: list[Difference] = []
    CatalogCheck(repository, on_difference=found.append).run()
    return {(one.name, one.fault) for one in found}


def bytes_of(repository: Repository, version: Version, place: Path) -> bytes:
    assert restore(repository, version, str(place), replace=True).damaged == ()
    return place.read_bytes()


def files(repository: Repository, prefix: str) -> set[str]:
    return set(object_names(repository.blocks.storage, prefix))


# The catalog follows the database


def test_a_new_repository_is_in_the_catalog(repository: Repository) -> None:
    assert files(repository, "catalog/") == {"catalog/index", "catalog/marker", "catalog/repository"}
    assert found_by_check(repository) == set()


@once
def test_backups_are_in_the_catalog(repository: Repository, versions: list[Version]) -> None:
    assert files(repository, VERSIONS) == {version_name(version.uid) for version in versions}
    with repository.database.read() as connection:
        assert not has_notes(connection)
        uids = connection.execute(select(pages.c.uid)).scalars()
        assert files(repository, PAGES) == {page_name(uid) for uid in uids}
    assert found_by_check(repository) == set()


@once
def test_a_large_backup_is_in_the_catalog(repository: Repository, tmp_path: Path) -> None:
    # Large enough for several flushes: some pages are written while it runs, and the others at the end.
    back_up(repository, random_image(tmp_path / "large", 5 * PAGE_BYTES))
    publish(repository)
    assert len(files(repository, PAGES)) == 5
    assert found_by_check(repository) == set()


def test_a_page_is_written_from_what_the_backup_remembers(repository: Repository) -> None:
    uids = [BlobUid(f"{number:032x}") for number in range(3)]
    saved = [SavedBlob(uid=uid, fingerprint=uid.encode(), size=BLOCK, stored_size=5, encryption_version=2,
                       wrapped_key=bytes(40)) for uid in uids]  # fmt: skip
    fresh = FreshPages(repository)
    with repository.database.write() as connection:
        version = create_version(connection, name="x", snapshot_name="", size_bytes=4 * BLOCK, created_at=NOW)
        ids = insert_blobs(connection, saved, NOW)
        fresh.remember(saved[:2], ids)
        for page_no, numbers in ((0, (2, 0)), (1, (1, 0, 1))):  # one blob of the first page is not remembered
            entries = array("q", [HOLE, *(ids[uids[number]] for number in numbers)])
            page_id = commit_page(connection, version.id, PageNumber(page_no), entries)
            assert page_id is not None
            fresh.note_committed(connection, page_id, entries)
    [page] = fresh.take()
    assert fresh.put(page)
    fresh.note_put(page)
    fresh.begin_flush()
    repository.blocks.storage.flush()
    with repository.database.write() as connection:
        fresh.settle(connection)
    assert files(repository, PAGES) == {page_name(page.uid)}
    assert (page_name(page.uid), DIFFERS) not in found_by_check(repository)
    assert publish(repository).pages == 1
    assert {name for name, _ in found_by_check(repository)} == set()


def test_removed_versions_are_removed_from_the_catalog(repository: Repository, versions: list[Version]) -> None:
    remove_versions(repository, versions[2:], now=datetime.now(UTC))
    assert files(repository, VERSIONS) == {version_name(version.uid) for version in versions[:2]}
    before = files(repository, PAGES)
    cleanup(repository, grace_s=0)
    assert len(before - files(repository, PAGES)) == 1
    assert found_by_check(repository) == set()


@once
def test_changed_facts_are_written_again(repository: Repository, versions: list[Version]) -> None:
    with repository.database.write() as connection:
        add_tags(connection, versions[0].id, ["new"])
    assert found_by_check(repository) == {(version_name(versions[0].uid), DIFFERS)}
    report = publish(repository)
    assert (report.versions, report.pages) == (1, 0)
    assert found_by_check(repository) == set()


@once
def test_without_changes_nothing_is_written(
    repository: Repository, versions: list[Version], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert versions
    monkeypatch.setattr(repository.blocks.storage, "flush", None)
    assert publish(repository).versions == 0


@once
def test_the_whole_catalog_is_written_again_on_request(repository: Repository, versions: list[Version]) -> None:
    for name in files(repository, "catalog/"):
        repository.blocks.storage.delete([ObjectName(name)])
    with pytest.raises(CatalogError, match="the storage has no catalog, and there was one; is its file system mounted"):
        found_by_change(repository, versions[0])
    report = publish(repository, everything=True)
    assert (report.versions, report.pages) == (3, 4)
    assert found_by_check(repository) == set()


def found_by_change(repository: Repository, version: Version) -> None:
    with repository.database.write() as connection:
        set_expiry(connection, version.id, None)
    publish(repository)


@once
def test_the_catalog_of_another_repository_is_left_alone(repository: Repository, versions: list[Version]) -> None:
    refused = r"the storage has the catalog of repository .*; give each repository its own"
    with pytest.raises(CatalogError, match=refused):
        found_by_change(replace(repository, uid="another"), versions[0])


def test_pages_with_changed_blobs_are_written_again(repository: Repository, versions: list[Version]) -> None:
    with repository.database.write() as connection:
        entries = load_page(connection, versions[0].id, PageNumber(0))
        assert entries is not None
        blob_id = BlobId(entries[0])
        connection.execute(update(blobs).where(blobs.c.id == blob_id).values(stored_size=12345))
        unpublish_pages_with(connection, [blob_id])
    assert len(found_by_check(repository)) == 2  # of the first and third image
    assert publish(repository).pages == 2
    assert found_by_check(repository) == set()


@once
def test_an_interrupted_publication_is_continued(repository: Repository, images: list[Path]) -> None:
    version = back_up(repository, images[0]).version
    with repository.database.write() as connection:
        set_protected(connection, version.id, protected=True)
    with pytest.raises(InterruptedByUser):
        publish(repository, control=Control(stop=lambda: True))
    publish(repository)
    assert found_by_check(repository) == set()
    assert version_name(version.uid) in files(repository, VERSIONS)


@once
def test_objects_that_could_not_be_written_are_written_by_the_next_command(
    repository: Repository, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    version = back_up(repository, images[0]).version
    with repository.database.write() as connection:
        set_protected(connection, version.id, protected=True)

    def fail() -> None:
        raise StorageError("injected")

    with monkeypatch.context() as patch:
        patch.setattr(repository.blocks.storage, "flush", fail)
        with pytest.raises(StorageError):
            publish(repository)
    with repository.database.read() as connection:
        assert has_notes(connection)
    publish(repository)
    assert found_by_check(repository) == set()


def test_a_change_during_the_writing_of_a_version_is_written_too(
    repository: Repository, versions: list[Version], monkeypatch: pytest.MonkeyPatch
) -> None:
    flush, changes = repository.blocks.storage.flush, [datetime(2050, 1, 1, tzinfo=UTC)]

    def change_and_flush() -> None:
        if changes:
            with repository.database.write() as connection:
                set_expiry(connection, versions[0].id, changes.pop())
        flush()

    monkeypatch.setattr(repository.blocks.storage, "flush", change_and_flush)
    found_by_change(repository, versions[0])
    assert changes == []
    assert found_by_check(repository) == set()


@once
def test_differences_are_found(repository: Repository, versions: list[Version], config: Path) -> None:
    storage = config.parent / "data"
    [missing, damaged, *_] = sorted(files(repository, PAGES))
    repository.blocks.storage.delete([ObjectName(missing)])
    (storage / damaged).write_bytes(b"damaged")
    repository.blocks.storage.delete([version_name(versions[0].uid)])
    stale = page_name("00000000-0000-0000-0000-000000000000")
    repository.blocks.storage.put(stale, [b"x"])
    repository.blocks.storage.flush()
    assert found_by_check(repository) == {
        (missing, MISSING),
        (damaged, Fault("is damaged: it is not an object of a catalog")),
        (version_name(versions[0].uid), MISSING),
        (stale, STALE),
    }
    assert remove_stale_objects(repository) == 0  # it cannot be opened, so its type is unknown
    assert remove_stale_objects(repository, also_damaged=True) == 1
    publish(repository, everything=True)
    assert found_by_check(repository) == set()


@once
def test_an_object_without_a_row_is_removed(
    repository: Repository, versions: list[Version], config: Path
) -> None:
    name = version_name(versions[0].uid)
    kept = (config.parent / "data" / name).read_bytes()
    remove_versions(repository, versions[:1], now=datetime.now(UTC))
    publish(repository)
    repository.blocks.storage.put(name, [kept])
    repository.blocks.storage.flush()
    assert found_by_check(repository) == {(name, STALE)}
    assert remove_stale_objects(repository) == 1
    assert found_by_check(repository) == set()


# Index


def index_of(repository: Repository) -> CatalogIndex:
    return repository.catalog.index()


def test_the_index_lists_all_versions_and_the_repository_object(
    repository: Repository, versions: list[Version], config: Path
) -> None:
    index = index_of(repository)
    assert index.versions == tuple(sorted(version.uid for version in versions))
    assert index.repository == digest_of((config.parent / "data" / "catalog" / "repository").read_bytes())
    with repository.database.read() as connection:
        assert load_index_state(connection) == IndexState(number=index.number, repository=index.repository)


def test_each_index_has_a_higher_number(repository: Repository, versions: list[Version]) -> None:
    before = index_of(repository)
    remove_versions(repository, versions[:1], now=datetime.now(UTC))
    publish(repository)
    after = index_of(repository)
    assert (after.number, after.versions) == (
        before.number + 1, tuple(sorted(version.uid for version in versions[1:]))
    )  # fmt: skip
    assert after.written_at >= before.written_at


@once
def test_an_index_is_written_only_for_new_or_removed_versions_or_a_changed_repository(
    repository: Repository, versions: list[Version]
) -> None:
    before = index_of(repository)
    found_by_change(repository, versions[0])
    assert index_of(repository) == before
    with repository.database.write() as connection:
        note_repository(connection)
    publish(repository)
    assert index_of(repository).number == before.number + 1
    assert found_by_check(repository) == set()


@once
def test_a_running_backup_is_not_in_the_index(repository: Repository, images: list[Path]) -> None:
    seen: list[tuple[str, ...]] = []

    def look(_version: Version) -> None:
        publish(repository)
        seen.append(index_of(repository).versions)
        assert found_by_check(repository) == set()

    version = back_up(repository, images[0], announce=look).version
    publish(repository)
    assert seen == [()]
    assert index_of(repository).versions == (version.uid,)


class Ordered(ForwardingStorage):
    """A storage that records calls for named objects, in order."""

    def __init__(self, storage: Storage) -> None:
        super().__init__(storage)
        self.done: list[str] = []

    def put(self, key: Key, parts: Sequence[Buffer]) -> int:
        self.done.append(f"put {key}")
        return super().put(key, parts)

    def delete(self, keys: Sequence[Key]) -> None:
        self.done += [f"delete {key}" for key in keys]
        super().delete(keys)

    def flush(self) -> None:
        self.done.append("flush")
        super().flush()


@once
def test_the_index_is_written_after_new_objects_and_before_old_ones_are_removed(
    repository: Repository, versions: list[Version], images: list[Path]
) -> None:
    storage = Ordered(repository.blocks.storage)
    watched = with_storage(repository, storage)
    with repository.database.write() as connection:
        note_repository(connection)
    new = back_up(watched, images[0], "new").version
    index = storage.done.index("put catalog/index")
    for name in (version_name(new.uid), "catalog/repository"):
        assert "flush" in storage.done[storage.done.index(f"put {name}") : index]
    assert storage.done[index + 1] == "flush"
    storage.done.clear()
    remove_versions(watched, versions[:1], now=datetime.now(UTC))
    index = storage.done.index("put catalog/index")
    assert storage.done[index + 1] == "flush"
    assert storage.done.index(f"delete {version_name(versions[0].uid)}") > index + 1


@once
def test_an_older_index_is_distinguished_from_the_latest(
    repository: Repository, versions: list[Version], config: Path
) -> None:
    file = config.parent / "data" / "catalog" / "index"
    kept, before = file.read_bytes(), index_of(repository)
    remove_versions(repository, versions[:1], now=datetime.now(UTC))
    publish(repository)
    file.write_bytes(kept)
    [(name, fault)] = found_by_check(repository)
    assert name == "catalog/index"
    assert fault.fact.startswith(f"is number {before.number} of ")
    assert fault.fact.endswith(f"UTC, not {before.number + 1}: the storage, or this object of it, is in an older state")


@once
def test_an_older_database_is_detected_by_its_catalog(
    repository: Repository, versions: list[Version], caplog: pytest.LogCaptureFixture
) -> None:
    index = index_of(repository)
    with repository.database.write() as connection:
        save_index_state(connection, IndexState(number=index.number - 1, repository=index.repository))
    [(_, fault)] = found_by_check(repository)
    assert fault.fact.endswith("the database is in an older state")
    remove_versions(repository, versions[:1], now=datetime.now(UTC))
    publish(repository)
    assert "the database may be an older copy" in caplog.text
    assert index_of(repository).number == index.number + 1
    assert found_by_check(repository) == set()


@once
@pytest.mark.parametrize("damage", [lambda file: file.unlink(), lambda file: file.write_bytes(b"damaged")])
def test_a_lost_index_is_detected_and_written_again(
    repository: Repository, versions: list[Version], config: Path, damage: Callable[[Path], object]
) -> None:
    assert versions
    damage(config.parent / "data" / "catalog" / "index")
    assert {name for name, _ in found_by_check(repository)} == {"catalog/index"}
    publish(repository, everything=True)
    assert found_by_check(repository) == set()


@once
def test_a_repository_object_that_does_not_match_the_index_is_found(
    repository: Repository, versions: list[Version], config: Path
) -> None:
    assert versions
    file = config.parent / "data" / "catalog" / "repository"
    kept = file.read_bytes()
    with repository.database.write() as connection:
        note_repository(connection)
    publish(repository)
    file.write_bytes(kept)
    fault = Fault("names another object catalog/repository than the storage has")
    assert ("catalog/index", fault) in found_by_check(repository)


@once
def test_the_next_change_adds_an_index_to_the_catalog_of_an_older_release(
    repository: Repository, versions: list[Version]
) -> None:
    repository.blocks.storage.delete([ObjectName("catalog/index")])
    with repository.database.write() as connection:
        connection.execute(delete(catalog_notes).where(catalog_notes.c.kind == NoteKind.STATE.value))
    found_by_change(repository, versions[0])
    assert index_of(repository).versions == tuple(sorted(version.uid for version in versions))
    assert found_by_check(repository) == set()


@once
def test_a_stale_version_is_removed_from_the_index_before_its_object(
    repository: Repository, versions: list[Version]
) -> None:
    with repository.database.write() as connection:  # as in an older copy of the database
        remove_version(connection, versions[0].id)
        connection.execute(delete(catalog_notes).where(catalog_notes.c.uid == versions[0].uid))
    storage = Ordered(repository.blocks.storage)
    assert remove_stale_objects(
        with_storage(repository, storage)
    )
    assert storage.done.index("put catalog/index") < storage.done.index(f"delete {version_name(versions[0].uid)}")
    assert found_by_check(repository) == set()


# Recovery with the index


def lost(losses: list[Loss]) -> dict[str, str]:
    return {loss.name: loss.fault.fact for loss in losses}


def test_a_missing_version_is_a_loss(
    repository: Repository, versions: list[Version], target: str
) -> None:
    repository.blocks.storage.delete([version_name(versions[1].uid)])
    report, losses = recovered(repository, target)
    assert lost(losses) == {version_name(versions[1].uid): "is missing from the storage, and catalog/index names it"}
    assert (report.versions, report.losses) == (2, 1)


@once
def test_oversized_objects_are_losses(
    repository: Repository, versions: list[Version], target: str, config: Path
) -> None:
    names = ("catalog/index", version_name(versions[0].uid))
    for name in names:
        os.truncate(config.parent / "data" / name, 300 << 20)
    _, losses = recovered(repository, target)
    assert set(names) <= set(lost(losses))
    assert set(names) <= {name for name, _ in found_by_check(repository)}


@once
@pytest.mark.parametrize("damage", [lambda file: file.unlink(), lambda file: file.write_bytes(b"damaged")])
def test_a_missing_or_damaged_index_is_a_loss(
    repository: Repository, versions: list[Version], target: str, config: Path, damage: Callable[[Path], object]
) -> None:
    damage(config.parent / "data" / "catalog" / "index")
    report, losses = recovered(repository, target)
    assert report.versions == len(versions)
    assert list(lost(losses)) == ["catalog/index"]
    assert lost(losses)["catalog/index"].endswith(": versions may be missing without being noticed")
    with opened(reopened(repository, config, target)) as other:
        publish(other)
        assert index_of(other).versions == tuple(sorted(version.uid for version in versions))
        assert found_by_check(other) == set()


@once
def test_an_older_repository_object_is_reported(
    repository: Repository, versions: list[Version], target: str, config: Path
) -> None:
    assert versions
    file = config.parent / "data" / "catalog" / "repository"
    secret = Secret(passphrase="of somebody who left")
    key = repository.blocks.keyring.repository_key
    assert key is not None
    cost = Cost(memory_kib=64, passes=1, lanes=1)
    slot = make_slot(secret, key, label="gone", created_at=NOW, cost=cost)
    with repository.database.write() as connection:
        add_key_slot(connection, slot)
    publish(repository)
    kept = file.read_bytes()
    with repository.database.write() as connection:
        remove_key_slot(connection, "gone")
    publish(repository)
    file.write_bytes(kept)
    _, losses = recovered(repository, target)
    assert list(lost(losses)) == ["catalog/repository"]
    assert "with key slots that were removed" in lost(losses)["catalog/repository"]


@once
def test_a_removed_version_that_was_put_back_is_reported(
    repository: Repository, versions: list[Version], target: str, config: Path
) -> None:
    file = config.parent / "data" / version_name(versions[0].uid)
    kept = file.read_bytes()
    remove_versions(repository, versions[:1], now=datetime.now(UTC))
    publish(repository)
    file.write_bytes(kept)
    report, losses = recovered(repository, target)
    assert (report.unlisted, losses) == ([versions[0].uid], [])


@once
def test_a_recovered_database_continues_the_numbers_of_the_index(
    repository: Repository, versions: list[Version], target: str, config: Path
) -> None:
    assert versions
    before = index_of(repository)
    report, losses = recovered(repository, target)
    assert (report.index, report.unlisted, losses) == (before, [], [])
    with opened(reopened(repository, config, target)) as other:
        assert found_by_check(other) == set()
        publish(other)
        assert index_of(other).number == before.number + 1
        assert found_by_check(other) == set()


@once
def test_a_command_killed_between_repository_and_index_is_not_mistaken_for_an_attack(
    repository: Repository, versions: list[Version], target: str
) -> None:
    assert versions
    with repository.database.write() as connection:
        note_repository(connection)

    class Killed(Exception):  # noqa: N818
        pass

    class UpToIndex(Ordered):
        def put(self, key: Key, parts: Sequence[Buffer]) -> int:
            if key == "catalog/index":
                raise Killed
            return super().put(key, parts)

    storage = UpToIndex(repository.blocks.storage)
    with pytest.raises(Killed):
        publish(with_storage(repository, storage))
    assert recovered(repository, target)[1] == []


# Recovery of the database


def test_everything_is_recovered(
    repository: Repository, versions: list[Version], images: list[Path], config: Path, target: str, tmp_path: Path
) -> None:
    report, losses = recovered(repository, target)
    assert (report.versions, report.pages, report.invalid, losses) == (3, 4, [], [])
    with repository.database.read() as connection:
        statistics = list_all_statistics(connection)
        slots = list_key_slots(connection)
        identity = load_identity(connection)
    before = facts(repository)
    with opened(reopened(repository, config, target)) as other:
        audit(other)
        assert facts(other) == before
        with other.database.read() as connection:
            assert differences(connection) == []
            assert list_all_statistics(connection) == statistics
            assert list_key_slots(connection) == slots
            assert load_identity(connection) == identity
            found = {version.uid: version for version in list_versions(connection)}
        for version, image in zip(versions, images, strict=True):
            assert bytes_of(other, found[version.uid], tmp_path / "restored") == image.read_bytes()
        assert found_by_check(other) == set()


def test_a_recovered_repository_can_be_used(
    repository: Repository, versions: list[Version], images: list[Path], config: Path, target: str, tmp_path: Path
) -> None:
    recovered(repository, target)
    with opened(reopened(repository, config, target)) as other:
        report = back_up(other, images[1])
        assert report.statistics.blocks_written == 0
        with other.database.read() as connection:
            gone = [version for version in list_versions(connection) if version.uid == versions[0].uid]
        remove_versions(other, gone, now=datetime.now(UTC) + timedelta(days=1))
        cleanup(other, grace_s=0)
        publish(other)
        audit(other)
        assert found_by_check(other) == set()
        assert bytes_of(other, report.version, tmp_path / "restored") == images[1].read_bytes()


def test_a_version_with_a_lost_page_is_invalid_and_the_rest_of_it_is_recovered(
    repository: Repository, versions: list[Version], images: list[Path], config: Path, target: str, tmp_path: Path
) -> None:
    with repository.database.read() as connection:
        query = text("SELECT p.uid FROM version_pages v JOIN pages p ON p.id = v.page_id WHERE v.version_id = :id AND "
                     "v.page_no = 1")  # fmt: skip
        uid = connection.execute(query, {"id": versions[1].id}).scalar_one()
    repository.blocks.storage.delete([page_name(uid)])
    report, losses = recovered(repository, target)
    assert [(loss.name, loss.version, loss.fault.fact) for loss in losses] == [
        (page_name(uid), versions[1].uid, "is missing from the storage")
    ]
    assert (report.versions, report.invalid) == (3, [versions[1].uid])
    with opened(reopened(repository, config, target)) as other:
        audit(other)
        with other.database.read() as connection:
            found = {version.uid: version for version in list_versions(connection)}
        assert [found[version.uid].status for version in versions] == [
            VersionStatus.VALID, VersionStatus.INVALID, VersionStatus.VALID,
        ]  # fmt: skip
        place = tmp_path / "restored"
        damaged = restore(other, found[versions[1].uid], str(place), replace=True).damaged
        assert [(one.start, one.stop) for one in damaged] == [(PAGE_BYTES, versions[1].size_bytes)]
        assert place.read_bytes()[:PAGE_BYTES] == images[1].read_bytes()[:PAGE_BYTES]
        publish(other)
        # References to the lost page are kept in case it is found again.
        assert (version_name(versions[1].uid), DIFFERS) in found_by_check(other)


@once
def test_a_version_with_a_damaged_object_is_reported_and_the_others_are_recovered(
    repository: Repository, versions: list[Version], config: Path, target: str
) -> None:
    file = config.parent / "data" / version_name(versions[0].uid)
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    (file.parent / "not-of-ours").write_bytes(b"x")
    report, losses = recovered(repository, target)
    assert {loss.name for loss in losses} == {version_name(versions[0].uid), "catalog/versions/not-of-ours"}
    assert report.versions == 2
    with opened(reopened(repository, config, target)) as other:
        audit(other)
        assert {version.uid for version in facts(other)} == {versions[1].uid, versions[2].uid}


def test_blocks_with_missing_objects_are_found_on_request(
    repository: Repository, versions: list[Version], config: Path, target: str
) -> None:
    with repository.database.read() as connection:
        query = select(blobs.c.uid).order_by(blobs.c.id.desc()).limit(1)
        uid = connection.execute(query).scalar_one()  # only of the second image: the others share theirs
    repository.blocks.storage.delete([uid])
    report, losses = recovered(repository, target, check_objects=True)
    assert [(loss.name, loss.fault.fact) for loss in losses] == [(f"{uid}.blob", "is missing from the storage")]
    assert report.invalid == [versions[1].uid]
    with opened(reopened(repository, config, target)) as other, other.database.read() as connection:
        assert connection.execute(select(blobs.c.uid).where(blobs.c.valid.is_(False))).scalars().all() == [uid]


def test_a_damaged_version_is_valid_again_after_a_recovery_and_a_repair(
    repository: Repository, versions: list[Version], images: list[Path], config: Path, target: str
) -> None:
    with repository.database.read() as connection:
        uid = connection.execute(select(blobs.c.uid).order_by(blobs.c.id.desc()).limit(1)).scalar_one()
    repository.blocks.storage.delete([uid])
    assert full_cleanup(repository).versions_invalid == (versions[1].uid,)
    publish(repository)
    recovered(repository, target)
    with opened(reopened(repository, config, target)) as other:
        assert back_up(other, images[1]).versions_valid == (versions[1].uid,)


def test_a_database_that_is_not_empty_is_refused(repository: Repository, versions: list[Version]) -> None:
    before = facts(repository)
    with pytest.raises(SchemaError, match="already contains tables; name an empty database"):
        recovered(repository, repository.config.database_url)
    assert len(versions) == 3
    assert facts(repository) == before


def test_an_interrupted_recovery_starts_again_and_is_not_a_repository_until_then(
    repository: Repository, versions: list[Version], config: Path, target: str
) -> None:
    with pytest.raises(InterruptedByUser, match="run the same command again"):
        recovered(repository, target, control=Control(stop=stopping_after(5)))
    with closing(Database(target)) as database:
        assert database.schema().revision == RECOVERING
        with pytest.raises(SchemaError, match=r"is incomplete: a recovery is still running or did not finish"):
            database.check_revision()
    report, losses = recovered(repository, target)
    assert (report.versions, losses) == (len(versions), [])
    before = facts(repository)
    with opened(reopened(repository, config, target)) as other:
        audit(other)
        assert facts(other) == before


# Keys


@once
def test_the_wrong_key_opens_nothing(repository: Repository) -> None:
    with pytest.raises(WrongKeyError, match="is not the key of this repository"):
        open_catalog(repository.blocks.storage, lambda _found: Secret(key=bytes(32)), None)
    with pytest.raises(WrongKeyError, match="does not open the catalog of repository"):
        open_catalog(repository.blocks.storage, lambda _found: Secret(), bytes(32))


@once
def test_the_key_of_a_recovery_page_opens_the_catalog(repository: Repository) -> None:
    key = repository.blocks.keyring.repository_key
    catalog = open_catalog(repository.blocks.storage, lambda _found: Secret(), key)
    assert catalog.repository.identity.uid == repository.uid


@once
def test_a_storage_without_a_catalog_is_reported(repository: Repository) -> None:
    repository.blocks.storage.delete([ObjectName("catalog/repository")])
    with pytest.raises(CatalogError, match="the storage has no object catalog/repository: no catalog was written"):
        open_catalog(repository.blocks.storage, lambda _found: Secret(), None)


@once
def test_a_repository_without_its_key_writes_nothing_to_the_catalog(
    repository: Repository, versions: list[Version]
) -> None:
    keyring = replace(repository.blocks.keyring, repository_key=None)
    without = replace(repository, blocks=replace(repository.blocks, keyring=keyring))
    with pytest.raises(MissingKeyError):
        found_by_change(without, versions[0])
    publish(repository)
    assert found_by_check(repository) == set()


@once
def test_a_new_repository_key_makes_everything_be_written_again(
    repository: Repository, versions: list[Version]
) -> None:
    keyring = replace(repository.blocks.keyring, repository_key=bytes(32))
    rekeyed = replace(repository, blocks=replace(repository.blocks, keyring=keyring))
    found_by_change(rekeyed, versions[0])
    assert found_by_check(rekeyed) == set()
    assert len(found_by_check(repository)) == 2 + 3 + 4  # the previous key opens nothing
