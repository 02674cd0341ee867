"""The export format: versions with all their metadata in a file that needs no database to be read.

    zstd frame of lines, each one JSON object with one key, in UTF-8:
    {"backyfs_export": {"format": 1, "created_at", "block_size", "hash_function", "repository": {...} or null}}
    then for each version
      {"version": {"uid", "created_at", "name", "snapshot_name", "size_bytes", "status", "protected", "expire_at",
                   "tags"}}
      {"statistics": {...}}                for each backup of it that ended
      {"blob": [uid, size, fingerprint, encryption_version, wrapped_key, stored_size, valid]}
                                           before the first page that names it; it may be repeated
      {"page": {"number", "id", "entries"}}   entries: uid of a blob, 0 a hole, -1 never backed up
      {"page": {"number", "same_as"}}         the entries of an earlier page, by its id
    {"end": {"versions", "lines", "digest"}}   BLAKE3 of all lines before

A page is 1,024 blocks. One that is left out is holes, in an incomplete version blocks that were never backed
up. Times are ISO 8601 in UTC, keys and fingerprints hexadecimal. See docs/reference/format.md.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, TypeAlias

import zstandard
from blake3 import blake3

from backyfs import values
from backyfs.errors import ExportFormatError
from backyfs.geometry import PAGE_ENTRIES
from backyfs.jsontext import Fields, key_slot, raw_bytes, read_json, statistics_record, version_record, write_json
from backyfs.model import BlobRecord, BlobUid, KeySlot, PageNumber, StatisticsRecord, VersionRecord

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime
    from typing import BinaryIO

FORMAT = 1
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_LEVEL = 3
_MAX_LINE = 1 << 20  # bytes; a page has 40 KiB
_BLOB_FIELDS = 7
_MAX_SLOTS = 256
_READ = 1 << 10      # compressed bytes at a time: a hostile file can expand each to 32,768

EntryOfBlob: TypeAlias = "BlobUid | int"  # an int is blockmap.HOLE or blockmap.ABSENT


@dataclass(frozen=True, slots=True, kw_only=True)
class RepositoryRecord:
    """What an export says about its repository. The keys are wrapped."""

    uid: str
    wrapped_fingerprint_key: bytes | None
    key_slots: tuple[KeySlot, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportHeader:
    """The beginning of an export. None: not specified."""

    created_at: datetime | None
    block_size: int | None
    hash_function: str | None
    repository: RepositoryRecord | None


@dataclass(frozen=True, slots=True)
class PageRecord:
    """A page of the version before it."""

    number: PageNumber
    id: int | None  # for references by later pages
    entries: tuple[EntryOfBlob, ...]


@dataclass(frozen=True, slots=True)
class SharedPageRecord:
    """A page that an earlier version also has."""

    number: PageNumber
    same_as: int


Record: TypeAlias = ExportHeader | VersionRecord | StatisticsRecord | BlobRecord | PageRecord | SharedPageRecord


class ExportWriter:
    """Writes an export, line by line. It is complete only after `end`."""

    def __init__(self, file: BinaryIO, header: ExportHeader) -> None:
        """Begin an export; the caller closes the file."""
        self._stream = zstandard.ZstdCompressor(level=_LEVEL).stream_writer(file, closefd=False)
        self._digest = blake3()
        self._lines = 0
        self._versions = 0
        self._write("backyfs_export", {"format": FORMAT, **asdict(header)})

    def write(self, record: Record) -> None:
        """Write one record; the caller ensures the order."""
        match record:
            case VersionRecord():
                self._versions += 1
                self._write("version", asdict(record))
            case StatisticsRecord():
                self._write("statistics", asdict(record))
            case BlobRecord():
                self._write("blob", _blob_fields(record))
            case PageRecord():
                self._write("page", {"number": record.number, "id": record.id, "entries": record.entries})
            case SharedPageRecord():
                self._write("page", {"number": record.number, "same_as": record.same_as})
            case ExportHeader():
                raise AssertionError("an export has one header")

    def end(self) -> None:
        """Write the last line and finish the zstd frame."""
        end = {"versions": self._versions, "lines": self._lines, "digest": self._digest.hexdigest()}
        self._write("end", end)
        self._stream.close()  # type: ignore[no-untyped-call]

    def _write(self, key: str, value: object) -> None:
        line = write_json({key: value}) + b"\n"
        self._digest.update(line)
        self._lines += 1
        self._stream.write(line)


def read_export(file: BinaryIO) -> Iterator[Record]:
    """Yield the records of an export, the header first. Its end has been checked when this ends.

    Raises:
        ExportFormatError: the file is not an export, is truncated or damaged, or its format is newer.
    """
    digest = blake3()
    versions = number = 0
    lines = _lines(file)
    for number, line in enumerate(lines, 1):
        key, value = _parse(line, number)
        if number == 1:
            yield _header(key, value)
        elif key == "end":
            if value != {"versions": versions, "lines": number - 1, "digest": digest.hexdigest()}:
                raise ExportFormatError("is damaged: its last line does not fit the others", subject="the export")
            if next(lines, None) is not None:
                raise ExportFormatError("has something after its end", subject="the export")
            return
        else:
            versions += key == "version"
            yield _record(key, value, number)
        digest.update(line)
    raise ExportFormatError(f"is truncated: it has no last line, after {number} lines", subject="the export")


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield the lines of a zstd frame, after which the file ends."""
    frame = zstandard.ZstdDecompressor().decompressobj()
    buffer = b""
    try:
        while not frame.eof and (chunk := file.read(_READ)):
            *lines, buffer = (buffer + frame.decompress(chunk)).split(b"\n")
            if max(map(len, (*lines, buffer))) > _MAX_LINE:
                raise ExportFormatError("is damaged: it has a line of more than 1 MiB", subject="the export")
            for line in lines:
                yield line + b"\n"
    except zstandard.ZstdError as error:
        raise ExportFormatError(f"is damaged: {error}", subject="the export") from error
    if not frame.eof:
        raise ExportFormatError("is truncated: it ends within its zstd frame", subject="the export")
    if buffer or frame.unused_data or file.read(1):
        raise ExportFormatError("has something after its end", subject="the export")


