"""A running operation: what progress it shows, and how it is stopped."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import delete

from backyfs.errors import InterruptedByUser, JobLostError
from backyfs.metadata.db.tables import jobs
from backyfs.model import Unit
from backyfs.work.job import Job
from backyfs.work.run import UNATTENDED, Control, Run
from tests.support.jobs import spec

if TYPE_CHECKING:
    from backyfs.repository import Repository


class Written:
    """Progress that is recorded."""

    def __init__(self) -> None:
        self.calls: list[object] = []

    def start(self, label: str, total_bytes: int) -> None:
        self.calls.append((label, total_bytes))

    def advance(self, amount_bytes: int) -> None:
        self.calls.append(amount_bytes)

    def stop(self) -> None:
        self.calls.append("stop")


def test_a_step_shows_its_progress_and_removes_it_at_the_end() -> None:
    shown = Written()
    run = Run(Control(progress=shown), interrupted="")
    with run.step("Reading", 10):
        run.advance(4)
    with pytest.raises(KeyError), run.step("Writing", 20):
        raise KeyError
    assert shown.calls == [("Reading", 10), 4, "stop", ("Writing", 20), "stop"]


def test_nothing_is_shown_outside_a_step() -> None:
    shown = Written()
    run = Run(Control(progress=shown), interrupted="")
    run.advance(1)
    with run.step("Reading", 10):
        pass
    run.advance(2)
    assert shown.calls == [("Reading", 10), "stop"]


def test_a_run_asked_to_stop_raises_its_message() -> None:
    asked = [False]
    run = Run(Control(stop=lambda: asked[0]), interrupted="interrupted: half of it is done")
    run.check()
    asked[0] = True
    assert run.stops()
    with pytest.raises(InterruptedByUser, match=r"^interrupted: half of it is done$"):
        run.check()
    with pytest.raises(InterruptedByUser, match=r"^interrupted: all but the last step$"):
        run.saying("interrupted: all but the last step").check()


def test_a_quiet_control_stops_and_shows_nothing() -> None:
    shown = Written()
    control = Control(progress=shown, stop=lambda: True).quietly()
    with Run(control, interrupted="").step("Reading", 10):
        pass
    assert control.stop()
    assert shown.calls == []


def test_a_run_raises_if_its_job_was_taken_for_dead(repository: Repository) -> None:
    with Job(repository.database, spec("backup")) as job:
        run = Run(UNATTENDED, interrupted="", job=job)
        run.check()
        with repository.database.write() as connection:
            connection.execute(delete(jobs))
        with pytest.raises(JobLostError), run.job.write():
            pass
        with pytest.raises(JobLostError):
            run.check()


def test_a_job_shows_no_progress_of_reads_outside_a_step(repository: Repository) -> None:
    with Job(repository.database, spec("mount nowhere"), only_reads=True) as job:
        counted = job.count(1, 3, Unit.VERSIONS)
        Run(UNATTENDED, interrupted="", job=job).advance(1 << 20)
        assert job.progress == counted
