"""The objects of the catalog: packed contents can be unpacked, and everything else is refused."""

from __future__ import annotations

import json
import struct
import tracemalloc
import uuid
from array import array
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import zstandard
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap
from hypothesis import given
from hypothesis import strategies as st

from backyfs.catalog import objects
from backyfs.catalog.index import CatalogIndex, pack_index, unpack_index
from backyfs.catalog.objects import (
    INDEX_NAME,
    MAX_CONTENT,
    REPOSITORY_NAME,
    Kind,
    Seal,
    is_uid,
    open_object,
    pack_object,
    page_name,
    take_apart,
    version_name,
)
from backyfs.catalog.pages import CatalogPage, pack_page, page_content, unpack_page
from backyfs.catalog.repository import (
    CatalogRepository,
    open_repository_object,
    pack_repository,
    read_open_part,
)
from backyfs.catalog.versions import CatalogVersion, pack_version, unpack_version
from backyfs.errors import CatalogError
from backyfs.metadata.catalog.blobcolumns import NO_BLOBS, BlobColumns
from backyfs.metadata.maps.blockmap import ABSENT, HOLE
from backyfs.metadata.records.identity import Identity
from backyfs.model import BlobRecord, BlobUid, KeySlot, StatisticsRecord, VersionRecord, VersionStatus, VersionUid

if TYPE_CHECKING:
    from collections.abc import Callable

VECTORS = Path(__file__).parents[1] / "vectors"
REPOSITORY = "0f5b2c1e-9a64-4f0b-8a57-6b1de0b5a0f3"
PAGE = "6b1de0b5-a0f3-4f0b-8a57-0f5b2c1e9a64"
VERSION = "9a644f0b-8a57-4b1d-a0b5-a0f30f5b2c1e"
MOMENT = datetime(2026, 11, 23, 18, 0, 0, 123456, tzinfo=UTC)
SEALED = Seal(repository=REPOSITORY, key=bytes.fromhex("decafbad" * 8))
PLAIN = Seal(repository=REPOSITORY, key=None)
both = pytest.mark.parametrize("seal", [SEALED, PLAIN], ids=["sealed", "plain"])


def columns(*records: BlobRecord) -> BlobColumns:
    """Return blobs as rows with the ids 1, 2, 3 …"""
    return BlobColumns(
        ids=tuple(range(1, len(records) + 1)),
        uids=tuple(blob.uid for blob in records),
        fingerprints=tuple(blob.fingerprint for blob in records),
        sizes=tuple(blob.size for blob in records),
        stored_sizes=tuple(blob.stored_size for blob in records),
        encryption_versions=tuple(blob.encryption_version for blob in records),
        wrapped_keys=tuple(blob.wrapped_key for blob in records),
        valid=tuple(blob.valid for blob in records),
    )


