"""A scrub finds and marks all damage, and marks nothing else."""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import delete, insert, select, update

from backyfs.engine.damage.scrub import ScrubRequest, scrub
from backyfs.errors import InterruptedByUser, MissingKeyError, ObjectUnreadableError, StorageError, UsageError
from backyfs.metadata.db.tables import blob_checks, blobs, damaged_versions, stats
from backyfs.metadata.records.jobs import list_live_jobs
from backyfs.metadata.records.processes import this_process
from backyfs.metadata.records.versions import list_versions, set_status, version_with_uid
from backyfs.model import VersionStatus
from backyfs.sources.registry import open_source
from backyfs.storage.forwarding import ForwardingStorage
from backyfs.storage.protocol import MAX_OBJECT_BYTES
from backyfs.work.run import Control
from tests.support.audit import count_blobs, count_jobs, doom
from tests.support.images import overwrite, random_bytes, random_image, sparse_image
from tests.support.repositories import BLOCK, back_up, make_repository, opened, restored, with_limits
from tests.support.stored import blob_of, file_of, flip_a_byte, incomplete_copy, remove_version, truncate

pytestmark = pytest.mark.slow

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


@pytest.fixture(params=[True, False], ids=["encrypted", "plain"])
def repository(request, tmp_path):
    with opened(make_repository(tmp_path / "repository", encrypted=request.param)) as repository:
        yield repository


@pytest.fixture
def plain(tmp_path):
    with opened(make_repository(tmp_path / "repository", encrypted=False)) as repository:
        yield repository


class Spy(ForwardingStorage):
    """A storage that records what is read from it, and calls a function before each read."""

    def __init__(self, storage, before=lambda _number, _uid: None):
        super().__init__(storage)
        self._before = before
        self.read = []

    def get(self, key, *, most=MAX_OBJECT_BYTES):
        self.read.append(key)
        self._before(len(self.read), key)
        return super().get(key, most=most)


def spied(repository, before=lambda _number, _uid: None):
    """Return the repository with a spy as its storage, and the spy."""
    spy = Spy(repository.blocks.storage, before)
    return replace(repository, blocks=replace(repository.blocks, storage=spy)), spy


def scrubbed(repository, *versions, **request):
    """Scrub these versions, or all; return the report, and uid, start, stop and reason of each reported range."""
    reported = []
    report = scrub(
        repository,
        ScrubRequest(versions=versions or None, **request),
        on_damage=lambda version, damage: reported.append((version.uid, damage.start, damage.stop, damage.reason)),
    )
    return report, reported


def version_of(repository, image, name="disk"):
    return back_up(repository, image, name).version


def status(repository, version):
    with repository.database.read() as connection:
        found = version_with_uid(connection, version.uid)
    assert found is not None
    return found.status


def damaged_uids(repository):
    with repository.database.read() as connection:
        return set(connection.execute(select(blobs.c.uid).where(blobs.c.valid.is_(False))).scalars())


def checked(repository):
    """Return when each blob was checked, by its uid."""
    with repository.database.read() as connection:
        query = select(blobs.c.uid, blob_checks.c.checked_at).join(blob_checks)
        return {row.uid: row.checked_at for row in connection.execute(query)}


def set_checked(repository, blob, moment):
    with repository.database.write() as connection:
        connection.execute(delete(blob_checks).where(blob_checks.c.blob_id == blob.id))
        connection.execute(insert(blob_checks).values(blob_id=blob.id, checked_at=moment))


def swap(file, other):
    held = file.read_bytes()
    file.write_bytes(other.read_bytes())
    other.write_bytes(held)


# Sound blobs


def test_sound_blobs_are_counted_and_recorded(repository, tmp_path):
    version = version_of(repository, random_image(tmp_path / "image", 3 * BLOCK + 5))
    before = datetime.now(UTC)
    report, reported = scrubbed(repository, version)
    assert (report.blobs_checked, report.bytes_checked, report.blobs_damaged) == (4, 3 * BLOCK + 5, 0)
    assert (report.versions_invalid, report.versions_valid, reported) == ((), (), [])
    moments = checked(repository)
    assert len(moments) == 4
    assert all(before <= moment <= datetime.now(UTC) for moment in moments.values())
    assert status(repository, version) is VersionStatus.VALID
    assert count_jobs(repository) == 0


