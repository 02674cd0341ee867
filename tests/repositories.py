"""Repositories for tests: made by `backyfs.engine.initialize`, in a temporary directory, and opened."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from backyfs.config import load_config
from backyfs.engine.backup import BackupReport, BackupRequest, backup
from backyfs.engine.initialize import Places, initialize
from backyfs.repository import open_repository
from backyfs.sources import open_source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from backyfs.model import Version
    from backyfs.repository import Repository

BLOCK = 4096  # of test repositories, unless a test says otherwise


def make_repository(directory: Path, *, block_size: int = BLOCK, encrypted: bool = True) -> Path:
    """Make a repository below `directory` and return its configuration."""
    config_file = directory / "backyfs.cfg"
    initialize(
        Places(
            config_file=str(config_file),
            key_file=str(directory / "backyfs.key"),
            storage_path=str(directory / "data"),
            database=str(directory / "backyfs.sqlite"),
            logfile=str(directory / "backyfs.log"),
        ),
        block_size=block_size,
        encrypted=encrypted,
    )
    return config_file


@contextmanager
def opened(config_file: Path) -> Iterator[Repository]:
    """Open the repository of a configuration."""
    config, warnings = load_config(str(config_file), {})
    assert not warnings
    with open_repository(config) as repository:
        yield repository


def back_up(
    repository: Repository,
    image: Path,
    name: str = "disk",
    *,
    announce: Callable[[Version], None] | None = None,
    **request: Any,
) -> BackupReport:
    """Back up an image; `request` are further fields of a BackupRequest."""
    source = open_source(str(image))
    try:
        return backup(repository, source, BackupRequest(name=name, **request), announce=announce)
    finally:
        source.close()
