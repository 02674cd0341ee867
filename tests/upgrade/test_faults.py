"""An upgrade that fails, or is killed, at any statement: the old database or the new one, and nothing else.

The reference is one from before alembic, so that every revision has something to do. On SQLite every statement
fails once, on the servers each one that changes something, and every commit. Kills are at those as well: between
two of them nothing differs.
"""

from __future__ import annotations

import os
import shutil
import signal
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import OperationalError

from backyfs.engine.setup.upgrade import upgrade
from backyfs.errors import DatabaseError
from backyfs.repository import open_repository
from tests.support.audit import audit
from tests.upgrade.reference import Reference, check

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sqlalchemy import Connection

    from tests.support.services.server import Server

pytestmark = pytest.mark.slow

NAME = "old-prealembic-2.9.0"
_CHANGES = ("CREATE", "DROP", "ALTER", "RENAME", "INSERT", "UPDATE", "DELETE")


class Statements:
    """Counts the statements of an upgrade, and does something at one of them, or at each."""

    def __init__(self, act: Callable[[], None], at: int | None, *, changes_only: bool) -> None:
        self.count = 0
        self._act = act
        self._at = at
        self._changes_only = changes_only

    def note(self, statement: str) -> None:
        """Count a statement, before it is executed."""
        if self._changes_only and not statement.lstrip().upper().startswith((*_CHANGES, "COMMIT")):
            return
        self.count += 1
        if self._at in (None, self.count):
            self._act()


@contextmanager
def watched(act: Callable[[], None], at: int | None, *, changes_only: bool) -> Iterator[Statements]:
    """Watch all statements and commits of this process."""
    statements = Statements(act, at, changes_only=changes_only)

    def before_execute(*arguments: Any) -> None:
        statements.note(arguments[2])

    def before_commit(_connection: object) -> None:
        statements.note("COMMIT")

    event.listen(Engine, "before_cursor_execute", before_execute)
    event.listen(Engine, "commit", before_commit)
    try:
        yield statements
    finally:
        event.remove(Engine, "before_cursor_execute", before_execute)
        event.remove(Engine, "commit", before_commit)


def fail() -> None:
    raise OperationalError("the statement", {}, Exception("injected"))


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Subject:
    """A database of backy2 that can be made again and again."""

    def __init__(self, directory: Path, server: Server | None) -> None:
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

    def upgrade(self) -> None:
        """Upgrade it, and take away the copies."""
        try:
            upgrade(self.reference.config)
        finally:
            for path in self.reference.directory.glob("*before-upgrade*"):
                path.unlink()

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
        engine = create_engine(make_url(self.url).set(drivername=self._driver()))
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
        engine = create_engine(make_url(self.url).set(drivername=self._driver()))
        names = sorted(inspect(engine).get_table_names())
        engine.dispose()
        return names

    def is_taken_over(self) -> bool:
        """Tell whether the rows were taken over, even if those of backy2 are still there."""
        engine = create_engine(make_url(self.url).set(drivername=self._driver()))
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

    def _driver(self) -> str:
        return {"sqlite": "sqlite", "postgresql": "postgresql+psycopg", "mysql": "mysql+pymysql"}[
            self.url.partition(":")[0]
        ]


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def subject(request: pytest.FixtureRequest, tmp_path: Path) -> Subject:
    server = None if request.param == "sqlite" else request.getfixturevalue(f"{request.param}_server")
    return Subject(tmp_path, server)


def test_a_statement_that_fails_leaves_the_old_database(subject: Subject) -> None:
    rows = subject.old_rows()
    tables = set(subject.tables())
    number = 0
    while True:
        number += 1
        # The error that is injected may come out; what is left is judged below.
        with watched(fail, number, changes_only=subject.changes_only) as statements, suppress(DatabaseError):
            subject.upgrade()
        if statements.count < number:
            break
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
    number = 1
    while subject.kill_at(number):
        if not subject.url.startswith("mysql"):
            assert subject.tables() == _NEW_TABLES or subject.old_rows()["alembic_version"] == ["no table"]
        subject.upgrade()
        subject.check_new()
        subject.renew()
        number += 1
    assert number > 30
    subject.check_new()


@pytest.fixture(params=["postgresql", "mariadb"])
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Subject:
    return Subject(tmp_path, request.getfixturevalue(f"{request.param}_server"))


def test_a_database_that_goes_away_at_any_statement_is_upgraded_by_the_next_command(served: Subject) -> None:
    number = 1
    while served.loses_its_connection_at(number):
        served.upgrade()
        served.check_new()
        served.renew()
        number += 1
    assert number > 30
    served.check_new()


_NEW_TABLES = [
    "alembic_version", "blob_checks", "blob_refs", "blobs", "catalog_notes", "damaged_versions", "job_versions", "jobs",
    "key_slots", "pages", "repository", "runs", "stats", "tags", "version_pages", "versions",
]  # fmt: skip
