"""Facts about versions that only their block maps contain. The database is read in threads."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from backyfs.metadata.maps.usage import encryption_versions, used_bytes
from backyfs.mount.remembered import Remembered

if TYPE_CHECKING:
    from backyfs.metadata.db.database import Database
    from backyfs.model import Version
    from backyfs.mount.pool import Pool

_ENCRYPTION_S = 60  # how long the encryption versions of a version are remembered


class BlockFacts:
    """Reads block maps and remembers the answers. Used by the tasks of one trio event loop."""

    def __init__(self, database: Database, block_size: int, questions: Pool) -> None:
        """Read the database in threads of `questions`."""
        self._database = database
        self._block_size = block_size
        self._questions = questions
        self._used: Remembered[int] = Remembered()
        self._encryption: Remembered[bytes] = Remembered()

    async def used_bytes(self, version: Version, start: int, stop: int) -> int:
        """Return how many bytes of [start, stop) of an image are not holes."""

        def look() -> int:
            with self._database.read() as connection:
                return used_bytes(connection, version, self._block_size, start, stop)

        return await self._used.get(version, (start, stop), partial(self._questions.run, look))

    async def encryption_versions(self, version: Version) -> bytes:
        """Return the encryption versions of the blobs of a version, in order, separated by commas."""

        def look() -> bytes:
            with self._database.read() as connection:
                return ",".join(map(str, encryption_versions(connection, version))).encode()

        # A migration changes them at any time.
        period = int(time.monotonic() // _ENCRYPTION_S)
        return await self._encryption.get(version, period, partial(self._questions.run, look))