@pytest.mark.parametrize("size", [0, 5 * BLOCK])
def test_a_version_without_blobs_has_nothing_to_check(repository, tmp_path, size):
    version = version_of(repository, sparse_image(tmp_path / "image", size, {}))
    assert scrubbed(repository, version)[0].blobs_checked == 0
    assert scrubbed(repository)[0].blobs_checked == 0


def test_a_blob_is_read_once_however_many_blocks_and_versions_use_it(repository, tmp_path):
    image = tmp_path / "image"
    image.write_bytes(random_bytes(BLOCK) * 3 + random_bytes(BLOCK, 1))
    versions = [version_of(repository, image), version_of(repository, image, "other")]
    image.write_bytes(image.read_bytes() + random_bytes(7, 2))
    versions.append(version_of(repository, image))
    for chosen in (versions, []):
        watched, spy = spied(repository)
        assert scrubbed(watched, *chosen)[0].blobs_checked == 3
        assert len(spy.read) == len(set(spy.read)) == 3


def test_only_the_named_versions_are_read(repository, tmp_path):
    first = version_of(repository, random_image(tmp_path / "a", 3 * BLOCK))
    version_of(repository, random_image(tmp_path / "b", 2 * BLOCK, 1))
    watched, spy = spied(repository)
    assert scrubbed(watched, first)[0].blobs_checked == 3
    assert set(spy.read) == {blob_of(repository, first, index).uid for index in range(3)}


# Damage


@pytest.mark.parametrize("damage", [flip_a_byte, truncate, Path.unlink, lambda file: file.write_bytes(b"")])
def test_a_damaged_blob_is_marked_with_every_version_that_uses_it(repository, tmp_path, damage):
    image = random_image(tmp_path / "image", 3 * BLOCK + 5)
    first = version_of(repository, image)
    with image.open("r+b") as file:
        file.write(random_bytes(BLOCK, 1))
    second = version_of(repository, image)
    other = version_of(repository, random_image(tmp_path / "other", BLOCK, 2), "other")
    blob = blob_of(repository, first, 1)
    damage(file_of(repository, blob))

    report, reported = scrubbed(repository, second)  # the first one uses it too, but was not named
    assert report.blobs_damaged == 1
    assert [line[:3] for line in reported] == [(first.uid, BLOCK, 2 * BLOCK), (second.uid, BLOCK, 2 * BLOCK)]
    assert all(line[3].startswith(f"blob {blob.uid} ") for line in reported)
    assert report.versions_invalid == (first.uid, second.uid)
    assert damaged_uids(repository) == {blob.uid}
    assert blob.uid in checked(repository)
    assert [status(repository, version) for version in (first, second, other)] == ["invalid", "invalid", "valid"]

    # The block is stored again, and the new version is valid.
    third = back_up(repository, image)
    assert third.statistics.blocks_written == 1
    assert restored(repository, third.version, tmp_path) == image.read_bytes()
    assert scrubbed(repository, third.version)[0].blobs_damaged == 0


def test_swapped_blobs_are_both_damaged(repository, tmp_path):
    version = version_of(repository, random_image(tmp_path / "image", 3 * BLOCK))
    one, other = (blob_of(repository, version, index) for index in (0, 2))
    swap(file_of(repository, one), file_of(repository, other))
    _, reported = scrubbed(repository, version)
    assert [line[1:3] for line in reported] == [(0, BLOCK), (2 * BLOCK, 3 * BLOCK)]
    assert damaged_uids(repository) == {one.uid, other.uid}


def test_adjacent_ranges_of_a_blob_are_reported_as_one(repository, tmp_path):
    image = tmp_path / "image"
    image.write_bytes(random_bytes(BLOCK) * 2 + random_bytes(BLOCK, 1) + random_bytes(BLOCK) + b"end")
    version = version_of(repository, image)
    for index in (0, 4):
        flip_a_byte(file_of(repository, blob_of(repository, version, index)))
    _, reported = scrubbed(repository)
    assert [line[1:3] for line in reported] == [(0, 2 * BLOCK), (3 * BLOCK, 4 * BLOCK), (4 * BLOCK, 4 * BLOCK + 3)]


def test_everything_is_marked_before_a_range_is_reported(repository, tmp_path):
    version = version_of(repository, random_image(tmp_path / "image", 2 * BLOCK))
    flip_a_byte(file_of(repository, blob_of(repository, version, 0)))
    seen = []
    scrub(
        repository,
        ScrubRequest(versions=None),
        on_damage=lambda version, _: seen.append((status(repository, version), damaged_uids(repository))),
    )
    assert seen == [(VersionStatus.INVALID, {blob_of(repository, version, 0).uid})]


