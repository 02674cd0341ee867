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
up. Times are ISO 8601 in UTC, keys and fingerprints hexadecimal. See docs/format.md.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeAlias

import zstandard
from blake3 import blake3

from backyfs.errors import ExportFormatError
from backyfs.model import (
    BlobRecord,
    BlobUid,
    KeySlot,
    PageNumber,
    StatisticsRecord,
    VersionRecord,
    VersionStatus,
    VersionUid,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

FORMAT = 1
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_LEVEL = 3
_MAX_LINE = 1 << 20  # bytes; a page has 40 KiB
_READ = 1 << 10      # compressed bytes at a time: zstd can make 32,768 of each, where somebody wants that
BLOB_UID = re.compile("[0-9A-Za-z]{5,32}")  # it becomes a path in the storage

EntryOfBlob: TypeAlias = "BlobUid | int"  # an int is blockmap.HOLE or blockmap.ABSENT


@dataclass(frozen=True, slots=True, kw_only=True)
class RepositoryRecord:
    """What an export says of the repository it was made of. Its keys are wrapped."""

    uid: str
    wrapped_fingerprint_key: bytes | None
    key_slots: tuple[KeySlot, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportHeader:
    """What an export begins with. None: it does not say."""

    created_at: datetime | None
    block_size: int | None
    hash_function: str | None
    repository: RepositoryRecord | None


@dataclass(frozen=True, slots=True)
class PageRecord:
    """A page of the version that was named last."""

    number: PageNumber
    id: int | None  # names it for later pages
    entries: tuple[EntryOfBlob, ...]


@dataclass(frozen=True, slots=True)
class SharedPageRecord:
    """A page that an earlier version has as well."""

    number: PageNumber
    same_as: int


Record: TypeAlias = ExportHeader | VersionRecord | StatisticsRecord | BlobRecord | PageRecord | SharedPageRecord


class ExportWriter:
    """Writes an export, line by line. It is one only after `end`."""

    def __init__(self, file: BinaryIO, header: ExportHeader) -> None:
        """Begin an export; the file stays the caller's."""
        self._stream = zstandard.ZstdCompressor(level=_LEVEL).stream_writer(file, closefd=False)
        self._digest = blake3()
        self._lines = 0
        self._versions = 0
        self._write("backyfs_export", {"format": FORMAT, **_jsonable(asdict(header))})

    def write(self, record: Record) -> None:
        """Write one record; the order is the caller's to keep."""
        match record:
            case VersionRecord():
                self._versions += 1
                self._write("version", _jsonable(asdict(record)))
            case StatisticsRecord():
                self._write("statistics", _jsonable(asdict(record)))
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
        line = json.dumps({key: value}, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        self._digest.update(line)
        self._lines += 1
        self._stream.write(line)


def read_export(file: BinaryIO) -> Iterator[Record]:
    """Yield the records of an export, the header first. The end was right when this ends.

    Raises:
        ExportFormatError: the file is no export, is cut short or damaged, or of a newer format.
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
                raise ExportFormatError(f"line {number}: the export is damaged: its last line does not fit the others")
            if next(lines, None) is not None:
                raise ExportFormatError("the export has something after its end")
            return
        else:
            versions += key == "version"
            yield _record(key, value, number)
        digest.update(line)
    raise ExportFormatError(f"the export is cut short: it has no last line, after {number} lines")


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield the lines of one zstd frame that nothing follows."""
    frame = zstandard.ZstdDecompressor().decompressobj()
    buffer = b""
    try:
        while not frame.eof and (chunk := file.read(_READ)):
            *lines, buffer = (buffer + frame.decompress(chunk)).split(b"\n")
            if max(map(len, (*lines, buffer))) > _MAX_LINE:
                raise ExportFormatError("the export has a line of more than 1 MiB; it is damaged")
            for line in lines:
                yield line + b"\n"
    except zstandard.ZstdError as error:
        raise ExportFormatError(f"the export is damaged: {error}") from error
    if not frame.eof:
        raise ExportFormatError("the export is cut short: it ends in the midst of its zstd frame")
    if buffer or frame.unused_data or file.read(1):
        raise ExportFormatError("the export has something after its end")


def _parse(line: bytes, number: int) -> tuple[str, Any]:
    try:
        value = json.loads(line)
        ((key, inner),) = value.items()
    except (ValueError, AttributeError, RecursionError) as error:
        raise ExportFormatError(f"line {number} of the export is no JSON object with one key: {error}") from error
    return key, inner


def _header(key: str, value: Any) -> ExportHeader:
    if key != "backyfs_export" or not isinstance(value, dict):
        raise ExportFormatError("this is no export of backyfs or backy2: its first line is another one")
    if value.get("format") != FORMAT:
        raise ExportFormatError(
            f"the export has format {value.get('format')!r}, and this program reads {FORMAT}; use a newer release"
        )
    try:
        repository = value["repository"]
        return ExportHeader(
            created_at=_time(value["created_at"]),
            block_size=_number(value["block_size"]),
            hash_function=_text(value["hash_function"]),
            repository=None
            if repository is None
            else RepositoryRecord(
                uid=_text(repository["uid"]),
                wrapped_fingerprint_key=_bytes(repository["wrapped_fingerprint_key"]),
                key_slots=tuple(_slot(slot) for slot in _list(repository["key_slots"])),
            ),
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ExportFormatError(f"line 1 of the export is wrong: {error!r}") from error


def _record(key: str, value: Any, number: int) -> Record:
    try:
        match key:
            case "version":
                return VersionRecord(
                    uid=VersionUid(_text(value["uid"])),
                    created_at=_required(_time(value["created_at"])),
                    name=_text(value["name"]),
                    snapshot_name=_text(value["snapshot_name"]),
                    size_bytes=_number(value["size_bytes"]),
                    status=VersionStatus(value["status"]),
                    protected=_flag(value["protected"]),
                    expire_at=_time(value["expire_at"]),
                    tags=tuple(_text(tag) for tag in _list(value["tags"])),
                )
            case "statistics":
                return _statistics(value)
            case "blob":
                return _blob(value)
            case "page" if "same_as" in value:
                return SharedPageRecord(PageNumber(_number(value["number"])), _number(value["same_as"]))
            case "page":
                page_id = value["id"]
                return PageRecord(
                    PageNumber(_number(value["number"])),
                    None if page_id is None else _number(page_id),
                    tuple(_entry(entry) for entry in _list(value["entries"])),
                )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ExportFormatError(f"line {number} of the export, a {key}, is wrong: {error!r}") from error
    raise ExportFormatError(f"line {number} of the export is a {key!r}, which this program does not know")


def _statistics(value: dict[str, Any]) -> StatisticsRecord:
    record = StatisticsRecord(**{**value, "created_at": _required(_time(value["created_at"]))})
    for name, field in asdict(record).items():
        if name.startswith(("bytes_", "blocks_", "version_size_")) and not (field is None and name == "bytes_stored"):
            _number(field)
    for text in (record.version_uid, record.version_name):
        _text(text)
    if type(record.duration_s) not in (int, float) or not math.isfinite(record.duration_s):
        raise ValueError(f"{record.duration_s!r} is no duration")
    return record


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


def _blob(value: list[Any]) -> BlobRecord:
    uid, size, fingerprint, encryption_version, wrapped_key, stored_size, valid = value
    return BlobRecord(
        uid=_blob_uid(uid),
        size=_number(size),
        fingerprint=_bytes(fingerprint),
        encryption_version=_number(encryption_version),
        wrapped_key=_bytes(wrapped_key),
        stored_size=None if stored_size is None else _number(stored_size),
        valid=_flag(valid),
    )


def _slot(value: dict[str, Any]) -> KeySlot:
    return KeySlot(
        label=_text(value["label"]),
        kdf=_text(value["kdf"]),
        kdf_parameters=_text(value["kdf_parameters"]),
        key_check=_required(_bytes(value["key_check"])),
        wrapped_key=_required(_bytes(value["wrapped_key"])),
        created_at=_required(_time(value["created_at"])),
    )


def _entry(value: Any) -> EntryOfBlob:
    if type(value) is int and value in (0, -1):
        return value
    return _blob_uid(value)


def _jsonable(value: Any) -> Any:
    """Return a value of dataclasses.asdict with its times and bytes as text."""
    match value:
        case dict():
            return {name: _jsonable(field) for name, field in value.items()}
        case tuple() | list():
            return [_jsonable(field) for field in value]
        case datetime():
            return value.isoformat()
        case bytes():
            return value.hex()
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    value.encode()  # JSON can name characters that are none
    return value


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError(f"{value!r} is no number of that kind")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{value!r} is neither true nor false")
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is no list")
    return value


def _blob_uid(value: Any) -> BlobUid:
    if not BLOB_UID.fullmatch(value):
        raise ValueError(f"{value!r} is no uid of a blob")
    return BlobUid(value)


def _bytes(value: str | None) -> bytes | None:
    return None if value is None else bytes.fromhex(value)


def _time(value: str | None) -> datetime | None:
    if value is None:
        return None
    time = datetime.fromisoformat(value)
    if time.tzinfo is None:
        raise ValueError(f"{value!r} is a time of no zone")
    return time.astimezone(UTC)


def _required(value: Any) -> Any:
    if value is None:
        raise ValueError("null")
    return value


__all__ = [
    "BLOB_UID",
    "ZSTD_MAGIC",
    "ExportHeader",
    "ExportWriter",
    "PageRecord",
    "Record",
    "RepositoryRecord",
    "SharedPageRecord",
    "read_export",
]
