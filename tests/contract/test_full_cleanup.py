"""A full cleanup counts, compares and corrects while other commands run: the same on every engine."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import delete, select, update

from backyfs.engine.space.cleanup import cleanup
from backyfs.engine.space.fullcleanup import full_cleanup, plan_full_cleanup
from backyfs.engine.space.recount import recount
from backyfs.engine.versions.remove import remove_versions
from backyfs.metadata.db.tables import blob_refs, blobs, pages
from backyfs.metadata.upkeep.garbage import StoredOrphan, doom_orphans, living_blobs
from backyfs.model import BlobId, BlobUid
from backyfs.work.job import Job
from tests.support.audit import audit
from tests.support.images import random_image
from tests.support.jobs import spec
from tests.support.repositories import BLOCK, back_up, expect_restored, make_repository, opened

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from backyfs.model import Version
    from backyfs.repository import Repository

pytestmark = pytest.mark.slow

BLOCKS = 8
NOW = datetime(2026, 1, 1, tzinfo=UTC)
EARLIER = NOW - timedelta(days=30)
A, B = BlobUid("a" * 32), BlobUid("b" * 32)


@pytest.fixture
def repository(database_url: str, tmp_path: Path) -> Iterator[Repository]:
    with opened(make_repository(tmp_path / "repository", database=database_url)) as repository:
        yield repository


@pytest.fixture
def version(repository: Repository, image: Path) -> Version:
    return back_up(repository, image).version


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return random_image(tmp_path / "image", BLOCKS * BLOCK)


@pytest.mark.parametrize(
    "wrong",
    [update(pages).values(refs=0), update(blob_refs).values(refs=9), delete(blob_refs),
     update(blobs).values(doomed_at=NOW)],
    ids=["pages", "blobs", "no references", "doomed"],
)  # fmt: skip
def test_references_are_corrected(repository: Repository, version: Version, image: Path, wrong: Any) -> None:
    with repository.database.write() as connection:
        connection.execute(wrong)
    many = plan_full_cleanup(repository, grace_s=0).wrong_references
    assert many in {1, BLOCKS}
    report = full_cleanup(repository, grace_s=0)
    assert (report.wrong_references, report.cleaned.blobs, report.damaged_blobs) == (many, 0, 0)
    audit(repository)
    expect_restored(repository, version, image)
    assert full_cleanup(repository, grace_s=0).wrong_references == 0


def test_a_recount_during_backups_removals_and_cleanups_is_exact(
    repository: Repository, version: Version, image: Path, tmp_path: Path
) -> None:
    second = back_up(repository, random_image(tmp_path / "second", BLOCKS * BLOCK, 2)).version
    with repository.database.write() as connection:
        connection.execute(update(blob_refs).values(refs=blob_refs.c.refs + 5))
    others = [
        lambda: back_up(repository, random_image(tmp_path / "third", BLOCKS * BLOCK, 3)),
        lambda: (remove_versions(repository, [second], now=datetime.now(UTC)), cleanup(repository)),
    ]

    def check() -> None:
        if others:
            others.pop(0)()

    recount(repository.database, check)
    assert not others
    audit(repository)
    expect_restored(repository, version, image)


def test_orphans_are_deleted_and_missing_objects_are_marked(repository: Repository, version: Version) -> None:
    storage = repository.blocks.storage
    storage.put(A, [b"nobody's"])
    storage.flush()
    with repository.database.read() as connection:
        missing = BlobUid(connection.execute(select(blobs.c.uid).limit(1)).scalar_one())
    storage.delete([missing])
    with Job(repository.database, spec("backup disk")):
        assert full_cleanup(repository, grace_s=0).young_orphans == 1
    report = full_cleanup(repository, grace_s=0)
    assert (report.orphans, report.orphan_bytes) == (1, 8)
    assert storage.size(A) is None
    with repository.database.read() as connection:
        assert connection.execute(select(blobs.c.uid).where(blobs.c.valid.is_(False))).scalars().all() == [missing]
        assert connection.execute(select(blobs.c.id).where(blobs.c.doomed_at.is_not(None))).all() == []


def test_an_orphan_is_doomed_once_and_an_object_with_a_row_is_not_an_orphan(
    repository: Repository, version: Version
) -> None:
    with repository.database.write() as connection:
        known = BlobUid(connection.execute(select(blobs.c.uid).limit(1)).scalar_one())
        orphans = [StoredOrphan(uid=uid, stored_size=7) for uid in (A, known, B)]
        assert doom_orphans(connection, orphans, stored_at=EARLIER, now=NOW) == [A, B]
        assert doom_orphans(connection, orphans, stored_at=EARLIER, now=NOW) == []
        row = connection.execute(select(blobs).where(blobs.c.uid == A)).one()
        assert (row.fingerprint, row.stored_size, row.wrapped_key) == (None, 7, None)
        assert (row.created_at, row.doomed_at) == (EARLIER, NOW)
        many = [StoredOrphan(uid=BlobUid(f"{number:032x}"), stored_size=number) for number in range(1100)]
        assert doom_orphans(connection, many, stored_at=EARLIER, now=NOW) == [orphan.uid for orphan in many]


def test_living_blobs_can_be_listed_in_parts(repository: Repository, version: Version) -> None:
    with repository.database.write() as connection:
        ids = sorted(connection.execute(select(blobs.c.id)).scalars())
        connection.execute(update(blobs).where(blobs.c.id == ids[0]).values(doomed_at=NOW))
        first = living_blobs(connection, BlobId(0), BlobId(ids[-2]), "", 3)
        rest = living_blobs(connection, first[-1].id, BlobId(ids[-2]), "", BLOCKS)
        assert len(first) == 3
        assert [blob.id for blob in first + rest] == ids[1:-1]
        connection.execute(update(blobs).where(blobs.c.id == ids[2]).values(uid="aBcxx"))
        connection.execute(update(blobs).where(blobs.c.id == ids[3]).values(uid="abcxx"))
        for prefix, expected in (("aB", [ids[2]]), ("ab", [ids[3]]), ("%", []), ("_", []), ("abcd", [])):
            found = living_blobs(connection, BlobId(0), BlobId(ids[-1]), prefix, BLOCKS)
            assert [blob.id for blob in found if blob.uid.lower() == "abcxx"] == expected
