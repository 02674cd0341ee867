"""The export files of backy2: four formats can be read; the newest is written."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from backyfs.engine.transfer.backy2_format import ExportedBlock, read_backy2_export, write_backy2_export
from backyfs.engine.transfer.export_format import ExportHeader, PageRecord
from backyfs.errors import ExportFormatError
from backyfs.model import BlobRecord, BlobUid, PageNumber, VersionRecord, VersionStatus, VersionUid

if TYPE_CHECKING:
    from backyfs.engine.transfer.export_format import Record

FIXTURES = Path(__file__).parent.parent / "fixtures"
EXPORTS = sorted(FIXTURES.glob("**/exports/*.csv"))
UID = VersionUid("7b780722-e6b8-11f1-b2fd-02fc00000001")
BLOCK = 4096
HEADER = ExportHeader(created_at=None, block_size=None, hash_function=None, repository=None)
VERSION = VersionRecord(
    uid=UID, created_at=datetime(2024, 2, 29, 12, 30, 59, tzinfo=UTC), name="disk", snapshot_name="",
    size_bytes=8193, status=VersionStatus.VALID, protected=False, expire_at=None,
)  # fmt: skip
FIRST = BlobRecord(
    uid=BlobUid("dd0773a60eTSNRUbVFub3qDhaPLWGpsN"), fingerprint=b"\xaa\xbb", size=4096, stored_size=None,
    encryption_version=0, wrapped_key=None, valid=True,
)  # fmt: skip
LAST = replace(FIRST, uid=BlobUid("aaee76af3cNngXNCYLSE2PKH"), fingerprint=b"\xcc", size=1, valid=False)
PAGE = PageRecord(PageNumber(0), None, (FIRST.uid, 0, LAST.uid))
DATE = "2024-02-29 12:30:59"

FORMAT_2_1 = (
    "backy2 Version 2.1 metadata dump\r\n"
    f"{UID},{DATE},disk,3,8193,1\r\n"
    f"{FIRST.uid},{UID},0,{DATE},aabb,4096,1\r\n"
    f",{UID},1,{DATE},,4096,1\r\n"
    f"{LAST.uid},{UID},2,{DATE},cc,1,0\r\n"
)
FORMAT_2_2 = FORMAT_2_1.replace("2.1 ", "2.2 ").replace(",disk,3,8193,1", ",disk,snap,3,8193,1,1")
FORMAT_2_10 = FORMAT_2_2.replace("2.2 ", "2.10 ").replace("8193,1,1", "8193,1,0,2031-02-03")
FORMAT_2_12 = (
    "backy2 Version 2.12 metadata dump\r\n"
    f"{UID},{DATE},disk,snap,3,8193,1,1,2031-02-03\r\n"
    f"{FIRST.uid},{UID},0,{DATE},AAbb,4096,1,1,00FF,834c43ff25ead8d0bcaeaf334456e4bd\r\n"
    f",{UID},1,{DATE},,4096,1,0,,\r\n"
    f"{LAST.uid},{UID},2,{DATE},cc,1,0,0,,\r\n"
)
INTERRUPTED = FORMAT_2_12.replace("8193,1,", "8193,0,")


def read(text: str | bytes, block_size: int = BLOCK) -> list[Record]:
    data = text if isinstance(text, bytes) else text.encode()
    return list(read_backy2_export(io.BytesIO(data), block_size))


def without(text: str, number: int) -> str:
    """Return a text without one of its lines, counted from 1."""
    lines = text.splitlines(keepends=True)
    return "".join(lines[: number - 1] + lines[number:])


# Four formats


def test_format_2_1_is_read() -> None:
    assert read(FORMAT_2_1) == [HEADER, VERSION, FIRST, LAST, PAGE]


def test_format_2_2_is_read() -> None:
    version = replace(VERSION, snapshot_name="snap", protected=True)
    assert read(FORMAT_2_2) == [HEADER, version, FIRST, LAST, PAGE]


def test_format_2_10_is_read() -> None:
    version = replace(VERSION, snapshot_name="snap", expire_at=datetime(2031, 2, 3, tzinfo=UTC))
    assert read(FORMAT_2_10) == [HEADER, version, FIRST, LAST, PAGE]


def test_format_2_12_is_read() -> None:
    version = replace(VERSION, snapshot_name="snap", protected=True, expire_at=datetime(2031, 2, 3, tzinfo=UTC))
    first = replace(FIRST, encryption_version=1, wrapped_key=b"\x00\xff")
    assert read(FORMAT_2_12) == [HEADER, version, first, LAST, PAGE]


def test_empty_fields_of_a_version_are_null() -> None:
    text = FORMAT_2_12.replace("disk,snap,", ",,").replace("1,1,2031-02-03", "1,,")
    assert read(text)[1] == replace(VERSION, name="")


def test_empty_fields_of_a_blob_are_null() -> None:
    text = FORMAT_2_12.replace("AAbb,4096,1,1,00FF,834c43ff25ead8d0bcaeaf334456e4bd", ",4096,1,,,")
    assert read(text)[2] == replace(FIRST, fingerprint=None)


@pytest.mark.parametrize(
    ("field", "name"),
    [
        ('"na,me ""q"" üml 日"', 'na,me "q" üml 日'),
        ('"a\r\nb\nc\rd"', "a\r\nb\nc\rd"),
        (" a|b; ", " a|b; "),
        ("'", "'"),
        ('""', ""),
        ("\N{FLOPPY DISK}", "\N{FLOPPY DISK}"),
    ],
)
def test_names_are_read_as_csv(field: str, name: str) -> None:
    assert read(FORMAT_2_1.replace("disk", field))[1] == replace(VERSION, name=name)


@pytest.mark.parametrize("end", ["\r\n", "\n", "\r\n\r\n\r\n", ""])
def test_blank_lines_at_the_end_are_ignored(end: str) -> None:
    records = read(FORMAT_2_12)
    assert read(FORMAT_2_12.removesuffix("\r\n") + end) == records


def test_unix_line_ends_are_accepted() -> None:
    assert read(FORMAT_2_1.replace("\r\n", "\n")) == read(FORMAT_2_1)


def test_a_version_of_no_bytes_has_no_pages() -> None:
    text = f"backy2 Version 2.1 metadata dump\r\n{UID},{DATE},disk,0,0,1\r\n"
    assert read(text) == [HEADER, replace(VERSION, size_bytes=0)]


def test_a_version_of_several_pages_is_read_page_by_page() -> None:
    blobs = {index: replace(FIRST, uid=BlobUid(f"blob{index}"), size=1) for index in (0, 1023, 1024, 2048)}
    lines = ["backy2 Version 2.1 metadata dump", f"{UID},{DATE},disk,2049,2049,1"]
    lines += [
        f"blob{index},{UID},{index},{DATE},aabb,1,1" if index in blobs else f",{UID},{index},{DATE},,1,1"
        for index in range(2049)
    ]
    assert read("\r\n".join(lines), block_size=1)[2:] == [
        blobs[0],
        blobs[1023],
        PageRecord(PageNumber(0), None, (blobs[0].uid, *(0,) * 1022, blobs[1023].uid)),
        blobs[1024],
        PageRecord(PageNumber(1), None, (blobs[1024].uid, *(0,) * 1023)),
        blobs[2048],
        PageRecord(PageNumber(2), None, (blobs[2048].uid,)),
    ]


# Invalid versions


def test_an_interrupted_version_of_2_12_has_holes_and_absent_blocks() -> None:
    records = read(without(INTERRUPTED, 5))
    assert isinstance(records[1], VersionRecord)
    assert records[1].status is VersionStatus.INCOMPLETE
    assert records[-1] == PageRecord(PageNumber(0), None, (FIRST.uid, 0, -1))


def test_an_interrupted_version_without_any_block_has_no_page() -> None:
    records = read("".join(INTERRUPTED.splitlines(keepends=True)[:2]))
    assert [type(record) for record in records] == [ExportHeader, VersionRecord]


def test_a_version_of_2_12_with_all_blocks_can_be_invalid() -> None:
    records = read(INTERRUPTED)
    assert isinstance(records[1], VersionRecord)
    assert records[1].status is VersionStatus.INVALID
    assert records[-1] == PAGE


@pytest.mark.parametrize("text", [FORMAT_2_1, FORMAT_2_2, FORMAT_2_10])
def test_the_holes_of_an_older_invalid_version_are_unknown(text: str) -> None:
    records = read(text.replace("8193,1", "8193,0"))
    assert isinstance(records[1], VersionRecord)
    assert records[1].status is VersionStatus.INCOMPLETE
    assert records[-1] == PageRecord(PageNumber(0), None, (FIRST.uid, -1, LAST.uid))


@pytest.mark.parametrize("text", [FORMAT_2_1, FORMAT_2_2, FORMAT_2_10])
def test_an_older_interrupted_version_may_lack_blocks(text: str) -> None:
    records = read(without(text.replace("8193,1", "8193,0"), 3))
    assert isinstance(records[1], VersionRecord)
    assert records[1].status is VersionStatus.INCOMPLETE
    assert records[-1] == PageRecord(PageNumber(0), None, (-1, -1, LAST.uid))


# Refused exports


@pytest.mark.parametrize("text", [FORMAT_2_1, FORMAT_2_2, FORMAT_2_10, FORMAT_2_12])
@pytest.mark.parametrize("number", [3, 4, 5])
def test_a_valid_version_with_a_missing_block_is_refused(text: str, number: int) -> None:
    with pytest.raises(ExportFormatError, match=r"^the export has 2 blocks, but its version has 3: it is truncated"):
        read(without(text, number))


@pytest.mark.parametrize("text", [FORMAT_2_12, INTERRUPTED])
def test_an_extra_block_is_refused(text: str) -> None:
    with pytest.raises(ExportFormatError, match=r"^the export has 4 blocks, but its version has 3"):
        read(f"{text},{UID},3,{DATE},,4096,1,0,,\r\n")


@pytest.mark.parametrize("index", [0, 2, 3, 4, 2**40])
def test_a_block_out_of_order_is_refused(index: int) -> None:
    with pytest.raises(ExportFormatError, match=r"^line [45] of the export, block \d+, is out of order"):
        read(FORMAT_2_12.replace(f",{UID},1,", f",{UID},{index},"))


def test_a_block_of_another_version_is_refused() -> None:
    with pytest.raises(ExportFormatError, match=r"^line 4 of the export, block 1, is out of order or of another"):
        read(FORMAT_2_12.replace(f",{UID},1,", ",8b780722-e6b8-11f1-b2fd-02fc00000001,1,"))


@pytest.mark.parametrize(("size", "size_bytes"), [(3, 12289), (3, 8192), (3, 0), (2, 8193), (0, 8193), (1024, 8 << 20)])
def test_a_number_of_blocks_that_does_not_match_the_image_is_refused(size: int, size_bytes: int) -> None:
    head = f"backy2 Version 2.1 metadata dump\r\n{UID},{DATE},disk,{size},{size_bytes},1\r\n"
    with pytest.raises(ExportFormatError, match=rf"^the export has {size} blocks for {size_bytes} bytes"):
        read(head + "".join(f",{UID},{index},{DATE},,4096,1\r\n" for index in range(size)))


@pytest.mark.parametrize("text", [FORMAT_2_1, FORMAT_2_2, FORMAT_2_10, FORMAT_2_12])
def test_an_export_truncated_anywhere_is_refused(text: str) -> None:
    data = text.encode()
    for length in range(len(data) - len("\r\n")):
        with pytest.raises(ExportFormatError):
            read(data[:length])


def test_a_flipped_byte_never_raises_any_other_error() -> None:
    for mask in (0x01, 0x20, 0x80):
        data = bytearray(FORMAT_2_12.encode())
        for position in range(len(data)):
            data[position] ^= mask
            try:
                found = read(bytes(data))
            except ExportFormatError:
                found = []
            data[position] ^= mask
            assert len(found) in (0, 5)


@pytest.mark.parametrize(
    "first",
    [
        "backy2 Version 2.11 metadata dump",
        "backy2 Version 3.0 metadata dump",
        "backy2 Version 2.12 metadata dump ",
        "backy2 Version  metadata dump",
        "backy2 Version 2.12,metadata dump",
        "",
        "x",
    ],
)
def test_an_unknown_format_is_refused(first: str) -> None:
    with pytest.raises(ExportFormatError, match=r"in a known format \(2\.1, 2\.2, 2\.10, 2\.12\)$"):
        read(FORMAT_2_12.replace("backy2 Version 2.12 metadata dump", first))


@pytest.mark.parametrize("data", [b"", b"\r\n", b"\n\n"])
def test_an_empty_file_is_refused(data: bytes) -> None:
    with pytest.raises(ExportFormatError, match="not an export of backy2"):
        read(data)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        (f"{UID},{DATE},disk", f"{UID},yesterday,disk"),
        (f"{UID},{DATE},disk", f"{UID},,disk"),
        (f"{UID},{DATE},disk", f"{UID},0001-01-01T00:00:00+10:00,disk"),
        ("2031-02-03", "2031-02-30"),
        ("snap,3,", "snap,,"),
        ("snap,3,", "snap,-3,"),
        ("snap,3,", "snap,3.0,"),
        ("snap,3,", "snap,٣,"),
        (",8193,", ",8193 ,"),
        (",8193,", f",{10**30},"),
        ("8193,1,1", "8193,,1"),
        ("8193,1,1", "8193,True,1"),
        ("8193,1,1", "8193,1,x"),
    ],
)
def test_a_version_with_a_wrong_field_is_refused(right: str, wrong: str) -> None:
    assert right in FORMAT_2_12
    with pytest.raises(ExportFormatError, match=r"^line 2 of the export, the version, is wrong: "):
        read(FORMAT_2_12.replace(right, wrong))


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        (f",0,{DATE},AAbb", f",,{DATE},AAbb"),
        (f",0,{DATE},AAbb", f",x,{DATE},AAbb"),
        ("AAbb", "AAb"),
        ("AAbb", "xy"),
        ("AAbb,4096", "AAbb,"),
        ("AAbb,4096", "AAbb,-1"),
        ("AAbb,4096,1,1", "AAbb,4096,,1"),
        ("AAbb,4096,1,1", "AAbb,4096,x,1"),
        ("AAbb,4096,1,1", "AAbb,4096,1,x"),
        ("00FF", "00F"),
        ("00FF", "\\x00"),
        (FIRST.uid, "../../etc"),
        (FIRST.uid, "abcd"),
        (FIRST.uid, "a" * 33),
        (FIRST.uid, "äbcde"),
    ],
)
def test_a_block_with_a_wrong_field_is_refused(right: str, wrong: str) -> None:
    assert right in FORMAT_2_12
    with pytest.raises(ExportFormatError, match=r"^line 3 of the export, a block, is wrong: "):
        read(FORMAT_2_12.replace(right, wrong))


def test_a_line_with_too_many_fields_is_refused() -> None:
    with pytest.raises(ExportFormatError, match=r"^line 4 of the export has 11 fields instead of 10"):
        read(FORMAT_2_12.replace("4096,1,0,,\r\n", "4096,1,0,,,\r\n"))


@pytest.mark.parametrize("name", ['"disk', '"disk"x', "x" * 200_000])
def test_invalid_csv_is_refused(name: str) -> None:
    with pytest.raises(ExportFormatError, match=r"^the export is damaged: "):
        read(FORMAT_2_1.replace("disk", name))


def test_invalid_utf_8_is_refused() -> None:
    with pytest.raises(ExportFormatError, match=r"^the export is damaged: 'utf-8' codec"):
        read(FORMAT_2_1.encode().replace(b"disk", b"d\xefsk"))


def test_reading_leaves_the_file_open() -> None:
    file = io.BytesIO(FORMAT_2_12.encode())
    list(read_backy2_export(file, BLOCK))
    with pytest.raises(ExportFormatError):
        list(read_backy2_export(file, 7))
    assert not file.closed


# Writing


def blocks_to_write() -> list[ExportedBlock]:
    sealed = replace(FIRST, encryption_version=1, wrapped_key=b"\x00\xff", stored_size=99)
    return [ExportedBlock(0, 4096, sealed), ExportedBlock(1, 4096, None), ExportedBlock(2, 1, LAST)]


def test_an_export_is_written_as_backy2_does() -> None:
    file = io.BytesIO()
    version = replace(
        VERSION, created_at=datetime(2024, 2, 29, 12, 30, 59, 123_456, tzinfo=UTC), name='na,me "q" ü\n',
        snapshot_name="snap", protected=True, expire_at=datetime(2031, 2, 3, 4, 5, 6, tzinfo=UTC), tags=("daily",),
    )  # fmt: skip
    write_backy2_export(file, version, 3, blocks_to_write())
    assert file.getvalue().decode() == (
        "backy2 Version 2.12 metadata dump\r\n"
        f'{UID},2024-02-29 12:30:59,"na,me ""q"" ü\n",snap,3,8193,1,1,2031-02-03\r\n'
        f"dd0773a60eTSNRUbVFub3qDhaPLWGpsN,{UID},0,2024-02-29 12:30:59,aabb,4096,1,1,00ff,\r\n"
        f",{UID},1,2024-02-29 12:30:59,,4096,1,0,,\r\n"
        f"aaee76af3cNngXNCYLSE2PKH,{UID},2,2024-02-29 12:30:59,cc,1,0,0,,\r\n"
    )


def test_a_written_export_can_be_read_again() -> None:
    file = io.BytesIO()
    write_backy2_export(file, VERSION, 3, blocks_to_write())
    sealed = replace(FIRST, encryption_version=1, wrapped_key=b"\x00\xff")
    assert read(file.getvalue()) == [HEADER, VERSION, sealed, LAST, PAGE]


@pytest.mark.parametrize("status", [VersionStatus.INCOMPLETE, VersionStatus.INVALID])
def test_an_invalid_version_is_written_as_invalid(status: VersionStatus) -> None:
    file = io.BytesIO()
    write_backy2_export(file, replace(VERSION, status=status), 3, [])
    assert file.getvalue().splitlines()[1] == f"{UID},{DATE},disk,,3,8193,0,0,".encode()


def test_an_unavailable_block_leaves_the_file_open() -> None:
    file = io.BytesIO()
    with pytest.raises(ZeroDivisionError):
        write_backy2_export(file, VERSION, 3, (ExportedBlock(1 // index, 1, None) for index in range(3)))
    assert file.getvalue().startswith(b"backy2 Version 2.12 metadata dump\r\n")


# Exports written by backy2


@pytest.mark.parametrize("path", EXPORTS, ids=lambda path: f"{path.parts[-3]}-{path.stem[:8]}")
def test_exports_of_backy2_are_read(path: Path) -> None:
    facts = json.loads((path.parent.parent / "EXPECTED.json").read_text("utf-8"))
    expected = facts["versions"][path.stem]
    rows = expected["blocks"]
    has_protection = path.read_bytes().split(b" ", 3)[2] != b"2.1"  # that format does not say
    with path.open("rb") as file:
        _, version, *records = read_backy2_export(file, facts["block_size"])
    assert isinstance(version, VersionRecord)
    assert version.uid == path.stem
    assert (version.name, version.snapshot_name) == (expected["name"], expected["snapshot_name"])
    assert version.size_bytes == expected["size_bytes"]
    assert version.protected is bool(expected["protected"] and has_protection)
    assert f"{version.created_at:%Y-%m-%d %H:%M:%S}" == expected["date"][:19]
    assert version.status is (
        VersionStatus.INCOMPLETE
        if rows["absent_ids"]
        else VersionStatus.VALID
        if expected["valid"]
        else VersionStatus.INVALID
    )
    [page] = [record for record in records if isinstance(record, PageRecord)]
    blobs = {record.uid: record for record in records if isinstance(record, BlobRecord)}
    assert [index for index, entry in enumerate(page.entries) if entry == -1] == rows["absent_ids"]
    assert sum(entry == 0 for entry in page.entries) == rows["sparse"]
    found = [blobs[BlobUid(entry)] for entry in page.entries if isinstance(entry, str)]
    assert {
        number: sum(blob.encryption_version == int(number) for blob in found) for number in rows["by_enc_version"]
    } == rows["by_enc_version"]
    assert all(len(blob.wrapped_key or b"") == 40 * blob.encryption_version for blob in found)
    assert all(len(blob.fingerprint or b"") == 64 for blob in found)


def test_there_are_exports_of_all_formats() -> None:
    assert {path.read_bytes().split(b" ", 3)[2] for path in EXPORTS} == {b"2.1", b"2.2", b"2.10", b"2.12"}
