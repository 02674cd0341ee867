"""Check block maps: pages are whole and fit the image, and blobs exist and have the right size.

Pages that versions share are checked once. Memory: about 200 bytes for each page of the versions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from backyfs.errors import OddValueError
from backyfs.geometry import PAGE_ENTRIES, block_count, block_length, page_count, page_length
from backyfs.metadata.maps.blockmap import ABSENT, list_pages, page_entries
from backyfs.metadata.maps.pagefacts import PageFacts, page_facts
from backyfs.metadata.records.versions import list_versions
from backyfs.model import BlobId, BlockIndex, DamagedRange, VersionStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from backyfs.metadata.db.database import Connection
    from backyfs.model import PageId, PageNumber, Version
    from backyfs.repository import Repository

_GONE = "has no row in the database"
_DOOMED = "is about to be deleted by a cleanup, though it is in use"


@dataclass(slots=True, kw_only=True)
class MapFaults:
    """What is wrong with block maps."""

    gone: dict[BlobId, str] = field(default_factory=dict)  # blobs that are in use but do not exist
    ranges: list[tuple[Version, DamagedRange]] = field(default_factory=list)  # everything else, in order

    @property
    def bytes(self) -> int:
        """Bytes of images in these ranges."""
        return sum(damage.stop - damage.start for _, damage in self.ranges)


def check_maps(repository: Repository, versions: Sequence[Version] | None, check: Callable[[], None]) -> MapFaults:
    """Check the block maps of these versions, or of all. `check` is called from time to time and may raise.

    Raises:
        DatabaseError: the database cannot be read.
    """
    faults = MapFaults()
    known: dict[PageId, PageFacts] = {}
    if versions is None:
        with repository.database.read() as connection:
            versions = list_versions(connection)
    for version in versions:
        check()
        with repository.database.read() as connection:  # a snapshot, because other commands remove versions
            try:
                placed = list_pages(connection, version.id)
            except OddValueError as error:
                whole = DamagedRange(start=0, stop=version.size_bytes, reason=error.statement)
                faults.ranges.append((version, whole))
                continue
            new = {page_id for _, page_id in placed} - known.keys()
            known.update(page_facts(connection, new, repository.block_size))
            for page_no, page_id in placed:
                facts = known[page_id]
                faults.gone.update(dict.fromkeys(facts.gone, _GONE) | dict.fromkeys(facts.doomed, _DOOMED))
                for damage in _faults(connection, version, page_no, facts, repository.block_size):
                    faults.ranges.append((version, damage))
    return faults


def _faults(
    connection: Connection, version: Version, page_no: PageNumber, facts: PageFacts, block_size: int
) -> Iterator[DamagedRange]:
    blocks = block_count(version.size_bytes, block_size)
    start = page_no * PAGE_ENTRIES * block_size
    if page_no >= page_count(blocks):
        stop = start + (facts.length or PAGE_ENTRIES) * block_size
        yield DamagedRange(start=start, stop=stop, reason="the block map continues beyond the end of the image")
        return
    length = page_length(page_no, blocks)
    stop = min(start + PAGE_ENTRIES * block_size, version.size_bytes)
    if facts.fault is not None:
        yield DamagedRange(start=start, stop=stop, reason=facts.fault)
    elif facts.length != length:
        reason = f"the block map has {facts.length} blocks where the image has {length}"
        yield DamagedRange(start=start, stop=stop, reason=reason)
    elif _may_be_wrong(version, page_no, facts, block_size):
        yield from _faults_of_blocks(connection, version, page_no, facts, block_size)


def _may_be_wrong(version: Version, page_no: PageNumber, facts: PageFacts, block_size: int) -> bool:
    """Return whether to check each block of a page, for example because the last block of an image must be short."""
    if facts.odd_sizes or (facts.has_absent and version.status is VersionStatus.VALID):
        return True
    is_last = page_no == page_count(block_count(version.size_bytes, block_size)) - 1
    return is_last and facts.has_blob_at_end and version.size_bytes % block_size != 0


def _faults_of_blocks(
    connection: Connection, version: Version, page_no: PageNumber, facts: PageFacts, block_size: int
) -> Iterator[DamagedRange]:
    entries = page_entries(connection, version, page_no, block_count(version.size_bytes, block_size))
    for position, entry in enumerate(entries):
        index = BlockIndex(page_no * PAGE_ENTRIES + position)
        length = block_length(index, version.size_bytes, block_size)
        reason = None
        if entry == ABSENT and version.status is VersionStatus.VALID:
            reason = "was never backed up, though the version is valid"
        elif entry > 0 and entry not in facts.gone:
            size = facts.odd_sizes.get(BlobId(entry), block_size)
            if size != length:
                reason = f"blob number {entry} has {size} bytes where the image has {length}"
        if reason is not None:
            yield DamagedRange(start=index * block_size, stop=index * block_size + length, reason=reason)
