"""A private MariaDB."""

from __future__ import annotations

import signal
from typing import Any, ClassVar

from tests.support.services.database import DatabaseServer
from tests.support.services.server import find_program


class MariadbServer(DatabaseServer):
    """MariaDB without durability, but with its own defaults for everything that matters to backyfs."""

    name = "mariadb"
    superuser = "root"
    first_database = "mysql"
    scheme = "mysql"
    driver = "mysql+pymysql"
    end: ClassVar = signal.SIGKILL  # all its files are in its directory

    def initialize_command(self, data: str) -> list[str]:
        # "normal": root has no password and connects by TCP. --no-defaults must come first.
        return [
            find_program("mariadb-install-db"), "--no-defaults", f"--datadir={data}",
            "--auth-root-authentication-method=normal", "--skip-test-db",
        ]  # fmt: skip

    def serve_command(self, data: str) -> list[str]:
        return [
            find_program("mariadbd", "/usr/sbin"), "--no-defaults", f"--datadir={data}",
            "--bind-address=127.0.0.1", f"--port={self.port}", f"--socket={self.directory}/socket",
            f"--pid-file={self.directory}/pid", "--skip-name-resolve", "--skip-log-bin",
            "--innodb-flush-log-at-trx-commit=0", "--innodb-flush-method=nosync", "--innodb-doublewrite=0",
            "--sync-frm=0", "--innodb-buffer-pool-size=32M", "--innodb-log-file-size=16M",
        ]  # fmt: skip

    def create_statement(self, database: str) -> str:
        return f"CREATE DATABASE {database} CHARACTER SET utf8mb4"

    def drop_statement(self, database: str) -> str:
        # A transaction left open by a test would make this wait for a day.
        return f"SET STATEMENT lock_wait_timeout = 20 FOR DROP DATABASE IF EXISTS {database}"

    def disconnect_statement(self, raw: Any) -> str:
        return f"KILL {raw.thread_id()}"
