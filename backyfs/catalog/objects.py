"""What all objects of the catalog share: names, header, compression and sealing.

Each object is bound to its name, its kind and the uid of the repository, so no object can replace another.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

import zstandard
from blake3 import blake3

from backyfs import values
from backyfs.errors import CatalogError, IntegrityError
from backyfs.sealing.envelope import OVERHEAD_BYTES, open_sealed, seal
from backyfs.storage.keys import ObjectName
from backyfs.values import obeys

FORMAT = 1
REPOSITORY_NAME = ObjectName("catalog/repository")
INDEX_NAME = ObjectName("catalog/index")
PAGES = "catalog/pages/"
VERSIONS = "catalog/versions/"

# magic "backyfsC" (8) | format (2) | kind (1) | 1 if sealed (1) | bytes of the open part (4) | open part | body
# The body is one zstd frame that states its content size, sealed by `sealing.envelope`. It is bound to all bytes before
# it, then the uid of the repository, a zero byte, and the name. Integers are little-endian.
_HEADER = struct.Struct("<8sHBBI")
_MAGIC = b"backyfsC"
_LEVEL = 1  # of zstd: most content is random, and higher levels gain nothing on the rest


class Kind(IntEnum):
    """The kinds of objects."""

    REPOSITORY = 1
    VERSION = 2
    PAGE = 3
    INDEX = 4


# Maximum sizes in bytes before compression; those in the storage are similar. A version has 20 bytes for each page of
# its block map, the index up to 37 for each version.
MAX_CONTENT = {Kind.REPOSITORY: 1 << 20, Kind.VERSION: 256 << 20, Kind.PAGE: 256 << 10, Kind.INDEX: 40 << 20}
DIGEST_BYTES = 16  # sealed objects cannot be forged, only replaced by older ones
_MAX_OPEN = 1 << 20
MAX_STORED = {
    kind: _HEADER.size + _MAX_OPEN + OVERHEAD_BYTES + size + size // 128 + 1024 for kind, size in MAX_CONTENT.items()
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Seal:
    """What objects are sealed with: the uid of their repository and its key. None: it is not encrypted."""

    repository: str  # uid
    key: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The parts of an object that is not opened yet."""

    kind: Kind
    is_sealed: bool
    open_part: bytes  # can be read without a key, and is not authenticated before the object is opened
    before: bytes     # header and open part
    body: bytes

    @property
    def digest(self) -> bytes:
        """The digest of the stored bytes."""
        return digest_of(self.before + self.body)


def digest_of(stored: bytes) -> bytes:
    """Return the digest of an object, as stored in the index."""
    return blake3(stored).digest(length=DIGEST_BYTES)


def page_name(uid: str) -> ObjectName:
    """Return the name of the object of a page. 256 directories stay small even with a million pages."""
    return ObjectName(f"{PAGES}{uid[:2]}/{uid}")


def version_name(uid: str) -> ObjectName:
    """Return the name of the object of a version."""
    return ObjectName(f"{VERSIONS}{uid}")


def uid_of(name: str) -> str:
    """Return the uid at the end of an object's name."""
    return name.rpartition("/")[2]


def is_uid(uid: str) -> bool:
    """Return whether a text can be the uid of a version, a page or a repository, which becomes a name."""
    return obeys(values.VERSION_UID, uid)


def pack_object(kind: Kind, name: str, by: Seal, content: bytes, open_part: bytes = b"") -> bytes:
    """Return the stored bytes of an object.

    Raises:
        CatalogError: it would be too large to be read again.
    """
    if len(content) > MAX_CONTENT[kind] or len(open_part) > _MAX_OPEN:
        raise CatalogError(
            f"would have {len(content)} bytes, more than the {MAX_CONTENT[kind]} allowed", subject=f"object {name}"
        )
    before = _HEADER.pack(_MAGIC, FORMAT, kind, by.key is not None, len(open_part)) + open_part
    frame = zstandard.ZstdCompressor(level=_LEVEL).compress(content)
    return before + seal(by.key, before + _place(name, by), frame)


def take_apart(kind: Kind, name: str, stored: bytes) -> Parts:
    """Split an object into its parts.

    Raises:
        CatalogError: it is not an object of this kind, or has a newer format.
    """
    if len(stored) < _HEADER.size or stored[: len(_MAGIC)] != _MAGIC:
        raise CatalogError("is damaged: it is not an object of a catalog", subject=f"object {name}")
    _, number, found, sealed, open_bytes = _HEADER.unpack_from(stored)
    if number != FORMAT:
        raise CatalogError(
            f"has format {number}, and this program reads {FORMAT}",
            subject=f"object {name}",
            remedy="use a newer release of backyfs",
        )
    end = _HEADER.size + open_bytes
    if found != kind or sealed > 1 or open_bytes > _MAX_OPEN or end > len(stored):
        raise CatalogError("is damaged: its header is not that of such an object", subject=f"object {name}")
    return Parts(
        kind=kind,
        is_sealed=bool(sealed),
        open_part=stored[_HEADER.size : end],
        before=stored[:end],
        body=stored[end:],
    )


def open_object(parts: Parts, name: str, by: Seal) -> bytes:
    """Return the content of an object, authenticated: this key, this repository, this name.

    Raises:
        CatalogError: it was written with another key, repository or name, or is damaged.
    """
    if parts.is_sealed is not (by.key is not None):
        has = "is encrypted and the repository is not" if parts.is_sealed else "is not encrypted and the repository is"
        raise CatalogError(f"{has}: it was not made by this repository", subject=f"object {name}")
    try:
        frame = open_sealed(by.key, parts.before + _place(name, by), parts.body)
    except IntegrityError as error:
        raise CatalogError(error.fact, subject=f"object {name}") from error
    try:
        size = zstandard.frame_content_size(frame)
        content = zstandard.ZstdDecompressor().decompress(frame) if 0 <= size <= MAX_CONTENT[parts.kind] else None
    except zstandard.ZstdError as error:
        raise CatalogError(f"is damaged: {error}", subject=f"object {name}") from error
    if content is None:
        raise CatalogError(f"is damaged: it claims to hold {size} bytes", subject=f"object {name}")
    return content


def _place(name: str, by: Seal) -> bytes:
    return f"{by.repository}\0{name}".encode()
