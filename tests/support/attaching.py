"""Versions to attach, made from real file systems, and finding leftovers on this host."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import zlib
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from backyfs.host.answers import ask
from backyfs.host.loops import Loop, list_loops
from backyfs.host.mounttable import is_below, list_mounts
from backyfs.model import DEFAULT_BLOCK_SIZE
from tests.support.images import run_tool
from tests.support.program import backyfs
from tests.support.repositories import back_up, make_repository, opened

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MIB = 1 << 20
_GPT_HEADER = "<8sIIIIQQQQ16sQIII"  # UEFI specification 2.10, section 5.3.2


def repository_of(directory: Path, images: Mapping[str, Path]) -> Path:
    """Make a repository with a version of each image, by name; return the configuration."""
    config_file = make_repository(directory / "repository", block_size=DEFAULT_BLOCK_SIZE)
    with opened(config_file) as repository:
        for name, image in images.items():
            back_up(repository, image, name)
    return config_file


def config_of(home: Path) -> Path:
    """Return the configuration of the repository that `repository_of` made."""
    return home / "repository" / "backyfs.cfg"


def attach(home: Path, version: str, *arguments: Path | str) -> subprocess.CompletedProcess[str]:
    """Attach the newest version of a name."""
    return backyfs("-c", config_of(home), "--json", "attach", f"{version}@latest", *arguments)


def attached(home: Path, version: str, *arguments: Path | str) -> list[dict[str, object]]:
    """Attach the newest version of a name, without complaint, and return its partitions."""
    done = attach(home, version, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    rows: list[dict[str, object]] = json.loads(done.stdout)
    return rows


def empty_image(path: Path, size: int) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    return path


@contextmanager
def by_hand(image: Path | str, directory: Path, *options: str) -> Iterator[Path]:
    """Mount a file system manually, and unmount it at the end."""
    directory.mkdir(exist_ok=True)
    subprocess.run(["mount", *options, str(image), str(directory)], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", str(directory)], check=False, capture_output=True)


def dirty(image: Path, directory: Path) -> Path:
    """Write a file to a file system; return a copy of its image while it is mounted."""
    copy = image.with_name(f"dirty-{image.name}")
    with by_hand(image, directory, "-o", "loop") as files:
        with (files / "hello").open("wb") as file:
            file.write(b"good morning\n")
            file.flush()
            os.fsync(file.fileno())
        # Also out of the journal of an xfs.
        subprocess.run(["fsfreeze", "--freeze", str(files)], check=True)
        subprocess.run(["fsfreeze", "--unfreeze", str(files)], check=True)
        with (files / "later").open("wb") as file:  # perhaps only in the journal
            file.write(b"x")
            file.flush()
            os.fsync(file.fileno())
        run_tool("cp", "--sparse=always", str(image), str(copy))
    return copy


def disk_of(path: Path, partitions: Mapping[Path, str]) -> Path:
    """Make the image of a disk with a GPT and these images as partitions, each of a type known to sfdisk."""
    sizes = [image.stat().st_size for image in partitions]
    empty_image(path, sum(sizes) + 4 * MIB)
    script = "label: gpt\n" + "".join(
        f"size={size // 512}, type={kind}\n" for size, kind in zip(sizes, partitions.values(), strict=True)
    )
    subprocess.run(["sfdisk", "--quiet", str(path)], input=script, text=True, check=True)
    start = MIB
    for image, size in zip(partitions, sizes, strict=True):
        run_tool(
            "dd", f"if={image}", f"of={path}", "bs=1M", f"seek={start // MIB}", "conv=notrunc,sparse", "status=none"
        )
        start += size
    return path


def crowded_disk(path: Path, image: Path, partitions: int) -> Path:
    """Make the image of a disk with a GPT whose partitions are all identical and contain this image."""
    sectors, first = image.stat().st_size // 512, 4096
    empty_image(path, (first + sectors) * 512 + 4 * MIB)
    entry = bytes.fromhex("af3dc60f838472478e793d69d8477de4") + bytes(15) + b"\1"
    array = struct.pack("<32sQQQ72s", entry, first, first + sectors - 1, 0, b"") * partitions
    last = path.stat().st_size // 512 - 1
    fields = [b"EFI PART", 0x10000, 92, 0, 0, 1, last, 2048, last - 1, bytes(16), 2, partitions, 128, zlib.crc32(array)]
    fields[3] = zlib.crc32(struct.pack(_GPT_HEADER, *fields))
    with path.open("r+b") as disk:
        disk.seek(446)
        disk.write(struct.pack("<B3xB3xII", 0, 0xEE, 1, last) + bytes(48) + b"\x55\xaa")
        disk.write(struct.pack(_GPT_HEADER, *fields).ljust(512, b"\0") + array)
        disk.seek(first * 512)
        disk.write(image.read_bytes())
    return path


def volume_group_image(path: Path, name: str) -> Path:
    """Make an image of an LVM physical volume whose volume group has the volumes root and home."""
    empty_image(path, 16 * MIB)
    uid = "AbCdEf-1234-5678-9abc-defg-hijk-lmnopq"
    volumes = "".join(
        f"""
        {volume} {{
            id = "{volume[0]}bCdEf-1234-5678-9abc-defg-hijk-lmnopr"
            status = ["READ", "WRITE", "VISIBLE"]
            segment_count = 1
            segment1 {{
                start_extent = 0
                extent_count = 1
                type = "striped"
                stripe_count = 1
                stripes = ["pv0", {extent}]
            }}
        }}"""
        for extent, volume in enumerate(("root", "home"))
    )
    backup = path.with_suffix(".vg")
    backup.write_text(
        f"""contents = "Text Format Volume Group"
