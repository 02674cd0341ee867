"""The export format: what a file contains, and that nothing else is accepted."""

from __future__ import annotations

import io
import json
import random
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
import zstandard
from blake3 import blake3

from backyfs.engine.transfer.export_format import (
    ExportHeader,
    ExportWriter,
    PageRecord,
    RepositoryRecord,
    SharedPageRecord,
    read_export,
)
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
    from collections.abc import Iterable

    from backyfs.engine.transfer.export_format import Record

MOMENT = datetime(2024, 2, 29, 12, 30, 59, 123_456, tzinfo=UTC)
UID = VersionUid("6f1c0a2e-1111-4222-8333-444444444444")
HEADER = ExportHeader(
    created_at=datetime(2024, 3, 1, tzinfo=UTC),
    block_size=4096,
    hash_function="blake3",
    repository=RepositoryRecord(
        uid="0f5b2c1e-9a64-4f0b-8a57-6b1de0b5a0f3",
        wrapped_fingerprint_key=b"\xf0" * 4,
        key_slots=(
            KeySlot(
                label="first", kdf="configured-key", kdf_parameters="", key_check=b"\x01\x02",
                wrapped_key=b"\x03\x04", created_at=MOMENT,
            ),
        ),
    ),
)
VERSION = VersionRecord(
    uid=UID,
    created_at=MOMENT,
    name='disk "ü", 备\n',
    snapshot_name="snap",
    size_bytes=8193,
    status=VersionStatus.VALID,
    protected=True,
    expire_at=datetime(2030, 1, 1, tzinfo=UTC),
    tags=("daily", "täglich"),
)
STATISTICS = StatisticsRecord(
    created_at=MOMENT, version_uid=UID, version_name="disk", version_size_bytes=8193, version_size_blocks=3,
    bytes_read=1, blocks_read=2, bytes_written=3, blocks_written=4, bytes_stored=None, bytes_deduplicated=5,
    blocks_deduplicated=6, bytes_sparse=7, blocks_sparse=8, duration_s=0.1,
)  # fmt: skip
SEALED = BlobRecord(
    uid=BlobUid("aBcD5"), fingerprint=b"\xaa\xbb", size=4096, stored_size=123, encryption_version=1,
    wrapped_key=b"\xcc", valid=True,
)  # fmt: skip
PLAIN = BlobRecord(
    uid=BlobUid("Xyz99"), fingerprint=None, size=1, stored_size=None, encryption_version=0, wrapped_key=None,
    valid=False,
)  # fmt: skip
PAGE = PageRecord(PageNumber(0), 7, (SEALED.uid, 0, PLAIN.uid))
SHARED = SharedPageRecord(PageNumber(1), 7)
RECORDS: tuple[Record, ...] = (VERSION, STATISTICS, SEALED, PLAIN, PAGE, SHARED)

# The same as text. Changing this changes the format.
LINES = [
    (
        '{"backyfs_export":{"format":1,"created_at":"2024-03-01T00:00:00+00:00","block_size":4096,'
        '"hash_function":"blake3","repository":{"uid":"0f5b2c1e-9a64-4f0b-8a57-6b1de0b5a0f3",'
        '"wrapped_fingerprint_key":"f0f0f0f0","key_slots":[{"label":"first","kdf":"configured-key","kdf_parameters":"",'
        '"key_check":"0102","wrapped_key":"0304","created_at":"2024-02-29T12:30:59.123456+00:00"}]}}}'
    ),
    (
        '{"version":{"uid":"6f1c0a2e-1111-4222-8333-444444444444","created_at":"2024-02-29T12:30:59.123456+00:00",'
        '"name":"disk \\"ü\\", 备\\n","snapshot_name":"snap","size_bytes":8193,"status":"valid","protected":true,'
        '"expire_at":"2030-01-01T00:00:00+00:00","tags":["daily","täglich"]}}'
    ),
    (
        '{"statistics":{"created_at":"2024-02-29T12:30:59.123456+00:00",'
        '"version_uid":"6f1c0a2e-1111-4222-8333-444444444444","version_name":"disk","version_size_bytes":8193,'
        '"version_size_blocks":3,"bytes_read":1,"blocks_read":2,"bytes_written":3,"blocks_written":4,'
        '"bytes_stored":null,"bytes_deduplicated":5,"blocks_deduplicated":6,"bytes_sparse":7,"blocks_sparse":8,'
        '"duration_s":0.1}}'
    ),
    '{"blob":["aBcD5",4096,"aabb",1,"cc",123,true]}',
    '{"blob":["Xyz99",1,null,0,null,null,false]}',
    '{"page":{"number":0,"id":7,"entries":["aBcD5",0,"Xyz99"]}}',
    '{"page":{"number":1,"same_as":7}}',
]
END = '{"end":{"versions":1,"lines":7,"digest":"b467ff23f86e6cb96ea3e0d13db3757392bb37e6b81f2206fa768c344542e006"}}'

