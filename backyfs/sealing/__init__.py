"""Seal blocks into objects and open them again: the registry of encryption versions.

Bytes in, bytes out: no I/O, no state, safe from any thread. Every function returns verified bytes or raises
IntegrityError; it never returns wrong ones. Objects of version 0 cannot be verified here, so callers check the
fingerprint (`backyfs.blocks`).

To add a version, add one module to this package and one line to `_VERSIONS`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from backyfs.errors import ConfigError, IntegrityError
from backyfs.model import DEFAULT_COMPRESSION_LEVEL
from backyfs.sealing import plain, segments, zstd_gcm

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeAlias

    from backyfs.model import Buffer

    # Takes a block and its data key, and returns consecutive parts of the object.
    Sealer: TypeAlias = Callable[[Buffer, bytes], Sequence[Buffer]]
    # Takes an offset in a stored object and a length, and returns that many bytes, or fewer at its end.
    ReadAt: TypeAlias = Callable[[int, int], Buffer]

DATA_KEY_BYTES = 32  # AES-256


class Seekable(Protocol):
    """An encryption version that opens and verifies parts of a block without the rest of its object."""

    @property
    def segment_bytes(self) -> int:
        """The number of bytes of a block that are opened together."""
        ...

    def table_bytes(self, size: int) -> int:
        """Return the length of the table at the beginning of the object of a block of `size` bytes."""
        ...

    def likely_bytes(self, size: int, stored_size: int, segments: range) -> range:
        """Return which bytes of an object of `stored_size` bytes probably have these segments of a block of `size`."""
        ...

    def open_range(self, read_at: ReadAt, data_key: bytes, size: int, segments: range) -> list[bytes]:
        """Return one or more segments of a block of `size` bytes, with one read of the table and one of the segments.

        Errors of `read_at` are passed on.

        Raises:
            IntegrityError: these parts of the object were not sealed with this data key for such a block.
        """
        ...


class EncryptionVersion(Protocol):
    """How a block becomes a stored object, and back."""

    @property
    def uses_data_key(self) -> bool:
        """Whether each blob has its own data key."""
        ...

    @property
    def seekable(self) -> Seekable | None:
        """The version as a Seekable; None if only whole blocks can be verified."""
        ...

    def sealer(self, compression_level: int = DEFAULT_COMPRESSION_LEVEL) -> Sealer:
        """Return a function that seals blocks, for one thread. It creates expensive objects once.

        Versions that compress use this zstd level, 1 to 19. Opening a block does not depend on it.

        Every block must get a data key that was never used before.
        """
        ...

    def open(self, stored: Buffer, data_key: bytes, size: int) -> bytes:
        """Return the `size` plain bytes of a block.

        Raises:
            IntegrityError: the object was not sealed with this data key for such a block.
        """
        ...


_VERSIONS: dict[int, EncryptionVersion] = {
    0: plain.Plain(),
    1: zstd_gcm.ZstdGcm(),
    2: segments.Segments(),
}

# The version of new blobs if encryption is on and the configuration sets none. Repositories of backy2 keep using
# backy2's version, because nothing about them changes unless the user asks for it.
NEWEST_ENCRYPTION_VERSION = 2
BACKY2_ENCRYPTION_VERSION = 1


def encryption_version(number: int) -> EncryptionVersion:
    """Return the encryption version with this number.

    Raises:
        IntegrityError: this program does not know it.
    """
    try:
        return _VERSIONS[number]
    except KeyError:
        raise IntegrityError(
            f"has encryption version {number}, which is unknown to this program (it knows {_known()})",
            remedy="use the release of backyfs that wrote it, or a newer one",
        ) from None


def check_configured(number: int) -> None:
    """Check a number from the configuration.

    Raises:
        ConfigError: there is no such encryption version.
    """
    if number not in _VERSIONS:
        raise ConfigError(
            f"is {number}", section="DEFAULTS", key="encryption_version", remedy=f"allowed: {_known()}"
        )


def _known() -> str:
    return ", ".join(str(number) for number in sorted(_VERSIONS))
