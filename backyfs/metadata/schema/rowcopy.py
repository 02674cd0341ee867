"""Copy all rows of one database to another, on any engines, and compare the two."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from blake3 import blake3
from sqlalchemy import insert, select, tuple_

from backyfs.errors import DatabaseError
from backyfs.metadata.db.database import continue_ids
from backyfs.metadata.db.oddrows import require_sound
from backyfs.metadata.db.tables import job_versions, jobs, metadata

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Column, Connection, Select, Table

_ROWS = 512  # per query
_NOT_COPIED = (jobs, job_versions)  # commands running on the source database


def copied_tables() -> list[Table]:
    """Return the tables whose rows are copied, referenced tables first."""
    return [table for table in metadata.sorted_tables if table not in _NOT_COPIED]


def copy_rows(source: Connection, target: Connection, table: Table) -> tuple[int, bytes]:
    """Copy the rows of a table with their ids; return their number and digest."""
    digest = blake3()
    count = 0
    for rows in _batches(source, table):
        target.execute(insert(table), [dict(row) for row in rows])
        _update(digest, rows)
        count += len(rows)
    continue_ids(target, table)
    return count, digest.digest()


def digest_rows(connection: Connection, table: Table) -> tuple[int, bytes]:
    """Return the number of rows of a table and their digest. On all engines, equal rows have the same digest."""
    digest = blake3()
    count = 0
    for rows in _batches(connection, table):
        _update(digest, rows)
        count += len(rows)
    return count, digest.digest()


def _batches(connection: Connection, table: Table) -> Iterator[list[Any]]:
    """Yield all rows in batches, ordered by primary key."""
    key = list(table.primary_key.columns)
    query = select(table).order_by(*key).limit(_ROWS)
    rows = _rows(connection, query, key)
    while rows:
        yield rows
        last = tuple(rows[-1][column.name] for column in key)
        # The first condition is for MariaDB, which otherwise compares the tuple with every row from the start.
        rows = _rows(connection, query.where(key[0] >= last[0], tuple_(*key) > last), key)


def _rows(connection: Connection, query: Select[Any], key: list[Column[Any]]) -> list[Any]:
    if len(key) > 1:
        return list(connection.execute(query).mappings())
    return [row._mapping for row in require_sound(connection, query, key[0])]  # noqa: SLF001 - public in SQLAlchemy


def _update(digest: blake3, rows: list[Any]) -> None:
    for row in rows:
        for name, value in row.items():
            digest.update(f"{name}={value!r}\n".encode(errors="surrogatepass"))


def require_equal(name: str, expected: tuple[int, bytes], found: tuple[int, bytes]) -> None:
    """Compare number and digest of the rows that were read with those in the copy.

    Raises:
        DatabaseError: they differ.
    """
    if expected != found:
        raise DatabaseError(
            f"differs from its original: {found[0]} rows instead of {expected[0]}", subject=f"the copy of {name}"
        )
