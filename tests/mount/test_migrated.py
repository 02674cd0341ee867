"""A mount continues to work while its blocks are re-encrypted and their old objects deleted."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import trio

from backyfs.engine.secrets.migrate import MigrationRequest, migrate
from backyfs.metadata.records.versions import find_version, list_versions
from backyfs.metadata.upkeep.migration import Outdated
from backyfs.mount.contents import Contents
from backyfs.mount.settings import Settings
from backyfs.work.job import Job
from tests.support.images import random_image
from tests.support.jobs import spec
from tests.support.repositories import back_up, configure, make_repository, opened
from tests.support.stored import blob_of, file_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from backyfs.model import Version
    from backyfs.repository import Repository

SEGMENT = 256 << 10
BLOCK = 4 * SEGMENT
SIZE = 5 * BLOCK + 999


def stored(directory: Path, number: int) -> tuple[Path, Path]:
    """Make a repository with a version of one encryption version; return its configuration and the image."""
    config = make_repository(directory / "repository", block_size=BLOCK)
    configure(config, encryption_version=number)
    image = random_image(directory / "image", SIZE)
    with opened(config) as repository:
        back_up(repository, image)
    configure(config, encryption_version=2)
    return config, image


def migrate_and_clean(repository: Repository, version: Version, to: int = 2) -> None:
    old = [file_of(repository, blob_of(repository, version, index)) for index in range(6)]
    migrate(repository, MigrationRequest(versions=None, outdated=Outdated(to=to)))
    for file in old:
        file.unlink()


def test_a_real_mount_continues_to_read(mounted: Callable[..., Path], tmp_path: Path) -> None:
    config, image = stored(tmp_path, 0)
    at = mounted(config)
    content = image.read_bytes()
    with (at / "by_name/disk/latest/data").open("rb") as file, opened(config) as repository:
        assert file.read(4096) == content[:4096]
        [uid] = [entry.name for entry in (at / "by_version_uid").iterdir()]
        with repository.database.read() as connection:
            version = find_version(connection, uid)
        migrate_and_clean(repository, version)
        file.seek(0)
        assert file.read() == content
    counted = dict(re.findall(r"(\w+) (\d+)", (at / "stats").read_text()))
    assert counted["read_errors"] == "0"


def test_parts_of_blocks_are_loaded_again_after_the_first_read(tmp_path: Path) -> None:
    config, image = stored(tmp_path, 1)
    content = image.read_bytes()

    async def run(repository: Repository, version: Version) -> list[int]:
        with Job(repository.database, spec("mount")) as job:
            contents = Contents.of(repository, job, Settings(read_ahead_bytes=0))
            file = await contents.images.open(version, 0, version.size_bytes)
            loaded = []
            for offset in (0, BLOCK, 2 * BLOCK, 2 * BLOCK + SEGMENT, 0):
                assert bytes(await file.read(offset, 100)) == content[offset : offset + 100]
                loaded.append(_loaded(contents))
                if len(loaded) == 1:
                    migrate_and_clean(repository, version)
            await contents.images.close(file)
            return loaded

    with opened(config) as repository, repository.database.read() as connection:
        [version] = list_versions(connection)
    with opened(config) as repository:
        loaded = trio.run(run, repository, version)
    # The first read loads a block of the old version; the others load a segment each, even of the first block.
    assert loaded == [BLOCK, 2 * BLOCK, 2 * BLOCK + SEGMENT, 2 * BLOCK + 2 * SEGMENT, 2 * BLOCK + 3 * SEGMENT]


def _loaded(contents: Contents) -> int:
    [number] = re.findall(rb"loaded_bytes (\d+)", contents.statistics.text())
    return int(number)
