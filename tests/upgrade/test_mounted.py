"""Reference repositories, mounted by the first command that sees them."""

from __future__ import annotations

import hashlib
import os
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any

import pytest

from tests.mount.conftest import fuse, mounted
from tests.upgrade.reference import SQLITE_NAMES, Reference

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["fuse", "mounted"]


@pytest.mark.parametrize("name", SQLITE_NAMES)
def test_every_version_reads_through_the_mount(name: str, tmp_path: Path, mounted: Callable[..., Path]) -> None:
    reference = Reference(name, tmp_path)
    mountpoint = mounted(reference.config_file)
    assert sorted(os.listdir(mountpoint / "by_version_uid")) == sorted(reference.expected["versions"])
    for uid, facts in reference.expected["versions"].items():
        directory = mountpoint / "by_version_uid" / uid
        assert (directory / "name").read_text().rstrip("\n") == facts["name"]
        assert (directory / "data").stat().st_size == facts["size_bytes"]
        if facts["complete"]:
            assert hashlib.sha256((directory / "data").read_bytes()).hexdigest() == facts["sha256"]
        else:
            found = readable_blocks(directory / "data", reference.expected["block_size"])
            assert found == facts["readable_blocks_sha256"]
        check_ranges(directory / "data", facts)


def readable_blocks(path: Path, block_size: int) -> dict[str, str]:
    found = {}
    with closing(path.open("rb", buffering=0)) as file:
        for offset in range(0, path.stat().st_size, block_size):
            with suppress(OSError):  # EIO: the block cannot be read
                block = os.pread(file.fileno(), block_size, offset)
                found[str(offset // block_size)] = hashlib.sha256(block).hexdigest()
    return found


def check_ranges(path: Path, facts: dict[str, Any]) -> None:
    with closing(path.open("rb", buffering=0)) as file:
        for part in facts["ranges"]:
            content = os.pread(file.fileno(), part["length"], part["offset"])
            assert hashlib.sha256(content).hexdigest() == part["sha256"]
