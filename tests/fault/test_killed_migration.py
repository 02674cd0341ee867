"""A migration that is killed at any statement, or whose statement fails: every version is what it was."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from backyfs.engine.secrets.migrate import MigrationRequest, migrate
from backyfs.metadata.maps.usage import encryption_versions
from backyfs.metadata.records.versions import list_versions
from backyfs.metadata.upkeep.migration import Outdated
from backyfs.work.flushbatch import FlushLimits
from tests.fault.everystep import fail_at_every_statement, kill_at_every_statement
from tests.support.audit import audit, content_of
from tests.support.images import random_image
from tests.support.repositories import BLOCK, back_up, configure, make_repository, opened, with_limits
from tests.support.states import Stored

if TYPE_CHECKING:
    from pathlib import Path

BLOCKS = 6


class Migration:
    """Two images, one of which has plain blobs and encrypted ones."""

    def __init__(self, directory: Path) -> None:
        self._images = {
            "image": random_image(directory / "image", BLOCKS * BLOCK),
            "changed": random_image(directory / "changed", BLOCKS * BLOCK, 3),
        }
        self._config = make_repository(directory / "repository")
        configure(self._config, encryption_version=0)
        with opened(self._config) as repository:
            for name, image in self._images.items():
                back_up(repository, image, name)
        configure(self._config, encryption_version=2, deduplication="same-version")
        with opened(self._config) as repository:  # its blobs take the place of some of the plain ones
            back_up(repository, self._images["changed"], "changed")
        self.stored = Stored(directory / "repository")

    def act(self) -> None:
        """Migrate everything."""
        with opened(self._config) as repository:
            limited = with_limits(repository, flush=FlushLimits(items=2))  # several flushes
            migrate(limited, MigrationRequest(versions=None, outdated=Outdated(to=2), workers=1))

    def check(self, *, done: bool) -> None:
        """Make sure that all versions are exact, and all their blobs encrypted if it is done."""
        with opened(self._config) as repository:
            audit(repository)
            with repository.database.read() as connection:
                versions = list_versions(connection)
            assert len(versions) == 3
            for version in versions:
                assert content_of(repository, version) == self._images[version.name].read_bytes()
                with repository.database.read() as connection:
                    assert not done or encryption_versions(connection, version) == [2]


@pytest.fixture
def subject(tmp_path: Path) -> Migration:
    return Migration(tmp_path)


def test_a_kill_at_any_statement(subject: Migration) -> None:
    kill_at_every_statement(subject)


def test_a_statement_that_fails(subject: Migration) -> None:
    fail_at_every_statement(subject)
