"""Every reference repository, on every engine it can be on: the first command upgrades it, and nothing is lost."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

from backyfs.cli.main import run
from backyfs.engine.setup.upgrade import upgrade
from backyfs.metadata.schema.schema import differences
from backyfs.repository import open_repository
from tests.support.audit import audit
from tests.upgrade.reference import POSTGRESQL_NAMES, SQLITE_NAMES, Reference, check

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.services.database import DatabaseServer


def upgraded_and_checked(reference: Reference) -> None:
    report = upgrade(reference.config)
    assert report is not None
    assert report.adopted is not None
    assert report.adopted.versions == len(reference.expected["versions"])
    assert report.adopted.blocks == sum(facts["blocks"]["rows"] for facts in reference.expected["versions"].values())
    assert upgrade(reference.config) is None
    with open_repository(reference.config) as repository:
        check(repository, reference.expected)
        audit(repository)
        with repository.database.read() as connection:
            assert differences(connection) == []


@pytest.mark.parametrize("name", SQLITE_NAMES)
def test_a_repository_on_sqlite_is_taken_over_whole(name: str, tmp_path: Path) -> None:
    upgraded_and_checked(Reference(name, tmp_path))


@pytest.mark.parametrize("name", SQLITE_NAMES)
def test_a_repository_on_postgresql_is_taken_over_whole(
    name: str, tmp_path: Path, postgresql_server: DatabaseServer
) -> None:
    reference = Reference(name, tmp_path)
    url = postgresql_server.new_database()
    reference.move_to(url)
    upgraded_and_checked(reference)
    postgresql_server.drop(url)


@pytest.mark.parametrize("name", SQLITE_NAMES)
def test_a_repository_on_mariadb_is_taken_over_whole(name: str, tmp_path: Path, mariadb_server: DatabaseServer) -> None:
    reference = Reference(name, tmp_path)
    url = mariadb_server.new_database()
    reference.move_to(url)
    upgraded_and_checked(reference)
    mariadb_server.drop(url)


@pytest.mark.parametrize("name", POSTGRESQL_NAMES)
def test_a_dump_of_postgresql_is_taken_over_whole(name: str, tmp_path: Path, postgresql_server: DatabaseServer) -> None:
    reference = Reference(name, tmp_path)
    url = postgresql_server.new_database()
    reference.load_dump(url)
    upgraded_and_checked(reference)
    postgresql_server.drop(url)


@pytest.mark.parametrize("name", SQLITE_NAMES)
def test_the_first_command_upgrades(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reference = Reference(name, tmp_path)
    assert run(["-c", str(reference.config_file), "ls"]) == 0
    printed = capsys.readouterr()
    for uid in reference.expected["versions"]:
        assert uid in printed.out
    assert f"{reference.sqlite_file}.before-upgrade-" in printed.err
    assert run(["-c", str(reference.config_file), "ls"]) == 0
    assert "was upgraded" not in capsys.readouterr().err


@pytest.mark.parametrize("name", SQLITE_NAMES)
def test_every_complete_version_is_restored_by_the_command(name: str, tmp_path: Path) -> None:
    reference = Reference(name, tmp_path)
    for uid, facts in reference.expected["versions"].items():
        if facts["complete"]:
            target = tmp_path / uid
            assert run(["-q", "-c", str(reference.config_file), "restore", uid, str(target)]) == 0
            assert hashlib.sha256(target.read_bytes()).hexdigest() == facts["sha256"]
