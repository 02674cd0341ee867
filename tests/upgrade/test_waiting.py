"""An upgrade does not begin while others use the database, and commands started in the meantime wait for it."""

from __future__ import annotations

import fcntl
import logging
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from backyfs.engine.setup.upgrade import upgrade
from backyfs.errors import InterruptedByUser, JobsRunningError
from backyfs.metadata.db.database import Database
from backyfs.metadata.records.jobs import register_job, remove_job
from backyfs.metadata.records.processes import this_process
from backyfs.metadata.schema.upgrade import upgrade_lock
from backyfs.repository import open_repository
from backyfs.work.run import Control
from tests.support.jobs import spec
from tests.support.repositories import PATIENCE_S
from tests.upgrade.reference import check

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.upgrade.reference import Reference


def copies(reference: Reference) -> list[str]:
    return sorted(path.name for path in reference.directory.glob("*before-upgrade*"))


def refused(reference: Reference) -> str:
    """Upgrade in vain; return the message. Nothing may have changed."""
    before = reference.sqlite_file.read_bytes()
    with pytest.raises(JobsRunningError) as caught:
        upgrade(reference.config, wait_s=0)
    assert reference.sqlite_file.read_bytes() == before
    assert copies(reference) == []
    return str(caught.value)


# Commands of backy2


def test_a_lock_that_backy2_holds_is_waited_for(reference: Reference) -> None:
    lock = reference.directory / "backy_4711.lock"
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert refused(reference) == (
            f"{reference.sqlite_file} must be upgraded, but is still in use by: backy2, which has locked {lock}; "
            "nothing was changed; try again when they have ended, or wait longer"
        )
    assert upgrade(reference.config, wait_s=0) is not None


def test_the_end_of_a_lock_ends_the_waiting(reference: Reference, caplog: pytest.LogCaptureFixture) -> None:
    lock = reference.directory / "backy_backy.lock"
    with lock.open("w") as file, caplog.at_level(logging.INFO, logger="backyfs"):
        fcntl.flock(file, fcntl.LOCK_EX)
        release = threading.Timer(1.0, fcntl.flock, [file, fcntl.LOCK_UN])
        release.start()
        assert upgrade(reference.config, wait_s=60) is not None
        release.join()
    waiting = [record.getMessage() for record in caplog.records if "waiting" in record.getMessage()]
    assert waiting == [
        f"{reference.sqlite_file} must be upgraded; waiting for the end of: backy2, which has locked {lock}"
    ]


def test_a_lock_file_that_nobody_holds_does_not_count(reference: Reference) -> None:
    (reference.directory / "backy_4711.lock").touch()
    assert upgrade(reference.config, wait_s=0) is not None


@contextmanager
def process_called(title: str) -> Iterator[int]:
    """Run a process that others see under this name; give its pid."""
    with subprocess.Popen([title, "60"], executable="/bin/sleep") as process:
        try:
            # The kernel sets a new command line a moment after it has closed the files by which Popen knows of exec.
            end = time.monotonic() + PATIENCE_S
            while not Path(f"/proc/{process.pid}/cmdline").read_bytes().startswith(title.encode()):
                assert time.monotonic() < end, f"{title} did not begin in time"
                time.sleep(0.001)
            yield process.pid
        finally:
            process.kill()


@pytest.mark.parametrize("title", ["backy2 [Backing up (2/2: Data) disk]", "bkfix [Scrubbing 4711]", "backy2"])
def test_a_process_of_backy2_is_waited_for_unless_that_is_declined(title: str, reference: Reference) -> None:
    with process_called(title) as pid:
        assert f"in use by: process {pid}: {title} 60; nothing was changed" in refused(reference)
        assert upgrade(reference.config, wait_s=0, ignore_processes=True) is not None


def test_a_process_whose_name_only_begins_like_that_does_not_count(reference: Reference) -> None:
    with process_called("backy2-exporter"):
        assert upgrade(reference.config, wait_s=0) is not None


