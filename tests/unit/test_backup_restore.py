"""Restores of real files return the original bytes, or report the bytes that they cannot."""

from __future__ import annotations

import os
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
from blake3 import blake3
from sqlalchemy import func, select, update

from backyfs.blocks import load_block
from backyfs.engine.restore.restore import restore
from backyfs.errors import SourceError, TargetError, UsageError
from backyfs.metadata.db.tables import blobs, pages, version_pages
from backyfs.metadata.maps.usage import encryption_versions
from backyfs.metadata.records.versions import list_versions
from backyfs.model import Deduplication, VersionStatus
from backyfs.sources.file import FileSource
from backyfs.storage.forwarding import ForwardingStorage
from backyfs.storage.protocol import Traits
from tests.support.audit import audit, count_blobs, count_jobs, doom
from tests.support.images import random_bytes, random_image, sparse_image, words
from tests.support.repositories import (
    BLOCK,
    back_up,
    configure,
    expect_restored,
    make_repository,
    opened,
    restored,
)
from tests.support.storages import with_storage, with_watched_writes
from tests.support.stored import blob_of, file_of, flip_a_byte, incomplete_copy, truncate
from tests.unit.test_sources import loop_device

pytestmark = pytest.mark.slow


@pytest.fixture(params=[True, False], ids=["encrypted", "plain"])
def repository(request, tmp_path):
    with opened(make_repository(tmp_path / "repository", encrypted=request.param)) as repository:
        yield repository


@pytest.mark.parametrize("size", [0, 1, 511, 4095, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 1025 * BLOCK + 7])
def test_an_image_of_any_size_is_restored_unchanged(repository, tmp_path, size):
    image = random_image(tmp_path / "image", size)
    report = back_up(repository, image)
    assert report.version.status is VersionStatus.VALID
    assert report.version.size_bytes == size
    assert restored(repository, report.version, tmp_path) == image.read_bytes()
    audit(repository)
    assert count_jobs(repository) == 0


@pytest.mark.parametrize("written", [False, True], ids=["holes", "written zeros"])
def test_zeros_are_not_stored(repository, tmp_path, written):
    image = tmp_path / "image"
    size = 5 * BLOCK + 100
    if written:
        image.write_bytes(bytes(size))
    else:
        sparse_image(image, size, {})
    report = back_up(repository, image)
    assert count_blobs(repository) == 0
    with repository.database.read() as connection:
        assert connection.execute(select(func.count()).select_from(version_pages)).scalar_one() == 0
    assert (report.statistics.blocks_sparse, report.statistics.bytes_sparse) == (6, size)
    assert report.statistics.blocks_read == (6 if written else 0)
    assert restored(repository, report.version, tmp_path) == bytes(size)


def test_statistics_count_what_was_done_with_each_block(repository, tmp_path):
    block = random_bytes(BLOCK, 1)
    other = random_bytes(BLOCK, 2)
    image = sparse_image(
        tmp_path / "image", 6 * BLOCK + 10, {0: block, BLOCK: other, 2 * BLOCK: block, 5 * BLOCK: bytes(BLOCK)}
    )
    statistics = back_up(repository, image).statistics
    assert (statistics.blocks_written, statistics.bytes_written) == (2, 2 * BLOCK)
    assert (statistics.blocks_deduplicated, statistics.bytes_deduplicated) == (1, BLOCK)
    assert (statistics.blocks_sparse, statistics.bytes_sparse) == (4, 3 * BLOCK + 10)
    assert statistics.blocks_read == 4
    stored = sum(path.stat().st_size for path in (tmp_path / "repository" / "data").rglob("*.blob"))
    assert statistics.bytes_stored == stored


def test_a_second_backup_of_the_same_image_stores_nothing_and_shares_its_pages(repository, tmp_path):
    image = random_image(tmp_path / "image", 1030 * BLOCK)
    back_up(repository, image, "one")
    report = back_up(repository, image, "two")
    assert report.statistics.blocks_written == 0
    assert report.statistics.blocks_deduplicated == 1030
    with repository.database.read() as connection:
        assert sorted(connection.execute(select(pages.c.refs)).scalars()) == [2, 2]
    audit(repository)


def test_a_short_last_block_does_not_match_the_beginning_of_a_longer_one(repository, tmp_path):
    block = random_bytes(BLOCK)
    image = tmp_path / "image"
    image.write_bytes(block + block[:1000])
    report = back_up(repository, image)
    assert count_blobs(repository) == 2
    assert restored(repository, report.version, tmp_path) == block + block[:1000]


