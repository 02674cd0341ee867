"""The images that are open, each held by the job of the mount as long as somebody has it open."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from backyfs.errors import BackyfsError
from backyfs.images.image import Image, PageCache
from backyfs.model import VersionStatus
from backyfs.mount.reading import ImageReader

if TYPE_CHECKING:
    from backyfs.model import Version, VersionUid
    from backyfs.mount.cache import PieceCache
    from backyfs.mount.pool import Pool
    from backyfs.repository import Repository
    from backyfs.work.job import Job

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Opened:
    reader: ImageReader
    count: int


class Images:
    """Images by their versions. Used by the tasks of one trio event loop."""

    def __init__(self, repository: Repository, cache: PieceCache, job: Job, questions: Pool) -> None:
        """Open images of a repository; ask the database in threads of `questions`."""
        self._repository = repository
        self._cache = cache
        self._job = job
        self._questions = questions
        self._pages = PageCache()
        self._zeros = memoryview(bytes(repository.block_size))
        self._lock = trio.Lock()  # one opens or closes at a time, or one would release what another just held
        self._opened: dict[VersionUid, _Opened] = {}

    def __len__(self) -> int:
        return len(self._opened)

    async def open(self, version: Version) -> ImageReader:
        """Return what reads a version, which is not removed until `close`.

        Raises:
            DatabaseError: it cannot be held.
        """
        async with self._lock:
            opened = self._opened.get(version.uid)
            if opened is None:
                await self._questions.run(self._job.hold, version.id)
                opened = self._opened[version.uid] = _Opened(self._reader(version), 0)
            elif opened.reader.image.version.status is VersionStatus.INCOMPLETE:
                opened.reader = self._reader(version)  # its backup may have gone on since
            opened.count += 1
            return opened.reader

    def forget_pages(self) -> None:
        """Read the block maps of all images anew: blobs that they name are elsewhere by now. Any thread may call."""
        self._pages.clear()

    async def close(self, version: Version) -> None:
        """Let a version go, if nobody else has opened it."""
        async with self._lock:
            opened = self._opened[version.uid]
            opened.count -= 1
            if opened.count == 0:
                del self._opened[version.uid]
                try:
                    await self._questions.run(self._job.release, version.id)
                except BackyfsError as error:
                    _log.warning("version %s stays held until this mount ends: %s", version.uid, error)

    def _reader(self, version: Version) -> ImageReader:
        image = Image(self._repository, version, self._pages)
        return ImageReader(image, self._cache, self._questions, self._zeros)
