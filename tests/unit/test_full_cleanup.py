"""A full cleanup corrects wrong references, objects and rows of any kind, and removes nothing else."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import delete, insert, select, update

from backyfs.engine.catalog.publish import publish
from backyfs.engine.space.fullcleanup import full_cleanup, plan_full_cleanup
from backyfs.engine.versions.remove import remove_versions
from backyfs.errors import CatalogError, DatabaseError, InterruptedByUser
from backyfs.metadata.db.tables import blob_refs, blobs, jobs, pages
from backyfs.metadata.maps.blockmap import new_entries, pack
from backyfs.metadata.records.versions import list_versions
from backyfs.model import VersionStatus
from backyfs.work import silence
from backyfs.work.job import Job
from backyfs.work.run import Control
from tests.support.audit import audit, doom, statuses_of
from tests.support.images import random_image
from tests.support.jobs import spec
from tests.support.repositories import BLOCK, back_up, expect_restored
from tests.unit.test_cleanup import Shown

if TYPE_CHECKING:
    from pathlib import Path

    from backyfs.model import Version
    from backyfs.repository import Repository

pytestmark = pytest.mark.slow

BLOCKS = 8
NO_GRACE_S = 0


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return random_image(tmp_path / "image", BLOCKS * BLOCK)


@pytest.fixture
def version(repository: Repository, image: Path) -> Version:
    return back_up(repository, image).version


def objects(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "repository" / "data").glob("??/??/*.blob"))


def orphan(tmp_path: Path, name: str = "f" * 32) -> Path:
    path = tmp_path / "repository" / "data" / name[:2] / name[2:4] / f"{name}.blob"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"nobody's")
    return path


def test_a_sound_repository_is_not_changed(repository: Repository, version: Version, image: Path) -> None:
    report = full_cleanup(repository, grace_s=NO_GRACE_S)
    assert (report.wrong_references, report.orphans, report.damaged_blobs, report.leftovers) == (0, 0, 0, 0)
    assert (report.cleaned.pages, report.cleaned.blobs) == (0, 0)
    audit(repository)
    expect_restored(repository, version, image)


@pytest.mark.parametrize(
    "wrong",
    [
        update(pages).values(refs=0),
        update(pages).values(refs=7),
        update(blob_refs).values(refs=0),
        update(blob_refs).values(refs=9),
        delete(blob_refs),
        update(blobs).values(doomed_at=datetime(2026, 1, 1, tzinfo=UTC)),
    ],
    ids=["pages 0", "pages 7", "blobs 0", "blobs 9", "no references", "doomed"],
)
def test_wrong_references_are_corrected_before_anything_is_deleted(
    repository: Repository, version: Version, image: Path, wrong: object
) -> None:
    with repository.database.write() as connection:
        connection.execute(wrong)  # type: ignore[call-overload]
    assert plan_full_cleanup(repository, grace_s=NO_GRACE_S).wrong_references > 0
    report = full_cleanup(repository, grace_s=NO_GRACE_S)
    assert report.wrong_references in {1, BLOCKS}
    assert (report.cleaned.blobs, report.damaged_blobs) == (0, 0)
    audit(repository)
    expect_restored(repository, version, image)
    assert full_cleanup(repository, grace_s=NO_GRACE_S).wrong_references == 0


def test_an_unused_doomed_blob_with_wrong_references_is_deleted(repository: Repository, version: Version) -> None:
    remove_versions(repository, [version], now=datetime.now(UTC))
    with repository.database.write() as connection:
        [first] = connection.execute(select(blobs.c.id).limit(1)).scalars()
        connection.execute(update(pages).values(refs=0))
        connection.execute(delete(pages))
        connection.execute(update(blob_refs).values(refs=3))
        doom(connection, first)
        connection.execute(insert(blob_refs).values(blob_id=first, refs=1))
    assert full_cleanup(repository, grace_s=NO_GRACE_S).wrong_references == BLOCKS
    audit(repository)
    with repository.database.read() as connection:
        assert first not in connection.execute(select(blobs.c.id)).scalars().all()


def test_objects_without_a_row_are_deleted_once_they_are_old(
    repository: Repository, version: Version, image: Path, tmp_path: Path
) -> None:
    path = orphan(tmp_path)
    report = full_cleanup(repository)
    assert (report.orphans, report.young_orphans) == (0, 1)
    plan = plan_full_cleanup(repository, grace_s=NO_GRACE_S)
    assert (plan.orphans, plan.orphan_bytes, plan.young_orphans) == (1, 8, 0)
    assert path.exists()
    report = full_cleanup(repository, grace_s=NO_GRACE_S)
    assert (report.orphans, report.orphan_bytes, report.cleaned.blobs) == (1, 8, 1)
    assert not path.exists()
    assert len(objects(tmp_path)) == BLOCKS
    audit(repository)
    expect_restored(repository, version, image)


def test_an_object_that_a_live_job_may_have_stored_is_kept(repository: Repository, tmp_path: Path) -> None:
    path = orphan(tmp_path)
    with Job(repository.database, spec("backup disk")):
        report = full_cleanup(repository, grace_s=NO_GRACE_S)
    assert (report.orphans, report.young_orphans) == (0, 1)
    with Job(repository.database, spec("mount /mnt"), only_reads=True):
        report = full_cleanup(repository, grace_s=NO_GRACE_S)
    assert (report.orphans, report.young_orphans) == (1, 0)
    assert not path.exists()


def test_an_object_of_a_dead_job_is_deleted_and_the_job_cannot_reference_it(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(silence, "WATCH_S", 0)
    path = orphan(tmp_path)
    with repository.database.write() as connection:
        connection.execute(
            insert(jobs).values(
                host="elsewhere", scope="elsewhere", pid=1, pid_started=1, command="backup disk", progress="",
                started_at=datetime(2026, 1, 1, tzinfo=UTC), heartbeat_at=datetime(2026, 1, 1, tzinfo=UTC),
            )
        )  # fmt: skip
    assert full_cleanup(repository, grace_s=NO_GRACE_S).orphans == 1
    assert not path.exists()
    with repository.database.read() as connection:
        assert connection.execute(select(jobs)).all() == []


def test_only_objects_with_the_prefix_are_checked(repository: Repository, tmp_path: Path) -> None:
    one, other = orphan(tmp_path, "ab" * 16), orphan(tmp_path, "cd" * 16)
    assert full_cleanup(repository, grace_s=NO_GRACE_S, prefix="cdc").orphans == 1
    assert one.exists()
    assert not other.exists()


def test_files_that_are_not_objects_are_kept(repository: Repository, tmp_path: Path) -> None:
    strange = [
        orphan(tmp_path, "ab" * 17),
        orphan(tmp_path, "ab" * 16).rename(orphan(tmp_path, "cd" * 16).with_name(f"{'ab' * 16}.blob")),
        tmp_path / "repository" / "data" / "notes.blob",
    ]
    strange[-1].write_text("mine")
    assert full_cleanup(repository, grace_s=NO_GRACE_S).orphans == 1
    assert all(path.exists() for path in strange)


def test_leftovers_of_killed_commands_are_removed_once_they_are_old(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [
        orphan(tmp_path).with_suffix(".blob.tmp"),
        tmp_path / "repository" / "data" / "catalog" / "versions" / "x.0123456789abcdef.tmp",
    ]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
    assert full_cleanup(repository).leftovers == 0
    later = time.time() + 2 * 3600
    real = os.utime
    monkeypatch.setattr(os, "utime", lambda fd: real(fd, (later, later)))  # by the clock of the file system
    assert full_cleanup(repository).leftovers == 2
    assert not any(path.exists() for path in left)


def test_the_blobs_read_back_are_shown_as_progress(repository: Repository, version: Version, tmp_path: Path) -> None:
    objects(tmp_path)[0].unlink()
    progress = Shown()
    full_cleanup(repository, control=Control(progress=progress))
    assert progress.shown == ["Reading what seems to be missing", BLOCK, BLOCK]


def test_missing_and_short_objects_are_marked_and_reported(
    repository: Repository, version: Version, tmp_path: Path
) -> None:
    missing, short, *_ = objects(tmp_path)
    missing.unlink()
    short.write_bytes(short.read_bytes()[:-1])
    plan = plan_full_cleanup(repository, grace_s=NO_GRACE_S)
    assert plan.missing_blobs == 2
    assert statuses_of(repository) == [VersionStatus.VALID]
    reasons: list[str] = []
    report = full_cleanup(repository, on_damage=lambda _, damage: reasons.append(damage.reason))
    assert report.damaged_blobs == 2
    assert report.versions_invalid == (version.uid,)
    assert sorted(reason.split()[1] for reason in reasons) == sorted([missing.stem, short.stem])
    assert statuses_of(repository) == [VersionStatus.INVALID]


def test_blobs_of_pages_without_a_row_are_damage(repository: Repository, version: Version) -> None:
    with repository.database.write() as connection:
        [first] = connection.execute(select(blobs.c.id).limit(1)).scalars()
        connection.execute(delete(blobs).where(blobs.c.id == first))
    report = full_cleanup(repository)
    assert report.damaged_blobs == 1
    assert report.versions_invalid == (version.uid,)


@pytest.mark.parametrize("packed", [b"no page", pack(new_entries(BLOCKS, 1 << 60))], ids=["broken", "another"])
def test_nothing_is_deleted_if_a_page_is_damaged(
    repository: Repository, version: Version, tmp_path: Path, packed: bytes
) -> None:
    with repository.database.write() as connection:
        connection.execute(update(pages).values(entries=packed))
        connection.execute(update(blob_refs).values(refs=0))
    with pytest.raises(DatabaseError, match="no count is corrected and nothing is deleted"):
        full_cleanup(repository, grace_s=NO_GRACE_S)
    assert len(objects(tmp_path)) == BLOCKS


def test_with_an_old_copy_of_the_database_unknown_objects_are_not_lost(
    repository: Repository, version: Version, tmp_path: Path
) -> None:
    publish(repository)
    with repository.database.write() as connection:
        for row in list_versions(connection):
            connection.exec_driver_sql(f"DELETE FROM version_pages WHERE version_id = {row.id}")
            connection.exec_driver_sql(f"DELETE FROM versions WHERE id = {row.id}")
        for table in (pages, blobs):
            connection.execute(delete(table))
    with pytest.raises(CatalogError, match="the database does not know 1 versions of the catalog"):
        full_cleanup(repository, grace_s=NO_GRACE_S)
    assert len(objects(tmp_path)) == BLOCKS


def test_a_full_cleanup_can_be_interrupted(repository: Repository, version: Version, image: Path) -> None:
    with pytest.raises(InterruptedByUser):
        full_cleanup(repository, control=Control(stop=lambda: True))
    expect_restored(repository, version, image)


def test_blobs_of_unknown_size_are_not_damage(repository: Repository, version: Version) -> None:
    with repository.database.write() as connection:
        connection.execute(update(blobs).values(stored_size=None))
    assert full_cleanup(repository).damaged_blobs == 0