def test_damage_is_found_in_every_page(repository, tmp_path):
    version = version_of(repository, random_image(tmp_path / "image", 1030 * BLOCK))
    for index in (0, 1023, 1024, 1029):
        truncate(file_of(repository, blob_of(repository, version, index)))
    report, reported = scrubbed(repository)
    assert report.blobs_checked == 1030
    assert [line[1] // BLOCK for line in reported] == [0, 1023, 1024, 1029]


def test_a_blob_without_a_row_is_damage(plain, tmp_path):
    version = version_of(plain, random_image(tmp_path / "image", 2 * BLOCK))
    blob = blob_of(plain, version, 1)
    with plain.database.write() as connection:
        connection.execute(delete(blobs).where(blobs.c.id == blob.id))
    report, reported = scrubbed(plain, version)
    assert reported == [(version.uid, BLOCK, 2 * BLOCK, f"blob number {blob.id} has no row in the database")]
    assert report.versions_invalid == (version.uid,)


# Changes that are not damage


def test_a_blob_deleted_by_a_cleanup_in_the_meantime_is_not_damage(plain, tmp_path):
    version = version_of(plain, random_image(tmp_path / "image", 3 * BLOCK))
    kept = version_of(plain, random_image(tmp_path / "other", BLOCK, 1))
    blob = blob_of(plain, version, 1)

    def clean_up(number, _uid):
        if number == 1:
            remove_version(plain, version.uid)
            with plain.database.write() as connection:
                doom(connection, blob.id)
            file_of(plain, blob).unlink()

    watched, _ = spied(plain, clean_up)
    report, reported = scrubbed(watched)
    assert (report.blobs_damaged, reported) == (0, [])
    assert status(plain, kept) is VersionStatus.VALID


def test_a_row_deleted_by_a_cleanup_in_the_meantime_is_not_damage(plain, tmp_path):
    version = version_of(plain, random_image(tmp_path / "image", 600 * BLOCK))  # more than are looked up at once
    blob = blob_of(plain, version, 599)

    def clean_up(number, _uid):
        if number == 1:
            remove_version(plain, version.uid)
            with plain.database.write() as connection:
                connection.execute(delete(blobs).where(blobs.c.id == blob.id))

    watched, _ = spied(plain, clean_up)
    report, reported = scrubbed(watched)
    assert (report.blobs_damaged, reported) == (0, [])


def test_a_version_removed_in_the_meantime_is_left_out(repository, tmp_path):
    version = version_of(repository, random_image(tmp_path / "image", 2 * BLOCK))
    kept = version_of(repository, random_image(tmp_path / "other", BLOCK, 1))
    remove_version(repository, version.uid)
    assert scrubbed(repository, version, kept)[0].blobs_checked == 1
    assert scrubbed(repository, version)[0].blobs_checked == 0


def test_versions_are_held_only_if_they_were_named(plain, tmp_path):
    version = version_of(plain, random_image(tmp_path / "image", BLOCK))
    held = []

    def look(_number, _uid):
        with plain.database.read() as connection:
            held.append([(job.command, job.versions) for job in list_live_jobs(connection, this_process())])

    watched, _ = spied(plain, look)
    scrubbed(watched, version)
    scrubbed(watched)
    assert held == [[(f"scrub {version.uid}", (version.uid,))], [("scrub --all", ())]]


@pytest.mark.parametrize("chosen", [True, False])
def test_the_existing_blocks_of_an_incomplete_version_are_checked(repository, tmp_path, chosen):
    version = version_of(repository, random_image(tmp_path / "image", 3 * BLOCK))
    part = incomplete_copy(repository, version, [2])
    remove_version(repository, version.uid)
    flip_a_byte(file_of(repository, blob_of(repository, part, 1)))
    report, reported = scrubbed(repository, *([part] if chosen else []))
    assert report.blobs_checked == (2 if chosen else 3)
    assert [line[:3] for line in reported] == [(part.uid, BLOCK, 2 * BLOCK)]
    assert (status(repository, part), report.versions_invalid) == (VersionStatus.INCOMPLETE, ())


# Missing storages


def test_an_empty_storage_stops_the_scrub_and_nothing_is_marked(repository, tmp_path):
    version = version_of(repository, random_image(tmp_path / "image", 3 * BLOCK))
    storage = Path(repository.own_paths[0])
    for child in storage.iterdir():
        shutil.move(child, tmp_path)
    with pytest.raises(StorageError, match=r"returns none of 3 blobs, .*; is its file system mounted\?$"):
        scrubbed(repository, version)
    assert status(repository, version) is VersionStatus.VALID
    assert (damaged_uids(repository), checked(repository)) == (set(), {})


def test_a_storage_that_disappears_stops_the_scrub_and_earlier_checks_are_recorded(plain, tmp_path):
    plain = replace(plain, limits=replace(plain.limits, workers=1))
    version = version_of(plain, random_image(tmp_path / "image", 600 * BLOCK))
    gone = False

    def unmount(number, _uid):
        nonlocal gone
        if number == 100:
            gone = True
            storage = Path(plain.own_paths[0])
            (tmp_path / "away").mkdir()
            for child in storage.iterdir():
                shutil.move(child, tmp_path / "away")

    watched, _ = spied(plain, unmount)
    with pytest.raises(StorageError, match=r"returns none of .* none of them was marked as damaged; is its"):
        scrubbed(watched, version)
    assert gone
    assert (damaged_uids(plain), len(checked(plain))) == (set(), 99)
    assert status(plain, version) is VersionStatus.VALID


def test_a_storage_that_was_away_for_a_moment_does_not_matter(plain, tmp_path):
    version = version_of(plain, random_image(tmp_path / "image", 4 * BLOCK))
    file = file_of(plain, blob_of(plain, version, 1))

    def flicker(number, _uid):
        if number == 1:
            file.rename(tmp_path / "away")
        if number == 4:  # by then the scrub has looked for it
            (tmp_path / "away").rename(file)

    watched, spy = spied(plain, flicker)
    assert scrubbed(watched, version)[0].blobs_damaged == 0
    assert len(spy.read) == 5


def test_a_version_lost_completely_is_marked_if_others_can_be_read(repository, tmp_path):
    lost = version_of(repository, random_image(tmp_path / "image", 3 * BLOCK))
    version_of(repository, random_image(tmp_path / "other", 30 * BLOCK, 1))
    for index in range(3):
        file_of(repository, blob_of(repository, lost, index)).unlink()
    report, _ = scrubbed(repository, lost)
    assert (report.blobs_damaged, report.versions_invalid) == (3, (lost.uid,))


def test_the_only_blob_of_a_repository_is_marked(repository, tmp_path):
    version = version_of(repository, random_image(tmp_path / "image", BLOCK))
    file_of(repository, blob_of(repository, version, 0)).unlink()
    assert scrubbed(repository, version)[0].versions_invalid == (version.uid,)


def failing(number):
    def get(_number, uid):
        of_one = number in {errno.EIO, errno.EBADMSG, errno.EACCES}  # as in the directory storage
        raise (ObjectUnreadableError if of_one else StorageError)(f"storage: {uid}: {os.strerror(number)}")

    return get


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ESTALE])
def test_a_storage_that_fails_for_all_blobs_stops_the_scrub(repository, tmp_path, number):
    version = version_of(repository, random_image(tmp_path / "image", 3 * BLOCK))
    watched, _ = spied(repository, failing(number))
    with pytest.raises(StorageError):
        scrubbed(watched, version)
    assert (damaged_uids(repository), checked(repository)) == (set(), {})
    assert status(repository, version) is VersionStatus.VALID


