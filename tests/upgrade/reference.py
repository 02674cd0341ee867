"""The reference repositories of backy2 in tests/fixtures: copied, put on any engine, compared with EXPECTED.json."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import create_engine, make_url, text

from backyfs.blocks import load_block
from backyfs.config import load_config
from backyfs.errors import BackyfsError
from backyfs.geometry import block_count, block_length
from backyfs.images.image import Image
from backyfs.metadata.records.versions import list_versions
from backyfs.model import BlockIndex, VersionStatus
from tests.support.services.postgresql import program

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sqlalchemy import Engine

    from backyfs.config import Config
    from backyfs.model import Version
    from backyfs.repository import Repository
    from tests.support.buckets import Bucket

FIXTURES = Path(__file__).parent.parent / "fixtures"
SQLITE_NAMES = sorted(path.parent.name for path in FIXTURES.glob("*/backy.sqlite"))
POSTGRESQL_NAMES = sorted(path.parent.name for path in FIXTURES.glob("*/dump.sql"))
BUCKETS = FIXTURES / "buckets"
BUCKET_NAMES = sorted(path.parent.name for path in BUCKETS.glob("*/backy.sqlite"))

_TYPES = {"DATETIME": {"postgresql": "TIMESTAMP", "mysql": "DATETIME(6)"}}


class Reference:
    """A copy of one reference repository."""

    def __init__(self, name: str, directory: Path, fixtures: Path = FIXTURES) -> None:
        self.directory = directory / name
        shutil.copytree(fixtures / name, self.directory)
        self.config_file = self.directory / "backy.cfg"
        self.sqlite_file = self.directory / "backy.sqlite"
        self.expected: dict[str, Any] = json.loads((self.directory / "EXPECTED.json").read_text())

    @property
    def config(self) -> Config:
        """Its configuration, as a command reads it."""
        return load_config(str(self.config_file), {})[0]

    def change_config(self, old: str, new: str) -> None:
        """Change its configuration."""
        content = self.config_file.read_text()
        assert old in content
        self.config_file.write_text(content.replace(old, new))

    def move_to(self, url: str) -> None:
        """Put the database of an SQLite fixture on another engine, as backy2 would have made it there."""
        engine = engine_of(url)
        copy_tables(self.sqlite_file, engine)
        engine.dispose()
        self.change_config("engine: sqlite:///backy.sqlite", f"engine: {url}")
        self.sqlite_file.unlink()

    def load_dump(self, url: str) -> None:
        """Load the dump of a PostgreSQL fixture."""
        parsed = make_url(url)
        assert parsed.host is not None
        assert parsed.username is not None
        assert parsed.database is not None
        done = subprocess.run(
            [program("psql"), "-q", "-X", "-v", "ON_ERROR_STOP=1", "-h", parsed.host, "-p", str(parsed.port),
             "-U", parsed.username, "-f", str(self.directory / "dump.sql"), parsed.database],
            check=False, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        line = next(line for line in self.config_file.read_text().splitlines() if line.startswith("engine"))
        self.change_config(line, f"engine: {url}")


class BucketReference(Reference):
    """A copy of one reference repository whose blobs lie in a bucket."""

    def __init__(self, name: str, directory: Path, bucket: Bucket, *, endpoint: str | None = None) -> None:
        """Put the objects into a bucket. The configuration has the address of its server, or that of a proxy."""
        super().__init__(name, directory, BUCKETS)
        stored = self.directory / "objects"
        self.objects: Mapping[str, bytes] = {path.name: path.read_bytes() for path in stored.iterdir()}
        shutil.rmtree(stored)
        bucket.fill(self.objects)
        address = (endpoint or bucket.server.endpoint).removeprefix("http://")
        for file in self.directory.glob("*.cfg"):
            content = file.read_text().replace("S3HOST:S3PORT", address)
            file.write_text(content.replace(f"bucket_name: {self.expected['bucket']}", f"bucket_name: {bucket.name}"))


def engine_of(url: str, **options: Any) -> Engine:
    """Return an engine for a database, given as in a configuration of backy2."""
    drivers = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg", "mysql": "mysql+pymysql"}
    return create_engine(make_url(url).set(drivername=drivers[url.partition(":")[0]]), **options)


def copy_tables(file: Path, engine: Engine) -> None:
    """Make the tables of an SQLite file of backy2 in another database, with their rows."""
    dialect = engine.dialect.name
    with closing(sqlite3.connect(file)) as source, engine.begin() as target:
        order = ("versions", "blocks", "tags", "stats", "stats_old", "deleted_blocks", "alembic_version")
        present = {name for (name,) in source.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        for table in [name for name in order if name in present]:
            columns = source.execute(f"PRAGMA table_info({table})").fetchall()
            target.execute(text(_create_statement(table, columns, dialect)))
            names = [column[1] for column in columns]
            rows = [dict(zip(names, row, strict=True)) for row in source.execute(f"SELECT * FROM {table}")]
            if rows:
                values = ", ".join(f":{name}" for name in names)
                target.execute(text(f"INSERT INTO {table} ({', '.join(names)}) VALUES ({values})"), rows)
        for name, table, column in (
            ("ix_blocks_uid", "blocks", "uid"),
            ("ix_blocks_checksum", "blocks", "checksum"),
            ("ix_stats_version_uid", "stats", "version_uid"),
        ):
            if source.execute("SELECT 1 FROM sqlite_master WHERE name = ?", [name]).fetchone():
                target.execute(text(f"CREATE INDEX {name} ON {table} ({column})"))


def _create_statement(table: str, columns: list[tuple[Any, ...]], dialect: str) -> str:
    parts = []
    keys = [name for _, name, *_, key in columns if key]
    for _, name, kind, required, default, _key in columns:
        parts.append(
            f"{name} {_kind(table, name, kind, dialect, numbered=keys == [name])}{' NOT NULL' if required else ''}"
            f"{f' DEFAULT {default}' if default else ''}"
        )
    if keys:
        parts.append(f"PRIMARY KEY ({', '.join(keys)})")
    if table in ("blocks", "tags"):
        parts.append("FOREIGN KEY (version_uid) REFERENCES versions (uid)")
    return f"CREATE TABLE {table} ({', '.join(parts)})"


def _kind(table: str, column: str, kind: str, dialect: str, *, numbered: bool) -> str:
    if numbered and column == "id":
        return "SERIAL" if dialect == "postgresql" else "INTEGER AUTO_INCREMENT"
    if kind in ("VARCHAR", "VARCHAR(2048)"):  # MariaDB wants a length, and has a limit for keys
        return "VARCHAR(255)" if table == "tags" else "VARCHAR(2048)"
    return _TYPES.get(kind, {}).get(dialect, kind)


def check(repository: Repository, expected: dict[str, Any]) -> None:
    """Compare a whole repository with what it must hold."""
    with repository.database.read() as connection:
        found = {version.uid: version for version in list_versions(connection)}
    assert set(found) == set(expected["versions"])
    for uid, facts in expected["versions"].items():
        check_facts(found[uid], facts)
        check_bytes(repository, found[uid], facts)


def check_facts(version: Version, facts: dict[str, Any]) -> None:
    """Compare what `ls` shows."""
    assert version.name == facts["name"]
    assert version.snapshot_name == facts["snapshot_name"]
    assert version.size_bytes == facts["size_bytes"]
    assert list(version.tags) == sorted(facts["tags"])
    assert (version.status is VersionStatus.VALID) == bool(facts["valid"])
    assert version.protected == bool(facts["protected"])
    assert version.created_at.strftime("%Y-%m-%d %H:%M:%S") == facts["date"][:19]
    expire = None if version.expire_at is None else version.expire_at.strftime("%Y-%m-%d %H:%M:%S")
    assert expire == facts["expire"]
    is_incomplete = bool(facts["blocks"]["absent_ids"]) or facts["blocks"]["rows"] < facts["size_blocks"]
    assert (version.status is VersionStatus.INCOMPLETE) == is_incomplete


def check_bytes(repository: Repository, version: Version, facts: dict[str, Any]) -> None:
    """Compare each block that can be read, and make sure that the others cannot."""
    blocks = dict(read_blocks(repository, version))
    if facts["complete"]:
        image = b"".join(blocks[index] for index in range(facts["size_blocks"]))
        assert hashlib.sha256(image).hexdigest() == facts["sha256"]
        return
    readable = facts["readable_blocks_sha256"]
    assert {str(index): hashlib.sha256(block).hexdigest() for index, block in blocks.items()} == readable


def read_blocks(repository: Repository, version: Version) -> Iterator[tuple[int, bytes]]:
    """Yield the blocks of a version that can be read."""
    image = Image(repository, version)
    for number in range(block_count(version.size_bytes, repository.block_size)):
        index = BlockIndex(number)
        try:
            blob = image.blob(index)
            block = bytes(block_length(index, version.size_bytes, repository.block_size)) if blob is None else None
            yield number, load_block(repository.blocks, blob) if block is None and blob is not None else block or b""
        except BackyfsError:
            continue
