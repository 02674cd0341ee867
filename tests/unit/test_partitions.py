"""Partition tables: made by Linux tools, broken, hostile, and none at all."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backyfs.errors import BackyfsError, IntegrityError
from backyfs.images.partitions import Partition, PartitionTable, describe, read_partitions
from tests.support.images import random_bytes, sparse_image

if TYPE_CHECKING:
    from collections.abc import Mapping

MIB = 1 << 20
LINUX = "0fc63daf-8483-4772-8e79-3d69d8477de4"
SWAP = "0657fd6d-a4ab-43c4-84e5-0933c84b4f4f"
EFI = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"

GPT_SCRIPT = f"""label: gpt
size=4MiB, type={EFI}, name="EFI System", attrs="LegacyBIOSBootable"
size=8MiB, type={LINUX}, name="root"
type={SWAP}
"""
DOS_SCRIPT = """label: dos
label-id: 0xc0ffee42
size=4MiB, type=83, bootable
size=8MiB, type=8e
size=30MiB, type=5
size=2MiB, type=7
size=3MiB, type=83
size=4MiB, type=82
size=5MiB, type=e8
"""


def tool(*arguments: str | Path, text: str = "", **environment: str) -> str:
    """Run a program that may not be in the PATH of users; return its output."""
    if shutil.which(str(arguments[0]), path=PATH) is None:
        pytest.skip(f"{arguments[0]} is not installed")
    done = subprocess.run(
        [str(argument) for argument in arguments],
        input=text,
        env={**os.environ, "PATH": PATH, "LC_ALL": "C.UTF-8", **environment},
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout


@dataclass(kw_only=True)
class Medium:
    """An image to read from, possibly damaged in places. Every read must be within it."""

    image: bytes | bytearray | Path
    damaged: range = range(0)
    error: Exception = field(default_factory=lambda: IntegrityError("blob 3-1 is damaged"))
    read_bytes: int = 0
    reads: int = 0

    @property
    def size(self) -> int:
        return self.image.stat().st_size if isinstance(self.image, Path) else len(self.image)

    def read(self, offset: int, size: int) -> bytes:
        assert offset >= 0
        assert size > 0
        assert offset + size <= self.size
        self.reads += 1
        self.read_bytes += size
        if offset < self.damaged.stop and offset + size > self.damaged.start:
            raise self.error
        if isinstance(self.image, Path):
            with self.image.open("rb") as file:
                return os.pread(file.fileno(), size, offset)
        return bytes(self.image[offset : offset + size])

    def table(self) -> PartitionTable:
        return read_partitions(self.read, self.size)


def table_of(image: bytes | bytearray | Path, damaged: range = range(0)) -> PartitionTable:
    return Medium(image=image, damaged=damaged).table()


def places(table: PartitionTable) -> dict[int, tuple[int, int]]:
    """Return start and size of each partition, by its number."""
    return {partition.number: (partition.start, partition.size) for partition in table.partitions}


def empty_image(path: Path, size: int = 64 * MIB) -> Path:
    return sparse_image(path, size, {})


def sfdisk_image(path: Path, script: str, size: int = 64 * MIB) -> Path:
    tool("sfdisk", "--quiet", "--no-tell-kernel", empty_image(path, size), text=script)
    return path


def as_sfdisk_says(path: Path) -> PartitionTable:
    """Return the partition table of an image, without remarks and without facts that sfdisk does not print."""
    said = json.loads(tool("sfdisk", "--json", path))["partitiontable"]
    is_gpt = said["label"] == "gpt"
    partitions = [
        Partition(
            number=int(re.sub(r".*\D", "", each["node"])),
            start=each["start"] * 512,
            size=each["size"] * 512,
            kind=each["type"].lower() if is_gpt else f"0x{int(each['type'], 16):02x}",
            name=each.get("name", ""),
            uid=each.get("uuid", "").lower(),
            bootable=each.get("bootable", False) or "LegacyBIOSBootable" in each.get("attrs", ""),
        )
        for each in said["partitions"]
    ]
    return PartitionTable(scheme=said["label"], sector_bytes=512, partitions=tuple(partitions), remarks=())


def as_parted_says(path: Path, sector_bytes: int) -> dict[int, tuple[int, int]]:
    """Return start and size of each partition, by its number."""
    said = tool("parted", "-m", "-s", path, "unit", "B", "print", PARTED_SECTOR_SIZE=str(sector_bytes))
    rows = [line.split(":") for line in said.splitlines() if re.match(r"\d+:", line)]
    return {int(row[0]): (int(row[1][:-1]), int(row[3][:-1])) for row in rows}


# Tables made by hand, which the tools refuse to make.


def dos_entry(first: int, sectors: int, kind: int = 0x83, boot: int = 0) -> bytes:
    return struct.pack("<B3sB3sII", boot, b"\xfe\xff\xff", kind, b"\xfe\xff\xff", first, sectors)


def dos_sector(*entries: bytes, signature: int = 0xC0FFEE42) -> bytes:
    table = b"".join(entries).ljust(64, b"\0")
    return bytes(440) + struct.pack("<IH", signature, 0) + table + b"\x55\xaa"


def dos_image(path: Path, sectors: dict[int, bytes], size: int = 64 * MIB) -> Path:
    return sparse_image(path, size, {sector * 512: content for sector, content in sectors.items()})


def gpt_entry(first: int, last: int, name: str = "", kind: str = LINUX, uid: int = 7) -> bytes:
    label = name.encode("utf-16-le").ljust(72, b"\0")
    return struct.pack("<16s16sQQQ", UUID(kind).bytes_le, UUID(int=uid).bytes_le, first, last, 0) + label


def gpt_header(own: int, other: int, array: int, entries: bytes, odd: Mapping[str, int] | None = None) -> bytes:
    """Return a header that is correct for these entries, except for the odd fields."""
    fields = {"size": 92, "array": array, "count": len(entries) // 128, "entry_bytes": 128, **(odd or {})}
    where = struct.pack("<QQQQ16sQ", own, other, 34, 2014, bytes(16), fields["array"])
    what = struct.pack("<III", fields["count"], fields["entry_bytes"], zlib.crc32(entries))
    header = struct.pack("<8sIIII", b"EFI PART", 0x10000, fields["size"], 0, 0) + where + what
    return with_checksum(header)


def with_checksum(header: bytes) -> bytes:
    return header[:16] + struct.pack("<I", zlib.crc32(header[:16] + bytes(4) + header[20:])) + header[20:]


def gpt_image(
    *entries: bytes, sector: int = 512, protective: bool = True, odd: Mapping[str, int] | None = None
) -> bytearray:
    """Return an image of 1 MiB with a GPT of 128 entries."""
    image = bytearray(MIB)
    last = MIB // sector - 1
    array = b"".join(entries).ljust(128 * 128, b"\0")
    behind = len(array) // sector
    if protective:
        image[:512] = dos_sector(dos_entry(1, last, 0xEE), signature=0)
    image[2 * sector : 2 * sector + len(array)] = array
    image[(last - behind) * sector : last * sector] = array
    image[sector : sector + 92] = gpt_header(1, last, 2, array, odd)
    image[last * sector : last * sector + 92] = gpt_header(last, 1, last - behind, array, odd)
    return image


TWO = (gpt_entry(64, 191, "one"), gpt_entry(192, 1023, "two"))
TWO_PLACES = {1: (64 * 512, 128 * 512), 2: (192 * 512, 832 * 512)}
BACKUP = MIB - 512
BACKUP_ARRAY = BACKUP - 128 * 128


# Tables made by tools.


def test_a_gpt_made_by_sfdisk_is_read(tmp_path: Path) -> None:
    image = sfdisk_image(tmp_path / "image", GPT_SCRIPT)
    table = table_of(image)
    assert table == as_sfdisk_says(image)
    assert [(partition.name, partition.kind, partition.bootable) for partition in table.partitions] == [
        ("EFI System", EFI, True),
        ("root", LINUX, False),
        ("", SWAP, False),
    ]


def test_a_gpt_made_by_sgdisk_with_gaps_between_its_numbers_is_read(tmp_path: Path) -> None:
    image = empty_image(tmp_path / "image")
    tool("sgdisk", "-n", "7:0:+8M", "-n", "3:0:+4M", "-n", "128:0:0", "-A", "3:set:2", "-t", "7:8309", image)
    table = table_of(image)
    assert table == as_sfdisk_says(image)
    assert [partition.number for partition in table.partitions] == [3, 7, 128]
    assert "ca7d7ccb-63ed-4c53-861c-1742536059cc LUKS" in describe(table)


@pytest.mark.parametrize("options", [["-j", "1000"], ["-S", "512"], ["-S", "4"]])
def test_entries_may_be_elsewhere_and_more_or_fewer(tmp_path: Path, options: list[str]) -> None:
    image = empty_image(tmp_path / "image")
    tool("sgdisk", "-a", "2048", *options, "-n", "1:0:+8M", "-c", "1:here", image)
    table = table_of(image)
    assert table == as_sfdisk_says(image)
    assert places(table) == {1: (MIB, 8 * MIB)}


@pytest.mark.parametrize(
    "name", ["ünter uns", "日本語 😀", 'a "quoted" \\ name', "x" * 36, "\x1b[2Jgone", "two\nlines", "\u202egnp.exe"]
)
def test_a_label_is_read_unchanged(tmp_path: Path, name: str) -> None:
    image = empty_image(tmp_path / "image")
    tool("sgdisk", "-n", "1:0:+8M", "-c", f"1:{name}", image)
    assert [partition.name for partition in table_of(image).partitions] == [name]


@pytest.mark.parametrize("sector_bytes", [512, 4096])
def test_a_gpt_made_by_parted_is_read(tmp_path: Path, sector_bytes: int) -> None:
    image = empty_image(tmp_path / "image")
    parts = ["mkpart", "boot", "1MiB", "9MiB", "mkpart", "data", "ext4", "9MiB", "100%", "set", "1", "esp", "on"]
    tool("parted", "-s", image, "mklabel", "gpt", *parts, PARTED_SECTOR_SIZE=str(sector_bytes))
    table = table_of(image)
    assert (table.scheme, table.sector_bytes, table.remarks) == ("gpt", sector_bytes, ())
    assert places(table) == as_parted_says(image, sector_bytes)
    assert [(partition.name, partition.kind) for partition in table.partitions] == [("boot", EFI), ("data", LINUX)]


def test_a_gpt_made_by_fdisk_with_sectors_of_4096_bytes_is_read(tmp_path: Path) -> None:
    image = empty_image(tmp_path / "image")
    (tmp_path / "script").write_text(GPT_SCRIPT)
    tool("fdisk", "-b", "4096", image, text=f"I\n{tmp_path / 'script'}\nw\n")
    table = table_of(image)
    said = tool("fdisk", "-b", "4096", "-l", "-o", "Start,Sectors,UUID", image).splitlines()[-3:]
    assert table.sector_bytes == 4096
    assert [
        f"{partition.start // 4096} {partition.size // 4096} {partition.uid.upper()}" for partition in table.partitions
    ] == [" ".join(line.split()) for line in said]


def test_a_hybrid_mbr_gives_the_partitions_of_the_gpt(tmp_path: Path) -> None:
    image = sfdisk_image(tmp_path / "image", GPT_SCRIPT)
    expected = as_sfdisk_says(image)
    tool("sgdisk", "-h", "1:2", image)
    table = table_of(image)
    assert table.partitions == expected.partitions
    assert table.remarks == ("The MBR also has partitions (it is hybrid); those of the GPT are used.",)


def test_an_mbr_made_by_sfdisk_with_logical_partitions_is_read(tmp_path: Path) -> None:
    image = sfdisk_image(tmp_path / "image", DOS_SCRIPT)
    table = table_of(image)
    expected = as_sfdisk_says(image)
    assert [partition.number for partition in table.partitions] == [1, 2, 3, 4, 5, 6, 7]
    assert table == replace(
        expected, partitions=tuple(replace(each, uid=f"c0ffee42-0{each.number}") for each in expected.partitions)
    )


def test_uids_are_the_same_as_in_linux(tmp_path: Path) -> None:
    for script in (DOS_SCRIPT, GPT_SCRIPT):
        image = sfdisk_image(tmp_path / "image", script)
        said = tool("partx", "--raw", "--noheadings", "--output", "NR,UUID", image)
        assert [f"{partition.number} {partition.uid}" for partition in table_of(image).partitions] == said.splitlines()


@pytest.mark.parametrize("sector_bytes", [512, 4096])
def test_an_mbr_made_by_parted_with_logical_partitions_is_read(tmp_path: Path, sector_bytes: int) -> None:
    image = empty_image(tmp_path / "image")
    parts = ("primary 1MiB 3MiB", "extended 3MiB 100%", "logical 4MiB 5MiB", "logical 6MiB 9MiB")
    commands = [word for part in parts for word in ("mkpart", *part.split())]
    tool("parted", "-s", image, "mklabel", "msdos", *commands, PARTED_SECTOR_SIZE=str(sector_bytes))
    table = table_of(image)
    assert (table.scheme, table.sector_bytes, table.remarks) == ("dos", sector_bytes, ())
    assert places(table) == as_parted_says(image, sector_bytes)
    assert list(places(table)) == [1, 2, 5, 6]


@pytest.mark.parametrize("sector_bytes", [512, 4096])
def test_a_file_system_reveals_the_sector_size_of_an_mbr(tmp_path: Path, sector_bytes: int) -> None:
    pieces = {0: dos_sector(dos_entry(256, 1024)), 256 * sector_bytes: b"XFSB"}
    table = table_of(sparse_image(tmp_path / "image", 64 * MIB, pieces))
    assert (table.sector_bytes, places(table)) == (sector_bytes, {1: (256 * sector_bytes, 1024 * sector_bytes)})


@pytest.mark.parametrize("size_sectors", [1024, 131072 - 256])
def test_sectors_have_512_bytes_by_default(tmp_path: Path, size_sectors: int) -> None:
    table = table_of(dos_image(tmp_path / "image", {0: dos_sector(dos_entry(256, size_sectors))}))
    assert (table.sector_bytes, places(table)) == (512, {1: (256 * 512, size_sectors * 512)})


def test_a_full_disk_is_not_searched_for_its_sector_size(tmp_path: Path) -> None:
    medium = Medium(image=dos_image(tmp_path / "image", {0: dos_sector(dos_entry(256, 131072 - 256))}))
    medium.table()
    assert medium.reads == 3  # the boot sector, and two looks for a GPT


@pytest.mark.parametrize("label", ["gpt", "dos"])
def test_a_table_can_be_empty(tmp_path: Path, label: str) -> None:
    table = table_of(sfdisk_image(tmp_path / "image", f"label: {label}\n"))
    assert (table.scheme, table.partitions, table.remarks) == (label, (), ())
    assert "There are no partitions." in describe(table)


# Images without a table.


@pytest.mark.parametrize(
    ("command", "size"),
    [
        ("mkfs.ext4 -q -F", 64 * MIB),
        ("mkfs.xfs -q", 320 * MIB),
        ("mkfs.vfat", 64 * MIB),
        ("mkfs.vfat --mbr=y", 64 * MIB),
        ("mkfs.vfat -F 32", 128 * MIB),
        ("mkfs.ntfs -F -Q", 64 * MIB),
        ("mkswap", 64 * MIB),
    ],
)
@pytest.mark.parametrize("was_gpt", [False, True])
def test_a_file_system_on_the_whole_disk_is_not_a_table(tmp_path: Path, command: str, size: int, was_gpt: bool) -> None:
    image = tmp_path / "image"
    if was_gpt:
        sfdisk_image(image, GPT_SCRIPT, size)
        with image.open("r+b") as file:
            file.write(bytes(MIB))  # the backup is still there
    else:
        empty_image(image, size)
    tool(*command.split(), image)
    table = table_of(image)
    assert table == PartitionTable(scheme="", sector_bytes=512, partitions=(), remarks=())
    assert describe(table) == "There is no partition table.\n"


@pytest.mark.parametrize("content", [b"", b"\0", bytes(511), bytes(MIB), random_bytes(MIB), b"\xff" * MIB])
def test_an_image_without_a_table_gives_none(content: bytes) -> None:
    assert table_of(content) == PartitionTable(scheme="", sector_bytes=512, partitions=(), remarks=())


@pytest.mark.parametrize("system", [b"EXFAT   ", b"NTFS    "])
def test_a_boot_sector_is_not_a_table(system: bytes) -> None:
    sector = bytearray(dos_sector())
    sector[:11] = b"\xeb\x76\x90" + system
    assert table_of(sector + bytes(MIB)).scheme == ""


def test_a_sector_with_code_in_place_of_the_table_is_not_a_table() -> None:
    sector = dos_sector(dos_entry(2048, 10), dos_entry(4096, 10), dos_entry(5000, 10, boot=0x65))
    assert table_of(sector + bytes(8 * MIB)).scheme == ""


@pytest.mark.parametrize("script", [GPT_SCRIPT, DOS_SCRIPT])
def test_a_table_on_a_former_file_system_is_read(tmp_path: Path, script: str) -> None:
    image = sfdisk_image(tmp_path / "image", script)
    expected = table_of(image)
    tool("mkfs.vfat", empty_image(tmp_path / "old"))
    with image.open("r+b") as file, (tmp_path / "old").open("rb") as old:
        file.write(old.read(440))
    assert table_of(image) == expected


# Broken GPTs.


def test_a_gpt_made_by_hand_is_sound() -> None:
    table = table_of(gpt_image(*TWO))
    assert (table.scheme, places(table), table.remarks) == ("gpt", TWO_PLACES, ())
    assert table_of(gpt_image(*TWO, sector=4096)).sector_bytes == 4096


def test_the_end_of_an_image_with_a_sound_gpt_is_not_read() -> None:
    table = table_of(gpt_image(*TWO), damaged=range(MIB // 2, MIB))
    assert (places(table), table.remarks) == (TWO_PLACES, ())


@pytest.mark.parametrize("sector", [512, 4096])
def test_the_backup_is_used_if_the_first_header_is_missing(sector: int) -> None:
    image = gpt_image(gpt_entry(64, 191), sector=sector)
    expected = table_of(image)
    image[sector : 2 * sector] = bytes(sector)
    table = table_of(image)
    assert (table.partitions, table.sector_bytes) == (expected.partitions, sector)
    assert table.remarks == (f"The first copy of the GPT is not usable; the backup at byte {MIB - sector} is used.",)


@pytest.mark.parametrize(
    ("position", "remark"),
    [
        (512 + 40, "The GPT header at byte 512 has a wrong checksum."),
        (1024 + 32, "The GPT entries at byte 1024 have a wrong checksum."),
    ],
    ids=["header", "entries"],
)
def test_the_backup_is_used_if_a_checksum_is_wrong(position: int, remark: str) -> None:
    image = gpt_image(*TWO)
    image[position] ^= 1
    table = table_of(image)
    assert places(table) == TWO_PLACES
    assert table.remarks == (remark, f"The first copy of the GPT is not usable; the backup at byte {BACKUP} is used.")


def test_the_backup_alone_is_enough() -> None:
    image = gpt_image(*TWO)
    image[: MIB // 2] = bytes(MIB // 2)
    table = table_of(image)
    assert places(table) == TWO_PLACES
    assert table.remarks[-1] == "The GPT has no protective MBR."


def test_the_backup_is_found_in_a_grown_image() -> None:
    image = gpt_image(*TWO)
    image[1024] ^= 1
    table = table_of(image + bytes(MIB))
    assert places(table) == TWO_PLACES
    assert table.remarks[-1] == f"The GPT was made for a disk of {MIB} bytes; the image has {2 * MIB} bytes."


def test_entries_are_listed_even_if_both_headers_are_wrong() -> None:
    image = gpt_image(*TWO)
    image[512 + 40] ^= 1
    image[BACKUP + 40] ^= 1
    table = table_of(image)
    assert places(table) == TWO_PLACES
    assert table.remarks == (
        "The GPT header at byte 512 has a wrong checksum.",
        f"The GPT header at byte {BACKUP} has a wrong checksum.",
        "No copy of the GPT is intact; the partitions are those of the copy at byte 512.",
    )


def test_the_broken_copy_with_correct_entries_is_used() -> None:
    image = gpt_image(*TWO)
    image[1024:2048] = random_bytes(1024)
    image[BACKUP + 40] ^= 1
    assert places(table_of(image)) == TWO_PLACES


def test_the_more_plausible_copy_is_used_if_both_have_broken_entries() -> None:
    image = gpt_image(*TWO)
    image[1024:2048] = random_bytes(1024)
    image[BACKUP_ARRAY + 56] ^= 1  # in a label
    assert places(table_of(image)) == TWO_PLACES


def test_a_protective_mbr_without_a_gpt_is_not_a_table() -> None:
    table = table_of(dos_sector(dos_entry(1, 2047, 0xEE)) + bytes(MIB - 512))
    assert (table.scheme, table.partitions) == ("", ())
    assert table.remarks == ("The MBR refers to a GPT, but none was found.",)


def test_a_hybrid_mbr_is_used_if_its_gpt_is_missing() -> None:
    table = table_of(dos_sector(dos_entry(1, 63, 0xEE), dos_entry(64, 128)) + bytes(MIB - 512))
    assert (table.scheme, places(table)) == ("dos", {2: (64 * 512, 128 * 512)})


def test_a_gpt_without_protective_mbr_is_read() -> None:
    table = table_of(gpt_image(*TWO, protective=False))
    assert (places(table), table.remarks) == (TWO_PLACES, ("The GPT has no protective MBR.",))


def test_a_gpt_without_an_entry_in_the_mbr_is_not_used() -> None:
    image = gpt_image(*TWO)
    image[:512] = dos_sector(dos_entry(100, 50))
    table = table_of(image)
    assert (table.scheme, places(table)) == ("dos", {1: (100 * 512, 50 * 512)})
    assert table.remarks == ("There is also an unused GPT: the MBR does not refer to it and has partitions.",)


def test_a_truncated_image_shows_the_rest_of_its_partitions() -> None:
    entries = [*TWO, gpt_entry(1024, 1500)]
    table = table_of(gpt_image(*entries)[: 500 * 512])
    assert places(table) == {1: (64 * 512, 128 * 512), 2: (192 * 512, 308 * 512)}
    assert [each.missing for each in table.partitions] == [0, 524288 - 256000]
    assert [(each.number, each.start, each.size) for each in table.outside] == [(3, 1024 * 512, 477 * 512)]
    assert table.remarks == (
        f"The GPT was made for a disk of {MIB} bytes; the image has 256000 bytes.",
        "Partition 2 ends at byte 524288, beyond the end of the image; it is cut there.",
        "Partition 3 starts at byte 524288, beyond the end of the image; it is left out.",
    )


def test_impossible_entries_are_left_out() -> None:
    table = table_of(gpt_image(gpt_entry(200, 199), gpt_entry(300, 100), gpt_entry(2**64 - 1, 2**64 - 1), *TWO))
    assert list(places(table).values()) == list(TWO_PLACES.values())
    assert table.remarks == (
        "Partition 1 ends before it starts; it is left out.",
        "Partition 2 ends before it starts; it is left out.",
        f"Partition 3 starts at byte {(2**64 - 1) * 512}, beyond the end of the image; it is left out.",
    )


def test_overlapping_partitions_are_reported() -> None:
    table = table_of(gpt_image(gpt_entry(100, 300), gpt_entry(64, 199), gpt_entry(301, 400), gpt_entry(64, 1999)))
    assert list(places(table)) == [1, 2, 3, 4]
    assert table.remarks == (
        "Partition 4 overlaps partition 2.",
        "Partition 1 overlaps partition 4.",
        "Partition 3 overlaps partition 4.",
    )
    assert table.overlapping == {4: 2, 1: 4, 3: 4}


def test_of_identical_partitions_all_but_one_are_reported_as_overlapping() -> None:
    table = table_of(gpt_image(*[gpt_entry(64, 1999)] * 1024))
    assert len(table.partitions) == 128
    assert set(table.overlapping) == set(range(2, 129))
    assert len(table.remarks) <= 101


@pytest.mark.parametrize(
    "odd",
    [
        {"count": 2**32 - 1},
        {"count": 2**32 - 1, "entry_bytes": 4096},
        {"entry_bytes": 0},
        {"entry_bytes": 1},
        {"entry_bytes": 2**32 - 1},
        {"entry_bytes": 2**31},
        {"array": 2**64 - 1},
        {"size": 0},
        {"size": 2**32 - 1},
    ],
)
def test_a_header_with_huge_numbers_costs_little(odd: dict[str, int]) -> None:
    medium = Medium(image=gpt_image(*TWO, odd=odd) + bytes(8 * MIB))
    table = medium.table()
    assert len(table.partitions) <= 128
    assert table.remarks
    assert medium.read_bytes < 4 * MIB
    assert medium.reads < 400


def test_no_more_than_1024_entries_are_read_and_128_partitions_listed() -> None:
    entries = b"".join(gpt_entry(6000 + number, 6000 + number) for number in range(1100))
    image = bytearray(8 * MIB)
    image[:512] = dos_sector(dos_entry(1, 16383, 0xEE))
    image[512:604] = gpt_header(1, 16383, 2, entries)
    image[1024 : 1024 + len(entries)] = entries
    table = table_of(image)
    assert [partition.number for partition in table.partitions] == list(range(1, 129))
    assert table.left_out == 1024 - 128
    assert table.remarks == (
        "The GPT header at byte 512 has 1100 entries; those after number 1024 are left out.",
        "There are 1024 partitions; only the 128 with the lowest numbers are listed.",
    )


def test_there_are_no_more_than_a_hundred_remarks() -> None:
    table = table_of(gpt_image(*(gpt_entry(2, 1) for _ in range(128))))
    assert len(table.remarks) == 101
    assert table.remarks[-1] == "28 further remarks are left out."


def test_a_label_that_is_not_text_is_shown() -> None:
    entry = bytearray(gpt_entry(64, 191))
    entry[56:128] = b"\x00\xd8" * 36  # halves of surrogate pairs
    table = table_of(gpt_image(bytes(entry)))
    assert set(table.partitions[0].name) == {"\ufffd"}


# Broken MBRs.


def test_a_loop_of_extended_partitions_ends(tmp_path: Path) -> None:
    first = dos_sector(dos_entry(8, 8), dos_entry(100, 20, 5))
    second = dos_sector(dos_entry(8, 8), dos_entry(0, 20, 5))
    image = dos_image(tmp_path / "image", {0: dos_sector(dos_entry(1000, 9000, 5)), 1000: first, 1100: second})
    table = table_of(image)
    assert places(table) == {
        1: (1000 * 512, 9000 * 512),
        5: (1008 * 512, 8 * 512),
        6: (1108 * 512, 8 * 512),
    }
    assert table.remarks == (
        "The list of logical partitions at byte 512000 was read before: the list is a loop, and ends here.",
    )


def test_a_long_list_of_logical_partitions_is_limited(tmp_path: Path) -> None:
    sectors = {
        1000 + 10 * number: dos_sector(dos_entry(1, 2), dos_entry(10 * number + 10, 5, 5)) for number in range(2000)
    }
    medium = Medium(image=dos_image(tmp_path / "image", {0: dos_sector(dos_entry(1000, 100_000, 5)), **sectors}))
    table = medium.table()
    assert [partition.number for partition in table.partitions] == [1, *range(5, 132)]
    assert table.remarks == (
        f"The list of logical partitions at byte {3560 * 512} is one of more than 256 and is not read.",
        "There are 257 partitions; only the 128 with the lowest numbers are listed.",
    )
    assert medium.reads < 300


def test_four_logical_partitions_per_sector_are_also_limited_to_256(tmp_path: Path) -> None:
    three = [dos_entry(number, 1) for number in (1, 2)]
    sectors = {
        1000 + 10 * number: dos_sector(*three, dos_entry(10 * number + 10, 5, 5), dos_entry(3, 1))
        for number in range(200)
    }
    table = table_of(dos_image(tmp_path / "image", {0: dos_sector(dos_entry(1000, 100_000, 5)), **sectors}))
    assert [partition.number for partition in table.partitions] == [1, *range(5, 132)]
    assert table.remarks == (
        "There are more than 256 logical partitions; the rest are left out.",
        "There are 257 partitions; only the 128 with the lowest numbers are listed.",
    )


def test_the_last_two_entries_for_logical_partitions_can_be_garbage(tmp_path: Path) -> None:
    rubbish = dos_entry(0x61616161, 0x62626262, 0x63)
    image = dos_image(
        tmp_path / "image",
        {0: dos_sector(dos_entry(1000, 9000, 5)), 1000: dos_sector(dos_entry(8, 8), bytes(16), rubbish, rubbish)},
    )
    table = table_of(image)
    assert (list(places(table)), table.remarks) == ([1, 5], ())


def test_both_of_two_extended_partitions_count(tmp_path: Path) -> None:
    image = dos_image(
        tmp_path / "image",
        {
            0: dos_sector(dos_entry(1000, 100, 0x85), dos_entry(2000, 100, 0x0F)),
            1000: dos_sector(dos_entry(8, 8)),
            2000: dos_sector(dos_entry(9, 9)),
        },
    )
    assert places(table_of(image)) == {
        1: (1000 * 512, 100 * 512),
        2: (2000 * 512, 100 * 512),
        5: (1008 * 512, 8 * 512),
        6: (2009 * 512, 9 * 512),
    }


def test_a_list_of_logical_partitions_that_leaves_the_image_ends(tmp_path: Path) -> None:
    first = dos_sector(dos_entry(8, 8), dos_entry(2**32 - 1, 20, 5))
    table = table_of(dos_image(tmp_path / "image", {0: dos_sector(dos_entry(1000, 9000, 5)), 1000: first}))
    assert list(places(table)) == [1, 5]
    assert table.remarks == (
        f"The list of logical partitions at byte {(2**32 + 999) * 512} is beyond the end of the image; it ends here.",
    )


def test_an_extended_partition_without_a_list_is_reported(tmp_path: Path) -> None:
    table = table_of(dos_image(tmp_path / "image", {0: dos_sector(dos_entry(1000, 9000, 5))}))
    assert list(places(table)) == [1]
    assert table.remarks == ("The list of logical partitions at byte 512000 has no signature; it ends here.",)


def test_primary_partitions_beyond_the_end_are_cut_or_left_out(tmp_path: Path) -> None:
    sector = dos_sector(dos_entry(0, 0), dos_entry(2**32 - 1, 2**32 - 1), dos_entry(2000, 2**32 - 1), dos_entry(64, 0))
    table = table_of(dos_image(tmp_path / "image", {0: sector}))
    assert places(table) == {3: (2000 * 512, 64 * MIB - 2000 * 512)}
    assert [remark[:20] for remark in table.remarks] == ["Partition 2 starts a", "Partition 3 ends at "]


def test_a_partition_that_overlaps_an_extended_one_is_reported(tmp_path: Path) -> None:
    sectors = {0: dos_sector(dos_entry(1000, 9000, 5), dos_entry(9000, 9000)), 1000: dos_sector(dos_entry(8, 8))}
    table = table_of(dos_image(tmp_path / "image", sectors))
    assert list(places(table)) == [1, 2, 5]
    assert table.remarks == ("Partition 2 overlaps partition 1.",)


def test_a_disk_without_a_signature_has_no_partition_uids(tmp_path: Path) -> None:
    table = table_of(dos_image(tmp_path / "image", {0: dos_sector(dos_entry(1000, 90), signature=0)}))
    assert [partition.uid for partition in table.partitions] == [""]


# Damaged images.


@pytest.mark.parametrize("error", [IntegrityError("blob 3-1 is damaged"), BackyfsError("no."), OSError(5, "broken")])
def test_the_backup_is_used_if_the_beginning_cannot_be_read(error: Exception) -> None:
    medium = Medium(image=gpt_image(*TWO), damaged=range(4096), error=error)
    table = medium.table()
    assert places(table) == TWO_PLACES
    assert table.remarks == (
        f"The image cannot be read at byte 0: {str(error).rstrip('.')}.",
        f"The first copy of the GPT is not usable; the backup at byte {BACKUP} is used.",
    )


def test_the_backup_is_used_if_the_entries_cannot_be_read() -> None:
    table = table_of(gpt_image(*TWO), damaged=range(8192, 12288))
    assert places(table) == TWO_PLACES
    assert table.remarks[:2] == (
        "The image cannot be read at byte 1024: blob 3-1 is damaged.",
        "The GPT entries at byte 1024 cannot be read, or are partly outside the image.",
    )


def test_an_unreadable_image_has_no_table() -> None:
    table = table_of(gpt_image(*TWO), damaged=range(MIB))
    assert (table.scheme, table.partitions) == ("", ())
    assert table.remarks == ("The image cannot be read at byte 0: blob 3-1 is damaged.",)


def test_primary_partitions_are_listed_if_logical_ones_cannot_be_read(tmp_path: Path) -> None:
    image = sfdisk_image(tmp_path / "image", DOS_SCRIPT)
    whole = table_of(image)
    extended = whole.partitions[2]
    table = table_of(image, damaged=range(extended.start, extended.start + 4096))
    assert table.partitions == whole.partitions[:4]
    assert table.remarks[0] == f"The image cannot be read at byte {extended.start}: blob 3-1 is damaged."


# Descriptions.


def test_a_table_is_described() -> None:
    table = replace(table_of(gpt_image(*TWO)), remarks=("It is odd.",))
    assert describe(table) == (
        "Partition table: GPT\n"
        "Sector size: 512 bytes\n"
        "Start and end are in bytes; the end is the first byte after the partition.\n"
        "\n"
        "Number  Start     End   Bytes       Size  Boot  Type                                       "
        "            Uid                                   Name\n"
        "     1  32768   98304   65536   64.0 KiB  no    0fc63daf-8483-4772-8e79-3d69d8477de4 Linux "
        'filesystem  00000000-0000-0000-0000-000000000007  "one"\n'
        "     2  98304  524288  425984  416.0 KiB  no    0fc63daf-8483-4772-8e79-3d69d8477de4 Linux "
        'filesystem  00000000-0000-0000-0000-000000000007  "two"\n'
        "\n"
        "Remarks:\n"
        "  It is odd.\n"
    )


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("\x1b[2J\n", r'"\x1b[2J\n"'),
        ('a"b\\n', r'"a\"b\\n"'),
        ("\u202e\x9b\U000e0041\x7f", r'"\u202e\x9b\U000e0041\x7f"'),
        ("ünter 日本", '"ünter 日本"'),
        ("", "-"),
    ],
)
def test_a_label_cannot_control_the_terminal(name: str, shown: str) -> None:
    text = describe(table_of(gpt_image(gpt_entry(64, 100, name))))
    assert text.splitlines()[-1].endswith(f"  {shown}")


def test_an_error_cannot_control_the_terminal() -> None:
    medium = Medium(image=bytes(MIB), damaged=range(MIB), error=OSError("\x1b[2J"))
    assert r"cannot be read at byte 0: \x1b[2J." in describe(medium.table())


@pytest.mark.parametrize(
    ("size", "shown"), [(512, "512 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (2**40, "1.0 TiB"), (2**70, "1024.0 EiB")]
)
def test_a_size_has_a_unit(size: int, shown: str) -> None:
    part = Partition(number=1, start=0, size=size, kind="0xe8", name="", uid="", bootable=True)
    text = describe(PartitionTable(scheme="dos", sector_bytes=512, partitions=(part,), remarks=()))
    assert f"  {shown}  yes   0xe8 LUKS" in text


# Random input.


def check(image: bytes | bytearray, damaged: range = range(0)) -> None:
    """Check the invariants of every image."""
    medium = Medium(image=image, damaged=damaged)
    table = medium.table()
    assert table.scheme in {"", "gpt", "dos"}
    assert table.sector_bytes in {512, 4096}
    numbers = [partition.number for partition in table.partitions]
    assert numbers == sorted(set(numbers))
    assert all(0 <= partition.start < partition.end <= len(image) for partition in table.partitions)
    assert all(partition.size > 0 for partition in table.partitions)
    assert len(table.remarks) <= 101
    assert len(numbers) <= 128
    assert medium.read_bytes < 10 * MIB
    text = describe(table)
    text.encode()
    assert all(char.isprintable() or char == "\n" for char in text)


def logical_image() -> bytearray:
    image = bytearray(MIB)
    image[:512] = dos_sector(dos_entry(64, 100), dos_entry(200, 1800, 5))
    for number in range(5):
        link = dos_entry(100 * (number + 1), 100, 5)
        start = (200 + 100 * number) * 512
        image[start : start + 512] = dos_sector(dos_entry(8, 80), link if number < 4 else b"")
    return image


IMAGES = [bytes(image) for image in (gpt_image(*TWO), gpt_image(*TWO, sector=4096), logical_image())]
TELLING = [
    *range(440, 512), *range(512, 604), *range(1024, 1280), *range(4096, 4188), *range(8192, 8448),
    *range(BACKUP, BACKUP + 92), *range(MIB - 4096, MIB - 4096 + 92), *range(BACKUP_ARRAY, BACKUP_ARRAY + 256),
    *(sector * 512 + offset for sector in range(200, 700, 100) for offset in range(446, 512)),
]


@given(st.binary(max_size=20_000))
def test_random_bytes_do_no_harm(content: bytes) -> None:
    check(content)
    check(content[:510] + b"\x55\xaa" + content[510:])
    check(content[:512] + b"EFI PART" + content[512:])


@given(st.binary(min_size=66, max_size=66), st.binary(max_size=20_000))
def test_random_entries_of_an_mbr_do_no_harm(entries: bytes, content: bytes) -> None:
    table = bytearray(entries[:64])
    table[::16] = bytes(4)
    check(bytes(446) + bytes(table) + b"\x55\xaa" + content)


@given(st.binary(min_size=76, max_size=76), st.binary(max_size=2048))
def test_random_fields_of_a_gpt_do_no_harm(fields: bytes, entries: bytes) -> None:
    image = gpt_image(*TWO)
    image[1024 : 1024 + len(entries)] = entries
    image[512:604] = with_checksum(b"EFI PART" + image[520:528] + fields)
    check(image)


@given(
    st.sampled_from(IMAGES),
    st.lists(st.tuples(st.sampled_from(TELLING), st.binary(min_size=1, max_size=8)), max_size=8),
    st.booleans(),
    st.integers(0, MIB),
    st.tuples(st.integers(0, MIB), st.integers(0, 16384)),
)
def test_random_changes_of_a_table_do_no_harm(
    whole: bytes, changes: list[tuple[int, bytes]], is_sealed: bool, cut: int, damage: tuple[int, int]
) -> None:
    image = bytearray(whole)
    for place, content in changes:
        image[place : place + len(content)] = content
    if is_sealed:
        seal(image)
    check(image)
    check(image[: MIB - cut])
    check(image, damaged=range(damage[0], sum(damage)))


def seal(image: bytearray) -> None:
    """Correct the checksums, if the entries are in their usual place."""
    for start, array in ((512, 1024), (BACKUP, BACKUP_ARRAY), (4096, 8192), (MIB - 4096, MIB - 4096 - 128 * 128)):
        if image[start : start + 8] == b"EFI PART":
            struct.pack_into("<I", image, start + 88, zlib.crc32(image[array : array + 128 * 128]))
            image[start : start + 92] = with_checksum(bytes(image[start : start + 92]))


def test_changes_can_be_sealed() -> None:
    for whole in IMAGES:
        image = bytearray(whole)
        seal(image)
        assert image == whole
