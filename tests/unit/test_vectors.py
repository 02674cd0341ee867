"""Stored objects, opened by today's code; and today's objects, opened by a reader that shares no code with the program.

A vector is a JSON file: `origin` made `object` from a block of `size` bytes with these hashes; the data key
is wrapped by `repository_key`. The format of an encryption version never changes, and neither do these files.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import zstandard
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap

from backyfs.errors import IntegrityError
from backyfs.keys import Keyring
from backyfs.sealing import encryption_version

_FILES = sorted((Path(__file__).parents[1] / "vectors").glob("v*.json"))
REPOSITORY_KEY = bytes.fromhex("decafbad" * 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Vector:
    """One stored object and its contents."""

    origin: str
    encryption_version: int
    repository_key: str | None
    wrapped_key: str | None
    size: int
    sha256: str
    sha512: str
    blake3: str
    object: str

    def open(self) -> bytes:
        """Return the plain bytes as the program reads them."""
        scheme = encryption_version(self.encryption_version)
        data_key = b""
        if self.repository_key is not None and self.wrapped_key is not None:
            keyring = Keyring(repository_key=bytes.fromhex(self.repository_key), fingerprint_key=None)
            data_key = keyring.unwrap(bytes.fromhex(self.wrapped_key))
        return scheme.open(bytes.fromhex(self.object), data_key, self.size)


def load(file: Path) -> Vector:
    return Vector(**json.loads(file.read_text(encoding="utf-8")))


def open_as_documented(stored: bytes, wrapped_key: bytes) -> bytes:
    """Open an object of version 1 according to the description of backy2's format: tag, nonce, ciphertext."""
    data_key = aes_key_unwrap(REPOSITORY_KEY, wrapped_key)
    tag, nonce, ciphertext = stored[:16], stored[16:32], stored[32:]
    frame = AESGCM(data_key).decrypt(nonce, ciphertext + tag, None)
    assert frame[:4] == b"\x28\xb5\x2f\xfd"
    return zstandard.ZstdDecompressor().decompress(frame)