version = 1
{name} {{
    id = "{uid[:-1]}z"
    seqno = 1
    format = "lvm2"
    status = ["RESIZEABLE", "READ", "WRITE"]
    extent_size = 2048
    max_lv = 0
    max_pv = 0
    physical_volumes {{
        pv0 {{
            id = "{uid}"
            device = "/dev/nothing"
            status = ["ALLOCATABLE"]
            dev_size = 32768
            pe_start = 2048
            pe_count = 15
        }}
    }}
    logical_volumes {{{volumes}
    }}
}}
"""
    )
    done = subprocess.run(["losetup", "--find", "--show", str(path)], check=True, capture_output=True, text=True)
    device = done.stdout.strip()
    try:
        restore = ["--uuid", uid, "--restorefile", str(backup)]
        run_lvm("pvcreate", "--devices", device, "--force", "--yes", *restore, device)
        run_lvm("vgcfgrestore", "--devices", device, "--file", str(backup), name)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)
    return path


def with_forged_names(image: Path, path: Path, names: dict[bytes, bytes]) -> Path:
    """Copy an image of a physical volume, and replace names in its metadata with others of the same length.

    The checksums are correct. Format: lib/format_text/layout.h of LVM, mda_header and raw_locn.
    """
    content = bytearray(image.read_bytes())
    header = content.index(b" LVM2 x[5A%r0N*>") - 4
    start, _, offset, size = struct.unpack_from("<QQQQ", content, header + 24)
    text = bytes(content[start + offset : start + offset + size])
    for name, forged in names.items():
        assert name in text
        assert len(name) == len(forged)
        text = text.replace(name, forged)
    content[start + offset : start + offset + size] = text
    struct.pack_into("<I", content, header + 56, _lvm_checksum(text))
    struct.pack_into("<I", content, header, _lvm_checksum(content[header + 4 : header + 512]))
    path.write_bytes(content)
    return path


def _lvm_checksum(data: bytes | bytearray) -> int:
    return zlib.crc32(data, 0xF597A6CF ^ 0xFFFFFFFF) ^ 0xFFFFFFFF


def run_lvm(*arguments: str) -> None:
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def left_of(directory: Path) -> list[str]:
    """Return mounts and loop devices left in a directory, or of the versions of a repository in it."""
    here = str(directory)
    uids = _version_uids(directory)
    mounts = [mount.mountpoint for mount in list_mounts() if is_below(mount.mountpoint, here)]
    loops = [
        loop.device
        for loop in list_loops()
        if here in loop.backing_file or any(uid in loop.backing_file for uid in uids)
    ]
    return mounts + loops


@contextmanager
def cleared(directory: Path) -> Iterator[None]:
    """At the end, remove every mount and device in a directory or stacked on one, dead or alive."""
    try:
        yield
    finally:
        loops = list_loops()
        ours = {loop.device for loop in loops if loop.device in left_of(directory)}
        mounts = [
            mount
            for mount in list_mounts()
            if is_below(mount.mountpoint, str(directory))
            or mount.source in ours
            or (mount.is_ours and _serves(mount.mountpoint, loops, ours))
        ]
        for mount in reversed(mounts):
            pid = ask(mount.mountpoint).pid if mount.is_ours else None
            subprocess.run(["umount", "--lazy", "--", mount.mountpoint], check=False, capture_output=True)
            if pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for thing in left_of(directory):
            subprocess.run(["losetup", "--detach", thing], check=False, capture_output=True)


def _serves(mountpoint: str, loops: list[Loop], ours: set[str]) -> bool:
    return any(loop.device in ours and is_below(loop.backing_file, mountpoint) for loop in loops)


def _version_uids(directory: Path) -> list[str]:
    from backyfs.metadata.records.versions import list_versions

    uids: list[str] = []
    for config_file in directory.glob("*/backyfs.cfg"):
        with opened(config_file) as repository, repository.database.read() as connection:
            uids += [version.uid for version in list_versions(connection)]
    return uids
