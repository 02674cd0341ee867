"""Requests in the reports of backups: reports that cannot be understood are left out."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from backyfs.engine.versions.requests import requests_of_newest
from backyfs.metadata.records.jobs import end_job, register_job
from backyfs.metadata.records.processes import this_process
from backyfs.metadata.records.runs import complete_run
from backyfs.model import Ending, JobKind, JobSpec, RequestCount, RunOutcome

if TYPE_CHECKING:
    from backyfs.metadata.db.database import Connection, Database

UID = "8d1dff2d-5e0b-4a84-9d4a-1c3b5a3f0c11"
GET = {"requests": 3, "repeated": 1, "bytes": 10}


def record(connection: Connection, report: dict[str, Any]) -> None:
    job = register_job(connection, this_process(), JobSpec(kind=JobKind.BACKUP, names=("disk",)))
    run_id = end_job(connection, job, Ending(outcome=RunOutcome.SUCCEEDED, exit_status=0))
    assert run_id is not None
    complete_run(connection, run_id, report=json.dumps(report))


def test_the_requests_are_those_of_the_report(database: Database) -> None:
    with database.write() as connection:
        record(connection, {"uid": UID, "requests": {"get": GET}})
        assert requests_of_newest(connection, ["disk"]) == {
            UID: {"get": RequestCount(requests=3, repeated=1, bytes=10)}
        }


@pytest.mark.parametrize(
    "report",
    [
        {"requests": {"get": GET}},
        {"uid": "no uid", "requests": {"get": GET}},
        {"uid": UID, "requests": {"get": 5}},
        {"uid": UID, "requests": {"get": {**GET, "bytes": -1}}},
        {"uid": UID, "requests": {"get": {**GET, "requests": "3"}}},
        {"uid": UID, "requests": {"get": {}}},
        {"other": {"requests": {"get": GET}}},
    ],
)
def test_a_report_that_says_something_else_is_left_out(database: Database, report: dict[str, Any]) -> None:
    with database.write() as connection:
        record(connection, report)
        assert requests_of_newest(connection, ["disk"]) == {}
