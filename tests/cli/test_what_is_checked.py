"""Which checks each way of reading a block makes, by encryption version: the table in docs/operate/encryption.md."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from backyfs.blocks import PieceLoader
from backyfs.cli.main import run
from backyfs.errors import IntegrityError
from backyfs.metadata.records.versions import list_versions
from tests.support.images import random_image
from tests.support.repositories import configure, make_repository, opened
from tests.support.stored import blob_of

if TYPE_CHECKING:
    from pathlib import Path

BLOCK = 512 << 10  # two segments of version 2
DAMAGE = 20
DIFFERS = "holds other bytes than were backed up: its fingerprint differs"


def make(directory: Path, number: int) -> Path:
    """Back up an image and change the fingerprints in the database, so its blocks match only their tags."""
    config = make_repository(directory / "repository", block_size=BLOCK)
    configure(config, encryption_version=number)
    image = random_image(directory / "image", 2 * BLOCK)
    assert run(["-c", str(config), "-q", "backup", str(image), "disk"]) == 0
    with closing(sqlite3.connect(config.parent / "backyfs.sqlite", isolation_level=None)) as connection:
        assert connection.execute("UPDATE blobs SET fingerprint = randomblob(32)").rowcount == 2
    return config


@pytest.mark.parametrize(
    ("number", "words"),
    [
        *((number, "restore disk@latest {target}") for number in (0, 1, 2)),
        *((number, "restore --differential disk@latest {copy}") for number in (0, 1, 2)),
        *((number, "restore -f --verify disk@latest {copy}") for number in (0, 1, 2)),
        *((number, "scrub --all") for number in (0, 1, 2)),
        *((number, "migrate-encryption --all --to {other}") for number in (0, 1, 2)),
        *((number, "export --format backy2 disk@latest {target}") for number in (0, 1)),
        *((number, "restore --offset 5 --length 9 disk@latest {target}") for number in (0, 1)),
    ],
)
def test_a_wrong_fingerprint_is_damage_wherever_a_whole_block_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], number: int, words: str
) -> None:
    config = make(tmp_path, number)
    shutil.copy(tmp_path / "image", tmp_path / "copy")
    filled = words.format(target=tmp_path / "target", copy=tmp_path / "copy", other=(number + 1) % 3)
    assert run(["-c", str(config), *filled.split()]) == DAMAGE
    assert DIFFERS in capsys.readouterr().err


def test_a_part_of_a_segmented_block_is_checked_only_by_tags(tmp_path: Path) -> None:
    config = make(tmp_path, 2)
    words = ["restore", "--offset", "5", "--length", "9", "disk@latest", str(tmp_path / "target")]
    assert run(["-c", str(config), *words]) == 0
    assert (tmp_path / "target").read_bytes()[5:14] == (tmp_path / "image").read_bytes()[5:14]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_mount_checks_fingerprints_of_plain_blocks_only(tmp_path: Path, number: int) -> None:
    with opened(make(tmp_path, number)) as repository:
        with repository.database.read() as connection:
            blob = blob_of(repository, list_versions(connection)[0], 0)
        loader = PieceLoader(repository.blocks)
        if number == 0:
            with pytest.raises(IntegrityError, match=DIFFERS):
                loader.load(blob, range(1))
        else:
            [piece] = loader.load(blob, range(1))
            assert (tmp_path / "image").read_bytes().startswith(piece)
