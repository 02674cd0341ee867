"""Reference repositories whose blocks are re-sealed, before a cleanup and after: versions stay what they are."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import func, select

from backyfs.engine.secrets.migrate import MigrationRequest, migrate
from backyfs.engine.setup.upgrade import upgrade
from backyfs.engine.space.cleanup import cleanup
from backyfs.metadata.db.tables import blobs
from backyfs.metadata.upkeep.migration import Outdated
from backyfs.model import KeySource
from backyfs.repository import open_repository
from tests.upgrade.reference import SQLITE_NAMES, Reference, check

if TYPE_CHECKING:
    from pathlib import Path

    from backyfs.repository import Repository

KEY = "decafbad" * 8  # of the encrypted fixtures


def counts(repository: Repository) -> dict[int, int]:
    with repository.database.read() as connection:
        query = select(blobs.c.encryption_version, func.count()).group_by(blobs.c.encryption_version)
        return dict(connection.execute(query).all())


@pytest.mark.parametrize("name", SQLITE_NAMES)
def test_blocks_are_taken_to_version_2_in_place(name: str, tmp_path: Path) -> None:
    reference = Reference(name, tmp_path)
    upgrade(reference.config)
    config = replace(reference.config, key=KeySource(hex_digits=KEY), encryption_version=2)
    with open_repository(config) as repository:
        before = counts(repository)
        report = migrate(repository, MigrationRequest(versions=None, outdated=Outdated(to=2)))
        assert report.blobs + report.merged + len(report.damaged) == sum(count.blobs for count in report.plan.counts)
        check(repository, reference.expected)
        cleanup(repository, grace_s=0)
        check(repository, reference.expected)
        after = counts(repository)
        assert sum(after.values()) <= sum(before.values())
        assert sum(many for number, many in after.items() if number != 2) == len(report.damaged)
