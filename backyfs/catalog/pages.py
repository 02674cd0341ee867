"""The object of a page: its entries, and the records of the blobs in it."""

from __future__ import annotations

import re
import struct
import sys
from array import array
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

from backyfs import values
from backyfs.catalog.objects import Kind, Seal, open_object, pack_object, page_name, take_apart
from backyfs.errors import CatalogError
from backyfs.geometry import PAGE_ENTRIES
from backyfs.metadata.maps.blockmap import ABSENT, HOLE
from backyfs.model import BlobRecord, BlobUid
from backyfs.values import obeys

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from backyfs.metadata.catalog.blobcolumns import BlobColumns

# entries n (2) | blobs k (2)
# n x entry (2): 0 a hole, 65535 never backed up, otherwise the number of a blob, from 1, in the order of the entries
# k x flags (1) | k x bytes of the uid (1) | of the fingerprint (1) | of the wrapped key (1)
# k x encryption version (2) | k x size (4) | k x stored size (8)
# the uids, one after the other | the fingerprints | the wrapped keys
# Flags: 1 not damaged, 2 has a fingerprint, 4 has a wrapped key, 8 has a stored size, 16 the uid is 32 hexadecimal
# digits, stored as 16 bytes.
_COUNTS = struct.Struct("<HH")
_ABSENT = 0xFFFF
_VALID, _FINGERPRINT, _WRAPPED_KEY, _STORED_SIZE, _HEX_UID = 1, 2, 4, 8, 16
_FLAGS = 31
_FIXED_BYTES = 18  # of each blob
_MAX_BYTES = 64    # of a fingerprint, and of a wrapped key, see metadata.db.tables
_HEX = re.compile("[0-9a-f]*")
_HEX_DIGITS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogPage:
    """A page, as stored in the catalog."""

    entries: tuple[int, ...]       # blockmap.HOLE, blockmap.ABSENT, or the number of a blob, from 1
    blobs: tuple[BlobRecord, ...]  # in the order of their numbers


def pack_page(uid: str, by: Seal, entries: Sequence[int], blobs: BlobColumns) -> bytes:
    """Return the object of a page. Its entries are ids of these blobs, blockmap.HOLE or blockmap.ABSENT.

    Raises:
        CatalogError: an entry names none of these blobs.
    """
    return pack_object(Kind.PAGE, page_name(uid), by, page_content(uid, entries, blobs))


def page_content(uid: str, entries: Sequence[int], blobs: BlobColumns) -> bytes:
    """Return the content of the object of a page: equal bytes for equal rows, regardless of their ids.

    Raises:
        CatalogError: an entry names none of these blobs.
    """
    order = [entry for entry in dict.fromkeys(entries) if entry > HOLE]  # as they come
    if len(order) != len(blobs.ids) or set(order) != set(blobs.ids):
        raise CatalogError("names blobs that have no rows", subject=f"page {uid} of a block map")
    numbers = {blob_id: number for number, blob_id in enumerate(order, 1)}
    numbers[HOLE], numbers[ABSENT] = 0, _ABSENT
    map_of_blobs = _le("H", map(numbers.__getitem__, entries))
    if tuple(order) != blobs.ids:
        blobs = blobs.in_order(order)
    return _COUNTS.pack(len(entries), len(blobs.ids)) + map_of_blobs + _pack_blobs(blobs)


