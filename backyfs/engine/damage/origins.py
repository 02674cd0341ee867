"""Where the bytes of damaged blobs may still exist: other blobs, an image, another repository.

Nothing from here is trusted: the caller compares fingerprints.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from backyfs.blocks import load_block
from backyfs.errors import DAMAGE, DatabaseError, SourceError, VersionIncompleteError
from backyfs.geometry import block_runs
from backyfs.images.image import PageCache
from backyfs.images.reader import ImageReader
from backyfs.metadata.records.blobs import find_blobs, load_blobs
from backyfs.metadata.records.versions import list_versions, version_with_uid

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from backyfs.model import Blob, Buffer, Version
    from backyfs.repository import Repository
    from backyfs.sources.protocol import Source

_RUN_BYTES = 4 << 20  # read at once when an image is searched
_PROBE = b"two repositories have equal fingerprints of this if they have equal fingerprints of all bytes"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Occurrence:
    """A place where a blob occurs in the image of a version."""

    version: Version
    start: int  # byte offset in the image


class Origin(Protocol):
    """Something that may have the bytes of damaged blobs."""

    def candidates(self, blob: Blob, occurrences: Collection[Occurrence]) -> Iterator[Buffer]:
        """Yield what may be the bytes of a blob, which occurs at these places.

        Raises:
            MissingKeyError: it is encrypted, and there is no key.
            DatabaseError: its database cannot be read.
        """
        ...


class BlobOrigin:
    """Blobs with the same fingerprint, in this repository or in one with the same fingerprint key."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    def candidates(self, blob: Blob, _occurrences: Collection[Occurrence]) -> Iterator[Buffer]:
        """Yield the bytes of whole blobs with the same fingerprint."""
        if blob.fingerprint is None:
            return
        with self._repository.database.read() as connection:
            found = load_blobs(connection, find_blobs(connection, [blob.fingerprint]).values())
        for other in found.values():
            try:
                yield load_block(self._repository.blocks, other)
            except DAMAGE as error:
                _log.info("not repaired from blob %s: %s", other.uid, error)


class ImageOrigin:
    """A device or image."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def candidates(self, blob: Blob, occurrences: Collection[Occurrence]) -> Iterator[Buffer]:
        """Yield the bytes of the image at these places."""
        for start in sorted({place.start for place in occurrences}):
            if start + blob.size <= self._source.size_bytes:
                block = bytearray(blob.size)
                if self._read(start, block):
                    yield block

    def search(self, block_size: int, sizes: Collection[int], advance: Callable[[int], None]) -> Iterator[memoryview]:
        """Yield every block of the image that has data, cut to each of these sizes; the views are reused.

        Parts that cannot be read are skipped. `advance` is called with the number of bytes passed.
        """
        run_blocks = max(1, _RUN_BYTES // block_size)
        buffer = bytearray(run_blocks * block_size)
        size_bytes = self._source.size_bytes
        done = 0
        for run in block_runs(self._source.data_extents(), size_bytes, block_size, run_blocks):
            start = run.first * block_size
            length = min(run.count * block_size, size_bytes - start)
            if self._read(start, memoryview(buffer)[:length]):
                for position in range(0, length, block_size):
                    for size in sizes:
                        if position + size <= length:
                            yield memoryview(buffer)[position : position + size]
            advance(start + length - done)
            done = start + length

    def _read(self, start: int, buffer: Buffer) -> bool:
        try:
            with memoryview(buffer) as view:
                self._source.read_into(start, view)
        except SourceError as error:
            _log.warning("%s; nothing there is used for the repair", error)
            return False
        return True


class RepositoryOrigin:
    """Another repository: its blobs, if its fingerprints are the same, and its copies of the same versions."""

    def __init__(self, ours: Repository, other: Repository) -> None:
        self._other = other
        # With keys of 32 random bytes, they are equal only if both the functions and the keys are.
        self._has_our_fingerprints = ours.blocks.fingerprint(_PROBE) == other.blocks.fingerprint(_PROBE)
        self._blobs = BlobOrigin(other)
        self._pages = PageCache()
        self._readers: dict[int, ImageReader] = {}
        self._counterparts: dict[int, Version | None] = {}

    def candidates(self, blob: Blob, occurrences: Collection[Occurrence]) -> Iterator[Buffer]:
        """Yield the bytes of its blob with this fingerprint, and those of its copies of the versions."""
        if self._has_our_fingerprints:
            yield from self._blobs.candidates(blob, occurrences)
        for place in occurrences:
            counterpart = self._counterpart(place.version)
            if counterpart is not None and place.start + blob.size <= counterpart.size_bytes:
                block = self._read(counterpart, place.start, blob.size)
                if block is not None:
                    yield block

    def _counterpart(self, version: Version) -> Version | None:
        """Return its version that is the same backup: with the same uid, or the same name and date."""
        if version.id not in self._counterparts:
            with self._other.database.read() as connection:
                found = version_with_uid(connection, version.uid)
                if found is None:
                    named = list_versions(connection, name=version.name)
                    found = next((other for other in named if other.created_at == version.created_at), None)
            self._counterparts[version.id] = found
        return self._counterparts[version.id]

    def _read(self, version: Version, start: int, length: int) -> Buffer | None:
        reader = self._readers.setdefault(version.id, ImageReader(self._other, version, self._pages))
        try:
            return reader.pread(start, length)
        except (VersionIncompleteError, DatabaseError, *DAMAGE) as error:
            _log.info("not repaired from version %s, bytes %d on: %s", version.uid, start, error)
            return None
