"""Look once more at blobs that a reader could not have, and mark those that are damaged: what a scrub does, for a few.

The next backup that reads the bytes of a marked block stores it again, see `engine.damage.repair`.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from backyfs.engine.damage.blobchecker import BlobChecker
from backyfs.engine.damage.marking import mark_versions
from backyfs.errors import BackyfsError

if TYPE_CHECKING:
    from collections.abc import Collection

    from backyfs.model import BlobId, DamagedRange, Version
    from backyfs.repository import Repository
    from backyfs.work.run import Run

_log = logging.getLogger(__name__)


def check_suspects(repository: Repository, suspects: Collection[BlobId], run: Run) -> None:
    """Read blobs once more, and mark those that are damaged, and the versions that use them.

    Raises nothing: who reads has something else to tell. Where nobody can write to the database nothing is marked.
    """
    if not suspects or repository.database.is_read_only:
        return
    checker = BlobChecker(repository, run)
    try:
        checker.run(sorted(suspects))
        marked = mark_versions(repository, checker.found.damaged, _tell_nobody)
    except BackyfsError as error:
        _log.warning("blocks that could not be read are not marked as damaged: %s; run `backyfs scrub`", error)
        return
    for uid in marked.versions:
        _log.warning("version %s is invalid now; a backup of the same bytes, or `backyfs repair`, makes it whole", uid)


def _tell_nobody(_version: Version, _damage: DamagedRange) -> None:
    pass