@pytest.mark.parametrize("number", [errno.EIO, errno.EBADMSG, errno.EACCES])
def test_an_unreadable_blob_is_damage_if_others_can_be_read(repository, tmp_path, number):
    version = version_of(repository, random_image(tmp_path / "image", 3 * BLOCK))
    blob = blob_of(repository, version, 1)
    fail = failing(number)
    watched, spy = spied(repository, lambda number, uid: fail(number, uid) if uid == blob.uid else None)
    report, reported = scrubbed(watched, version)
    reason = f"blob {blob.uid} cannot be read: storage: {blob.uid}: {os.strerror(number)}"
    assert reported == [(version.uid, BLOCK, 2 * BLOCK, reason)]
    assert report.versions_invalid == (version.uid,)
    assert spy.read.count(blob.uid) == 1


def test_a_storage_missing_during_one_read_stops_the_scrub(repository, tmp_path):
    version = version_of(repository, random_image(tmp_path / "image", 3 * BLOCK))
    blob = blob_of(repository, version, 1)
    fail = failing(errno.ESTALE)
    watched, _ = spied(repository, lambda number, uid: fail(number, uid) if uid == blob.uid else None)
    with pytest.raises(StorageError, match="Stale file handle"):
        scrubbed(watched, version)
    assert damaged_uids(repository) == set()


