"""Count requests by verb. Any thread may count and look."""

from __future__ import annotations

import threading

from backyfs.model import RequestCount


class Tally:
    """The requests that were sent so far."""

    def __init__(self) -> None:
        """Begin without any."""
        self._lock = threading.Lock()
        self._counts: dict[str, RequestCount] = {}

    def add(self, verb: str, *, requests: int = 0, repeated: int = 0, size_bytes: int = 0) -> None:
        """Count requests, or what they moved."""
        with self._lock:
            count = self._counts.get(verb, RequestCount())
            self._counts[verb] = RequestCount(
                requests=count.requests + requests,
                repeated=count.repeated + repeated,
                bytes=count.bytes + size_bytes,
            )

    def counts(self) -> dict[str, RequestCount]:
        """Return the requests of each verb, in the order of the verbs."""
        with self._lock:
            return dict(sorted(self._counts.items()))