BLOBS = (
    BlobRecord(
        uid=BlobUid("a1b2c3d4e5f60718293a4b5c6d7e8f90"), fingerprint=bytes(range(32)), size=4096, stored_size=4168,
        encryption_version=2, wrapped_key=bytes(40), valid=True,
    ),
    BlobRecord(
        uid=BlobUid("18c29961439EQS96qJLwyirryH3rZubX"), fingerprint=None, size=4096, stored_size=None,
        encryption_version=1, wrapped_key=bytes(range(40)), valid=False,
    ),
    BlobRecord(
        uid=BlobUid("a1b2ffffffffffffffffffffffffffff"), fingerprint=bytes(64), size=100, stored_size=1 << 40,
        encryption_version=0, wrapped_key=None, valid=True,
    ),
)  # fmt: skip
STATISTICS = StatisticsRecord(
    created_at=MOMENT, version_uid=VersionUid(VERSION), version_name="disk", version_size_bytes=5 * 4096 + 100,
    version_size_blocks=6, bytes_read=1, blocks_read=2, bytes_written=3, blocks_written=4, bytes_stored=None,
    bytes_deduplicated=5, blocks_deduplicated=6, bytes_sparse=7, blocks_sparse=8, duration_s=1.5,
)  # fmt: skip
THE_VERSION = CatalogVersion(
    version=VersionRecord(
        uid=VersionUid(VERSION), created_at=MOMENT, name="disk", snapshot_name="schnée", size_bytes=5 * 4096 + 100,
        status=VersionStatus.VALID, protected=True, expire_at=MOMENT, tags=("a", "b"),
    ),
    statistics=(STATISTICS,),
    page_numbers=array("I", [0]),
    page_uids=uuid.UUID(PAGE).bytes,
)  # fmt: skip
SLOT = KeySlot(
    label="configuration", kdf="configured-key", kdf_parameters="", key_check=bytes(8), wrapped_key=bytes(40),
    created_at=MOMENT,
)  # fmt: skip
THE_REPOSITORY = CatalogRepository(
    identity=Identity(
        uid=REPOSITORY, block_size=4096, hash_function="blake3", wrapped_fingerprint_key=bytes(40), created_at=MOMENT
    ),
    key_slots=(SLOT, replace(SLOT, label="second", kdf="argon2id", kdf_parameters='{"salt": "00"}')),
    key_made_at=MOMENT,
    needs_release="0.1.0",
)
THE_INDEX = CatalogIndex(number=77, written_at=MOMENT, repository=bytes(range(16)), versions=(PAGE[:8], VERSION))
PAGE_OF_ALL_SORTS = CatalogPage(entries=(2, HOLE, ABSENT, 1, 2, 3), blobs=BLOBS)


def packed_page(seal: Seal, uid: str = PAGE) -> bytes:
    # In order of appearance, the blobs are 2, 1, 3.
    rows = columns(BLOBS[1], BLOBS[0], BLOBS[2])
    return pack_page(uid, seal, array("q", [2, HOLE, ABSENT, 1, 2, 3]), rows)


PACKED: dict[str, tuple[Kind, Callable[[Seal], bytes], Callable[[Seal, bytes], object]]] = {
    "repository": (
        Kind.REPOSITORY,
        lambda seal: pack_repository(THE_REPOSITORY, seal.key),
        lambda seal, stored: open_repository_object(read_open_part(stored), seal.key),
    ),
    "version": (
        Kind.VERSION,
        lambda seal: pack_version(THE_VERSION, seal),
        lambda seal, stored: unpack_version(VERSION, seal, stored),
    ),
    "page": (Kind.PAGE, packed_page, lambda seal, stored: unpack_page(PAGE, seal, stored)),
    "index": (Kind.INDEX, lambda seal: pack_index(THE_INDEX, seal), unpack_index),
}
every = pytest.mark.parametrize("name", sorted(PACKED))


# Packed objects can be unpacked


@both
def test_a_page_can_be_unpacked(seal: Seal) -> None:
    page = unpack_page(PAGE, seal, packed_page(seal))
    assert page == CatalogPage(entries=(1, HOLE, ABSENT, 2, 1, 3), blobs=(BLOBS[0], BLOBS[1], BLOBS[2]))


@both
def test_a_page_of_holes_can_be_unpacked(seal: Seal) -> None:
    stored = pack_page(PAGE, seal, array("q", [HOLE] * 1024), NO_BLOBS)
    assert unpack_page(PAGE, seal, stored) == CatalogPage(entries=(HOLE,) * 1024, blobs=())


def test_equal_pages_are_equal_regardless_of_the_ids_of_their_blobs() -> None:
    one = page_content(PAGE, [2, HOLE, 1], columns(BLOBS[0], BLOBS[1]))
    other = page_content(PAGE, [1, HOLE, 2], columns(BLOBS[1], BLOBS[0]))
    assert one == other


@pytest.mark.parametrize("rows", [columns(BLOBS[0]), columns(*BLOBS), NO_BLOBS])
def test_a_page_whose_blobs_do_not_match_its_entries_is_not_packed(rows: BlobColumns) -> None:
    with pytest.raises(CatalogError, match="names blobs that have no rows"):
        page_content(PAGE, [1, 2], rows)


