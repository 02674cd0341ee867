"""A cleanup leaves objects that are paid for anyway, and deletes them once they are older than that."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select, update

from backyfs.engine.secrets.migrate import MigrationRequest, migrate
from backyfs.engine.space.cleanup import cleanup, plan_cleanup
from backyfs.engine.space.fullcleanup import full_cleanup, plan_full_cleanup
from backyfs.engine.versions.remove import remove_versions
from backyfs.metadata.db.tables import blobs
from backyfs.metadata.upkeep.migration import Outdated
from backyfs.model import BlobUid
from tests.support.images import random_image
from tests.support.repositories import BLOCK, back_up
from tests.support.storages import PaidStorage, with_storage
from tests.support.stored import blob_uids

if TYPE_CHECKING:
    from pathlib import Path

    from backyfs.model import Version
    from backyfs.repository import Repository

pytestmark = pytest.mark.slow

BLOCKS = 5
DAYS = 30
ORPHAN = BlobUid("0" * 32)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return random_image(tmp_path / "image", BLOCKS * BLOCK)


@pytest.fixture
def paid(repository: Repository) -> Repository:
    return with_storage(repository, PaidStorage(repository.blocks.storage, days=DAYS))


def remove(repository: Repository, version: Version) -> None:
    [removal] = remove_versions(repository, [version], now=datetime.now(UTC))
    assert removal.kept is None


def age(repository: Repository, *, days: int) -> None:
    """Make all blobs that are stored now older."""
    with repository.database.write() as connection:
        for blob_id, created_at in connection.execute(select(blobs.c.id, blobs.c.created_at)).all():
            earlier = created_at - timedelta(days=days)
            connection.execute(update(blobs).where(blobs.c.id == blob_id).values(created_at=earlier))


def stored(repository: Repository) -> int:
    return len(list(blob_uids(repository.blocks.storage)))


def test_an_unused_blob_is_deleted_once_it_is_old_enough(paid: Repository, image: Path) -> None:
    remove(paid, back_up(paid, image).version)
    report = cleanup(paid, grace_s=0)
    assert (report.pages, report.blobs, report.young_blobs) == (1, 0, BLOCKS)
    assert stored(paid) == BLOCKS
    age(paid, days=DAYS - 1)
    assert cleanup(paid, grace_s=0).young_blobs == BLOCKS
    age(paid, days=1)
    plan = plan_cleanup(paid, grace_s=0)
    assert (plan.blobs, plan.young_blobs) == (BLOCKS, 0)
    report = cleanup(paid, grace_s=0)
    assert (report.blobs, report.young_blobs) == (BLOCKS, 0)
    assert stored(paid) == 0


def test_a_backup_uses_blobs_again_that_are_paid_for(paid: Repository, image: Path) -> None:
    remove(paid, back_up(paid, image).version)
    cleanup(paid, grace_s=0)
    assert back_up(paid, image).statistics.blocks_deduplicated == BLOCKS
    assert stored(paid) == BLOCKS
    assert cleanup(paid, grace_s=0).young_blobs == 0


def test_a_replaced_object_is_kept_as_long_as_if_it_were_still_used(paid: Repository, image: Path) -> None:
    back_up(paid, image)
    age(paid, days=DAYS - 1)
    migrate(paid, MigrationRequest(versions=None, outdated=Outdated(to=1)))
    assert stored(paid) == 2 * BLOCKS
    report = cleanup(paid, grace_s=0)
    assert (report.blobs, report.young_blobs) == (0, BLOCKS)
    age(paid, days=1)
    report = cleanup(paid, grace_s=0)
    assert (report.blobs, report.young_blobs) == (BLOCKS, 0)
    assert stored(paid) == BLOCKS


def test_an_object_without_a_row_is_deleted_once_it_is_old_enough(paid: Repository) -> None:
    storage = paid.blocks.storage
    assert isinstance(storage, PaidStorage)
    storage.put(ORPHAN, [b"nobody's"])
    storage.flush()
    report = full_cleanup(paid, grace_s=0)
    assert (report.orphans, report.young_orphans) == (0, 1)
    storage.days_later = DAYS
    assert plan_full_cleanup(paid, grace_s=0).orphans == 1
    report = full_cleanup(paid, grace_s=0)
    assert (report.orphans, report.young_orphans, report.cleaned.blobs) == (1, 0, 1)
    assert stored(paid) == 0


def test_nothing_waits_in_a_storage_that_is_not_paid_for_in_advance(repository: Repository, image: Path) -> None:
    remove(repository, back_up(repository, image).version)
    report = cleanup(repository, grace_s=0)
    assert (report.blobs, report.young_blobs) == (BLOCKS, None)
