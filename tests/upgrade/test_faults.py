"""An upgrade that fails, or is killed, at any statement: the old database or the new one, and nothing else.

The reference is one from before alembic, so that every revision has something to do. A kill, or an error, at one
statement is tried once for all statements that leave or do the same:

- A kill leaves what was committed before the statement, and no code runs. Each such state is made by a real kill, and
  judged. On MariaDB other connections see it; on PostgreSQL it only changes with a commit.
- An error is handled by the lines that run the statement. It is tried at the last statement of each place
  (`last_at_each_place`). SQLite and PostgreSQL undo all revisions at once; on MariaDB each line of a revision counts.
- A server that goes away does both. What it leaves is judged unless a kill leaves it as well.

On SQLite statements that only read fail as well.
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
from sqlalchemy import Engine, NullPool, event, inspect, text

from backyfs.engine.setup.upgrade import upgrade
from backyfs.errors import DatabaseError
from backyfs.repository import open_repository
from tests.support.audit import audit
from tests.support.statements import fail, kill, last_at_each_place, watched
from tests.support.states import Stored, digest_of, dump_of, read_files
from tests.upgrade.reference import Reference, check, copy_tables, engine_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy import Connection

    from tests.support.services.database import DatabaseServer

pytestmark = pytest.mark.slow

NAME = "old-prealembic-2.9.0"
FEWEST = 30  # statements: with fewer the upgrade did not run
_COPIES = "*before-upgrade*"


@dataclass(frozen=True, slots=True)
class State:
    """Everything a command can see. After two moments with the same state, commands do the same."""

    database: str
    files: str
    copies: int  # of the database, left by upgrades that were killed


class Subject:
    """A database of backy2 that can be restored again and again."""

    def __init__(self, directory: Path, server: DatabaseServer | None) -> None:
        self.reference = Reference(NAME, directory)
        self._server = server
        self._file = self.reference.sqlite_file
        self._original = directory / "original"
        shutil.copy(self._file, self._original)
        self._url = f"sqlite:///{self._file}"
        if server is not None:
            self._url = server.new_database()
            self.reference.move_to(self._url)
        # Without connections that stay open: a process that is forked would share them.
        self._engine = engine_of(self._url, poolclass=NullPool)
        self._first = self.state()

    @property
    def is_on_server(self) -> bool:
        """Whether the database is on a server."""
        return self._server is not None

    @property
    def undoes_tables(self) -> bool:
        """Whether changes of tables are part of a transaction."""
        return not self._url.startswith("mysql")

    def renew(self) -> None:
        """Restore the database and the storage as they were before any upgrade."""
        shutil.rmtree(self.reference.directory / "data/catalog", ignore_errors=True)
        if self._server is None:
            shutil.copy(self._original, self._file)
        else:
            self._server.empty(self._url)
            copy_tables(self._original, self._engine)

    def undo(self, state: State) -> None:
        """Restore what differs in this state from before any upgrade."""
        self._remove_copies()
        if (state.database, state.files) != (self._first.database, self._first.files):
            self.renew()

    def is_old(self, state: State) -> bool:
        """Return whether a state is the one before any upgrade."""
        return state == self._first

    def drop(self) -> None:
        """Drop the database of a server."""
        if self._server is not None:
            self._server.drop(self._url)

    def upgrade(self) -> None:
        """Upgrade the database, and remove the copies."""
        try:
            upgrade(self.reference.config)
        finally:
            self._remove_copies()

    def _remove_copies(self) -> None:
        for path in self.reference.directory.glob(_COPIES):
            path.unlink()

    def places(self) -> list[int]:
        """Return the numbers of statements, one at each place, and restore the database."""
        places = last_at_each_place(self.upgrade, changes_only=self.is_on_server, revisions=not self.undoes_tables)
        self.renew()
        return places

    def state(self) -> State:
        """Return everything the next command can see."""
        files = read_files(self.reference.directory)
        # Nothing reads a copy, and its content depends on the time.
        copies = [name for name in files if fnmatch(name, _COPIES)]
        for name in copies:
            del files[name]
        if self._server is None:
            database = digest_of({name: files.pop(name) for name in list(files) if name.startswith(self._file.name)})
        else:
            with self._engine.connect() as connection:
                database = dump_of(connection)
        return State(database, digest_of(files), len(copies))

    def kills(self) -> dict[int, State | None]:
        """Upgrade the database on a server, and return the numbers of statements with what a kill leaves there.

        It is what others see, or unknown: PostgreSQL lets others wait for tables that are changed, but keeps nothing
        that was not committed.
        """
        seen: list[State | int] = []

        def look() -> None:
            seen.append(statements.commits if self.undoes_tables else self.state())

        with watched(look, None, changes_only=True) as statements:
            self.upgrade()
        assert len(seen) > FEWEST
        # The last statement in each state: the server has the most to undo.
        last = {state: number for number, state in enumerate(seen, 1)}
        return {number: state if isinstance(state, State) else None for state, number in last.items()}

    def kill_at(self, number: int) -> None:
        """Upgrade the database in a process that is killed before a statement."""
        pid = os.fork()
        if pid == 0:
            try:
                with watched(kill, number, changes_only=True):
                    self.upgrade()
            finally:
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL

    def fail_at(self, number: int) -> None:
        """Upgrade the database; a statement fails. The error may come out: what is left is judged."""
        with watched(fail, number, changes_only=self.is_on_server) as statements, suppress(DatabaseError):
            self.upgrade()
        assert statements.count >= number

    def lose_connection_at(self, number: int) -> None:
        """Upgrade the database; the server ends the connection before a statement."""
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
        assert statements.count >= number

    def old_rows(self) -> dict[str, list[Any]]:
        """Return everything the old program knows, in the columns it knows."""
        known = {
            "versions": "uid, date, name, size, size_bytes, valid, protected",
            "blocks": "uid, version_uid, id, date, checksum, size, valid",
            "stats": "date, version_uid, version_name, bytes_read, duration_seconds",
            "deleted_blocks": "id, uid, size, delete_candidate, time",
        }
        with self._engine.connect() as connection:
            rows: dict[str, list[Any]] = {
                table: sorted(map(repr, connection.execute(text(f"SELECT {columns} FROM {table}"))))
                for table, columns in known.items()
            }
            rows["alembic_version"] = (
                list(connection.execute(text("SELECT * FROM alembic_version")))
                if inspect(connection).has_table("alembic_version")
                else ["no table"]
            )
        return rows

    def tables(self) -> list[str]:
        """Return the names of all tables."""
        with self._engine.connect() as connection:
            return sorted(inspect(connection).get_table_names())

    def is_taken_over(self) -> bool:
        """Return whether the rows were taken over, even if those of backy2 are still there."""
        with self._engine.connect() as connection:
            names = inspect(connection).get_table_names()
            return "repository" in names and connection.execute(text("SELECT 1 FROM repository")).first() is not None

    def check_new(self) -> None:
        """Compare the database with what an upgrade must have made of it."""
        with open_repository(self.reference.config) as repository:
            check(repository, self.reference.expected)
            audit(repository)
        assert not [name for name in self.tables() if name.startswith("backy2_")]

    def judge_what_is_left(self) -> None:
        """Check that the database is the old or the new one, except on MariaDB, and that it can be upgraded."""
        if self.undoes_tables:
            assert self.tables() == _NEW_TABLES or self.old_rows()["alembic_version"] == ["no table"]
        self.upgrade()
        self.check_new()


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def subject(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Subject]:
    yield from subject_on(request, tmp_path)


@pytest.fixture(params=["postgresql", "mariadb"])
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Subject]:
    yield from subject_on(request, tmp_path)


def subject_on(request: pytest.FixtureRequest, directory: Path) -> Iterator[Subject]:
    server = None if request.param == "sqlite" else request.getfixturevalue(f"{request.param}_server")
    subject = Subject(directory, server)
    yield subject
    subject.drop()


def test_a_statement_that_fails_leaves_the_old_database(subject: Subject) -> None:
    rows = subject.old_rows()
    tables = set(subject.tables())
    places = subject.places()
    assert len(places) >= FEWEST
    for number in places:
        subject.fail_at(number)
        state = subject.state()
        if subject.is_old(state):
            continue
        if subject.is_taken_over():
            subject.upgrade()  # on MariaDB, only the old tables were still to be dropped
            subject.check_new()
            subject.renew()
            continue
        assert subject.old_rows() == rows, f"statement {number}"
        new = set(subject.tables()) - tables
        # MariaDB keeps what the revisions of backy2 have added, which no release of backy2 minds.
        assert new == set() or (not subject.undoes_tables and new == {"tags"}), f"statement {number}"
        subject.undo(state)
    subject.upgrade()
    subject.check_new()


def test_a_kill_at_any_statement_of_a_file_leaves_what_the_next_command_upgrades(tmp_path: Path) -> None:
    subject = Subject(tmp_path, None)
    stored = Stored(subject.reference.directory)
    killed = stored.killed(subject.upgrade)
    assert killed.steps > FEWEST
    subject.check_new()
    for copy in killed.copies.values():
        stored.put(copy)
        subject.judge_what_is_left()


def test_a_kill_at_any_statement_leaves_what_the_next_command_upgrades(served: Subject) -> None:
    kills = served.kills()
    served.check_new()
    for number, state in kills.items():
        served.renew()
        served.kill_at(number)
        # Rows that were taken over contain times and random numbers.
        assert state in (None, served.state()) or served.is_taken_over()
        served.judge_what_is_left()


def test_a_database_that_goes_away_at_any_statement_is_upgraded_by_the_next_command(served: Subject) -> None:
    judged = set(served.kills().values())  # by the test above
    served.renew()
    places = served.places()
    assert len(places) >= FEWEST
    for number in places:
        served.lose_connection_at(number)
        state = served.state()
        if state not in judged:
            judged.add(state)
            served.judge_what_is_left()
            served.renew()
        else:
            served.undo(state)
    served.upgrade()
    served.check_new()


_NEW_TABLES = [
    "alembic_version", "blob_checks", "blob_refs", "blobs", "catalog_notes", "damaged_versions", "job_versions", "jobs",
    "key_slots", "pages", "repository", "runs", "stats", "tags", "version_pages", "versions",
]  # fmt: skip
