"""Count the blocks of a version that are known to be damaged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import select

from backyfs.errors import DamagedPageError
from backyfs.geometry import PAGE_ENTRIES, block_count
from backyfs.metadata.db.batches import batches
from backyfs.metadata.db.tables import blobs, repository
from backyfs.metadata.maps.blockmap import HOLE, list_pages, load_page

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from backyfs.model import Version


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """The number of blocks of a version that cannot be read according to the database."""

    bad_blocks: int
    blocks: int


def measure_damage(connection: Connection, version: Version) -> Damage:
    """Count the blocks of a version whose blobs are marked as damaged or gone, reading one page at a time.

    All blocks of a damaged page count, because their blobs are unknown.

    Raises:
        DatabaseError: the database cannot be read.
    """
    block_size = connection.execute(select(repository.c.block_size)).scalar_one()
    blocks = block_count(version.size_bytes, block_size)
    bad = 0
    for page_no, _ in list_pages(connection, version.id):
        try:
            entries = load_page(connection, version.id, page_no) or ()
        except DamagedPageError:
            bad += min(PAGE_ENTRIES, blocks - page_no * PAGE_ENTRIES)
            continue
        sound = {HOLE}
        for batch in batches(sorted({entry for entry in entries if entry > HOLE})):
            sound.update(connection.execute(select(blobs.c.id).where(blobs.c.id.in_(batch), blobs.c.valid)).scalars())
        bad += sum(entry not in sound for entry in entries)
    return Damage(bad_blocks=bad, blocks=blocks)