def test_a_missing_key_is_not_damage(tmp_path):
    config = make_repository(tmp_path / "repository")
    with opened(config) as repository:
        version = version_of(repository, random_image(tmp_path / "image", 3 * BLOCK))
        keyless = replace(repository.blocks.keyring, repository_key=None)
        with pytest.raises(MissingKeyError):
            scrubbed(replace(repository, blocks=replace(repository.blocks, keyring=keyless)), version)
        assert damaged_uids(repository) == set()


# Repaired damage


def test_blobs_and_versions_are_valid_again_when_their_damage_is_repaired(repository, tmp_path):
    version = version_of(repository, random_image(tmp_path / "image", 3 * BLOCK))
    file = file_of(repository, blob_of(repository, version, 1))
    file.rename(tmp_path / "away")
    assert scrubbed(repository)[0].versions_invalid == (version.uid,)
    (tmp_path / "away").rename(file)
    report, reported = scrubbed(repository)
    assert (report.blobs_repaired, report.versions_valid, reported) == (1, (version.uid,), [])
    assert status(repository, version) is VersionStatus.VALID
    assert damaged_uids(repository) == set()


def test_a_version_is_invalid_while_any_of_its_blobs_is_damaged(repository, tmp_path):
    version = version_of(repository, random_image(tmp_path / "image", 3 * BLOCK))
    files = [file_of(repository, blob_of(repository, version, index)) for index in (0, 1)]
    for file in files:
        flip_a_byte(file)
    scrubbed(repository)
    flip_a_byte(files[0])
    report, _ = scrubbed(repository)
    assert (report.blobs_repaired, report.blobs_damaged, report.versions_valid) == (1, 1, ())
    assert status(repository, version) is VersionStatus.INVALID


def test_a_version_that_was_not_named_does_not_become_valid(repository, tmp_path):
    image = random_image(tmp_path / "image", 2 * BLOCK)
    versions = [version_of(repository, image), version_of(repository, image)]
    file = file_of(repository, blob_of(repository, versions[0], 0))
    flip_a_byte(file)
    scrubbed(repository)
    flip_a_byte(file)
    assert scrubbed(repository, versions[0])[0].versions_valid == (versions[0].uid,)
    assert [status(repository, version) for version in versions] == ["valid", "invalid"]


def test_a_sample_makes_no_version_valid(repository, tmp_path):
    version = version_of(repository, random_image(tmp_path / "image", BLOCK))
    file = file_of(repository, blob_of(repository, version, 0))
    flip_a_byte(file)
    scrubbed(repository)
    flip_a_byte(file)
    report, _ = scrubbed(repository, percentile=99)  # of the one blob
    assert (report.blobs_checked, report.blobs_repaired, report.versions_valid) == (1, 1, ())
    assert status(repository, version) is VersionStatus.INVALID
    assert scrubbed(repository)[0].versions_valid == (version.uid,)


def test_a_version_whose_backup_may_not_have_ended_remains_invalid(repository, tmp_path, caplog):
    version = version_of(repository, random_image(tmp_path / "image", BLOCK))
    with repository.database.write() as connection:
        set_status(connection, version.id, VersionStatus.INVALID)
        connection.execute(delete(stats))
    assert scrubbed(repository)[0].versions_valid == ()
    assert f"version {version.uid} has no damage but stays invalid" in caplog.text
    with repository.database.write() as connection:
        connection.execute(insert(damaged_versions).values(version_id=version.id, found_at=LONG_AGO))
    assert scrubbed(repository)[0].versions_valid == (version.uid,)


