"""Seal blocks into objects and open them again: the registry of encryption versions.

Bytes in, bytes out: no I/O, no state, safe from any thread. A block is never opened partly wrong: every
function returns bytes that the object vouches for, or raises IntegrityError. Version 0 has nothing that
could vouch for its bytes, so callers check the fingerprint (`backyfs.blocks`).

To add a version: one module beside this one, and one line in `_VERSIONS`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from backyfs.errors import ConfigError, IntegrityError
from backyfs.sealing import plain, zstd_gcm

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeAlias

    from backyfs.model import Buffer

    # Takes a block and its data key, returns the object in parts that are stored one after the other.
    Sealer: TypeAlias = Callable[[Buffer, bytes], Sequence[Buffer]]

DATA_KEY_BYTES = 32  # AES-256


class EncryptionVersion(Protocol):
    """How a block becomes a stored object, and back."""

    @property
    def uses_data_key(self) -> bool:
        """Whether each blob has a data key of its own."""
        ...

    def sealer(self) -> Sealer:
        """Return a function that seals blocks, for one thread: what is costly to make, it makes once."""
        ...

    def open(self, stored: Buffer, data_key: bytes, size: int) -> bytes:
        """Return the `size` plain bytes of a block.

        Raises:
            IntegrityError: the object is not what `seal` made with this data key for such a block.
        """
        ...


_VERSIONS: dict[int, EncryptionVersion] = {
    0: plain.Plain(),
    1: zstd_gcm.ZstdGcm(),
}

NEWEST_ENCRYPTION_VERSION = max(_VERSIONS)


def encryption_version(number: int) -> EncryptionVersion:
    """Return the encryption version that a stored blob names.

    Raises:
        IntegrityError: this program does not know it.
    """
    try:
        return _VERSIONS[number]
    except KeyError:
        raise IntegrityError(
            f"encryption version {number} is unknown to this program, which knows {_known()}; "
            "use the release of backyfs that wrote it, or a newer one"
        ) from None


def check_configured(number: int) -> None:
    """Check a number from the configuration.

    Raises:
        ConfigError: there is no such encryption version.
    """
    if number not in _VERSIONS:
        raise ConfigError(
            f"is {number}; allowed: {_known()}", section="DEFAULTS", key="encryption_version"
        )


def _known() -> str:
    return ", ".join(str(number) for number in sorted(_VERSIONS))
