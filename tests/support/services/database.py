"""A private database server, and its databases."""

from __future__ import annotations

import itertools
import os
import shutil
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from tests.support.services.server import Server, free_ports

if TYPE_CHECKING:
    from sqlalchemy import Connection

ACCOUNT = ("nobody", "nogroup")  # PostgreSQL refuses root


class DatabaseServer(Server):
    """A server that anyone on this machine can connect to, with a superuser without a password."""

    account: ClassVar = ACCOUNT
    in_memory: ClassVar = True     # a change of a table took three times as long on a disk
    superuser: ClassVar[str]       # has no password
    first_database: ClassVar[str]  # one that is always there
    scheme: ClassVar[str]          # of URLs, as users write them
    driver: ClassVar[str]          # the same with the driver, as SQLAlchemy has it

    def start(self) -> None:
        """Create the data and start the server."""
        self._numbers = itertools.count(1)
        [self.port] = free_ports(1)
        # Asks the server about itself once, and keeps no connection, which a forked process would share.
        self._engine = create_engine(
            make_url(self.url(self.first_database)).set(drivername=self.driver),
            poolclass=NullPool,
            isolation_level="AUTOCOMMIT",
        )
        os.chmod(self.directory, 0o711)
        if os.geteuid() == 0:
            shutil.chown(self.directory, *ACCOUNT)
        data = os.path.join(self.directory, "data")
        self.run(self.initialize_command(data))
        self.configure(data)
        self.serve(self.serve_command(data))
        self.wait_until(self._answers)

    def url(self, database: str) -> str:
        """Return the URL of a database for a configuration."""
        return f"{self.scheme}://{self.superuser}@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """Make an empty database and return its URL."""
        name = f"test_{next(self._numbers)}"
        self.execute(self.create_statement(name))
        return self.url(name)

    def drop(self, url: str) -> None:
        """Drop a database."""
        name = make_url(url).database
        assert name is not None
        self.execute(self.drop_statement(name))

    def empty(self, url: str) -> None:
        """Drop a database, and make an empty one with its name."""
        self.drop(url)
        name = make_url(url).database
        assert name is not None
        self.execute(self.create_statement(name))

    def disconnect(self, connection: Connection) -> None:
        """Make the server end a connection, and wait until it has ended."""
        self.execute(self.disconnect_statement(connection.connection.dbapi_connection))

    def execute(self, statement: str) -> None:
        """Run one statement as the superuser, outside any transaction."""
        with self._engine.connect() as connection:
            connection.execute(text(statement))

    @abstractmethod
    def initialize_command(self, data: str) -> list[str]:
        """Return the command that creates the data directory."""

    def configure(self, data: str) -> None:
        """Change the data directory before the server starts. Most servers need no change."""

    @abstractmethod
    def serve_command(self, data: str) -> list[str]:
        """Return the command of the server, which must not fork or change its user."""

    @abstractmethod
    def create_statement(self, database: str) -> str:
        """Return the statement that creates an empty database."""

    @abstractmethod
    def disconnect_statement(self, raw: Any) -> str:
        """Return the statement that ends a connection of the driver."""

    @abstractmethod
    def drop_statement(self, database: str) -> str:
        """Return the statement that drops a database."""

    def _answers(self) -> bool:
        try:
            self.execute("SELECT 1")
        except OperationalError:
            return False
        return True
