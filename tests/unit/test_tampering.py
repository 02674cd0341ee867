"""Blobs whose objects or rows were tampered with: reading returns the block or an error, never other bytes."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backyfs.blocks import BLAKE3, BlockStore, PieceLoader, fingerprint_function, load_block, piece_bytes, save_blocks
from backyfs.errors import IntegrityError, ObjectMissingError
from backyfs.keys import Keyring, new_key
from backyfs.model import Blob, BlobId, BlobUid
from backyfs.storage.protocol import Traits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backyfs.model import Buffer
    from backyfs.storage.protocol import Storage

SEGMENT = 256 << 10
SIZE = 2 * SEGMENT + 77
BLOCKS = [
    bytes([number]) * SEGMENT + hashlib.shake_256(bytes([number])).digest(SEGMENT) + b"z" * 77 for number in range(3)
]


class Memory:
    """A storage in memory, whose objects tests damage."""

    traits = Traits()

    def __init__(self) -> None:
        self.objects: dict[BlobUid, bytes] = {}

    def put(self, uid: BlobUid, parts: Sequence[Buffer]) -> int:
        self.objects[uid] = b"".join(parts)
        return len(self.objects[uid])

    def get(self, uid: BlobUid) -> bytes:
        try:
            return self.objects[uid]
        except KeyError:
            raise ObjectMissingError(f"{uid} is missing") from None

    def get_range(self, uid: BlobUid, offset: int, length: int) -> bytes:
        return self.get(uid)[offset : offset + length]

    def distrust(self, _uid: BlobUid) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class Stored:
    """All blocks in all encryption versions, before any tampering."""

    store: BlockStore
    objects: dict[BlobUid, bytes]
    blobs: list[Blob]
    blocks: list[bytes]

    def with_objects(self, changes: dict[BlobUid, bytes]) -> BlockStore:
        """Return a copy in which some objects are replaced."""
        memory = Memory()
        memory.objects = self.objects | changes
        return replace(self.store, storage=cast("Storage", memory))


def make() -> Stored:
    memory = Memory()
    store = BlockStore(
        storage=cast("Storage", memory),
        keyring=Keyring(repository_key=new_key(), fingerprint_key=None),
        fingerprint=fingerprint_function(BLAKE3, new_key()),
        encryption_version=0,
        compression_level=1,
        find_moved=lambda _: None,
    )
    blobs: list[Blob] = []
    blocks: list[bytes] = []
    for version in (0, 1, 2):
        new = [(BlobUid(secrets.token_hex(16)), store.fingerprint(block), block) for block in BLOCKS]
        for saved in save_blocks(replace(store, encryption_version=version), new):
            blobs.append(
                Blob(
                    id=BlobId(len(blobs) + 1), uid=saved.uid, fingerprint=saved.fingerprint, size=saved.size,
                    encryption_version=version, wrapped_key=saved.wrapped_key,
                )
            )  # fmt: skip
        blocks += BLOCKS
    return Stored(store, memory.objects, blobs, blocks)


STORED = make()
numbers = st.integers(0, len(STORED.blobs) - 1)
sealed = st.integers(len(BLOCKS), len(STORED.blobs) - 1)  # of versions 1 and 2


def pieces_of(store: BlockStore, blob: Blob) -> list[tuple[int, bytes]]:
    """Load each piece of a blob separately; return the pieces that load without an error, by offset."""
    size = piece_bytes(blob)
    found = []
    for number in range(-(-blob.size // size)):
        try:
            [piece] = PieceLoader(store).load(blob, range(number, number + 1))
        except (IntegrityError, ObjectMissingError):
            continue
        found.append((number * size, piece))
    return found


def check(store: BlockStore, blob: Blob, block: bytes, *, is_refused: bool) -> None:
    """Fail unless loading a blob, completely and in pieces, returns its block or an error."""
    try:
        assert load_block(store, blob) == block
        assert not is_refused
    except (IntegrityError, ObjectMissingError) as error:
        assert blob.uid in str(error)  # noqa: PT017 - it may come, and then has to say this
    for offset, piece in pieces_of(store, blob):
        assert piece == block[offset : offset + len(piece)]


@given(numbers)
@settings(deadline=None)
def test_an_untouched_blob_is_its_block(number: int) -> None:
    blob, block = STORED.blobs[number], STORED.blocks[number]
    assert load_block(STORED.store, blob) == block
    assert b"".join(piece for _, piece in pieces_of(STORED.store, blob)) == block


@given(numbers, st.data())
@settings(deadline=None)
def test_a_flipped_bit_of_an_object_is_refused(number: int, data: st.DataObject) -> None:
    blob = STORED.blobs[number]
    stored = bytearray(STORED.objects[blob.uid])
    bit = data.draw(st.integers(0, 8 * len(stored) - 1))
    stored[bit // 8] ^= 1 << bit % 8
    check(STORED.with_objects({blob.uid: bytes(stored)}), blob, STORED.blocks[number], is_refused=True)


@given(numbers, st.data())
@settings(deadline=None)
def test_a_truncated_or_extended_object_is_refused(number: int, data: st.DataObject) -> None:
    blob = STORED.blobs[number]
    stored = STORED.objects[blob.uid]
    length = data.draw(st.integers(0, len(stored) - 1))
    for changed in (stored[:length], stored[length + 1 :], stored + stored[:length] + b"!"):
        check(STORED.with_objects({blob.uid: changed}), blob, STORED.blocks[number], is_refused=True)


@given(numbers, numbers)
@settings(deadline=None)
def test_the_object_of_another_blob_is_refused(number: int, other: int) -> None:
    blob = STORED.blobs[number]
    # Equal plain blocks are equal objects, so version 0 has only one of each.
    store = STORED.with_objects({blob.uid: STORED.objects[STORED.blobs[other].uid]})
    check(store, blob, STORED.blocks[number], is_refused=number != other)


@given(sealed, numbers)
@settings(deadline=None)
def test_the_data_key_of_another_blob_is_refused(number: int, other: int) -> None:
    blob = replace(STORED.blobs[number], wrapped_key=STORED.blobs[other].wrapped_key)
    check(STORED.store, blob, STORED.blocks[number], is_refused=number != other)


@given(sealed, st.integers(0, 8 * 40 - 1))
@settings(deadline=None)
def test_a_flipped_bit_of_a_data_key_is_refused(number: int, bit: int) -> None:
    blob = STORED.blobs[number]
    assert blob.wrapped_key is not None
    wrapped = bytearray(blob.wrapped_key)
    wrapped[bit // 8] ^= 1 << bit % 8
    check(STORED.store, replace(blob, wrapped_key=bytes(wrapped)), STORED.blocks[number], is_refused=True)


@given(numbers, st.integers(0, 4))
@settings(deadline=None)
def test_another_encryption_version_is_refused(number: int, version: int) -> None:
    blob = STORED.blobs[number]
    if version in (0, 1, 2):
        changed = replace(blob, encryption_version=version)
        is_refused = version != blob.encryption_version
        check(STORED.store, changed, STORED.blocks[number], is_refused=is_refused)
    else:
        refused = r"^blob \w+ has encryption version \d+, which is unknown to this program"
        with pytest.raises(IntegrityError, match=refused):
            load_block(STORED.store, replace(blob, encryption_version=version))


@given(st.integers(0, len(STORED.blobs) - 1))
@settings(deadline=None)
def test_a_row_marked_plain_without_a_fingerprint_is_refused(number: int) -> None:
    """No row may turn an encrypted block into arbitrary bytes that somebody stored in its place."""
    blob = replace(STORED.blobs[number], encryption_version=0, wrapped_key=None)
    forged = STORED.with_objects({blob.uid: bytes(blob.size)})
    for store in (forged, replace(forged, knows_other_hashes=True)):
        with pytest.raises(IntegrityError, match="is stored plain and has no fingerprint to check it by"):
            load_block(store, replace(blob, fingerprint=None))
        assert pieces_of(store, replace(blob, fingerprint=None)) == []
        check(store, blob, b"", is_refused=True)


@pytest.mark.parametrize("hash_name", ["blake2b", "blake2s", "md5", "sha1", "sha224", "sha256", "sha384", "sha3_256"])
def test_a_fingerprint_of_another_hash_function_counts_only_if_fingerprints_are_not_keyed(hash_name: str) -> None:
    blob, block = STORED.blobs[0], STORED.blocks[0]
    plain = replace(blob, fingerprint=hashlib.new(hash_name, block, usedforsecurity=False).digest())
    with pytest.raises(IntegrityError, match="its fingerprint differs"):
        load_block(STORED.store, plain)
    assert load_block(replace(STORED.store, knows_other_hashes=True), plain) == block


@given(numbers, st.integers(0, 2 * SIZE))
@settings(deadline=None)
def test_another_size_is_refused(number: int, size: int) -> None:
    blob = replace(STORED.blobs[number], size=size)
    if size != SIZE:
        with pytest.raises(IntegrityError, match=blob.uid):
            load_block(STORED.store, blob)
        if blob.encryption_version == 2 and size:
            assert pieces_of(STORED.store, blob) == []


@given(numbers, numbers)
@settings(deadline=None)
def test_a_row_that_points_to_another_block_is_refused_by_its_fingerprint(number: int, other: int) -> None:
    """Uid, encryption version and key come from another blob: its tags match, but it is not the block backed up."""
    there = STORED.blobs[other]
    blob = replace(there, fingerprint=STORED.blobs[number].fingerprint)
    if STORED.blocks[number] == STORED.blocks[other]:
        assert load_block(STORED.store, blob) == STORED.blocks[number]
    else:
        with pytest.raises(IntegrityError, match="its fingerprint differs"):
            load_block(STORED.store, blob)


@given(st.lists(st.binary(max_size=200), min_size=1, max_size=20), st.sampled_from([1, 2]))
@settings(deadline=None)
def test_no_two_blocks_get_the_same_data_key_or_object(contents: list[bytes], version: int) -> None:
    memory = Memory()
    store = replace(STORED.store, storage=cast("Storage", memory), encryption_version=version)
    same = [(BlobUid(f"{number:032x}"), b"", content) for number, content in enumerate([*contents, *contents])]
    keys = {store.keyring.unwrap(saved.wrapped_key) for saved in save_blocks(store, same)}
    assert len(keys) == len(set(memory.objects.values())) == len(same)
