"""What was found damaged is stored anew by whoever has its bytes, and all versions that use it are whole again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from backyfs.engine.pipeline import Pipeline
from backyfs.errors import InterruptedByUser, StorageError
from backyfs.model import Deduplication, VersionStatus
from tests.audit import audit
from tests.images import random_bytes, random_image
from tests.mount.stored import blob_of, file_of, flip_a_byte
from tests.repositories import BLOCK, back_up, make_repository, opened
from tests.unit.test_backup_restore import restored
from tests.unit.test_scrub import damaged_uids, scrubbed, status, version_of


@pytest.fixture
def repository(tmp_path):
    with opened(make_repository(tmp_path / "repository")) as repository:
        yield repository


def damage(repository, version, *indexes):
    """Damage the objects of blocks, and let a scrub find it."""
    for index in indexes:
        flip_a_byte(file_of(repository, blob_of(repository, version, index)))
    scrubbed(repository, version)
    assert status(repository, version) is VersionStatus.INVALID


def is_valid(repository, version):
    return status(repository, version) is VersionStatus.VALID


# By the next backup


def test_a_backup_that_meets_the_bytes_of_a_damaged_blob_heals_all_versions(repository, tmp_path):
    image = random_image(tmp_path / "image", 4 * BLOCK + 5)
    first = version_of(repository, image)
    content = image.read_bytes()
    with image.open("r+b") as file:
        file.write(random_bytes(BLOCK, 1))
    second = version_of(repository, image)
    damage(repository, first, 1, 4)
    assert not is_valid(repository, second)

    # Elsewhere, in an image of another name; the short block at its end as well.
    other = tmp_path / "other"
    other.write_bytes(content[BLOCK : 2 * BLOCK] * 2 + random_bytes(BLOCK, 2) + content[4 * BLOCK :])
    report = back_up(repository, other, "other")
    assert report.blobs_repaired == 2
    assert set(report.versions_valid) == {first.uid, second.uid}
    assert report.statistics.blocks_written == 3
    assert damaged_uids(repository) == set()
    assert is_valid(repository, first)
    assert is_valid(repository, second)
    assert restored(repository, first, tmp_path) == content
    assert restored(repository, report.version, tmp_path) == other.read_bytes()
    assert blob_of(repository, first, 1).id == blob_of(repository, report.version, 0).id
    assert scrubbed(repository)[0].blobs_damaged == 0
    audit(repository)


def test_a_version_with_damage_that_is_left_stays_invalid(repository, tmp_path):
    image = random_image(tmp_path / "image", 3 * BLOCK)
    version = version_of(repository, image)
    damage(repository, version, 0, 2)
    part = tmp_path / "part"
    part.write_bytes(image.read_bytes()[:BLOCK])
    report = back_up(repository, part, "part")
    assert (report.blobs_repaired, report.versions_valid) == (1, ())
    assert not is_valid(repository, version)
    report = back_up(repository, image)
    assert (report.blobs_repaired, report.versions_valid) == (1, (version.uid,))


@pytest.mark.parametrize("deduplication", list(Deduplication))
def test_every_kind_of_deduplication_heals(repository, tmp_path, deduplication):
    image = random_image(tmp_path / "image", 3 * BLOCK)
    first = version_of(repository, image)
    damage(repository, first, 1)
    changed = replace(
        repository, deduplication=deduplication, blocks=replace(repository.blocks, encryption_version=1)
    )
    report = back_up(changed, image)
    assert report.blobs_repaired == 1
    assert restored(repository, first, tmp_path) == image.read_bytes()
    assert restored(repository, report.version, tmp_path) == image.read_bytes()
    # Without deduplication no block of a version is that of another one.
    shared = blob_of(repository, first, 1).id == blob_of(repository, report.version, 1).id
    assert shared is (deduplication is not Deduplication.OFF)
    audit(repository)


def test_a_damaged_blob_whose_bytes_another_one_has_is_healed_too(repository, tmp_path):
    image = random_image(tmp_path / "image", 3 * BLOCK)
    first = version_of(repository, image)
    separate = replace(repository, deduplication=Deduplication.OFF)
    second = version_of(separate, image)
    damage(repository, first, 0, 1)
    report = back_up(repository, image)
    assert (report.blobs_repaired, report.statistics.blocks_written) == (2, 0)
    assert restored(repository, first, tmp_path) == image.read_bytes()
    assert blob_of(repository, report.version, 0).id == blob_of(repository, second, 0).id
    assert is_valid(repository, first)
    audit(repository)


def test_where_nothing_is_damaged_nothing_is_asked_for(repository, tmp_path, monkeypatch):
    image = random_image(tmp_path / "image", 3 * BLOCK)
    version_of(repository, image)
    monkeypatch.setattr("backyfs.engine.repairs.damaged_with", None)
    assert back_up(repository, image).blobs_repaired == 0


class Later:
    """A storage that does something when it is flushed for the first time."""

    def __init__(self, storage, then):
        self._storage = storage
        self._then = [then]

    def __getattr__(self, name):
        return getattr(self._storage, name)

    def flush(self):
        while self._then:
            self._then.pop()()
        self._storage.flush()


def test_who_is_slower_with_a_repair_has_a_blob_of_its_own(repository, tmp_path):
    image = random_image(tmp_path / "image", 3 * BLOCK)
    first = version_of(repository, image)
    damage(repository, first, 1)
    reports = []
    storage = Later(repository.blocks.storage, lambda: reports.append(back_up(repository, image)))
    report = back_up(replace(repository, blocks=replace(repository.blocks, storage=storage)), image)
    assert (reports[0].blobs_repaired, report.blobs_repaired) == (1, 0)
    for version in (first, reports[0].version, report.version):
        assert restored(repository, version, tmp_path) == image.read_bytes()
        assert is_valid(repository, version)
    audit(repository)


def test_a_flush_that_fails_leaves_the_damaged_blob_as_it_is(repository, tmp_path):
    image = random_image(tmp_path / "image", 3 * BLOCK)
    first = version_of(repository, image)
    damage(repository, first, 1)
    before = damaged_uids(repository)

    def fail():
        raise StorageError("no space")

    storage = Later(repository.blocks.storage, fail)
    with pytest.raises(StorageError):
        back_up(replace(repository, blocks=replace(repository.blocks, storage=storage)), image)
    # What was put is entered when the storage takes it after all.
    assert restored(repository, back_up(repository, image).version, tmp_path) == image.read_bytes()
    assert before.isdisjoint(damaged_uids(repository))
    assert is_valid(repository, first)


def test_a_version_that_was_repaired_before_a_kill_is_valid_after_the_next_backup(repository, tmp_path, monkeypatch):
    image = random_image(tmp_path / "image", 3 * BLOCK)
    first = version_of(repository, image)
    damage(repository, first, 1)
    run = Pipeline.run

    def killed(self):
        run(self)
        raise InterruptedByUser("as if")

    with monkeypatch.context() as patched:
        patched.setattr(Pipeline, "run", killed)
        with pytest.raises(InterruptedByUser):
            back_up(repository, image)
    assert damaged_uids(repository) == set()
    assert not is_valid(repository, first)
    assert back_up(repository, image).versions_valid == (first.uid,)
