"""Rows with a value that cannot be: they are noted and left out, and the others are there.

What was noted is in `Database.odd_rows`. A command that came across any ends with the status of damage.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import Column, literal_column, select

from backyfs.errors import OddValueError
from backyfs.metadata.db.batches import batches
from backyfs.values import shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection, Row, Select

_log = logging.getLogger(__name__)
_NAMING = ("uid", "version_uid", "name", "label", "command")  # columns by which people know a row
OPTION = "odd_rows"  # of connections: where they are noted


@dataclass(frozen=True, slots=True)
class OddRows:
    """The odd rows that were found so far; each is logged once."""

    messages: set[str] = field(default_factory=set)
    tables: set[str] = field(default_factory=set)

    def note(self, error: OddValueError) -> None:
        """Note a row."""
        if str(error) not in self.messages:
            self.messages.add(str(error))
            self.tables.add(error.table)
            _log.error("%s", error)


def note_odd(connection: Connection, error: OddValueError) -> None:
    """Note an odd row that the caller leaves out."""
    connection.get_execution_options().get(OPTION, OddRows()).note(error)


def sound_rows(connection: Connection, query: Select[Any], key: Column[Any]) -> list[Row[Any]]:
    """Return the rows of a query in which every value can be; note the others.

    Each row of the query is one of the table with the id `key`, which the query need not ask for. It is one query,
    unless there is an odd row.
    """
    try:
        return _read(connection, query, key)
    except OddValueError:
        ids = dict.fromkeys(connection.execute(query.with_only_columns(key)).scalars())
        return [row for batch in batches(ids) for row in _sound(connection, query, key, batch)]


def require_sound(connection: Connection, query: Select[Any], key: Column[Any]) -> list[Row[Any]]:
    """Return the rows of a query.

    Raises:
        OddValueError: one has a value that cannot be. It says which.
    """
    try:
        return _read(connection, query, key)
    except OddValueError:
        for row_id in connection.execute(query.with_only_columns(key)).scalars().all():
            try:
                _read(connection, query.where(key == row_id), key)
            except OddValueError as odd:
                raise _named(connection, odd, key, row_id) from None
        raise


def odd_ids(connection: Connection, query: Select[Any], key: Column[Any]) -> list[int]:
    """Return the ids of the rows of a query that have a value that cannot be; they are noted."""
    try:
        _read(connection, query, key)
    except OddValueError:
        ids = dict.fromkeys(connection.execute(query.with_only_columns(key)).scalars())
        return [row_id for row_id in ids if not _sound(connection, query, key, [row_id])]
    return []


def _sound(connection: Connection, query: Select[Any], key: Column[Any], ids: Sequence[int]) -> Sequence[Row[Any]]:
    """Return the sound rows of these, in the order of the query; halves find the odd ones in few queries."""
    try:
        return _read(connection, query.where(key.in_(ids)), key)
    except OddValueError as error:
        if len(ids) == 1:
            note_odd(connection, _named(connection, error, key, ids[0]))
            return []
    middle = len(ids) // 2
    return [
        *_sound(connection, query, key, ids[:middle]),
        *_sound(connection, query, key, ids[middle:]),
    ]


def _read(connection: Connection, query: Select[Any], key: Column[Any]) -> list[Row[Any]]:
    """Return the rows of a query.

    Raises:
        OddValueError: one has a value that cannot be, or lacks one that its table demands.
    """
    rows = list(connection.execute(query).all())
    if any(None in row for row in rows):
        for place, column in enumerate(query.selected_columns):
            demanded = isinstance(column, Column) and column.table is key.table and not column.nullable
            if demanded and any(row[place] is None for row in rows):
                raise OddValueError(column.table.name, column.name, "no value, and needs one")
    return rows


def _named(connection: Connection, error: OddValueError, key: Column[Any], row_id: int) -> OddValueError:
    """Return an error that also says which row it is: its id, and what else people know it by, as it is."""
    names = [name for name in _NAMING if name in key.table.columns]
    raw = select(key, *map(literal_column, names)).select_from(key.table).where(key == row_id)
    row = connection.execute(raw).one()
    known = "".join(f", {name} {shown(value)}" for name, value in zip(names, row[1:], strict=True))
    return OddValueError(error.table, error.column, error.oddity, f"row with {key.name} {shown(row_id)}{known}")