@both
def test_a_version_can_be_unpacked(seal: Seal) -> None:
    for version in (THE_VERSION, replace(THE_VERSION, damage_found_at=MOMENT)):
        assert unpack_version(VERSION, seal, pack_version(version, seal)) == version
    assert THE_VERSION.page_uid(0) == PAGE


@both
def test_a_repository_can_be_unpacked_and_its_slots_without_a_key(seal: Seal) -> None:
    stored = pack_repository(THE_REPOSITORY, seal.key)
    found = read_open_part(stored)
    assert (found.uid, found.is_sealed) == (REPOSITORY, seal.key is not None)
    assert found.key_slots == THE_REPOSITORY.key_slots
    assert open_repository_object(found, seal.key) == THE_REPOSITORY


@both
def test_an_index_can_be_unpacked(seal: Seal) -> None:
    for index in (THE_INDEX, replace(THE_INDEX, versions=()), replace(THE_INDEX, number=(1 << 62) - 1)):
        assert unpack_index(seal, pack_index(index, seal)) == index


def test_a_repository_of_an_older_release_has_no_index_number() -> None:
    vector = json.loads((VECTORS / "catalog-plain.json").read_text(encoding="utf-8"))
    found = read_open_part(bytes.fromhex(vector["objects"]["repository"]))
    assert open_repository_object(found, None).index_number == 0
    numbered = replace(THE_REPOSITORY, index_number=5)
    assert open_repository_object(read_open_part(pack_repository(numbered, None)), None).index_number == 5


_BLOB = st.builds(
    BlobRecord,
    uid=st.from_regex(r"[0-9a-f]{32}|[0-9A-Za-z]{5,32}", fullmatch=True).map(BlobUid),
    fingerprint=st.none() | st.binary(max_size=64),
    size=st.integers(0, (1 << 31) - 1),
    stored_size=st.none() | st.integers(0, (1 << 63) - 1),
    encryption_version=st.integers(0, (1 << 15) - 1),
    wrapped_key=st.none() | st.binary(max_size=64),
    valid=st.booleans(),
)


@given(st.lists(_BLOB, max_size=40, unique_by=lambda blob: blob.uid), st.data())
def test_any_page_can_be_unpacked(blobs: list[BlobRecord], data: st.DataObject) -> None:
    more = data.draw(st.lists(st.integers(ABSENT, len(blobs)), max_size=50))
    entries = [*range(1, len(blobs) + 1), *more] or [HOLE]
    page = unpack_page(PAGE, SEALED, pack_page(PAGE, SEALED, entries, columns(*blobs)))
    assert page == CatalogPage(entries=tuple(entries), blobs=tuple(blobs))


@both
@every
def test_no_two_sealed_objects_are_equal(seal: Seal, name: str) -> None:
    _, pack, _ = PACKED[name]
    assert (pack(seal) == pack(seal)) is (seal.key is None)


# Everything else is refused


@both
@every
def test_a_flipped_bit_anywhere_is_refused(seal: Seal, name: str) -> None:
    _, pack, open_it = PACKED[name]
    stored = pack(seal)
    for place in range(len(stored)):
        changed = bytearray(stored)
        changed[place] ^= 1 << place % 8
        with pytest.raises(CatalogError):
            open_it(seal, bytes(changed))


@both
@every
def test_a_truncated_or_extended_object_is_refused(seal: Seal, name: str) -> None:
    _, pack, open_it = PACKED[name]
    stored = pack(seal)
    for length in range(len(stored)):
        with pytest.raises(CatalogError):
            open_it(seal, stored[:length])
    with pytest.raises(CatalogError):
        open_it(seal, stored + b"\0")


@both
def test_an_object_is_bound_to_its_name(seal: Seal) -> None:
    with pytest.raises(CatalogError, match=r"damaged, or not the object of this name$"):
        unpack_page(VERSION, seal, packed_page(seal))
    with pytest.raises(CatalogError, match=r"damaged, or not the object of this name$"):
        unpack_version(PAGE, seal, pack_version(THE_VERSION, seal))


