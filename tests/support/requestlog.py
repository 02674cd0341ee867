"""The requests that a proxy in front of an object store saw: counts, bytes, and how many at the same time."""

from __future__ import annotations

import threading
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator

_SUBRESOURCES = {"location", "policy", "uploads", "versioning", "versions"}


class Verb(StrEnum):
    """What a request asks for, as providers of object stores count it."""

    GET = "GET"      # a whole object
    RANGE = "RANGE"  # a part of an object
    HEAD = "HEAD"
    LIST = "LIST"
    PUT = "PUT"
    DELETE = "DELETE"
    DELETE_MANY = "DELETE_MANY"
    OTHER = "OTHER"


READS = frozenset({Verb.GET, Verb.RANGE})


@dataclass(slots=True, kw_only=True)
class Request:
    """A request, and what became of it."""

    verb: Verb
    method: str
    path: str        # with the query, as it was sent
    began_s: float   # monotonic
    in_flight: int   # requests at its beginning, itself included
    ended_s: float | None = None  # None: it is in flight
    status: int | None = None     # of the answer; None: the client got none
    body_bytes: int = 0           # of the request
    answer_bytes: int = 0         # of the body of the answer


class RequestLog:
    """The requests in the order in which they came. Any thread may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: list[Request] = []
        self._in_flight = 0

    @contextmanager
    def recorded(self, verb: Verb, method: str, path: str) -> Iterator[Request]:
        """Record a request from its beginning to its end."""
        with self._lock:
            self._in_flight += 1
            now = time.monotonic()
            request = Request(verb=verb, method=method, path=path, began_s=now, in_flight=self._in_flight)
            self._requests.append(request)
        try:
            yield request
        finally:
            self.end(request)

    def end(self, request: Request) -> None:
        """Record the end of a request, unless that was done: before the client can know that it has ended."""
        with self._lock:
            if request.ended_s is None:
                self._in_flight -= 1
                request.ended_s = time.monotonic()

    def clear(self) -> None:
        """Forget the requests so far. Those in flight still count as such."""
        with self._lock:
            self._requests.clear()

    @property
    def requests(self) -> list[Request]:
        """All requests."""
        with self._lock:
            return list(self._requests)

    @property
    def counts(self) -> Counter[Verb]:
        """How many of each verb."""
        return Counter(request.verb for request in self.requests)

    @property
    def in_flight(self) -> int:
        """How many requests have not ended."""
        with self._lock:
            return self._in_flight

    @property
    def most_in_flight(self) -> int:
        """The largest number of requests at the same time."""
        return max((request.in_flight for request in self.requests), default=0)

    @property
    def body_bytes(self) -> int:
        """The bytes of all bodies that clients sent."""
        return sum(request.body_bytes for request in self.requests)

    @property
    def answer_bytes(self) -> int:
        """The bytes of all bodies that clients got."""
        return sum(request.answer_bytes for request in self.requests)


def verb_of(method: str, path: str, *, is_range: bool) -> Verb:
    """Say what a request asks for; `path` is that of a bucket or an object, with the query."""
    parts = urlsplit(path)
    names = {name for name, _ in parse_qsl(parts.query, keep_blank_values=True)}
    is_bucket = "/" not in parts.path.strip("/")
    if method == "GET" and is_bucket and not names & _SUBRESOURCES:
        return Verb.LIST
    if method == "GET" and not is_bucket:
        return Verb.RANGE if is_range else Verb.GET
    if method == "POST" and "delete" in names:
        return Verb.DELETE_MANY
    return Verb(method) if method in {Verb.HEAD, Verb.PUT, Verb.DELETE} else Verb.OTHER
