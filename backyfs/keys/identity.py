"""Compute the tag of a repository's identity. Anyone can change a row in the database, but only the key can sign it."""

from __future__ import annotations

import hmac
import struct

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

TAG_BYTES = 32
_INFO = b"backyfs identity 1"


def identity_tag(
    repository_key: bytes, *, uid: str, block_size: int, hash_function: str, wrapped_fingerprint_key: bytes | None
) -> bytes:
    """Return the tag: HMAC-SHA256 with a key derived from the repository key for this purpose only.

    Each field is preceded by its length, so different identities are different bytes.
    """
    key = HKDF(algorithm=SHA256(), length=TAG_BYTES, salt=None, info=_INFO).derive(repository_key)
    fields = (
        uid.encode(),
        struct.pack("<Q", block_size),
        hash_function.encode(),
        b"" if wrapped_fingerprint_key is None else b"\1" + wrapped_fingerprint_key,
    )
    message = b"".join(struct.pack("<I", len(field)) + field for field in fields)
    return hmac.digest(key, message, "sha256")