@both
def test_an_object_is_bound_to_its_repository(seal: Seal) -> None:
    with pytest.raises(CatalogError, match=r"damaged, or not the object of this name$"):
        unpack_page(PAGE, replace(seal, repository=VERSION), packed_page(seal))


@both
def test_an_object_is_bound_to_its_kind(seal: Seal) -> None:
    stored = pack_object(Kind.VERSION, page_name(PAGE), seal, b"x")
    with pytest.raises(CatalogError, match="its header is not that of such an object"):
        unpack_page(PAGE, seal, stored)


def test_another_key_opens_nothing() -> None:
    with pytest.raises(CatalogError, match="fails authentication"):
        unpack_page(PAGE, replace(SEALED, key=bytes(32)), packed_page(SEALED))


def test_an_unsealed_object_is_refused_if_the_repository_is_encrypted() -> None:
    with pytest.raises(CatalogError, match="is not encrypted and the repository is: it was not made by this"):
        unpack_page(PAGE, SEALED, packed_page(PLAIN))
    with pytest.raises(CatalogError, match="is encrypted and the repository is not"):
        unpack_page(PAGE, PLAIN, packed_page(SEALED))


def test_key_slots_are_checked_as_soon_as_the_key_is_known() -> None:
    stored = pack_repository(THE_REPOSITORY, SEALED.key)
    changed = stored.replace(b'"second"', b'"Second"')
    assert read_open_part(changed).key_slots[1].label == "Second"
    with pytest.raises(CatalogError, match="fails authentication"):
        open_repository_object(read_open_part(changed), SEALED.key)


def test_a_newer_format_asks_for_a_newer_release() -> None:
    stored = bytearray(packed_page(PLAIN))
    stored[8] = 2
    with pytest.raises(CatalogError, match="has format 2, and this program reads 1; use a newer release"):
        unpack_page(PAGE, PLAIN, bytes(stored))


def object_of(kind: Kind, name: str, frame: bytes) -> bytes:
    """Return a plain object around any frame, as an attacker who can compute a digest would make it."""
    before = struct.pack("<8sHBBI", b"backyfsC", 1, kind, 0, 0)
    bound = before + f"{REPOSITORY}\0{name}".encode()
    return before + blake3(len(bound).to_bytes(8, "little") + bound + frame).digest() + frame


def test_a_decompression_bomb_takes_no_memory() -> None:
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(64 << 20))
    assert len(bomb) < 10_000
    with pytest.raises(CatalogError, match="claims to hold 67108864 bytes"):
        unpack_page(PAGE, PLAIN, object_of(Kind.PAGE, page_name(PAGE), bomb))


def test_a_frame_that_does_not_state_its_size_is_refused() -> None:
    compressor = zstandard.ZstdCompressor(write_content_size=False)
    stored = object_of(Kind.PAGE, page_name(PAGE), compressor.compress(bytes(100)))
    with pytest.raises(CatalogError, match="claims to hold -1 bytes"):
        unpack_page(PAGE, PLAIN, stored)


def test_an_oversized_object_is_not_created() -> None:
    with pytest.raises(CatalogError, match="more than the 262144 allowed"):
        pack_object(Kind.PAGE, page_name(PAGE), PLAIN, bytes(MAX_CONTENT[Kind.PAGE] + 1))


def content(*parts: bytes) -> bytes:
    return object_of(Kind.PAGE, page_name(PAGE), zstandard.ZstdCompressor().compress(b"".join(parts)))


def blob_bytes(flags: int = 19, uid: bytes = bytes(16), version: int = 0, size: int = 1, stored: int = 1) -> bytes:
    return bytes((flags, len(uid), 0, 0)) + struct.pack("<HIQ", version, size, stored) + uid


ONE_ENTRY = struct.pack("<HHH", 1, 1, 1)


def test_the_hostile_pages_below_are_correct_except_for_one_thing() -> None:
    assert unpack_page(PAGE, PLAIN, content(ONE_ENTRY, blob_bytes())).blobs[0].uid == "0" * 32