def test_a_scrub_marks_the_versions_that_a_killed_one_did_not(repository, tmp_path):
    image = random_image(tmp_path / "image", 2 * BLOCK)
    version = version_of(repository, image)
    blob = blob_of(repository, version, 0)
    file_of(repository, blob).unlink()
    with repository.database.write() as connection:
        connection.execute(update(blobs).where(blobs.c.id == blob.id).values(valid=False))
    set_checked(repository, blob, datetime.now(UTC))
    set_checked(repository, blob_of(repository, version, 1), datetime.now(UTC))
    other = version_of(repository, random_image(tmp_path / "other", BLOCK, 1), "other")
    report, _ = scrubbed(repository, other)
    assert report.versions_invalid == (version.uid,)
    assert status(repository, version) is VersionStatus.INVALID


# Choice and order of blobs


@pytest.mark.parametrize(("percentile", "expected"), [(1, 1), (10, 2), (50, 10), (99, 20), (100, 20)])
def test_a_sample_has_the_requested_percentage(plain, tmp_path, percentile, expected):
    version = version_of(plain, random_image(tmp_path / "image", 20 * BLOCK))
    assert scrubbed(plain, version, percentile=percentile)[0].blobs_checked == expected


def test_each_sample_is_different(plain, tmp_path):
    version = version_of(plain, random_image(tmp_path / "image", 60 * BLOCK))
    for _ in range(20):
        scrubbed(plain, version, percentile=20)
    assert len(checked(plain)) > 50


def test_the_oldest_checks_are_renewed_first(plain, tmp_path):
    plain = replace(plain, limits=replace(plain.limits, workers=1))
    version = version_of(plain, random_image(tmp_path / "image", 5 * BLOCK))
    found = [blob_of(plain, version, index) for index in range(5)]
    now = datetime.now(UTC)
    set_checked(plain, found[0], now - timedelta(days=40))
    set_checked(plain, found[2], now - timedelta(days=29))
    set_checked(plain, found[3], now - timedelta(days=50))
    never = [blob.uid for blob in sorted((found[1], found[4]), key=lambda blob: blob.id)]
    for chosen in ([version], []):
        watched, spy = spied(plain)
        scrubbed(watched, *chosen, not_since=now - timedelta(days=30))
        assert spy.read == ([*never, found[3].uid, found[0].uid] if chosen else [])
    assert checked(plain)[found[2].uid] == now - timedelta(days=29)


def test_known_damaged_blobs_are_always_read_again(repository, tmp_path):
    version = version_of(repository, random_image(tmp_path / "image", 3 * BLOCK))
    file = file_of(repository, blob_of(repository, version, 1))
    flip_a_byte(file)
    assert scrubbed(repository, not_since=LONG_AGO)[0].blobs_checked == 3
    report, reported = scrubbed(repository, not_since=LONG_AGO)
    assert (report.blobs_checked, len(reported)) == (1, 1)
    flip_a_byte(file)
    assert scrubbed(repository, not_since=LONG_AGO)[0].versions_valid == (version.uid,)
    assert scrubbed(repository, not_since=LONG_AGO)[0].blobs_checked == 0


def test_an_interrupted_scrub_can_be_continued(plain, tmp_path):
    plain = replace(plain, limits=replace(plain.limits, workers=1))
    version = version_of(plain, random_image(tmp_path / "image", 1000 * BLOCK))
    found = [blob_of(plain, version, index) for index in range(1000)]
    flip_a_byte(file_of(plain, min(found, key=lambda blob: blob.id)))
    watched, spy = spied(plain)
    reported = []
    with pytest.raises(InterruptedByUser, match="results so far are recorded"):
        scrub(
            watched,
            ScrubRequest(versions=(version,), not_since=LONG_AGO),
            control=Control(stop=lambda: len(spy.read) >= 100),
            on_damage=lambda _, damage: reported.append(damage),
        )
    done = len(checked(plain))
    assert 100 <= done == len(spy.read) < 1000
    assert len(reported) == 1
    assert status(plain, version) is VersionStatus.INVALID
    report, _ = scrubbed(plain, version, not_since=LONG_AGO)
    assert report.blobs_checked == 1000 - done + 1  # the damaged one again
    assert len(checked(plain)) == 1000


def test_results_are_recorded_while_a_scrub_runs(plain, tmp_path):
    plain = replace(plain, limits=replace(plain.limits, workers=1))
    version = version_of(plain, random_image(tmp_path / "image", 1500 * BLOCK))
    counts = []

    def look(number, _uid):
        if number % 100 == 0:
            counts.append(len(checked(plain)))

    watched, _ = spied(plain, look)
    scrubbed(with_limits(watched, checks_at_once=256), version)
    assert counts[0] == 0
    assert counts[-1] >= 512


