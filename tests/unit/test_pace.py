"""The pace of a command: in words, in the row of its job, and in the title of its process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import closing

import pytest
from setproctitle import getproctitle

from backyfs.cli.title import title_of, title_progress
from backyfs.engine.setup import backy2_processes
from backyfs.metadata.db.database import Database
from backyfs.metadata.records.jobs import list_running_jobs
from backyfs.metadata.records.processes import this_process
from backyfs.metadata.schema.schema import create_file, create_tables
from backyfs.model import JobProgress, NoProgress, Unit
from backyfs.work import job as job_module
from backyfs.work.job import Job
from backyfs.work.pace import Pace, progress_text, short_time
from backyfs.work.progress import CountedProgress
from tests.support.jobs import spec
from tests.support.repositories import PATIENCE_S

MIB = 1 << 20


@pytest.mark.parametrize(
    ("total", "done", "elapsed_s", "text"),
    [
        (1000 * MIB, 383 * MIB, 2.0, "38.3% 191.5MiB/s ETA 3s"),
        (1000 * MIB, 0, 10.0, "0.0%"),
        (1000 * MIB, 10 * MIB, 0.1, "1.0%"),
        (100, 100, 1.0, "100.0% 100B/s ETA 0s"),
        (100, 200, 1.0, "100.0% 200B/s ETA 0s"),
        (0, 0, 5.0, ""),
        (0, 5 << 30, 5.0, "1.0GiB/s"),
        (1 << 60, 1, 3600.0, "0.0% 0B/s"),
    ],
)
def test_a_pace_consists_of_share_rate_and_remaining_time(total, done, elapsed_s, text):
    assert Pace(total_bytes=total, started=100.0, done_bytes=done).text(100.0 + elapsed_s) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.4, "59s"), (59.6, "1m00s"), (192, "3m12s"), (3900, "1h05m"), (183600, "2d03h")],
)
def test_a_time_has_its_two_largest_units(seconds, text):
    assert short_time(seconds) == text


# The job


@pytest.fixture
def database(tmp_path):
    with closing(Database(f"sqlite:///{tmp_path}/backyfs.sqlite")) as database:
        create_file(database)
        with database.begin() as connection:
            create_tables(connection)
        yield database


class Recorded(NoProgress):
    def __init__(self):
        self.calls = []

    def start(self, label, total_bytes):
        self.calls.append((label, total_bytes))

    def advance(self, amount_bytes):
        self.calls.append(amount_bytes)

    def stop(self):
        self.calls.append("stop")


def test_a_progress_is_shown_and_counted(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    shown = Recorded()
    counted = CountedProgress(shown)
    assert counted.numbers() is None
    counted.start("Backing up disk", 100 * MIB)
    assert counted.numbers() == JobProgress(label="Backing up disk", done=0, total=100 * MIB)
    counted.advance(10 * MIB)
    now[0] += 1.0
    counted.advance(10 * MIB)
    numbers = counted.numbers()
    assert numbers == JobProgress(label="Backing up disk", done=20 * MIB, total=100 * MIB, elapsed_s=1.0)
    assert progress_text(numbers) == "20.0% 20.0MiB/s ETA 4s"
    counted.stop()
    assert counted.numbers() is None
    assert shown.calls == [("Backing up disk", 100 * MIB), 10 * MIB, 10 * MIB, "stop"]


def test_the_first_beat_with_progress_comes_soon(database, monkeypatch):
    monkeypatch.setattr(job_module, "FIRST_BEAT_S", 0.05)
    with Job(database, spec("backup disk")) as job:
        tracked = job.track(NoProgress())
        tracked.start("Backing up disk", 100)
        tracked.advance(25)
        tracked.advance(25)
        deadline = time.monotonic() + PATIENCE_S
        found = None
        while found is None and time.monotonic() < deadline:
            with database.read() as connection:
                [running] = list_running_jobs(connection, this_process())
            found = running.progress
        assert found is not None
        assert (found.label, found.done, found.total) == ("Backing up disk", 50, 100)
        assert 0.0 <= found.elapsed_s < PATIENCE_S
        assert running.job.beat_age_s < 10


def test_progress_in_other_units_than_bytes_is_shown_as_a_number():
    assert progress_text(JobProgress(done=3, total=7, unit=Unit.VERSIONS, elapsed_s=9.0)) == "3 of 7 versions"
    assert progress_text(None) == ""


# The title


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("backyfs", "backyfs [Backing up disk (1.0%)]"),
        ("backy2", "backyfs [Backing up disk (1.0%)]"),
        ("nightly", "nightly [backyfs: Backing up disk (1.0%)]"),
    ],
)
def test_a_title_names_program_and_activity(name, expected):
    assert title_of(name, "Backing up disk (1.0%)") == expected


@pytest.mark.parametrize("name", ["backyfs", "backy2", "nightly"])
def test_our_titles_are_not_taken_for_backy2(name):
    title = title_of(name, "Backing up disk")
    assert not backy2_processes._is_backy2([title], name)


@pytest.mark.parametrize("title", ["backy2 [Backing up]", "nightly [Backing up (1/2)]", "nightly", "backy2"])
def test_titles_of_backy2_are_still_recognized(title):
    assert backy2_processes._is_backy2([title], "nightly")


def test_the_title_follows_progress_and_is_restored(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    before = getproctitle()
    title = title_progress("backyfs", NoProgress())
    title.start("Backing up a\nb", 100 * MIB)
    assert getproctitle() == "backyfs [Backing up a\\x0ab (0.0%)]"
    now[0] += 2
    title.advance(50 * MIB)
    assert getproctitle() == "backyfs [Backing up a\\x0ab (50.0% 25.0MiB/s ETA 2s)]"
    title.stop()
    assert getproctitle() == before


def test_a_progress_that_never_started_leaves_the_title_alone():
    before = getproctitle()
    title_progress("backyfs", NoProgress()).stop()
    assert getproctitle() == before


def test_ps_shows_the_title():
    program = (
        "from backyfs.cli.title import title_progress\n"
        "from backyfs.model import NoProgress\n"
        "title_progress('backyfs', NoProgress()).start('Backing up disk', 100)\n"
        "print(flush=True)\n"
        "input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        with open(f"/proc/{child.pid}/cmdline", encoding="utf-8") as file:
            assert file.read().rstrip("\0") == "backyfs [Backing up disk (0.0%)]"
        child.communicate("\n")