def _parse(line: bytes, number: int) -> tuple[str, Any]:
    try:
        return read_json(line).only()
    except ValueError as error:
        raise ExportFormatError(
            f"is not a JSON object with one key: {error}", subject=f"line {number} of the export"
        ) from error


def _header(key: str, value: Any) -> ExportHeader:
    if key != "backyfs_export" or not isinstance(value, dict):
        raise ExportFormatError(
            "is not an export of backyfs or backy2: its first line is a different one", subject="the file"
        )
    if value.get("format") != FORMAT:
        raise ExportFormatError(
            f"has format {values.shown(value.get('format'))}, and this program reads {FORMAT}",
            subject="the export",
            remedy="use a newer release",
        )
    header = Fields(value)
    try:
        repository = header.optional_object("repository")
        return ExportHeader(
            created_at=header.optional_time("created_at"),
            block_size=header.value("block_size", values.BLOCK_SIZE),
            hash_function=header.value("hash_function", values.HASH_FUNCTION),
            repository=None
            if repository is None
            else RepositoryRecord(
                uid=repository.value("uid", values.REPOSITORY_UID),
                wrapped_fingerprint_key=repository.optional_raw("wrapped_fingerprint_key", values.FINGERPRINT_KEY),
                key_slots=tuple(map(key_slot, repository.objects("key_slots", _MAX_SLOTS))),
            ),
        )
    except ValueError as error:
        raise ExportFormatError(f"is wrong: {error}", subject="line 1 of the export") from error


def _record(key: str, value: Any, number: int) -> Record:
    try:
        match key:
            case "version":
                return version_record(Fields(value), _MAX_LINE)
            case "statistics":
                return _statistics(value)
            case "blob":
                return _blob(value)
            case "page":
                return _page(Fields(value))
    except ValueError as error:
        raise ExportFormatError(f"is wrong: {error}", subject=f"line {number} of the export, a {key},") from error
    raise ExportFormatError(
        f"is a {values.shown(key)}, which this program does not know", subject=f"line {number} of the export"
    )


def _statistics(value: Any) -> StatisticsRecord:
    found = statistics_record(Fields(value))
    if len(value) != len(fields(found)):
        raise ValueError("it has a field that this program does not know")
    return found


def _page(page: Fields) -> PageRecord | SharedPageRecord:
    number = PageNumber(page.value("number", values.PAGE_NUMBER))
    if "same_as" in page:
        return SharedPageRecord(number, page.value("same_as", values.COUNT))
    entries = tuple(map(_entry, page.list("entries", PAGE_ENTRIES)))
    return PageRecord(number, page.optional_value("id", values.COUNT), entries)


def _blob_fields(blob: BlobRecord) -> list[object]:
    return [
        blob.uid,
        blob.size,
        None if blob.fingerprint is None else blob.fingerprint.hex(),
        blob.encryption_version,
        None if blob.wrapped_key is None else blob.wrapped_key.hex(),
        blob.stored_size,
        blob.valid,
    ]


def _blob(value: Any) -> BlobRecord:
    if not isinstance(value, list) or len(value) != _BLOB_FIELDS:
        raise ValueError(f"{values.shown(value)} is not a list of {_BLOB_FIELDS} values")
    uid, size, fingerprint, encryption_version, wrapped_key, stored_size, valid = value
    return BlobRecord(
        uid=BlobUid(values.BLOB_UID.check(uid)),
        size=values.BLOB_SIZE.check(size),
        fingerprint=None if fingerprint is None else raw_bytes("its fingerprint", values.FINGERPRINT, fingerprint),
        encryption_version=values.ENCRYPTION_VERSION.check(encryption_version),
        wrapped_key=None if wrapped_key is None else raw_bytes("its key", values.WRAPPED_KEY, wrapped_key),
        stored_size=None if stored_size is None else values.SIZE.check(stored_size),
        valid=values.FLAG.check(valid),
    )


def _entry(value: Any) -> EntryOfBlob:
    if type(value) is int and value in (0, -1):
        return value
    return BlobUid(values.BLOB_UID.check(value))