# Comparison with the source


@pytest.fixture
def image(tmp_path):
    """Make an image of two pages: data, a hole, data; then holes except for one block."""
    pieces = {0: random_bytes(3 * BLOCK), 5 * BLOCK: random_bytes(BLOCK, 1), 1500 * BLOCK: random_bytes(BLOCK, 2)}
    return sparse_image(tmp_path / "image", 1600 * BLOCK + 10, pieces)


def compared(repository, version, image, **request):
    source = open_source(str(image))
    try:
        report, reported = scrubbed(repository, version, source=source, **request)
    finally:
        source.close()
    assert report.bytes_differing == sum(stop - start for _, start, stop, _ in reported)
    assert (status(repository, version), damaged_uids(repository)) == (VersionStatus.VALID, set())
    return reported


def test_an_unchanged_source_does_not_differ(repository, image):
    version = version_of(repository, image)
    assert compared(repository, version, image) == []


def test_ranges_that_differ_from_the_source_are_reported_but_nothing_is_marked(repository, image):
    version = version_of(repository, image)
    overwrite(image, BLOCK + 7, b"changed")
    overwrite(image, 2 * BLOCK, b"changed")
    overwrite(image, 3 * BLOCK, b"where a hole was")
    overwrite(image, 5 * BLOCK, bytes(BLOCK))
    overwrite(image, 1100 * BLOCK, b"in a page of holes")
    overwrite(image, 1600 * BLOCK, b"at the end")
    assert [line[1:] for line in compared(repository, version, image)] == [
        (BLOCK, 4 * BLOCK, "the source differs"),
        (5 * BLOCK, 6 * BLOCK, "the source differs"),
        (1100 * BLOCK, 1101 * BLOCK, "the source differs"),
        (1600 * BLOCK, 1600 * BLOCK + 10, "the source differs"),
    ]


def test_written_zeros_are_equal_to_a_hole(repository, image):
    version = version_of(repository, image)
    overwrite(image, 3 * BLOCK, bytes(BLOCK))
    assert compared(repository, version, image) == []


def test_a_longer_or_shorter_source_differs(repository, image):
    version = version_of(repository, image)
    size = 1600 * BLOCK + 10
    os.truncate(image, size + 5)
    assert [line[1:] for line in compared(repository, version, image)] == [
        (size, size + 5, "the source is longer than the version")
    ]
    os.truncate(image, 1500 * BLOCK + 1)
    assert [line[1:] for line in compared(repository, version, image)] == [
        (1500 * BLOCK, size, f"the source differs: it ends at byte {1500 * BLOCK + 1}")
    ]


def test_an_encrypted_blob_without_a_fingerprint_is_read_to_be_compared(tmp_path, image):
    with opened(make_repository(tmp_path / "repository")) as repository:
        version = version_of(repository, image)
        with repository.database.write() as connection:
            connection.execute(update(blobs).values(fingerprint=None))
        assert compared(repository, version, image) == []
        overwrite(image, 0, b"changed")
        assert [line[1:3] for line in compared(repository, version, image)] == [(0, BLOCK)]


def test_a_sample_of_the_source_can_be_compared(plain, tmp_path):
    image = random_image(tmp_path / "image", 200 * BLOCK)
    version = version_of(plain, image)
    image.write_bytes(random_bytes(200 * BLOCK, 1))
    assert 0 < sum(stop - start for _, start, stop, _ in compared(plain, version, image, percentile=50)) < 200 * BLOCK


def test_the_existing_blocks_of_an_incomplete_version_are_compared(plain, tmp_path):
    image = random_image(tmp_path / "image", 3 * BLOCK)
    part = incomplete_copy(plain, version_of(plain, image), [1])
    overwrite(image, BLOCK, b"changed")
    source = open_source(str(image))
    assert scrubbed(plain, part, source=source)[1] == []
    source.close()


def test_a_source_needs_exactly_one_version(plain, tmp_path):
    image = random_image(tmp_path / "image", BLOCK)
    versions = [version_of(plain, image), version_of(plain, image)]
    source = open_source(str(image))
    for chosen in (versions, []):
        with pytest.raises(UsageError, match="name only that version"):
            scrubbed(plain, *chosen, source=source)
    source.close()
    assert count_blobs(plain) == 1
    with plain.database.read() as connection:
        assert len(list_versions(connection)) == 2
