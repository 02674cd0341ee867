"""Sealing and opening: what goes in comes out, and nothing else ever does."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import pytest
import zstandard
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from backyfs.errors import ConfigError, IntegrityError
from backyfs.sealing import (
    DATA_KEY_BYTES,
    NEWEST_ENCRYPTION_VERSION,
    check_configured,
    encryption_version,
)

if TYPE_CHECKING:
    from backyfs.model import Buffer

KEY = bytes(range(DATA_KEY_BYTES))
OTHER_KEY = bytes(DATA_KEY_BYTES)
BLOCK = b"The quick brown fox jumps over the lazy dog. " * 20

blocks = st.one_of(
    st.binary(max_size=4096),
    st.builds(lambda pattern, count: pattern * count, st.binary(min_size=1, max_size=16), st.integers(0, 512)),
)
versions = st.sampled_from([0, 1])


def seal(number: int, block: Buffer, key: bytes = KEY) -> bytes:
    return b"".join(encryption_version(number).sealer()(block, key))


def open_(number: int, stored: Buffer, size: int, key: bytes = KEY) -> bytes:
    return encryption_version(number).open(stored, key, size)


def seal_frame(frame: bytes, key: bytes = KEY) -> bytes:
    """Return an authentic object of version 1 around any bytes."""
    nonce = secrets.token_bytes(16)
    sealed = AESGCM(key).encrypt(nonce, frame, None)
    return sealed[-16:] + nonce + sealed[:-16]


# Round trips


@given(versions, blocks)
def test_what_is_sealed_opens_to_the_same_bytes(number: int, block: bytes) -> None:
    assert open_(number, seal(number, block), len(block)) == block


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 4 << 20])
def test_blocks_of_any_size_are_sealed(number: int, size: int) -> None:
    block = bytes(size)
    assert open_(number, seal(number, block), size) == block


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_every_kind_of_buffer_is_sealed_and_opened(number: int, kind: type[bytes | bytearray | memoryview]) -> None:
    block = open_(number, kind(seal(number, kind(BLOCK))), len(BLOCK))
    assert block == BLOCK
    assert type(block) is bytes


@pytest.mark.parametrize("number", [0, 1])
def test_a_part_of_a_buffer_is_sealed_alone(number: int) -> None:
    part = memoryview(bytearray(BLOCK))[10:20]
    assert open_(number, seal(number, part), 10) == BLOCK[10:20]


def test_version_0_stores_the_block_as_it_is() -> None:
    assert seal(0, b"backyfs") == b"backyfs"


def test_version_1_compresses() -> None:
    assert len(seal(1, bytes(1 << 20))) < 1024


def test_version_1_seals_the_same_block_differently_each_time() -> None:
    sealer = encryption_version(1).sealer()
    assert b"".join(sealer(BLOCK, KEY)) != b"".join(sealer(BLOCK, KEY))


@given(versions, st.lists(blocks, min_size=2, max_size=4))
def test_one_sealer_seals_many_blocks_each_on_its_own(number: int, several: list[bytes]) -> None:
    sealer = encryption_version(number).sealer()
    objects = [sealer(block, bytes([position]) * 32) for position, block in enumerate(several)]
    for position, (parts, block) in enumerate(zip(objects, several, strict=True)):
        assert open_(number, b"".join(parts), len(block), bytes([position]) * 32) == block


@pytest.mark.parametrize(("number", "uses_data_key"), [(0, False), (1, True)])
def test_a_version_tells_whether_its_blobs_have_data_keys(number: int, uses_data_key: bool) -> None:
    assert encryption_version(number).uses_data_key is uses_data_key


# Version 1 refuses what it did not make.


@given(block=st.binary(max_size=300), data=st.data())
@settings(deadline=None)
def test_a_flipped_bit_is_refused(block: bytes, data: st.DataObject) -> None:
    stored = bytearray(seal(1, block))
    bit = data.draw(st.integers(0, len(stored) * 8 - 1))
    stored[bit // 8] ^= 1 << bit % 8
    with pytest.raises(IntegrityError, match="fails its authentication"):
        open_(1, stored, len(block))


@given(block=st.binary(max_size=300), data=st.data())
def test_a_truncated_object_is_refused(block: bytes, data: st.DataObject) -> None:
    stored = seal(1, block)
    length = data.draw(st.integers(0, len(stored) - 1))
    with pytest.raises(IntegrityError, match=r"is cut short|fails its authentication"):
        open_(1, stored[:length], len(block))


@given(block=st.binary(max_size=300), more=st.binary(min_size=1, max_size=50))
def test_an_extended_object_is_refused(block: bytes, more: bytes) -> None:
    with pytest.raises(IntegrityError, match="fails its authentication"):
        open_(1, seal(1, block) + more, len(block))


def test_an_object_shorter_than_tag_and_nonce_is_refused_with_its_length() -> None:
    with pytest.raises(IntegrityError, match=r"^is cut short: 32 bytes$"):
        open_(1, bytes(32), 0)


def test_the_object_of_another_blob_is_refused() -> None:
    others = seal(1, BLOCK, OTHER_KEY)
    with pytest.raises(IntegrityError, match=r"^fails its authentication: damaged, or not the object of this blob$"):
        open_(1, others, len(BLOCK), KEY)


def test_a_wrong_data_key_is_refused() -> None:
    with pytest.raises(IntegrityError, match="fails its authentication"):
        open_(1, seal(1, BLOCK, KEY), len(BLOCK), OTHER_KEY)


@pytest.mark.parametrize("size", [0, 899, 901, 1 << 40])
def test_an_authentic_object_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(IntegrityError, match=rf"^holds 900 bytes where its block has {size}$"):
        open_(1, seal(1, BLOCK), size)


def test_a_frame_that_claims_a_terabyte_is_refused_before_anything_is_allocated() -> None:
    # Magic; a header with a single segment and a content size of eight bytes; an empty last raw block.
    frame = b"\x28\xb5\x2f\xfd" + b"\xe0" + (1 << 40).to_bytes(8, "little") + b"\x01\x00\x00"
    with pytest.raises(IntegrityError, match=r"^holds 1099511627776 bytes where its block has 900$"):
        open_(1, seal_frame(frame), 900)


def test_a_frame_that_states_the_size_and_holds_less_is_refused() -> None:
    frame = b"\x28\xb5\x2f\xfd" + b"\x20\x05" + b"\x19\x00\x00" + b"abc"  # states 5 bytes, holds a raw block of 3
    with pytest.raises(IntegrityError, match="is no zstd frame"):
        open_(1, seal_frame(frame), 5)


def test_a_frame_that_states_no_size_is_refused() -> None:
    frame = zstandard.ZstdCompressor(write_content_size=False).compress(BLOCK)
    with pytest.raises(IntegrityError, match=r"^holds -1 bytes where its block has 900$"):
        open_(1, seal_frame(frame), 900)


def test_bytes_after_the_frame_are_refused() -> None:
    frame = zstandard.ZstdCompressor().compress(BLOCK)
    with pytest.raises(IntegrityError, match="is no zstd frame"):
        open_(1, seal_frame(frame + b"more"), 900)


def test_an_authentic_object_that_is_no_frame_is_refused() -> None:
    with pytest.raises(IntegrityError, match="is no zstd frame"):
        open_(1, seal_frame(b"no frame at all"), 900)


# Version 0 has but the length.


@pytest.mark.parametrize("length", [0, 899, 901])
def test_version_0_refuses_an_object_of_another_length(length: int) -> None:
    with pytest.raises(IntegrityError, match=rf"^has {length} bytes where its block has 900$"):
        open_(0, bytes(length), 900)


# The registry


@pytest.mark.parametrize("number", [-1, 2, 255])
def test_an_unknown_version_is_refused_with_the_known_ones(number: int) -> None:
    with pytest.raises(
        IntegrityError,
        match=rf"^encryption version {number} is unknown to this program, which knows 0, 1; use the release of",
    ):
        encryption_version(number)


@pytest.mark.parametrize("number", [0, 1])
def test_known_versions_can_be_configured(number: int) -> None:
    check_configured(number)


def test_an_unknown_version_cannot_be_configured() -> None:
    with pytest.raises(ConfigError, match=r"^\[DEFAULTS\] encryption_version: is 7; allowed: 0, 1$"):
        check_configured(7)


def test_new_repositories_get_the_newest_version() -> None:
    assert NEWEST_ENCRYPTION_VERSION == 1
