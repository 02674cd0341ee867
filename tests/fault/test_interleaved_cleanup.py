"""Commands that delete beside others, in every order of their transactions: what is valid restores exactly.

Two commands meet in every order. Three commands have thousands of orders, which take hours: `make orders`
follows them all, and the test suite a sample that is always the same. Each step of the sample begins where an order
that was followed could have gone on with another command. Orders that reach a known state are not followed further.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
from sqlalchemy import delete, func, select

from backyfs.engine.backup import committer, flusher
from backyfs.engine.backup.backup import BackupRequest, backup
from backyfs.engine.catalog import publish
from backyfs.engine.restore.restore import restore
from backyfs.engine.secrets import migrate as migrate_module
from backyfs.engine.secrets.migrate import MigrationRequest, migrate
from backyfs.engine.space import cleanup as cleanup_module
from backyfs.engine.space.cleanup import cleanup
from backyfs.engine.space.fullcleanup import full_cleanup
from backyfs.engine.versions.remove import remove_versions
from backyfs.errors import JobLostError
from backyfs.metadata.db.tables import blobs, jobs
from backyfs.metadata.maps.blockmap import ABSENT, commit_page, load_page, references_add_up
from backyfs.metadata.records.versions import list_versions, set_status
from backyfs.metadata.upkeep.migration import Outdated
from backyfs.model import PageNumber, VersionStatus
from backyfs.sources.registry import open_source
from backyfs.storage import directory
from backyfs.storage.directory import DirectoryStorage
from backyfs.work import width
from backyfs.work.flushbatch import FlushLimits
from backyfs.work.limits import Limits
from tests.fault.interleaving import Command, Explorer, Witness
from tests.support.audit import audit, content_of
from tests.support.images import random_bytes
from tests.support.repositories import BLOCK, make_repository, opened
from tests.support.stored import blob_uids

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence
    from pathlib import Path

    from backyfs.metadata.db.database import Connection, Database
    from backyfs.repository import Repository

    Work: TypeAlias = Callable[["Subject", Repository], object]

NOW = datetime(2026, 1, 1, tzinfo=UTC)
NO_GRACE_S = 0  # see `_clock`
# All that decides how a command goes on, without uids, times and tokens, which are others each time.
PICTURE = (
    "SELECT id, name, status FROM versions ORDER BY id",
    "SELECT * FROM version_pages ORDER BY version_id, page_no",
    "SELECT id, digest, refs, published FROM pages ORDER BY id",
    "SELECT * FROM blob_refs ORDER BY blob_id",
    "SELECT command, COUNT(*) FROM jobs GROUP BY command ORDER BY command",
    "SELECT version_id FROM job_versions ORDER BY version_id",
    "SELECT kind, COUNT(*) FROM catalog_notes GROUP BY kind ORDER BY kind",
)
SHELF = "0123"  # of all blobs
_EVER_S = float("inf")
NOTHING_BY_THE_CLOCK = Limits(flush=FlushLimits(seconds=_EVER_S), first_flush_s=_EVER_S, commit_s=_EVER_S)
SAMPLE = None if os.environ.get("EVERY_ORDER") else 70  # orders of three commands; None: all
BLOBS = "SELECT id, fingerprint, doomed_at IS NULL, valid, uid FROM blobs ORDER BY id"


def blocks(*seeds: int) -> bytes:
    """Return an image of a few blocks, of which those of the same number are the same."""
    return b"".join(random_bytes(BLOCK, seed) for seed in seeds)


class Subject:
    """A repository that can be made again as it was, and the commands that meet in it."""

    def __init__(self, place: Path, images: dict[str, bytes], *, encrypted: bool = False) -> None:
        self._place = place
        self._images = images
        for name, content in images.items():
            (place / name).write_bytes(content)
        self._config_file = make_repository(place / "repository", encrypted=encrypted)
        self._data = place / "repository" / "data"
        self._opened = ExitStack()
        self._storages = ExitStack()  # of the order that is being followed
        self._repositories: list[tuple[Repository, Witness]] = []

    def prepare(self, change: Work) -> None:
        """Bring the repository into the state in which the commands meet."""
        with opened(self._config_file) as repository:
            change(self, repository)
        shutil.copytree(self._place / "repository", self._place / "original")

    def explore(self, *works: Work, most: int | None = None) -> Explorer:
        """Let commands meet in all orders, or in a sample of at most `most`."""
        with self._opened, self._storages:
            self._raw = self._connect("repository")
            self._original = self._connect("original")
            for _ in (*works, self._check):
                repository = self._opened.enter_context(opened(self._config_file))
                self._repositories.append((repository, Witness(repository.database.engine)))
            explorer = Explorer(lambda: self._begin(works), self._picture, self._check)
            explorer.run(most)
        return explorer

    def restore(self, repository: Repository, name: str) -> None:
        """Restore the version of a name, and compare it with its image."""
        with repository.database.read() as connection:
            [version] = list_versions(connection, name=name)
        target = self._place / "restored"
        assert restore(repository, version, str(target), replace=True).damaged == ()
        assert target.read_bytes() == self._images[name]

    def back_up(self, repository: Repository, name: str, **request: Any) -> None:
        """Back up an image under its name."""
        source = open_source(str(self._place / name))
        try:
            backup(repository, source, BackupRequest(name=name, **request))
        finally:
            source.close()

    def _connect(self, name: str) -> sqlite3.Connection:
        connection = sqlite3.connect(self._place / name / "backyfs.sqlite", isolation_level=None)
        connection.execute("PRAGMA synchronous = OFF")
        self._opened.callback(connection.close)
        return connection

    def _begin(self, works: Sequence[Work]) -> list[Command]:
        """Restore the original state, and make new commands."""
        self._storages.close()
        self._original.backup(self._raw)
        self._renew_objects()
        return [
            self._command(work, *opened) for work, opened in zip(works, self._repositories, strict=False)
        ]

    def _renew_objects(self) -> None:
        original = self._place / "original" / "data"
        for place, _, names in os.walk(self._data):
            for name in names:
                os.unlink(f"{place}/{name}")
        shutil.copytree(original, self._data, dirs_exist_ok=True)

    def _command(
        self, work: Work, repository: Repository, witness: Witness
    ) -> Command:
        def run(database: Database) -> object:
            return work(self, replace(self._with_new_storage(repository), database=database))

        return Command(work.__name__, repository.database, witness, run)

    def _with_new_storage(self, repository: Repository) -> Repository:
        storage = DirectoryStorage(str(self._data))  # another one than that of an abandoned command
        self._storages.callback(storage.close)
        return replace(repository, blocks=replace(repository.blocks, storage=storage), limits=NOTHING_BY_THE_CLOCK)

    def _picture(self) -> Hashable:
        rows = [tuple(self._raw.execute(query)) for query in PICTURE]
        objects = {name.partition(".")[0] for name in os.listdir(self._data / SHELF[:2] / SHELF[2:])}
        known = self._raw.execute(BLOBS).fetchall()
        there = tuple((*facts, uid in objects) for *facts, uid in known)
        return (*rows, there, len(objects.difference(row[-1] for row in known)))

    def _check(self, commands: Sequence[Command]) -> None:
        lost = [command for command in commands if isinstance(command.error, JobLostError)]
        for command in commands:
            assert command.error is None or command in lost, f"{command.name} failed: {command.error!r}"
        assert not lost or any(command.name == bury_and_clean.__name__ for command in commands)
        self._is_whole = not lost  # else a version may be incomplete, and objects have no row
        repository = self._with_new_storage(self._repositories[-1][0])
        self._check_content(repository)
        cleanup(repository, grace_s=NO_GRACE_S)
        self._check_content(repository)
        for name in self._images:
            self.back_up(repository, name)
        self._check_content(repository)
        remove_all(self, repository)
        full_cleanup(repository, grace_s=NO_GRACE_S)
        assert blob_uids(repository.blocks.storage) == []

    def _check_content(self, repository: Repository) -> None:
        audit(repository)
        with repository.database.read() as connection:
            assert references_add_up(connection)
            for version in list_versions(connection):
                if version.status is VersionStatus.INCOMPLETE and not self._is_whole:
                    continue
                assert version.status is VersionStatus.VALID
                assert content_of(repository, version) == self._images[version.name]


def remove_all(subject: Subject, repository: Repository) -> None:
    with repository.database.read() as connection:
        versions = list_versions(connection)
    remove_versions(repository, versions, now=NOW)


@pytest.fixture(autouse=True)
def _one_thing_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a command do the same each time: one worker, nothing by the clock; and no waits for a disk."""
    monkeypatch.setattr(width, "processors", lambda: 1)
    for module in (flusher, committer, migrate_module):
        monkeypatch.setattr(module, "new_shelf", lambda: SHELF)
    monkeypatch.setattr(cleanup_module, "database_time", _clock)
    # The catalog has other tests. The order in which it is written does not decide what may be deleted.
    monkeypatch.setattr(publish, "publish", lambda *_arguments, **_options: publish.PublishReport())
    monkeypatch.setattr(directory, "syncfs", lambda _fd: None)


