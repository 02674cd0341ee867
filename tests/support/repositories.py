"""Repositories for tests: created by `backyfs.engine.setup.initialize` in a temporary directory, and opened."""

from __future__ import annotations

import re
import shutil
import sqlite3
import time
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from backyfs.config import load_config
from backyfs.engine.backup.backup import BackupReport, BackupRequest, backup
from backyfs.engine.restore.restore import restore
from backyfs.engine.setup.initialize import initialize
from backyfs.engine.setup.places import Places
from backyfs.metadata.records.jobs import list_running_jobs
from backyfs.metadata.records.processes import this_process
from backyfs.metadata.schema.schema import create_file, create_tables
from backyfs.repository import open_repository
from backyfs.sources.registry import open_source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from backyfs.metadata.db.database import Database
    from backyfs.model import JobProgress, Version
    from backyfs.repository import Repository

PATIENCE_S = 60
BLOCK = 4096  # of test repositories, unless a test says otherwise
_CONFIG = "backyfs.cfg"
_PLAIN = re.compile(r"[\w./-]+", re.ASCII)  # a path that needs no escapes in a configuration


def make_repository(
    directory: Path, *, block_size: int = BLOCK, encrypted: bool = True, database: str | None = None
) -> Path:
    """Make a repository below `directory`, with an SQLite file or the given database; return its configuration."""
    template = None if database is not None or block_size != BLOCK else templates.take(directory, encrypted=encrypted)
    if template is not None:
        return copy_repository(template, directory)
    return _make(directory, block_size=block_size, encrypted=encrypted, database=database)


def configure(config_file: Path, **settings: object) -> None:
    """Set values of the [DEFAULTS] of a configuration."""
    text = config_file.read_text()
    for key, value in settings.items():
        text = re.sub(rf"(?m)^{key}:.*\n", "", text).replace("[DEFAULTS]\n", f"[DEFAULTS]\n{key}: {value}\n")
    config_file.write_text(text)


def copy_repository(template: Path, directory: Path) -> Path:
    """Copy a repository that `make_repository` made, and return the configuration of the copy.

    A module whose tests change what they begin with makes it once, and copies it for each of them.
    """
    assert _PLAIN.fullmatch(str(directory))
    if not directory.exists():
        directory.mkdir(parents=True)
        shutil.copymode(template, directory)
    for path in template.iterdir():
        if path.is_dir():
            shutil.copytree(path, directory / path.name)
        else:
            shutil.copy2(path, directory / path.name)
    config_file = directory / _CONFIG
    config_file.write_text(config_file.read_text().replace(str(template), str(directory)))
    return config_file


class Templates:
    """Repositories that are made once and copied for tests, which takes a tenth of the time.

    No two repositories in a test are copies of the same template. Fixtures for a whole module do not use templates.
    """

    def __init__(self) -> None:
        self._made: dict[bool, list[Path]] = {}  # encrypted ones, and others
        self._left: dict[bool, list[Path]] = {}  # in this test

    def make(self, directory: Path) -> None:
        """Make the templates."""
        for encrypted, count in ((True, 3), (False, 2)):
            self._made[encrypted] = [directory / f"{encrypted}{number}" for number in range(count)]
            for template in self._made[encrypted]:
                _make(template, encrypted=encrypted)

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Lend the templates to a test."""
        self._left = {encrypted: list(some) for encrypted, some in self._made.items()}
        try:
            yield
        finally:
            self._left = {}

    def take(self, directory: Path, *, encrypted: bool) -> Path | None:
        """Return a template to copy to a directory; None if none is left or its configuration would differ."""
        left = self._left.get(encrypted)
        if not left or not _PLAIN.fullmatch(str(directory)) or (directory / _CONFIG).exists():
            return None
        return left.pop(0)


templates = Templates()


def _make(directory: Path, *, block_size: int = BLOCK, encrypted: bool, database: str | None = None) -> Path:
    config_file = directory / _CONFIG
    initialize(
        Places(
            config_file=str(config_file),
            key_file=str(directory / "backyfs.key"),
            storage=str(directory / "data"),
            database=database or str(directory / "backyfs.sqlite"),
            logfile=str(directory / "backyfs.log"),
        ),
        block_size=block_size,
        encrypted=encrypted,
    )
    return config_file


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Wait until a condition is true, and fail if that takes too long."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, f"waited in vain: {what}"
        time.sleep(0.02)


def wait_for_job(config_file: Path, command: str) -> None:
    """Wait until a command with this beginning is running."""
    with opened(config_file) as repository:
        wait_for(lambda: bool(_progress_of(repository, command)), f"{command} begins")


def wait_for_progress(config_file: Path, command: str) -> None:
    """Wait until the list of jobs shows progress of a command with this beginning."""
    with opened(config_file) as repository:
        wait_for(
            lambda: any(progress is not None and progress.done > 0 for progress in _progress_of(repository, command)),
            f"{command} gets on",
        )


def _progress_of(repository: Repository, command: str) -> list[JobProgress | None]:
    with repository.database.read() as connection:
        found = list_running_jobs(connection, this_process())
    return [running.progress for running in found if running.job.command.startswith(command)]


def with_limits(repository: Repository, **changes: Any) -> Repository:
    """Return the repository with other limits, to test what happens at them."""
    return replace(repository, limits=replace(repository.limits, **changes))


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
    """Back up an image; `request` contains further fields of a BackupRequest."""
    source = open_source(str(image))
    try:
        return backup(repository, source, BackupRequest(name=name, **request), announce=announce)
    finally:
        source.close()


def restored(repository: Repository, version: Version, directory: Path) -> bytes:
    """Restore a version to a file in a directory, without any damage, and return what the file has then."""
    target = directory / "restored.img"
    assert restore(repository, version, str(target), replace=True).damaged == ()
    return target.read_bytes()


def expect_restored(repository: Repository, version: Version, image: Path) -> None:
    """Fail unless a version is restored as the image that was backed up."""
    assert restored(repository, version, image.parent) == image.read_bytes()


def change_database(config_file: Path, *statements: str) -> None:
    """Run statements in the SQLite file of a repository."""
    with closing(sqlite3.connect(config_file.parent / "backyfs.sqlite", isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


def create_schema(database: Database) -> None:
    """Make an SQLite file, if it is one, and the tables of a repository."""
    create_file(database)
    with database.begin() as connection:
        create_tables(connection)
