"""The two files of a layer: its data, and a map of the chunks in it. Their names, formats and durability.

`<uid>.data` is sparse and as long as the image. `<uid>.map` lists the chunks whose bytes are durable in the data. The
map is created after the first of these chunks, appears as a whole, and is removed before the data. Data without a map
counts as nothing.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backyfs.errors import MountError
from backyfs.files import create_file, open_file
from backyfs.mount.overlay.chunkset import PAGE_BYTES, ChunkSet, page_count
from backyfs.remedies import Advice

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from backyfs.model import Buffer, VersionUid

CHUNK_BYTES = 4096  # the unit in which file systems write, so few writes need bytes of the image

# Letters, digits and hyphens cannot name another directory, or any other file here.
_UID = re.compile(r"[0-9A-Za-z-]{1,64}")
FILE_NAME = re.compile(rf"(?P<uid>{_UID.pattern})\.(?P<kind>data|map|map\.new)")

# A map begins with a header of 4 KiB; integers are little-endian:
# magic (8) | format (4) | bytes of a chunk (4) | bytes of the image (8) | uid (64, zeros after it)
# | CRC-32 of all that (4) | zeros
# The bits follow, chunk 0 in the lowest bit of the first byte, then zeros up to a multiple of 4 KiB. A page of bits
# that was written only in part is valid: its old bits and its new bits are all true.
_HEADER = struct.Struct("<8sIIQ64s")
_CHECKSUM = struct.Struct("<I")
_HEADER_BYTES = 4096
_MAGIC = b"backyfsL"
_FORMAT = 1

_OPEN = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
_READ_BYTES = 1 << 20  # 256 pages of bits


@dataclass(frozen=True, slots=True)
class LayerNames:
    """The files of one layer, in the open directory `fd`; messages call it `directory`."""

    fd: int
    directory: str
    uid: VersionUid
    image_bytes: int

    def __post_init__(self) -> None:
        if not _UID.fullmatch(self.uid):
            raise MountError(
                "cannot be a file name: up to 64 letters, digits and hyphens were expected",
                subject=f"version uid {self.uid!r}",
                remedy=Advice.LEAVE_OUT_OVERLAY(),
            )

    @property
    def data(self) -> str:
        """File name of the data."""
        return f"{self.uid}.data"

    @property
    def map(self) -> str:
        """File name of the map."""
        return f"{self.uid}.map"

    def damaged(self, name: str, fact: str) -> MountError:
        """Return the error for a file that cannot be used."""
        return MountError(
            fact, subject=f"{self.directory}/{name}", remedy=Advice.DROP_OR_NAME_OVERLAY(map=self.map, data=self.data)
        )

    def unlink_data(self) -> None:
        """Remove the data."""
        os.unlink(self.data, dir_fd=self.fd)


def create_data(names: LayerNames) -> int:
    """Create the data file, which is one hole, and return its descriptor."""
    fd = create_file(names.data, _OPEN, dir_fd=names.fd)
    try:
        os.ftruncate(fd, names.image_bytes)
    except BaseException:
        os.close(fd)
        names.unlink_data()
        raise
    return fd


def create_unnamed_data(names: LayerNames) -> int:
    """Create the data file and remove its name, so that it disappears when the process ends in any way."""
    fd = create_data(names)
    try:
        names.unlink_data()
    except BaseException:
        os.close(fd)
        raise
    return fd


def open_data(names: LayerNames) -> int:
    """Open the data file of a layer that has a map, and sync what an earlier process left unsynced.

    Raises:
        MountError: it is missing, or not as long as the image.
    """
    try:
        fd = os.open(names.data, _OPEN, dir_fd=names.fd)
    except FileNotFoundError:
        raise names.damaged(names.data, "is missing") from None
    try:
        _check_size(fd, names, names.data, names.image_bytes)
        os.fdatasync(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


class MapFile:
    """The open map of a layer. Use it from one thread at a time."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def close(self) -> None:
        """Close it; changes that were not synced may be lost."""
        os.close(self._fd)

    @classmethod
    def create(cls, names: LayerNames) -> MapFile:
        """Create a map without chunks. Make it durable, and the name of the data file as well."""
        new = f"{names.map}.new"
        fd = open_file(new, _OPEN | os.O_TRUNC, dir_fd=names.fd)
        try:
            os.ftruncate(fd, _file_bytes(names.image_bytes))
            write_all(fd, _header(names), 0)
            os.fsync(fd)
            os.fsync(names.fd)  # the data file must exist before the map does
            os.rename(new, names.map, src_dir_fd=names.fd, dst_dir_fd=names.fd)
            os.fsync(names.fd)
        except BaseException:
            os.close(fd)
            raise
        return cls(fd)

    @classmethod
    def open(cls, names: LayerNames, chunks: ChunkSet) -> MapFile | None:
        """Open the map of a layer and add its chunks to `chunks`; None if there is no map.

        Raises:
            MountError: it is damaged, or belongs to another image.
        """
        try:
            fd = os.open(names.map, _OPEN, dir_fd=names.fd)
        except FileNotFoundError:
            return None
        try:
            _check_size(fd, names, names.map, _file_bytes(names.image_bytes))
            _check_header(read_all(fd, 0, _HEADER_BYTES), names)
            _load(fd, names, chunks)
            os.fdatasync(fd)  # a killed process may have left unsynced bits
        except BaseException:
            os.close(fd)
            raise
        return cls(fd)

    def write(self, pages: Mapping[int, bytes]) -> None:
        """Write pages of bits, by number."""
        for number, page in pages.items():
            write_all(self._fd, page, _HEADER_BYTES + number * PAGE_BYTES)

    def sync(self) -> None:
        """Make everything that was written durable."""
        os.fdatasync(self._fd)