def _clock(connection: Connection) -> datetime:
    """Return a time before which all blobs that are there were stored, and after which all others will be."""
    newest: datetime = connection.execute(select(func.max(blobs.c.created_at))).scalar() or NOW
    return newest + timedelta(microseconds=1)


def clean(subject: Subject, repository: Repository) -> None:
    cleanup(repository, grace_s=NO_GRACE_S)


def clean_fully(subject: Subject, repository: Repository) -> None:
    full_cleanup(repository, grace_s=NO_GRACE_S)


def remove_old(subject: Subject, repository: Repository) -> None:
    with repository.database.read() as connection:
        versions = list_versions(connection, name="old")
    remove_versions(repository, versions, now=NOW)


def restore_old(subject: Subject, repository: Repository) -> None:
    subject.restore(repository, "old")


def seal_again(subject: Subject, repository: Repository) -> None:
    migrate(repository, MigrationRequest(versions=None, outdated=Outdated(to=1), workers=1))


def bury_and_clean(subject: Subject, repository: Repository) -> None:
    """Take the backups that run for dead, and delete whatever only they needed."""
    with repository.database.write() as connection:
        connection.execute(delete(jobs).where(jobs.c.kind == "backup"))
    full_cleanup(repository, grace_s=NO_GRACE_S)