NO_TEXT: tuple[object, ...] = (None, 5, True, [], {}, "\ud800")
NO_NUMBER: tuple[object, ...] = (None, "5", 1.0, -1, True, [], 2**63)
NO_TIME: tuple[object, ...] = (
    5, "", "x", "2024-13-01T00:00:00+00:00", "2024-01-01T00:00:00", "0001-01-01T00:00:00+10:00", [],
)  # fmt: skip
NO_BYTES: tuple[object, ...] = (5, "0", "zz", [], {})
NO_FLAG: tuple[object, ...] = (None, 0, "true", [])
NO_LIST = (None, 5, "ab", {"a": 1})
NO_UID = (*NO_TEXT, "", "abcd", "a" * 33, "../../x", "abcd.", "abcdé", "abcde\n")
SLOT = ("repository", "key_slots", 0)
WRONG: list[tuple[int, tuple[str | int, ...], tuple[object, ...]]] = [  # line, field, impossible value
    (0, ("created_at",), NO_TIME),
    (0, ("block_size",), NO_NUMBER),
    (0, ("hash_function",), NO_TEXT),
    (0, ("repository",), (5, "", [], {}, True)),
    (0, ("repository", "uid"), NO_TEXT),
    (0, ("repository", "wrapped_fingerprint_key"), NO_BYTES),
    (0, ("repository", "key_slots"), NO_LIST),
    (0, SLOT, (None, 5, "x", [], {})),
    *((0, (*SLOT, name), NO_TEXT) for name in ("label", "kdf", "kdf_parameters")),
    *((0, (*SLOT, name), (None, *NO_BYTES)) for name in ("key_check", "wrapped_key")),
    (0, (*SLOT, "created_at"), (None, *NO_TIME)),
    (1, (), (None, 5, "x", [], {})),
    *((1, (name,), NO_TEXT) for name in ("uid", "name", "snapshot_name")),
    (1, ("created_at",), (None, *NO_TIME)),
    (1, ("expire_at",), NO_TIME),
    (1, ("size_bytes",), NO_NUMBER),
    (1, ("status",), (None, 5, "", "Valid", [], {})),
    (1, ("protected",), NO_FLAG),
    (1, ("tags",), (*NO_LIST, [5], [None], [["a"]])),
    (2, (), (None, 5, "x", [], {})),
    (2, ("more",), (1,)),
    (2, ("created_at",), (None, *NO_TIME)),
    *((2, (name,), NO_TEXT) for name in ("version_uid", "version_name")),
    *((2, (name,), NO_NUMBER) for name in (
        "version_size_bytes", "version_size_blocks", "bytes_read", "blocks_read", "bytes_written", "blocks_written",
        "bytes_deduplicated", "blocks_deduplicated", "bytes_sparse", "blocks_sparse",
    )),
    (2, ("bytes_stored",), NO_NUMBER[1:]),
    (2, ("duration_s",), (None, "1.5", [], True, float("nan"), float("inf"), 10**400)),
    (3, (), (None, 5, "abcdefg", [], [1] * 6, [1] * 8, {})),
    (3, (0,), NO_UID),
    (3, (1,), NO_NUMBER),
    (3, (2,), NO_BYTES),
    (3, (3,), NO_NUMBER),
    (3, (4,), NO_BYTES),
    (3, (5,), NO_NUMBER[1:]),
    (3, (6,), NO_FLAG),
    (5, (), (None, 5, "x", "same_as", ["same_as"], [], {})),
    (5, ("number",), NO_NUMBER),
    (5, ("id",), NO_NUMBER[1:]),
    (5, ("entries",), NO_LIST),
    (5, ("entries", 0), (*NO_UID[:1], *NO_UID[2:], 1, -2, True, False, 0.0)),
    (6, ("number",), NO_NUMBER),
    (6, ("same_as",), NO_NUMBER),
]  # fmt: skip