def read_all(fd: int, start: int, stop: int) -> bytes:
    """Return bytes [start, stop) of a file.

    Raises:
        OSError: EIO where it ends before that.
    """
    pieces = []
    while start < stop:
        piece = os.pread(fd, stop - start, start)
        if not piece:
            raise OSError(errno.EIO, f"the file ends at byte {start}")
        pieces.append(piece)
        start += len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def write_all(fd: int, data: Buffer, offset: int) -> None:
    """Write all of `data`.

    Raises:
        OSError: some of it, from the front, may have been written.
    """
    rest = memoryview(data)
    while rest:  # a short write met a limit or a full disk: the next one reports which
        count = os.pwrite(fd, rest, offset)
        rest = rest[count:]
        offset += count


def _chunk_count(image_bytes: int) -> int:
    return -(-image_bytes // CHUNK_BYTES)


def _file_bytes(image_bytes: int) -> int:
    return _HEADER_BYTES + page_count(_chunk_count(image_bytes)) * PAGE_BYTES


def _check_size(fd: int, names: LayerNames, name: str, expected: int) -> None:
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        raise names.damaged(name, "is not a regular file")
    if found.st_size != expected:
        raise names.damaged(name, f"has {found.st_size} bytes and should have {expected}")


def _header(names: LayerNames, version: int = _FORMAT) -> bytes:
    fields = _HEADER.pack(_MAGIC, version, CHUNK_BYTES, names.image_bytes, names.uid.encode())
    return (fields + _CHECKSUM.pack(zlib.crc32(fields))).ljust(_HEADER_BYTES, b"\0")


def _check_header(header: bytes, names: LayerNames) -> None:
    if header == _header(names):
        return
    magic, version, *_ = _HEADER.unpack_from(header)
    fields = header[: _HEADER.size]
    if magic != _MAGIC or _CHECKSUM.unpack_from(header, _HEADER.size) != (zlib.crc32(fields),):
        raise names.damaged(names.map, "has a damaged header")
    if version != _FORMAT:
        raise names.damaged(names.map, f"has format {version}, but this release of backyfs supports only {_FORMAT}")
    raise names.damaged(names.map, "is the map of another image")


def _load(fd: int, names: LayerNames, chunks: ChunkSet) -> None:
    for number, page in _stored_pages(fd, _file_bytes(names.image_bytes)):
        chunks.load(number, page)
    count = _chunk_count(names.image_bytes)
    if any(is_in for _, _, is_in in chunks.runs(count, page_count(count) * 8 * PAGE_BYTES)):
        raise names.damaged(names.map, "is damaged: it lists chunks after the end of the image")


def _stored_pages(fd: int, stop: int) -> Iterator[tuple[int, bytes]]:
    """Yield the pages of bits that are not all zeros, with their numbers. Holes are not read."""
    nothing = bytes(PAGE_BYTES)
    offset = _HEADER_BYTES
    while offset < stop:
        try:
            start = os.lseek(fd, offset, os.SEEK_DATA)
            end = os.lseek(fd, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data from here to the end
                return
            if error.errno not in {errno.EINVAL, errno.EOPNOTSUPP}:
                raise
            start, end = offset, stop  # this file system does not report holes
        start -= start % PAGE_BYTES
        offset = min(end + -end % PAGE_BYTES, stop)
        for first in range(start, offset, _READ_BYTES):
            piece = read_all(fd, first, min(first + _READ_BYTES, offset))
            for at in range(0, len(piece), PAGE_BYTES):
                page = piece[at : at + PAGE_BYTES]
                if page != nothing:
                    yield (first + at - _HEADER_BYTES) // PAGE_BYTES, page
