"""One reader for each version that is open. The job of the mount holds these versions, so nobody removes them."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from backyfs.errors import BackyfsError
from backyfs.images.image import Image
from backyfs.model import VersionStatus
from backyfs.mount.reading import ImageReader

if TYPE_CHECKING:
    from backyfs.images.image import PageCache
    from backyfs.model import Version, VersionUid
    from backyfs.mount.cache import PieceCache
    from backyfs.mount.pool import Pool
    from backyfs.repository import Repository
    from backyfs.work.job import Job

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Shared:
    reader: ImageReader
    count: int  # of open files that use it


class Readers:
    """Readers by version. Used by the tasks of one trio event loop."""

    def __init__(
        self, repository: Repository, job: Job, *, cache: PieceCache, pages: PageCache, questions: Pool
    ) -> None:
        """Read through a cache of pieces and one of pages. Query the database in threads of `questions`."""
        self._repository = repository
        self._job = job
        self._cache = cache
        self._pages = pages
        self._questions = questions
        self._zeros = memoryview(bytes(repository.block_size))
        self._lock = trio.Lock()  # one task opens or closes at a time, or it could release what another just held
        self._shared: dict[VersionUid, _Shared] = {}

    def __len__(self) -> int:
        return len(self._shared)

    async def open(self, version: Version) -> ImageReader:
        """Return the reader of a version, which cannot be removed until `close`.

        Raises:
            DatabaseError: the version cannot be held.
        """
        async with self._lock:
            shared = self._shared.get(version.uid)
            if shared is None:
                await self._questions.run(self._job.hold, version.id)
                shared = self._shared[version.uid] = _Shared(self._reader(version), 0)
            elif shared.reader.image.version.status is VersionStatus.INCOMPLETE:
                shared.reader = self._reader(version)  # its backup may have continued since
            shared.count += 1
            return shared.reader

    async def close(self, reader: ImageReader) -> None:
        """Give up a reader. The last one of a version releases the version."""
        version = reader.image.version
        async with self._lock:
            shared = self._shared[version.uid]
            shared.count -= 1
            if shared.count == 0:
                del self._shared[version.uid]
                try:
                    await self._questions.run(self._job.release, version.id)
                except BackyfsError as error:
                    _log.warning("version %s stays in use until this mount ends: %s", version.uid, error)

    def _reader(self, version: Version) -> ImageReader:
        image = Image(self._repository, version, self._pages)
        return ImageReader(image, self._cache, self._questions, self._zeros)