def written(*records: Record, header: ExportHeader = HEADER) -> bytes:
    """Return the program's export of these records."""
    file = io.BytesIO()
    writer = ExportWriter(file, header)
    for record in records:
        writer.write(record)
    writer.end()
    return file.getvalue()


def compressed(lines: Iterable[str | bytes]) -> bytes:
    """Return a zstd frame of lines."""
    raw = b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines)
    return zstandard.ZstdCompressor().compress(raw)


def ended(lines: list[str], /, **other: object) -> bytes:
    """Return an export of these lines with the end that the format requires, except for given fields."""
    end = {
        "versions": sum(line.startswith('{"version"') for line in lines),
        "lines": len(lines),
        "digest": blake3("".join(f"{line}\n" for line in lines).encode()).hexdigest(),
    }
    return compressed([*lines, json.dumps({"end": end | other})])


def read(data: bytes) -> list[Record]:
    return list(read_export(io.BytesIO(data)))


# Contents


def test_an_export_is_one_zstd_frame_of_these_lines() -> None:
    frame = zstandard.ZstdDecompressor().decompressobj()
    text = frame.decompress(written(*RECORDS)).decode()
    assert text == "".join(f"{line}\n" for line in [*LINES, END])
    assert (frame.eof, frame.unused_data) == (True, b"")


def test_the_digest_covers_all_lines_before_the_end() -> None:
    digest = blake3("".join(f"{line}\n" for line in LINES).encode()).hexdigest()
    assert json.loads(END)["end"]["digest"] == digest


def test_lines_as_described_by_the_format_can_be_read() -> None:
    assert read(compressed([*LINES, END])) == [HEADER, *RECORDS]


@pytest.mark.parametrize("record", RECORDS)
def test_a_record_is_read_as_written(record: Record) -> None:
    assert read(written(record)) == [HEADER, record]


@pytest.mark.parametrize(
    "record",
    [
        replace(VERSION, status=VersionStatus.INCOMPLETE, expire_at=None, tags=(), protected=False, name=""),
        replace(VERSION, status=VersionStatus.INVALID, name="x" * 2048, tags=("\N{FLOPPY DISK}" * 2048,) * 20),
        replace(VERSION, size_bytes=2**63 - 1, name="a\r\n\t\x01\x7f\u2028b"),
        replace(STATISTICS, bytes_stored=2**62, duration_s=1234567.8901234),
        replace(STATISTICS, duration_s=3),
        PageRecord(PageNumber(5), None, (0, -1)),
        PageRecord(PageNumber(0), 1, (BlobUid("a" * 32),) * 1024),
    ],
)
def test_a_record_at_the_limits_is_read_as_written(record: Record) -> None:
    assert read(written(record)) == [HEADER, record]


def test_an_empty_export_has_only_its_header() -> None:
    assert read(written()) == [HEADER]


def test_an_export_without_a_repository_can_be_read() -> None:
    header = replace(HEADER, repository=None)
    assert read(written(header=header)) == [header]


def test_a_repository_without_keys_can_be_read() -> None:
    assert HEADER.repository is not None
    plain = replace(HEADER.repository, wrapped_fingerprint_key=None, key_slots=())
    header = replace(HEADER, repository=plain)
    assert read(written(header=header)) == [header]


def test_times_in_other_zones_are_converted_to_utc() -> None:
    line = LINES[1].replace("12:30:59.123456+00:00", "14:00:59.123456+01:30")
    assert read(ended([LINES[0], line])) == [HEADER, VERSION]


