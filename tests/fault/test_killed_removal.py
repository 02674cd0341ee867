"""rm, forget and cleanup that are killed at any statement, or whose statement fails: what stays is whole."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from backyfs.config import Scheduler
from backyfs.engine.space.cleanup import cleanup
from backyfs.engine.versions.forget import forget
from backyfs.engine.versions.remove import remove_versions
from backyfs.metadata.records.versions import list_versions
from tests.fault.everystep import fail_at_every_statement, kill_at_every_statement
from tests.support.audit import audit, content_of, count_blobs
from tests.support.images import random_image
from tests.support.repositories import BLOCK, back_up, make_repository, opened, with_limits
from tests.support.states import Stored
from tests.support.stored import blob_uids

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from backyfs.repository import Repository

KEPT, GONE = 3, 4  # blocks of the version that stays, and of each that goes


class Removal:
    """Versions `gone`, one of them with a block of the version `kept`, which stays."""

    def __init__(self, directory: Path, remove: Callable[[Repository], object], *, removed_before: bool) -> None:
        self._remove = remove
        kept = random_image(directory / "kept", KEPT * BLOCK)
        self._content = kept.read_bytes()
        self._config = make_repository(directory / "repository")
        with opened(self._config) as repository:
            back_up(repository, kept, "kept", tags=("daily",))
            for seed in (1, 2):
                image = random_image(directory / "gone", GONE * BLOCK, seed)
                with image.open("r+b") as file:
                    file.write(self._content[:BLOCK])
                back_up(repository, image, "gone", tags=("daily",))
            back_up(repository, kept, "gone", tags=("daily",))
            if removed_before:
                remove_all(repository)
        self.stored = Stored(directory / "repository")

    def act(self) -> None:
        """Remove, or clean up."""
        with opened(self._config) as repository:
            self._remove(with_limits(repository, blobs_at_once=2, pages_at_once=1))  # several rounds

    def check(self, *, done: bool) -> None:
        """Make sure that what is there is whole; after a cleanup that is done nothing else is."""
        with opened(self._config) as repository:
            audit(repository)
            with repository.database.read() as connection:
                versions = list_versions(connection)
            [kept] = [version for version in versions if version.name == "kept"]
            for version in versions:
                content_of(repository, version)
            assert content_of(repository, kept) == self._content
            if done and self._remove is clean_up:
                assert (len(versions), count_blobs(repository)) == (1, KEPT)
                assert len(blob_uids(repository.blocks.storage)) == KEPT
            elif done:
                assert len(versions) == (1 if self._remove is remove_all else 2)


def remove_all(repository: Repository) -> None:
    with repository.database.read() as connection:
        versions = list_versions(connection, name="gone")
    remove_versions(repository, versions, now=datetime.now(UTC))


def forget_old(repository: Repository) -> None:
    daily = Scheduler(name="daily", interval_s=86400, keep=1, sla_s=3600)
    forget(repository, [daily], name="gone", now=datetime.now(UTC))


def clean_up(repository: Repository) -> None:
    cleanup(repository, grace_s=0)


@pytest.fixture(params=[remove_all, forget_old, clean_up])
def subject(request: pytest.FixtureRequest, tmp_path: Path) -> Removal:
    return Removal(tmp_path, request.param, removed_before=request.param is clean_up)


def test_a_kill_at_any_statement(subject: Removal) -> None:
    kill_at_every_statement(subject)


def test_a_statement_that_fails(subject: Removal) -> None:
    fail_at_every_statement(subject)
