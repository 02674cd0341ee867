"""Read the tables of backy2, of any release and in any state in which a failed upgrade left them.

The schema is taken from databases of backy2 2.2 to 2.13.8. A missing column counts as having the value it was
introduced with. This module does not write.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import inspect, text

from backyfs import values
from backyfs.errors import DatabaseError
from backyfs.geometry import block_count, block_length
from backyfs.metadata.db.backy2_values import (
    created_at_of,
    digits_of,
    name_of,
    number_of,
    parse_time,
    text_of,
    unix_time_of,
    valid_or,
)
from backyfs.model import BlobRecord, BlobUid, BlockIndex, StatisticsRecord, VersionRecord, VersionStatus, VersionUid
from backyfs.values import obeys, shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection

_BATCH = 512
_BLOCK_COLUMNS = ("uid", "id", "checksum", "size", "valid", "enc_version", "enc_envkey")
_WRAPPED_KEY_BYTES = 40  # for a key of 32 bytes, RFC 3394
_NO_UID = VersionUid("unknown")  # replaces an unusable uid in statistics
_LARGEST_ID = (1 << 63) - 1  # SQLite sorts text and bytes after all numbers
# Fields of statistics and their columns.
_STATISTICS = {
    "version_size_bytes": "version_size_bytes",
    "version_size_blocks": "version_size_blocks",
    "bytes_read": "bytes_read",
    "blocks_read": "blocks_read",
    "bytes_written": "bytes_written",
    "blocks_written": "blocks_written",
    "bytes_deduplicated": "bytes_found_dedup",
    "blocks_deduplicated": "blocks_found_dedup",
    "bytes_sparse": "bytes_sparse",
    "blocks_sparse": "blocks_sparse",
}
_log = logging.getLogger(__name__)


class Backy2Block(NamedTuple):
    """A row of `blocks`; a tuple, because there are millions."""

    number: int              # of the block within its image
    blob: BlobRecord | None  # None: a hole
    size: int | None
    usable: bool             # False: the row has impossible values


@dataclass(frozen=True, slots=True, kw_only=True)
class Backy2Version:
    """A row of `versions`, with its state as derived from its blocks."""

    record: VersionRecord
    blocks: int              # according to its size
    holes_are_known: bool    # False: a block without a blob may never have been backed up


@dataclass(frozen=True, slots=True, kw_only=True)
class RowCounts:
    """Numbers of rows of `blocks` for one version."""

    rows: int
    with_blob: int
    invalid: int


class Backy2Database:
    """The tables of backy2 in an open transaction, renamed (with a prefix) or not."""

    def __init__(self, connection: Connection, block_size: int, *, prefix: str = "") -> None:
        """Find out which tables and columns exist.

        `block_size` is from the configuration, because backy2 did not store it.
        """
        self.is_aside = bool(prefix)
        self._connection = connection
        self._block_size = block_size
        inspector = inspect(connection)
        self._columns = {
            name: {column["name"] for column in inspector.get_columns(prefix + name)}
            for name in ("versions", "blocks", "tags", "stats", "stats_old", "deleted_blocks")
            if inspector.has_table(prefix + name)
        }
        self._names = {name: prefix + name for name in self._columns}
        present = [name for name in _BLOCK_COLUMNS if name in self._columns["blocks"]]
        self._blocks_query = text(
            f"SELECT {', '.join(present)} FROM {self._names['blocks']} "  # noqa: S608 - names of ours
            "WHERE version_uid = :uid AND id >= :start AND id < :stop ORDER BY id"
        )

    @property
    def revision(self) -> str:
        """The newest revision of backy2 whose changes are all present, judging by tables and columns."""
        versions, blocks = self._columns["versions"], self._columns["blocks"]
        # Each revision and a sign of it, the newest first.
        signs = (
            ("30349b678801", "enc_nonce" in blocks),
            ("5260034b8125", {"enc_version", "enc_envkey"} <= blocks),
            ("85966fcda5e6", "id" in self._columns.get("stats", ()) and "stats_old" not in self._columns),
            ("9e0939e3bc6d", "stats_old" in self._columns),
            ("828da0fbbe8d", "expire" in versions),
            ("29c655b78818", "tags" in self._columns),
            ("bbe7904bfc3a", "snapshot_name" in versions),
        )
        return next((revision for revision, present in signs if present), "before alembic")

    def version_uids(self) -> list[VersionUid]:
        """Return the uids of all versions, the oldest first."""
        rows = self._rows(f"SELECT uid FROM {self._names['versions']} ORDER BY date, uid")  # noqa: S608
        return [VersionUid(row.uid) for row in rows]

    def count_versions(self) -> int:
        """Return the number of versions."""
        return int(self._scalar(f"SELECT count(*) FROM {self._names['versions']}"))  # noqa: S608

    def count_blocks(self) -> int:
        """Return the number of rows of `blocks`, including those without a version."""
        return int(self._scalar(f"SELECT count(*) FROM {self._names['blocks']}"))  # noqa: S608

    def version(self, uid: VersionUid) -> Backy2Version:
        """Return a version. Its status is derived from its rows, because `valid = 0` has several meanings."""
        row = self._rows(f"SELECT * FROM {self._names['versions']} WHERE uid = :uid", uid=uid)[0]._mapping  # noqa: S608, SLF001
        size_bytes = number_of(row["size_bytes"]) or 0  # `check_versions` has made sure that it is a number
        blocks = block_count(size_bytes, self._block_size)
        counts = self.count_rows(uid, blocks)
        is_valid = bool(number_of(row["valid"]))
        ended = is_valid or counts.invalid > 0 or self._has_statistics(row)
        if counts.rows < blocks or not ended:
            status = VersionStatus.INCOMPLETE
        else:
            status = VersionStatus.VALID if is_valid else VersionStatus.INVALID
        return Backy2Version(
            record=VersionRecord(
                uid=uid,
                created_at=created_at_of(uid, _time_or_none(uid, row["date"])),
                name=name_of(row["name"]),
                snapshot_name=name_of(row.get("snapshot_name")),
                size_bytes=size_bytes,
                status=status,
                protected=number_of(row.get("protected") or 0) != 0,  # a value that is not a number protects too
                expire_at=_time_or_none(uid, row.get("expire")),
                tags=self._tags(uid),
            ),
            blocks=blocks,
            # Since 2.11, a row is inserted when its block is stored. Before, all rows were inserted at the start.
            holes_are_known=ended or (counts.rows < blocks and not self._is_of_before_2_11),
        )

    def count_rows(self, uid: VersionUid, blocks: int) -> RowCounts:
        """Count the rows of a version with numbers below `blocks`."""
        query = (
            "SELECT count(*) AS n, count(CASE WHEN uid <> '' THEN 1 END) AS b, "  # noqa: S608
            "count(CASE WHEN valid = 0 THEN 1 END) AS i "
            f"FROM {self._names['blocks']} WHERE version_uid = :uid AND id >= 0 AND id < :blocks"
        )
        row = self._rows(query, uid=uid, blocks=blocks)[0]
        return RowCounts(rows=row.n, with_blob=row.b, invalid=row.i)

    def blocks(self, uid: VersionUid, start: int, stop: int) -> Iterator[Backy2Block]:
        """Yield the blocks of a version with numbers in [start, stop) that have rows, in order."""
        result = self._connection.execute(self._blocks_query, {"uid": uid, "start": start, "stop": stop})
        names = tuple(result.keys())
        for row in result:
            yield _block(dict(zip(names, row, strict=True)))

    def fits(self, version: Backy2Version, block: Backy2Block) -> bool:
        """Return whether a row can be the block with its number: a hole, or a blob with a possible size and uid."""
        if not block.usable:
            return False
        length = block_length(BlockIndex(block.number), version.record.size_bytes, self._block_size)
        return block.blob is None or block.size == length

    def orphans(self) -> Iterator[Backy2Block]:
        """Yield the blocks without a version. Nothing reads them, and a cleanup must remove their blobs."""
        blocks, versions = self._names["blocks"], self._names["versions"]
        strays = self._rows(
            f"SELECT DISTINCT version_uid AS uid FROM {blocks} b "  # noqa: S608
            f"WHERE NOT EXISTS (SELECT 1 FROM {versions} v WHERE v.uid = b.version_uid)"
        )
        for stray in strays:
            query = f"SELECT min(id) FROM {blocks} WHERE version_uid = :uid AND id >= :start AND id < :stop"  # noqa: S608
            start = 0
            while (first := self._scalar(query, uid=stray.uid, start=start, stop=_LARGEST_ID)) is not None:
                start = int(first) + _BATCH
                yield from self.blocks(stray.uid, int(first), start)

    def deleted_blobs(self) -> Iterator[tuple[BlobUid, int, datetime]]:
        """Yield uid, plain size and time of each blob that backy2 was about to delete. Blobs can be repeated."""
        if "deleted_blocks" not in self._columns:
            return
        last: tuple[int, object] = (-_LARGEST_ID, "")
        query = (
            f"SELECT id, uid, size, time FROM {self._names['deleted_blocks']} "  # noqa: S608
            f"WHERE uid <> '' AND (id > :id OR id = :id AND uid > :uid) ORDER BY id, uid LIMIT {_BATCH}"
        )
        while rows := self._rows(query, id=last[0], uid=last[1]):
            for row in rows:
                if obeys(values.BLOB_UID, row.uid):
                    yield BlobUid(row.uid), valid_or(values.BLOB_SIZE, number_of(row.size), 0), unix_time_of(row.time)
            last = (rows[-1].id, rows[-1].uid)

    def statistics(self) -> Iterator[StatisticsRecord]:
        """Yield the statistics of all finished backups by id, a column that the last revisions have added."""
        last = -_LARGEST_ID
        query = (
            f"SELECT {self._time_in_utc()} AS utc, s.* FROM {self._names['stats']} s "  # noqa: S608
            f"WHERE id > :last ORDER BY id LIMIT {_BATCH}"
        )
        while rows := self._rows(query, last=last):
            yield from (_statistics(row._mapping) for row in rows)  # noqa: SLF001 - public in SQLAlchemy
            last = rows[-1].id

    def count_statistics(self) -> int:
        """Return the number of rows of statistics."""
        return int(self._scalar(f"SELECT count(*) FROM {self._names['stats']}"))  # noqa: S608

    def statistics_of(self, uid: VersionUid) -> list[StatisticsRecord]:
        """Return the statistics of a version, the oldest first, in any state of the tables."""
        records = {}
        for name in ("stats_old", "stats"):  # both exist if an upgrade failed between two steps
            if name in self._columns:
                query = f"SELECT {self._time_in_utc()} AS utc, s.* FROM {self._names[name]} s WHERE version_uid = :uid"  # noqa: S608
                for row in self._rows(query, uid=uid):
                    record = _statistics(row._mapping)  # noqa: SLF001 - public in SQLAlchemy
                    records[record.created_at] = record
        return sorted(records.values(), key=lambda record: record.created_at)

    def block_sizes(self) -> tuple[int, int]:
        """Return the largest size of a block with a blob (0 if there is none), and the number of such blocks."""
        # SQLite considers values that are not numbers larger than all numbers.
        numbers = f"max(CASE WHEN size <= {_LARGEST_ID} THEN size END)"
        row = self._rows(f"SELECT {numbers} AS m, count(*) AS n FROM {self._names['blocks']} WHERE uid <> ''")[0]  # noqa: S608
        return int(row.m or 0), row.n

    def check_versions(self) -> None:
        """Check uid and size of each version, which cannot be derived from other rows.

        Raises:
            DatabaseError: a row has an impossible uid or size.
        """
        for row in self._version_rows():
            if not obeys(values.VERSION_UID, row["uid"]):
                raise _unusable(row, "uid", "the uid of a version")
            for column in ("size", "size_bytes"):
                number = number_of(row[column])
                if number is None or number < 0:
                    raise _unusable(row, column, "a size")

    def odd_version(self) -> str | None:
        """Return the name of a version whose number of blocks does not match the block size; None if there is none."""
        for row in self._version_rows():
            if number_of(row["size"]) != block_count(number_of(row["size_bytes"]) or 0, self._block_size):
                return text_of(row["name"])
        return None

    def _version_rows(self) -> list[Any]:
        return [row._mapping for row in self._rows(f"SELECT * FROM {self._names['versions']} ORDER BY date, uid")]  # noqa: S608, SLF001

    def checksum_lengths(self) -> set[int]:
        """Return the lengths of the checksums in digits."""
        rows = self._rows(
            f"SELECT DISTINCT length(checksum) AS digits FROM {self._names['blocks']} WHERE checksum <> ''"  # noqa: S608
        )
        return {row.digits for row in rows}

    def sample_blob_uids(self, count: int) -> list[BlobUid]:
        """Return the uids of up to `count` blobs that blocks refer to."""
        rows = self._rows(f"SELECT DISTINCT uid FROM {self._names['blocks']} WHERE uid <> '' LIMIT {int(count)}")  # noqa: S608
        return [BlobUid(row.uid) for row in rows if obeys(values.BLOB_UID, row.uid)]

    def wrapped_key(self) -> bytes | None:
        """Return a wrapped data key from the blocks that were inserted last; None if there is none."""
        if "enc_envkey" not in self._columns["blocks"]:
            return None
        rows = self._rows(
            f"SELECT enc_envkey FROM {self._names['blocks']} WHERE enc_envkey <> '' "  # noqa: S608
            f"ORDER BY date DESC LIMIT {_BATCH}"
        )
        return next((key for row in rows if (key := digits_of(row.enc_envkey)) is not None), None)

    @property
    def _is_of_before_2_11(self) -> bool:
        noted = "backyfs_ended" in self._columns["versions"]  # added by our version of revision 85966fcda5e6
        return noted or "stats_old" in self._columns or "id" not in self._columns.get("stats", {"id"})

    def _has_statistics(self, version: Any) -> bool:
        """Return whether the backup of a version has finished: statistics were written only then."""
        if "backyfs_ended" in version:
            return bool(version["backyfs_ended"])
        return any(
            self._rows(f"SELECT 1 AS one FROM {self._names[name]} WHERE version_uid = :uid", uid=version["uid"])  # noqa: S608
            for name in ("stats_old", "stats")
            if name in self._columns
        )

    def _tags(self, uid: VersionUid) -> tuple[str, ...]:
        if "tags" not in self._columns:
            return ()
        rows = self._rows(f"SELECT name FROM {self._names['tags']} WHERE version_uid = :uid", uid=uid)  # noqa: S608
        return tuple(sorted({name_of(row.name) for row in rows} - {""}))

    def _time_in_utc(self) -> str:
        """Return an SQL expression for the date of statistics in UTC. It was stored in the zone of the session."""
        match self._connection.dialect.name:
            case "postgresql":
                return "s.date AT TIME ZONE current_setting('TimeZone') AT TIME ZONE 'UTC'"
            case "mysql":
                return "COALESCE(CONVERT_TZ(s.date, @@session.time_zone, '+00:00'), s.date)"
            case _:
                return "s.date"

    def _rows(self, query: str, **parameters: object) -> list[Any]:
        return list(self._connection.execute(text(query), parameters))

    def _scalar(self, query: str, **parameters: object) -> Any:
        return self._connection.execute(text(query), parameters).scalar()


def _unusable(row: Any, column: str, wanted: str) -> DatabaseError:
    uid, name, day, value = (shown(row[key]) for key in ("uid", "name", "date", column))
    return DatabaseError(
        f"column {column} has {value}, which is not {wanted}. Nothing was changed",
        subject=f"table versions, row with uid {uid}, name {name} and date {day}:",
        remedy="correct it, or delete the row if that version is not needed, and run the command again",
    )


def _block(row: dict[str, Any]) -> Backy2Block:
    number, uid, size = row["id"], row["uid"], row["size"]
    if not isinstance(number, int):
        return Backy2Block(number, None, None, usable=False)
    if uid is None or uid == "":  # NULL; '' after an import by releases before 2.12.7
        return Backy2Block(number, None, number_of(size), usable=True)
    encryption_version = number_of(row.get("enc_version") or 0)
    wrapped_key = digits_of(row.get("enc_envkey"))
    if wrapped_key is not None and len(wrapped_key) != _WRAPPED_KEY_BYTES:
        wrapped_key = None
    fingerprint = digits_of(row["checksum"])
    usable = (
        obeys(values.BLOB_UID, uid)
        and obeys(values.BLOB_SIZE, size)
        and size > 0
        and (fingerprint is None or obeys(values.FINGERPRINT, fingerprint))
        and (encryption_version == 0 or (encryption_version == 1 and wrapped_key is not None))
    )
    if not usable:
        return Backy2Block(number, None, number_of(size), usable=False)
    blob = BlobRecord(
        uid=uid,
        fingerprint=fingerprint,
        size=size,
        stored_size=None,
        encryption_version=encryption_version or 0,
        wrapped_key=wrapped_key,
        valid=row["valid"] is None or bool(number_of(row["valid"])),
    )
    return Backy2Block(number, blob, size, usable=True)


def _time_or_none(uid: VersionUid, value: object) -> datetime | None:
    """Return a time. An impossible one, such as `0000-00-00`, is dropped with a warning; its backup is kept."""
    try:
        time = parse_time(value)
        return None if time is None else values.EXPIRY.check(time)
    except (DatabaseError, ValueError) as error:
        _log.warning("version %s: %s; the time is dropped", uid, error)
        return None


def _statistics(row: Any) -> StatisticsRecord:
    """Return statistics. They only inform, so an impossible value becomes 0 and does not stop an upgrade."""
    uid = VersionUid(text_of(row["version_uid"]))
    date = _time_or_none(uid, row["utc"])
    return StatisticsRecord(
        created_at=valid_or(values.DATE, date, datetime.fromtimestamp(0, UTC)),
        version_uid=valid_or(values.VERSION_UID, uid, _NO_UID),
        version_name=name_of(row["version_name"]),
        bytes_stored=None,
        duration_s=valid_or(values.DURATION, number_of(row["duration_seconds"]), 0),
        **{field: valid_or(values.COUNT, number_of(row[column]), 0) for field, column in _STATISTICS.items()},
    )
