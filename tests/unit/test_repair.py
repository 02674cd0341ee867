"""Any backup or repair that has the bytes of a damaged block stores it again, which heals all versions that use it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import update

from backyfs.engine.backup.pipeline import Pipeline
from backyfs.engine.damage.repair import RepairRequest, repair
from backyfs.engine.damage.suspects import check_suspects
from backyfs.engine.restore.restore import restore
from backyfs.errors import InterruptedByUser, SourceError, StorageError, WrongStorageError
from backyfs.geometry import Extent
from backyfs.metadata.db.tables import blobs, versions
from backyfs.model import Deduplication, VersionStatus
from backyfs.remedies import Advice
from backyfs.sources.registry import open_source
from backyfs.work.run import Control
from tests.support.audit import audit, count_blobs
from tests.support.images import random_bytes, random_image
from tests.support.repositories import BLOCK, back_up, make_repository, opened, restored
from tests.support.stored import blob_of, blob_uids, file_of, flip_a_byte
from tests.unit.test_scrub import damaged_uids, scrubbed, status, version_of

pytestmark = pytest.mark.slow


def damage(repository, version, *indexes):
    """Damage the objects of blocks, and run a scrub to find the damage."""
    for index in indexes:
        flip_a_byte(file_of(repository, blob_of(repository, version, index)))
    scrubbed(repository, version)
    assert status(repository, version) is VersionStatus.INVALID


def is_valid(repository, version):
    return status(repository, version) is VersionStatus.VALID


# Repair by the next backup


def test_a_backup_that_reads_the_bytes_of_a_damaged_blob_heals_all_versions(repository, tmp_path):
    image = random_image(tmp_path / "image", 4 * BLOCK + 5)
    first = version_of(repository, image)
    content = image.read_bytes()
    with image.open("r+b") as file:
        file.write(random_bytes(BLOCK, 1))
    second = version_of(repository, image)
    damage(repository, first, 1, 4)
    assert not is_valid(repository, second)

    # At another place, in an image of another name, including the short block at its end.
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


def test_the_next_backup_stores_again_what_a_restore_found_damaged(repository, tmp_path):
    image = random_image(tmp_path / "image", 4 * BLOCK)
    version = version_of(repository, image)
    file_of(repository, blob_of(repository, version, 1)).unlink()
    flip_a_byte(file_of(repository, blob_of(repository, version, 2)))
    report = restore(repository, version, str(tmp_path / "out"))
    assert [(damage.start, damage.stop) for damage in report.damaged] == [(BLOCK, 2 * BLOCK), (2 * BLOCK, 3 * BLOCK)]
    assert damaged_uids(repository) == {blob_of(repository, version, index).uid for index in (1, 2)}
    assert not is_valid(repository, version)
    backup = back_up(repository, image)
    assert (backup.blobs_repaired, backup.versions_valid) == (2, (version.uid,))
    assert restored(repository, version, tmp_path) == image.read_bytes()


def test_a_restore_does_not_mark_objects_that_were_away_for_a_moment(repository, tmp_path, monkeypatch):
    version = version_of(repository, random_image(tmp_path / "image", 4 * BLOCK))
    file = file_of(repository, blob_of(repository, version, 1))
    away = file.rename(file.with_suffix(".away"))

    def comes_back(*arguments):
        away.rename(file)
        check_suspects(*arguments)

    monkeypatch.setattr("backyfs.engine.restore.restore.check_suspects", comes_back)
    assert len(restore(repository, version, str(tmp_path / "out")).damaged) == 1
    assert damaged_uids(repository) == set()
    assert is_valid(repository, version)


def test_a_missing_storage_ends_a_restore_and_marks_nothing(repository, tmp_path):
    version = version_of(repository, random_image(tmp_path / "image", 4 * BLOCK))
    data = tmp_path / "repository" / "data"
    data.rename(tmp_path / "away")
    data.mkdir()
    with pytest.raises(WrongStorageError, match="is not the one that was opened: its file system was unmounted"):
        restore(repository, version, str(tmp_path / "out"))
    (data.rmdir(), (tmp_path / "away").rename(data))
    assert damaged_uids(repository) == set()
    assert is_valid(repository, version)


def test_a_version_with_remaining_damage_is_still_invalid(repository, tmp_path):
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
    # Without deduplication, versions do not share blocks.
    shared = blob_of(repository, first, 1).id == blob_of(repository, report.version, 1).id
    assert shared is (deduplication is not Deduplication.OFF)
    audit(repository)


def test_a_damaged_blob_with_the_bytes_of_another_is_healed_too(repository, tmp_path):
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


def test_without_damage_a_backup_does_not_query_damaged_blobs(repository, tmp_path, monkeypatch):
    image = random_image(tmp_path / "image", 3 * BLOCK)
    version_of(repository, image)
    monkeypatch.setattr("backyfs.engine.backup.healing.damaged_with", None)
    assert back_up(repository, image).blobs_repaired == 0


class Later:
    """A storage that calls a function when it is first flushed."""

    def __init__(self, storage, then):
        self._storage = storage
        self._then = [then]

    def __getattr__(self, name):
        return getattr(self._storage, name)

    def flush(self):
        while self._then:
            self._then.pop()()
        self._storage.flush()


def test_the_slower_of_two_repairs_stores_a_separate_blob(repository, tmp_path):
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


def test_a_failed_flush_leaves_the_damaged_blob_unchanged(repository, tmp_path):
    image = random_image(tmp_path / "image", 3 * BLOCK)
    first = version_of(repository, image)
    damage(repository, first, 1)
    before = damaged_uids(repository)

    def fail():
        raise StorageError("no space")

    storage = Later(repository.blocks.storage, fail)
    with pytest.raises(StorageError):
        back_up(replace(repository, blocks=replace(repository.blocks, storage=storage)), image)
    # The block is recorded when the storage accepts it after all.
    assert restored(repository, back_up(repository, image).version, tmp_path) == image.read_bytes()
    assert before.isdisjoint(damaged_uids(repository))
    assert is_valid(repository, first)


def test_a_version_repaired_before_a_kill_is_valid_after_the_next_backup(repository, tmp_path, monkeypatch):
    image = random_image(tmp_path / "image", 3 * BLOCK)
    first = version_of(repository, image)
    damage(repository, first, 1)
    store = Pipeline.store

    def killed(self):
        store(self)
        raise InterruptedByUser("as if")

    with monkeypatch.context() as patched:
        patched.setattr(Pipeline, "store", killed)
        with pytest.raises(InterruptedByUser):
            back_up(repository, image)
    assert damaged_uids(repository) == set()
    assert not is_valid(repository, first)
    assert back_up(repository, image).versions_valid == (first.uid,)


# Repair on demand


def repaired(repository, *versions, image=None, **request):
    """Repair these versions, or all; return the report, and uid, start, stop and reason of each reported range."""
    reported = []
    source = None if image is None else open_source(str(image))
    try:
        report = repair(
            repository,
            RepairRequest(versions=versions or None, source=source, **request),
            on_damage=lambda version, damage: reported.append((version.uid, damage.start, damage.stop, damage.reason)),
        )
    finally:
        if source is not None:
            source.close()
    return report, reported


def test_damaged_blocks_are_repaired_from_the_same_place_in_an_image(repository, tmp_path):
    image = random_image(tmp_path / "image", 5 * BLOCK + 7)
    first = version_of(repository, image)
    second = version_of(repository, image, "other")
    damage(repository, first, 1, 5)
    report, reported = repaired(repository, first, image=image)
    assert (report.blobs_damaged, report.blobs_repaired, report.blobs_left, reported) == (2, 2, 0, [])
    assert report.bytes_repaired == BLOCK + 7
    assert set(report.versions_valid) == {first.uid, second.uid}
    assert restored(repository, second, tmp_path) == image.read_bytes()
    assert scrubbed(repository)[0].blobs_damaged == 0
    audit(repository)


def test_only_correct_bytes_are_stored(repository, tmp_path):
    image = random_image(tmp_path / "image", 3 * BLOCK)
    version = version_of(repository, image)
    damage(repository, version, 0, 2)
    with image.open("r+b") as file:
        file.write(random_bytes(BLOCK, 1))
    report, reported = repaired(repository, image=image)
    assert (report.blobs_repaired, report.blobs_left, report.versions_valid) == (1, 1, ())
    assert [line[:3] for line in reported] == [(version.uid, 0, BLOCK)]
    assert report.remedy == Advice.SEARCH_SOURCE()
    assert "the source does not have its bytes in the same places" in reported[0][3]
    assert not is_valid(repository, version)


def test_an_image_is_searched_for_blocks_that_moved(repository, tmp_path):
    image = random_image(tmp_path / "image", 4 * BLOCK + 9)
    version = version_of(repository, image)
    content = image.read_bytes()
    damage(repository, version, 1, 4)
    moved = tmp_path / "moved"
    moved.write_bytes(bytes(1100 * BLOCK) + content[4 * BLOCK :] + bytes(BLOCK - 9) + content[: 3 * BLOCK])
    assert repaired(repository, image=moved)[0].blobs_repaired == 0
    report, reported = repaired(repository, image=moved, search=True)
    assert (report.blobs_repaired, reported, report.versions_valid) == (2, [], (version.uid,))
    assert restored(repository, version, tmp_path) == content


def test_a_dry_run_reports_possible_repairs_and_stores_nothing(repository, tmp_path):
    image = random_image(tmp_path / "image", 3 * BLOCK)
    version = version_of(repository, image)
    damage(repository, version, 0, 2)
    before = (count_blobs(repository), damaged_uids(repository), set(blob_uids(repository.blocks.storage)))
    with image.open("r+b") as file:
        file.write(random_bytes(BLOCK, 1))
    report, reported = repaired(repository, image=image, dry_run=True)
    assert (report.blobs_repaired, report.blobs_left) == (1, 1)
    assert [line[:3] for line in reported] == [(version.uid, 0, BLOCK)]
    assert (count_blobs(repository), damaged_uids(repository), set(blob_uids(repository.blocks.storage))) == before
    assert not is_valid(repository, version)


def test_another_blob_with_the_same_bytes_is_enough(repository, tmp_path):
    image = random_image(tmp_path / "image", 3 * BLOCK)
    first = version_of(repository, image)
    version_of(replace(repository, deduplication=Deduplication.OFF), image)
    damage(repository, first, 1)
    report, reported = repaired(repository)
    assert (report.blobs_repaired, reported, report.versions_valid) == (1, [], (first.uid,))
    assert restored(repository, first, tmp_path) == image.read_bytes()


def test_only_blobs_of_the_named_versions_are_repaired(repository, tmp_path):
    image, other = random_image(tmp_path / "image", BLOCK), random_image(tmp_path / "other", BLOCK, 1)
    first, second = version_of(repository, image), version_of(repository, other, "other")
    damage(repository, first, 0)
    damage(repository, second, 0)
    both = tmp_path / "both"
    both.write_bytes(image.read_bytes() + other.read_bytes())
    report, reported = repaired(repository, first, image=both, search=True)
    assert (report.blobs_damaged, report.blobs_repaired, reported) == (1, 1, [])
    assert is_valid(repository, first)
    assert not is_valid(repository, second)


def test_a_blob_without_a_fingerprint_cannot_be_repaired(repository, tmp_path):
    image = random_image(tmp_path / "image", BLOCK)
    version = version_of(repository, image)
    with repository.database.write() as connection:
        connection.execute(update(blobs).values(fingerprint=None))
    damage(repository, version, 0)
    report, reported = repaired(repository, image=image, search=True)
    assert (report.blobs_repaired, report.blobs_left) == (0, 1)
    assert "no fingerprint" in reported[0][3]


def test_a_repair_without_damage_does_nothing(repository, tmp_path):
    image = random_image(tmp_path / "image", BLOCK)
    version = version_of(repository, image)
    report, reported = repaired(repository, version, image=image, search=True)
    assert (report.blobs_damaged, report.blobs_repaired, reported) == (0, 0, [])


def test_an_interrupted_repair_keeps_its_results(repository, tmp_path):
    image = random_image(tmp_path / "image", 3 * BLOCK)
    version = version_of(repository, image)
    damage(repository, version, 0, 1, 2)
    asked = iter([False, False, True])
    source = open_source(str(image))
    with pytest.raises(InterruptedByUser, match="run the command again"):
        repair(repository, RepairRequest(source=source), control=Control(stop=lambda: next(asked)))
    source.close()
    assert len(damaged_uids(repository)) == 1
    report, _ = repaired(repository, image=image)
    assert (report.blobs_repaired, report.versions_valid) == (1, (version.uid,))
    audit(repository)


def test_unreadable_places_of_a_source_are_skipped(repository, tmp_path):
    image = random_image(tmp_path / "image", 3 * BLOCK)
    version = version_of(repository, image)
    damage(repository, version, 0, 2)

    class Bad:
        size_bytes = 3 * BLOCK

        def data_extents(self):
            return iter([Extent(0, 3 * BLOCK)])

        def read_into(self, offset, buffer):
            if offset < BLOCK:
                raise SourceError("bad sector")
            buffer[:] = image.read_bytes()[offset : offset + len(buffer)]

        def close(self):
            pass

    for search in (False, True):
        source: Any = Bad()
        report = repair(repository, RepairRequest(source=source, search=search))
        assert (report.blobs_repaired, report.blobs_left) == (0 if search else 1, 1)


# Repair from another repository


@pytest.mark.parametrize("block_size", [BLOCK, 4 * BLOCK, 512])
def test_another_repository_with_the_same_backup_provides_its_blocks(repository, tmp_path, block_size):
    image = random_image(tmp_path / "image", 9 * BLOCK + 1)
    version = version_of(repository, image)
    damage(repository, version, 3, 9)
    config = make_repository(tmp_path / "other", block_size=block_size, encrypted=False)
    with opened(config) as other:
        copy = version_of(other, image)
        assert repaired(repository, other=other)[0].blobs_repaired == 0  # which could be another backup
        with other.database.write() as connection:
            same = {"created_at": version.created_at} if block_size == 512 else {"uid": version.uid}
            connection.execute(update(versions).where(versions.c.id == copy.id).values(**same))
        report, reported = repaired(repository, other=other)
    assert (report.blobs_repaired, reported, report.versions_valid) == (2, [], (version.uid,))
    assert restored(repository, version, tmp_path) == image.read_bytes()


def test_another_repository_with_the_same_fingerprints_provides_its_blobs(tmp_path):
    with (
        opened(make_repository(tmp_path / "repository", encrypted=False)) as repository,
        opened(make_repository(tmp_path / "other", encrypted=False)) as other,
    ):
        image = random_image(tmp_path / "image", 3 * BLOCK)
        version = version_of(repository, image)
        damage(repository, version, 1)
        elsewhere = tmp_path / "elsewhere"
        elsewhere.write_bytes(random_bytes(BLOCK, 1) + image.read_bytes())
        copy = version_of(other, elsewhere, "another name")
        flip_a_byte(file_of(other, blob_of(other, copy, 1)))
        report, reported = repaired(repository, other=other)
        assert (report.blobs_repaired, reported) == (1, [])
        assert restored(repository, version, tmp_path) == image.read_bytes()


def test_blobs_damaged_in_both_repositories_are_not_repaired(repository, tmp_path):
    image = random_image(tmp_path / "image", 3 * BLOCK)
    version = version_of(repository, image)
    damage(repository, version, 1, 2)
    with opened(make_repository(tmp_path / "other")) as other:
        copy = version_of(other, image)
        with other.database.write() as connection:
            connection.execute(update(versions).values(uid=version.uid))
        flip_a_byte(file_of(other, blob_of(other, copy, 1)))
        report, reported = repaired(repository, other=other)
    assert (report.blobs_repaired, report.blobs_left) == (1, 1)
    assert [line[:3] for line in reported] == [(version.uid, BLOCK, 2 * BLOCK)]
