"""Load the rows of many blobs by columns, as the catalog stores them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import NoneType
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy import select

from backyfs import values
from backyfs.metadata.db.batches import batches
from backyfs.metadata.db.oddrows import require_sound
from backyfs.metadata.db.tables import blobs
from backyfs.values import obeys

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from sqlalchemy import Connection

_T = TypeVar("_T")
_UIDS = re.compile("[0-9A-Za-z]{5,32}( [0-9A-Za-z]{5,32})*")  # see values.BLOB_UID


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobColumns:
    """The rows of some blobs, by columns: creating a thousand Python objects takes longer than storing the columns."""

    ids: tuple[int, ...]
    uids: tuple[str, ...]
    fingerprints: tuple[bytes | None, ...]
    sizes: tuple[int, ...]
    stored_sizes: tuple[int | None, ...]
    encryption_versions: tuple[int, ...]
    wrapped_keys: tuple[bytes | None, ...]
    valid: tuple[bool, ...]

    def in_order(self, ids: Iterable[int]) -> BlobColumns:
        """Return the same rows in another order."""
        places = {blob_id: place for place, blob_id in enumerate(self.ids)}
        wanted = [places[blob_id] for blob_id in ids]
        return BlobColumns(
            ids=_pick(self.ids, wanted),
            uids=_pick(self.uids, wanted),
            fingerprints=_pick(self.fingerprints, wanted),
            sizes=_pick(self.sizes, wanted),
            stored_sizes=_pick(self.stored_sizes, wanted),
            encryption_versions=_pick(self.encryption_versions, wanted),
            wrapped_keys=_pick(self.wrapped_keys, wanted),
            valid=_pick(self.valid, wanted),
        )


NO_BLOBS = BlobColumns(
    ids=(),
    uids=(),
    fingerprints=(),
    sizes=(),
    stored_sizes=(),
    encryption_versions=(),
    wrapped_keys=(),
    valid=(),
)


def load_blob_columns(connection: Connection, blob_ids: Collection[int]) -> BlobColumns:
    """Return the rows of these blobs, ordered by id. Missing rows are skipped.

    Raises:
        OddValueError: a row has an impossible value.
    """
    if not blob_ids:
        return NO_BLOBS
    # Ids are part of the statement, and values are taken from the driver unconverted: otherwise a page took three times
    # as long. The ids of a first backup are consecutive.
    first, last = min(blob_ids), max(blob_ids)
    is_range = last - first < 2 * len(blob_ids)
    where = f"BETWEEN {first:d} AND {last:d}" if is_range else f"IN ({','.join(map(str, sorted(blob_ids)))})"
    query = (
        "SELECT id, uid, fingerprint, size, stored_size, encryption_version, wrapped_key, valid "  # noqa: S608
        f"FROM blobs WHERE id {where} ORDER BY id"
    )
    rows = connection.exec_driver_sql(query).all()
    if last - first >= len(blob_ids):
        rows = [row for row in rows if row[0] in blob_ids]
    if not rows:
        return NO_BLOBS
    ids, uids, fingerprints, sizes, stored_sizes, encryption_versions, wrapped_keys, valid = zip(*rows, strict=True)
    found = BlobColumns(
        ids=ids,
        uids=uids,
        fingerprints=fingerprints,
        sizes=sizes,
        stored_sizes=stored_sizes,
        encryption_versions=encryption_versions,
        wrapped_keys=wrapped_keys,
        valid=valid,
    )
    if not _all_obey(found):
        for batch in batches(ids):
            require_sound(connection, select(blobs).where(blobs.c.id.in_(batch)), blobs.c.id)
    return found


def _all_obey(found: BlobColumns) -> bool:
    """Return whether all values obey their rules. Checking value by value would take as long as reading them."""
    numbers: tuple[tuple[Sequence[int], values.Number], ...] = (
        (found.sizes, values.BLOB_SIZE),
        (found.encryption_versions, values.ENCRYPTION_VERSION),
        ([size for size in found.stored_sizes if size is not None], values.SIZE),
    )
    contents = (
        (found.fingerprints, values.FINGERPRINT),
        (found.wrapped_keys, values.WRAPPED_KEY),
    )
    return (
        set(map(type, found.uids)) == {str}
        and _UIDS.fullmatch(" ".join(found.uids)) is not None
        and all(
            set(map(type, column)) <= {int} and all(obeys(rule, edge(column)) for edge in (min, max) if column)
            for column, rule in numbers
        )
        and all(
            set(map(type, column)) <= {bytes, NoneType} and max(map(len, filter(None, column)), default=0) <= rule.most
            for column, rule in contents
        )
        and set(found.valid) <= {0, 1}
    )


def _pick(column: tuple[_T, ...], places: Iterable[int]) -> tuple[_T, ...]:
    return tuple(column[place] for place in places)
