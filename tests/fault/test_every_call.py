"""A call to storage or database that fails, for every one of a backup, a cleanup and a migration.

Afterwards no valid version is lost, the same command succeeds, and so does the next cleanup, with no repair by hand.

PostgreSQL and MariaDB get the same statements. So each of them goes away at every other one.
"""

from __future__ import annotations

import errno
import itertools
import os
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
from sqlalchemy import Engine, delete, event

from backyfs.engine.catalog.publish import publish
from backyfs.engine.secrets.migrate import MigrationRequest, migrate
from backyfs.engine.space.cleanup import cleanup
from backyfs.engine.versions.remove import remove_versions
from backyfs.errors import BackyfsError, DatabaseError, StorageError
from backyfs.metadata.db.tables import jobs
from backyfs.metadata.records.versions import list_versions
from backyfs.metadata.upkeep.migration import Outdated
from backyfs.model import VersionStatus
from backyfs.storage import directory as directory_module
from backyfs.storage.beneath import Root
from tests.support.audit import audit, content_of
from tests.support.images import random_bytes
from tests.support.repositories import BLOCK, back_up, make_repository, opened
from tests.support.states import Stored
from tests.support.stored import object_names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from backyfs.repository import Repository
    from tests.support.services.database import DatabaseServer

    Breaking: TypeAlias = tuple[str | None, Callable[[Any], None], Iterator[int]]

FIRST = random_bytes(3 * BLOCK)
FEWEST = 4  # calls: with fewer, something else failed
CALLS = ("open", "mkdir", "rename", "unlink", "writev", "fdatasync", "fsync")
CHANGES = ("INSERT", "UPDATE", "DELETE")


class Place:
    """A repository with one version that stays, and commands that are done to it, each time with something to do."""

    def __init__(self, directory: Path, database: str | None = None) -> None:
        self.directory = directory
        self.config = make_repository(directory / "repository", database=database)
        self.images = {"kept": FIRST}
        with opened(self.config) as repository:
            self._back_up(repository, "kept")

    def image(self, number: int) -> str:
        """Make another image, which shares a block with the first."""
        name = f"disk{number}"
        self.images[name] = FIRST[:BLOCK] + random_bytes(2 * BLOCK + 7, number)
        return name

    def prepare_backup(self, _repository: Repository, number: int) -> None:
        """Make an image."""
        self.image(number)

    def do_backup(self, repository: Repository, number: int) -> None:
        """Back it up."""
        self._back_up(repository, f"disk{number}")

    def prepare_cleanup(self, repository: Repository, number: int) -> None:
        """Remove a version."""
        self._back_up(repository, self.image(number))
        remove_versions(repository, self._versions(repository, f"disk{number}"), now=datetime.now(UTC))

    def do_cleanup(self, repository: Repository, number: int) -> None:
        """Clean up after it."""
        cleanup(repository, grace_s=0)

    def prepare_migration(self, repository: Repository, number: int) -> None:
        """Make another version."""
        self._back_up(repository, self.image(number))

    def do_migration(self, repository: Repository, number: int) -> None:
        """Seal all blobs in the other encryption version."""
        migrate(repository, MigrationRequest(versions=None, outdated=Outdated(to=2 - number % 2)))
        publish(repository)

    def check(self, repository: Repository) -> None:
        """Make sure that all valid versions, the first among them, are what they were."""
        audit(repository)
        whole = [version for version in self._versions(repository) if version.status is VersionStatus.VALID]
        assert "kept" in {version.name for version in whole}
        for version in whole:
            assert content_of(repository, version) == self.images[version.name]

    def tidy(self, repository: Repository) -> None:
        """Remove all but the first version, and clean up."""
        others = [version for version in self._versions(repository) if version.name != "kept"]
        remove_versions(repository, others, now=datetime.now(UTC))
        publish(repository)
        cleanup(repository, grace_s=0)
        assert len(object_names(repository.blocks.storage, "catalog/versions/")) == 1

    def _back_up(self, repository: Repository, name: str) -> None:
        image = self.directory / "image"
        image.write_bytes(self.images[name])
        back_up(repository, image, name)
        publish(repository)

    @staticmethod
    def _versions(repository: Repository, name: str | None = None) -> list[Any]:
        with repository.database.read() as connection:
            return list_versions(connection, name=name)


COMMANDS = {
    "backup": (Place.prepare_backup, Place.do_backup),
    "cleanup": (Place.prepare_cleanup, Place.do_cleanup),
    "migration": (Place.prepare_migration, Place.do_migration),
}
every_command = pytest.mark.parametrize("command", sorted(COMMANDS))


class Fault:
    """Something that goes wrong at one of several calls."""

    def __init__(self, at: int, act: Callable[..., None]) -> None:
        self._at = at
        self._act = act
        self.calls = 0

    def note(self, *arguments: Any) -> None:
        """Note a call, before it is made."""
        self.calls += 1
        if self.calls == self._at:
            self._act(*arguments)

    @property
    def has_come(self) -> bool:
        """Whether the call was made."""
        return self.calls >= self._at


