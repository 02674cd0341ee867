"""What a version has before anything is read: pages of its base, and those that an earlier run has committed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backyfs.geometry import PAGE_ENTRIES, block_count, page_count, page_length
from backyfs.metadata.maps.blockmap import (
    ABSENT,
    HOLE,
    commit_page,
    list_pages,
    load_page,
    new_entries,
    page_entries,
    share_pages,
)
from backyfs.metadata.records.blobs import damaged_blobs
from backyfs.model import BlobId, PageNumber
from backyfs.ranges import Ranges, ranges

if TYPE_CHECKING:
    from array import array

    from backyfs.engine.backup.plan import Plan
    from backyfs.metadata.db.database import Connection
    from backyfs.model import Version
    from backyfs.repository import Repository
    from backyfs.work.job import Job


class InheritedMap:
    """The block map of a new version where its source is not read. For one thread."""

    def __init__(
        self, repository: Repository, job: Job, version: Version, plan: Plan, base: Version | None
    ) -> None:
        """Begin with the current pages of a version that `job` holds; without a base, unread blocks are zeros."""
        self._repository = repository
        self._job = job
        self._version = version
        self._plan = plan
        self._base = base
        self._base_blocks = 0 if base is None else block_count(base.size_bytes, repository.block_size)
        self._blocks = block_count(version.size_bytes, repository.block_size)
        with repository.database.read() as connection:
            self.own_pages = {page_no for page_no, _ in list_pages(connection, version.id)}

    def committed(self, page_no: PageNumber) -> array[int]:
        """Return the entries that the version already has in a page; the others are absent.

        Raises:
            DatabaseError: the page is damaged or cannot be read.
        """
        if page_no not in self.own_pages:
            return new_entries(page_length(page_no, self._blocks), ABSENT)
        with self._repository.database.read() as connection:
            return page_entries(connection, self._version, page_no, self._blocks)

    def initial(self, page_no: PageNumber) -> array[int]:
        """Return the entries of a page for blocks that are not read.

        Raises:
            DatabaseError: a page is damaged or cannot be read.
        """
        with self._repository.database.read() as connection:
            return self._initial(connection, page_no)

    def enter_unread_pages(self) -> None:
        """Enter the pages without blocks to read: those of the base, and those that became zeros.

        Raises:
            DatabaseError: the pages cannot be written.
            JobLostError: another command considered this one dead.
        """
        if self._base is None:
            return
        settled = self._plan.pages_with_reads() | self.own_pages
        with self._job.write() as connection:  # which fails if the base may be gone
            shared = []
            for page_no, page_id in list_pages(connection, self._base.id):
                if page_no >= page_count(self._blocks) or page_no in settled:
                    continue
                if self._is_whole_in_base(page_no):
                    shared.append((page_no, page_id))
                else:
                    commit_page(connection, self._version.id, page_no, self._initial(connection, page_no))
            share_pages(connection, self._version.id, shared)

    def enter_absent_blocks(self) -> None:
        """Enter blocks that an earlier run left absent and that this one did not have to read.

        Raises:
            DatabaseError: the pages cannot be written.
            JobLostError: another command considered this one dead.
        """
        for page_no in self.own_pages:
            with self._job.write() as connection:
                entries = load_page(connection, self._version.id, page_no)
                if entries is not None and ABSENT in entries:
                    commit_page(connection, self._version.id, page_no, self._initial(connection, page_no))

    def _initial(self, connection: Connection, page_no: PageNumber) -> array[int]:
        length = page_length(page_no, self._blocks)
        entries = self._from_base(connection, page_no, length)
        if page_no in self.own_pages:
            own = page_entries(connection, self._version, page_no, self._blocks)
            for position, entry in enumerate(own):
                if entry != ABSENT:
                    entries[position] = entry
        return entries

    def _from_base(self, connection: Connection, page_no: PageNumber, length: int) -> array[int]:
        entries = new_entries(length, HOLE)
        if self._base is None or page_no >= page_count(self._base_blocks):
            return entries
        page = page_entries(connection, self._base, page_no, self._base_blocks)
        first = page_no * PAGE_ENTRIES
        for start, stop in self._plan.kept.within(first, first + length):
            entries[start - first : stop - first] = page[start - first : stop - first]
        return entries

    def _is_whole_in_base(self, page_no: PageNumber) -> bool:
        """Return whether a page equals that of the base, including its length."""
        first = page_no * PAGE_ENTRIES
        length = page_length(page_no, self._blocks)
        whole = [(first, first + length)]
        return page_length(page_no, self._base_blocks) == length and [*self._plan.kept.within(*whole[0])] == whole


def damaged_blocks(connection: Connection, version: Version, block_size: int) -> Ranges:
    """Return the blocks of a version whose blobs are known to be damaged.

    Raises:
        DatabaseError: the block map is damaged or cannot be read.
    """
    damaged = damaged_blobs(connection)
    if not damaged:
        return Ranges()
    found = []
    blocks = block_count(version.size_bytes, block_size)
    for page_no, _ in list_pages(connection, version.id):
        entries = page_entries(connection, version, page_no, blocks)
        if not damaged.isdisjoint(entries):
            first = page_no * PAGE_ENTRIES
            found += [first + position for position, entry in enumerate(entries) if BlobId(entry) in damaged]
    return ranges((index, index + 1) for index in found)
