"""A migration that is killed at any statement, or whose statement fails: every version is what it was."""

from __future__ import annotations

import os
import shutil
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from backyfs.engine import migrate as module
from backyfs.engine.migrate import MigrationRequest, migrate
from backyfs.engine.restore import restore
from backyfs.errors import DatabaseError
from backyfs.metadata.migration import Outdated
from backyfs.metadata.usage import encryption_versions
from backyfs.metadata.versions import list_versions
from tests.audit import audit
from tests.images import random_image
from tests.repositories import BLOCK, back_up, make_repository, opened
from tests.unit.test_migrate import configure
from tests.upgrade.test_faults import fail, kill, watched

if TYPE_CHECKING:
    from pathlib import Path

BLOCKS = 6


class Subject:
    """Two versions with the same content, of which one has plain blobs; it can be made again and again."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._target = directory / "restored"
        self.image = random_image(directory / "image", BLOCKS * BLOCK)
        self.changed = random_image(directory / "changed", BLOCKS * BLOCK, 3)
        self.config = make_repository(directory / "repository")
        configure(self.config, encryption_version=0)
        with opened(self.config) as repository:
            back_up(repository, self.image, "image")
            back_up(repository, self.changed, "changed")
        configure(self.config, encryption_version=2, deduplication="same-version")
        with opened(self.config) as repository:  # its blobs take the place of some of the plain ones
            back_up(repository, self.changed, "changed")
        shutil.copytree(directory / "repository", directory / "original")

    def renew(self) -> None:
        """Make the repository as it was."""
        shutil.rmtree(self._directory / "repository")
        shutil.copytree(self._directory / "original", self._directory / "repository")

    def migrate(self) -> None:
        """Migrate everything."""
        with opened(self.config) as repository:
            migrate(repository, MigrationRequest(versions=None, outdated=Outdated(to=2), workers=1))

    def check(self, *, done: bool = False) -> None:
        """Make sure that all versions are exact, and all their blobs encrypted if it is done."""
        with opened(self.config) as repository:
            audit(repository)
            with repository.database.read() as connection:
                versions = list_versions(connection)
            assert len(versions) == 3
            for version in versions:
                assert restore(repository, version, str(self._target), replace=True).damaged == ()
                content = self.image if version.name == "image" else self.changed
                assert self._target.read_bytes() == content.read_bytes()
                with repository.database.read() as connection:
                    assert not done or encryption_versions(connection, version) == [2]


@pytest.fixture
def subject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Subject:
    monkeypatch.setattr(module, "_FLUSH_BLOBS", 2)  # several flushes
    return Subject(tmp_path)


def test_a_kill_at_any_statement(subject: Subject) -> None:
    number = 0
    while True:
        number += 1
        pid = os.fork()
        if pid == 0:
            try:
                with watched(kill, number, changes_only=True):
                    subject.migrate()
            finally:
                os._exit(0)
        killed = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        subject.check(done=not killed)
        if not killed:
            break
        subject.migrate()  # the command, once more
        subject.check(done=True)
        subject.renew()
    assert number > 5


def test_a_statement_that_fails(subject: Subject) -> None:
    number = 0
    while True:
        number += 1
        with watched(fail, number, changes_only=True) as statements, suppress(DatabaseError):
            subject.migrate()
        subject.check()
        if statements.count < number:
            break
        subject.migrate()
        subject.check(done=True)
        subject.renew()
    assert number > 5