def test_without_deduplication_every_block_is_stored_again(repository, tmp_path):
    image = random_image(tmp_path / "image", 2 * BLOCK)
    back_up(repository, image)
    report = back_up(replace(repository, deduplication=Deduplication.OFF), image)
    assert report.statistics.blocks_written == 2
    assert count_blobs(repository) == 4
    assert restored(repository, report.version, tmp_path) == image.read_bytes()
    audit(repository)


def test_a_repository_becomes_encrypted_gradually_if_older_blocks_are_not_reused(tmp_path):
    config = make_repository(tmp_path / "repository")
    image = random_image(tmp_path / "image", 3 * BLOCK)

    def turned(version: int, deduplication: str):
        text = config.read_text()
        for key, value in (("encryption_version", version), ("deduplication", deduplication)):
            text = re.sub(rf"(?m)^{key}:.*\n", "", text).replace("[DEFAULTS]\n", f"[DEFAULTS]\n{key}: {value}\n", 1)
        config.write_text(text)
        with opened(config) as repository:
            report = back_up(repository, image)
            assert restored(repository, report.version, tmp_path) == image.read_bytes()
            audit(repository)
            with repository.database.read() as connection:
                return report.statistics.blocks_written, encryption_versions(connection, report.version)

    assert turned(0, "on") == (3, [0])
    assert turned(1, "on") == (0, [0])
    assert turned(1, "same-version") == (3, [1])
    assert turned(1, "same-version") == (0, [1])
    assert turned(0, "same-version") == (0, [0])
    assert turned(2, "on") == (0, [0])
    assert turned(2, "same-version") == (3, [2])


def test_blocks_are_compressed_at_the_configured_level(tmp_path):
    config = make_repository(tmp_path / "repository", block_size=1 << 16)
    image = tmp_path / "image"
    image.write_bytes(words(40_000))
    stored = []
    for level in (1, 19):
        lines = [line for line in config.read_text().splitlines() if not line.startswith("compression_level")]
        config.write_text("\n".join(lines).replace("[DEFAULTS]", f"[DEFAULTS]\ncompression_level: {level}"))
        with opened(config) as repository:
            report = back_up(replace(repository, deduplication=Deduplication.OFF), image)
            assert restored(repository, report.version, tmp_path) == image.read_bytes()
            stored.append(report.statistics.bytes_stored)
    assert stored[1] < stored[0] * 0.95


def test_a_restored_file_has_holes_where_the_image_has_zeros(repository, tmp_path):
    image = sparse_image(tmp_path / "image", 1024 * BLOCK, {0: b"begin", 1000 * BLOCK: b"end"})
    version = back_up(repository, image).version
    assert restored(repository, version, tmp_path) == image.read_bytes()
    assert (tmp_path / "restored.img").stat().st_blocks * 512 < 10 * BLOCK


@pytest.mark.parametrize("damage", [flip_a_byte, truncate, os.unlink], ids=["flipped", "truncated", "missing"])
def test_a_damaged_block_costs_only_its_own_range(repository, tmp_path, damage):
    image = random_image(tmp_path / "image", 4 * BLOCK + 100)
    version = back_up(repository, image).version
    blob = blob_of(repository, version, 2)
    damage(file_of(repository, blob))
    target = tmp_path / "restored.img"
    report = restore(repository, version, str(target))
    assert [(damaged.start, damaged.stop) for damaged in report.damaged] == [(2 * BLOCK, 3 * BLOCK)]
    assert blob.uid in report.damaged[0].reason
    content = image.read_bytes()
    assert target.read_bytes() == content[: 2 * BLOCK] + bytes(BLOCK) + content[3 * BLOCK :]


def test_the_object_of_another_blob_is_not_accepted(repository, tmp_path):
    version = back_up(repository, random_image(tmp_path / "image", 2 * BLOCK)).version
    first, second = (file_of(repository, blob_of(repository, version, index)) for index in (0, 1))
    first.write_bytes(second.read_bytes())
    report = restore(repository, version, str(tmp_path / "restored.img"))
    assert [damaged.start for damaged in report.damaged] == [0]


