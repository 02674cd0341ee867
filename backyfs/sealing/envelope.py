"""Seal small objects under a key that many of them share, each bound to what it is and where it belongs.

Bytes in, bytes out. Without a key nothing is secret, and a digest takes the place of the tag.
"""

from __future__ import annotations

import hmac
import secrets
from typing import TYPE_CHECKING

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from backyfs.errors import IntegrityError

if TYPE_CHECKING:
    from backyfs.model import Buffer

# With a key:    salt (32) | AES-256-GCM: ciphertext | tag (16)
# Without one:   BLAKE3 of length of the bound bytes (8, little-endian), bound bytes, content (32) | content
# The key of an object is HKDF-SHA256(key, salt, info). It seals nothing else, so its nonce is 12 bytes of zero.
_SALT_BYTES = 32
_TAG_BYTES = 16
_DIGEST_BYTES = 32
_NONCE = bytes(12)
_INFO = b"backyfs catalog object 1"
OVERHEAD_BYTES = _SALT_BYTES + _TAG_BYTES  # at most


def seal(key: bytes | None, bound: bytes, content: Buffer) -> bytes:
    """Return content sealed, or with its digest where there is no key. It opens with the same `bound` bytes alone."""
    if key is None:
        return _digest(bound, content) + bytes(content)
    salt = secrets.token_bytes(_SALT_BYTES)
    return salt + AESGCM(_object_key(key, salt)).encrypt(_NONCE, content, bound)


def open_sealed(key: bytes | None, bound: bytes, sealed: Buffer) -> bytes:
    """Return what was sealed with this key, None for none, and these bound bytes.

    Raises:
        IntegrityError: it was not.
    """
    view = memoryview(sealed)
    if key is None:
        content = bytes(view[_DIGEST_BYTES:])
        if not hmac.compare_digest(_digest(bound, content), bytes(view[:_DIGEST_BYTES])):
            raise IntegrityError("has another digest than it says: damaged, or not the object of this name")
        return content
    if len(view) < OVERHEAD_BYTES:
        raise IntegrityError(f"is cut short: {len(view)} bytes")
    try:
        return AESGCM(_object_key(key, bytes(view[:_SALT_BYTES]))).decrypt(_NONCE, view[_SALT_BYTES:], bound)
    except InvalidTag:
        raise IntegrityError("fails its authentication: damaged, or not the object of this name") from None


def _object_key(key: bytes, salt: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=salt, info=_INFO).derive(key)


def _digest(bound: bytes, content: Buffer) -> bytes:
    return blake3(len(bound).to_bytes(8, "little") + bound).update(content).digest()
