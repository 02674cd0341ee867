"""Numbers by the ids of blobs: a plain array, or a sparse one where few of the possible ids have rows.

Ids follow each other, so an array indexed by them is small and fast. But a single row with an id of 900 million would
make it take gigabytes, and anyone who can write to the database can insert that row.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from typing import TYPE_CHECKING, TypeAlias

from sqlalchemy import func, select

from backyfs.metadata.db.tables import blobs

if TYPE_CHECKING:
    from sqlalchemy import Connection

_SMALL = 1 << 22      # ids: up to here an array is made without counting the rows
_LEAST_DENSITY = 1 / 4  # of rows among ids; a sparse array takes twice the room, and ten times as long
_ROWS_AT_ONCE = 20_000


class SparseArray:
    """Numbers by the ids that have rows: 16 bytes for each row. Other ids raise IndexError, as in an array."""

    def __init__(self, ids: array[int], kind: str, number: int = 0) -> None:
        """Give each of the ids, which rise, the same number."""
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
    """The ids that blobs have, of one state of the database."""

    def __init__(self, connection: Connection) -> None:
        """Look which ids there are; read all of them only if they are sparse."""
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
        """Whether arrays have a place only for ids with rows."""
        return self._rows is not None

    def numbers(self, kind: str, number: int = 0) -> Numbers:
        """Return an array, of a type code of `array`, in which every id has the same number."""
        if self._rows is not None:
            return SparseArray(self._rows, kind, number)
        return array(kind, [number]) * (self.highest + 1)


def highest_blob_id(connection: Connection) -> int:
    """Return the highest id that a blob has, 0 if there is none."""
    return max(0, connection.execute(select(func.max(blobs.c.id))).scalar() or 0)
