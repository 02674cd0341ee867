"""Read queries in spite of odd rows: rows with an impossible value are noted and skipped, all others are returned.

`Database.odd_rows` collects them. A command that found any ends with the exit status for damage.
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
_NAMING = ("uid", "version_uid", "name", "label", "command")  # columns by which people recognise a row
OPTION = "odd_rows"  # the execution option of connections that contains the OddRows


@dataclass(frozen=True, slots=True)
class OddRows:
    """The odd rows found so far. Each is logged once."""

    messages: set[str] = field(default_factory=set)
    tables: set[str] = field(default_factory=set)

    def note(self, error: OddValueError) -> None:
        """Add a row, and log it unless it is already known."""
        if str(error) not in self.messages:
            self.messages.add(str(error))
            self.tables.add(error.table)
            _log.error("%s", error)


def note_odd(connection: Connection, error: OddValueError) -> None:
    """Note an odd row that the caller skips."""
    connection.get_execution_options().get(OPTION, OddRows()).note(error)


def sound_rows(connection: Connection, query: Select[Any], key: Column[Any]) -> list[Row[Any]]:
    """Return the rows of a query whose values are all possible; note the others.

    Each result row belongs to one row of the table of `key`, its id column, which need not be selected. This runs one
    query unless there is an odd row.
    """
    try:
        return _read(connection, query, key)
    except OddValueError:
        ids = dict.fromkeys(connection.execute(query.with_only_columns(key)).scalars())
        return [row for batch in batches(ids) for row in _sound(connection, query, key, batch)]


def require_sound(connection: Connection, query: Select[Any], key: Column[Any]) -> list[Row[Any]]:
    """Return the rows of a query.

    Raises:
        OddValueError: a row has an impossible value. The error says which row.
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
    """Return the ids of the odd rows of a query, and note them."""
    try:
        _read(connection, query, key)
    except OddValueError:
        ids = dict.fromkeys(connection.execute(query.with_only_columns(key)).scalars())
        return [row_id for row_id in ids if not _sound(connection, query, key, [row_id])]
    return []


def _sound(connection: Connection, query: Select[Any], key: Column[Any], ids: Sequence[int]) -> Sequence[Row[Any]]:
    """Return the sound rows with these ids, in the order of the query. Bisection finds odd ones with few queries."""
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
        OddValueError: a row has an impossible value, or NULL in a column that its table requires.
    """
    rows = list(connection.execute(query).all())
    if any(None in row for row in rows):
        for place, column in enumerate(query.selected_columns):
            demanded = isinstance(column, Column) and column.table is key.table and not column.nullable
            if demanded and any(row[place] is None for row in rows):
                raise OddValueError(column.table.name, column.name, "NULL, which is not allowed")
    return rows


def _named(connection: Connection, error: OddValueError, key: Column[Any], row_id: int) -> OddValueError:
    """Return the error with the identity of the row: its id, and the raw columns by which people recognise it."""
    names = [name for name in _NAMING if name in key.table.columns]
    raw = select(key, *map(literal_column, names)).select_from(key.table).where(key == row_id)
    row = connection.execute(raw).one()
    known = "".join(f", {name} {shown(value)}" for name, value in zip(names, row[1:], strict=True))
    return OddValueError(error.table, error.column, error.oddity, f"row with {key.name} {shown(row_id)}{known}")
