"""The export files of backy2: read formats 2.1, 2.2, 2.10 and 2.12, and write 2.12.

CSV with commas, minimal quoting and CRLF: a line with the format, one for the version, and one for each block in order.
An empty field is NULL. There are no tags and no statistics.
"""

from __future__ import annotations

import csv
import io
import re
from typing import TYPE_CHECKING, NamedTuple

from backyfs import values
from backyfs.engine.transfer.export_format import ExportHeader, PageRecord
from backyfs.errors import DatabaseError, ExportFormatError
from backyfs.geometry import PAGE_ENTRIES, block_count, page_count, page_length
from backyfs.metadata.db.backy2_values import parse_time
from backyfs.metadata.maps.blockmap import ABSENT, HOLE
from backyfs.model import BlobRecord, BlobUid, PageNumber, VersionRecord, VersionStatus, VersionUid
from backyfs.moments import date_text, time_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import datetime
    from typing import BinaryIO

    from backyfs.engine.transfer.export_format import EntryOfBlob, Record

_FIRST_LINE = re.compile(r"backy2 Version ([0-9.]+) metadata dump")
_WRITTEN = "2.12"
_VERSION_2_1 = ("uid", "date", "name", "size", "size_bytes", "valid")
_VERSION_2_2 = ("uid", "date", "name", "snapshot_name", "size", "size_bytes", "valid", "protected")
_BLOCK = ("uid", "version_uid", "id", "date", "checksum", "size", "valid")
_FORMATS = {  # columns of the line of the version, and of those of blocks
    "2.1": (_VERSION_2_1, _BLOCK),
    "2.2": (_VERSION_2_2, _BLOCK),
    "2.10": ((*_VERSION_2_2, "expire"), _BLOCK),
    _WRITTEN: ((*_VERSION_2_2, "expire"), (*_BLOCK, "enc_version", "enc_envkey", "enc_nonce")),
}
MAGIC = b"backy2 Version "


class ExportedBlock(NamedTuple):
    """A block to write: its number and length, and its blob; a hole has none."""

    number: int
    length: int
    blob: BlobRecord | None


def read_backy2_export(file: BinaryIO, block_size: int) -> Iterator[Record]:
    """Yield the records of an export of backy2 in a seekable file, pages and their blobs in order.

    `block_size` is that of the repository. An export does not contain its own, but it must fit.

    Raises:
        ExportFormatError: it is not an export, truncated, or has blocks of another size.
    """
    found = sum(1 for _ in _rows(file)) - 2  # lines of blocks
    file.seek(0)
    rows = _rows(file)
    first = _FIRST_LINE.fullmatch(",".join(next(rows, [])))
    if first is None or first[1] not in _FORMATS:
        raise ExportFormatError(
            f"is not an export of backy2 in a known format ({', '.join(_FORMATS)})", subject="the file"
        )
    version_columns, block_columns = _FORMATS[first[1]]
    yield ExportHeader(created_at=None, block_size=None, hash_function=None, repository=None)
    try:
        line = _fields(next(rows, []), version_columns, 2)
        count = _number(line["size"])
        # Up to 2.11 an interrupted backup had all rows, with wrong values: see metadata.schema.backy2.
        is_trusted = line["valid"] != "0" or first[1] == _WRITTEN
        version = _version(line, is_complete=is_trusted and found == count)
    except ValueError as error:
        raise ExportFormatError(f"is wrong: {error}", subject="line 2 of the export, the version,") from error
    if count != block_count(version.size_bytes, block_size):
        raise ExportFormatError(
            f"has {count} blocks for {version.size_bytes} bytes, but this repository has blocks of {block_size} bytes",
            subject="the export",
            remedy="import it into a repository with the block size of the export",
        )
    if found > count or (found < count and line["valid"] != "0"):
        raise ExportFormatError(
            f"has {found} blocks, but its version has {count}: it is truncated or assembled from others",
            subject="the export",
        )
    yield version
    yield from _pages(_blocks(rows, block_columns, version.uid, count), count, HOLE if is_trusted else ABSENT)