def test_blocks_that_were_never_backed_up_are_reported_and_not_restored_as_zeros(repository, tmp_path):
    image = random_image(tmp_path / "image", 4 * BLOCK)
    version = incomplete_copy(repository, back_up(repository, image).version, absent=[1, 3])
    report = restore(repository, version, str(tmp_path / "restored.img"))
    assert [(damaged.start, damaged.stop) for damaged in report.damaged] == [
        (BLOCK, 2 * BLOCK),
        (3 * BLOCK, 4 * BLOCK),
    ]
    assert "never backed up" in report.damaged[0].reason


def test_blobs_taken_by_a_cleanup_between_lookup_and_commit_are_stored_again(repository, tmp_path):
    image = random_image(tmp_path / "image", 3 * BLOCK)
    first = back_up(repository, image).version
    taken = [blob_of(repository, first, index).id for index in range(2)]

    def doom_some():
        with repository.database.read() as connection:
            has_begun = len(list_versions(connection)) > 1
        if has_begun and taken:  # they were found, but no page in the making has them yet
            with repository.database.write() as connection:
                doom(connection, taken.pop(), taken.pop())

    # The image differs in one block, so its page is new.
    image.write_bytes(image.read_bytes()[:-1] + b"!")
    version = back_up(with_watched_writes(repository, doom_some), image).version
    assert restored(repository, version, tmp_path) == image.read_bytes()
    assert count_blobs(repository) == 6  # three, one new, two stored again
    audit(repository)


def test_after_a_read_error_the_next_backup_reuses_the_stored_blocks(repository, tmp_path, monkeypatch):
    image = random_image(tmp_path / "image", 600 * BLOCK)
    read_into = FileSource.read_into

    def fail_late(self, offset, buffer):
        if offset >= 512 * BLOCK:
            raise SourceError("the disk is broken")
        read_into(self, offset, buffer)

    monkeypatch.setattr(FileSource, "read_into", fail_late)
    with pytest.raises(SourceError, match="the disk is broken"):
        back_up(repository, image)
    audit(repository)
    monkeypatch.undo()
    report = back_up(repository, image)
    assert report.statistics.blocks_deduplicated + report.statistics.blocks_written == 600
    assert restored(repository, report.version, tmp_path) == image.read_bytes()
    audit(repository)


@pytest.mark.parametrize(
    "name", ["data/target", "backyfs.sqlite", "backyfs.sqlite-wal", "backyfs.key", "backyfs.cfg", "link/target"]
)
def test_a_target_inside_the_repository_is_refused(tmp_path, name):
    directory = tmp_path / "repository"
    with opened(make_repository(directory)) as repository:
        (directory / "link").symlink_to(directory / "data")
        version = back_up(repository, random_image(tmp_path / "image", BLOCK)).version
        before = {path: path.read_bytes() for path in directory.glob("backyfs.*") if path.suffix != ".sqlite-shm"}
        with pytest.raises(TargetError, match="belongs to the repository itself"):
            restore(repository, version, str(directory / name), replace=True)
        assert (directory / "backyfs.key").read_bytes() == before[directory / "backyfs.key"]
        assert not (directory / "data" / "target").exists()


def test_an_existing_target_is_refused_and_keeps_its_bytes(repository, tmp_path):
    version = back_up(repository, random_image(tmp_path / "image", BLOCK)).version
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    with pytest.raises(TargetError, match="already exists; name another target, or allow overwriting it"):
        restore(repository, version, str(target))
    assert target.read_bytes() == b"precious"


def test_a_longer_existing_target_is_replaced_completely(repository, tmp_path):
    image = sparse_image(tmp_path / "image", 2 * BLOCK, {0: b"x"})
    version = back_up(repository, image).version
    (tmp_path / "restored.img").write_bytes(b"old" * BLOCK)
    assert restored(repository, version, tmp_path) == image.read_bytes()


def test_an_encrypted_repository_contains_no_plain_bytes_and_no_plain_fingerprints(tmp_path):
    with opened(make_repository(tmp_path / "repository")) as repository:
        image = tmp_path / "image"
        image.write_bytes(b"confidential " * 1000)
        version = back_up(repository, image).version
        for path in (tmp_path / "repository" / "data").rglob("*.blob"):
            assert b"confidential" not in path.read_bytes()
        blob = blob_of(repository, version, 0)
        block = load_block(repository.blocks, blob)
        assert block == image.read_bytes()[:BLOCK]
        assert blob.fingerprint != blake3(block).digest()


