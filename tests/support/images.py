"""Images for tests: random, sparse, and file systems made by mkfs."""

from __future__ import annotations

import os
import random
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from backyfs.sources.protocol import Source


def random_bytes(size: int, seed: float = 0) -> bytes:
    """Return incompressible bytes, the same for the same seed."""
    return random.Random(seed).randbytes(size)


def random_image(path: Path, size: int, seed: int = 0) -> Path:
    """Make an image of random bytes and return its path."""
    path.write_bytes(random_bytes(size, seed))
    return path


def sparse_image(path: Path, size: int, pieces: Mapping[int, bytes]) -> Path:
    """Make an image of holes, with pieces of data at their offsets, and return its path."""
    with path.open("wb") as file:
        for offset, piece in pieces.items():
            os.pwrite(file.fileno(), piece, offset)
        file.truncate(size)
    return path


def ext4_image(path: Path, directory: Path, size: int) -> Path:
    """Make an image with an ext4 file system that contains a copy of `directory`, and return its path."""
    with path.open("wb") as file:
        file.truncate(size)
    run_tool("mkfs.ext4", "-q", "-F", "-d", str(directory), str(path))
    return path


def run_tool(*arguments: str) -> bytes:
    """Run a file system tool that may not be in the PATH of users; return its output."""
    environment = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
    return subprocess.run(arguments, env=environment, check=True, stdout=subprocess.PIPE).stdout


def file_tree(directory: Path, files: int, seed: int = 0) -> Path:
    """Make a directory with a number of files: empty, small and large, with plain and odd names."""
    chance = random.Random(seed)
    for number in range(files):
        folder = directory / f"folder {number % 7}" / f"ünter{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        size = chance.choice((0, 1, 511, 4095, 4096, 4097, 20_000, 100_000))
        content = chance.randbytes(size) if number % 2 else b"%d\n" % number * (size // 4)
        (folder / f"file-{number}.bin").write_bytes(content)
    return directory


def words(count: int) -> bytes:
    """Return a fixed text of a few words, which becomes smaller with each compression level."""
    known = b"block blob page hole version storage table segment fingerprint database key slot mount job".split()
    return b" ".join(random.Random(1).choices(known, k=count))


def ntfs_log(image: bytearray, client: int, flags: int) -> None:
    """Write a restart page to the log of an ntfs made by mkntfs: its first client in use, and its flags."""
    cluster = int.from_bytes(image[0x0B:0x0D], "little") * image[0x0D]
    table = int.from_bytes(image[0x30:0x38], "little") * cluster
    at = image.index(b"\x80\0\0\0H\0\0\0\1", table + 2 * 1024)  # $DATA of $LogFile, not resident
    run = at + int.from_bytes(image[at + 0x20 : at + 0x22], "little")
    count_bytes, cluster_bytes = image[run] & 15, image[run] >> 4
    start = run + 1 + count_bytes
    log = int.from_bytes(image[start : start + cluster_bytes], "little") * cluster
    page = bytearray(4096)
    page[:4] = b"RSTR"
    page[0x18:0x1A] = (0x30).to_bytes(2, "little")
    page[0x30 + 12 : 0x30 + 14] = client.to_bytes(2, "little")
    page[0x30 + 14 : 0x30 + 16] = flags.to_bytes(2, "little")
    image[log : log + len(page)] = page


def overwrite(image: Path, offset: int, data: bytes) -> None:
    """Replace bytes of an image."""
    with image.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def read_source(source: Source, offset: int, length: int) -> bytes:
    """Return bytes of a source."""
    buffer = bytearray(length)
    with memoryview(buffer) as view:
        source.read_into(offset, view)
    return bytes(buffer)
