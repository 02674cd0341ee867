"""Recount all references and correct the wrong ones, while other commands run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from backyfs.metadata.db.batches import batches
from backyfs.metadata.upkeep.recount import catch_up, correct_blobs, correct_pages, count_uses, wrong_blobs, wrong_pages
from backyfs.model import BlobId

if TYPE_CHECKING:
    from collections.abc import Callable

    from backyfs.metadata.db.database import Database


@dataclass(frozen=True, slots=True, kw_only=True)
class RecountReport:
    """Which counts were wrong."""

    pages: int                   # with corrected counts
    blobs: int                   # with corrected counts
    without_row: frozenset[BlobId]  # that pages refer to


def recount(database: Database, check: Callable[[], None], *, correct: bool = True) -> RecountReport:
    """Count references and correct the wrong ones, or only report them. `check` is called often, and may raise.

    Other commands can run at the same time: see `metadata.upkeep.recount`. An interrupted recount has corrected some
    counts; run it again.

    Raises:
        DatabaseError: the database fails, or a page is damaged.
    """
    corrected_pages = corrected_blobs = 0
    with database.read() as snapshot:
        pages = wrong_pages(snapshot)
        uses = count_uses(snapshot, check)
        blobs, lost = wrong_blobs(snapshot, uses)
        if not correct:
            return RecountReport(pages=len(pages), blobs=len(blobs), without_row=frozenset(map(BlobId, lost)))
        for page_batch in batches(pages):
            check()
            with database.write() as connection:
                corrected_pages += correct_pages(connection, page_batch)
        for batch in batches(blobs):
            check()
            with database.write() as connection:
                catch_up(connection, snapshot, uses)
                corrected_blobs += correct_blobs(connection, uses, batch)
    return RecountReport(
        pages=corrected_pages, blobs=corrected_blobs, without_row=frozenset(map(BlobId, lost))
    )