def open_segments_as_documented(stored: bytes, data_key: bytes, size: int) -> bytes:
    """Open an object of version 2 according to docs/reference/format.md."""
    count = -(-size // 262144)
    gcm = AESGCM(data_key)
    place = 4 * count + 16
    table = gcm.decrypt(b"\xff" * 4 + b"\0" * 8, stored[:place], struct.pack("<IIQ", 0xFFFFFFFF, count, size))
    block = b""
    for number, (entry,) in enumerate(struct.iter_unpack("<I", table)):
        length = (entry & 0x7FFFFFFF) + 16
        bound = struct.pack("<IIQ", number, count, size)
        content = gcm.decrypt(number.to_bytes(12, "little"), stored[place : place + length], bound)
        block += content if entry >> 31 else zstandard.ZstdDecompressor().decompress(content)
        place += length
    assert place == len(stored)
    return block


@pytest.mark.parametrize("file", [file for file in _FILES if file.stem.startswith("v2")], ids=lambda file: file.stem)
def test_the_documented_reader_opens_objects_of_version_2(file: Path) -> None:
    vector = load(file)
    assert vector.repository_key is not None
    assert vector.wrapped_key is not None
    data_key = aes_key_unwrap(bytes.fromhex(vector.repository_key), bytes.fromhex(vector.wrapped_key))
    block = open_segments_as_documented(bytes.fromhex(vector.object), data_key, vector.size)
    assert hashlib.sha512(block).hexdigest() == vector.sha512


@pytest.mark.parametrize("block", [b"", b"*", bytes(262144), bytes(262145), bytes(range(256)) * 5000])
def test_the_documented_reader_opens_objects_sealed_with_version_2_today(block: bytes) -> None:
    data_key = bytes(range(100, 132))
    stored = b"".join(encryption_version(2).sealer()(block, data_key))
    assert open_segments_as_documented(stored, data_key, len(block)) == block


def test_all_vectors_exist() -> None:
    assert [file.stem for file in _FILES] == [
        "v0-backy2-4097",
        "v0-backy2-777",
        "v0-backy2-98",
        "v0-backyfs-1",
        "v0-backyfs-4096-text",
        "v1-backy2-33333",
        "v1-backy2-4097",
        "v1-backy2-777",
        "v1-backyfs-1",
        "v1-backyfs-300000-level19",
        "v1-backyfs-4096-random",
        "v1-backyfs-4096-text",
        "v2-backyfs-1",
        "v2-backyfs-262149-mixed",
        "v2-backyfs-300000-level19",
        "v2-backyfs-4096-text",
        "v2-backyfs-786443-zeros",
    ]


@pytest.mark.parametrize("file", _FILES, ids=lambda file: file.stem)
def test_a_stored_object_opens_to_its_bytes(file: Path) -> None:
    vector = load(file)
    block = vector.open()
    assert len(block) == vector.size
    assert hashlib.sha256(block).hexdigest() == vector.sha256
    assert hashlib.sha512(block).hexdigest() == vector.sha512
    assert blake3(block).hexdigest() == vector.blake3


@pytest.mark.parametrize(
    ("stem", "block"),
    [
        ("v0-backy2-98", b"hello backyfs\n" * 7),
        ("v0-backyfs-1", b"*"),
        ("v0-backyfs-4096-text", b"backyfs\n" * 512),
        ("v1-backyfs-1", b"*"),
        ("v1-backyfs-4096-text", b"backyfs\n" * 512),
        ("v2-backyfs-1", b"*"),
        ("v2-backyfs-262149-mixed", b"backyfs\n" * 32768 + b"\x00\x81\x7f\x10\xfe"),
        ("v2-backyfs-4096-text", b"backyfs\n" * 512),
        ("v2-backyfs-786443-zeros", bytes(786443)),
    ],
)
def test_the_bytes_of_short_vectors_are_known(stem: str, block: bytes) -> None:
    assert load(_FILES[0].with_name(f"{stem}.json")).open() == block


@pytest.mark.parametrize("file", [file for file in _FILES if file.stem.startswith(("v1", "v2"))], ids=lambda f: f.stem)
def test_a_flipped_bit_of_a_stored_object_or_its_key_is_refused(file: Path) -> None:
    vector = load(file)
    stored = bytes.fromhex(vector.object)
    # All bits of short objects; of others, the beginning with the fields of the format, the end, and some in between.
    count = 8 * len(stored)
    for bit in {*range(count)[: 8 * 64], *range(0, count, -(-count // 500)), *range(count)[-8 * 16 :]}:
        with pytest.raises(IntegrityError):
            replace(vector, object=flipped(stored, bit).hex()).open()
    assert vector.wrapped_key is not None
    wrapped = bytes.fromhex(vector.wrapped_key)
    for bit in range(8 * len(wrapped)):
        with pytest.raises(IntegrityError):
            replace(vector, wrapped_key=flipped(wrapped, bit).hex()).open()


@pytest.mark.parametrize("number", [1, 2])
def test_no_vector_opens_with_the_key_or_the_version_of_another(number: int) -> None:
    vectors = [vector for vector in map(load, _FILES) if vector.encryption_version == number]
    others = [vector for vector in map(load, _FILES) if vector.encryption_version]
    for vector, other in ((vector, other) for vector in vectors for other in others):
        if (vector.repository_key, vector.wrapped_key) != (other.repository_key, other.wrapped_key):
            mixed = replace(vector, repository_key=other.repository_key, wrapped_key=other.wrapped_key)
            with pytest.raises(IntegrityError):
                mixed.open()
    for vector in vectors:
        with pytest.raises(IntegrityError):
            replace(vector, encryption_version=3 - number).open()


def flipped(content: bytes, bit: int) -> bytes:
    """Return bytes with one bit flipped."""
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@pytest.mark.parametrize("file", [file for file in _FILES if file.stem.startswith("v1-backy2")], ids=lambda f: f.stem)
def test_the_documented_reader_opens_objects_written_by_backy2(file: Path) -> None:
    vector = load(file)
    assert vector.wrapped_key is not None
    block = open_as_documented(bytes.fromhex(vector.object), bytes.fromhex(vector.wrapped_key))
    assert hashlib.sha512(block).hexdigest() == vector.sha512


@pytest.mark.parametrize("block", [b"", b"*", b"backyfs\n" * 512, bytes(65536), bytes(range(256)) * 15])
def test_the_documented_reader_opens_objects_sealed_today(block: bytes) -> None:
    data_key = bytes(range(100, 132))
    stored = b"".join(encryption_version(1).sealer()(block, data_key))
    wrapped_key = Keyring(repository_key=REPOSITORY_KEY, fingerprint_key=None).wrap(data_key)
    assert open_as_documented(stored, wrapped_key) == block


@pytest.mark.parametrize("block", [b"", b"*", bytes(65536)])
def test_frames_written_today_state_their_size_like_those_of_backy2(block: bytes) -> None:
    data_key = bytes(range(100, 132))
    stored = b"".join(encryption_version(1).sealer()(block, data_key))
    frame = AESGCM(data_key).decrypt(stored[16:32], stored[32:] + stored[:16], None)
    assert zstandard.get_frame_parameters(frame).content_size == len(block)
