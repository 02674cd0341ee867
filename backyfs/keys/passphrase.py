"""Derive the key that opens a slot from a passphrase, deliberately slowly and with much memory.

The cost is stored in the slot as JSON, so it can grow with faster machines. Argon2id (RFC 9106), or scrypt (RFC 7914)
if the cryptographic library lacks it.
"""

from __future__ import annotations

import json
import secrets
import unicodedata
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm

from backyfs.errors import IntegrityError, MissingKeyError

KDF_ARGON2ID = "argon2id"
KDF_SCRYPT = "scrypt"
KDFS = frozenset({KDF_ARGON2ID, KDF_SCRYPT})

_KEY_BYTES = 32
_SALT_BYTES = 16
_MAX_MEMORY_KIB = 1 << 20     # per slot: an attacker who can write to the database must not be able to stop us
# Memory times passes, for one slot and for all slots tried: about a minute. 32 default slots take three quarters of it.
MAX_WORK_KIB = 1 << 25
_MAX_PARAMETERS = 1024  # characters
_MAX_LANES = 16
_SCRYPT_R = 8                 # 1 KiB for each unit of n


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """The cost of trying one passphrase."""

    memory_kib: int = 128 << 10
    passes: int = 6
    lanes: int = 4


def new_parameters(cost: Cost) -> tuple[str, str]:
    """Return the name of a key derivation function and its parameters with a new salt, in the form stored in slots."""
    salt = secrets.token_bytes(_SALT_BYTES).hex()
    if _has_argon2id():
        argon2id = {"salt": salt, "memory_kib": cost.memory_kib, "passes": cost.passes, "lanes": cost.lanes}
        return KDF_ARGON2ID, json.dumps(argon2id)
    # Each of the p passes of scrypt uses its own memory; n is a power of two.
    return KDF_SCRYPT, json.dumps({"salt": salt, "n": 1 << (cost.memory_kib.bit_length() - 1), "r": _SCRYPT_R, "p": 2})


def derive_key(passphrase: str, kdf: str, parameters: str) -> bytes:
    """Return the key derived from a passphrase. Equal text gives the same key however it was typed (NFC).

    Raises:
        IntegrityError: the parameters are damaged or exceed the limits.
        MissingKeyError: the cryptographic library of this host does not support the function.
    """
    secret = unicodedata.normalize("NFC", passphrase).encode("utf-8", "surrogateescape")
    found = _read(parameters)
    try:
        return _argon2id(secret, found) if kdf == KDF_ARGON2ID else _scrypt(secret, found)
    except UnsupportedAlgorithm as error:
        raise MissingKeyError(
            f"does not know {kdf}",
            subject="the cryptographic library of this host",
            remedy="install a newer OpenSSL (3.2), or the package cryptography from PyPI",
        ) from error


def work_kib(kdf: str, parameters: str) -> int:
    """Return the work of trying a passphrase on a slot: KiB of memory times the number of passes over it.

    Raises:
        IntegrityError: the parameters are damaged or exceed the limits.
    """
    found = _read(parameters)
    if kdf == KDF_ARGON2ID:
        memory_kib, _, passes = _argon2id_cost(found)
        return memory_kib * passes
    n, r, p = _scrypt_cost(found)
    return max(1, n * r // _SCRYPT_R) * 2 * p  # each of the p passes fills the memory, then reads it


def _argon2id(secret: bytes, found: dict[str, Any]) -> bytes:
    from cryptography.hazmat.primitives.kdf.argon2 import Argon2id  # noqa: PLC0415 - few need it

    memory_kib, lanes, passes = _argon2id_cost(found)
    return Argon2id(
        salt=_salt(found), length=_KEY_BYTES, iterations=passes, lanes=lanes, memory_cost=memory_kib
    ).derive(secret)


def _argon2id_cost(found: dict[str, Any]) -> tuple[int, int, int]:
    memory_kib = _number(found, "memory_kib", 8, _MAX_MEMORY_KIB)
    lanes = _number(found, "lanes", 1, _MAX_LANES)
    passes = _number(found, "passes", 1, MAX_WORK_KIB // memory_kib)
    if memory_kib < 8 * lanes:
        raise _damaged("lanes")
    return memory_kib, lanes, passes


def _scrypt(secret: bytes, found: dict[str, Any]) -> bytes:
    from cryptography.hazmat.primitives.kdf.scrypt import Scrypt  # noqa: PLC0415 - few need it

    n, r, p = _scrypt_cost(found)
    return Scrypt(salt=_salt(found), length=_KEY_BYTES, n=n, r=r, p=p).derive(secret)


def _scrypt_cost(found: dict[str, Any]) -> tuple[int, int, int]:
    n = _number(found, "n", 2, _MAX_MEMORY_KIB)
    r = _number(found, "r", 1, _SCRYPT_R)
    if n & (n - 1):
        raise _damaged("n")
    return n, r, _number(found, "p", 1, _MAX_LANES)


def _has_argon2id() -> bool:
    from cryptography.hazmat.primitives.kdf.argon2 import Argon2id  # noqa: PLC0415 - few need it

    try:
        Argon2id(salt=bytes(_SALT_BYTES), length=_KEY_BYTES, iterations=1, lanes=1, memory_cost=8)
    except UnsupportedAlgorithm:
        return False
    return True


def _read(parameters: str) -> dict[str, Any]:
    try:
        found = json.loads(parameters) if len(parameters) <= _MAX_PARAMETERS else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise IntegrityError("has parameters that are not a JSON object: it is damaged")
    return found


def _number(found: dict[str, Any], name: str, low: int, high: int) -> int:
    value = found.get(name)
    if type(value) is not int or not low <= value <= high:
        raise _damaged(name)
    return value


def _salt(found: dict[str, Any]) -> bytes:
    try:
        salt = bytes.fromhex(found["salt"])
    except (KeyError, TypeError, ValueError):
        salt = b""
    if not 8 <= len(salt) <= 64:
        raise _damaged("salt")
    return salt


def _damaged(name: str) -> IntegrityError:
    return IntegrityError(f"has parameters that no slot of backyfs has ({name}): it is damaged")
