"""Keep a number per blob id: in a plain array, or in a sparse one if few of the possible ids have rows.

Ids are normally consecutive, so an array indexed by them is small and fast. But a single row with id 900,000,000 would
make it take gigabytes, and anyone who can write to the database can insert such a row.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from typing import TYPE_CHECKING, TypeAlias

from sqlalchemy import func, select

from backyfs.metadata.db.tables import blobs

if TYPE_CHECKING:
    from sqlalchemy import Connection

_SMALL = 1 << 22      # up to this id, make a plain array without counting the rows
_LEAST_DENSITY = 1 / 4  # rows per id; a sparse array takes twice the memory and ten times as long
_ROWS_AT_ONCE = 20_000


class SparseArray:
    """A number for each id that has a row, in 16 bytes per row. Other ids raise IndexError, as in an array."""

    def __init__(self, ids: array[int], kind: str, number: int = 0) -> None:
        """Set the number of each of these ascending ids."""
        self._ids = ids
        self._numbers = array(kind, [number]) * len(ids)

    def __getitem__(self, row_id: int) -> int:
        return self._numbers[self._place(row_id)]

    def __setitem__(self, row_id: int, number: int) -> None:
        self._numbers[self._place(row_id)] = number

    def _place(self, row_id: int) -> int:
        place = bisect_left(self._ids, row_id)
        if place == len(self._ids) or self._ids[place] != row_id:
            raise IndexError(row_id)
        return place


Numbers: TypeAlias = "array[int] | SparseArray"


class BlobIds:
    """The ids of all blobs in one snapshot of the database."""

    def __init__(self, connection: Connection) -> None:
        """Find the highest id. Read all ids only if they are sparse."""
        self.highest = highest_blob_id(connection)
        self._rows: array[int] | None = None
        if self.highest >= _SMALL:
            count = connection.execute(select(func.count()).select_from(blobs)).scalar_one()
            if count < self.highest * _LEAST_DENSITY:
                query = select(blobs.c.id).where(blobs.c.id > 0).order_by(blobs.c.id)
                rows = connection.execute(query.execution_options(yield_per=_ROWS_AT_ONCE)).scalars()
                self._rows = array("q", rows)

    @property
    def is_sparse(self) -> bool:
        """Whether arrays only have entries for ids with rows."""
        return self._rows is not None

    def numbers(self, kind: str, number: int = 0) -> Numbers:
        """Return an array with the type code `kind` in which every id has the same number."""
        if self._rows is not None:
            return SparseArray(self._rows, kind, number)
        return array(kind, [number]) * (self.highest + 1)


def highest_blob_id(connection: Connection) -> int:
    """Return the highest id of a blob; 0 if there are no blobs."""
    return max(0, connection.execute(select(func.max(blobs.c.id))).scalar() or 0)