def test_an_export_of_many_chunks_can_be_read() -> None:
    chance = random.Random(1)
    pages: list[Record] = [
        PageRecord(PageNumber(number), number, tuple(BlobUid(chance.randbytes(16).hex()) for _ in range(1024)))
        for number in range(20)
    ]
    data = written(VERSION, *pages)
    assert len(data) > 300_000
    assert read(data) == [HEADER, VERSION, *pages]


def test_the_records_are_read_one_by_one() -> None:
    records = read_export(io.BytesIO(compressed([LINES[0], LINES[1]])))  # without an end
    assert [next(records), next(records)] == [HEADER, VERSION]
    with pytest.raises(ExportFormatError):
        next(records)


def test_reading_leaves_the_file_open() -> None:
    file = io.BytesIO()
    ExportWriter(file, HEADER).end()
    file.write(b"more")
    assert file.getvalue().endswith(b"more")


# Damage


def test_a_version_with_more_tags_than_a_catalog_allows_can_be_read() -> None:
    version = replace(VERSION, tags=tuple(f"tag {number}" for number in range(10_001)))
    assert read(written(version)) == [HEADER, version]


def test_an_export_truncated_anywhere_is_refused() -> None:
    data = written(*RECORDS)
    for length in range(len(data)):
        with pytest.raises(ExportFormatError):
            read(data[:length])


def test_a_truncated_export_of_many_chunks_is_refused() -> None:
    entries = tuple(BlobUid(random.Random(1).randbytes(16).hex()) for _ in range(1024))
    data = written(VERSION, *(PageRecord(PageNumber(number), None, entries) for number in range(10)))
    for length in [*range(0, len(data), 997), *range(len(data) - 300, len(data))]:
        with pytest.raises(ExportFormatError):
            read(data[:length])


@pytest.mark.parametrize("mask", [0xFF, 0x80, 0x40, 0x20, 0x10, 0x08, 0x04, 0x02, 0x01])
def test_a_flipped_byte_is_refused_or_changes_nothing(mask: int) -> None:
    data = written(*RECORDS)
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= mask
        try:
            found = read(bytes(damaged))
        except ExportFormatError:
            continue
        assert found == [HEADER, *RECORDS], position


@pytest.mark.parametrize("mask", [0x01, 0x02, 0x20, 0x80])
def test_a_flipped_byte_before_compression_is_refused(mask: int) -> None:
    text = "".join(f"{line}\n" for line in [*LINES, END]).encode()
    for position in range(len(text)):
        damaged = bytearray(text)
        damaged[position] ^= mask
        try:
            found = read(zstandard.ZstdCompressor(level=1).compress(bytes(damaged)))
        except ExportFormatError:
            continue
        assert found == [HEADER, *RECORDS], position


@pytest.mark.parametrize(
    "other",
    [
        {"versions": 0},
        {"versions": 2},
        {"versions": "1"},
        {"lines": 6},
        {"lines": 8},
        {"lines": None},
        {"digest": "00" * 32},
        {"digest": None},
        {"more": 1},
    ],
)
def test_an_end_that_does_not_match_is_refused(other: dict[str, object]) -> None:
    with pytest.raises(ExportFormatError, match=r"^the export is damaged: its last line does not fit"):
        read(ended(LINES, **other))


@pytest.mark.parametrize("number", range(1, len(LINES)))
def test_an_export_with_a_missing_line_is_refused(number: int) -> None:
    with pytest.raises(ExportFormatError, match="does not fit the others"):
        read(compressed([*LINES[:number], *LINES[number + 1 :], END]))


def test_an_export_without_an_end_is_refused_as_truncated() -> None:
    with pytest.raises(ExportFormatError, match=r"^the export is truncated"):
        read(compressed(LINES))


@pytest.mark.parametrize("rest", [b"x", b"\n", b"\0" * 20, b"x" * 300_000, written()])
def test_bytes_after_the_frame_are_refused(rest: bytes) -> None:
    with pytest.raises(ExportFormatError, match="after its end"):
        read(written(*RECORDS) + rest)


@pytest.mark.parametrize("rest", ["x", "", LINES[1], END])
def test_lines_after_the_end_are_refused(rest: str) -> None:
    with pytest.raises(ExportFormatError, match="after its end"):
        read(compressed([*LINES, END, rest]))