def write_backy2_export(file: BinaryIO, version: VersionRecord, size: int, blocks: Iterable[ExportedBlock]) -> None:
    """Write a version of `size` blocks in format 2.12; blocks that were never backed up have no line."""
    text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
    writer = csv.writer(text)
    date = time_text(version.created_at)
    valid = int(version.status is VersionStatus.VALID)
    expire = "" if version.expire_at is None else date_text(version.expire_at)
    try:
        writer.writerow([f"backy2 Version {_WRITTEN} metadata dump"])
        writer.writerow(
            [version.uid, date, version.name, version.snapshot_name, size, version.size_bytes, valid,
             int(version.protected), expire]
        )  # fmt: skip
        for number, length, blob in blocks:
            if blob is None:
                writer.writerow(["", version.uid, number, date, "", length, 1, 0, "", ""])
            else:
                checksum = "" if blob.fingerprint is None else blob.fingerprint.hex()
                key = "" if blob.wrapped_key is None else blob.wrapped_key.hex()
                writer.writerow(
                    [blob.uid, version.uid, number, date, checksum, blob.size, int(blob.valid),
                     blob.encryption_version, key, ""]
                )  # fmt: skip
    finally:
        text.detach()  # otherwise it would close the file, which may be stdout


def _rows(file: BinaryIO) -> Iterator[list[str]]:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    try:
        # `export -` ends with an empty line.
        yield from (row for row in csv.reader(text, strict=True) if row)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ExportFormatError(f"is damaged: {error}", subject="the export") from error
    finally:
        if not file.closed:  # the caller has stopped reading
            text.detach()


def _fields(row: list[str], columns: tuple[str, ...], number: int) -> dict[str, str]:
    if len(row) != len(columns):
        raise ExportFormatError(
            f"has {len(row)} fields instead of {len(columns)}: it is truncated or damaged",
            subject=f"line {number} of the export",
        )
    return dict(zip(columns, row, strict=True))


def _version(line: dict[str, str], *, is_complete: bool) -> VersionRecord:
    created_at = _time(line["date"])
    if created_at is None:
        raise ValueError("it has no date")
    expire_at = _time(line.get("expire", ""))
    status = VersionStatus.VALID if _number(line["valid"]) else VersionStatus.INVALID
    return VersionRecord(
        uid=VersionUid(values.VERSION_UID.check(line["uid"])),
        created_at=values.DATE.check(created_at),
        name=values.NAME.check(line["name"]),
        snapshot_name=values.NAME.check(line.get("snapshot_name", "")),
        size_bytes=_number(line["size_bytes"]),
        status=status if is_complete else VersionStatus.INCOMPLETE,
        protected=bool(_number(line.get("protected") or "0")),
        expire_at=None if expire_at is None else values.EXPIRY.check(expire_at),
    )


def _blocks(
    rows: Iterator[list[str]], columns: tuple[str, ...], uid: VersionUid, count: int
) -> Iterator[tuple[int, BlobRecord | None]]:
    last = -1
    for number, row in enumerate(rows, 3):
        line = _fields(row, columns, number)
        try:
            index = _number(line["id"])
            blob = _blob(line) if line["uid"] else None
        except ValueError as error:
            raise ExportFormatError(f"is wrong: {error}", subject=f"line {number} of the export, a block,") from error
        if line["version_uid"] != uid or not last < index < count:
            raise ExportFormatError(
                "is out of order or of another version", subject=f"line {number} of the export, block {index},"
            )
        last = index
        yield index, blob


def _blob(line: dict[str, str]) -> BlobRecord:
    return BlobRecord(
        uid=BlobUid(values.BLOB_UID.check(line["uid"])),
        fingerprint=values.FINGERPRINT.check(bytes.fromhex(line["checksum"])) or None,
        size=values.BLOB_SIZE.check(_number(line["size"])),
        stored_size=None,
        encryption_version=values.ENCRYPTION_VERSION.check(_number(line.get("enc_version") or "0")),
        wrapped_key=values.WRAPPED_KEY.check(bytes.fromhex(line.get("enc_envkey", ""))) or None,
        valid=_number(line["valid"]) != 0,
    )


def _pages(blocks: Iterator[tuple[int, BlobRecord | None]], count: int, hole: int) -> Iterator[Record]:
    """Yield the pages with at least one line, each after its blobs."""
    rest = next(blocks, None)
    for page in range(page_count(count)):
        start = page * PAGE_ENTRIES
        length = page_length(PageNumber(page), count)
        entries: list[EntryOfBlob] = [ABSENT] * length
        touched = False
        while rest is not None and rest[0] < start + length:
            index, blob = rest
            entries[index - start] = hole if blob is None else blob.uid
            touched = True
            if blob is not None:
                yield blob
            rest = next(blocks, None)
        if touched:
            yield PageRecord(PageNumber(page), None, tuple(entries))


def _time(text: str) -> datetime | None:
    try:
        return parse_time(text)
    except (DatabaseError, OverflowError) as error:
        raise ValueError(f"{text!r} is not a time") from error


def _number(text: str) -> int:
    if not re.fullmatch("[0-9]{1,18}", text):
        raise ValueError(f"{text!r} is not a number")
    return int(text)
