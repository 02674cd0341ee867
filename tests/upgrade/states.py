"""Databases as backy2's releases and its failed upgrades left them, made out of reference repositories.

Each state is a fixture and statements that take it there; the image data stays what EXPECTED.json says.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.upgrade.reference import Reference

if TYPE_CHECKING:
    from pathlib import Path

_NO_ROWS = "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)"
_SNAPSHOT_NAME = "ALTER TABLE versions ADD COLUMN snapshot_name VARCHAR DEFAULT '' NOT NULL"
_TAGS = (
    "CREATE TABLE tags (version_uid VARCHAR(36) NOT NULL REFERENCES versions (uid), name VARCHAR NOT NULL, "
    "PRIMARY KEY (version_uid, name))"
)
_NEW_STATS = (
    "CREATE TABLE stats (date DATETIME NOT NULL, id INTEGER NOT NULL PRIMARY KEY, version_uid VARCHAR(36), "
    "version_name VARCHAR NOT NULL, version_size_bytes BIGINT NOT NULL, version_size_blocks BIGINT NOT NULL, "
    "bytes_read BIGINT NOT NULL, blocks_read BIGINT NOT NULL, bytes_written BIGINT NOT NULL, "
    "blocks_written BIGINT NOT NULL, bytes_found_dedup BIGINT NOT NULL, blocks_found_dedup BIGINT NOT NULL, "
    "bytes_sparse BIGINT NOT NULL, blocks_sparse BIGINT NOT NULL, duration_seconds BIGINT NOT NULL)"
)
_INDEX = "CREATE INDEX ix_stats_version_uid ON stats (version_uid)"


@dataclass(frozen=True)
class State:
    """A fixture, and what is done to it."""

    fixture: str
    statements: tuple[str, ...]
    has_tags: bool = True

    def make(self, directory: Path) -> Reference:
        """Return a copy of the fixture in this state."""
        reference = Reference(self.fixture, directory)
        with closing(sqlite3.connect(reference.sqlite_file, isolation_level=None)) as connection:
            for statement in self.statements:
                connection.execute(statement)
        if not self.has_tags:
            for facts in reference.expected["versions"].values():
                facts["tags"] = []
        return reference


STATES = {
    "before 2.5.1, without deleted_blocks": State("old-prealembic-2.9.0", ("DROP TABLE deleted_blocks",)),
    "before 2.5.3, deleted_blocks by version": State(
        "old-prealembic-2.9.0",
        (
            "DROP TABLE deleted_blocks",
            ("CREATE TABLE deleted_blocks (uid VARCHAR(32), version_uid VARCHAR(36) NOT NULL, id INTEGER NOT NULL, "
            "size BIGINT, delete_candidate INTEGER NOT NULL, time BIGINT NOT NULL, PRIMARY KEY (version_uid, id))"),
        ),
    ),
    "before alembic, snapshot_name added": State("old-prealembic-2.9.0", (_NO_ROWS, _SNAPSHOT_NAME)),
    "before alembic, snapshot_name and tags added": State("old-prealembic-2.9.0", (_NO_ROWS, _SNAPSHOT_NAME, _TAGS)),
    "before alembic, an empty table of revisions": State("old-prealembic-2.9.0", (_NO_ROWS,)),
    "revision bbe7904bfc3a": State(
        "old-29c655b78818",
        ("DROP TABLE tags", "UPDATE alembic_version SET version_num = 'bbe7904bfc3a'"),
        has_tags=False,
    ),
    "29c655b78818 of the tag 2.9.18": State(
        "old-29c655b78818",
        (
            "DROP TABLE deleted_blocks",
            ("CREATE TABLE deleted_blocks (id BIGINT NOT NULL PRIMARY KEY, uid VARCHAR(32), size BIGINT, "
            "delete_candidate INTEGER NOT NULL, time BIGINT NOT NULL)"),
        ),
    ),
    "29c655b78818, expire added": State("old-29c655b78818", ("ALTER TABLE versions ADD COLUMN expire DATE",)),
    "revision 828da0fbbe8d, a DATE": State(
        "old-29c655b78818",
        (
            "ALTER TABLE versions ADD COLUMN expire DATE",
            "UPDATE alembic_version SET version_num = '828da0fbbe8d'",
        ),
    ),
    "cd3f15ae79f8, stats renamed": State("old-cd3f15ae79f8", ("ALTER TABLE stats RENAME TO stats_old",)),
    "9e0939e3bc6d, new stats, empty": State(
        "old-cd3f15ae79f8",
        (
            "ALTER TABLE stats RENAME TO stats_old",
            _NEW_STATS,
            "UPDATE alembic_version SET version_num = '9e0939e3bc6d'",
        ),
    ),
    "9e0939e3bc6d, new stats, filled": State(
        "old-cd3f15ae79f8",
        (
            "ALTER TABLE stats RENAME TO stats_old",
            _NEW_STATS,
            _INDEX,
            ("INSERT INTO stats (date, version_uid, version_name, version_size_bytes, version_size_blocks, bytes_read, "
            "blocks_read, bytes_written, blocks_written, bytes_found_dedup, blocks_found_dedup, bytes_sparse, "
            "blocks_sparse, duration_seconds) SELECT date, version_uid, version_name, version_size_bytes, "
            "version_size_blocks, bytes_read, blocks_read, bytes_written, blocks_written, bytes_found_dedup, "
            "blocks_found_dedup, bytes_sparse, blocks_sparse, duration_seconds FROM stats_old"),
            "UPDATE alembic_version SET version_num = '9e0939e3bc6d'",
        ),
    ),
    "85966fcda5e6, encryption columns added, all NULL": State(
        "old-85966fcda5e6",
        (
            "ALTER TABLE blocks ADD COLUMN enc_envkey VARCHAR(80)",
            "ALTER TABLE blocks ADD COLUMN enc_version INTEGER",
        ),
    ),
    "revision 5260034b8125": State(
        "v1-sqlite",
        ("ALTER TABLE blocks DROP COLUMN enc_nonce", "UPDATE alembic_version SET version_num = '5260034b8125'"),
    ),
    "holes with empty uid and checksum, as imported": State(
        "v0-sqlite", ("UPDATE blocks SET uid = '', checksum = '', enc_envkey = '', enc_nonce = '' WHERE uid IS NULL",)
    ),
    "the head, recorded as something older": State(
        "v0-sqlite", ("UPDATE alembic_version SET version_num = '29c655b78818'",)
    ),
    "the head, recorded as nothing": State("v1-sqlite", ("DELETE FROM alembic_version",)),
}