@pytest.mark.parametrize(
    "parts",
    [
        (b"",),
        (struct.pack("<HH", 0, 0),),
        (struct.pack("<HH", 1025, 0), bytes(2050)),
        (struct.pack("<HH", 65535, 65535),),
        (struct.pack("<HHH", 1, 2, 1), blob_bytes(), blob_bytes()),
        (struct.pack("<HHH", 1, 1, 2), blob_bytes()),
        (struct.pack("<HHH", 1, 0, 65534),),
        (ONE_ENTRY, blob_bytes()[:-1]),
        (ONE_ENTRY, blob_bytes(), b"\0"),
        (ONE_ENTRY, blob_bytes(flags=32)),
        (ONE_ENTRY, blob_bytes(flags=3, uid=b"../x")),
        (ONE_ENTRY, blob_bytes(flags=3, uid=b"ab\0d")),
        (ONE_ENTRY, blob_bytes(flags=3, uid="äbcd".encode())),
        (ONE_ENTRY, blob_bytes(flags=3, uid=b"x" * 33)),
        (ONE_ENTRY, blob_bytes(uid=b"")),
        (ONE_ENTRY, blob_bytes(uid=bytes(17))),
        (ONE_ENTRY, blob_bytes(version=1 << 15)),
        (ONE_ENTRY, blob_bytes(size=1 << 31)),
        (ONE_ENTRY, blob_bytes(stored=1 << 63)),
        (ONE_ENTRY, bytes((19, 16, 65, 0)), struct.pack("<HIQ", 0, 1, 1), bytes(16 + 65)),
    ],
)
def test_an_impossible_page_is_refused(parts: tuple[bytes, ...]) -> None:
    with pytest.raises(CatalogError):
        unpack_page(PAGE, PLAIN, content(*parts))


@given(st.binary(max_size=400))
def test_any_bytes_are_a_page_or_an_error(junk: bytes) -> None:
    try:
        page = unpack_page(PAGE, PLAIN, content(junk))
    except CatalogError:
        return
    assert len(page.entries) <= 1024


FACTS: dict[str, Any] = {
    "uid": VERSION, "created_at": "2026-11-23T18:00:00+00:00", "name": "disk", "snapshot_name": "", "size_bytes": 1,
    "status": "valid", "protected": False, "expire_at": None, "tags": [], "statistics": [],
}  # fmt: skip


