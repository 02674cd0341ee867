"""An upgrade that fails, or is killed, at any statement: the old database or the new one, and nothing else.

The reference is one from before alembic, so that every revision has something to do. On SQLite every statement
fails once, on the servers each one that changes something, and every commit. Kills are at those as well: between
two of them nothing differs.
"""

from __future__ import annotations

import os
import shutil
import signal
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, create_engine, event, inspect, make_url, text

from backyfs.engine.setup.upgrade import upgrade
from backyfs.errors import DatabaseError
from backyfs.repository import open_repository
from tests.support.audit import audit
from tests.support.statements import fail, kill, watched
from tests.support.states import Stored, digest_of, dump_of, read_files
from tests.upgrade.reference import Reference, check

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sqlalchemy import Connection

    from tests.support.services.database import DatabaseServer

pytestmark = pytest.mark.slow

NAME = "old-prealembic-2.9.0"
_COPIES = "*before-upgrade*"


@dataclass(frozen=True, slots=True)
class State:
    """All that a command can see. Two moments with the same one are one and the same for what follows."""

    database: str
    files: str
    copies: int  # of the database, which upgrades made that were killed


class Subject:
    """A database of backy2 that can be made again and again."""

    def __init__(self, directory: Path, server: DatabaseServer | None) -> None:
        self.reference = Reference(NAME, directory)
        self._server = server
        self._file = self.reference.sqlite_file
        self._original = directory / "original"
        shutil.copy(self._file, self._original)
        self.url = f"sqlite:///{self._file}"
        self.renew(first=True)

    @property
    def changes_only(self) -> bool:
        """Whether statements that only read are left out."""
        return self._server is not None

    def renew(self, *, first: bool = False) -> None:
        """Make the database as it was before any upgrade, and the storage as well."""
        shutil.rmtree(self.reference.directory / "data/catalog", ignore_errors=True)
        if self._server is None:
            shutil.copy(self._original, self._file)
            return
        old = self.url
        self.url = self._server.new_database()
        shutil.copy(self._original, self._file)
        if first:
            self.reference.move_to(self.url)
            return
        self._server.drop(old)
        self.reference.change_config(f"engine: {old}", "engine: sqlite:///backy.sqlite")
        self.reference.move_to(self.url)

    def undo(self, state: State, original: State) -> None:
        """Make everything as it was before any upgrade; the database only if its state is another one."""
        if state.database != original.database:
            self.renew()
        self._remove_copies()
        shutil.rmtree(self.reference.directory / "data/catalog", ignore_errors=True)

    def upgrade(self) -> None:
        """Upgrade it, and take away the copies."""
        try:
            upgrade(self.reference.config)
        finally:
            self._remove_copies()

    def _remove_copies(self) -> None:
        for path in self.reference.directory.glob(_COPIES):
            path.unlink()

    def state(self) -> State:
        """Return all that the next command can see of it."""
        files = read_files(self.reference.directory)
        # What is in a copy is read by nobody; it has the time at which it was made.
        copies = [name for name in files if fnmatch(name, _COPIES)]
        for name in copies:
            del files[name]
        if self._server is None:
            database = digest_of({name: files.pop(name) for name in list(files) if name.startswith(self._file.name)})
        else:
            config = files[self.reference.config_file.name]
            assert config is not None
            files[self.reference.config_file.name] = config.replace(self.url.encode(), b"")  # it has a number
            engine = self.engine()
            with engine.connect() as connection:
                database = dump_of(connection)
            engine.dispose()
        return State(database, digest_of(files), len(copies))

    def kill_at(self, number: int) -> bool:
        """Upgrade it in a process that is killed at a statement; return whether it came that far."""
        pid = os.fork()
        if pid == 0:
            try:
                with watched(kill, number, changes_only=True):
                    self.upgrade()
            finally:
                os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL

    def loses_its_connection_at(self, number: int) -> bool:
        """Upgrade it; at a statement the server ends the connection. Return whether it came that far."""
        assert self._server is not None
        used: list[Connection] = []

        def remember(connection: Connection, *_: object) -> None:
            used[:] = [connection]

        def disconnect() -> None:
            assert self._server is not None
            self._server.disconnect(used[0])

        event.listen(Engine, "before_cursor_execute", remember)
        event.listen(Engine, "commit", remember)
        try:
            with watched(disconnect, number, changes_only=True) as statements, suppress(DatabaseError):
                self.upgrade()
        finally:
            event.remove(Engine, "before_cursor_execute", remember)
            event.remove(Engine, "commit", remember)
        return statements.count >= number

    def old_rows(self) -> dict[str, list[Any]]:
        """Return all that the old program knows of, in the columns it knows."""
        engine = self.engine()
        known = {
            "versions": "uid, date, name, size, size_bytes, valid, protected",
            "blocks": "uid, version_uid, id, date, checksum, size, valid",
            "stats": "date, version_uid, version_name, bytes_read, duration_seconds",
            "deleted_blocks": "id, uid, size, delete_candidate, time",
        }
        with engine.connect() as connection:
            rows: dict[str, list[Any]] = {
                table: sorted(map(repr, connection.execute(text(f"SELECT {columns} FROM {table}"))))
                for table, columns in known.items()
            }
            rows["alembic_version"] = (
                list(connection.execute(text("SELECT * FROM alembic_version")))
                if inspect(connection).has_table("alembic_version")
                else ["no table"]
            )
        engine.dispose()
        return rows

    def tables(self) -> list[str]:
        """Return the names of all tables."""
        engine = self.engine()
        names = sorted(inspect(engine).get_table_names())
        engine.dispose()
        return names

    def is_taken_over(self) -> bool:
        """Tell whether the rows were taken over, even if those of backy2 are still there."""
        engine = self.engine()
        with engine.connect() as connection:
            names = inspect(connection).get_table_names()
            taken = "repository" in names and connection.execute(text("SELECT 1 FROM repository")).first() is not None
        engine.dispose()
        return taken

    def check_new(self) -> None:
        """Compare what is there with what has to be there after an upgrade."""
        with open_repository(self.reference.config) as repository:
            check(repository, self.reference.expected)
            audit(repository)
        assert not [name for name in self.tables() if name.startswith("backy2_")]

    def engine(self) -> Engine:
        """Return an engine that asks the database whatever we like."""
        drivers = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg", "mysql": "mysql+pymysql"}
        return create_engine(make_url(self.url).set(drivername=drivers[self.url.partition(":")[0]]))


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def subject(request: pytest.FixtureRequest, tmp_path: Path) -> Subject:
    server = None if request.param == "sqlite" else request.getfixturevalue(f"{request.param}_server")
    return Subject(tmp_path, server)