def test_half_a_line_after_the_end_is_refused() -> None:
    text = "".join(f"{line}\n" for line in [*LINES, END]) + "x"
    with pytest.raises(ExportFormatError, match="after its end"):
        read(zstandard.ZstdCompressor().compress(text.encode()))


@pytest.mark.parametrize("size", [(1 << 20) + 1, 5 << 20])
@pytest.mark.parametrize("end", ["", "\n"])
def test_a_huge_line_is_refused_before_all_of_it_is_read(size: int, end: str) -> None:
    text = f"{LINES[0]}\n" + "x" * size + end
    with pytest.raises(ExportFormatError, match="more than 1 MiB"):
        read(zstandard.ZstdCompressor().compress(text.encode()))


@pytest.mark.parametrize("data", [b"", b"x", b"\x28\xb5\x2f\xfd", b"backy2 Version 2.12 metadata dump\r\n", b"\0" * 99])
def test_other_files_are_refused(data: bytes) -> None:
    with pytest.raises(ExportFormatError):
        read(data)


def test_an_empty_frame_is_refused() -> None:
    with pytest.raises(ExportFormatError):
        read(zstandard.ZstdCompressor().compress(b""))


# Invalid lines


def changed(line: str, path: tuple[str | int, ...], value: object) -> str:
    """Return a line with another value in one field."""
    [(kind, fields)] = json.loads(line).items()
    whole: Any = {kind: fields}
    place = whole
    for step in (kind, *path)[:-1]:
        place = place[step]
    place[(kind, *path)[-1]] = value
    return json.dumps(whole)


@pytest.mark.parametrize(
    ("number", "path", "value"), [(number, path, value) for number, path, values in WRONG for value in values]
)
def test_a_field_of_the_wrong_kind_is_refused(number: int, path: tuple[str | int, ...], value: object) -> None:
    lines = [*LINES[:number], changed(LINES[number], path, value), *LINES[number + 1 :]]
    with pytest.raises(ExportFormatError, match=rf"^line {number + 1} of the export"):
        read(ended(lines))


@pytest.mark.parametrize("number", range(len(LINES)))
def test_a_missing_field_is_refused(number: int) -> None:
    [(kind, fields)] = json.loads(LINES[number]).items()
    for name in fields if isinstance(fields, dict) else ():
        line = json.dumps({kind: {other: fields[other] for other in fields if other != name}})
        with pytest.raises(ExportFormatError):
            read(ended([*LINES[:number], line, *LINES[number + 1 :]]))


@pytest.mark.parametrize(
    "line",
    ["", "x", "{}", "[]", "5", "null", '"version"', '{"version":1,"blob":2}', '{"version":', "[" * 100_000, "9" * 5000],
)
def test_a_line_that_is_not_an_object_with_one_key_is_refused(line: str) -> None:
    with pytest.raises(ExportFormatError, match=r"^line 2 of the export is not a JSON object with one key"):
        read(ended([LINES[0], line]))


def test_a_line_that_is_not_utf_8_is_refused() -> None:
    with pytest.raises(ExportFormatError, match=r"^line 2 of the export is not a JSON object"):
        read(compressed([LINES[0], b'{"version":"\xff"}']))


@pytest.mark.parametrize("line", ['{"blobs":[]}', '{"backyfs_export":{}}', '{"":null}'])
def test_an_unknown_record_is_refused(line: str) -> None:
    with pytest.raises(ExportFormatError, match=r"^line 2 of the export is a '\w*', which this program does not know$"):
        read(ended([LINES[0], line]))


@pytest.mark.parametrize("line", [LINES[1], END, '{"backyfs_export":null}', '{"backyfs_export":[]}'])
def test_an_export_begins_with_its_header(line: str) -> None:
    with pytest.raises(ExportFormatError, match=r"^the file is not an export of backyfs or backy2"):
        read(ended([line, *LINES[1:]]))


@pytest.mark.parametrize("number", [2, 0, None, "1"])
def test_another_format_is_refused_by_name(number: object) -> None:
    with pytest.raises(ExportFormatError, match=rf"^the export has format {number!r}, and this program reads 1; use a"):
        read(ended([changed(LINES[0], ("format",), number), *LINES[1:]]))
