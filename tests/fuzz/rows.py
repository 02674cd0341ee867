"""Change one value of one row of a small repository, and run commands on it.

    python -m tests.fuzz.rows [--mutations 500] [--seed 1] [--commands 8]

A command ends with a status of docs/reference/exit-codes.md other than 100, in one line, in bounded time and memory.
SQLite stores any type in any column, so what an attacker, a faulty disk or a typo in SQL leaves behind can be anything.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sqlite3
import sys
import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from backyfs.metadata.db.tables import metadata
from tests.cli.cases import CASES, make_place, words_of
from tests.support.forkserver import ForkServer
from tests.support.repositories import back_up, opened

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.cli.cases import Case

ADDRESS_SPACE_KB = 2 << 20
LIMIT_S = 120  # generous: what takes longer hangs
STATUSES = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 20, 22, 23}
_FILES = {"init", "initdb", "completion", "detach"}  # read no row of the repository
_CASES = tuple(case for case in CASES if case.name not in _FILES)
_NESTED = "[" * 5000
_VALUES: tuple[object, ...] = (
    None, "", "x", b"", b"\xff\xfe", b"x" * 32, b"\0", "\0", "a\nb", "a|b", "a\x1b[1m", "\ud7ff\u202e",
    "../../evil", "/etc/passwd",
    0, 1, -1, 2, 1 << 31, (1 << 31) - 1, 1 << 32, (1 << 63) - 1, -(1 << 63), 900_000_000,
    str(1 << 64), "9" * 5000, "-" + "9" * 400, 0.5, -1.5, 1e18, 1e308, float("inf"), float("-inf"), "nan", "inf",
    "1e999",
    "2026-02-31 00:00:00.000000", "0001-01-01 00:00:00.000000", "9999-12-31 23:59:59.999999", "10000-01-01 00:00:00",
    "infinity", "0000-00-00 00:00:00", "2026-01-01T00:00:00Z", "2026-01-01", "-4000-01-01 00:00:00.000000",
    "y" * 100_000, _NESTED, '{"a":' * 5000, "{}", "[]", "null", '{"n": 1e999}', '{"n": NaN}',
    '{"n": "x", "r": [], "p": {}}',
    '{"salt": "zz", "n": -1, "r": 0, "p": 1000000000}', "valid", "incomplete", "scrypt", "argon2id", "blake3", "sha512",
    "b" * 36, "00000000-0000-0000-0000-000000000000", "\udcff".encode("utf-8", "surrogatepass"), "true",
)  # fmt: skip


@dataclass(frozen=True)
class Mutation:
    """One value in the place of another one."""

    table: str
    column: str
    row: int  # by its place in the table
    value: object

    def __str__(self) -> str:
        return f"{self.table}.{self.column} of row {self.row} = {self.value!r:.100}"


def mutations(seed: int) -> Iterator[Mutation]:
    """Yield mutations in an order that depends on the seed: every column comes before any comes again."""
    chance = random.Random(seed)
    columns = [(table.name, column.name) for table in metadata.sorted_tables for column in table.columns]
    while True:
        chance.shuffle(columns)
        for table, column in columns:
            yield Mutation(table, column, chance.randrange(4), chance.choice(_VALUES))


def commands(seed: int, count: int) -> Iterator[tuple[Case, ...]]:
    """Yield some commands at a time, each command as often as any other."""
    chance = random.Random(seed)
    waiting: list[Case] = []
    while True:
        while len(waiting) < count:
            more = list(_CASES)
            chance.shuffle(more)
            waiting += more
        yield tuple(waiting[:count])
        del waiting[:count]


class Place:
    """A repository that is put back before each command."""

    def __init__(self, directory: Path, *, encrypted: bool) -> None:
        """Make it below a directory."""
        self.path = directory / "place"
        self._template = directory / "template"
        self.path.mkdir()
        make_place(self.path, encrypted=encrypted)
        config = self.path / "repository" / "backyfs.cfg"
        with opened(config) as repository:
            for _ in range(3):
                back_up(repository, self.path / "image", "other", tags=("a", "b"))
        _fill(self._database)
        self.path.rename(self._template)

    @property
    def _database(self) -> Path:
        return self.path / "repository" / "backyfs.sqlite"

    def put_back(self, mutation: Mutation | None) -> bool:
        """Make it what it was, with one value changed; return whether SQLite let it be changed."""
        shutil.rmtree(self.path, ignore_errors=True)
        shutil.copytree(self._template, self.path, symlinks=True)
        return mutation is None or _change(self._database, mutation)


def _fill(database: Path) -> None:
    """Give every table rows: a live job of another host, which holds a version, a damaged block and version, notes."""
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.executescript(
            """
            INSERT INTO jobs
              (host, scope, pid, pid_started, command, progress, started_at, heartbeat_at, kind, writes_blobs,
                names, progress_done, progress_total, progress_unit, progress_s)
              SELECT 'elsewhere', 'elsewhere', n, n, 'backup x', 'Backing up x', datetime('now') || '.000000',
                datetime('now') || '.000000', 'backup', 0, '["x"]', 1, 2, 'bytes', 0.5
                FROM (SELECT 1 AS n UNION SELECT 2);
            INSERT INTO runs
              (kind, command, names, host, started_at, ended_at, outcome, exit_status, error_class, error, report)
              SELECT 'backup', 'backup x', '["x"]', 'elsewhere', created_at, created_at, 'failed', 7, 'SourceError',
                'gone', '{"a": 1}' FROM versions;
            INSERT INTO job_versions SELECT max(jobs.id), max(versions.id) FROM jobs, versions;
            INSERT INTO blob_checks SELECT id, created_at FROM blobs LIMIT 3;
            INSERT INTO catalog_notes SELECT 'version', uid, id FROM versions;
            UPDATE versions SET expire_at = created_at, status = 'invalid' WHERE id = 2;
            INSERT INTO damaged_versions SELECT id, created_at FROM versions WHERE id = 2;
            """
        )


def _change(database: Path, mutation: Mutation) -> bool:
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        # Without NOT NULL and UNIQUE of the columns, which do not bind another program that writes the file.
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_master SET sql = replace(sql, ' NOT NULL', '') WHERE type = 'table'")
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        # Alive: one that seems dead is watched for half a minute.
        connection.execute("UPDATE jobs SET heartbeat_at = datetime('now') || '.000000'")
        rows = connection.execute(f"SELECT rowid FROM {mutation.table} ORDER BY rowid").fetchall()
        if not rows:
            return False
        value = mutation.value
        if isinstance(value, str):
            value = value.encode("utf-8", "surrogatepass")
            expression = "CAST(? AS TEXT)"
        else:
            expression = "?"
        if mutation.value == b"\xff\xfe":  # text that is not UTF-8, and not bytes
            expression = "CAST(? AS TEXT)"
        (rowid,) = rows[mutation.row % len(rows)]
        try:
            connection.execute(
                f"UPDATE {mutation.table} SET {mutation.column} = {expression} WHERE rowid = ?", (value, rowid)
            )
        except (sqlite3.IntegrityError, OverflowError):
            return False
    return True


class Runner:
    """Runs commands in a place and says what is wrong with how they ended."""

    def __init__(self, server: ForkServer, place: Place) -> None:
        self._server, self._place = server, place

    def problems(self, mutation: Mutation | None, case: Case) -> Iterator[str]:
        """Run a case, and the commands it needs before; yield what is wrong."""
        if not self._place.put_back(mutation):
            return
        path = self._place.path
        out, err = path / "out", path / "err"
        metrics = ["--metrics-file", str(path / "metrics"), "-d"] if case.name in {"backup", "ls"} else []
        for words in (*(["-c", str(path / case.config), *_words(words, path)] for words in case.after),
                      [*metrics, "-c", str(path / case.config), *words_of(case, path)]):  # fmt: skip
            status = self._server.run(words, out=out, err=err, limit_s=LIMIT_S)
            printed = err.read_text(errors="replace")
            unexpected = "unexpected " in printed or ("Traceback" in printed and not metrics)
            # check-config reports what is wrong as a result.
            is_reported = "error" in printed or "failed " in out.read_text(errors="replace")
            if status not in STATUSES or unexpected or (status not in {0, 1, 2, 20} and not is_reported):
                yield f"{mutation}: {' '.join(words)}: status {status}: {printed[-1500:]}"
        for words in (["detach", str(path / "attached")], ["umount", str(path / "mount")]):
            if case.mounts:
                self._server.run(["-q", "-c", str(path / case.config), *words], limit_s=LIMIT_S)


def _words(words: str, path: Path) -> list[str]:
    return [word.replace("{dir}", str(path)).replace("{}", "disk@latest") for word in words.split()]


def fuzz(directory: Path, *, encrypted: bool, seed: int, count: int, at_once: int) -> Iterator[str]:
    """Yield what is wrong with any of some commands after each of `count` mutations."""
    place = Place(directory, encrypted=encrypted)
    limited = f'ulimit -v {ADDRESS_SPACE_KB}; exec "$@"'
    with ForkServer(limited, os.environ) as server:
        runner = Runner(server, place)
        of_seed, some = mutations(seed), commands(seed, at_once)
        for _ in range(count):
            mutation = next(of_seed)
            for case in next(some):
                yield from runner.problems(mutation, case)


def main() -> int:
    """Fuzz for as long as it is asked to; the exit status is 1 if anything is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.rows")
    parser.add_argument("--mutations", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--commands", type=int, default=8)
    options = parser.parse_args()
    found = 0
    for encrypted in (True, False):
        with tempfile.TemporaryDirectory() as directory:
            for problem in fuzz(
                Path(directory),
                encrypted=encrypted,
                seed=options.seed,
                count=options.mutations,
                at_once=options.commands,
            ):
                found += 1
                sys.stdout.write(f"{json.dumps(problem)}\n")
                sys.stdout.flush()
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
