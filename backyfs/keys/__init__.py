"""Wrap and unwrap keys: the repository key in its slots, and the data keys that it wraps.

    configured key
    or passphrase  --unwraps--> repository key (in a key slot) --unwraps--> data key of a blob
                                                               --unwraps--> fingerprint key

Wrapping is AES key wrap with a 256-bit key (RFC 3394): 32 bytes become 40, and a wrong key is detected.
No key is ever logged, shown or part of a message. Messages show its check value instead.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap

from backyfs.errors import IntegrityError, MissingKeyError, WrongKeyError
from backyfs.keys.sources import PATIENCE_S, read_credential, read_key_file, run_key_command
from backyfs.model import KeySlot

if TYPE_CHECKING:
    from datetime import datetime

    from backyfs.model import KeySource, PassphraseSource

KEY_BYTES = 32
CHECK_BYTES = 8  # enough to distinguish keys, too few to help anyone guess a 256-bit key
KDF_CONFIGURED_KEY = "configured-key"  # the slot is opened by the configured 256-bit key itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Keyring:
    """The unwrapped keys of a repository. Without encryption, both are None."""

    repository_key: bytes | None = field(repr=False)
    fingerprint_key: bytes | None = field(repr=False)

    def wrap(self, data_key: bytes) -> bytes:
        """Wrap a data key.

        Raises:
            MissingKeyError: the repository has no key.
        """
        return wrap_key(self._repository_key(), data_key)

    def unwrap(self, wrapped_key: bytes | None) -> bytes:
        """Return the data key of a blob.

        Raises:
            MissingKeyError: the repository has no key.
            IntegrityError: the wrapped key is damaged or was wrapped by another key.
        """
        if wrapped_key is None:
            raise IntegrityError("has no data key in the database")
        return unwrap_key(self._repository_key(), wrapped_key)

    def _repository_key(self) -> bytes:
        if self.repository_key is None:
            raise MissingKeyError(
                "is encrypted and the configuration has no key",
                subject="this block",
                remedy="set encryption_key_file, encryption_key_command or encryption_key",
            )
        return self.repository_key


def new_key() -> bytes:
    """Return a new random key."""
    return secrets.token_bytes(KEY_BYTES)


def wrap_key(wrapping_key: bytes, key: bytes) -> bytes:
    """Return `key` wrapped in 40 bytes, which only `wrapping_key` can unwrap."""
    return aes_key_wrap(wrapping_key, key)


def unwrap_key(wrapping_key: bytes, wrapped_key: bytes) -> bytes:
    """Return an unwrapped key.

    Raises:
        IntegrityError: the wrapped key is damaged, or was wrapped by another key.
    """
    try:
        return aes_key_unwrap(wrapping_key, wrapped_key)
    except (InvalidUnwrap, ValueError) as error:
        raise IntegrityError("has a wrapped key that is damaged or belongs to another key") from error


def key_check(key: bytes) -> bytes:
    """Return the check value of a key: 8 bytes that identify it and reveal nothing else."""
    return HKDF(algorithm=SHA256(), length=CHECK_BYTES, salt=None, info=b"backyfs key check 1").derive(key)


def show_check(check: bytes) -> str:
    """Return a check value for display: `1a2b-3c4d-5e6f-7081`."""
    digits = check.hex()
    return "-".join(digits[start : start + 4] for start in range(0, len(digits), 4))


def new_slot(configured_key: bytes, repository_key: bytes, *, label: str, created_at: datetime) -> KeySlot:
    """Return a slot with the repository key, wrapped by the configured key."""
    return KeySlot(
        label=label,
        kdf=KDF_CONFIGURED_KEY,
        kdf_parameters="",
        key_check=key_check(configured_key),
        wrapped_key=wrap_key(configured_key, repository_key),
        created_at=created_at,
    )


def open_slots(slots: list[KeySlot], configured_key: bytes) -> bytes:
    """Return the repository key from the slot of the configured key.

    Raises:
        WrongKeyError: the key has no slot; the message shows which keys are expected.
        IntegrityError: its slot is damaged.
    """
    slot = slot_of_key(slots, configured_key)
    if slot is None:
        raise _not_the_key(slots, show_check(key_check(configured_key)))
    return open_slot(slot, configured_key)


def slot_of_key(slots: list[KeySlot], configured_key: bytes) -> KeySlot | None:
    """Return the slot of a configured key, damaged or not; None if it has none."""
    check = key_check(configured_key)
    return next((slot for slot in slots if slot.key_check == check and slot.kdf == KDF_CONFIGURED_KEY), None)


def open_slot(slot: KeySlot, key: bytes) -> bytes:
    """Return the repository key from a slot. The key must match the check value of the slot.

    Raises:
        IntegrityError: the slot is damaged.
    """
    try:
        return unwrap_key(key, slot.wrapped_key)
    except IntegrityError as error:
        error.subject = f"key slot {slot.label!r}"
        raise


def expected_keys(slots: list[KeySlot]) -> str:
    """Return for messages what opens the slots: check values of keys, labels of slots with passphrases."""
    return " or ".join(
        show_check(slot.key_check) if slot.kdf == KDF_CONFIGURED_KEY else f"the passphrase of slot {slot.label!r}"
        for slot in slots
    )


def _not_the_key(slots: list[KeySlot], check: str) -> WrongKeyError:
    remedy = "configure that one (encryption_key_file, encryption_key_command or encryption_key)"
    if any(slot.kdf != KDF_CONFIGURED_KEY for slot in slots):
        remedy = f"{remedy[:-1]}; for a passphrase encryption_passphrase_file or encryption_passphrase_command)"
    return WrongKeyError(
        f"is not the key of this repository, which is {expected_keys(slots)}",
        subject=f"the configured key {check}",
        remedy=remedy,
    )


def read_key(source: KeySource, *, timeout_s: float = PATIENCE_S) -> bytes:
    """Read a key of 64 hexadecimal digits from its configured source.

    Raises:
        MissingKeyError: the file or command does not yield such a key within `timeout_s` seconds.
    """
    if source.hex_digits is not None:
        return _parse(source.hex_digits, "encryption_key")
    if source.file is not None:
        return _parse(read_key_file(source.file, timeout_s=timeout_s), f"key file {source.file}")
    if source.credential is not None:
        return _parse(read_credential(source.credential), f"the credential {source.credential}")
    assert source.command is not None
    output = run_key_command(source.command, "encryption_key_command", timeout_s=timeout_s)
    return _parse(output, "the output of encryption_key_command")


def read_passphrase(source: PassphraseSource, *, timeout_s: float = PATIENCE_S) -> str:
    """Read a passphrase from its configured source, without the line end after it.

    Raises:
        MissingKeyError: the file or command does not yield one within `timeout_s` seconds.
    """
    if source.file is not None:
        text = read_key_file(source.file, encoding="utf-8", timeout_s=timeout_s)
        place = f"passphrase file {source.file}"
    else:
        assert source.command is not None
        name = "encryption_passphrase_command"
        text = run_key_command(source.command, name, encoding="utf-8", timeout_s=timeout_s)
        place = "the output of encryption_passphrase_command"
    passphrase = text.rstrip("\r\n")
    if not passphrase:
        raise MissingKeyError(
            "holds no passphrase: it is empty", subject=place, remedy="write the passphrase to it"
        )
    return passphrase


def _parse(text: str, place: str) -> bytes:
    digits = text.strip()
    try:
        key = bytes.fromhex(digits)
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES or len(digits) != 2 * KEY_BYTES:
        raise MissingKeyError(
            f"holds no key: {len(digits)} characters, needed are 64 hexadecimal digits", subject=place
        )
    return key
