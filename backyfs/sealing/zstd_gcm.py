"""Encryption version 1, from backy2: one zstd frame, sealed with AES-256-GCM under the blob's data key.

The format is the one that backy2 2.12 and 2.13 wrote; `tests/vectors/` contains such objects.
"""

from __future__ import annotations

import secrets
from functools import partial
from typing import TYPE_CHECKING

import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from backyfs.errors import IntegrityError
from backyfs.model import DEFAULT_COMPRESSION_LEVEL
from backyfs.sealing.frames import compressor, decompress

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from backyfs.model import Buffer

# tag (16) | nonce (16) | ciphertext of one zstd frame that states its content size
# GCM with a nonce of 16 bytes (J0 comes from GHASH, NIST SP 800-38D, 7.1), no associated data.
_TAG_BYTES = 16
_NONCE_BYTES = 16
# A window over the whole block. At level 1, backy2's window was 512 KiB. For a file system image, objects are 1.5 %
# smaller and sealing is not slower.
_WINDOW_LOG = 22


class ZstdGcm:
    """Objects that are compressed, then encrypted, each with its own data key."""

    uses_data_key = True
    seekable = None

    def sealer(
        self, compression_level: int = DEFAULT_COMPRESSION_LEVEL
    ) -> Callable[[Buffer, bytes], Sequence[Buffer]]:
        """Return a function that returns tag, nonce and ciphertext of a block."""
        # For blocks of 4 KiB, creating a compressor takes as long as compressing.
        return partial(_seal, compressor(compression_level, _WINDOW_LOG))

    def open(self, stored: Buffer, data_key: bytes, size: int) -> bytes:
        """Return the plain bytes of a block, after authenticating them and checking their size."""
        view = memoryview(stored)
        length = len(view) - _TAG_BYTES - _NONCE_BYTES
        if length <= 0:
            raise IntegrityError(f"is truncated: {len(view)} bytes")
        frame = bytearray(length)
        # The library expects the tag at the end, but the format has it in front, so ciphertext and tag are copied once.
        sealed = b"".join((view[_TAG_BYTES + _NONCE_BYTES :], view[:_TAG_BYTES]))
        nonce = view[_TAG_BYTES : _TAG_BYTES + _NONCE_BYTES]
        try:
            AESGCM(data_key).decrypt_into(nonce, sealed, None, frame)
        except InvalidTag:
            raise IntegrityError("fails authentication: damaged, or not the object of this blob") from None
        return decompress(zstandard.ZstdDecompressor(), frame, size)


def _seal(compressor: zstandard.ZstdCompressor, block: Buffer, data_key: bytes) -> Sequence[Buffer]:
    frame = compressor.compress(block)
    nonce = secrets.token_bytes(_NONCE_BYTES)
    # Into our own buffer: `encrypt` zeroes its result while holding the GIL.
    sealed = bytearray(len(frame) + _TAG_BYTES)
    AESGCM(data_key).encrypt_into(nonce, frame, None, sealed)
    view = memoryview(sealed)
    return view[-_TAG_BYTES:], nonce, view[:-_TAG_BYTES]
