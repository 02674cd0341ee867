"""Seal blocks into objects and open them again: the registry of encryption versions.

Bytes in, bytes out: no I/O, no state, safe from any thread. A block is never opened partly wrong: every
function returns bytes that the object vouches for, or raises IntegrityError. Version 0 has nothing that
could vouch for its bytes, so callers check the fingerprint (`backyfs.blocks`).

To add a version: one module beside this one, and one line in `_VERSIONS`.
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

    # Takes a block and its data key, returns the object in parts that are stored one after the other.
    Sealer: TypeAlias = Callable[[Buffer, bytes], Sequence[Buffer]]
    # Takes an offset in a stored object and a length, returns so many bytes, fewer at its end.
    ReadAt: TypeAlias = Callable[[int, int], Buffer]

DATA_KEY_BYTES = 32  # AES-256


class Seekable(Protocol):
    """How a part of a block is opened, and checked, without the rest of its object."""

    @property
    def segment_bytes(self) -> int:
        """How many bytes of a block are opened at once."""
        ...

    def table_bytes(self, size: int) -> int:
        """Return how many bytes the table takes at the beginning of the object of a block of `size` bytes."""
        ...

    def open_range(self, read_at: ReadAt, data_key: bytes, size: int, segments: range) -> list[bytes]:
        """Return some segments of a block of `size` bytes, one or more: with one read of the table, and one of them.

        Raises:
            IntegrityError: these parts of the object are not what was sealed with this data key for such a block.
            What `read_at` raises.
        """
        ...


class EncryptionVersion(Protocol):
    """How a block becomes a stored object, and back."""

    @property
    def uses_data_key(self) -> bool:
        """Whether each blob has a data key of its own."""
        ...

    @property
    def seekable(self) -> Seekable | None:
        """How parts of a block are opened; None where only a whole block can be checked."""
        ...

    def sealer(self, compression_level: int = DEFAULT_COMPRESSION_LEVEL) -> Sealer:
        """Return a function that seals blocks, for one thread: what is costly to make, it makes once.

        The level is one of zstd, 1 to 19, for versions that compress; blocks of any level are opened alike.

        Every block is to be given a data key that was never used before.
        """
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
    2: segments.Segments(),
}

# What blobs get where encryption is on and the configuration names none. Repositories of backy2 go on with backy2's:
# nothing about them changes that nobody asked for.
NEWEST_ENCRYPTION_VERSION = 2
BACKY2_ENCRYPTION_VERSION = 1


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
            f"is {number}", section="DEFAULTS", key="encryption_version", remedy=f"allowed: {_known()}"
        )


def _known() -> str:
    return ", ".join(str(number) for number in sorted(_VERSIONS))
