"""Cleanup deletes blocks that no version needs, and nothing else, whatever other commands do in the meantime."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import delete, func, select

from backyfs.engine.secrets.migrate import MigrationRequest, migrate
from backyfs.engine.space.cleanup import Cleaner, CleanupReport, cleanup, plan_cleanup
from backyfs.engine.versions.remove import remove_versions
from backyfs.errors import InterruptedByUser, JobLostError, StorageError
from backyfs.metadata.db.tables import blobs, jobs, pages
from backyfs.metadata.records.versions import list_versions
from backyfs.metadata.upkeep.migration import Outdated
from backyfs.model import Deduplication, NoProgress, VersionStatus
from backyfs.work.job import Job
from backyfs.work.run import UNATTENDED, Control, Run
from tests.support.audit import audit, count_blobs, count_jobs, expect_exact
from tests.support.images import random_image
from tests.support.jobs import spec, stopping_after
from tests.support.repositories import BLOCK, back_up, configure, make_repository, opened, with_limits
from tests.support.storages import with_watched_storage, with_watched_writes
from tests.support.stored import blob_uids

if TYPE_CHECKING:
    from pathlib import Path

    from backyfs.engine.space.cleanup import CleanupReport
    from backyfs.model import BlobUid, Version
    from backyfs.repository import Repository

pytestmark = pytest.mark.slow

BLOCKS = 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return random_image(tmp_path / "image", BLOCKS * BLOCK)


def remove(repository: Repository, *versions: Version) -> None:
    removals = remove_versions(repository, versions, now=datetime.now(UTC))
    assert [removal.kept for removal in removals] == [None] * len(versions)


def objects(repository: Repository) -> set[BlobUid]:
    return set(blob_uids(repository.blocks.storage))


def test_after_all_versions_the_storage_is_empty(repository: Repository, image: Path, tmp_path: Path) -> None:
    first = back_up(repository, image).version
    second = back_up(repository, random_image(tmp_path / "other", 5 * BLOCK, 2), "other").version
    remove(repository, first, second)
    stored = sum(repository.blocks.storage.size(uid) or 0 for uid in blob_uids(repository.blocks.storage))
    report = cleanup(repository, grace_s=0)
    assert (report.pages, report.blobs, report.stored_bytes) == (2, BLOCKS + 5, stored)
    assert objects(repository) == set()
    assert count_blobs(repository) == 0
    assert count_jobs(repository) == 0
    with repository.database.read() as connection:
        assert connection.execute(select(func.count()).select_from(pages)).scalar() == 0


class Shown(NoProgress):
    """Records the progress that is shown."""

    def __init__(self) -> None:
        self.shown: list[object] = []

    def start(self, title: str, total: int) -> None:
        self.shown += [title, total]

    def advance(self, amount: int) -> None:
        assert self.shown, "no step has begun"
        self.shown.append(amount)


def test_all_steps_of_a_cleanup_add_up(repository: Repository, image: Path) -> None:
    repository = with_limits(repository, blobs_at_once=3, deletions_a_task=2)
    remove(repository, back_up(repository, image).version)
    stored = sum(repository.blocks.storage.size(uid) or 0 for uid in objects(repository))
    progress = Shown()
    commands: set[str] = set()

    def look() -> None:
        with repository.database.read() as connection:
            commands.update(connection.execute(select(jobs.c.command)).scalars())

    report = cleanup(with_watched_storage(repository, look, "delete"), grace_s=0, control=Control(progress=progress))
    assert (report.pages, report.blobs, report.stored_bytes) == (1, BLOCKS, stored)
    assert 0 < report.duration_s < 3600
    assert progress.shown[:2] == ["Deleting what no version needs", stored]
    steps = progress.shown[2:]
    assert len(steps) == -(-BLOCKS // 3)
    assert sum(steps) == stored  # type: ignore[arg-type]
    assert commands == {"cleanup"}


def test_blocks_of_another_version_are_kept(repository: Repository, image: Path, tmp_path: Path) -> None:
    first = back_up(repository, image).version
    changed = tmp_path / "changed"
    changed.write_bytes(b"x" * BLOCK + image.read_bytes()[BLOCK:])
    second = back_up(repository, changed).version
    remove(repository, first)
    assert cleanup(repository, grace_s=0).blobs == 1
    expect_exact(repository, second, changed)
    assert len(objects(repository)) == BLOCKS


def test_a_cleanup_with_nothing_to_do_succeeds(repository: Repository, image: Path) -> None:
    version = back_up(repository, image).version
    for _ in range(2):
        report = cleanup(repository, grace_s=0)
        assert (report.pages, report.blobs, report.stored_bytes) == (0, 0, 0)
    expect_exact(repository, version, image)


def test_young_blobs_are_kept_until_the_grace_time_is_over(repository: Repository, image: Path) -> None:
    version = back_up(repository, image).version
    remove(repository, version)
    assert plan_cleanup(repository).young_blobs == BLOCKS
    report = cleanup(repository)
    assert (report.pages, report.blobs) == (1, 0)
    assert len(objects(repository)) == BLOCKS
    assert back_up(repository, image).statistics.blocks_deduplicated == BLOCKS


def test_a_cleanup_does_what_it_plans(repository: Repository, image: Path) -> None:
    remove(repository, back_up(repository, image).version)
    garbage = plan_cleanup(repository, grace_s=0)
    report = cleanup(repository, grace_s=0)
    assert (garbage.pages, garbage.blobs, garbage.stored_bytes) == (report.pages, report.blobs, report.stored_bytes)
    assert (garbage.blobs, garbage.young_blobs) == (BLOCKS, 0)


def test_an_incomplete_version_keeps_its_blocks_and_is_continued(repository: Repository, image: Path) -> None:
    asked = 0

    def fail(uid: Any, parts: Any) -> int:
        nonlocal asked
        asked += 1
        if asked > 10:
            raise StorageError("injected")
        return repository.blocks.storage.put(uid, parts)

    class Failing:
        put = staticmethod(fail)

        def __getattr__(self, name: str) -> Any:
            return getattr(repository.blocks.storage, name)

    storage: Any = Failing()
    begun: list[Version] = []
    with pytest.raises(StorageError):
        back_up(replace(repository, blocks=replace(repository.blocks, storage=storage)), image, announce=begun.append)
    cleanup(repository, grace_s=0)
    audit(repository)
    version = back_up(repository, image, continued=begun[0]).version
    assert version.status is VersionStatus.VALID
    expect_exact(repository, version, image)


def test_a_cleanup_during_a_backup_deletes_nothing_of_it(repository: Repository, image: Path) -> None:
    done: list[CleanupReport] = []

    def clean_up() -> None:
        if not done and count_blobs(repository):  # they have rows, but no page has them yet
            done.append(cleanup(repository, grace_s=0))

    version = back_up(with_watched_writes(repository, clean_up), image).version
    assert done[0].blobs == BLOCKS
    expect_exact(repository, version, image)


def test_a_cleanup_between_lookup_and_commit_makes_a_backup_store_again(repository: Repository, image: Path) -> None:
    remove(repository, back_up(repository, image).version)
    done: list[CleanupReport] = []

    def clean_up() -> None:
        with repository.database.read() as connection:
            has_begun = bool(list_versions(connection))
        if has_begun and not done:  # all blocks were found, so their page is the first thing written
            done.append(cleanup(repository, grace_s=0))

    version = back_up(with_watched_writes(repository, clean_up), image).version
    assert done[0].blobs == BLOCKS
    expect_exact(repository, version, image)


def test_the_next_cleanup_completes_an_interrupted_one(repository: Repository, image: Path) -> None:
    remove(repository, back_up(repository, image).version)
    limited = with_limits(repository, blobs_at_once=3)
    with pytest.raises(InterruptedByUser, match="the next cleanup continues"):
        cleanup(limited, grace_s=0, control=Control(stop=stopping_after(12)))
    assert 0 < len(objects(repository)) < BLOCKS
    audit(repository)
    cleanup(repository, grace_s=0)
    assert objects(repository) == set()
    assert count_blobs(repository) == 0


def test_objects_already_deleted_do_not_matter(repository: Repository, image: Path) -> None:
    remove(repository, back_up(repository, image).version)
    for uid in blob_uids(repository.blocks.storage)[:7]:
        repository.blocks.storage.delete([uid])
    assert cleanup(repository, grace_s=0).blobs == BLOCKS
    assert count_blobs(repository) == 0


def test_two_cleanups_can_run_at_the_same_time(repository: Repository, image: Path) -> None:
    remove(repository, back_up(repository, image).version)
    inner: list[CleanupReport] = []
    first = threading.Lock()

    def clean_up() -> None:  # in a worker thread, before an object is deleted
        if first.acquire(blocking=False):
            inner.append(cleanup(repository, grace_s=0))

    outer = cleanup(with_watched_storage(repository, clean_up, "delete"), grace_s=0)
    assert inner[0].blobs + outer.blobs == BLOCKS
    assert objects(repository) == set()


def test_no_object_is_plain_after_a_migration_and_a_cleanup(tmp_path: Path) -> None:
    config = make_repository(tmp_path / "plain")
    configure(config, encryption_version=0)
    # Bytes found in a plain object but, except by an impossible accident, not in an encrypted one.
    contents = [bytes([number]) * 64 + f"this is block {number}".encode() * 50 for number in range(BLOCKS)]
    image = tmp_path / "text"
    image.write_bytes(b"".join(content.ljust(BLOCK, b".") for content in contents))
    with opened(config) as repository:
        version = back_up(repository, image).version
        assert all(_is_plain(repository, uid, contents) for uid in objects(repository))
    configure(config, encryption_version=2)
    with opened(config) as repository:
        remove(repository, back_up(replace(repository, deduplication=Deduplication.OFF), image, "gone").version)
        migrate(repository, MigrationRequest(versions=None, outdated=Outdated(to=2)))
        assert any(_is_plain(repository, uid, contents) for uid in objects(repository))
        cleanup(repository, grace_s=0)
        assert not any(_is_plain(repository, uid, contents) for uid in objects(repository))
        assert len(objects(repository)) == BLOCKS
        expect_exact(repository, version, image)
        with repository.database.read() as connection:
            assert set(connection.execute(select(blobs.c.encryption_version)).scalars()) == {2}


def _is_plain(repository: Repository, uid: Any, contents: list[bytes]) -> bool:
    stored = repository.blocks.storage.get(uid)
    return any(content in stored for content in contents)


def test_a_backup_taken_for_dead_references_no_new_objects(repository: Repository, image: Path) -> None:
    def bury() -> None:
        with repository.database.write() as connection:  # as a command does after watching it in vain
            connection.execute(delete(jobs))

    with pytest.raises(JobLostError):
        back_up(with_watched_storage(repository, bury, "flush"), image)
    assert count_blobs(repository) == 0


def test_a_cleanup_taken_for_dead_stops(repository: Repository, image: Path) -> None:
    remove(repository, back_up(repository, image).version)
    with Job(repository.database, spec("cleanup")) as job:
        job._lost.set()
        with pytest.raises(JobLostError):
            Cleaner(repository, Run(UNATTENDED, interrupted="", job=job), grace_s=0).run()
    assert len(objects(repository)) == BLOCKS
