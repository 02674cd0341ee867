"""A repository as front ends use it: its catalog is published once, and runs get their reports."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from backyfs.config import load_config
from backyfs.engine.catalog import publish
from backyfs.engine.secrets.keyslots import add_slot, read_slots
from backyfs.engine.space.cleanup import cleanup
from backyfs.engine.versions.edit import expire, protect
from backyfs.engine.versions.named import named_versions
from backyfs.engine.versions.remove import RemovalRequest, remove
from backyfs.errors import KeyMaterialError, VersionKeptError, VersionNotFoundError
from backyfs.keys.slots import Secret
from backyfs.metadata.catalog.notes import has_notes
from backyfs.metadata.records.runs import RunRecord, list_runs
from backyfs.metadata.records.versions import set_protected
from backyfs.repository.keyring import key_sources
from backyfs.service import Service
from backyfs.work.run import Control
from tests.support.images import random_image
from tests.support.repositories import BLOCK, back_up, make_repository, opened
from tests.support.storages import with_watched_writes

if TYPE_CHECKING:
    from pathlib import Path

NOW = datetime(2030, 1, 1, tzinfo=UTC)


@pytest.fixture
def service(tmp_path: Path) -> Service:
    config_file = make_repository(tmp_path / "repository")
    with opened(config_file) as repository:
        back_up(repository, random_image(tmp_path / "image", BLOCK))
    return Service(config=load_config(str(config_file), {})[0])


@pytest.fixture
def publications(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list to which each publication of a catalog appends the uid of its repository."""
    written: list[str] = []
    really = publish.publish

    def counted(repository: object, **options: object) -> object:
        written.append(repository.uid)  # type: ignore[attr-defined]
        return really(repository, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(publish, "publish", counted)
    return written


def is_kept(service: Service) -> bool:
    with service.repository() as repository, repository.database.read() as connection:
        return not has_notes(connection)


def test_changes_published_by_the_library_are_not_published_again(
    service: Service, publications: list[str]
) -> None:
    with service.repository() as repository:
        protect(repository, ["disk@latest"], protected=True)
        expire(repository, "disk@latest", NOW)
    assert len(publications) == 2


def test_changes_not_yet_in_the_catalog_are_published_at_the_end(
    service: Service, publications: list[str]
) -> None:
    with service.repository() as repository:
        [version] = named_versions(repository, ["disk@latest", "disk@latest"])
        with repository.database.write() as connection:
            set_protected(connection, version.id, protected=True)
    assert len(publications) == 1
    assert is_kept(service)


def test_a_repository_opened_only_for_reading_is_not_published(service: Service, publications: list[str]) -> None:
    with service.repository() as repository:
        named_versions(repository, ["disk@latest"])
    with pytest.raises(VersionNotFoundError), service.repository() as repository:
        named_versions(repository, ["other@latest"])
    assert publications == []


def test_a_new_key_slot_is_in_the_catalog_too(service: Service, publications: list[str]) -> None:
    with service.database() as database:
        assert len(read_slots(database)) == 1
    assert publications == []
    with service.database() as database:
        add_slot(database, key_sources(service.config), "second", Secret(key=bytes(32)))
    assert len(publications) == 1
    assert is_kept(service)


def test_a_report_that_cannot_be_recorded_is_a_warning(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    def refuse() -> None:
        raise KeyMaterialError("got another key in the meantime", subject="the repository")

    with service.repository() as repository:
        cleanup(repository, control=Control(recorded=service.runs.append))
        service.record(with_watched_writes(repository, refuse), {"blobs": 0})
    assert "the report of this command is not recorded: the repository got another key in the meantime" in caplog.text
    assert service.runs == []


def test_a_report_and_the_last_error_are_added_to_the_run(service: Service, publications: list[str]) -> None:
    control = Control(recorded=service.runs.append)
    with service.repository() as repository:
        protect(repository, ["disk@latest"], protected=True)
        report = remove(repository, RemovalRequest(names=("disk@latest",)), now=NOW, control=control)
        published = len(publications)
        service.record(repository, [{"date": NOW, "uids": ("a", "b")}], report.errors)
        [run] = [run for run in list_runs_of(service) if run.kind == "rm"]
    assert run.report is not None
    assert json.loads(run.report) == [{"date": "2030-01-01T00:00:00Z", "uids": ["a", "b"]}]
    assert (run.exit_status, run.error_class) == (VersionKeptError.exit_status, "VersionKeptError")
    assert len(publications) == published


def list_runs_of(service: Service) -> list[RunRecord]:
    with service.open_as_it_is() as repository, repository.database.read() as connection:
        return list_runs(connection, with_reports=True)
