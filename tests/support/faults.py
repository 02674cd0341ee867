"""What a fault proxy does to requests: rules, each with a fault and the requests that it hits."""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass, field

from tests.support.requestlog import Verb


@dataclass(frozen=True, slots=True)
class Delay:
    """The request is forwarded later. Delays of several rules add up."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """Bodies, of all requests that the rule hits together, take as long as on a line of this rate."""

    bytes_per_s: float


@dataclass(frozen=True, slots=True)
class Answer:
    """The proxy answers with an error document and does not forward the request."""

    status: int
    code: str
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reset:
    """The connection is reset after `body_bytes` of the body of the answer, or before the answer if this is None.

    The server carries the request out, unless `forward` is false.
    """

    body_bytes: int | None = None
    forward: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Silence:
    """The answer stops after `body_bytes` of its body. If this is None, the request is not even forwarded."""

    body_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Truncation:
    """The body of the answer ends early. Its Content-Length says so, unless `honest` is false."""

    body_bytes: int
    honest: bool


Fault = Delay | Bandwidth | Answer | Reset | Silence | Truncation
Ending = Answer | Reset | Silence | Truncation  # of the faults of this kind, only the first that hits a request counts

SLOW_DOWN = Answer(503, "SlowDown")
INTERNAL_ERROR = Answer(500, "InternalError")
TOO_MANY_REQUESTS = Answer(429, "TooManyRequests")
ACCESS_DENIED = Answer(403, "AccessDenied")
REQUEST_TIME_TOO_SKEWED = Answer(403, "RequestTimeTooSkewed")
NO_SUCH_BUCKET = Answer(404, "NoSuchBucket")
NO_SUCH_KEY = Answer(404, "NoSuchKey")
ERROR_WITHIN_SUCCESS = Answer(200, "InternalError")


@dataclass(slots=True)
class Rule:
    """A fault, and the requests that it hits."""

    fault: Fault
    verbs: frozenset[Verb] = frozenset(Verb)
    path: str = ""            # regular expression that is found in the path, with the query
    times: int | None = None  # how many requests; None: all of these, until the rule is removed
    after: int = 0            # requests that pass before it hits
    line: Line | None = field(init=False, default=None)  # of a bandwidth in force

    def hits(self, verb: Verb, path: str) -> bool:
        """Say whether a request is meant."""
        return self.times != 0 and verb in self.verbs and re.search(self.path, path) is not None


class Line:
    """A line of limited rate. Any thread may use it."""

    def __init__(self, bytes_per_s: float) -> None:
        self.bytes_per_s = bytes_per_s
        self._lock = threading.Lock()
        self._free_at_s = 0.0

    def reserve(self, size: int) -> float:
        """Return how long to wait until `size` bytes have passed."""
        with self._lock:
            now = time.monotonic()
            self._free_at_s = max(now, self._free_at_s) + size / self.bytes_per_s
            return self._free_at_s - now


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What happens to one request."""

    delay_s: float = 0
    lines: tuple[Line, ...] = ()
    ending: Ending | None = None


class Rules:
    """The rules in force. Any thread may read and change them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rules: list[Rule] = []

    def add(self, rule: Rule) -> Rule:
        """Put a rule in force, behind the others."""
        if isinstance(rule.fault, Bandwidth):
            rule.line = Line(rule.fault.bytes_per_s)
        with self._lock:
            self._rules.append(rule)
        return rule

    def remove(self, *rules: Rule) -> None:
        """Remove these rules."""
        with self._lock:
            self._rules = [rule for rule in self._rules if not any(rule is other for other in rules)]

    def clear(self) -> None:
        """Remove all rules."""
        with self._lock:
            self._rules.clear()

    def take(self, verb: Verb, path: str) -> Faults:
        """Return what happens to a request, and count it for the rules that hit it."""
        delay_s, lines, ending = 0.0, [], None
        with self._lock:
            for rule in [rule for rule in self._rules if rule.hits(verb, path)]:
                if rule.after:
                    rule.after -= 1
                    continue
                if isinstance(rule.fault, Delay):
                    delay_s += rule.fault.seconds
                elif rule.line is not None:
                    lines.append(rule.line)
                elif ending is not None:
                    continue
                elif not isinstance(rule.fault, Bandwidth):
                    ending = rule.fault
                if rule.times is not None:
                    rule.times -= 1
        return Faults(delay_s=delay_s, lines=tuple(lines), ending=ending)
