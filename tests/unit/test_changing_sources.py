"""A source that changes during its backup: a mixture of old and new data is never valid without a warning."""

from __future__ import annotations

import os
import subprocess
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from backyfs.engine.backup.backup import BackupRequest, backup
from backyfs.engine.damage.scrub import ScrubRequest, scrub
from backyfs.errors import InterruptedByUser, SourceError
from backyfs.model import VersionStatus
from backyfs.sources.change import ChangeKind
from backyfs.sources.file import FileSource
from backyfs.sources.null import NullSource
from backyfs.sources.registry import open_source
from backyfs.work.run import Control
from tests.support.audit import audit, count_jobs, statuses_of
from tests.support.images import random_bytes, random_image, sparse_image
from tests.support.repositories import BLOCK
from tests.unit.test_sources import loop_device

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from backyfs.engine.backup.backup import BackupReport
    from backyfs.model import Version
    from backyfs.repository import Repository
    from backyfs.sources.protocol import Source

pytestmark = pytest.mark.slow

SIZE = 1000 * BLOCK


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Make an image with a hole between data, and a hole at the end."""
    pieces = {0: random_bytes(10 * BLOCK), 500 * BLOCK: random_bytes(10 * BLOCK, 1)}
    return sparse_image(tmp_path / "image", SIZE, pieces)


@contextmanager
def opened_source(image: Path | str, *, read_holes: bool = False) -> Iterator[Source]:
    source = open_source(str(image), read_holes=read_holes)
    try:
        yield source
    finally:
        source.close()


def back_up_while(
    repository: Repository, source: Source, change: Callable[[], object], **request: object
) -> BackupReport:
    """Back up a source, and change it after its version is created but before it is read."""

    def announce(_version: Version) -> None:
        change()

    return backup(
        repository,
        source,
        BackupRequest(name="disk", **request),  # type: ignore[arg-type]  # fields of a request
        announce=announce,
    )


def grow(image: Path) -> None:
    with image.open("ab") as file:
        file.write(b"x")


def expect_refused(repository: Repository, source: Source, change: Callable[[], object], fact: str) -> None:
    with pytest.raises(SourceError, match=f"{fact}.*; back up a snapshot, or stop what changes it") as caught:
        back_up_while(repository, source, change)
    assert caught.value.exit_status == 7
    assert statuses_of(repository) == [VersionStatus.INCOMPLETE]
    assert count_jobs(repository) == 0
    audit(repository)


@pytest.mark.parametrize("read_holes", [False, True])
@pytest.mark.parametrize("blocks", [0, 5, 300, 505, 700, 999])
def test_a_file_that_shrinks_is_not_backed_up(repository, image, blocks, read_holes):
    with opened_source(image, read_holes=read_holes) as source:
        expect_refused(repository, source, lambda: os.truncate(image, blocks * BLOCK), "shr[au]nk")


@pytest.mark.parametrize("size", [SIZE - 1, SIZE + 1, 2 * SIZE])
def test_a_file_of_holes_that_shrinks_or_grows_is_not_backed_up(repository, tmp_path, size):
    image = sparse_image(tmp_path / "image", SIZE, {})
    with opened_source(image) as source:
        expect_refused(repository, source, lambda: os.truncate(image, size), f"has {size} bytes and had {SIZE} when")


def test_a_file_that_grows_is_not_backed_up(repository, image):
    with opened_source(image) as source:
        expect_refused(repository, source, lambda: grow(image), "it grew while it was read")


@pytest.mark.parametrize("blocks", [1, 3])
def test_a_device_that_shrinks_or_grows_is_not_backed_up(repository, tmp_path, blocks):
    image = sparse_image(tmp_path / "image", 2 * BLOCK, {})

    def resize() -> None:
        os.truncate(image, blocks * BLOCK)
        subprocess.run(["losetup", "--set-capacity", device], check=True)

    with loop_device(image) as device, opened_source(device) as source:
        resized = rf"{device} (has {blocks * BLOCK} bytes and had|ends at byte {blocks * BLOCK}: it has shrunk)"
        expect_refused(repository, source, resize, resized)


class GrowingSource(NullSource):
    """A source of any kind that has grown by the end of its backup."""

    def size_now(self) -> int:
        return self.size_bytes + 1


def test_the_size_of_every_kind_of_source_is_compared(repository):
    with pytest.raises(SourceError, match=f"null://{BLOCK} has {BLOCK + 1} bytes and had {BLOCK} when it was opened"):
        back_up_while(repository, GrowingSource(BLOCK), lambda: None)
    assert statuses_of(repository) == [VersionStatus.INCOMPLETE]


def test_an_unchanged_file_is_backed_up_without_a_warning(repository, image):
    with opened_source(image) as source:
        report = back_up_while(repository, source, lambda: None)
    assert (report.version.status, report.warnings) == (VersionStatus.VALID, ())


def test_a_file_written_in_place_is_backed_up_with_a_warning(repository, image, caplog):
    os.utime(image, (0, 0))

    def change() -> None:
        os.utime(image, (1, 1))

    with opened_source(image) as source:
        report = back_up_while(repository, source, change)
    assert report.version.status is VersionStatus.VALID
    [warning] = report.warnings
    assert warning.kind is ChangeKind.CHANGED
    assert caplog.messages.count(warning.text) == 1


def test_continuing_a_backup_of_a_changed_file_warns_immediately(repository, tmp_path, caplog):
    image = random_image(tmp_path / "image", SIZE)
    versions: list[Version] = []
    request = BackupRequest(name="disk")
    with opened_source(image) as source, pytest.raises(InterruptedByUser):
        backup(repository, source, request, announce=versions.append, control=Control(stop=lambda: bool(versions)))
    while datetime.fromtimestamp(image.stat().st_ctime, UTC) <= versions[0].created_at:
        os.utime(image)  # the clock of the file system may be a few milliseconds behind
    with opened_source(image) as source:
        warned: list[int] = []
        report = back_up_while(repository, source, lambda: warned.append(len(caplog.messages)), continued=versions[0])
    assert warned == [1]
    assert [warning.kind for warning in report.warnings] == [ChangeKind.CHANGED]


class LyingSource(FileSource):
    """A file on a file system that reports data as a hole."""

    def data_extents(self, start=0):
        return (extent for extent in super().data_extents(start) if extent.start != 500 * BLOCK)


def test_data_reported_as_holes_are_backed_up_if_holes_are_read(repository, image):
    for read_holes, blocks in ((False, 10), (True, 20)):
        source = LyingSource(str(image), read_holes=read_holes)
        report = backup(repository, source, BackupRequest(name="disk"))
        source.close()
        assert report.statistics.blocks_written + report.statistics.blocks_deduplicated == blocks


@pytest.mark.parametrize("size", [700 * BLOCK, SIZE + 1])
def test_a_source_that_shrinks_or_grows_never_matches_its_version(repository, image, size):
    with opened_source(image) as source:
        version = back_up_while(repository, source, lambda: None).version
    damages: list[object] = []

    class Resized(FileSource):
        def read_into(self, offset: int, buffer: memoryview) -> None:
            super().read_into(offset, buffer)
            os.truncate(image, size)

    source = Resized(str(image))
    request = ScrubRequest(versions=(version,), source=source)
    with pytest.raises(SourceError, match=f"has {size} bytes and had {SIZE} when it was opened"):
        scrub(repository, request, on_damage=lambda *damage: damages.append(damage))
    source.close()
    assert damages == []
    assert statuses_of(repository) == [VersionStatus.VALID]
