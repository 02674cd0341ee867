"""Database queries for metrics: the same on every engine."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from backyfs.config import Scheduler
from backyfs.engine.versions.metrics import collect_metrics
from backyfs.metadata.db.database import Database
from backyfs.metadata.records.stats import insert_statistics_records, newest_statistics
from backyfs.metadata.records.versions import create_version, set_status
from backyfs.model import StatisticsRecord, VersionStatus, VersionUid

if TYPE_CHECKING:
    pass

NOW = datetime(2026, 1, 31, tzinfo=UTC)
DAILY = Scheduler(name="daily", interval_s=86400, keep=1, sla_s=3600)
WEEKLY = Scheduler(name="weekly", interval_s=7 * 86400, keep=1, sla_s=3600)


def record(uid: VersionUid, *, seconds: float) -> StatisticsRecord:
    return StatisticsRecord(
        created_at=NOW,
        version_uid=uid,
        version_name="any",
        version_size_bytes=10,
        version_size_blocks=1,
        bytes_read=10,
        blocks_read=1,
        bytes_written=5,
        blocks_written=1,
        bytes_stored=None,
        bytes_deduplicated=5,
        blocks_deduplicated=1,
        bytes_sparse=0,
        blocks_sparse=0,
        duration_s=seconds,
    )


def test_the_newest_statistics_of_any_number_of_versions_are_returned(database: Database) -> None:
    uids = [VersionUid(f"{number:036}") for number in range(1200)]
    with database.write() as connection:
        insert_statistics_records(connection, [record(uid, seconds=1) for uid in uids])
        insert_statistics_records(connection, [record(uids[7], seconds=2), record(uids[1100], seconds=3)])
    with database.read() as connection:
        found = newest_statistics(connection, [*uids, VersionUid("none")])
    assert len(found) == 1200
    assert {uid: one.duration_s for uid, one in found.items() if one.duration_s > 1} == {uids[7]: 2, uids[1100]: 3}


def test_each_name_is_reported_with_its_newest_valid_version_and_each_scheduler(database: Database) -> None:
    with database.write() as connection:
        for name, days, status, tags in (
            ("a", 3, VersionStatus.VALID, ("daily",)),
            ("a", 2, VersionStatus.VALID, ("daily", "weekly")),
            ("a", 1, VersionStatus.INVALID, ("daily",)),
            ("b", 1, VersionStatus.INCOMPLETE, ()),
        ):
            version = create_version(
                connection,
                name=name,
                snapshot_name="",
                size_bytes=10,
                created_at=NOW - timedelta(days=days),
                tag_names=tags,
            )
            set_status(connection, version.id, status)
            insert_statistics_records(connection, [record(version.uid, seconds=days)])
    a, b = collect_metrics(database, [DAILY, WEEKLY], NOW)
    assert (a.name, b.name) == ("a", "b")
    assert a.newest is not None
    assert a.newest.created_at == NOW - timedelta(days=2)
    assert a.statistics is not None
    assert a.statistics.duration_s == 2
    assert (b.newest, b.statistics) == (None, None)
    assert a.versions == {VersionStatus.INCOMPLETE: 0, VersionStatus.VALID: 2, VersionStatus.INVALID: 1}
    assert b.versions == {VersionStatus.INCOMPLETE: 1, VersionStatus.VALID: 0, VersionStatus.INVALID: 0}
    assert (a.due, b.due) == ({"daily": True, "weekly": False}, {"daily": True, "weekly": True})
    assert (a.breaches, b.breaches) == ({"daily": 2, "weekly": 0}, {"daily": 1, "weekly": 1})  # too old: latest, oldest
