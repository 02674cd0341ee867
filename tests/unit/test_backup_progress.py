"""The progress of a backup: a block counts once it is known or durable, and all blocks add up to the total."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from backyfs.engine.backup.backup import BackupRequest, backup
from backyfs.engine.secrets.migrate import MigrationRequest, migrate
from backyfs.engine.space.cleanup import cleanup
from backyfs.engine.versions.remove import remove_versions
from backyfs.errors import StorageError
from backyfs.hints import parse_hints
from backyfs.metadata.upkeep.migration import Outdated
from backyfs.model import Deduplication, NoProgress
from backyfs.sources.registry import open_source
from backyfs.work.run import Control
from tests.support.images import random_bytes
from tests.support.repositories import BLOCK, back_up
from tests.support.storages import with_watched_storage, with_watched_writes

if TYPE_CHECKING:
    from pathlib import Path

    from backyfs.model import Version
    from backyfs.repository import Repository

PAGE = 1024 * BLOCK
SHORT = 7  # bytes of the last block


class Counted(NoProgress):
    """Adds up what is done."""

    total = 0
    done = 0

    def start(self, _label: str, total_bytes: int) -> None:
        """Begin to count."""
        self.total, self.done = total_bytes, 0

    def advance(self, amount_bytes: int) -> None:
        """Count."""
        self.done += amount_bytes
        assert self.done <= self.total


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Make an image with data, written zeros, a block that occurs twice, a hole, and a short block."""
    path = tmp_path / "image"
    with path.open("wb") as file:
        file.write(random_bytes(40 * BLOCK, 1) + bytes(3 * BLOCK) + random_bytes(BLOCK, 1))
        file.seek(PAGE + 20 * BLOCK)
        file.write(random_bytes(10 * BLOCK + SHORT, 2))
    return path


def counted_backup(repository: Repository, image: Path, **request: Any) -> Counted:
    progress = Counted()
    source = open_source(str(image))
    try:
        backup(repository, source, BackupRequest(name="disk", **request), control=Control(progress=progress))
    finally:
        source.close()
    return progress


@pytest.mark.parametrize("deduplication", Deduplication)
def test_new_blocks_and_known_ones_add_up_to_the_size(
    repository: Repository, image: Path, deduplication: Deduplication
) -> None:
    chosen = replace(repository, deduplication=deduplication)
    for _ in range(2):
        progress = counted_backup(chosen, image)
        assert progress.done == progress.total == image.stat().st_size


def test_a_backup_with_hints_adds_up_to_the_bytes_it_reads(repository: Repository, image: Path) -> None:
    base = back_up(repository, image).version
    content = bytearray(image.read_bytes())
    content[:BLOCK] = random_bytes(BLOCK, 3)
    image.write_bytes(content)
    hints = parse_hints(b'[{"offset": 0, "length": 8192, "exists": "true"}]', "hints")
    progress = counted_backup(repository, image, hints=hints, base=base)
    assert progress.done == progress.total == 2 * BLOCK


def test_a_continued_backup_counts_the_blocks_of_the_first_run(repository: Repository, image: Path) -> None:
    begun: list[Version] = []
    puts = 0

    def fail() -> None:
        nonlocal puts
        puts += 1
        if puts > 45:
            raise StorageError("injected")

    with pytest.raises(StorageError, match="injected"):
        back_up(with_watched_storage(repository, fail, "put"), image, announce=begun.append)
    progress = counted_backup(repository, image, continued=begun[0])
    assert progress.done == progress.total == image.stat().st_size


@pytest.mark.parametrize("number", range(1, 8))
def test_a_block_taken_by_a_cleanup_counts_once(repository: Repository, image: Path, number: int) -> None:
    version = back_up(repository, image).version
    remove_versions(repository, [version], now=datetime.now(UTC))
    writes = 0

    def clean() -> None:
        nonlocal writes
        writes += 1
        if writes == number:
            cleanup(repository, grace_s=0)

    progress = counted_backup(with_watched_writes(repository, clean), image)
    assert progress.done == progress.total == image.stat().st_size


def test_new_blocks_count_only_once_they_are_durable(repository: Repository, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(random_bytes(20 * BLOCK, 1) + bytes(10 * BLOCK) + random_bytes(BLOCK, 1))
    progress, done = Counted(), []
    watched = with_watched_storage(repository, lambda: done.append(progress.done), "put", "flush")
    source = open_source(str(image))
    try:
        backup(watched, source, BackupRequest(name="disk"), control=Control(progress=progress))
    finally:
        source.close()
    # All was read and looked up before the first object was stored; only the zeros were done.
    assert set(done[:21]) <= {0, 10 * BLOCK}
    assert progress.done == progress.total == image.stat().st_size


def test_a_migration_counts_only_durable_blobs(repository: Repository, image: Path) -> None:
    back_up(repository, image)
    progress, done = Counted(), []
    watched = with_watched_storage(repository, lambda: done.append(progress.done), "flush")
    migrate(watched, MigrationRequest(versions=None, outdated=Outdated(to=1)), control=Control(progress=progress))
    assert done[0] == 0
    assert progress.done == progress.total