def version_of(facts: object, numbers: bytes = b"", uids: bytes = b"", count: int | None = None) -> bytes:
    text = facts if isinstance(facts, bytes) else json.dumps(facts).encode()
    held = struct.pack("<II", len(text), len(numbers) // 4 if count is None else count) + text + numbers + uids
    return object_of(Kind.VERSION, version_name(VERSION), zstandard.ZstdCompressor().compress(held))


def test_the_hostile_versions_below_are_correct_except_for_one_thing() -> None:
    found = unpack_version(VERSION, PLAIN, version_of(FACTS, struct.pack("<II", 0, 2), bytes(32)))
    assert (found.version.name, list(found.page_numbers)) == ("disk", [0, 2])


WRONG_FACTS: list[dict[str, Any]] = [
    {"uid": PAGE},
    {"uid": "../../x"},
    {"size_bytes": -1},
    {"size_bytes": 1 << 63},
    {"size_bytes": True},
    {"size_bytes": 1.5},
    {"status": "fine"},
    {"protected": 1},
    {"name": "x" * 2049},
    {"name": "a\0b"},
    {"name": "\ud800"},
    {"name": None},
    {"created_at": "2026-11-23T18:00:00"},
    {"created_at": "0001-01-01T00:00:00+23:00"},
    {"expire_at": "yesterday"},
    {"tags": ["a", "a"]},
    {"tags": "a"},
    {"tags": [1]},
    {"statistics": [{}]},
    {"statistics": {}},
]


@pytest.mark.parametrize(
    "stored",
    [
        version_of(b"[" * 100_000),
        version_of(FACTS | {"more": " " * (4 << 20)}),  # a few hundred bytes in the storage
        version_of(FACTS | {"tags": [str(number) for number in range(10_001)]}),
        version_of(FACTS | {"statistics": [{}] * 10_001}),
        version_of(b"{}"),
        version_of([]),
        version_of(b"\xff"),
        version_of(FACTS, count=1),
        version_of(FACTS, count=(1 << 32) - 1),
        version_of(FACTS, struct.pack("<II", 2, 2), bytes(32)),
        version_of(FACTS, struct.pack("<II", 2, 1), bytes(32)),
        version_of(FACTS, struct.pack("<I", 1 << 31), bytes(16)),
        version_of(FACTS, struct.pack("<I", 1), bytes(15)),
        *(version_of(FACTS | change) for change in WRONG_FACTS),
    ],
)
def test_an_impossible_version_is_refused(stored: bytes) -> None:
    with pytest.raises(CatalogError, match=f"^object {version_name(VERSION)} is damaged: "):
        unpack_version(VERSION, PLAIN, stored)


def test_unpacking_a_small_object_takes_little_memory() -> None:
    stored = version_of(b"[" + b"[]," * (80 << 20) + b"[]]")
    assert len(stored) < 100_000
    tracemalloc.start()
    try:
        with pytest.raises(CatalogError, match="bytes of facts, more than the 4194304 that there can be"):
            unpack_version(VERSION, PLAIN, stored)
        assert tracemalloc.get_traced_memory()[1] < 300 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "change",
    [{"tags": tuple(map(str, range(10_001)))}, {"tags": tuple(f"{number:01000}" for number in range(5_000))}],
)
def test_an_unreadable_version_is_not_written(change: dict[str, Any]) -> None:
    version = replace(THE_VERSION, version=replace(THE_VERSION.version, **change))
    with pytest.raises(CatalogError, match="cannot be stored in the catalog; remove some tags"):
        pack_version(version, PLAIN)


@pytest.mark.parametrize(
    "open_part",
    [
        b"",
        b"{}",
        json.dumps({"uid": "../x", "needs_release": "1", "key_slots": []}).encode(),
        json.dumps({"uid": REPOSITORY, "needs_release": "1", "key_slots": [{}]}).encode(),
        json.dumps({"uid": REPOSITORY, "needs_release": "1", "key_slots": {}}).encode(),
    ],
)
def test_an_impossible_open_part_is_refused(open_part: bytes) -> None:
    stored = pack_object(Kind.REPOSITORY, REPOSITORY_NAME, PLAIN, b"{}", open_part)
    with pytest.raises(CatalogError):
        read_open_part(stored)


def test_too_many_key_slots_are_refused() -> None:
    many = replace(THE_REPOSITORY, key_slots=(SLOT,) * 257)
    with pytest.raises(CatalogError, match="key_slots is not a list of up to 256"):
        read_open_part(pack_repository(many, None))


def test_an_open_part_larger_than_the_object_is_refused() -> None:
    stored = struct.pack("<8sHBBI", b"backyfsC", 1, Kind.REPOSITORY, 0, 1 << 31) + bytes(100)
    with pytest.raises(CatalogError, match="its header is not that of such an object"):
        take_apart(Kind.REPOSITORY, REPOSITORY_NAME, stored)


@pytest.mark.parametrize("uid", ["", "..", "a/b", "a.b", "x" * 37, "a\n", "ä"])
def test_a_uid_that_could_be_a_path_is_refused(uid: str) -> None:
    assert not is_uid(uid)


def index_of(*parts: bytes) -> bytes:
    return object_of(Kind.INDEX, INDEX_NAME, zstandard.ZstdCompressor().compress(b"".join(parts)))


def fixed(count: int, number: int = 1, microseconds: int = 0) -> bytes:
    return struct.pack("<QQ16sI", number, microseconds, bytes(16), count)


def test_the_hostile_indexes_below_are_correct_except_for_one_thing() -> None:
    assert unpack_index(PLAIN, index_of(fixed(2), b"\1\2", b"a", b"ab")).versions == ("a", "ab")