def fail_at_every_call(
    place: Place, command: str, faulty: Callable[[int], Any], expected: type[BackyfsError], calls: Iterable[int]
) -> None:
    """Do a command over and over, with a fault at each of these calls once, until it makes no such call."""
    prepare, act = COMMANDS[command]
    for number, at in enumerate(calls, 1):
        with opened(place.config) as repository:
            prepare(place, repository, number)
            # A fault that is reported is one of ours. One that costs nothing, as of the catalog, is not reported.
            with suppress(expected), faulty(at) as fault:
                act(place, repository, number)
        with opened(place.config) as repository:
            with repository.database.write() as connection:
                connection.execute(delete(jobs))  # its process has ended, for all that others know
            place.check(repository)
            act(place, repository, number)
            if number % 4 == 0 or not fault.has_come:
                place.check(repository)
            place.tidy(repository)
        if not fault.has_come:
            break
    assert at > FEWEST


@every_command
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO], ids=["no space", "input or output"])
def test_a_storage_that_fails_at_any_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, number: int
) -> None:
    place = Place(tmp_path)
    storage = f"{tmp_path}/repository/data"

    def refuse() -> None:
        raise OSError(number, os.strerror(number))

    @contextmanager
    def faulty(at: int) -> Iterator[Fault]:
        fault = Fault(at, refuse)
        with monkeypatch.context() as patch:
            for module, name in [(os, name) for name in CALLS] + [(directory_module, "syncfs")]:
                patch.setattr(module, name, watched(getattr(module, name), name, fault))
            patch.setattr(Root, "open", watched_open(Root.open, fault))
            yield fault

    def watched(real: Callable[..., Any], name: str, fault: Fault) -> Callable[..., Any]:
        def call(first: Any, *rest: Any, **options: Any) -> Any:
            if isinstance(first, str) and not place_of(first, **options).startswith(storage):
                return real(first, *rest, **options)
            if name != "open" or rest[0] & os.O_CREAT:
                fault.note()
            return real(first, *rest, **options)

        return call

    def watched_open(real: Callable[..., int], fault: Fault) -> Callable[..., int]:
        def call(root: Root, name: str, flags: int, mode: int = 0) -> int:
            if flags & os.O_CREAT:
                fault.note()
            return real(root, name, flags, mode)

        return call

    fail_at_every_call(place, command, faulty, StorageError, itertools.count(1))


def place_of(path: str, *, dir_fd: int | None = None, src_dir_fd: int | None = None, **_options: Any) -> str:
    """Return a path that was given with the descriptor of a directory, whole."""
    directory = dir_fd if dir_fd is not None else src_dir_fd
    return path if directory is None else os.path.join(os.readlink(f"/proc/self/fd/{directory}"), path)


@every_command
def test_a_kill_at_any_call(tmp_path: Path, command: str) -> None:
    place = Place(tmp_path)
    prepare, act = COMMANDS[command]
    number = 1

    def run() -> None:
        with opened(place.config) as repository:
            act(place, repository, number)

    with opened(place.config) as repository:
        prepare(place, repository, number)
    stored = Stored(place.config.parent)
    killed = stored.killed(run, storage=True)
    with opened(place.config) as repository:
        place.check(repository)
    for copy in killed.copies.values():
        stored.put(copy)
        with opened(place.config) as repository:
            place.check(repository)
            act(place, repository, number)
            place.check(repository)
            place.tidy(repository)
    assert killed.steps >= FEWEST


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def breaking(request: pytest.FixtureRequest) -> Iterator[Breaking]:
    """Give a database, what takes it away from a connection, and at which calls."""
    if request.param == "sqlite":
        yield None, fill_the_disk, itertools.count(1)
        return
    server: DatabaseServer = request.getfixturevalue(f"{request.param}_server")
    url = server.new_database()
    yield url, server.disconnect, itertools.count(1 if request.param == "postgresql" else 2, 2)
    server.drop(url)


def fill_the_disk(connection: Any) -> None:
    """Let an SQLite file not grow any more, on this connection."""
    connection.connection.dbapi_connection.execute("PRAGMA max_page_count = 1")


@every_command
def test_a_database_that_goes_away_at_any_statement(
    tmp_path: Path, breaking: Breaking, command: str
) -> None:
    url, break_it, calls = breaking
    place = Place(tmp_path, url)

    @contextmanager
    def faulty(at: int) -> Iterator[Fault]:
        fault = Fault(at, break_it)

        def before_execute(connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
            if statement.lstrip().upper().startswith(CHANGES) and "jobs" not in statement:
                fault.note(connection)

        event.listen(Engine, "before_cursor_execute", before_execute)
        event.listen(Engine, "commit", fault.note)
        try:
            yield fault
        finally:
            event.remove(Engine, "before_cursor_execute", before_execute)
            event.remove(Engine, "commit", fault.note)

    fail_at_every_call(place, command, faulty, DatabaseError, calls)
