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

import json
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeAlias

import zstandard
from blake3 import blake3

from backyfs import values
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

    from backyfs.values import Rule

FORMAT = 1
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_LEVEL = 3
_MAX_LINE = 1 << 20  # bytes; a page has 40 KiB
_READ = 1 << 10      # compressed bytes at a time: zstd can make 32,768 of each, where somebody wants that

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
            block_size=values.BLOCK_SIZE.check(value["block_size"]),
            hash_function=values.HASH_FUNCTION.check(value["hash_function"]),
            repository=None
            if repository is None
            else RepositoryRecord(
                uid=values.REPOSITORY_UID.check(repository["uid"]),
                wrapped_fingerprint_key=_bytes(repository["wrapped_fingerprint_key"], values.FINGERPRINT_KEY),
                key_slots=tuple(_slot(slot) for slot in _list(repository["key_slots"])),
            ),
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ExportFormatError(f"line 1 of the export is wrong: {_fact(error)}") from error


def _record(key: str, value: Any, number: int) -> Record:
    try:
        match key:
            case "version":
                return VersionRecord(
                    uid=VersionUid(values.VERSION_UID.check(value["uid"])),
                    created_at=_required(_time(value["created_at"])),
                    name=values.NAME.check(value["name"]),
                    snapshot_name=values.NAME.check(value["snapshot_name"]),
                    size_bytes=values.SIZE.check(value["size_bytes"]),
                    status=VersionStatus(values.STATUS.check(value["status"])),
                    protected=values.FLAG.check(value["protected"]),
                    expire_at=_time(value["expire_at"], values.EXPIRY),
                    tags=tuple(values.NAME.check(tag) for tag in _list(value["tags"])),
                )
            case "statistics":
                return _statistics(value)
            case "blob":
                return _blob(value)
            case "page" if "same_as" in value:
                return SharedPageRecord(_page_number(value["number"]), values.COUNT.check(value["same_as"]))
            case "page":
                page_id = value["id"]
                return PageRecord(
                    _page_number(value["number"]),
                    None if page_id is None else values.COUNT.check(page_id),
                    tuple(_entry(entry) for entry in _list(value["entries"])),
                )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ExportFormatError(f"line {number} of the export, a {key}, is wrong: {_fact(error)}") from error
    raise ExportFormatError(f"line {number} of the export is a {key!r}, which this program does not know")


def _fact(error: Exception) -> str:
    return str(error) if isinstance(error, ValueError) else repr(error)


def _statistics(value: dict[str, Any]) -> StatisticsRecord:
    record = StatisticsRecord(**{**value, "created_at": _required(_time(value["created_at"]))})
    for name, field in asdict(record).items():
        if name.startswith(("bytes_", "blocks_", "version_size_")) and not (field is None and name == "bytes_stored"):
            values.COUNT.check(field)
    values.VERSION_UID.check(record.version_uid)
    values.NAME.check(record.version_name)
    values.DURATION.check(record.duration_s)
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
        size=values.BLOB_SIZE.check(size),
        fingerprint=_bytes(fingerprint, values.FINGERPRINT),
        encryption_version=values.ENCRYPTION_VERSION.check(encryption_version),
        wrapped_key=_bytes(wrapped_key, values.WRAPPED_KEY),
        stored_size=None if stored_size is None else values.SIZE.check(stored_size),
        valid=values.FLAG.check(valid),
    )


def _slot(value: dict[str, Any]) -> KeySlot:
    return KeySlot(
        label=values.LABEL.check(value["label"]),
        kdf=values.KDF.check(value["kdf"]),
        kdf_parameters=values.KDF_PARAMETERS.check(value["kdf_parameters"]),
        key_check=_required(_bytes(value["key_check"], values.KEY_CHECK)),
        wrapped_key=_required(_bytes(value["wrapped_key"], values.WRAPPED_KEY)),
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


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is no list")
    return value


def _blob_uid(value: Any) -> BlobUid:
    return BlobUid(values.BLOB_UID.check(value))


def _page_number(value: Any) -> PageNumber:
    return PageNumber(values.PAGE_NUMBER.check(value))


def _bytes(value: str | None, rule: Rule) -> bytes | None:
    if value is None:
        return None
    checked: bytes = rule.check(bytes.fromhex(value))
    return checked


def _time(value: str | None, rule: Rule = values.DATE) -> datetime | None:
    if value is None:
        return None
    time = datetime.fromisoformat(value)
    if time.tzinfo is None:
        raise ValueError(f"{value!r} is a time of no zone")
    checked: datetime = rule.check(time)
    return checked


def _required(value: Any) -> Any:
    if value is None:
        raise ValueError("null")
    return value


__all__ = [
    "ZSTD_MAGIC",
    "ExportHeader",
    "ExportWriter",
    "PageRecord",
    "Record",
    "RepositoryRecord",
    "SharedPageRecord",
    "read_export",
]
