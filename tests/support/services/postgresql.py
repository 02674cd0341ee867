"""A private PostgreSQL."""

from __future__ import annotations

import signal
from glob import glob
from pathlib import Path
from typing import Any, ClassVar

from tests.support.services.database import DatabaseServer
from tests.support.services.server import find_program


class PostgresqlServer(DatabaseServer):
    """PostgreSQL without durability, from the newest installed release."""

    name = "postgresql"
    superuser = "postgres"
    first_database = "postgres"
    scheme = "postgresql"
    driver = "postgresql+psycopg"
    asked: ClassVar = "asked"  # a role whose password the server requires; tests create it
    end: ClassVar = signal.SIGQUIT  # "immediate shutdown": unlike SIGKILL, it leaves no shared memory

    def initialize_command(self, data: str) -> list[str]:
        # English order, as on the servers of many users: "a" before "B", unlike the order of bytes.
        return [
            program("initdb"), f"--pgdata={data}", f"--username={self.superuser}", "--auth=trust",
            "--encoding=UTF8", "--locale=C.UTF-8", "--locale-provider=icu", "--icu-locale=en-US",
            "--no-sync", "--no-instructions",
        ]  # fmt: skip

    def configure(self, data: str) -> None:
        # The first matching line decides. The lines of initdb trust everyone.
        path = Path(data, "pg_hba.conf")
        path.write_text(f"host all {self.asked} 127.0.0.1/32 scram-sha-256\n{path.read_text()}")

    def serve_command(self, data: str) -> list[str]:
        settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "fsync": "off",
            "full_page_writes": "off",
            "synchronous_commit": "off",
            "autovacuum": "off",
        }
        options = [f"--{name}={value}" for name, value in settings.items()]
        return [program("postgres"), "-D", data, "-p", str(self.port), *options]

    def create_statement(self, database: str) -> str:
        return f"CREATE DATABASE {database}"

    def drop_statement(self, database: str) -> str:
        return f"DROP DATABASE IF EXISTS {database} WITH (FORCE)"

    def disconnect_statement(self, raw: Any) -> str:
        return f"SELECT pg_terminate_backend({raw.info.backend_pid}, 5000)"


def program(name: str) -> str:
    # Debian installs them outside PATH, in a directory for each major version.
    def version(directory: str) -> float:
        return float(directory.split("/")[-2])

    return find_program(name, *sorted(glob("/usr/lib/postgresql/*/bin"), key=version, reverse=True))
