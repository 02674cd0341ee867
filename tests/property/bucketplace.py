"""A repository in a bucket, whose commands are cut off from it, as by a power cut.

What was put is durable. So a process that is killed leaves what one leaves that reaches nothing from a request on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import obstore

from tests.property.world import BLOCK, run_quietly
from tests.support.bucketrepositories import made
from tests.support.faults import Reset

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.support.buckets import Bucket
    from tests.support.faultproxy import FaultProxy

_MOST_REQUESTS = 24  # of most commands
_ALL = 1 << 30


class BucketPlace:
    """A part of a bucket, reached through a proxy."""

    def __init__(self, bucket: Bucket, proxy: FaultProxy, directory: Path, database: str) -> None:
        """Make a repository there."""
        self._bucket = bucket
        self._proxy = proxy
        self._prefix = directory.name
        self.config = made(
            bucket, directory / "repository", prefix=self._prefix, endpoint=proxy.endpoint, database=database,
            block_size=BLOCK,
        )  # fmt: skip
        text = self.config.read_text()
        self.config.write_text(text.replace("[DataBackend]\n", "[DataBackend]\nretry_time: 0s\n"))

    def command(self, arguments: Sequence[str], kill_at: int) -> bool:
        """Run a command that loses its connections at a request, which every other time is still carried out."""
        fault = self._proxy.add(Reset(forward=bool(kill_at % 2)), after=kill_at % _MOST_REQUESTS, times=_ALL)
        try:
            run_quietly(arguments)
        finally:
            self._proxy.rules.remove(fault)
        return fault.times == _ALL

    def blobs(self) -> list[str]:
        """Return the uids of all objects of blobs, the oldest first."""
        found = [one for some in obstore.list(self._bucket.store(), self._prefix) for one in some]
        found.sort(key=lambda one: (one["last_modified"], one["path"]))
        keys = [one["path"].removeprefix(f"{self._prefix}/") for one in found]
        return [key for key in keys if "/" not in key]

    def read(self, uid: str) -> bytes | None:
        """Return an object; None: there is none."""
        return self._bucket.get(f"{self._prefix}/{uid}") if uid in self.blobs() else None

    def write(self, uid: str, content: bytes | None) -> None:
        """Replace an object, or delete it."""
        if content is None:
            self._bucket.delete(f"{self._prefix}/{uid}")
        else:
            self._bucket.put(f"{self._prefix}/{uid}", content)
