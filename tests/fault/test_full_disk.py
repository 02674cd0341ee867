"""A disk that is full, really: a backup says so, a cleanup makes room, and the next backup succeeds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.audit import audit
from tests.support.images import random_image
from tests.support.program import backyfs
from tests.support.repositories import opened

if TYPE_CHECKING:
    from collections.abc import Iterator

BACKYFS = str(Path(sys.executable).with_name("backyfs"))
BLOCK = 16 << 10
DISK_KIB = 3072
SMALL, LARGE = 40, 200  # blocks: some of the first fit, the second never
BALLAST = 256 << 10
NO_SPACE = 6


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a small file system."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_KIB}k", "tmpfs", place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)


def run(config: Path, *words: object) -> tuple[int, str]:
    done = backyfs("-c", config, "-q", *words)
    return done.returncode, done.stderr


@pytest.mark.parametrize("database_is_there", [False, True], ids=["database elsewhere", "database on it"])
def test_a_full_disk(tmp_path: Path, disk: Path, database_is_there: bool) -> None:
    config = tmp_path / "repository" / "backyfs.cfg"
    database = (disk if database_is_there else tmp_path) / "backyfs.sqlite"
    assert run(config, "init", "--data", disk / "data", "--db", database, "--block-size", BLOCK) == (0, "")
    ballast = disk / "ballast"  # what docs/operate/cleanup.md advises where the database is there as well
    ballast.write_bytes(bytes(BALLAST if database_is_there else 0))
    small = random_image(tmp_path / "small", SMALL * BLOCK, 1)
    assert run(config, "backup", small, "small") == (0, "")
    large = random_image(tmp_path / "large", LARGE * BLOCK, 2)
    status, err = run(config, "backup", large, "large")
    assert status == NO_SPACE, err
    assert "No space left on device; make room and run the command again" in err
    assert list(disk.rglob("*.tmp")) == []
    ballast.unlink()
    # The interrupted version, and what it stored, go.
    with opened(config) as repository:
        audit(repository)
    ls = [BACKYFS, "-c", str(config), "-m", "-s", "ls", "large"]
    for line in subprocess.run(ls, capture_output=True, text=True, check=True).stdout.splitlines():
        uid = line.split("|")[5]
        assert run(config, "rm", "--force", uid) == (0, "")
    assert run(config, "cleanup", "--full", "--dangerous-force") == (0, "")
    assert run(config, "restore", "small@latest", tmp_path / "restored") == (0, "")
    assert (tmp_path / "restored").read_bytes() == small.read_bytes()
    other = random_image(tmp_path / "other", SMALL * BLOCK, 3)
    assert run(config, "backup", other, "other") == (0, "")
    with opened(config) as repository:
        audit(repository)