def test_a_statement_that_fails_leaves_the_old_database(subject: Subject) -> None:
    rows = subject.old_rows()
    tables = set(subject.tables())
    original = subject.state()
    number = 0
    while True:
        number += 1
        # The error that is injected may come out; what is left is judged below.
        with watched(fail, number, changes_only=subject.changes_only) as statements, suppress(DatabaseError):
            subject.upgrade()
        if statements.count < number:
            break
        if subject.state() == original:
            continue
        if subject.is_taken_over():
            subject.upgrade()  # only the clearing away was left, on MariaDB
            subject.check_new()
            subject.renew()
            continue
        assert subject.old_rows() == rows, f"statement {number}"
        new = set(subject.tables()) - tables
        # MariaDB keeps what the revisions of backy2 have added, which no release of backy2 minds.
        assert new == set() or (subject.url.startswith("mysql") and new == {"tags"}), f"statement {number}"
    assert number > 30
    subject.check_new()


def test_a_kill_at_any_statement_leaves_what_the_next_command_upgrades(subject: Subject) -> None:
    if subject.changes_only:
        judge_each_state(subject, subject.kill_at)
    else:
        judge_states_of_a_file(subject)


def judge_each_state(subject: Subject, stop_at: Callable[[int], bool]) -> None:
    """Stop an upgrade at each statement, and make the next one of each state that this leaves."""
    original = subject.state()
    seen: set[State] = set()
    number = 1
    while stop_at(number):
        state = subject.state()
        if state not in seen:
            seen.add(state)
            judge_what_is_left(subject)
            subject.renew()
        else:
            subject.undo(state, original)
        number += 1
    assert number > 30
    assert 1 <= len(seen) < number
    subject.check_new()


def judge_states_of_a_file(subject: Subject) -> None:
    """Do the same with an SQLite file."""
    stored = Stored(subject.reference.directory)
    killed = stored.killed(subject.upgrade)
    assert killed.steps > 30
    subject.check_new()
    for copy in killed.copies.values():
        stored.put(copy)
        judge_what_is_left(subject)


def judge_what_is_left(subject: Subject) -> None:
    """Make sure that the database is the old one or the new one, but for MariaDB, and can be upgraded."""
    if not subject.url.startswith("mysql"):
        assert subject.tables() == _NEW_TABLES or subject.old_rows()["alembic_version"] == ["no table"]
    subject.upgrade()
    subject.check_new()


@pytest.fixture(params=["postgresql", "mariadb"])
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Subject:
    return Subject(tmp_path, request.getfixturevalue(f"{request.param}_server"))


def test_a_database_that_goes_away_at_any_statement_is_upgraded_by_the_next_command(served: Subject) -> None:
    judge_each_state(served, served.loses_its_connection_at)


_NEW_TABLES = [
    "alembic_version", "blob_checks", "blob_refs", "blobs", "catalog_notes", "damaged_versions", "job_versions", "jobs",
    "key_slots", "pages", "repository", "runs", "stats", "tags", "version_pages", "versions",
]  # fmt: skip
