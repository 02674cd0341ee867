"""Every state in which backy2's releases and its failed upgrades leave a database is taken to the head."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select

from backyfs.engine.setup.upgrade import plan_upgrade, upgrade
from backyfs.metadata.db.tables import stats
from backyfs.metadata.schema.schema import differences
from backyfs.repository import open_repository
from tests.support.audit import audit
from tests.upgrade.reference import check
from tests.upgrade.states import STATES

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.services.database import DatabaseServer
    from tests.upgrade.reference import Reference


def upgraded_and_checked(reference: Reference) -> None:
    assert upgrade(reference.config) is not None
    with open_repository(reference.config) as repository:
        check(repository, reference.expected)
        audit(repository)
        with repository.database.read() as connection:
            assert differences(connection) == []
            uids = connection.execute(select(stats.c.version_uid)).scalars().all()
    assert sorted(uids) == sorted(reference.expected["versions"])  # each of these backups ended


@pytest.mark.parametrize("state", STATES)
def test_on_sqlite(state: str, tmp_path: Path) -> None:
    upgraded_and_checked(STATES[state].make(tmp_path))


@pytest.mark.parametrize("state", STATES)
def test_on_postgresql(state: str, tmp_path: Path, postgresql_server: DatabaseServer) -> None:
    reference = STATES[state].make(tmp_path)
    url = postgresql_server.new_database()
    reference.move_to(url)
    upgraded_and_checked(reference)
    postgresql_server.drop(url)


@pytest.mark.parametrize("state", STATES)
def test_on_mariadb(state: str, tmp_path: Path, mariadb_server: DatabaseServer) -> None:
    reference = STATES[state].make(tmp_path)
    url = mariadb_server.new_database()
    reference.move_to(url)
    upgraded_and_checked(reference)
    mariadb_server.drop(url)


@pytest.mark.parametrize(
    ("state", "shown"),
    [
        ("before alembic, snapshot_name and tags added", "backy2, 29c655b78818"),
        ("29c655b78818, expire added", "backy2, 828da0fbbe8d"),
        ("cd3f15ae79f8, stats renamed", "backy2, 9e0939e3bc6d"),
        ("9e0939e3bc6d, new stats, empty", "backy2, 9e0939e3bc6d"),
        ("85966fcda5e6, encryption columns added, all NULL", "backy2, 5260034b8125"),
        ("the head, recorded as something older", "backy2, 30349b678801"),
        ("before alembic, an empty table of revisions", "backy2, before alembic"),
    ],
)
def test_a_plan_tells_the_schema_by_what_is_there(state: str, shown: str, tmp_path: Path) -> None:
    plan = plan_upgrade(STATES[state].make(tmp_path).config)
    assert plan is not None
    assert plan.from_schema == shown