def test_waiting_can_be_interrupted(reference: Reference) -> None:
    with (reference.directory / "backy_backy.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(InterruptedByUser, match="nothing was changed"):
            upgrade(reference.config, control=Control(stop=lambda: True))


# Our own jobs


def test_a_live_job_is_waited_for(anywhere: Reference) -> None:
    upgrade(anywhere.config)
    with closing(Database(anywhere.config.database_url)) as database:
        with database.write() as connection:
            job = register_job(connection, this_process(), spec("backup of something"))
            connection.execute(text("UPDATE alembic_version SET version_num = '30349b678801'"))
        with pytest.raises(JobsRunningError, match=r"in use by: backup of something \(process \d+ on .*\); nothing"):
            upgrade(anywhere.config, wait_s=0)
        with database.write() as connection:
            assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar() == "30349b678801"
            remove_job(connection, job)
    assert upgrade(anywhere.config, wait_s=0) is not None
    with open_repository(anywhere.config) as repository:
        check(repository, anywhere.expected)


# Others that upgrade


def test_commands_that_start_at_once_upgrade_once(anywhere: Reference) -> None:
    command = [sys.executable, "-P", "-m", "backyfs.cli", "-c", str(anywhere.config_file), "ls"]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    outputs = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0] * 4
    assert len(copies(anywhere)) == 1
    assert sum("was upgraded" in err for _, err in outputs) == 1
    assert len({out for out, _ in outputs}) == 1
    with open_repository(anywhere.config) as repository:
        check(repository, anywhere.expected)


def test_another_upgrade_is_waited_for_with_words(anywhere: Reference, caplog: pytest.LogCaptureFixture) -> None:
    with closing(Database(anywhere.config.database_url)) as database, caplog.at_level(logging.INFO, logger="backyfs"):
        with upgrade_lock(database), pytest.raises(JobsRunningError):
            upgrade(anywhere.config, wait_s=0)
        assert "waiting for the end of: " in caplog.text
        assert copies(anywhere) == []
        assert upgrade(anywhere.config, wait_s=0) is not None


def test_a_transaction_of_another_program_is_waited_for(reference: Reference) -> None:
    with closing(sqlite3.connect(reference.sqlite_file, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        assert "is still in use by: " in refused(reference)
    assert upgrade(reference.config, wait_s=0) is not None


def test_a_file_that_lets_nobody_in_is_waited_for(reference: Reference) -> None:
    with closing(sqlite3.connect(reference.sqlite_file, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        assert "locked by another command" in refused(reference)
    assert upgrade(reference.config, wait_s=0) is not None


def test_a_lock_is_free_again_after_an_upgrade(anywhere: Reference) -> None:
    upgrade(anywhere.config)
    with closing(Database(anywhere.config.database_url)) as database:
        for _ in range(2):
            with upgrade_lock(database):
                pass


def test_an_upgrade_that_was_given_up_leaves_other_connections_as_they_were(reference: Reference) -> None:
    with closing(Database(reference.config.database_url)) as database:
        with upgrade_lock(database):
            pass
        with database.begin() as connection:
            assert connection.execute(text("PRAGMA foreign_keys")).scalar() == 1
            assert connection.execute(text("PRAGMA busy_timeout")).scalar() == 60_000


@pytest.mark.parametrize("server", ["postgresql_server", "mariadb_server"])
def test_a_transaction_on_a_server_is_waited_for(
    server: str, reference: Reference, request: pytest.FixtureRequest
) -> None:
    running = request.getfixturevalue(server)
    url = running.new_database()
    reference.move_to(url)
    with closing(Database(url)) as database, database.engine.connect() as other:
        assert other.execute(text("SELECT count(*) FROM versions")).scalar() == 3  # and is idle in its transaction
        with pytest.raises(JobsRunningError, match="locked by another command"):
            upgrade(reference.config, wait_s=0)
        assert copies(reference) == []
        other.rollback()
        assert upgrade(reference.config, wait_s=0) is not None
    with open_repository(reference.config) as repository:
        check(repository, reference.expected)
    running.drop(url)
