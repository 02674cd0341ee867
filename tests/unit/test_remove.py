"""Removing versions: which are kept and why, and that data shared with other versions do not change."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event, func, insert, select, update

from backyfs.engine.restore.restore import restore
from backyfs.engine.versions.remove import Removal, Rules, plan_removals, remove_versions
from backyfs.errors import InterruptedByUser, JobLostError, VersionNotFoundError
from backyfs.metadata.db.tables import jobs, pages, version_pages
from backyfs.metadata.maps.blockmap import references_add_up
from backyfs.metadata.records.jobs import hold_version, list_live_jobs, register_job
from backyfs.metadata.records.processes import this_process
from backyfs.metadata.records.removal import remove_version
from backyfs.metadata.records.stats import list_statistics
from backyfs.metadata.records.versions import create_version, list_versions, set_expiry, set_protected
from backyfs.model import JobKind, Version
from backyfs.work import silence
from backyfs.work.job import Job
from backyfs.work.run import Control
from tests.support.audit import audit, count_blobs, count_jobs
from tests.support.images import random_bytes, random_image
from tests.support.jobs import ELSEWHERE, spec
from tests.support.repositories import BLOCK, back_up, make_repository, opened

if TYPE_CHECKING:
    from pathlib import Path

    from backyfs.metadata.db.database import Connection
    from backyfs.repository import Repository

pytestmark = pytest.mark.slow

PATIENCE_S = 60
KEEP_LAST = Rules(keep_last=True)
FIRST = 1000  # the id of pages that no backup has made


def stored(repository: Repository, tmp_path: Path, count: int = 1) -> list[Version]:
    """Back up a number of different images."""
    return [
        back_up(repository, random_image(tmp_path / f"image{seed}", 3 * BLOCK, seed), f"disk{seed}").version
        for seed in range(count)
    ]


def left(repository: Repository) -> list[str]:
    with repository.database.read() as connection:
        return [version.name for version in list_versions(connection)]


def removed(repository: Repository, *versions: Version, days: int = 0, force: bool = False) -> list[str]:
    """Remove versions; return why each was kept, or an empty text if it was removed."""
    removals = remove_versions(
        repository, versions, rules=Rules(younger_than_days=days, force=force), now=datetime.now(UTC)
    )
    return ["" if removal.kept is None else str(removal.kept) for removal in removals]


def age(repository: Repository, job_id: int, seconds: int) -> None:
    """Set the age of the last beat of a job."""
    with repository.database.write() as connection:
        beat_at = connection.execute(select(jobs.c.heartbeat_at).where(jobs.c.id == job_id)).scalar_one()
        earlier = beat_at - timedelta(seconds=seconds)
        connection.execute(update(jobs).where(jobs.c.id == job_id).values(heartbeat_at=earlier))


# Removed and kept versions


def test_removing_a_version_keeps_its_blobs_and_statistics(repository: Repository, tmp_path: Path) -> None:
    [version] = stored(repository, tmp_path)
    assert removed(repository, version) == [""]
    assert left(repository) == []
    audit(repository)
    assert count_blobs(repository) == 3
    assert count_jobs(repository) == 0
    with repository.database.read() as connection:
        assert references_add_up(connection)
        assert list(connection.execute(select(pages.c.refs)).scalars()) == [0]
        assert [row.version_uid for row in list_statistics(connection, version.uid)] == [version.uid]


def test_each_version_is_removed_separately_and_reported_in_order(repository: Repository, tmp_path: Path) -> None:
    first, second, third = stored(repository, tmp_path, 3)
    with repository.database.write() as connection:
        set_protected(connection, second.id, protected=True)
    assert removed(repository, third, second, first, third) == [
        "",
        f"version {second.uid} is protected; unprotect it first",
        "",
    ]
    assert left(repository) == ["disk1"]
    audit(repository)


def test_force_does_not_remove_versions_protected_or_in_use(repository: Repository, tmp_path: Path) -> None:
    first, second = stored(repository, tmp_path, 2)
    with repository.database.write() as connection:
        set_protected(connection, first.id, protected=True)
    with Job(repository.database, spec("mount /mnt")) as job:
        job.hold(second.id)
        one, other = removed(repository, first, second, force=True)
        process = this_process()
    assert "is protected" in one
    assert other == (
        f"version {second.uid} is in use by mount /mnt (process {process.pid} on {process.host}); wait until it ends, "
        "or end it"
    )
    assert len(left(repository)) == 2


@pytest.mark.parametrize(
    ("hours", "days", "force", "goes"),
    [
        (0, 0, False, True),
        (71, 3, False, False),
        (71, 3, True, True),
        (72, 3, False, True),
        (100, 3, False, True),
        (-5, 0, False, True),  # made by a host whose clock is ahead
    ],
)
def test_a_young_version_is_kept(
    repository: Repository, tmp_path: Path, hours: int, days: int, *, force: bool, goes: bool
) -> None:
    [version] = stored(repository, tmp_path)
    now = version.created_at + timedelta(hours=hours)
    [removal] = remove_versions(repository, [version], rules=Rules(younger_than_days=days, force=force), now=now)
    assert (removal.kept is None) is goes
    assert left(repository) == ([] if goes else ["disk0"])


def test_a_version_removed_by_others_counts_as_removed(repository: Repository, tmp_path: Path) -> None:
    first, second = stored(repository, tmp_path, 2)
    with repository.database.write() as connection:
        remove_version(connection, first.id)
    assert removed(repository, first, second) == ["", ""]
    assert left(repository) == []


def test_without_versions_the_database_is_not_used(repository: Repository) -> None:
    assert remove_versions(repository, [], now=datetime.now(UTC)) == []


# Changes between the listing and the removal


def test_a_version_protected_in_the_meantime_is_kept(repository: Repository, tmp_path: Path) -> None:
    [version] = stored(repository, tmp_path)
    assert not version.protected
    with repository.database.write() as connection:
        set_protected(connection, version.id, protected=True)
    assert "is protected" in removed(repository, version)[0]


def test_a_version_that_should_no_longer_be_removed_is_kept(repository: Repository, tmp_path: Path) -> None:
    [version] = stored(repository, tmp_path)
    with repository.database.write() as connection:
        set_expiry(connection, version.id, datetime(2099, 1, 1, tzinfo=UTC))
    asked: list[Version] = []

    def still(_connection: Connection, version: Version) -> bool:
        asked.append(version)
        return False

    [removal] = remove_versions(repository, [version], rules=Rules(still=still), now=datetime.now(UTC))
    assert [version.expire_at for version in asked] == [datetime(2099, 1, 1, tzinfo=UTC)]
    assert "changed in the meantime" in str(removal.kept)
    assert left(repository) == ["disk0"]


def test_a_hold_taken_after_the_listing_is_respected(repository: Repository, tmp_path: Path) -> None:
    versions = stored(repository, tmp_path, 2)
    with Job(repository.database, spec("restore")) as job:

        def announce(removal: Removal) -> None:
            if removal.version == versions[0]:
                job.hold(versions[1].id)

        removals = remove_versions(repository, versions, now=datetime.now(UTC), announce=announce)
    assert [removal.kept is None for removal in removals] == [True, False]
    assert left(repository) == ["disk1"]


def test_a_simultaneous_removal_and_hold_happen_one_after_the_other(repository: Repository, tmp_path: Path) -> None:
    versions = stored(repository, tmp_path, 12)
    held: set[str] = set()

    def hold_all() -> None:
        with Job(repository.database, spec("mount")) as job:
            for version in random.Random(1).sample(versions, len(versions)):
                try:
                    job.hold(version.id)
                except VersionNotFoundError:
                    continue
                held.add(version.uid)
            done.wait(PATIENCE_S)

    done = threading.Event()
    holder = threading.Thread(target=hold_all)
    holder.start()
    removals = remove_versions(repository, versions, now=datetime.now(UTC))
    done.set()
    holder.join(PATIENCE_S)
    gone = {removal.version.uid for removal in removals if removal.kept is None}
    assert gone | held == {version.uid for version in versions}
    assert gone & held == set()
    audit(repository)


# The last valid version of a name


def test_two_simultaneous_removals_of_the_two_last_versions_leave_one(database_url: str, tmp_path: Path) -> None:
    config = make_repository(tmp_path / "repository", database=database_url)
    with opened(config) as repository:
        for round_no in range(3):
            name = f"disk{round_no}"
            both = [
                back_up(repository, random_image(tmp_path / "image", BLOCK, seed), name).version for seed in range(2)
            ]
            with ThreadPoolExecutor(2) as threads:
                removals = threads.map(
                    lambda version: remove_versions(repository, [version], rules=KEEP_LAST, now=datetime.now(UTC)), both
                )
                kept = [removal.kept for [removal] in removals]
            assert sorted(reason is None for reason in kept) == [False, True]
            assert left(repository).count(name) == 1


def test_the_last_valid_version_is_removed_if_no_rule_keeps_it(repository: Repository, tmp_path: Path) -> None:
    versions = stored(repository, tmp_path)
    assert remove_versions(repository, versions, rules=KEEP_LAST, now=datetime.now(UTC))[0].kept is not None
    assert plan_removals(repository, versions, now=datetime.now(UTC))[0].kept is None
    assert left(repository) == ["disk0"]
    assert remove_versions(repository, versions, now=datetime.now(UTC))[0].kept is None


# Dead jobs, and our own


def test_a_dead_job_loses_its_holds_and_its_row(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(silence, "WATCH_S", 0)
    [version] = stored(repository, tmp_path)
    with repository.database.write() as connection:
        suspended = register_job(connection, ELSEWHERE, spec("restore"))
        hold_version(connection, suspended, version.id)
    assert "is in use by restore (process 1 on other)" in removed(repository, version)[0]
    age(repository, suspended, 61)
    assert removed(repository, version) == [""]
    assert count_jobs(repository) == 0


def test_a_removal_is_a_job_visible_to_others(repository: Repository, tmp_path: Path) -> None:
    versions = stored(repository, tmp_path, 2)
    seen: list[tuple[str, ...]] = []

    def announce(_removal: Removal) -> None:
        with repository.database.read() as connection:
            seen.append(tuple(job.command for job in list_live_jobs(connection, this_process())))

    remove_versions(repository, versions, now=datetime.now(UTC), kind=JobKind.FORGET, announce=announce)
    assert seen == [("forget",), ("forget",)]


def test_a_stopped_removal_has_removed_what_it_announced(repository: Repository, tmp_path: Path) -> None:
    versions = stored(repository, tmp_path, 3)
    announced: list[Removal] = []
    with pytest.raises(InterruptedByUser, match="interrupted after 2 of 3 versions"):
        remove_versions(
            repository,
            versions,
            now=datetime.now(UTC),
            control=Control(stop=lambda: len(announced) == 2),
            announce=announced.append,
        )
    assert [removal.version.name for removal in announced] == ["disk0", "disk1"]
    assert left(repository) == ["disk2"]


def test_a_removal_taken_for_dead_stops(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = stored(repository, tmp_path, 2)
    monkeypatch.setattr(Job, "lost", True)
    with pytest.raises(JobLostError):
        remove_versions(repository, versions, now=datetime.now(UTC))
    assert len(left(repository)) == 2


# Shared data


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=8), min_size=2, max_size=6), st.randoms())
def test_after_any_removal_the_other_versions_are_restored_unchanged(
    tmp_path_factory: pytest.TempPathFactory, images: list[list[int]], rng: random.Random
) -> None:
    """Images are lists of blocks, with 0 for a hole. They share blocks, and whole pages if these are equal."""
    directory = tmp_path_factory.mktemp("shared")
    contents = {0: bytes(BLOCK), **{seed: random_bytes(BLOCK, seed) for seed in range(1, 6)}}
    with opened(make_repository(directory / "repository", encrypted=False)) as repository:
        remaining: dict[Version, bytes] = {}
        for blocks in images:
            (directory / "image").write_bytes(b"".join(contents[block] for block in blocks))
            version = back_up(repository, directory / "image").version
            remaining[version] = (directory / "image").read_bytes()
        for version in rng.sample(list(remaining), len(remaining)):
            assert removed(repository, version) == [""]
            del remaining[version]
            audit(repository)
            with repository.database.read() as connection:
                assert references_add_up(connection)
            for other, image in remaining.items():
                report = restore(repository, other, str(directory / "out"), replace=True)
                assert report.damaged == ()
                assert (directory / "out").read_bytes()[: len(image)] == image


def test_the_next_backup_reuses_the_blobs_of_a_removed_version(repository: Repository, tmp_path: Path) -> None:
    image = random_image(tmp_path / "image", 3 * BLOCK)
    first = back_up(repository, image)
    assert removed(repository, first.version) == [""]
    again = back_up(repository, image)
    assert (again.statistics.blocks_written, again.statistics.blocks_deduplicated) == (0, 3)
    audit(repository)
    restore(repository, again.version, str(tmp_path / "out"))
    assert (tmp_path / "out").read_bytes() == image.read_bytes()


def test_removing_ten_tebibytes_takes_hardly_more_statements_than_a_small_version(
    repository: Repository, tmp_path: Path
) -> None:
    [small] = stored(repository, tmp_path)
    count, sharing = 2560, 40  # pages of 10 TiB in blocks of 4 MiB
    now = datetime.now(UTC)
    with repository.database.write() as connection:
        versions = [
            create_version(connection, name=f"big{number}", snapshot_name="", size_bytes=10 << 40, created_at=now)
            for number in range(sharing)
        ]
        connection.execute(
            insert(pages),
            [
                {"id": number, "uid": f"{number:036}", "digest": number.to_bytes(32), "entries": b"", "refs": sharing,
                 "published": False}
                for number in range(FIRST, FIRST + count)
            ],
        )  # fmt: skip
        for version in versions:
            connection.execute(
                insert(version_pages),
                [
                    {"version_id": version.id, "page_no": number, "page_id": number + FIRST}
                    for number in range(count)
                ],
            )
    statements = [0]

    def count_statement(*_arguments: object) -> None:
        statements[-1] += 1

    event.listen(repository.database.engine, "before_cursor_execute", count_statement)
    for version in (small, versions[0]):
        with repository.database.write() as connection:
            remove_version(connection, version.id)
        statements.append(0)
    assert 0 < statements[0] <= statements[1] <= statements[0] + 10
    with repository.database.read() as connection:
        shared = pages.c.id >= FIRST
        assert set(connection.execute(select(pages.c.refs).where(shared)).scalars()) == {sharing - 1}
        assert connection.execute(select(func.count()).select_from(version_pages)).scalar_one() == count * (sharing - 1)
