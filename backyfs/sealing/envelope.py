"""Seal small objects under a shared key, each bound to its meaning and place.

Bytes in, bytes out. Without a key nothing is secret, and a digest replaces the tag.
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
# The key of an object is HKDF-SHA256(key, salt, info). It seals only this object, so the nonce can be 12 zero bytes.
_SALT_BYTES = 32
_TAG_BYTES = 16
_DIGEST_BYTES = 32
_NONCE = bytes(12)
_INFO = b"backyfs catalog object 1"
OVERHEAD_BYTES = _SALT_BYTES + _TAG_BYTES  # at most


def seal(key: bytes | None, bound: bytes, content: Buffer) -> bytes:
    """Return sealed content, or content with its digest if there is no key. Only the same `bound` bytes open it."""
    if key is None:
        return _digest(bound, content) + bytes(content)
    salt = secrets.token_bytes(_SALT_BYTES)
    return salt + AESGCM(_object_key(key, salt)).encrypt(_NONCE, content, bound)


def open_sealed(key: bytes | None, bound: bytes, sealed: Buffer) -> bytes:
    """Return content that was sealed with this key (or without one) and these bound bytes.

    Raises:
        IntegrityError: it was not.
    """
    view = memoryview(sealed)
    if key is None:
        content = bytes(view[_DIGEST_BYTES:])
        if not hmac.compare_digest(_digest(bound, content), bytes(view[:_DIGEST_BYTES])):
            raise IntegrityError("does not match its digest: damaged, or not the object of this name")
        return content
    if len(view) < OVERHEAD_BYTES:
        raise IntegrityError(f"is truncated: {len(view)} bytes")
    try:
        return AESGCM(_object_key(key, bytes(view[:_SALT_BYTES]))).decrypt(_NONCE, view[_SALT_BYTES:], bound)
    except InvalidTag:
        raise IntegrityError("fails authentication: damaged, or not the object of this name") from None


def _object_key(key: bytes, salt: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=salt, info=_INFO).derive(key)


def _digest(bound: bytes, content: Buffer) -> bytes:
    return blake3(len(bound).to_bytes(8, "little") + bound).update(content).digest()