def _pack_blobs(blobs: BlobColumns) -> bytes:
    # By columns, each in one call. A page has a thousand blobs, and a loop over them takes longer than storing them.
    count = len(blobs.uids)
    joined = "".join(blobs.uids)
    is_hex = set(map(len, blobs.uids)) == {_HEX_DIGITS} and _HEX.fullmatch(joined) is not None
    has_all = None not in blobs.fingerprints and None not in blobs.wrapped_keys and None not in blobs.stored_sizes
    if is_hex and has_all and all(blobs.valid):
        flags = bytes((_FLAGS,)) * count
    else:
        facts = zip(blobs.uids, blobs.valid, blobs.fingerprints, blobs.wrapped_keys, blobs.stored_sizes, strict=True)
        flags = bytes(_flags(*one) for one in facts)
    uids = [bytes.fromhex(joined)] if is_hex else [_pack_uid(uid) for uid in blobs.uids]
    fingerprints, wrapped_keys = map(_filled, (blobs.fingerprints, blobs.wrapped_keys))
    stored_sizes = blobs.stored_sizes if has_all else [size or 0 for size in blobs.stored_sizes]
    return b"".join(
        (
            flags,
            bytes((_HEX_DIGITS // 2,)) * count if is_hex else bytes(map(len, uids)),
            bytes(map(len, fingerprints)),
            bytes(map(len, wrapped_keys)),
            _le("H", blobs.encryption_versions),
            _le("I", blobs.sizes),
            _le("Q", stored_sizes),
            *uids,
            *fingerprints,
            *wrapped_keys,
        )
    )


def _filled(column: tuple[bytes | None, ...]) -> Sequence[bytes]:
    return [value or b"" for value in column]


def _pack_uid(uid: str) -> bytes:
    return bytes.fromhex(uid) if _is_hex(uid) else uid.encode("ascii")


def _is_hex(uid: str) -> bool:
    return len(uid) == _HEX_DIGITS and _HEX.fullmatch(uid) is not None


def _flags(
    uid: str, valid: bool, fingerprint: bytes | None, wrapped_key: bytes | None, stored_size: int | None
) -> int:
    return (
        (_VALID if valid else 0)
        | (0 if fingerprint is None else _FINGERPRINT)
        | (0 if wrapped_key is None else _WRAPPED_KEY)
        | (0 if stored_size is None else _STORED_SIZE)
        | (_HEX_UID if _is_hex(uid) else 0)
    )


def unpack_page(uid: str, by: Seal, stored: bytes) -> CatalogPage:
    """Return the page from its object.

    Raises:
        CatalogError: it belongs to another page, or is damaged.
    """
    return parse_page(uid, open_page(uid, by, stored))


def parse_page(uid: str, content: bytes) -> CatalogPage:
    """Return the page from the content of its object.

    Raises:
        CatalogError: it is damaged.
    """
    try:
        return _parse(memoryview(content))
    except (ValueError, IndexError, struct.error) as error:
        raise CatalogError(f"is damaged: {error}", subject=f"object {page_name(uid)}") from error


def open_page(uid: str, by: Seal, stored: bytes) -> bytes:
    """Return the content of the object of a page, as `page_content` packs it.

    Raises:
        CatalogError: it belongs to another page, or is damaged.
    """
    name = page_name(uid)
    return open_object(take_apart(Kind.PAGE, name, stored), name, by)


def _parse(content: memoryview) -> CatalogPage:
    count, blob_count = _COUNTS.unpack_from(content)
    if not 0 < count <= PAGE_ENTRIES or blob_count > count:
        raise ValueError(f"it has {count} entries of {blob_count} blobs")
    start = _COUNTS.size + 2 * count
    entries = _from_le("H", content[_COUNTS.size : start], count)
    if any(entry > blob_count for entry in entries if entry != _ABSENT):
        raise ValueError("an entry names a blob that it does not have")
    return CatalogPage(
        entries=tuple(ABSENT if entry == _ABSENT else entry for entry in entries),
        blobs=_parse_blobs(content[start:], blob_count),
    )


def _parse_blobs(content: memoryview, count: int) -> tuple[BlobRecord, ...]:
    fixed = _FIXED_BYTES * count
    if len(content) < fixed:
        raise ValueError("it is cut short")
    flags, *lengths = (bytes(content[number * count : (number + 1) * count]) for number in range(4))
    place = 4 * count
    versions = _from_le("H", content[place : place + 2 * count], count)
    sizes = _from_le("I", content[place + 2 * count : place + 6 * count], count)
    stored_sizes = _from_le("Q", content[place + 6 * count : fixed], count)
    ends = list(accumulate(map(sum, lengths), initial=fixed))
    if ends[-1] != len(content):
        raise ValueError(f"it has {len(content)} bytes of blobs instead of {ends[-1]}")
    uids, fingerprints, wrapped_keys = (
        _cut(content[start:stop], column) for (start, stop), column in zip(pairwise(ends), lengths, strict=True)
    )
    return tuple(
        _blob(*one)
        for one in zip(flags, uids, fingerprints, wrapped_keys, versions, sizes, stored_sizes, strict=True)
    )


def _blob(
    flags: int, uid: bytes, fingerprint: bytes, wrapped_key: bytes, version: int, size: int, stored_size: int
) -> BlobRecord:
    text = uid.hex() if flags & _HEX_UID else uid.decode("ascii")
    if flags > _FLAGS or not obeys(values.BLOB_UID, text) or max(len(fingerprint), len(wrapped_key)) > _MAX_BYTES:
        raise ValueError("it has a blob with a uid, fingerprint or key that cannot be")
    numbers = ((values.ENCRYPTION_VERSION, version), (values.BLOB_SIZE, size), (values.SIZE, stored_size))
    if not all(obeys(rule, number) for rule, number in numbers):
        raise ValueError(f"blob {text} has a size or encryption version that cannot be")
    return BlobRecord(
        uid=BlobUid(text),
        fingerprint=fingerprint if flags & _FINGERPRINT else None,
        size=size,
        stored_size=stored_size if flags & _STORED_SIZE else None,
        encryption_version=version,
        wrapped_key=wrapped_key if flags & _WRAPPED_KEY else None,
        valid=bool(flags & _VALID),
    )


def _cut(content: memoryview, lengths: bytes) -> list[bytes]:
    whole = bytes(content)
    return [whole[start:stop] for start, stop in pairwise(accumulate(lengths, initial=0))]


def _le(kind: str, numbers: Iterable[Any]) -> bytes:
    packed: array[Any] = array(kind, numbers)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def _from_le(kind: str, content: memoryview, count: int) -> array[Any]:
    numbers: array[Any] = array(kind, bytes(content))
    if len(numbers) != count:
        raise ValueError("it is cut short")
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers
