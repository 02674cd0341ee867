"""Sealing and opening: a sealed block opens to the same bytes, and nothing else ever opens."""

from __future__ import annotations

import hashlib
import secrets
import struct
from itertools import accumulate
from typing import TYPE_CHECKING

import pytest
import zstandard
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from backyfs.errors import ConfigError, IntegrityError
from backyfs.sealing import (
    DATA_KEY_BYTES,
    NEWEST_ENCRYPTION_VERSION,
    check_configured,
    encryption_version,
)
from tests.support.images import words

if TYPE_CHECKING:
    from collections.abc import Callable

    from backyfs.model import Buffer

KEY = bytes(range(DATA_KEY_BYTES))
OTHER_KEY = bytes(DATA_KEY_BYTES)
SEGMENT = 256 << 10
BLOCK = b"The quick brown fox jumps over the lazy dog. " * 20

blocks = st.one_of(
    st.binary(max_size=4096),
    st.builds(lambda pattern, count: pattern * count, st.binary(min_size=1, max_size=16), st.integers(0, 512)),
)
versions = st.sampled_from([0, 1, 2])
encrypted = st.sampled_from([1, 2])


def seal(number: int, block: Buffer, key: bytes = KEY) -> bytes:
    return b"".join(encryption_version(number).sealer()(block, key))


def open_(number: int, stored: Buffer, size: int, key: bytes = KEY) -> bytes:
    return encryption_version(number).open(stored, key, size)


def seal_frame(frame: bytes, key: bytes = KEY) -> bytes:
    """Return an authentic object of version 1 with any content."""
    nonce = secrets.token_bytes(16)
    sealed = AESGCM(key).encrypt(nonce, frame, None)
    return sealed[-16:] + nonce + sealed[:-16]


# Round trips


@given(versions, blocks)
def test_a_sealed_block_opens_to_the_same_bytes(number: int, block: bytes) -> None:
    assert open_(number, seal(number, block), len(block)) == block


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, SEGMENT - 1, SEGMENT, SEGMENT + 1, 4 << 20])
def test_blocks_of_any_size_can_be_sealed(number: int, size: int) -> None:
    block = bytes(size)
    assert open_(number, seal(number, block), size) == block


@pytest.mark.parametrize("number", [0, 1, 2])
def test_blocks_near_the_limits_of_ciphers_and_segments_can_be_sealed(number: int) -> None:
    edges = (128, 4096, 1 << 16, SEGMENT, 2 * SEGMENT)
    sizes = [*range(70), *(edge + more for edge in edges for more in (-17, -16, -1, 0, 1, 15, 16))]
    random_bytes = hashlib.shake_256(b"backyfs").digest(2 * SEGMENT + 16)
    for size in sizes:
        for block in (random_bytes[:size], b"backyfs\n" * (size // 8 + 1)):
            assert open_(number, seal(number, block[:size]), size) == block[:size]


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_every_kind_of_buffer_can_be_sealed_and_opened(number: int, kind: type[bytes | bytearray | memoryview]) -> None:
    block = open_(number, kind(seal(number, kind(BLOCK))), len(BLOCK))
    assert block == BLOCK
    assert type(block) is bytes


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_part_of_a_buffer_can_be_sealed(number: int) -> None:
    part = memoryview(bytearray(BLOCK))[10:20]
    assert open_(number, seal(number, part), 10) == BLOCK[10:20]


def test_version_0_stores_the_block_unchanged() -> None:
    assert seal(0, b"backyfs") == b"backyfs"


def test_version_1_compresses() -> None:
    assert len(seal(1, bytes(1 << 20))) < 1024


@pytest.mark.parametrize("number", [1, 2])
@given(block=blocks, level=st.integers(1, 19))
@settings(deadline=None, max_examples=30)
def test_blocks_of_any_compression_level_can_be_opened(number: int, block: bytes, level: int) -> None:
    stored = b"".join(encryption_version(number).sealer(level)(block, KEY))
    assert open_(number, stored, len(block)) == block


@pytest.mark.parametrize("number", [1, 2])
def test_a_higher_level_makes_smaller_objects(number: int) -> None:
    text = words(40_000)
    sizes = [len(b"".join(encryption_version(number).sealer(level)(text, KEY))) for level in (1, 3, 19)]
    assert sizes == sorted(set(sizes), reverse=True)


def test_version_0_has_no_compression_levels() -> None:
    assert b"".join(encryption_version(0).sealer(19)(BLOCK, b"")) == BLOCK


def test_version_1_seals_the_same_block_differently_each_time() -> None:
    sealer = encryption_version(1).sealer()
    assert b"".join(sealer(BLOCK, KEY)) != b"".join(sealer(BLOCK, KEY))


def test_version_1_uses_no_nonce_twice_even_under_one_data_key() -> None:
    sealer = encryption_version(1).sealer()
    assert len({b"".join(sealer(b"", KEY))[16:32] for _ in range(2000)}) == 2000


@given(versions, st.lists(blocks, min_size=2, max_size=4))
def test_one_sealer_seals_many_blocks_independently(number: int, several: list[bytes]) -> None:
    sealer = encryption_version(number).sealer()
    objects = [sealer(block, bytes([position]) * 32) for position, block in enumerate(several)]
    for position, (parts, block) in enumerate(zip(objects, several, strict=True)):
        assert open_(number, b"".join(parts), len(block), bytes([position]) * 32) == block


@pytest.mark.parametrize(("number", "uses_data_key"), [(0, False), (1, True), (2, True)])
def test_a_version_says_whether_its_blobs_have_data_keys(number: int, uses_data_key: bool) -> None:
    assert encryption_version(number).uses_data_key is uses_data_key


# Encrypted versions refuse objects that they did not create.


@given(number=encrypted, block=st.binary(max_size=300), data=st.data())
@settings(deadline=None)
def test_a_flipped_bit_is_refused(number: int, block: bytes, data: st.DataObject) -> None:
    stored = bytearray(seal(number, block))
    bit = data.draw(st.integers(0, len(stored) * 8 - 1))
    stored[bit // 8] ^= 1 << bit % 8
    with pytest.raises(IntegrityError, match="fails authentication"):
        open_(number, stored, len(block))


@given(number=encrypted, block=st.binary(max_size=300), data=st.data())
def test_a_truncated_object_is_refused(number: int, block: bytes, data: st.DataObject) -> None:
    stored = seal(number, block)
    length = data.draw(st.integers(0, len(stored) - 1))
    with pytest.raises(IntegrityError, match=r"is truncated|fails authentication|but its table describes"):
        open_(number, stored[:length], len(block))


@given(number=encrypted, block=st.binary(max_size=300), more=st.binary(min_size=1, max_size=50))
def test_an_extended_object_is_refused(number: int, block: bytes, more: bytes) -> None:
    with pytest.raises(IntegrityError, match=r"fails authentication|but its table describes"):
        open_(number, seal(number, block) + more, len(block))


def test_an_object_shorter_than_tag_and_nonce_is_refused_with_its_length() -> None:
    with pytest.raises(IntegrityError, match=r"^is truncated: 32 bytes$"):
        open_(1, bytes(32), 0)


@pytest.mark.parametrize("number", [1, 2])
def test_the_object_of_another_blob_is_refused(number: int) -> None:
    others = seal(number, BLOCK, OTHER_KEY)
    with pytest.raises(IntegrityError, match=r"^fails authentication: damaged, or not the object of this blob$"):
        open_(number, others, len(BLOCK), KEY)


@given(number=encrypted, block=blocks, other=blocks, key=st.binary(min_size=32, max_size=32))
def test_a_block_sealed_with_another_data_key_is_refused(
    number: int, block: bytes, other: bytes, key: bytes
) -> None:
    assume(key != KEY)
    for stored in (seal(number, other, key), seal(3 - number, block, KEY), other):
        with pytest.raises(IntegrityError):
            open_(number, stored, len(block))


@pytest.mark.parametrize("number", [1, 2])
def test_a_wrong_data_key_is_refused(number: int) -> None:
    with pytest.raises(IntegrityError, match="fails authentication"):
        open_(number, seal(number, BLOCK, KEY), len(BLOCK), OTHER_KEY)


@pytest.mark.parametrize("size", [0, 899, 901, 1 << 40])
def test_an_authentic_object_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(IntegrityError, match=rf"^contains 900 bytes, but its block has {size}$"):
        open_(1, seal(1, BLOCK), size)


def test_a_frame_that_claims_a_terabyte_is_refused_before_anything_is_allocated() -> None:
    # Magic; a header with a single segment and a content size of eight bytes; an empty last raw block.
    frame = b"\x28\xb5\x2f\xfd" + b"\xe0" + (1 << 40).to_bytes(8, "little") + b"\x01\x00\x00"
    with pytest.raises(IntegrityError, match=r"^contains 1099511627776 bytes, but its block has 900$"):
        open_(1, seal_frame(frame), 900)


def test_a_frame_with_less_than_its_stated_size_is_refused() -> None:
    frame = b"\x28\xb5\x2f\xfd" + b"\x20\x05" + b"\x19\x00\x00" + b"abc"  # states 5 bytes but contains a raw block of 3
    with pytest.raises(IntegrityError, match="is not a zstd frame"):
        open_(1, seal_frame(frame), 5)


def test_a_frame_that_states_no_size_is_refused() -> None:
    frame = zstandard.ZstdCompressor(write_content_size=False).compress(BLOCK)
    with pytest.raises(IntegrityError, match=r"^contains -1 bytes, but its block has 900$"):
        open_(1, seal_frame(frame), 900)


def test_bytes_after_the_frame_are_refused() -> None:
    frame = zstandard.ZstdCompressor().compress(BLOCK)
    with pytest.raises(IntegrityError, match="is not a zstd frame"):
        open_(1, seal_frame(frame + b"more"), 900)


def test_an_authentic_object_that_is_not_a_frame_is_refused() -> None:
    with pytest.raises(IntegrityError, match="is not a zstd frame"):
        open_(1, seal_frame(b"no frame at all"), 900)


# Version 2: segments


def read_at(stored: bytes, asked: list[tuple[int, int]] | None = None) -> Callable[[int, int], bytes]:
    """Return a function that reads a part of an object and records each request."""

    def read(offset: int, length: int) -> bytes:
        if asked is not None:
            asked.append((offset, length))
        return stored[offset : offset + length]

    return read


def open_range(stored: bytes, size: int, numbers: range, key: bytes = KEY) -> list[bytes]:
    seekable = encryption_version(2).seekable
    assert seekable is not None
    return seekable.open_range(read_at(stored), key, size, numbers)


def cut(block: bytes) -> list[bytes]:
    return [block[start : start + SEGMENT] for start in range(0, len(block), SEGMENT)]


def layout(stored: bytes, size: int, key: bytes = KEY) -> list[bytes]:
    """Return the sealed table of an object and its sealed segments."""
    count = -(-size // SEGMENT)
    head = 4 * count + 16
    bound = struct.pack("<IIQ", 2**32 - 1, count, size)
    table = AESGCM(key).decrypt(b"\xff" * 4 + bytes(8), stored[:head], bound)
    parts = [stored[:head]]
    for (entry,) in struct.iter_unpack("<I", table):
        head += len(parts[-1]) if len(parts) > 1 else 0
        parts.append(stored[head : head + (entry & 0x7FFFFFFF) + 16])
    return parts


def block_of(size: int) -> bytes:
    """Return a block in which every second segment is compressible."""
    random_segment = hashlib.shake_256(b"backyfs").digest(SEGMENT)
    parts = [(b"%07d\n" % number) * (SEGMENT // 8) if number % 2 else random_segment for number in range(17)]
    return b"".join(parts)[:size]


@pytest.mark.parametrize(
    "size", [1, 4095, 4096, SEGMENT - 1, SEGMENT, SEGMENT + 1, 2 * SEGMENT, 3 * SEGMENT + 777, 4 << 20]
)
def test_any_segments_can_be_opened_with_one_read_of_the_table_and_one_of_them(size: int) -> None:
    block = block_of(size)
    stored = seal(2, block)
    assert open_(2, stored, size) == block
    segments = cut(block)
    parts = layout(stored, size)
    assert b"".join(parts) == stored
    seekable = encryption_version(2).seekable
    assert seekable is not None
    for start in range(len(segments)):
        for stop in {start + 1, (start + len(segments) + 1) // 2, len(segments)} - set(range(start + 1)):
            asked: list[tuple[int, int]] = []
            found = seekable.open_range(read_at(stored, asked), KEY, size, range(start, stop))
            assert found == segments[start:stop]
            first = sum(map(len, parts[: start + 1]))
            assert asked == [(0, seekable.table_bytes(size)), (first, sum(map(len, parts[start + 1 : stop + 1])))]


@pytest.mark.parametrize("number", [0, 1])
def test_versions_without_segments_are_opened_completely(number: int) -> None:
    assert encryption_version(number).seekable is None


def test_incompressible_segments_are_not_compressed() -> None:
    block = block_of(2 * SEGMENT)
    table, first, second = layout(seal(2, block), len(block))
    assert len(table) == 2 * 4 + 16
    assert len(first) == SEGMENT + 16
    assert len(second) < 100


@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_a_flipped_bit_is_refused_in_its_segments(data: st.DataObject) -> None:
    block = block_of(3 * SEGMENT - 5)
    stored = bytearray(seal(2, block))
    ends = list(accumulate(map(len, layout(bytes(stored), len(block)))))
    bit = data.draw(st.one_of(st.integers(0, ends[0] * 8 + 200), st.integers(0, len(stored) * 8 - 1)))
    stored[bit // 8] ^= 1 << bit % 8
    with pytest.raises(IntegrityError, match="fails authentication"):
        open_(2, stored, len(block))
    for number, segment in enumerate(cut(block)):
        if bit // 8 < ends[0] or ends[number] <= bit // 8 < ends[number + 1]:
            with pytest.raises(IntegrityError, match="fails authentication"):
                open_range(bytes(stored), len(block), range(number, number + 1))
        else:
            assert open_range(bytes(stored), len(block), range(number, number + 1)) == [segment]


@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_a_truncation_is_refused_in_the_segments_it_removes(data: st.DataObject) -> None:
    block = block_of(3 * SEGMENT - 5)
    stored = seal(2, block)
    ends = list(accumulate(map(len, layout(stored, len(block)))))
    length = data.draw(st.one_of(st.integers(0, ends[0]), st.integers(0, len(stored) - 1)))
    with pytest.raises(IntegrityError, match=r"is truncated|but its table describes"):
        open_(2, stored[:length], len(block))
    for number, segment in enumerate(cut(block)):
        if length < ends[number + 1]:
            with pytest.raises(IntegrityError, match="is truncated"):
                open_range(stored[:length], len(block), range(number, number + 1))
        else:
            assert open_range(stored[:length], len(block), range(number, number + 1)) == [segment]


@pytest.mark.parametrize(
    "order", [[1, 0, 2], [0, 2, 1], [2, 1, 0], [0, 0, 2], [0, 1], [1, 2], [0, 1, 2, 2], [0, 1, 2, 0]], ids=repr
)
def test_segments_in_another_order_or_number_are_refused(order: list[int]) -> None:
    block = hashlib.shake_256(b"backyfs").digest(3 * SEGMENT)  # all of the same length
    table, *segments = layout(seal(2, block), len(block))
    with pytest.raises(IntegrityError):
        open_(2, table + b"".join(segments[number] for number in order), len(block))
    for place, number in enumerate(order[:3]):
        if place != number:
            with pytest.raises(IntegrityError):
                open_range(table + b"".join(segments[n] for n in order), len(block), range(place, place + 1))


@given(st.lists(st.integers(0, 7), min_size=1, max_size=6))
@settings(deadline=None)
def test_mixed_tables_and_segments_of_two_blobs_are_refused(order: list[int]) -> None:
    block = bytes(2 * SEGMENT) + b"the rest"
    ours, others = layout(seal(2, block), len(block)), layout(seal(2, block, OTHER_KEY), len(block), OTHER_KEY)
    stored = b"".join((ours + others)[number] for number in order)
    for number, segment in enumerate(cut(block)):
        if order[0] == 0 and order[: number + 2] == list(range(number + 2)):
            assert open_range(stored, len(block), range(number, number + 1)) == [segment]
    if order == [0, 1, 2, 3]:
        assert open_(2, stored, len(block)) == block
    else:
        with pytest.raises(IntegrityError):
            open_(2, stored, len(block))


@pytest.mark.parametrize("place", [0, 1, 2], ids=["table", "first", "second"])
def test_a_part_of_another_blob_of_the_same_size_is_refused(place: int) -> None:
    block = hashlib.shake_256(b"backyfs").digest(2 * SEGMENT)
    parts = layout(seal(2, block), len(block))
    parts[place] = layout(seal(2, block, OTHER_KEY), len(block), OTHER_KEY)[place]
    with pytest.raises(IntegrityError, match="fails authentication"):
        open_(2, b"".join(parts), len(block))


@pytest.mark.parametrize("size", [2 * SEGMENT - 1, 2 * SEGMENT + 1, SEGMENT, 3 * SEGMENT, 0, 1 << 40])
def test_an_object_of_another_size_is_refused(size: int) -> None:
    stored = seal(2, block_of(2 * SEGMENT))
    with pytest.raises(IntegrityError, match=r"fails authentication|is truncated"):
        open_(2, stored, size)


@given(blocks, st.sampled_from([0, 1, 2, 3]))
def test_no_nonce_is_used_twice_under_one_data_key(block: bytes, segments: int) -> None:
    used: list[bytes] = []

    class Spy:
        def __init__(self, _key: bytes) -> None:
            self._gcm = AESGCM(KEY)

        def encrypt_into(self, nonce: bytes, *rest: Buffer) -> int:
            used.append(nonce)
            return self._gcm.encrypt_into(nonce, *rest)

    block = bytes(segments * SEGMENT) + block
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("backyfs.sealing.segments.AESGCM", Spy)
        seal(2, block)
    assert len(used) == -(-len(block) // SEGMENT) + 1
    assert len(set(used)) == len(used)


def authentic(plain: bytes, entry: int, size: int) -> bytes:
    """Return an object of one segment with any content, under an authentic table."""
    gcm = AESGCM(KEY)
    table = gcm.encrypt(b"\xff" * 4 + bytes(8), struct.pack("<I", entry), struct.pack("<IIQ", 2**32 - 1, 1, size))
    return table + gcm.encrypt(bytes(12), plain, struct.pack("<IIQ", 0, 1, size))


@pytest.mark.parametrize(
    ("plain", "entry", "expected"),
    [
        (b"abc", 3 | 1 << 31, "contains 3 bytes, but segment 0 has 5"),
        (b"abcdefg", 7 | 1 << 31, "contains 7 bytes, but segment 0 has 5"),
        (b"no frame at all", 15, "is not a zstd frame"),
        (zstandard.ZstdCompressor().compress(b"abc"), 12, "contains 3 bytes, but its block has 5"),
    ],
)
def test_an_invalid_segment_is_refused_even_if_authentic(plain: bytes, entry: int, expected: str) -> None:
    with pytest.raises(IntegrityError, match=f"^{expected}"):
        open_(2, authentic(plain, entry, 5), 5)


# Version 0 can check only the length.


@pytest.mark.parametrize("length", [0, 899, 901])
def test_version_0_refuses_an_object_of_another_length(length: int) -> None:
    with pytest.raises(IntegrityError, match=rf"^has {length} bytes, but its block has 900$"):
        open_(0, bytes(length), 900)


# The registry


@pytest.mark.parametrize("number", [-1, 3, 255])
def test_the_error_for_an_unknown_version_lists_the_known_ones(number: int) -> None:
    with pytest.raises(
        IntegrityError,
        match=rf"^has encryption version {number}, which is unknown to this program \(it knows 0, 1, 2\); use the rel",
    ):
        encryption_version(number)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_known_versions_can_be_configured(number: int) -> None:
    check_configured(number)


def test_an_unknown_version_cannot_be_configured() -> None:
    with pytest.raises(ConfigError, match=r"^\[DEFAULTS\] encryption_version: is 7; allowed: 0, 1, 2$"):
        check_configured(7)


def test_blobs_are_encrypted_with_version_2_by_default() -> None:
    assert NEWEST_ENCRYPTION_VERSION == 2