@pytest.mark.parametrize(
    "parts",
    [
        (b"",),
        (fixed(0)[:-1],),
        (fixed(0), b"x"),
        (fixed(0, number=1 << 62),),
        (fixed(0, microseconds=1 << 63),),
        (fixed(1),),
        (fixed(1), b"\1"),
        (fixed(1), b"\1", b"ab"),
        (fixed(1), b"\0"),
        (fixed(1), b"\5", b"../.."),
        (fixed(1), bytes((37,)), b"x" * 37),
        (fixed(1), b"\2", "ä".encode()),
        (fixed(2), b"\1\1", b"ba"),
        (fixed(2), b"\1\1", b"aa"),
        (fixed(1 << 32 - 1), b"\1", b"a"),
        (fixed((1 << 20) + 1), bytes((1 << 20) + 1)),
    ],
)
def test_an_impossible_index_is_refused(parts: tuple[bytes, ...]) -> None:
    with pytest.raises(CatalogError, match=f"object {INDEX_NAME} is damaged"):
        unpack_index(PLAIN, index_of(*parts))


def test_an_index_of_too_many_versions_is_not_created() -> None:
    with pytest.raises(CatalogError, match="more than 1048576"):
        pack_index(replace(THE_INDEX, versions=("a",) * ((1 << 20) + 1)), PLAIN)


def test_the_limits_leave_room_for_the_largest_index() -> None:
    uids = tuple(f"{number:036}" for number in range(1 << 20))
    stored = pack_index(replace(THE_INDEX, versions=uids), SEALED)
    assert len(stored) < objects.MAX_STORED[Kind.INDEX]
    assert len(unpack_index(SEALED, stored).versions) == 1 << 20


# The format, as described in docs/reference/format.md