@pytest.mark.parametrize(
    ("name", "message"),
    [("na\udcffme", "is not UTF-8"), ("", "has 0 characters"), ("x" * 2049, "has 2049 characters")],
)
def test_a_name_that_cannot_be_stored_is_refused_before_anything_is_done(repository, tmp_path, name, message):
    image = random_image(tmp_path / "image", BLOCK)
    with pytest.raises(UsageError, match=message):
        back_up(repository, image, name)
    assert count_blobs(repository) == 0


def test_only_blocks_touched_by_extents_are_read(tmp_path, monkeypatch):
    ranges = []
    read_into = FileSource.read_into

    def note(self, offset, buffer):
        ranges.append((offset, len(buffer)))
        read_into(self, offset, buffer)

    monkeypatch.setattr(FileSource, "read_into", note)
    image = sparse_image(tmp_path / "image", 2000 * BLOCK + 9, {10 * BLOCK: b"x" * BLOCK, 1500 * BLOCK: b"y" * 5000})
    with opened(make_repository(tmp_path / "repository")) as repository:
        statistics = back_up(repository, image).statistics
    assert sorted(ranges) == [(10 * BLOCK, BLOCK), (1500 * BLOCK, 2 * BLOCK)]
    assert (statistics.blocks_read, statistics.bytes_read) == (3, 3 * BLOCK)
    assert (statistics.blocks_sparse, statistics.bytes_sparse) == (1998, 1997 * BLOCK + 9)


def test_pages_without_data_have_no_row(repository, tmp_path):
    image = sparse_image(tmp_path / "image", 4096 * BLOCK, {1024 * BLOCK: b"second", 3072 * BLOCK: b"fourth"})
    version = back_up(repository, image).version
    with repository.database.read() as connection:
        assert connection.execute(select(version_pages.c.page_no)).scalars().all() == [1, 3]
    assert restored(repository, version, tmp_path) == image.read_bytes()


def test_a_changed_block_costs_one_blob_and_one_page(repository, tmp_path):
    image = random_image(tmp_path / "image", 2048 * BLOCK)
    first = back_up(repository, image).version
    before = image.read_bytes()
    with image.open("r+b") as file:
        os.pwrite(file.fileno(), b"changed", 2000 * BLOCK)
    second = back_up(repository, image)
    assert (second.statistics.blocks_written, second.statistics.blocks_deduplicated) == (1, 2047)
    with repository.database.read() as connection:
        assert sorted(connection.execute(select(pages.c.refs)).scalars()) == [1, 1, 2]
    assert restored(repository, first, tmp_path) == before
    assert restored(repository, second.version, tmp_path) == image.read_bytes()
    audit(repository)


def test_the_same_block_many_times_in_an_image_is_stored_once(repository, tmp_path):
    image = tmp_path / "image"
    image.write_bytes(random_bytes(BLOCK) * 1500)
    report = back_up(repository, image)
    assert count_blobs(repository) == 1
    assert (report.statistics.blocks_written, report.statistics.blocks_deduplicated) == (1, 1499)
    assert restored(repository, report.version, tmp_path) == image.read_bytes()
    audit(repository)


def test_a_last_block_equal_to_one_elsewhere_of_the_same_length_is_shared(repository, tmp_path):
    for name, content in (("one", b"a" * BLOCK + b"end"), ("two", b"b" * BLOCK + b"end")):
        (tmp_path / name).write_bytes(content)
    back_up(repository, tmp_path / "one")
    report = back_up(repository, tmp_path / "two")
    assert (report.statistics.bytes_written, report.statistics.bytes_deduplicated) == (BLOCK, 3)
    assert restored(repository, report.version, tmp_path) == (tmp_path / "two").read_bytes()


def test_a_blob_found_damaged_is_not_reused(repository, tmp_path):
    image = random_image(tmp_path / "image", 2 * BLOCK)
    blob = blob_of(repository, back_up(repository, image).version, 1)
    with repository.database.write() as connection:
        connection.execute(update(blobs).where(blobs.c.id == blob.id).values(valid=False))
    flip_a_byte(file_of(repository, blob))
    report = back_up(repository, image)
    assert (report.statistics.blocks_written, report.statistics.blocks_deduplicated) == (1, 1)
    assert restored(repository, report.version, tmp_path) == image.read_bytes()


def test_a_device_gets_the_exact_image_with_zeros_over_old_data(repository, tmp_path):
    image = sparse_image(tmp_path / "image", 60 * BLOCK + 512, {3 * BLOCK: b"x" * BLOCK, 60 * BLOCK: b"y" * 512})
    version = back_up(repository, image).version
    old = random_image(tmp_path / "old", 64 * BLOCK, 9)
    with loop_device(old) as device:
        report = restore(repository, version, device, replace=True)
        content = Path(device).read_bytes()
    assert report.damaged == ()
    assert report.bytes_written == BLOCK + 512
    assert content == image.read_bytes() + random_bytes(64 * BLOCK, 9)[60 * BLOCK + 512 :]


def test_a_device_can_be_backed_up_and_restored_to_another(repository, tmp_path):
    image = random_image(tmp_path / "image", 8 * BLOCK)
    other = sparse_image(tmp_path / "other", 8 * BLOCK, {})
    with loop_device(image) as device:
        version = back_up(repository, Path(device)).version
    with loop_device(other) as device:
        assert restore(repository, version, f"file://{device}", replace=True).damaged == ()
        assert Path(device).read_bytes() == image.read_bytes()


def test_a_device_keeps_its_old_data_in_place_of_a_damaged_block(repository, tmp_path):
    image = random_image(tmp_path / "image", 4 * BLOCK)
    version = back_up(repository, image).version
    flip_a_byte(file_of(repository, blob_of(repository, version, 1)))
    old = random_bytes(4 * BLOCK, 9)
    with loop_device(random_image(tmp_path / "old", 4 * BLOCK, 9)) as device:
        report = restore(repository, version, device, replace=True)
        content = Path(device).read_bytes()
    assert [(damage.start, damage.stop) for damage in report.damaged] == [(BLOCK, 2 * BLOCK)]
    new = image.read_bytes()
    assert content == new[:BLOCK] + old[BLOCK : 2 * BLOCK] + new[2 * BLOCK :]


def test_every_damaged_block_is_reported_in_order(repository, tmp_path):
    image = random_image(tmp_path / "image", 1500 * BLOCK + 77)
    version = back_up(repository, image).version
    damaged = [0, 700, 1499, 1500]
    for index in damaged:
        flip_a_byte(file_of(repository, blob_of(repository, version, index)))
    report = restore(repository, version, str(tmp_path / "out"))
    assert [damage.start // BLOCK for damage in report.damaged] == damaged
    assert report.damaged[-1].stop == 1500 * BLOCK + 77
    assert report.bytes_written == 1497 * BLOCK
    content = bytearray(image.read_bytes())
    for damage in report.damaged:
        content[damage.start : damage.stop] = bytes(damage.stop - damage.start)
    assert (tmp_path / "out").read_bytes() == content


@pytest.mark.parametrize("name", ["backyfs.sqlite", "backyfs.key"])
def test_a_link_to_a_file_of_the_repository_is_refused_as_a_target(tmp_path, name):
    with opened(make_repository(tmp_path / "repository")) as repository:
        version = back_up(repository, random_image(tmp_path / "image", BLOCK)).version
        (tmp_path / "innocent").symlink_to(tmp_path / "repository" / name)
        before = (tmp_path / "repository" / name).read_bytes()
        with pytest.raises(TargetError, match="belongs to the repository itself; name a target outside of it"):
            restore(repository, version, f"file://{tmp_path}/innocent", replace=True)
        assert (tmp_path / "repository" / name).read_bytes() == before
        assert count_jobs(repository) == 0


class Remote(ForwardingStorage):
    """A storage in a directory that is used as if it were behind a network."""

    @property
    def traits(self) -> Traits:
        return replace(super().traits, requests=8)


@pytest.mark.parametrize("version", [0, 1, 2])
@pytest.mark.parametrize("block_size", [4096, 1 << 20])
def test_a_storage_behind_a_network_gets_the_same_blocks(tmp_path, version, block_size):
    image = tmp_path / "image"
    image.write_bytes(random.Random(version).randbytes(300_000) + bytes(2 << 20) + b"end" * 70_000)
    config = make_repository(tmp_path / "repository", encrypted=version > 0, block_size=block_size)
    configure(config, encryption_version=version)
    with opened(config) as repository:
        remote = with_storage(repository, Remote(repository.blocks.storage))
        for _ in range(2):
            report = back_up(remote, image)
            expect_restored(remote, report.version, image)
        assert report.statistics.bytes_written == 0
        audit(repository)