def remove_and_clean(subject: Subject, repository: Repository) -> None:
    with repository.database.read() as connection:
        versions = list_versions(connection, name="old")
    remove_versions(repository, versions, now=NOW)
    clean(subject, repository)


def back_up_old(subject: Subject, repository: Repository) -> None:
    subject.back_up(repository, "old")


def back_up_new(subject: Subject, repository: Repository) -> None:
    subject.back_up(repository, "new")


def go_on_with_new(subject: Subject, repository: Repository) -> None:
    with repository.database.read() as connection:
        [begun] = list_versions(connection, name="new")
    subject.back_up(repository, "new", continued=begun)


def one_version(subject: Subject, repository: Repository) -> None:
    subject.back_up(repository, "old")


def garbage(subject: Subject, repository: Repository) -> None:
    """Leave a page and blobs, and no version."""
    subject.back_up(repository, "old")
    remove_all(subject, repository)


def begun_version(subject: Subject, repository: Repository) -> None:
    """Leave a version of which one block is there, and a blob in no page, as a killed backup does."""
    subject.back_up(repository, "new")
    with repository.database.write() as connection:
        [version] = list_versions(connection)
        set_status(connection, version.id, VersionStatus.INCOMPLETE)
        entries = load_page(connection, version.id, PageNumber(0))
        assert entries is not None
        entries[1] = ABSENT
        commit_page(connection, version.id, PageNumber(0), entries, keep_holes=True)


IMAGES = {"old": blocks(1, 2), "new": blocks(2, 3)}
SAME = {"old": blocks(1, 2), "new": blocks(1, 2)}


@pytest.mark.parametrize(
    ("before", "images", "works"),
    [
        pytest.param(garbage, IMAGES, (back_up_new, clean), id="a backup that knows some of the garbage, a cleanup"),
        pytest.param(one_version, SAME, (back_up_new, remove_and_clean), id="a backup, a removal of all that it knows"),
        pytest.param(begun_version, IMAGES, (go_on_with_new, clean), id="a continued backup, a cleanup"),
        pytest.param(garbage, IMAGES, (back_up_new, bury_and_clean), id="a backup that is taken for dead, a cleanup"),
        pytest.param(garbage, IMAGES, (clean, clean), id="two cleanups"),
        pytest.param(garbage, SAME, (back_up_new, back_up_old), id="two backups of the same"),
    ],
)
def test_whatever_the_order_versions_are_exact_and_counts_are_right(
    tmp_path: Path, before: Work, images: dict[str, bytes], works: tuple[Work, ...]
) -> None:
    subject = Subject(tmp_path, images)
    subject.prepare(before)
    explorer = subject.explore(*works)
    assert explorer.orders > 1


@pytest.mark.parametrize(
    ("before", "images", "works"),
    [
        pytest.param(one_version, IMAGES, (back_up_new, clean, remove_old), id="a backup, a cleanup, a removal"),
        pytest.param(garbage, IMAGES, (back_up_new, back_up_old, clean), id="two backups, a cleanup"),
        pytest.param(
            one_version, SAME, (back_up_new, clean_fully, remove_old), id="a backup, a full cleanup, a removal"
        ),
        pytest.param(one_version, IMAGES, (seal_again, clean, restore_old), id="a migration, a cleanup, a restore"),
        pytest.param(
            one_version, IMAGES, (seal_again, remove_old, back_up_new), id="a migration, a removal, a backup"
        ),
        pytest.param(garbage, IMAGES, (back_up_new, back_up_old, bury_and_clean), id="two backups taken for dead"),
        pytest.param(
            begun_version, IMAGES, (go_on_with_new, back_up_old, bury_and_clean), id="a continued backup taken for dead"
        ),
    ],
)
def test_whatever_the_order_of_three_commands_versions_are_exact_and_counts_are_right(
    tmp_path: Path, before: Work, images: dict[str, bytes], works: tuple[Work, ...]
) -> None:
    subject = Subject(tmp_path, images, encrypted=seal_again in works)
    subject.prepare(before)
    explorer = subject.explore(*works, most=SAMPLE)
    assert explorer.orders > 1