@pytest.fixture(params=["catalog-plain", "catalog-sealed"])
def vector(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Load objects written by a release; they never change."""
    held: dict[str, Any] = json.loads((VECTORS / f"{request.param}.json").read_text(encoding="utf-8"))
    return held


def key_of(vector: dict[str, Any], slot: dict[str, str]) -> bytes:
    return aes_key_unwrap(bytes.fromhex(vector["configured_key"]), bytes.fromhex(slot["wrapped_key"]))


def open_as_documented(vector: dict[str, Any], kind: str, name: str) -> tuple[bytes, bytes]:
    """Open an object with a reader that shares no code with the program; return its open part and content."""
    number = {"repository": 1, "version": 2, "page": 3, "index": 4}[kind]
    stored = bytes.fromhex(vector["objects"][kind])
    is_sealed = vector["configured_key"] is not None
    magic, version, found, sealed, length = struct.unpack_from("<8sHBBI", stored)
    assert (magic, version, found, sealed) == (b"backyfsC", 1, number, is_sealed)
    before, body = stored[: 16 + length], stored[16 + length :]
    bound = before + vector["repository"].encode() + b"\0" + name.encode()
    if is_sealed:
        open_part = json.loads(bytes.fromhex(vector["objects"]["repository"])[16:].partition(b"}]}")[0] + b"}]}")
        key = key_of(vector, open_part["key_slots"][0])
        object_key = HKDF(algorithm=SHA256(), length=32, salt=body[:32], info=b"backyfs catalog object 1").derive(key)
        frame = AESGCM(object_key).decrypt(bytes(12), body[32:], bound)
    else:
        frame = body[32:]
        assert blake3(struct.pack("<Q", len(bound)) + bound + frame).digest() == body[:32]
    return before[16:], zstandard.ZstdDecompressor().decompress(frame)


def test_the_documented_reader_opens_a_page(vector: dict[str, Any]) -> None:
    _, held = open_as_documented(vector, "page", f"catalog/pages/{vector['page'][:2]}/{vector['page']}")
    assert struct.unpack_from("<HH6H", held) == (6, 3, 1, 0, 65535, 2, 1, 3)
    flags, uid_bytes, fingerprint_bytes, key_bytes = (held[16 + 3 * n : 19 + 3 * n] for n in range(4))
    assert (flags, uid_bytes) == (bytes((4, 31, 27)), bytes((32, 16, 16)))
    assert (fingerprint_bytes, key_bytes) == (bytes((0, 32, 64)), bytes((40, 40, 0)))
    assert struct.unpack_from("<3H3I3Q", held, 28) == (1, 2, 0, 4096, 4096, 100, 0, 4168, 1 << 40)
    assert held[70:102] == b"18c29961439EQS96qJLwyirryH3rZubX"
    assert held[102:118].hex() == "a1b2c3d4e5f60718293a4b5c6d7e8f90"
    assert held[134:166] == bytes(range(32))
    assert held[230:270] == bytes(range(40))
    assert len(held) == 310


def test_the_documented_reader_opens_a_version(vector: dict[str, Any]) -> None:
    _, held = open_as_documented(vector, "version", f"catalog/versions/{vector['version']}")
    length, count = struct.unpack_from("<II", held)
    assert json.loads(held[8 : 8 + length])["name"] == "disk"
    assert struct.unpack_from("<I", held, 8 + length) == (0,)
    assert (count, str(uuid.UUID(bytes=held[12 + length :]))) == (1, vector["page"])


def test_the_documented_reader_opens_the_repository(vector: dict[str, Any]) -> None:
    open_part, held = open_as_documented(vector, "repository", "catalog/repository")
    assert json.loads(open_part)["uid"] == json.loads(held)["uid"] == vector["repository"]
    assert json.loads(held)["block_size"] == 4096


def test_the_documented_reader_opens_the_index(vector: dict[str, Any]) -> None:
    _, held = open_as_documented(vector, "index", "catalog/index")
    number, microseconds, digest, count = struct.unpack_from("<QQ16sI", held)
    assert (number, count) == (77, 1)
    assert datetime.fromtimestamp(microseconds / 1_000_000, UTC) == MOMENT
    assert digest == blake3(bytes.fromhex(vector["objects"]["repository"])).digest()[:16]
    assert held[36:] == bytes((36,)) + vector["version"].encode()


def test_the_program_opens_objects_written_by_a_release(vector: dict[str, Any]) -> None:
    stored = {kind: bytes.fromhex(digits) for kind, digits in vector["objects"].items()}
    found = read_open_part(stored["repository"])
    key = None
    if vector["configured_key"] is not None:
        key = aes_key_unwrap(bytes.fromhex(vector["configured_key"]), found.key_slots[0].wrapped_key)
    seal = Seal(repository=vector["repository"], key=key)
    assert open_repository_object(found, key).identity.created_at == MOMENT
    assert unpack_version(VERSION, seal, stored["version"]) == THE_VERSION
    page = unpack_page(PAGE, seal, stored["page"])
    assert page == CatalogPage(entries=(1, HOLE, ABSENT, 2, 1, 3), blobs=(BLOBS[1], BLOBS[0], BLOBS[2]))
    index = unpack_index(seal, stored["index"])
    assert index == replace(THE_INDEX, repository=found.parts.digest, versions=(VERSION,))


def test_the_limits_leave_room_for_the_largest_page() -> None:
    uids = [BlobUid(f"{number:032}") for number in range(1024)]
    blobs = [replace(BLOBS[0], uid=uid, fingerprint=bytes(64), wrapped_key=bytes(64)) for uid in uids]
    stored = pack_page(PAGE, SEALED, list(range(1, 1025)), columns(*blobs))
    assert len(stored) < objects.MAX_STORED[Kind.PAGE]
    assert len(unpack_page(PAGE, SEALED, stored).blobs) == 1024


@both
def test_open_object_returns_the_input_of_pack_object(seal: Seal) -> None:
    parts = take_apart(Kind.PAGE, page_name(PAGE), pack_object(Kind.PAGE, page_name(PAGE), seal, b"held", b"open"))
    assert parts.open_part == b"open"
    assert open_object(parts, page_name(PAGE), seal) == b"held"
