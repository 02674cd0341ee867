"""Check blobs again that a reader failed to read, and mark the damaged ones: a scrub of a few blobs.

The next backup that reads the bytes of a marked block stores it again, see `engine.damage.repair`.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from backyfs.engine.damage.blobchecker import BlobChecker
from backyfs.engine.damage.marking import mark_versions
from backyfs.errors import BackyfsError
from backyfs.remedies import Advice

if TYPE_CHECKING:
    from collections.abc import Collection

    from backyfs.model import BlobId, DamagedRange, Version
    from backyfs.repository import Repository
    from backyfs.work.run import Run

_log = logging.getLogger(__name__)


def check_suspects(repository: Repository, suspects: Collection[BlobId], run: Run) -> None:
    """Read blobs again, and mark those that are damaged and the versions that use them.

    Raises nothing, because the reader has its own error to report. If the database is read-only, nothing is marked.
    """
    if not suspects or repository.database.is_read_only:
        return
    checker = BlobChecker(repository, run)
    try:
        checker.run(sorted(suspects))
        marked = mark_versions(repository, checker.found.damaged, _ignore)
    except BackyfsError as error:
        _log.warning("blocks that could not be read are not marked as damaged: %s; %s", error, Advice.SCRUB())
        return
    for uid in marked.versions:
        _log.warning("version %s is invalid now; %s", uid, Advice.REPAIR_BLOCKS())


def _ignore(_version: Version, _damage: DamagedRange) -> None:
    pass
